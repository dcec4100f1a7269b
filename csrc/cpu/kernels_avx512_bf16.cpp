#define WENET_ISA avx512_bf16
#define WENET_VECTOR_BYTES 64
#define WENET_TILE_ROWS 12  // of accumulators, two vectors wide, that the registers hold
#include "cpu/bfloat16.h"
#include "cpu/kernels.h"

namespace wenet {

Kernels avx512_bf16_kernels() { return avx512_bf16::kernels<avx512_bf16::BFloat16>(); }

}  // namespace wenet
