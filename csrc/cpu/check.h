#pragma once

#include "cpu/program.h"
#include "cpu/recurrence.h"

namespace wenet {

// Throw std::invalid_argument where the kernels would read what is not there: sizes below one, an operand that is
// missing, or a table that names a node or an activation that does not exist. What an address holds cannot be checked.
void check(const Recurrence& r);
void check(const Projection& p);
void check(const ProgramRun& r);

}  // namespace wenet
