#define WENET_ISA portable
#define WENET_VECTOR_BYTES 16
#define WENET_TILE_ROWS 6  // of accumulators, two vectors wide, that the registers hold
#include "cpu/kernels.h"

namespace wenet {

Kernels portable_kernels(bool doubles) { return doubles ? portable::kernels<double>() : portable::kernels<float>(); }

}  // namespace wenet
