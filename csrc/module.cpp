// The Python module of the native kernels. It takes raw addresses, so one build serves every version of torch.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <exception>
#include <optional>
#include <utility>

#include "cpu/arena.h"
#include "cpu/check.h"
#include "cpu/dispatch.h"
#include "cpu/features.h"
#include "cpu/plan.h"

namespace py = pybind11;
using namespace wenet;

namespace {

// A Python function that kernels call between steps. Its exception is kept until the kernels have ended, because none
// can leave a team of threads.
class BetweenSteps {
 public:
  BetweenSteps(Recurrence& r, std::optional<py::function> function) : function_(std::move(function)) {
    if (!function_) return;
    r.between_steps = [](void* self, std::int64_t t) { static_cast<BetweenSteps*>(self)->call(t); };
    r.between_steps_context = this;
  }
  void raise() const {
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  void call(std::int64_t t) noexcept {
    if (failure_) return;
    py::gil_scoped_acquire acquire;
    try {
      (*function_)(t);
    } catch (...) {
      failure_ = std::current_exception();
    }
  }

  const std::optional<py::function> function_;
  std::exception_ptr failure_;
};

// Runs a pass over the steps without holding Python's lock.
template <typename Pass>
void run(Recurrence r, std::optional<py::function> between_steps, Pass pass) {
  check(r);
  BetweenSteps hook(r, std::move(between_steps));
  {
    py::gil_scoped_release release;
    pass(r);
  }
  hook.raise();
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.attr("SOURCES") = WENET_SOURCES;  // of CMakeLists.txt
  m.def("instruction_sets", &instruction_sets,
        "Instruction sets that this processor can run, from the plainest to the widest.");
  m.def("kernel_sets", &kernel_sets, "Those of them that the kernels were built for.");
  m.def("bf16_kernel_sets", &bf16_kernel_sets, "Those of the latter that multiply bfloat16 on this processor.");

  py::class_<Block>(m, "Block", py::buffer_protocol(), "Memory that goes back for reuse with its last reference.")
      .def(py::init<std::size_t>(), py::arg("bytes"))
      .def_buffer([](Block& block) {
        return py::buffer_info(static_cast<unsigned char*>(block.data()), static_cast<py::ssize_t>(block.bytes()));
      });

  py::enum_<Norm>(m, "Norm").value("none", Norm::none).value("batch", Norm::batch).value("running", Norm::running);

  py::enum_<Factor>(m, "Factor").value("fp32", Factor::fp32).value("fp64", Factor::fp64).value("bf16", Factor::bf16);

  py::class_<Recurrence>(m, "Recurrence")
      .def(py::init<>())
      .def_readwrite("steps", &Recurrence::steps)
      .def_readwrite("networks", &Recurrence::networks)
      .def_readwrite("rows", &Recurrence::rows)
      .def_readwrite("hidden", &Recurrence::hidden)
      .def_readwrite("nodes", &Recurrence::nodes)
      .def_readwrite("highway", &Recurrence::highway)
      .def_readwrite("weighted", &Recurrence::weighted)
      .def_readwrite("norm", &Recurrence::norm)
      .def_readwrite("threads", &Recurrence::threads)
      .def_readwrite("pre", &Recurrence::pre)
      .def_readwrite("pre_step_stride", &Recurrence::pre_step_stride)
      .def_readwrite("pre_network_stride", &Recurrence::pre_network_stride)
      .def_readwrite("h0", &Recurrence::h0)
      .def_readwrite("weight_hidden", &Recurrence::weight_hidden)
      .def_readwrite("weight_nodes", &Recurrence::weight_nodes)
      .def_readwrite("mix", &Recurrence::mix)
      .def_readwrite("ancestor", &Recurrence::ancestor)
      .def_readwrite("activation", &Recurrence::activation)
      .def_readwrite("concat", &Recurrence::concat)
      .def_readwrite("mask_h", &Recurrence::mask_h)
      .def_readwrite("running_mean", &Recurrence::running_mean)
      .def_readwrite("running_var", &Recurrence::running_var);

  py::class_<Evaluation>(m, "Evaluation")
      .def(py::init<>())
      .def_readwrite("output", &Evaluation::output)
      .def_readwrite("kept", &Evaluation::kept)
      .def_readwrite("mean", &Evaluation::mean)
      .def_readwrite("var", &Evaluation::var);

  py::class_<Gradients>(m, "Gradients")
      .def(py::init<>())
      .def_readwrite("output", &Gradients::output)
      .def_readwrite("pre", &Gradients::pre)
      .def_readwrite("h0", &Gradients::h0)
      .def_readwrite("weight_hidden", &Gradients::weight_hidden)
      .def_readwrite("weight_nodes", &Gradients::weight_nodes)
      .def_readwrite("mix", &Gradients::mix);

  py::class_<Projection>(m, "Projection")
      .def(py::init<>())
      .def_readwrite("networks", &Projection::networks)
      .def_readwrite("rows", &Projection::rows)
      .def_readwrite("inputs", &Projection::inputs)
      .def_readwrite("columns", &Projection::columns)
      .def_readwrite("threads", &Projection::threads)
      .def_readwrite("input", &Projection::input)
      .def_readwrite("weight", &Projection::weight)
      .def_readwrite("output", &Projection::output)
      .def_readwrite("grad_input", &Projection::grad_input)
      .def_readwrite("grad_weight", &Projection::grad_weight);

  py::class_<ProgramRun>(m, "ProgramRun")
      .def(py::init<>())
      .def(py::init<const ProgramRun&>(), py::arg("other"))
      .def_readwrite("steps", &ProgramRun::steps)
      .def_readwrite("networks", &ProgramRun::networks)
      .def_readwrite("rows", &ProgramRun::rows)
      .def_readwrite("hidden", &ProgramRun::hidden)
      .def_readwrite("states", &ProgramRun::states)
      .def_readwrite("instructions", &ProgramRun::instructions)
      .def_readwrite("of_input", &ProgramRun::of_input)
      .def_readwrite("weights", &ProgramRun::weights)
      .def_readwrite("vectors", &ProgramRun::vectors)
      .def_readwrite("constants", &ProgramRun::constants)
      .def_readwrite("weighted", &ProgramRun::weighted)
      .def_readwrite("puts_out_h", &ProgramRun::puts_out_h)
      .def_readwrite("threads", &ProgramRun::threads)
      .def_readwrite("inputs", &ProgramRun::inputs)
      .def_readwrite("input", &ProgramRun::input)
      .def_readwrite("weight_input", &ProgramRun::weight_input)
      .def_readwrite("pre", &ProgramRun::pre)
      .def_readwrite("pre_step_stride", &ProgramRun::pre_step_stride)
      .def_readwrite("pre_column_stride", &ProgramRun::pre_column_stride)
      .def_readwrite("first_states", &ProgramRun::first_states)
      .def_readwrite("weight", &ProgramRun::weight)
      .def_readwrite("vector", &ProgramRun::vector)
      .def_readwrite("mix", &ProgramRun::mix)
      .def_readwrite("mask_h", &ProgramRun::mask_h)
      .def_readwrite("instruction", &ProgramRun::instruction)
      .def_readwrite("first", &ProgramRun::first)
      .def_readwrite("result", &ProgramRun::result)
      .def_readwrite("constant", &ProgramRun::constant);

  py::class_<ProgramEvaluation>(m, "ProgramEvaluation")
      .def(py::init<>())
      .def_readwrite("output", &ProgramEvaluation::output)
      .def_readwrite("apart", &ProgramEvaluation::apart)
      .def_readwrite("kept", &ProgramEvaluation::kept);

  py::class_<ProgramGradients>(m, "ProgramGradients")
      .def(py::init<>())
      .def_readwrite("output", &ProgramGradients::output)
      .def_readwrite("apart", &ProgramGradients::apart)
      .def_readwrite("pre", &ProgramGradients::pre)
      .def_readwrite("weight_input", &ProgramGradients::weight_input)
      .def_readwrite("input", &ProgramGradients::input)
      .def_readwrite("states", &ProgramGradients::states)
      .def_readwrite("weight", &ProgramGradients::weight)
      .def_readwrite("vector", &ProgramGradients::vector)
      .def_readwrite("mix", &ProgramGradients::mix);

  m.def(
      "kept_slots", [](const ProgramRun& r) { return check(r), Plan(r).largest().slots; },
      "Values that the programs of a run keep for their derivatives, in all.");

  py::class_<Kernels>(m, "Kernels")
      .def(py::init(&kernels), py::arg("instruction_set"), py::arg("factor"))
      .def_readonly("width", &Kernels::width)
      .def(
          "forward",
          [](const Kernels& k, const Recurrence& r, const Evaluation& e, std::optional<py::function> between_steps) {
            run(r, std::move(between_steps), [&](const Recurrence& r) { k.forward(r, e); });
          },
          py::arg("recurrence"), py::arg("evaluation"), py::arg("between_steps") = py::none())
      .def(
          "backward",
          [](const Kernels& k, const Recurrence& r, const Evaluation& e, const Gradients& g,
             std::optional<py::function> between_steps) {
            run(r, std::move(between_steps), [&](const Recurrence& r) { k.backward(r, e, g); });
          },
          py::arg("recurrence"), py::arg("evaluation"), py::arg("gradients"), py::arg("between_steps") = py::none())
      .def(
          "program_forward",
          [](const Kernels& k, const ProgramRun& r, const ProgramEvaluation& e) {
            return check(r), k.program_forward(r, e);
          },
          py::call_guard<py::gil_scoped_release>())
      .def(
          "program_backward",
          [](const Kernels& k, const ProgramRun& r, const ProgramEvaluation& e, const ProgramGradients& g) {
            check(r, g), k.program_backward(r, e, g);
          },
          py::call_guard<py::gil_scoped_release>())
      .def(
          "project", [](const Kernels& k, const Projection& p) { return check(p), k.project(p); },
          py::call_guard<py::gil_scoped_release>())
      .def(
          "project_backward", [](const Kernels& k, const Projection& p) { check(p), k.project_backward(p); },
          py::call_guard<py::gil_scoped_release>());
}
