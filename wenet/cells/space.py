"""Random cells: the space that searches draw from (paper, Algorithm 1)."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from wenet.cells.genotype import Genotype
from wenet_kernels import ACTIVATIONS, WenetError, activation_names, check_choice


def random_genotypes(count: int, nodes: int, seed: int, activations: Sequence[str] = ACTIVATIONS) -> list[Genotype]:
    """Draw `count` random cells by Algorithm 1; the same seed gives the same cells.

    Every cell has `nodes` nodes, and its output averages all of them. No cell comes twice until the space is exhausted
    (`nodes! * 4 ** nodes` cells with four activations); then it starts over.

    Args:
        activations: the choices for each node, equally likely; another order gives other cells.

    Raises:
        WenetError: `count` or `nodes` is out of range, or `activations` is empty, has duplicates or unknown names.

    Examples:
        >>> import wenet
        >>> for cell in wenet.random_genotypes(2, nodes=3, seed=1):
        ...     print(cell)
        relu0 sigmoid0 identity1
        identity0 relu0 identity0
    """
    check_activations(activations)
    if count < 1:
        raise WenetError(f"the number of random cells must be at least 1, not {count}")
    if nodes < 1:
        raise WenetError(f"the number of nodes must be at least 1, not {nodes}")
    generator = random.Random(seed)
    space = math.factorial(nodes) * len(activations) ** nodes
    genotypes: list[Genotype] = []
    seen: set[Genotype] = set()
    while len(genotypes) < count:
        genotype = Genotype((generator.choice(activations), generator.randrange(node)) for node in range(1, nodes + 1))
        if genotype not in seen:
            seen.add(genotype)
            genotypes.append(genotype)
        if len(seen) == space:
            seen.clear()
    return genotypes


def check_activations(activations: Sequence[str]) -> None:
    """Raise `WenetError` unless these are known activations, at least one, without duplicates."""
    for activation in activations:
        check_choice("activation", activation, activation_names())
    if not activations or len(set(activations)) < len(activations):
        raise WenetError(
            f"activations must be at least one, and each named once, not {', '.join(activations) or 'none'}"
        )
