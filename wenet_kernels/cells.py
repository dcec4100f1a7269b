"""Cells as text and as integer tables, which backends read in place of Python genotypes."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from wenet_kernels.activations import activation_names, registered_among
from wenet_kernels.errors import WenetError, did_you_mean

# Far above any published cell (11 nodes). A larger number is a mistake in a file and would exhaust memory.
MAX_NODES = 64


class CellDescription(Protocol):
    """The interface of a cell, which `wenet.Genotype` has."""

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
            names = activation_names()
            mend = did_you_mean(activation, names) or f"choose from {', '.join(names)}, or register it"
            raise WenetError(f"node {node}: unknown activation {activation!r}; {mend}")
        if not 0 <= ancestor < node:
            raise WenetError(f"node {node}: ancestor {ancestor} is out of range; it must lie in 0..{node - 1}")
    if not concat:
        raise WenetError("concat is empty; name at least one node to average into the output")
    if len(set(concat)) != len(concat):
        raise WenetError(f"concat {list(concat)} names a node twice")
    for node in concat:
        if not 1 <= node <= nodes:
            raise WenetError(f"concat names node {node}; it must lie in 1..{nodes}")


def cell_text(recurrent: Sequence[tuple[str, int]], concat: Sequence[int]) -> str:
    """One line, such as "tanh0 relu1 relu1"; `mean` and numbers follow if only some nodes are averaged."""
    text = " ".join(f"{activation}{ancestor}" for activation, ancestor in recurrent)
    if len(concat) == len(recurrent):
        return text
    return f"{text} mean {','.join(map(str, concat))}"


def read_cell(text: str) -> tuple[list[tuple[str, int]], list[int]]:
    """Parse and check the pairs and `concat` that `cell_text` wrote.

    Raises:
        WenetError: the text describes no valid cell.
    """
    match = re.fullmatch(r"((?:[a-z]+\d{1,9}\s*)+?)(?:\s*\bmean\s+(\d{1,9}(?:,\d{1,9})*))?", text.strip())
    if match is None:
        raise WenetError(f"{text!r} is no cell; write it like 'tanh0 relu1 relu1 mean 2,3'")
    recurrent = [(name, int(ancestor)) for name, ancestor in re.findall(r"([a-z]+)(\d+)", match[1])]
    concat = [int(node) for node in match[2].split(",")] if match[2] else list(range(1, len(recurrent) + 1))
    check_cell(recurrent, concat)
    return recurrent, concat


class Tables(NamedTuple):
    """Cells as integers, `[n, L]` int32 each."""

    ancestor: Tensor  # node j in 0..i-1 that node i = 1..L reads
    activation: Tensor  # index into `activation_names()`
    concat: Tensor  # 1 where the node is averaged into the output


class CellBatch:
    """`n` cells of `L` nodes each.

    An immutable value: it holds a text, from which the tables of each device are made once. So tools that empty, move
    or copy a model's tensors cannot leave wrong tables behind.

    Args:
        text: the cells as `cell_text` writes them, separated by semicolons.

    Attributes:
        text: as given.
        count: number of cells, `n`.
        nodes: number of nodes of each cell, `L`.
        registered: names of the cells' registered activations.

    Raises:
        WenetError: there is no cell, a cell is invalid, or cells differ in their number of nodes.

    Examples:
        >>> from wenet_kernels import CellBatch
        >>> CellBatch("tanh0 relu1; relu0 sigmoid0 mean 2").tables("cpu").ancestor
        tensor([[0, 1],
                [0, 0]], dtype=torch.int32)
    """

    def __init__(self, text: str) -> None:
        rows = _rows(text, activation_names())
        self.text = text
        self.count, self.nodes, self.registered = len(rows.ancestor), len(rows.ancestor[0]), rows.registered

    @classmethod
    def from_genotypes(cls, genotypes: Sequence[CellDescription]) -> CellBatch:
        """Check the cells and make a batch of them.

        Raises:
            WenetError: as in the class.
        """
        for genotype in genotypes:
            check_cell(genotype.recurrent, genotype.concat)
        return cls("; ".join(cell_text(genotype.recurrent, genotype.concat) for genotype in genotypes))

    @property
    def ancestors(self) -> list[list[int]]:
        """The ancestor of each node i = 1..L of each cell, on the host."""
        return _rows(self.text, activation_names()).ancestor

    def tables(self, device: torch.device | str) -> Tables:
        """The cells' tables on a device; every call returns the same tensors."""
        return _tables(self.text, activation_names(), torch.device(device))

    def new_tables(self, device: torch.device | str) -> Tables:
        """Tables that belong to the caller alone."""
        return _new_tables(self.text, activation_names(), torch.device(device))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CellBatch) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"CellBatch({self.text!r})"


class _Rows(NamedTuple):
    ancestor: list[list[int]]
    activation: list[list[int]]
    concat: list[list[int]]
    registered: tuple[str, ...]


# Never emptied: recorded CUDA graphs read the tables at their addresses.
@functools.cache
def _rows(text: str, names: tuple[str, ...]) -> _Rows:
    if not text.strip():
        raise WenetError("a batch of cells needs at least one genotype")
    cells = [read_cell(cell) for cell in text.split(";")]
    lengths = {len(recurrent) for recurrent, _ in cells}
    if len(lengths) > 1:
        raise WenetError(f"cells of one batch need the same number of nodes, these have {sorted(lengths)}")
    nodes = range(1, lengths.pop() + 1)
    return _Rows(
        [[ancestor for _, ancestor in recurrent] for recurrent, _ in cells],
        [[names.index(name) for name, _ in recurrent] for recurrent, _ in cells],
        [[int(node in concat) for node in nodes] for _, concat in cells],
        registered_among(name for recurrent, _ in cells for name, _ in recurrent),
    )


@functools.cache
def _tables(text: str, names: tuple[str, ...], device: torch.device) -> Tables:
    # Tensors made in inference mode cannot take part in autograd later, and those of a transform do not outlive it.
    with torch.inference_mode(False), torch._C._DisableFuncTorch():
        return _new_tables(text, names, device)


def _new_tables(text: str, names: tuple[str, ...], device: torch.device) -> Tables:
    # Made on the CPU and moved: on the device meta torch.tensor detaches in place, which transforms forbid.
    return Tables(*(torch.tensor(rows, dtype=torch.int32, device="cpu").to(device) for rows in _rows(text, names)[:3]))
