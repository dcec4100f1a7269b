"""The order in which nodes of different cells can be computed: by levels, all nodes of a level at once."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from wenet_kernels.cells import CellBatch


class Level(NamedTuple):
    """A level of all cells: `size` nodes from position `first` of the order. It `ends` if it is some cell's last."""

    first: int
    size: int
    ends: bool


class Order(NamedTuple):
    """The nodes of `n` cells by level: that of the init node is 0, any other one is one level above its ancestor.

    A node is one number, network * (L + 1) + node. Nodes that read the same state follow each other.

    Attributes:
        positions: all nodes by level, then all leaves, which no node reads.
        links: `[n, L+2, 3]`: for each node from init on, the position of the first node that reads it, the one behind
            the last of these, and its own; then of the cell's last level the first position and the one behind.
        levels: all levels except that of the init node.
        leaves: the number of leaves.
    """

    positions: list[int]
    links: list[list[tuple[int, int, int]]]
    levels: tuple[Level, ...]
    leaves: int


def find_order(ancestors: Sequence[Sequence[int]]) -> Order:
    """The order of cells, given the ancestor of each node i = 1..L.

    Examples:
        >>> from wenet_kernels.triton.order import find_order
        >>> order = find_order([[0, 1, 1, 0]])
        >>> order.positions, order.levels
        ([1, 4, 2, 3, 2, 3, 4], (Level(first=0, size=2, ends=False), Level(first=2, size=2, ends=True)))
    """
    nodes = len(ancestors[0])
    entries: list[tuple[int, int, int, int]] = []  # level, network, ancestor, node
    last = []  # the last level of each network
    for network, cell in enumerate(ancestors):
        level = [0]
        for node, ancestor in enumerate(cell, start=1):
            level.append(level[ancestor] + 1)
            entries.append((level[-1], network, ancestor, node))
        last.append(max(level))
    entries.sort()
    links = [[(0, 0, 0)] * (nodes + 2) for _ in ancestors]
    for position, (of_level, network, ancestor, node) in enumerate(entries):
        for row in (ancestor, nodes + 1) if of_level == last[network] else (ancestor,):
            begin, end, own = links[network][row]
            links[network][row] = (begin if end else position, position + 1, own)
        links[network][node] = (0, 0, position)
    positions = [network * (nodes + 1) + node for _, network, _, node in entries]
    leaves = [place for place in sorted(positions) if not links[place // (nodes + 1)][place % (nodes + 1)][1]]
    sizes = Counter(level for level, *_ in entries)
    first = dict(zip(sizes, accumulate(sizes.values(), initial=0), strict=False))
    ends = set(last)
    levels = tuple(Level(first[level], size, level in ends) for level, size in sizes.items())
    return Order(positions + leaves, links, levels, len(leaves))


@functools.cache
def order_of(cells: str) -> Order:
    """The order of the cells of `CellBatch.text`."""
    return find_order(CellBatch(cells).ancestors)


@functools.cache
def order_tables(cells: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """`positions` and `links` of cells on a device, int32."""
    order = order_of(cells)
    with torch.inference_mode(False), torch._C._DisableFuncTorch():
        return (
            torch.tensor(order.positions, dtype=torch.int32, device="cpu").to(device),
            torch.tensor(order.links, dtype=torch.int32, device="cpu").to(device),
        )
