"""What two cells have in common (paper section 4.4)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import zip_longest

import numpy as np

from wenet.cells.genotype import Genotype

INIT = "init"
Tree = tuple[tuple[int, int], ...]  # pairs of nodes of two cells


def common_structure(a: Genotype, b: Genotype) -> dict[int, int]:
    """Find the largest tree that both cells contain: a map from its nodes in `a` to its nodes in `b`.

    Two nodes match if they have the same activation and read matching nodes. The topmost node, which may be the init
    node, only needs the same activation. Among trees of equal size, the one nearest to the init node wins.
    """

    @cache
    def below(i: int, j: int) -> Tree:
        """The largest common tree with i of `a` and j of `b` at the top, as pairs of nodes."""
        return ((i, j), *_best_pairing(a.children(i), b.children(j), tree))

    def tree(i: int, j: int) -> Tree:
        return below(i, j) if _activation(a, i) == _activation(b, j) else ()

    largest = max((tree(i, j) for i in range(a.nodes + 1) for j in range(b.nodes + 1)), key=_nodes)
    return dict(sorted(largest))


def same_beginning(a: Genotype, b: Genotype) -> int:
    """Count the leading nodes that have the same activation and ancestor in both cells."""
    same = 0
    for one, other in zip(a.recurrent, b.recurrent, strict=False):
        if one != other:
            break
        same += 1
    return same


def describe_common(first: str, a: Genotype, second: str, b: Genotype) -> str:
    """Draw both cells side by side; `= N` behind a node names its match in the other cell."""
    common = common_structure(a, b)
    left = [first, "", *a.draw({i: f"  = {j}" for i, j in common.items()}).splitlines()]
    right = [second, "", *b.draw({j: f"  = {i}" for i, j in common.items()}).splitlines()]
    width = max(map(len, left)) + 4
    rows = [f"{one:<{width}}{other}".rstrip() for one, other in zip_longest(left, right, fillvalue="")]
    return "\n".join([*rows, "", _size_of(tuple(common.items())), _how_they_begin(a, b)])


def _size_of(tree: Tree) -> str:
    size = _nodes(tree)
    if size == 0:
        return "common      nothing"
    top, other_top = tree[0]
    where = "below the init node" if top == 0 else f"from node {top} on the left and {other_top} on the right"
    return f"common      {size} node{'s' * (size > 1)} {where}; = N names the same node in the other cell"


def _nodes(tree: Tree) -> int:
    """Count a tree's nodes, but not the init node, which every cell has."""
    return sum(1 for i, _ in tree if i > 0)


def _how_they_begin(a: Genotype, b: Genotype) -> str:
    same = same_beginning(a, b)
    if same == 0:
        return "beginning   node 1 differs"
    return "beginning   " + ("node 1 is the same" if same == 1 else f"nodes 1-{same} are the same")


def _activation(genotype: Genotype, node: int) -> str:
    return genotype.recurrent[node - 1][0] if node else INIT


def _best_pairing(left: list[int], right: list[int], tree: Callable[[int, int], Tree]) -> Tree:
    """Pair the children of two nodes so that the trees below them have as much as possible in common."""
    from scipy.optimize import linear_sum_assignment  # takes a second to import

    sizes = np.array([[len(tree(i, j)) for j in right] for i in left]).reshape(len(left), len(right))
    rows, columns = linear_sum_assignment(sizes, maximize=True)
    return tuple(pair for row, column in zip(rows, columns, strict=True) for pair in tree(left[row], right[column]))
