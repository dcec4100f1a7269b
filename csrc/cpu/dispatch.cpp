#include "cpu/dispatch.h"

#include <algorithm>
#include <iterator>
#include <stdexcept>

#include "cpu/features.h"

namespace wenet {

Kernels portable_kernels(bool doubles);
#if defined(__x86_64__)
Kernels avx2_kernels(bool doubles);
Kernels avx512_kernels(bool doubles);
Kernels avx512_bf16_kernels();
#endif

namespace {

struct Build {
  const char* instruction_set;
  Kernels (*kernels)(bool doubles);
  const char* bf16_extension;  // what the processor needs besides to multiply bfloat16; null where nothing helps
  Kernels (*bf16_kernels)();
};

constexpr Build kBuilds[] = {
    {"portable", portable_kernels, nullptr, nullptr},
#if defined(__x86_64__)
    {"avx2", avx2_kernels, nullptr, nullptr},
    {"avx512", avx512_kernels, "avx512_bf16", avx512_bf16_kernels},
#endif
};

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::count(names.begin(), names.end(), name) > 0;
}

}  // namespace

std::vector<std::string> kernel_sets() {
  const std::vector<std::string> processor = instruction_sets();
  std::vector<std::string> sets;
  for (const Build& build : kBuilds) {
    if (contains(processor, build.instruction_set)) sets.push_back(build.instruction_set);
  }
  return sets;
}

std::vector<std::string> bf16_kernel_sets() {
  const std::vector<std::string> processor = instruction_sets();
  std::vector<std::string> sets;
  for (const Build& build : kBuilds) {
    if (build.bf16_extension && contains(processor, build.bf16_extension)) sets.push_back(build.instruction_set);
  }
  return sets;
}

Kernels kernels(const std::string& instruction_set, Factor factor) {
  const std::vector<std::string> sets = kernel_sets();
  const std::string& wanted = instruction_set == "auto" ? sets.back() : instruction_set;
  std::string names;
  for (const std::string& name : sets) names += (names.empty() ? "" : ", ") + name;
  if (!contains(sets, wanted)) throw std::invalid_argument("this processor runs " + names + ", not " + wanted);
  if (factor == Factor::bf16 && !contains(bf16_kernel_sets(), wanted)) {
    throw std::invalid_argument(wanted + " does not multiply bfloat16 on this processor");
  }
  const Build& build = *std::find_if(std::begin(kBuilds), std::end(kBuilds),
                                     [&](const Build& b) { return wanted == b.instruction_set; });
  return factor == Factor::bf16 ? build.bf16_kernels() : build.kernels(factor == Factor::fp64);
}

}  // namespace wenet
