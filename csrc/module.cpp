// The Python module of the native kernels. It takes raw addresses, so one build serves every version of torch.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/features.h"

PYBIND11_MODULE(_native, m) {
  m.def("instruction_sets", &wenet::instruction_sets,
        "Instruction sets that this processor can run, from the plainest to the widest.");
}
