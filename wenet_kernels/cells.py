"""Cells as integer tables: what every backend reads instead of Python genotypes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from wenet_kernels.activations import activation_names, registered_among
from wenet_kernels.errors import WenetError

# Far above any published cell (11 nodes); a larger number is a mistake in a file, and would exhaust memory.
MAX_NODES = 64


class CellDescription(Protocol):
    """What a cell must say of itself; `wenet.Genotype` is one."""

    @property
    def recurrent(self) -> Sequence[tuple[str, int]]: ...

    @property
    def concat(self) -> Sequence[int]: ...


def check_cell(recurrent: Sequence[tuple[str, int]], concat: Sequence[int]) -> None:
    """Raise `WenetError` unless the pairs and `concat` describe a cell (paper section 3.1)."""
    nodes = len(recurrent)
    if not 1 <= nodes <= MAX_NODES:
        raise WenetError(f"a cell has 1 to {MAX_NODES} nodes, this one has {nodes}")
    for node, (activation, ancestor) in enumerate(recurrent, start=1):
        if activation not in activation_names():
            names = ", ".join(activation_names())
            raise WenetError(f"node {node}: unknown activation {activation!r}; choose from {names}, or register it")
        if not 0 <= ancestor < node:
            raise WenetError(f"node {node}: ancestor {ancestor} is out of range; it must lie in 0..{node - 1}")
    if not concat:
        raise WenetError("concat is empty; name at least one node to average into the output")
    if len(set(concat)) != len(concat):
        raise WenetError(f"concat {list(concat)} names a node twice")
    for node in concat:
        if not 1 <= node <= nodes:
            raise WenetError(f"concat names node {node}; it must lie in 1..{nodes}")


class CellBatch(nn.Module):
    """`n` cells of `L` nodes each, as integer tables that move between devices with the module that owns them.

    Attributes:
        ancestor: `[n, L]` int32, node j in 0..i-1 that node i = 1..L reads.
        activation: `[n, L]` int32, index into `activation_names()`.
        concat: `[n, L]` int32, 1 where the node is averaged into the output.
        registered: names of the activations that were registered, among those of the cells.
    """

    ancestor: Tensor
    activation: Tensor
    concat: Tensor

    def __init__(self, ancestor: Tensor, activation: Tensor, concat: Tensor, registered: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.registered = registered
        # Not persistent: the tables follow from the genotypes, so a state_dict holds parameters alone.
        self.register_buffer("ancestor", ancestor, persistent=False)
        self.register_buffer("activation", activation, persistent=False)
        self.register_buffer("concat", concat, persistent=False)

    @classmethod
    def from_genotypes(cls, genotypes: Sequence[CellDescription]) -> CellBatch:
        """Check the cells once and tabulate them.

        Raises:
            WenetError: no cell, an invalid cell, or cells of different numbers of nodes.
        """
        if not genotypes:
            raise WenetError("a batch of cells needs at least one genotype")
        for genotype in genotypes:
            check_cell(genotype.recurrent, genotype.concat)
        lengths = {len(genotype.recurrent) for genotype in genotypes}
        if len(lengths) > 1:
            raise WenetError(f"cells of one batch need the same number of nodes, these have {sorted(lengths)}")
        nodes = range(1, lengths.pop() + 1)
        return cls(
            _table([[ancestor for _, ancestor in genotype.recurrent] for genotype in genotypes]),
            _table([[activation_names().index(name) for name, _ in genotype.recurrent] for genotype in genotypes]),
            _table([[int(node in genotype.concat) for node in nodes] for genotype in genotypes]),
            registered_among(name for genotype in genotypes for name, _ in genotype.recurrent),
        )

    @property
    def count(self) -> int:
        """Number of cells, `n`."""
        return self.ancestor.shape[0]

    @property
    def nodes(self) -> int:
        """Number of nodes of each cell, `L`."""
        return self.ancestor.shape[1]

    def extra_repr(self) -> str:
        return f"count={self.count}, nodes={self.nodes}"


def _table(rows: list[list[int]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int32)
