"""Programs in plain PyTorch, on any device and in any dtype. Every other backend is tested against this one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from wenet_kernels.programs.batch import ELEMENTWISE, NONE, PRODUCT, VECTOR, ProgramBatch
from wenet_kernels.programs.evaluation import ProgramRun

FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "softplus": lambda a: torch.logaddexp(a, torch.zeros_like(a)),  # of PyTorch's own, all of it is differentiable
    "silu": functional.silu,
    "hardsigmoid": lambda a: torch.clamp(a / 6 + 0.5, 0, 1),
    "hardtanh": functional.hardtanh,
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
    """Output `[T, M, H]` or `[T, n, M, H]`, and what there is beside it, `[R, T, ...]`: the other carried states
    behind every step, and, where some program puts out something else than h, h before them."""
    batch = ProgramBatch(r.programs)
    instructions = batch.tables().instructions.tolist()
    first, results = batch.tables().first.tolist(), batch.tables().results.tolist()
    states = list(r.states)  # S of [M, H] weighted, [n, M, H] independent
    steps: list[list[Tensor]] = []
    for pre in r.pre:  # [X, M, H]
        found = []  # n of (S + 1) of [M, H]
        for network in range(batch.count):
            values = [state if r.mix is not None else state[network] for state in states]
            for row in instructions[first[network] : first[network + 1]]:
                values.append(_value(r, pre, values, row))
            found.append([values[result].expand(states[0].shape[-2:]) for result in results[network]])
        *states, output = (_together(r, each) for each in zip(*found, strict=True))
        steps.append([output, *(states[1:] if batch.puts_out_h else states)])
    output, *apart = (torch.stack(each) for each in zip(*steps, strict=True))
    return output, torch.stack(apart) if apart else output.new_empty(0)


def _value(r: ProgramRun, pre: Tensor, values: list[Tensor], row: list[int]) -> Tensor:
    """What an instruction gives, `[M, H]`, or `[H]` where it depends on learned vectors alone."""
    code, a, b, c, d = row
    if code == PRODUCT:
        terms = [] if a == NONE else [_masked(r, values[a]) @ r.weight[b]]
        terms += [] if c == NONE else [pre[c]]
        terms += [] if d == NONE else [r.vectors[d]]
        return sum(terms[1:], terms[0])
    if code == VECTOR:
        return r.vectors[a]
    name = ELEMENTWISE[code - 2]
    if name in WITH_NUMBER:
        return WITH_NUMBER[name](values[a], ProgramBatch(r.programs).tables().constants[b].item())
    return FUNCTIONS[name](*(values[operand] for operand in (a, b, c) if operand != NONE))


def _masked(r: ProgramRun, value: Tensor) -> Tensor:
    return value if r.mask_h is None else value * r.mask_h


def _together(r: ProgramRun, networks: tuple[Tensor, ...]) -> Tensor:
    """One result of all networks: mixed, `[M, H]`, or beside each other, `[n, M, H]`."""
    stacked = torch.stack(networks)
    return stacked if r.mix is None else (r.mix[:, None, None] * stacked).sum(0)
