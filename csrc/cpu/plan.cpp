#include "cpu/plan.h"

#include <algorithm>
#include <memory>
#include <vector>

namespace wenet {

namespace {

// Whether a value is computed again for the derivatives rather than kept: that costs less than memory.
bool is_cheap(const Step& step) {
  switch (step.code) {
    case kProduct:
    case kOpTanh:
    case kOpSigmoid:
    case kOpSoftplus:
    case kOpSilu: return false;
    default: return true;
  }
}

bool is_activation(std::int32_t code) { return kOpTanh <= code && code <= kOpHardtanh; }

// One program. The members of the schedule point into the vectors.
class Program {
 public:
  Program(const ProgramRun& r, std::int64_t network, const Schedule& before) : states_(r.states) {
    read(r, network);
    find_levels();
    find_reads();
    fuse();
    order();
    place();
    find_needed(r.weighted);
    find_first_derivatives();
    finish(before);
  }

  Schedule schedule;

 private:
  void read(const ProgramRun& r, std::int64_t network) {
    const auto* first = reinterpret_cast<const std::int32_t*>(r.first);
    const auto* row = reinterpret_cast<const std::int32_t*>(r.instruction) + first[network] * kInstructionWidth;
    const auto* result = reinterpret_cast<const std::int32_t*>(r.result) + network * (states_ + 1);
    const auto* constant = reinterpret_cast<const double*>(r.constant);
    result_.assign(result, result + states_ + 1);
    for (std::int32_t i = first[network]; i < first[network + 1]; ++i, row += kInstructionWidth) {
      Step step;
      step.code = row[0];
      step.value = static_cast<std::int32_t>(states_ + source_.size());
      if (step.code == kProduct) {
        step.operand[0] = row[1];
        step.pre = row[3], step.vector = row[4];
        weight_of_.push_back(row[2]);
      } else {
        weight_of_.push_back(kNone);
        if (step.code == kVector) step.vector = row[1];
        if (step.code > kVector) std::copy(row + 1, row + 4, step.operand);
        if (step.code >= kOpTimes) step.operand[1] = kNone, step.constant = constant[row[2]];
      }
      source_.push_back(step);
    }
    values_ = static_cast<std::int32_t>(states_ + source_.size());
  }

  // How many products a value waits for.
  void find_levels() {
    level_.assign(values_, 0);
    for (const Step& step : source_) {
      for (std::int32_t operand : step.operand) {
        if (operand != kNone) level_[step.value] = std::max(level_[step.value], level_[operand]);
      }
      if (step.code == kProduct && step.operand[0] != kNone) ++level_[step.value];
    }
  }

  void find_reads() {
    reads_.assign(values_, 0);
    for (const Step& step : source_) {
      for (std::int32_t operand : step.operand) {
        if (operand != kNone) ++reads_[operand];
      }
    }
    for (std::int32_t result : result_) ++reads_[result];
  }

  // A product that is read by one activation alone is computed with it.
  void fuse() {
    gone_.assign(values_, false);
    for (Step& step : source_) {
      const std::int32_t below = step.operand[0];
      if (!is_activation(step.code) || step.code == kOpSilu || below < states_ || reads_[below] != 1) continue;
      const Step& product = source_[below - states_];
      if (product.code != kProduct || product.activation != kNone) continue;
      const std::int32_t value = step.value, activation = step.code;
      step = product;
      step.value = value, step.activation = activation;
      weight_of_[value - states_] = weight_of_[below - states_];
      gone_[below] = true;
    }
  }

  // Stage by stage: products with the same value beside each other, then all instructions in their order.
  void order() {
    const std::int32_t deepest = *std::max_element(level_.begin(), level_.end());
    for (std::int32_t level = 0; level <= deepest; ++level) {
      Stage stage;
      stage.first_group = static_cast<std::int32_t>(group_.size());
      stage.first_step = static_cast<std::int32_t>(step_.size());
      std::vector<std::int32_t> column(values_, kNone), group(values_, kNone);
      for (const Step& step : source_) {
        if (!has_product(step, level) || column[step.value] != kNone) continue;
        add_group(level, step.operand[0], stage, column, group);
      }
      for (const Step& step : source_) {
        if (level_[step.value] != level || gone_[step.value]) continue;
        step_.push_back(step);
        step_.back().column = column[step.value], step_.back().group = group[step.value];
      }
      stage.last_group = static_cast<std::int32_t>(group_.size());
      stage.last_step = static_cast<std::int32_t>(step_.size());
      if (stage.last_step > stage.first_step) stage_.push_back(stage);
    }
  }

