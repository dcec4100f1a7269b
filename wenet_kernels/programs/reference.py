"""Programs in plain PyTorch, on any device and in any dtype. Every other backend is tested against this one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from wenet_kernels.programs.batch import FUNCTIONS, NONE, PRODUCT, VECTOR, ProgramBatch, Rows
from wenet_kernels.programs.evaluation import ProgramRun
from wenet_kernels.reference import normalise


def _batchnorm(a: Tensor) -> Tensor:
    mean = a.mean(0)
    return normalise(a, mean, (a - mean).square().mean(0))  # the exporter to ONNX cannot differentiate a.var


EQUATIONS: dict[str, Callable[..., Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "softplus": lambda a: torch.logaddexp(a, torch.zeros_like(a)),  # twice differentiable, unlike functional.softplus
    "silu": functional.silu,
    # The derivative of functional.hardsigmoid has a sixth in single precision alone.
    "hardsigmoid": lambda a: functional.hardtanh(a / 6 + 0.5, 0.0, 1.0),
    "hardtanh": functional.hardtanh,
    "batchnorm": _batchnorm,
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "blend": lambda g, a, b: a + g * (b - a),
}
WITH_NUMBER: dict[str, Callable[[Tensor, float], Tensor]] = {
    "times": lambda a, k: k * a,
    "plus": lambda a, k: k + a,
    "from": lambda a, k: k - a,
}


def forward(r: ProgramRun) -> tuple[Tensor, Tensor]:
    """Output `[T, M, H]` or `[T, n, M, H]`, and the carried states after every step, `[R, T, ...]`. These leave out h
    if it is the output of every program."""
    batch = ProgramBatch(r.programs)
    states = list(r.states)  # S of [M, H] weighted, [n, M, H] independent
    steps: list[list[Tensor]] = []
    for pre in r.pre:  # [X, M, H]
        found = []  # n of (S + 1) of [M, H]
        for network in range(batch.count):
            own = [state if r.mix is not None else state[network] for state in states]
            found.append(step(batch.rows(), network, pre, own, r.weight, r.vectors, r.mask_h))
        *states, output = (_together(r, each) for each in zip(*found, strict=True))
        steps.append([output, *(states[1:] if batch.puts_out_h else states)])
    output, *apart = (torch.stack(each) for each in zip(*steps, strict=True))
    return output, torch.stack(apart) if apart else output.new_empty(0)


def step(
    rows: Rows,
    network: int,
    pre: Tensor,
    states: Sequence[Tensor],
    weight: Tensor,
    vectors: Tensor,
    mask_h: Tensor | None = None,
) -> list[Tensor]:
    """One program in one time step: its new states and its output, `[M, H]` each.

    Args:
        rows: of all programs.
        pre, weight, vectors: as in `ProgramRun`, for one step.
        states: S of `[M, H]`.
    """
    values = list(states)
    for code, *operands in rows.instructions[rows.first[network] : rows.first[network + 1]]:
        if code == PRODUCT:
            value, place, column, bias = operands
            terms = [] if value == NONE else [_masked(values[value], mask_h) @ weight[place]]
            terms += [] if column == NONE else [pre[column]]
            terms += [] if bias == NONE else [vectors[bias]]
            values.append(sum(terms[1:], terms[0]))
        elif code == VECTOR:
            values.append(vectors[operands[0]])  # [H]; values made only of learned vectors stay [H]
        else:
            values.append(_applied(FUNCTIONS[code - 2], operands, values, rows.constants))
    results = [values[result] for result in rows.results[network]]
    return [result if result.dim() == 2 else result.expand(states[0].shape) for result in results]


def _applied(name: str, operands: list[int], values: list[Tensor], constants: list[float]) -> Tensor:
    if name in WITH_NUMBER:
        return WITH_NUMBER[name](values[operands[0]], constants[operands[1]])
    return EQUATIONS[name](*(values[operand] for operand in operands if operand != NONE))


def _masked(value: Tensor, mask_h: Tensor | None) -> Tensor:
    return value if mask_h is None else value * mask_h


def _together(r: ProgramRun, networks: tuple[Tensor, ...]) -> Tensor:
    """One result of all networks: mixed, `[M, H]`, or stacked, `[n, M, H]`."""
    stacked = torch.stack(networks)
    return stacked if r.mix is None else (r.mix[:, None, None] * stacked).sum(0)
