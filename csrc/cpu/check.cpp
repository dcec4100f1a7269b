#include "cpu/check.h"

#include <stdexcept>
#include <string>
#include <vector>

namespace wenet {

namespace {

constexpr std::int32_t kActivations = 4;  // as in wenet_kernels/activations.py

void require(bool holds, const char* fault) {
  if (!holds) throw std::invalid_argument(std::string("the native kernels were called with ") + fault);
}

const std::int32_t* table(Address address) { return reinterpret_cast<const std::int32_t*>(address); }

void check_tables(const Recurrence& r) {
  const std::int32_t *ancestor = table(r.ancestor), *activation = table(r.activation), *concat = table(r.concat);
  for (std::int64_t k = 0; k < r.networks; ++k) {
    std::int64_t averaged = 0;
    for (std::int64_t node = 0; node < r.nodes; ++node) {
      const std::int64_t at = k * r.nodes + node;
      require(0 <= ancestor[at] && ancestor[at] <= node, "an ancestor that does not precede its node");
      require(0 <= activation[at] && activation[at] < kActivations, "an unknown activation");
      require(concat[at] == 0 || concat[at] == 1, "a node averaged more than once");
      averaged += concat[at];
    }
    require(averaged > 0, "a cell without an averaged node");
  }
}

// How many values an instruction reads that is no product, and whether a constant comes behind them.
int operands(std::int32_t code) { return code < kOpAdd ? 1 : code < kOpBlend ? 2 : code == kOpBlend ? 3 : 1; }

// Goes through the instructions of all programs. Every weight, column of the projected input and vector must have its
// turn, as the derivatives of one that had none, or two, would be wrong.
class TableCheck {
 public:
  explicit TableCheck(const ProgramRun& r) : r_(r) {}

  void run() {
    const std::int32_t *first = table(r_.first), *result = table(r_.result);
    require(first[0] == 0 && first[r_.networks] == r_.instructions, "programs of other instructions than there are");
    for (std::int64_t k = 0; k < r_.networks; ++k) require(first[k] < first[k + 1], "a program without an instruction");
    for (std::int64_t k = 0; k < r_.networks; ++k) {
      const std::int64_t count = first[k + 1] - first[k];
      for (std::int64_t i = 0; i < count; ++i) {
        instruction(table(r_.instruction) + (first[k] + i) * kInstructionWidth, r_.states + i);
      }
      for (std::int64_t i = 0; i <= r_.states; ++i) value(result[k * (r_.states + 1) + i], r_.states + count);
      if (r_.puts_out_h) {
        require(result[k * (r_.states + 1)] == result[k * (r_.states + 1) + r_.states], "an output that is not h");
      }
      every_value_is_read(k, count);
    }
    require(weights_ == r_.weights && inputs_ == r_.of_input && vectors_ == r_.vectors, "operands without a use");
  }

 private:
  void value(std::int32_t operand, std::int64_t values) {
    require(0 <= operand && operand < values, "a value that is not there");
  }

  void instruction(const std::int32_t* row, std::int64_t values) {
    require(0 <= row[0] && row[0] < kOperations, "an unknown operation");
    if (row[0] == kProduct) {
      require(row[1] != kNone || row[3] != kNone, "a product of nothing");
      require((row[1] == kNone) == (row[2] == kNone), "a weight without a value, or the other way round");
      if (row[1] != kNone) value(row[1], values), require(row[2] == weights_++, "a weight out of turn");
      if (row[3] != kNone) require(row[3] == inputs_++, "a column of the input out of turn");
      if (row[4] != kNone) require(row[4] == vectors_++, "a bias out of turn");
      return;
    }
    if (row[0] == kVector) return require(row[1] == vectors_++, "a learned vector out of turn");
    const int count = operands(row[0]);
    for (int i = 1; i <= count; ++i) value(row[i], values);
    if (row[0] >= kOpTimes) require(0 <= row[2] && row[2] < r_.constants, "a constant that is not there");
    const int used = row[0] >= kOpTimes ? count + 1 : count;
    for (int i = used + 1; i < kInstructionWidth; ++i) require(row[i] == kNone, "an operand too many");
  }

  // The derivative of a value that none reads would never be filled in.
  void every_value_is_read(std::int64_t k, std::int64_t count) {
    std::vector<bool> read(r_.states + count, false);
    const std::int32_t* first = table(r_.first);
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int32_t* row = table(r_.instruction) + (first[k] + i) * kInstructionWidth;
      const int operands_of = row[0] == kProduct ? 1 : row[0] == kVector ? 0 : operands(row[0]);
      for (int operand = 1; operand <= operands_of; ++operand) {
        if (row[operand] != kNone) read[row[operand]] = true;
      }
    }
    for (std::int64_t i = 0; i <= r_.states; ++i) read[table(r_.result)[k * (r_.states + 1) + i]] = true;
    for (bool is_read : read) require(is_read, "a value that is never read");
  }

  const ProgramRun& r_;
  std::int64_t weights_ = 0, inputs_ = 0, vectors_ = 0;
};

}  // namespace

void check(const ProgramRun& r) {
  require(r.steps > 0 && r.networks > 0 && r.rows > 0 && r.hidden > 0 && r.states > 0, "an empty size");
  require(r.of_input >= 0 && r.weights >= 0 && r.vectors >= 0 && r.constants >= 0, "a negative size");
  require(r.threads > 0, "no thread");
  require((r.pre || r.input) && r.first_states, "an operand missing");
  require(!r.input || (r.weight_input && r.inputs > 0), "an input without features or weights");
  require(!r.input || !r.weighted, "an input of a mixture");
  require((r.weight || r.weights == 0) && (r.vector || r.vectors == 0), "an operand missing");
  require(r.instruction && r.first && r.result && (r.constant || r.constants == 0), "a table missing");
  require(!r.weighted || r.mix, "no mixing weights");
  TableCheck(r).run();
}

void check(const ProgramRun& r, const ProgramGradients& gradients) {
  check(r);
  require(gradients.output && gradients.states, "a gradient missing");
  require(r.input ? gradients.weight_input : gradients.pre, "a gradient missing");
  require(!gradients.input || (r.input && r.networks == 1), "the gradient of an input of several networks");
}

void check(const Recurrence& r) {
  require(r.steps > 0 && r.networks > 0 && r.rows > 0 && r.hidden > 0 && r.nodes > 0, "an empty size");
  require(r.threads > 0, "no thread");
  require(r.pre && r.h0 && r.weight_hidden && r.weight_nodes, "an operand missing");
  require(r.ancestor && r.activation && r.concat, "a table missing");
  require(!r.weighted || r.mix, "no mixing weights");
  require(r.norm != Norm::running || (r.running_mean && r.running_var), "no running statistics");
  check_tables(r);
}

void check(const Projection& p) {
  require(p.networks > 0 && p.rows > 0 && p.inputs > 0 && p.columns > 0, "an empty size");
  require(p.threads > 0, "no thread");
  require(p.input && p.weight && p.output, "an operand missing");
}

}  // namespace wenet