  bool has_product(const Step& step, std::int32_t level) const {
    return step.code == kProduct && step.operand[0] != kNone && level_[step.value] == level && !gone_[step.value];
  }

  void add_group(std::int32_t level, std::int32_t left, Stage& stage, std::vector<std::int32_t>& column,
                 std::vector<std::int32_t>& group_of) {
    Group group;
    group.left = left;
    group.column = stage.columns;
    group.product = static_cast<std::int32_t>(weight_.size());
    for (const Step& step : source_) {
      if (!has_product(step, level) || step.operand[0] != left) continue;
      column[step.value] = group.count++;
      group_of[step.value] = static_cast<std::int32_t>(group_.size());
      weight_.push_back(weight_of_[step.value - states_]);
    }
    stage.columns += group.count;
    if (group.count % 2) stage.together = 2;
    group_.push_back(group);
  }

  // A value that is read in a later stage, or whose hidden units a product reads, lies in memory as a whole; one that
  // is a new state alone, where that does.
  void place() {
    std::vector<bool> wide(values_, false);
    for (const Step& step : step_) {
      for (std::int32_t operand : step.operand) {
        if (operand != kNone && level_[operand] < level_[step.value]) wide[operand] = true;
      }
    }
    for (std::int32_t result : result_) wide[result] = true;
    location_.resize(values_);
    for (std::int32_t value = 0; value < values_; ++value) {
      if (value < states_) {
        location_[value] = {Place::state, value};
      } else if (!gone_[value]) {
        location_[value] =
            wide[value] ? Location{Place::wide, schedule.wides++} : Location{Place::local, schedule.locals++};
      }
    }
    std::vector<bool> taken(values_, false);
    for (std::int32_t state = 0; state < states_; ++state) {
      const std::int32_t value = result_[state];
      if (value < states_ || taken[value]) {
        copy_.push_back(state);
      } else {
        location_[value] = {Place::next_state, state};
        taken[value] = true;
      }
    }
  }

  // What the derivatives need of the values: kept where it is dear, or a factor of a product; else computed again.
  void find_needed(bool results_too) {
    slot_.assign(values_, kNone);
    std::vector<bool> needed(values_, false);
    for (const Group& group : group_) keep(group.left);
    if (results_too) {
      for (std::int32_t state = 0; state <= states_; ++state) needed[result_[state]] = true;
    }
    for (const Step& step : step_) {
      const std::int32_t applied = step.activation == kNone ? step.code : step.activation;
      if (is_activation(applied) && applied != kOpSilu) needed[step.value] = true;
      if (step.code == kOpSilu || step.code == kOpBatchnorm) needed[step.operand[0]] = true;
      if (step.code == kOpMul || step.code == kOpBlend) {
        for (std::int32_t operand : step.operand) {
          if (operand != kNone) needed[operand] = true;
        }
      }
    }
    for (auto step = step_.rbegin(); step != step_.rend(); ++step) {
      if (!needed[step->value] || slot_[step->value] != kNone) continue;
      if (!is_cheap(*step)) {
        keep(step->value);
        continue;
      }
      rebuilt_.push_back(*step);
      for (std::int32_t operand : step->operand) {
        if (operand != kNone) needed[operand] = true;
      }
    }
    std::reverse(rebuilt_.begin(), rebuilt_.end());
    for (std::int32_t state = 0; state < states_; ++state) {
      if (needed[state]) keep(state);
    }
    for (Step& step : step_) step.kept = slot_[step.value];
    for (Group& group : group_) group.kept = slot_[group.left];
  }

  void keep(std::int32_t value) {
    if (slot_[value] == kNone) slot_[value] = schedule.slots++;
  }

