#include "cpu/features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace wenet {

#if defined(__x86_64__)
namespace {

struct Registers {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

bool bit(unsigned value, int position) { return (value >> position) & 1u; }

// Which register files the operating system saves when it switches between programs.
unsigned enabled_states() {
  if (!bit(cpuid(1, 0).ecx, 27)) return 0;  // no xgetbv
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

}  // namespace
#endif

std::vector<std::string> instruction_sets() {
  std::vector<std::string> sets{"portable"};
#if defined(__x86_64__)
  constexpr unsigned kAvx = 0x6, kAvx512 = 0xe6, kAmx = 0x60000;
  const unsigned states = enabled_states();
  const Registers basic = cpuid(1, 0), extended = cpuid(7, 0), more = cpuid(7, 1);
  const bool fma = bit(basic.ecx, 12);
  const bool avx2 = (states & kAvx) == kAvx && fma && bit(extended.ebx, 5);
  // Foundation, doubleword/quadword, byte/word and vector-length extensions together.
  const bool avx512 = avx2 && (states & kAvx512) == kAvx512 && bit(extended.ebx, 16) && bit(extended.ebx, 17) &&
                      bit(extended.ebx, 30) && bit(extended.ebx, 31);
  const bool avx512_bf16 = avx512 && bit(more.eax, 5);
  const bool amx_bf16 = avx512 && (states & kAmx) == kAmx && bit(extended.edx, 22) && bit(extended.edx, 24);
  if (avx2) sets.push_back("avx2");
  if (avx512) sets.push_back("avx512");
  if (avx512_bf16) sets.push_back("avx512_bf16");
  if (amx_bf16) sets.push_back("amx_bf16");
#endif
  return sets;
}

}  // namespace wenet
