// Cells that are programs: the operands of one evaluation, and how each program is carried out.
#pragma once

#include <cstdint>

#include "cpu/recurrence.h"

namespace wenet {

// Codes of wenet_kernels/programs/batch.py.
enum Operation : std::int32_t {
  kProduct,
  kVector,
  kOpTanh,
  kOpRelu,
  kOpSigmoid,
  kOpSoftplus,
  kOpSilu,
  kOpHardsigmoid,
  kOpHardtanh,
  kOpBatchnorm,
  kOpAdd,
  kOpSub,
  kOpMul,
  kOpBlend,
  kOpTimes,
  kOpPlus,
  kOpFrom,
  kOperations,
};
constexpr std::int32_t kNone = -1;
constexpr std::int64_t kInstructionWidth = 5;  // a code and four operands

// The operands, as in wenet_kernels/programs/evaluation.py. All tensors are contiguous but for `pre`. T steps, n
// programs, M rows, H hidden units, S carried states; X products that read the input, P that read values, V vectors.
// The input comes projected, or with I features if the networks are independent.
struct ProgramRun {
  std::int64_t steps = 0, networks = 0, rows = 0, hidden = 0, states = 0;
  std::int64_t instructions = 0, of_input = 0, weights = 0, vectors = 0, constants = 0;  // N, X, P, V and K
  bool weighted = false;  // the networks are mixed into one
  int threads = 1;
  std::int64_t inputs = 0;                                  // I
  Address input = 0;                                        // [T, M, I], or none
  Address weight_input = 0;                                 // [X, I, H]
  Address pre = 0;                                          // [T, X, M, H], rows and columns contiguous
  std::int64_t pre_step_stride = 0, pre_column_stride = 0;  // in elements
  Address first_states = 0;                                 // [S, M, H] weighted, [S, n, M, H] independent
  Address weight = 0;                                       // [P, H, H]
  Address vector = 0;                                       // [V, H]
  Address mix = 0;                                          // [n]
  Address mask_h = 0;                                       // [M, H]
  Address instruction = 0;                                  // [N, 5] int32
  Address first = 0;                                        // [n + 1] int32
  Address result = 0;                                       // [n, S + 1] int32
  Address constant = 0;                                     // [K] double

  // The output is the new h of every program; else the new h comes first of what is apart.
  bool puts_out_h = true;
};

// What forward leaves behind. `kept` holds values for the derivatives: [slots of all programs, blocks, T, M, W], W
// being the vector width; 0 where backward will not come.
struct ProgramEvaluation {
  Address output = 0;  // [T, M, H] weighted, [T, n, M, H] independent
  Address apart = 0;   // as many of these as there are states, but for h where that is the output
  Address kept = 0;
};

struct ProgramGradients {
  Address output = 0, apart = 0;  // given, shaped as the evaluation's; `apart` may be 0
  Address pre = 0;                // with the strides of pre, or
  Address weight_input = 0;       // where there is an input
  Address input = 0;              // 0, or where there is an input of one network
  Address states = 0, weight = 0, vector = 0, mix = 0;
};

// One instruction as it is carried out on a block of rows and hidden units.
struct Step {
  std::int32_t code = 0;
  std::int32_t operand[3] = {kNone, kNone, kNone};  // values
  std::int32_t value = kNone;                       // that it gives
  std::int32_t kept = kNone;                        // slot of that value
  std::int32_t activation = kNone;                  // of a product: what is applied to it at once
  std::int32_t group = kNone, column = kNone;       // of a product with a value: its group, and place in that
  std::int32_t pre = kNone, vector = kNone;         // of a product, and of a learned vector
  double constant = 0;
  bool first[3] = {false, false, false};  // whether the derivative of an operand begins with this instruction
};

// Products of one value with several weights.
struct Group {
  std::int32_t left = kNone;  // value
  std::int32_t kept = kNone;  // its slot
  std::int32_t column = 0;    // of the first product, among those of the stage
  std::int32_t count = 0;     // of products
  std::int32_t product = 0;   // of the first, among those of the program in the order of groups
  bool first = false;         // whether the derivative of `left` begins here
};

// Products that can be computed together, and what follows from them without another.
struct Stage {
  std::int32_t first_group = 0, last_group = 0;
  std::int32_t first_step = 0, last_step = 0;
  std::int32_t columns = 0;   // products
  std::int32_t together = 1;  // hidden blocks that are multiplied at once, so that vectors of columns come in pairs
};

enum class Place : std::int8_t { local, wide, state, next_state };

// Where a value lies while a step is computed.
struct Location {
  Place place = Place::local;
  std::int32_t index = 0;
};

// A program as it is carried out. Pointers into memory of a `Plan`.
struct Schedule {
  std::int32_t values = 0, locals = 0, wides = 0;
  std::int32_t stages = 0, groups = 0, steps = 0, products = 0, columns = 0;
  std::int32_t slots = 0, first_slot = 0, first_product = 0;
  std::int32_t inputs = 0, first_input = 0;  // products that read the input
  std::int32_t copies = 0, rebuilt_count = 0;
  const Stage* stage = nullptr;
  const Group* group = nullptr;
  const Step* step = nullptr;
  const Step* rebuilt = nullptr;         // what backward computes again
  const Location* location = nullptr;    // of every value
  const std::int32_t* slot = nullptr;    // of every value, or kNone
  const std::int32_t* weight = nullptr;  // of every product in the order of groups
  const std::int32_t* result = nullptr;  // S new states and the output
  const std::int32_t* copy = nullptr;    // new states whose value lies elsewhere
  const bool* copy_first = nullptr;      // whether the derivative of that value begins there
  bool output_first = false;             // whether that of the output's does, where it is no new h
};

}  // namespace wenet