  // In the order in which backward goes through the program.
  void find_first_derivatives() {
    std::vector<bool> begun(values_, false);
    const auto begin = [&](std::int32_t value) {
      const bool first = !begun[value];
      begun[value] = true;
      return first;
    };
    for (std::int32_t value = 0; value < values_; ++value) begun[value] = location_[value].place == Place::next_state;
    for (std::int32_t state : copy_) copy_first_.push_back(begin(result_[state]));
    schedule.output_first = result_[states_] != result_[0] && begin(result_[states_]);
    for (auto stage = stage_.rbegin(); stage != stage_.rend(); ++stage) {
      for (std::int32_t i = stage->last_step; i-- > stage->first_step;) {
        Step& step = step_[i];
        if (step.code == kProduct) continue;
        for (int place = 0; place < 3; ++place) {
          if (step.operand[place] != kNone) step.first[place] = begin(step.operand[place]);
        }
      }
      for (std::int32_t i = stage->first_group; i < stage->last_group; ++i) group_[i].first = begin(group_[i].left);
    }
  }

  void finish(const Schedule& before) {
    copies_first_ = std::make_unique<bool[]>(copy_first_.size() + 1);
    std::copy(copy_first_.begin(), copy_first_.end(), copies_first_.get());
    Schedule& s = schedule;
    s.values = values_;
    s.first_slot = before.first_slot + before.slots;
    s.first_product = before.first_product + before.products;
    s.first_input = before.first_input + before.inputs;
    for (const Step& step : step_) s.inputs += step.code == kProduct && step.pre != kNone;
    s.stages = static_cast<std::int32_t>(stage_.size());
    s.groups = static_cast<std::int32_t>(group_.size());
    s.steps = static_cast<std::int32_t>(step_.size());
    s.products = static_cast<std::int32_t>(weight_.size());
    s.copies = static_cast<std::int32_t>(copy_.size());
    s.rebuilt_count = static_cast<std::int32_t>(rebuilt_.size());
    for (const Stage& stage : stage_) s.columns = std::max(s.columns, stage.columns);
    s.stage = stage_.data(), s.group = group_.data(), s.step = step_.data(), s.rebuilt = rebuilt_.data();
    s.location = location_.data(), s.slot = slot_.data(), s.weight = weight_.data(), s.result = result_.data();
    s.copy = copy_.data(), s.copy_first = copies_first_.get();
  }

  const std::int64_t states_;
  std::int32_t values_ = 0;
  std::vector<Step> source_, step_, rebuilt_;
  std::vector<std::int32_t> weight_of_, level_, reads_, result_, weight_, slot_, copy_;
  std::vector<bool> gone_, copy_first_;
  std::unique_ptr<bool[]> copies_first_;
  std::vector<Stage> stage_;
  std::vector<Group> group_;
  std::vector<Location> location_;
};

}  // namespace

struct Plan::Programs {
  std::vector<std::unique_ptr<Program>> each;
  Schedule largest;
};

Plan::Plan(const ProgramRun& r) : programs_(new Programs) {
  Schedule before;
  Schedule& largest = programs_->largest;
  for (std::int64_t network = 0; network < r.networks; ++network) {
    programs_->each.push_back(std::make_unique<Program>(r, network, before));
    before = programs_->each.back()->schedule;
    largest.values = std::max(largest.values, before.values);
    largest.locals = std::max(largest.locals, before.locals);
    largest.wides = std::max(largest.wides, before.wides);
    largest.groups = std::max(largest.groups, before.groups);
    largest.products = std::max(largest.products, before.products);
    largest.columns = std::max(largest.columns, before.columns);
    largest.inputs = std::max(largest.inputs, before.inputs);
    largest.rebuilt_count = std::max(largest.rebuilt_count, before.rebuilt_count);
  }
  largest.slots = before.first_slot + before.slots;
}

Plan::~Plan() { delete programs_; }

const Schedule& Plan::schedule(std::int64_t network) const { return programs_->each[network]->schedule; }

const Schedule& Plan::largest() const { return programs_->largest; }

}  // namespace wenet
