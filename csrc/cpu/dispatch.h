#pragma once

#include <string>
#include <vector>

#include "cpu/recurrence.h"

namespace wenet {

// The kernels of an instruction set that this build has and this processor can run; "auto" stands for the widest.
// Throws std::invalid_argument with the names to choose from, or where the instruction set does not multiply such
// factors.
Kernels kernels(const std::string& instruction_set, Factor factor);

// The instruction sets that `kernels` takes, from the plainest to the widest.
std::vector<std::string> kernel_sets();

// Those of them that multiply bfloat16 on this processor.
std::vector<std::string> bf16_kernel_sets();

}  // namespace wenet
