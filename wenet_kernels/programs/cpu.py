"""Programs in the native kernels of `csrc/cpu`: all instructions behind the products, block by block."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wenet_kernels import cpu
from wenet_kernels.checks import check_nan
from wenet_kernels.programs.batch import ProgramBatch
from wenet_kernels.programs.evaluation import ProgramEvaluation, ProgramGradients, ProgramRun
from wenet_kernels.programs.run_checks import check_finite

if TYPE_CHECKING:
    from wenet_kernels import _native
else:
    from wenet_kernels.native import native as _native


def obstacle(kind: str, dtype: torch.dtype, precision: str, compared_rows: int) -> str:
    """The reason why it cannot run on this kind of device, or has no such products; empty if it can."""
    status = cpu.status()
    if status != "ready":
        return status
    return cpu.refusal(dtype, precision) if cpu.runs_on(kind) else f"it does not run on {kind}"


def kept_shape(r: ProgramRun) -> tuple[int, ...]:
    """The values kept, in blocks of one vector of hidden units; a block holds the rows of all steps."""
    width = cpu.kernels(r.pre.dtype, "full").width
    steps, _, rows, hidden = r.pre.shape
    return _kept_slots(r.programs, r.mix is not None), -(-hidden // width), steps, rows, width


@functools.cache
def _kept_slots(programs: str, weighted: bool) -> int:
    """The number of values that the programs keep; sizes do not matter."""
    run = _tables_of(programs)
    run.weighted, run.mix = weighted, int(weighted)
    run.steps = run.rows = run.hidden = 1
    run.pre = run.first_states = run.weight = run.vector = 1  # not read
    return _native.kept_slots(run)


def forward(r: ProgramRun, keep: bool) -> ProgramEvaluation:
    """Run all programs over all time steps; `keep` stores what backward needs."""
    evaluation = _new_evaluation(r, keep)
    operands = _laid_out(r)
    if not cpu.kernels(r.pre.dtype, r.precision).program_forward(_run(operands), _evaluation(evaluation)):
        check_finite(r, evaluation.output)
    return evaluation


def forward_of_input(r: ProgramRun, x: Tensor, weight_input: Tensor, keep: bool) -> ProgramEvaluation:
    """The same where the input `[T, M, I]` is yet to be projected by `[X, I, H]`: a few steps at a time, in the caches.

    Networks are independent, and of the projected input in `r` only the shape counts.
    """
    evaluation = _new_evaluation(r, keep)
    operands, x, weight_input = _laid_out(r), x.contiguous(), weight_input.contiguous()
    native = _run_of_input(operands, x, weight_input)
    if not cpu.kernels(x.dtype, r.precision).program_forward(native, _evaluation(evaluation)):
        check_nan("x", x)
        check_nan("weight_input", weight_input)
        check_finite(replace(r, pre=x.new_empty(0)), evaluation.output)
    return evaluation


def _new_evaluation(r: ProgramRun, keep: bool) -> ProgramEvaluation:
    batch = ProgramBatch(r.programs)
    shape = (r.pre.shape[0], *r.states.shape[1:])
    return ProgramEvaluation(
        cpu.reusable(shape, r.pre.dtype),
        cpu.reusable((batch.apart, *shape) if batch.apart else (0,), r.pre.dtype),
        cpu.reusable(kept_shape(r), r.pre.dtype) if keep else r.pre.new_empty(0),
    )


def backward(
    r: ProgramRun, evaluation: ProgramEvaluation, grad_output: Tensor, grad_apart: Tensor | None
) -> ProgramGradients:
    """Gradients of a loss, given its gradients with respect to the output and the states apart from it."""
    operands = _laid_out(r)
    grad_pre = cpu.reusable(r.pre.shape, r.pre.dtype).as_strided(r.pre.shape, operands.pre.stride())
    grads = _new_gradients(operands, grad_pre)
    native = _native.ProgramGradients()
    native.pre = grad_pre.data_ptr()
    _go_back(operands, _run(operands), evaluation, (grad_output, grad_apart), grads, native)
    if grad_pre.stride() == torch.empty_like(r.pre, device="meta").stride():
        return grads
    return grads._replace(pre=torch.empty_like(r.pre).copy_(grad_pre))


def backward_of_input(
    r: ProgramRun,
    x: Tensor,
    weight_input: Tensor,
    evaluation: ProgramEvaluation,
    grad_output: Tensor,
    grad_apart: Tensor | None,
    wants_x: bool,
) -> tuple[Tensor | None, Tensor, ProgramGradients]:
    """What goes with `forward_of_input`: the derivatives of `x` and `weight_input`, and all others but that of `pre`.

    Args:
        wants_x: whether to compute the derivative of `x`, which only a single network can.
    """
    operands, x, weight_input = _laid_out(r), x.contiguous(), weight_input.contiguous()
    grads = _new_gradients(operands, x.new_empty(0))
    grad_x = cpu.reusable(x.shape, x.dtype) if wants_x else None
    grad_weight_input = cpu.reusable(weight_input.shape, x.dtype)
    native = _native.ProgramGradients()
    native.input = 0 if grad_x is None else grad_x.data_ptr()
    native.weight_input = grad_weight_input.data_ptr()
    run = _run_of_input(operands, x, weight_input)
    _go_back(operands, run, evaluation, (grad_output, grad_apart), grads, native)
    return grad_x, grad_weight_input, grads


def _new_gradients(r: ProgramRun, grad_pre: Tensor) -> ProgramGradients:
    return ProgramGradients(
        grad_pre,
        torch.empty_like(r.states),
        cpu.reusable(r.weight.shape, r.pre.dtype),
        torch.empty_like(r.vectors),
        r.pre.new_empty(0 if r.mix is None else r.mix.shape),
    )


def _go_back(
    r: ProgramRun,
    run: _native.ProgramRun,
    evaluation: ProgramEvaluation,
    given: tuple[Tensor, Tensor | None],
    grads: ProgramGradients,
    native: _native.ProgramGradients,
) -> None:
    """Fill in the gradients, given those of the output and of the states apart."""
    evaluation = ProgramEvaluation(*(each.contiguous() for each in evaluation))
    grad_output, grad_apart = given[0].contiguous(), None if given[1] is None else given[1].contiguous()
    native.output = grad_output.data_ptr()
    native.apart = 0 if grad_apart is None else grad_apart.data_ptr()
    native.states, native.weight = grads.states.data_ptr(), grads.weight.data_ptr()
    native.vector, native.mix = grads.vectors.data_ptr(), grads.mix.data_ptr()
    cpu.kernels(r.pre.dtype, r.precision).program_backward(run, _evaluation(evaluation), native)


def _laid_out(r: ProgramRun) -> ProgramRun:
    """The operands in the layout of the kernels: contiguous, except that `pre` may have steps or columns first."""
    given = (r.pre.transpose(0, 1), r.states, r.weight, r.vectors, r.mix, r.mask_h)
    if all(each is None or each.is_contiguous() for each in given):
        return r
    return replace(
        r,
        pre=r.pre if r.pre.transpose(0, 1).is_contiguous() else r.pre.contiguous(),
        states=r.states.contiguous(),
        weight=r.weight.contiguous(),
        vectors=r.vectors.contiguous(),
        mix=None if r.mix is None else r.mix.contiguous(),
        mask_h=None if r.mask_h is None else r.mask_h.contiguous(),
    )


def _run(r: ProgramRun) -> _native.ProgramRun:
    native = _tables_of(r.programs)
    native.steps, _, native.rows, native.hidden = r.pre.shape
    native.threads = torch.get_num_threads()
    native.weighted = r.mix is not None
    native.pre_step_stride, native.pre_column_stride = r.pre.stride()[:2]
    native.pre, native.first_states = r.pre.data_ptr(), r.states.data_ptr()
    native.weight, native.vector = r.weight.data_ptr(), r.vectors.data_ptr()
    native.mix = 0 if r.mix is None else r.mix.data_ptr()
    native.mask_h = 0 if r.mask_h is None else r.mask_h.data_ptr()
    return native


def _run_of_input(r: ProgramRun, x: Tensor, weight_input: Tensor) -> _native.ProgramRun:
    native = _run(r)
    native.pre, native.inputs = 0, x.shape[2]
    native.input, native.weight_input = x.data_ptr(), weight_input.data_ptr()
    return native


def _tables_of(programs: str) -> _native.ProgramRun:
    """A run of these programs, its operands missing."""
    return _native.ProgramRun(_read_tables(programs))


@functools.cache
def _read_tables(programs: str) -> _native.ProgramRun:
    batch, native = ProgramBatch(programs), _native.ProgramRun()
    native.networks, native.states = batch.count, batch.states
    native.of_input, native.weights, native.vectors = batch.of_input, batch.weights, batch.vectors
    native.puts_out_h = batch.puts_out_h
    tables = batch.tables()
    native.instruction, native.first = tables.instructions.data_ptr(), tables.first.data_ptr()
    native.result, native.constant = tables.results.data_ptr(), tables.constants.data_ptr()
    native.instructions, native.constants = len(tables.instructions), len(tables.constants)
    return native


def _evaluation(evaluation: ProgramEvaluation) -> _native.ProgramEvaluation:
    native = _native.ProgramEvaluation()
    native.output, native.apart, native.kept = (each.data_ptr() for each in evaluation)
    return native
