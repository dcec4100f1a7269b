#pragma once

#include <string>
#include <vector>

namespace wenet {

// Instruction sets that this processor and operating system can run, from the plainest to the widest:
// "portable", "avx2", "avx512", "avx512_bf16", "amx_bf16".
std::vector<std::string> instruction_sets();

}  // namespace wenet
