#define WENET_ISA avx512
#define WENET_VECTOR_BYTES 64
#define WENET_TILE_ROWS 12  // of accumulators, two vectors wide, that the registers hold
#include "cpu/kernels.h"

namespace wenet {

Kernels avx512_kernels(bool doubles) { return doubles ? avx512::kernels<double>() : avx512::kernels<float>(); }

}  // namespace wenet
