"""Cells that are programs: many different ones in one call, checked against double precision and timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bench.contestants import Contestant
from bench.parity import Deviation, relative_error
from wenet.cells.gated import random_programs
from wenet_kernels import ProgramBatch, cell_rnn

NAMES = ("output", "second state", "grad of pre", "grad of states", "grad of weight", "grad of vectors")
MOST = 1e-3  # no error may be larger, even if that of eager PyTorch is


@dataclass(frozen=True)
class Programs:
    """Random gated cells of two states, the LSTM first, each a network of its own."""

    name: str = "programs"
    cells: int = 64
    hidden: int = 200
    rows: int = 20
    steps: int = 35

    @property
    def batch(self) -> ProgramBatch:
        return ProgramBatch.of(random_programs(self.cells, states=2, seed=1))

    @property
    def setting(self) -> dict[str, Any]:
        """The settings of its kernels in the form of `wenet_kernels.aot`."""
        return dict(networks=self.cells, rows=self.rows, hidden=self.hidden, masked=True, weighted=False)


PROGRAMS = Programs()


@dataclass(frozen=True)
class Operands:
    """Of `cell_rnn`: all that is differentiated, a mask, and the derivatives by the output and the second state."""

    leaves: Sequence[Tensor]
    mask_h: Tensor
    grads: Sequence[Tensor]

    def moved(self, device: str, dtype: torch.dtype) -> Operands:
        leaves = [each.to(device, dtype).requires_grad_() for each in self.leaves]
        return Operands(leaves, self.mask_h.to(device, dtype), [each.to(device, dtype) for each in self.grads])


def draw(case: Programs, seed: int) -> Operands:
    """Operands in double precision, of sizes at which gates are half open."""
    generator = torch.Generator().manual_seed(seed)
    batch, networks = case.batch, case.cells

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    leaves = [
        normal(case.steps, batch.of_input, case.rows, case.hidden),
        normal(batch.states, networks, case.rows, case.hidden),
        normal(batch.weights, case.hidden, case.hidden) * case.hidden**-0.5,
        normal(batch.vectors, case.hidden),
    ]
    mask = (torch.rand(case.rows, case.hidden, generator=generator, dtype=torch.float64) < 0.75) / 0.75
    return Operands(leaves, mask, [normal(case.steps, networks, case.rows, case.hidden) for _ in range(2)])


def run(case: Programs, operands: Operands, backend: str) -> list[Tensor]:
    """The output and the second state."""
    pre, first, weight, vectors = operands.leaves
    output, states = cell_rnn(pre, first, weight, vectors, None, case.batch, mask_h=operands.mask_h, backend=backend)
    return [output, states[1]]


def check(case: Programs, steps: int, device: str, seed: int) -> list[Deviation]:
    """The Triton kernels beside the reference in double precision; an error may be twice that of eager PyTorch."""
    exact = draw(replace(case, steps=steps), seed)

    def results(backend: str, dtype: torch.dtype) -> list[Tensor]:
        operands = exact.moved(device, dtype)
        found = run(case, operands, backend)
        return [*found, *torch.autograd.grad(found, operands.leaves, operands.grads)]

    truths = results("reference", torch.float64)
    eager, ours = results("reference", torch.float32), results("triton", torch.float32)
    return [
        Deviation(name, relative_error(own, truth), min(MOST, 2 * relative_error(peer, truth) + 1e-5))
        for name, own, truth, peer in zip(NAMES, ours, truths, eager, strict=True)
    ]


def contestant(case: Programs, device: str) -> Contestant:
    """The kernels with operands on the GPU; only the output has a derivative."""
    operands = draw(case, seed=1).moved(device, torch.float32)
    flops = 2 * case.batch.weights * case.rows * case.steps * case.hidden**2
    return Contestant(
        lambda: run(case, operands, "triton")[0], list(operands.leaves), operands.grads[0], flops_forward=flops
    )
