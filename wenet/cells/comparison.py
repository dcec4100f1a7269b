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
    """The largest tree that is in both cells: which node of `b` each of its nodes in `a` is.

    Two nodes are the same if they have the same activation and read the same node of the tree; its topmost node, the
    init node or any other, need have the activation in common alone. Of trees of one size that nearest to the init
    node is taken.
    """

    @cache
    def below(i: int, j: int) -> Tree:
        """The largest tree whose topmost node is i in `a` and j in `b`, as pairs of nodes."""
        return ((i, j), *_best_pairing(a.children(i), b.children(j), tree))

    def tree(i: int, j: int) -> Tree:
        return below(i, j) if _activation(a, i) == _activation(b, j) else ()

    largest = max((tree(i, j) for i in range(a.nodes + 1) for j in range(b.nodes + 1)), key=_nodes)
    return dict(sorted(largest))


def same_beginning(a: Genotype, b: Genotype) -> int:
    """How many of the first nodes have the same activation and ancestor in both."""
    same = 0
    for one, other in zip(a.recurrent, b.recurrent, strict=False):
        if one != other:
            break
        same += 1
    return same


def describe_common(first: str, a: Genotype, second: str, b: Genotype) -> str:
    """Both cells drawn side by side; behind a node of the common tree stands which node of the other cell it is."""
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
    return f"common      {size} node{'s' * (size > 1)} {where}; = N names a node's equal in the other cell"


def _nodes(tree: Tree) -> int:
    """Of a tree, without the init node, which is in every cell."""
    return sum(1 for i, _ in tree if i > 0)


def _how_they_begin(a: Genotype, b: Genotype) -> str:
    same = same_beginning(a, b)
    if same == 0:
        return "beginning   node 1 differs"
    return "beginning   " + ("node 1 is the same" if same == 1 else f"nodes 1-{same} are the same")


def _activation(genotype: Genotype, node: int) -> str:
    return genotype.recurrent[node - 1][0] if node else INIT


def _best_pairing(left: list[int], right: list[int], tree: Callable[[int, int], Tree]) -> Tree:
    """The trees below two nodes, each child of the one paired with a child of the other so that most is in common."""
    from scipy.optimize import linear_sum_assignment  # takes a second to import

    sizes = np.array([[len(tree(i, j)) for j in right] for i in left]).reshape(len(left), len(right))
    rows, columns = linear_sum_assignment(sizes, maximize=True)
    return tuple(pair for row, column in zip(rows, columns, strict=True) for pair in tree(left[row], right[column]))
