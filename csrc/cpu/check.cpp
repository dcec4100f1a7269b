#include "cpu/check.h"

#include <stdexcept>
#include <string>

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

}  // namespace

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
