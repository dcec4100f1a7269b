#include "cpu/dispatch.h"

#include <algorithm>
#include <stdexcept>

#include "cpu/features.h"

namespace wenet {

Kernels portable_kernels(bool doubles);
#if defined(__x86_64__)
Kernels avx2_kernels(bool doubles);
Kernels avx512_kernels(bool doubles);
#endif

namespace {

struct Build {
  const char* instruction_set;
  Kernels (*kernels)(bool doubles);
};

constexpr Build kBuilds[] = {
    {"portable", portable_kernels},
#if defined(__x86_64__)
    {"avx2", avx2_kernels},
    {"avx512", avx512_kernels},
#endif
};

}  // namespace

std::vector<std::string> kernel_sets() {
  const std::vector<std::string> processor = instruction_sets();
  std::vector<std::string> sets;
  for (const Build& build : kBuilds) {
    if (std::count(processor.begin(), processor.end(), build.instruction_set)) sets.push_back(build.instruction_set);
  }
  return sets;
}

Kernels kernels(const std::string& instruction_set, bool doubles) {
  const std::vector<std::string> sets = kernel_sets();
  const std::string& wanted = instruction_set == "auto" ? sets.back() : instruction_set;
  std::string names;
  for (const std::string& name : sets) names += (names.empty() ? "" : ", ") + name;
  if (std::count(sets.begin(), sets.end(), wanted)) {
    for (const Build& build : kBuilds) {
      if (wanted == build.instruction_set) return build.kernels(doubles);
    }
  }
  throw std::invalid_argument("this processor runs " + names + ", not " + wanted);
}

}  // namespace wenet
