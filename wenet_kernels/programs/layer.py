"""The input's product and the cells behind it in one step of autograd, which costs layers less around small calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wenet_kernels import cpu
from wenet_kernels import operators as products
from wenet_kernels.autocast import autocast_type
from wenet_kernels.op import project
from wenet_kernels.programs import operators
from wenet_kernels.programs.backend import settled
from wenet_kernels.programs.batch import ProgramBatch
from wenet_kernels.programs.evaluation import ProgramEvaluation, ProgramGradients
from wenet_kernels.programs.op import carried_states, cell_rnn
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
    backend, precision = settled(backend, x, precision)
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
) -> tuple[Tensor, ProgramEvaluation]:
    """The projected input `[T, X, M, H]`, and what the programs make of it."""
    product = products.Project.compute(x.flatten(0, 1), weight_input, backend)
    pre = product.unflatten(1, x.shape[:2]).transpose(0, 1)
    operands = (pre, states, weight, vectors, None, mask_h, programs, precision)
    return pre, operators.CellRNN.compute(*operands, keep, backend)


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
        rows = x.flatten(0, 1)
        direct = not torch.is_grad_enabled() and is_plain((grad_output, grad_apart))
        through_cells = operators.CellRNNBackward.compute if direct else operators.cell_rnn_backward
        through_product = products.ProjectBackward.compute if direct else products.project_backward
        if torch.is_grad_enabled():  # the derivatives will be differentiated
            pre = products.project(rows, weight_input, ctx.backend).unflatten(1, x.shape[:2]).transpose(0, 1)
        operands = (pre, states, weight, vectors, None, mask_h, ctx.programs, ctx.precision)
        grad_output = torch.zeros_like(output) if grad_output is None else grad_output.contiguous()
        grad_apart = None if grad_apart is None or apart.numel() == 0 else grad_apart.contiguous()
        evaluation = (output, apart, kept)
        found = ProgramGradients(*through_cells(grad_output, grad_apart, *evaluation, *operands, ctx.backend))
        grad_product = found.pre.transpose(0, 1).flatten(1, 2)  # [X, R, H]
        of_product: tuple[Tensor | None, Tensor]
        if direct and ctx.backend == "cpu" and not ctx.needs_input_grad[0]:
            of_product = (None, cpu.project_weight_backward(grad_product, rows, weight_input))
        else:
            grad_rows, grad_weight_input = through_product(grad_product, rows, weight_input, ctx.backend)
            of_product = (grad_rows.view(x.shape), grad_weight_input)
        return *of_product, found.states, found.weight, found.vectors, None, None, None, None
