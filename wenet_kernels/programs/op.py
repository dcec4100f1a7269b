"""`cell_rnn`, the function to call."""

from __future__ import annotations

from torch import Tensor

from wenet_kernels.autocast import autocast_type, in_fp32
from wenet_kernels.errors import WenetError
from wenet_kernels.op import AUTOCAST_PRECISIONS
from wenet_kernels.programs import operators
from wenet_kernels.programs.batch import ProgramBatch


def cell_rnn(
    pre: Tensor,
    states: Tensor,
    weight: Tensor,
    vectors: Tensor,
    mix: Tensor | None,
    programs: ProgramBatch,
    *,
    mask_h: Tensor | None = None,
    precision: str = "full",
    backend: str = "auto",
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run `n` recurrent cells, each with its own program, over a sequence of `T` steps in one operator.

    Weights and vectors are in the order of the products and learned vectors, through all programs.

    Args:
        pre: `[T, X, M, H]`, the input projected by every product that reads it: `wenet_kernels.project` of
            weights `[X, I, H]`.
        states: `[S, n, M, H]`, the states before the first step, h first; `[S, M, H]` with `mix`.
        weight: `[P, H, H]`, one for every product that reads a state or another value.
        vectors: `[V, H]`, biases and learned vectors; a learned scalar is a vector of equal numbers here.
        mix: `[n]`, weights that sum to one: each carried state and the output is the weighted sum over all
            networks. None keeps the networks independent.
        programs: the cells.
        mask_h: `[M, H]`, variational dropout on the values that products read, but not on the input; already scaled by
            1 / (1 - p).
        precision: number type of the factors of products of states and other values, as in `dag_rnn`.
        backend: "auto", "reference", "cpu" or "triton".

    Returns:
        The output `[T, n, M, H]`, with `mix` `[T, M, H]`; and every carried state behind every step, each
        shaped as the output, h first.

    Raises:
        WenetError: operands that disagree, a backend that cannot run, or on the CPU NaN among the operands.

    Examples:
        >>> import torch
        >>> from wenet_kernels import ProgramBatch, cell_rnn
        >>> cells = ProgramBatch("h | tanh(linear(x, h)); h | blend(sigmoid(linear(x)), h, tanh(linear(x, h)))")
        >>> T, n, M, H = 5, cells.count, 3, 4
        >>> weight, vectors = torch.randn(cells.weights, H, H), torch.zeros(cells.vectors, H)
        >>> pre = torch.randn(T, cells.of_input, M, H)
        >>> output, states = cell_rnn(pre, torch.zeros(1, n, M, H), weight, vectors, None, cells)
        >>> output.shape, len(states)
        (torch.Size([5, 2, 3, 4]), 1)
    """
    tensors = []
    operands = {"pre": pre, "states": states, "weight": weight, "vectors": vectors, "mix": mix, "mask_h": mask_h}
    for name, operand in operands.items():
        if not isinstance(operand, Tensor) and (operand is not None or name not in ("mix", "mask_h")):
            raise WenetError(f"{name} must be a tensor, not a {type(operand).__name__}")
        tensors.append(operand)
    wanted = autocast_type(pre)
    if wanted is not None:
        tensors = [None if tensor is None else in_fp32(tensor) for tensor in tensors]
        precision = AUTOCAST_PRECISIONS[wanted] if precision in ("full", "fp32") else precision
    output, apart, _ = operators.cell_rnn(*tensors, programs.text, precision, False, backend)
    if wanted is not None:
        output, apart = output.to(wanted), apart.to(wanted)
    return output, carried_states(output, apart, programs)


def carried_states(output: Tensor, apart: Tensor, programs: ProgramBatch) -> tuple[Tensor, ...]:
    """All of them behind every step, h first, from what a backend gives."""
    beside = apart.unbind() if programs.apart else ()
    return (output, *beside) if programs.puts_out_h else beside
