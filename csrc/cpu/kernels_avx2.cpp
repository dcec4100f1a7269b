#define WENET_ISA avx2
#define WENET_VECTOR_BYTES 32
#define WENET_TILE_ROWS 6  // of accumulators, two vectors wide, that the registers hold
#include "cpu/kernels.h"

namespace wenet {

Kernels avx2_kernels(bool doubles) { return doubles ? avx2::kernels<double>() : avx2::kernels<float>(); }

}  // namespace wenet
