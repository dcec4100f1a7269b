"""The input's product and the cells behind it in one step of autograd, which costs layers less around small calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wenet_kernels import operators as products
from wenet_kernels.autocast import autocast_type
from wenet_kernels.checks import check_projection
from wenet_kernels.op import project
from wenet_kernels.programs import cpu, operators
from wenet_kernels.programs.backend import settled
from wenet_kernels.programs.batch import ProgramBatch
from wenet_kernels.programs.evaluation import ProgramEvaluation, ProgramGradients, ProgramRun
from wenet_kernels.programs.op import carried_states, cell_rnn
from wenet_kernels.programs.run_checks import check_evaluation, check_run
from wenet_kernels.registration import is_plain, recorded


def projected_cell_rnn(
    x: Tensor,
    weight_input: Tensor,
    states: Tensor,
    weight: Tensor,
    vectors: Tensor,
    programs: ProgramBatch,
    *,
    mask_h: Tensor | None = None,
    precision: str = "full",
    backend: str = "auto",
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`cell_rnn` of `project(x, weight_input)` and independent networks.

    Args:
        x: `[T, M, I]`.
        weight_input: `[X, I, H]`.
        states, weight, vectors, programs, mask_h, precision, backend: as in `cell_rnn`.

    Returns:
        As `cell_rnn`.

    Raises:
        WenetError: as in `project` and `cell_rnn`.
    """
    operands = (x, weight_input, states, weight, vectors, mask_h)
    if not is_plain(operands) or autocast_type(x) is not None or x.numel() * states.numel() == 0:
        pre = project(x, weight_input, backend=backend)
        return cell_rnn(
            pre, states, weight, vectors, None, programs, mask_h=mask_h, precision=precision, backend=backend
        )
    backend, precision = settled(backend, x, precision, programs.text)
    if recorded(operands):
        output, apart = _ProjectedCellRNN.apply(*operands, programs.text, precision, backend)
    else:
        _, (output, apart, _) = _evaluated(False, *operands, programs.text, precision, backend)
    return output, carried_states(output, apart, programs)


def _evaluated(
    keep: bool,
    x: Tensor,
    weight_input: Tensor,
    states: Tensor,
    weight: Tensor,
    vectors: Tensor,
    mask_h: Tensor | None,
    programs: str,
    precision: str,
    backend: str,
) -> tuple[Tensor | None, ProgramEvaluation]:
    """The projected input `[T, X, M, H]`, if there is one as a whole, and what the programs make of it."""
    operands = (states, weight, vectors, None, mask_h, programs, precision)
    if backend == "cpu":
        r = ProgramRun(_not_projected(x, weight_input), *operands)
        check_projection(x.flatten(0, 1), weight_input)
        check_run(r)
        return None, cpu.forward_of_input(r, x, weight_input, keep)
    pre = _projected(products.Project.compute(x.flatten(0, 1), weight_input, backend), x)
    return pre, operators.CellRNN.compute(pre, *operands, keep, backend)


def _projected(product: Tensor, x: Tensor) -> Tensor:
    """The product of all rows, `[X, T * M, H]`, as `[T, X, M, H]`."""
    return product.unflatten(1, x.shape[:2]).transpose(0, 1)


def _not_projected(x: Tensor, weight_input: Tensor) -> Tensor:
    """A tensor with the shape and layout of the projected input, whose memory nobody touches."""
    return _projected(x.new_empty(weight_input.shape[0], x.shape[0] * x.shape[1], weight_input.shape[2]), x)


class _ProjectedCellRNN(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            pre, (output, apart, kept) = _evaluated(True, *arguments)
        *tensors, ctx.programs, ctx.precision, ctx.backend = arguments
        ctx.save_for_backward(*tensors, pre, output, apart, kept)
        ctx.set_materialize_grads(False)
        return output, apart

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, grad_apart: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight_input, states, weight, vectors, mask_h, pre, output, apart, kept = ctx.saved_tensors
        direct = not torch.is_grad_enabled() and is_plain((grad_output, grad_apart))
        if torch.is_grad_enabled():  # the derivatives will be differentiated
            pre = _projected(products.project(x.flatten(0, 1), weight_input, ctx.backend), x)
        elif pre is None:  # its values are not read
            pre = _not_projected(x, weight_input)
        operands = (pre, states, weight, vectors, None, mask_h, ctx.programs, ctx.precision)
        grad_output = torch.zeros_like(output) if grad_output is None else grad_output.contiguous()
        grad_apart = None if grad_apart is None or apart.numel() == 0 else grad_apart.contiguous()
        given = (ProgramEvaluation(output, apart, kept), grad_output, grad_apart)
        wants_x = ctx.needs_input_grad[0]
        if direct and ctx.backend == "cpu" and (states.shape[1] == 1 or not wants_x):
            r = ProgramRun(*operands)
            check_evaluation(r, given[0], operators.evaluation_shapes(r, True, "cpu"), *given[1:])
            *of_product, found = cpu.backward_of_input(r, x, weight_input, *given, wants_x)
            return *of_product, found.states, found.weight, found.vectors, None, None, None, None
        through_cells = operators.CellRNNBackward.compute if direct else operators.cell_rnn_backward
        through_product = products.ProjectBackward.compute if direct else products.project_backward
        found = ProgramGradients(*through_cells(grad_output, grad_apart, *given[0], *operands, ctx.backend))
        steps, products_in_all, rows, size = found.pre.shape
        # `reshape`, as autograd's batched gradients know no `flatten`
        grad_product = found.pre.transpose(0, 1).reshape(products_in_all, steps * rows, size)  # [X, R, H]
        grad_rows, grad_weight_input = through_product(grad_product, x.flatten(0, 1), weight_input, ctx.backend)
        of_cells = (found.states, found.weight, found.vectors)
        return grad_rows.view(x.shape), grad_weight_input, *of_cells, None, None, None, None
