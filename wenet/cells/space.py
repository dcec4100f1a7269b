"""What cells are drawn from: nodes, ancestors and activations at random (paper, Algorithm 1)."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from wenet.cells.genotype import Genotype
from wenet_kernels import ACTIVATIONS, WenetError, activation_names, check_choice


def random_genotypes(count: int, nodes: int, seed: int, activations: Sequence[str] = ACTIVATIONS) -> list[Genotype]:
    """Algorithm 1: `count` random cells of `nodes` nodes, all of them averaged; the same for the same seed.

    No cell comes twice, unless more are asked for than exist (`nodes! * 4 ** nodes` of four activations): then the
    space is gone through again as often as needed.

    Args:
        activations: of the nodes, drawn with equal probability; a different order gives different cells.

    Raises:
        WenetError: fewer than one cell, an impossible number of nodes, or activations that are unknown, none or not
            all different.

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
    """Raise `WenetError` unless cells can be drawn from these."""
    for activation in activations:
        check_choice("activation", activation, activation_names())
    if not activations or len(set(activations)) < len(activations):
        raise WenetError(
            f"activations must be at least one, and each named once, not {', '.join(activations) or 'none'}"
        )
