// The kernels of one instruction set, to be included by a file that defines which.
#pragma once

#include "cpu/backward.h"
#include "cpu/forward.h"
#include "cpu/projection.h"

namespace wenet {
namespace WENET_ISA {

template <typename T>
Kernels kernels() {
  return {kWidth<T>, forward<T>, backward<T>, project<T>, project_backward<T>};
}

}  // namespace WENET_ISA
}  // namespace wenet
