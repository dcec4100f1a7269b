#pragma once

#include <cstdint>

namespace wenet {

using Address = std::uintptr_t;  // of a tensor's first element, as Python hands it over; 0 stands for none

enum class Norm : int { none, batch, running };

// The operands of one evaluation, as in wenet_kernels/recurrence.py. All tensors are contiguous but for `pre`.
// T steps, n networks, M rows, H hidden units, L nodes; G columns of a weight: 2H (highway) or H (plain).
struct Recurrence {
  std::int64_t steps = 0, networks = 0, rows = 0, hidden = 0, nodes = 0;
  bool highway = true;
  bool weighted = true;
  Norm norm = Norm::none;
  int threads = 1;
  Address pre = 0;                                           // [T, n, M, G], rows and columns contiguous
  std::int64_t pre_step_stride = 0, pre_network_stride = 0;  // in elements
  Address h0 = 0;                                            // [M, H] weighted, [n, M, H] independent
  Address weight_hidden = 0;                                 // [n, H, G]
  Address weight_nodes = 0;                                  // [n, L, H, G]
  Address mix = 0;                                           // [n]
  Address ancestor = 0, activation = 0, concat = 0;          // [n, L] int32
  Address mask_h = 0;                                        // [M, H]
  Address running_mean = 0, running_var = 0;                 // [n, L+1, H]

  // Where the networks here are only some of the mixture: called by one thread after every step t, with what is summed
  // over the networks in its place (forward the output of the step, backward Gradients::h0), to be summed over all
  // others.
  void (*between_steps)(void* context, std::int64_t t) = nullptr;
  void* between_steps_context = nullptr;

  std::int64_t width() const { return highway ? 2 * hidden : hidden; }  // G
};

// What forward leaves behind. `kept` holds gates and candidates (plain: candidates) after their activations, in blocks
// of W hidden units: [n, T, L+1, (2) * ceil(H / W), M, W], W being the vector width; 0 where backward will not come.
struct Evaluation {
  Address output = 0;  // [T, M, H] weighted, [T, n, M, H] independent
  Address kept = 0;
  Address mean = 0, var = 0;  // [T, n, L+1, H] with norm == batch
};

struct Gradients {
  Address output = 0;  // given, shaped as the output
  Address pre = 0;     // with the strides of pre
  Address h0 = 0, weight_hidden = 0, weight_nodes = 0, mix = 0;
};

// The input's product with every network's own weights, and its derivatives. R rows, I inputs, G columns.
struct Projection {
  std::int64_t networks = 0, rows = 0, inputs = 0, columns = 0;
  int threads = 1;
  Address input = 0;   // [R, I]
  Address weight = 0;  // [n, I, G]
  Address output = 0;  // [n, R, G]; backward: the derivative with respect to it
  Address grad_input = 0, grad_weight = 0;
};

struct ProgramRun;
struct ProgramEvaluation;
struct ProgramGradients;

// Type of the factors of products. All else is of the same type, or with bf16 in fp32.
enum class Factor : int { fp32, fp64, bf16 };

// The kernels of one instruction set for one type of factors.
struct Kernels {
  int width;  // W, numbers in a vector of sums
  void (*forward)(const Recurrence&, const Evaluation&);
  void (*backward)(const Recurrence&, const Evaluation&, const Gradients&);
  bool (*project)(const Projection&);  // false: some of the output may not be finite
  void (*project_backward)(const Projection&);
  bool (*program_forward)(const ProgramRun&, const ProgramEvaluation&);  // as above
  void (*program_backward)(const ProgramRun&, const ProgramEvaluation&, const ProgramGradients&);
};

}  // namespace wenet
