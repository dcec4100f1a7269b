#pragma once

#include <string>
#include <vector>

#include "cpu/recurrence.h"

namespace wenet {

// The kernels for an instruction set; "auto" is the widest that this build has and this processor runs. Throws
// std::invalid_argument, with the names to choose from, for any other, or if the set cannot multiply such factors.
Kernels kernels(const std::string& instruction_set, Factor factor);

// The instruction sets that `kernels` takes, from the plainest to the widest.
std::vector<std::string> kernel_sets();

// Those that multiply bfloat16 on this processor.
std::vector<std::string> bf16_kernel_sets();

}  // namespace wenet
