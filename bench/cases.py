"""The shapes at which all backends and peers are measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from wenet import Genotype, random_genotypes
from wenet.cells.published import DARTS_V2
from wenet_kernels import CellBatch

NODES = 8
SEED = 1  # seed of random cells and operands
SCALE = 0.04  # weights are U(-SCALE, SCALE), as in a new language model
DROPOUT = 0.25


@dataclass(frozen=True)
class Case:
    """A shape, with sizes as in `wenet_kernels.dag_rnn`. `cell` is the cell of all networks; by default they differ."""

    name: str
    networks: int
    hidden: int
    rows: int = 20
    steps: int = 35
    form: str = "highway"
    coupling: str = "weighted"
    norm: Literal["batch"] | None = "batch"
    cell: Genotype | None = None
    masked: bool = False  # with a dropout mask on the states, as in training

    @property
    def genotypes(self) -> list[Genotype]:
        if self.cell is not None:
            return [self.cell] * self.networks
        return random_genotypes(self.networks, NODES, SEED)

    @property
    def width(self) -> int:
        """Columns of a weight, G."""
        return 2 * self.hidden if self.form == "highway" else self.hidden

    def flops(self, backward: bool) -> int:
        """Operations of the recurrence's products, without the projection of the input.

        Forward has one product per node and step; backward has two more, for the gradients of state and weight.
        """
        products = self.steps * self.networks * (NODES + 1)
        return (3 if backward else 1) * 2 * products * self.rows * self.hidden * self.width


@dataclass(frozen=True)
class Operands:
    """The operands of the recurrence, and the derivative of the loss with respect to its output."""

    case: Case
    pre: Tensor  # [T, n, M, G]
    h0: Tensor  # [M, H] weighted, [n, M, H] independent
    weight_hidden: Tensor  # [n, H, G]
    weight_nodes: Tensor  # [n, L, H, G]
    mix: Tensor | None  # [n]
    cells: CellBatch
    grad_output: Tensor  # [T, M, H] or [T, n, M, H]
    mask_h: Tensor | None = None  # [M, H]

    @property
    def leaves(self) -> list[Tensor]:
        tensors = (self.pre, self.h0, self.weight_hidden, self.weight_nodes, self.mix)
        return [tensor for tensor in tensors if tensor is not None]


def make_operands(case: Case) -> Operands:
    """Random operands, the same in every process."""
    generator = torch.Generator().manual_seed(SEED)
    networks, rows, hidden, width = case.networks, case.rows, case.hidden, case.width

    def uniform(*shape: int) -> Tensor:
        return torch.empty(*shape).uniform_(-SCALE, SCALE, generator=generator)

    weighted = case.coupling == "weighted"
    h0 = uniform(rows, hidden) if weighted else uniform(networks, rows, hidden)
    return Operands(
        case,
        uniform(case.steps, networks, rows, width).requires_grad_(),
        h0.requires_grad_(),
        uniform(networks, hidden, width).requires_grad_(),
        uniform(networks, NODES, hidden, width).requires_grad_(),
        torch.softmax(uniform(networks), dim=0).requires_grad_() if weighted else None,
        CellBatch.from_genotypes(case.genotypes),
        uniform(case.steps, *h0.shape),
        (torch.rand(rows, hidden, generator=generator) > DROPOUT) / (1 - DROPOUT) if case.masked else None,
    )


PAPER = Case("paper", networks=100, hidden=200)
QUICK = Case("quick", networks=20, hidden=64)
ONE_CELL = Case("cell-200", networks=1, hidden=200, coupling="independent", norm=None, cell=DARTS_V2)
LARGE_CELL = Case("cell-850", networks=1, hidden=850, rows=64, coupling="independent", norm=None, cell=DARTS_V2)

# Measured with every peer: shapes with targets, and the other form and coupling at a medium shape.
COMPARED = [
    PAPER,
    QUICK,
    ONE_CELL,
    LARGE_CELL,
    Case("plain", networks=20, hidden=200, form="plain"),
    Case("independent", networks=20, hidden=200, coupling="independent"),
]
# Measured only with the backends.
SWEEPS = [
    *(Case(f"n-{networks}", networks, hidden=200) for networks in (1, 4, 16, 64, 120)),
    *(Case(f"h-{hidden}", networks=8, hidden=hidden) for hidden in (64, 200, 400, 850)),
]
CASES = [*COMPARED, *SWEEPS]
