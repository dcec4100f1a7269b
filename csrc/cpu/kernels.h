// The kernels of one instruction set, to be included by a file that defines which.
#pragma once

#include "cpu/backward.h"
#include "cpu/forward.h"
#include "cpu/program_backward.h"
#include "cpu/projection.h"

namespace wenet {
namespace WENET_ISA {

// With factors of products of type P, and all else in the type of their sums.
template <typename P>
Kernels kernels() {
  using T = typename Factors<P>::Sum;
  return {kWidth<T>,           forward<T, P>,         backward<T, P>,        project<T>,
          project_backward<T>, program_forward<T, P>, program_backward<T, P>};
}

}  // namespace WENET_ISA
}  // namespace wenet
