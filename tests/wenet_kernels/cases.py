"""Random operands of the recurrence, for every backend's tests."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wenet_kernels import ACTIVATIONS, CellBatch, dag_rnn

# T, n, M, H, L, form, coupling, norm, with a mask
Sizes = tuple[int, int, int, int, int, str, str, str | None, bool]

# Of two rows batch normalisation makes one and minus one, whatever they are: no gradient would be left to compare.
RAGGED = ((3, 4, 5, 7, 4, True), (1, 1, 3, 1, 1, False), (2, 3, 4, 6, 2, False))
CASES: list[Sizes] = [
    (steps, networks, rows, hidden, nodes, form, coupling, norm, mask)
    for form in ("highway", "plain")
    for coupling in ("weighted", "independent")
    for norm in (None, "batch", "running")
    for steps, networks, rows, hidden, nodes, mask in RAGGED
]


@dataclass
class RandomCell:
    recurrent: list[tuple[str, int]]
    concat: list[int]


@dataclass
class Case:
    pre: Tensor
    h0: Tensor
    weight_hidden: Tensor
    weight_nodes: Tensor
    mix: Tensor | None
    genotypes: list[RandomCell]
    cells: CellBatch
    form: str
    coupling: str
    norm: Any
    mask_h: Tensor | None

    @property
    def leaves(self) -> list[Tensor]:
        tensors = (self.pre, self.h0, self.weight_hidden, self.weight_nodes, self.mix)
        return [tensor for tensor in tensors if tensor is not None]

    @property
    def positional(self) -> tuple[Any, ...]:
        return self.pre, self.h0, self.weight_hidden, self.weight_nodes, self.mix, self.cells

    def gradients(self, output: Tensor, seed: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(output, self.leaves, seed)


def random_cell(nodes: int, generator: random.Random) -> RandomCell:
    recurrent = [(generator.choice(ACTIVATIONS), generator.randrange(node)) for node in range(1, nodes + 1)]
    return RandomCell(recurrent, sorted(generator.sample(range(1, nodes + 1), generator.randint(1, nodes))))


def make_case(sizes: Sizes, dtype: torch.dtype = torch.float64, cells: list[RandomCell] | None = None) -> Case:
    steps, networks, rows, hidden, nodes, form, coupling, norm, mask = sizes
    torch.manual_seed(hash(sizes[:5]) % 1000)
    generator = random.Random(7)
    genotypes = cells or [random_cell(nodes, generator) for _ in range(networks)]
    width = 2 * hidden if form == "highway" else hidden

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype).requires_grad_()

    def weight(*shape: int) -> Tensor:  # of a size that keeps products near one: larger ones make it chaotic
        return (torch.randn(*shape, dtype=dtype) / hidden**0.5).requires_grad_()

    weighted = coupling == "weighted"
    running = (
        torch.randn(networks, nodes + 1, hidden, dtype=dtype),
        torch.rand(networks, nodes + 1, hidden, dtype=dtype) + 0.5,
    )
    return Case(
        leaf(steps, networks, rows, width),
        leaf(rows, hidden) if weighted else leaf(networks, rows, hidden),
        weight(networks, hidden, width),
        weight(networks, nodes, hidden, width),
        torch.softmax(torch.randn(networks, dtype=dtype), 0).requires_grad_() if weighted else None,
        genotypes,
        CellBatch.from_genotypes(genotypes),
        form,
        coupling,
        running if norm == "running" else norm,
        (torch.rand(rows, hidden) > 0.3).to(dtype) / 0.7 if mask else None,
    )


def draw_seed(output: Tensor) -> Tensor:
    """A random derivative of a loss by an output, the same in every precision; of ones, the gradient of a
    batch-normalised state is zero."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)


def run_op(case: Case, backend: str, precision: str = "full") -> Tensor:
    result = dag_rnn(
        *case.positional,
        form=case.form,
        mask_h=case.mask_h,
        norm=case.norm,
        coupling=case.coupling,
        precision=precision,
        backend=backend,
    )
    return result[0] if isinstance(result, tuple) else result


def weights_to_round() -> Tensor:
    """`[17, 17]`: numbers halfway between two of bf16, and beside these, as small and as large as it holds them."""
    ulp = 2.0**-7  # of bf16 between 1 and 2
    halves = 1 + ulp * (torch.arange(32) + 0.5)
    beside = torch.cat([halves.nextafter(torch.zeros(1)), halves.nextafter(torch.full((1,), 2.0))])
    values = torch.cat([halves, beside, halves * 2.0**-120, halves * 2.0**120, torch.randn(29), torch.zeros(4)])
    return torch.cat([values, -values])[:289].view(17, 17)
