#pragma once

#include "cpu/program.h"
#include "cpu/recurrence.h"

namespace wenet {

// Throw std::invalid_argument if a size is below one, an operand is missing, or a table names a node or an activation
// that does not exist: the kernels would read outside their operands. The contents of an address cannot be checked.
void check(const Recurrence& r);
void check(const Projection& p);
void check(const ProgramRun& r);
void check(const ProgramRun& r, const ProgramGradients& gradients);

}  // namespace wenet
