#pragma once

#include "cpu/program.h"

namespace wenet {

// How the programs of a run are carried out; made of checked tables.
class Plan {
 public:
  explicit Plan(const ProgramRun& r);
  ~Plan();
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;
  const Schedule& schedule(std::int64_t network) const;
  const Schedule& largest() const;  // the largest of every number; of slots, those of all programs

 private:
  struct Programs;
  Programs* programs_;
};

}  // namespace wenet
