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
    space = cells_in_all(nodes, activations)
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


def cells_in_all(nodes: int, activations: Sequence[str] = ACTIVATIONS) -> int:
    """Number of different cells with this many nodes."""
    return math.factorial(nodes) * len(activations) ** nodes


def random_mixed_genotypes(
    count: int, nodes: range, seed: int, activations: Sequence[str] = ACTIVATIONS
) -> list[Genotype]:
    """Draw random cells with different numbers of nodes: in turn one of each number, while there are new ones.

    Args:
        nodes: the numbers of nodes, such as `range(1, 5)`.
        count, seed, activations: as in `random_genotypes`.

    Raises:
        WenetError: as in `random_genotypes`.

    Examples:
        >>> import wenet
        >>> [cell.nodes for cell in wenet.cells.random_mixed_genotypes(7, range(1, 4), seed=1, activations=["tanh"])]
        [1, 2, 3, 2, 3, 3, 3]
    """
    space = {number: cells_in_all(number, activations) for number in nodes}
    drawn = {number: iter(random_genotypes(min(count, space[number]), number, seed, activations)) for number in nodes}
    cells: list[Genotype] = []
    while len(cells) < count:
        turn = [cell for number in nodes if (cell := next(drawn[number], None)) is not None]
        if not turn:  # the space is exhausted, and starts over
            drawn = {number: iter(random_genotypes(space[number], number, seed, activations)) for number in nodes}
        cells += turn
    return cells[:count]


def mutated(genotype: Genotype, generator: random.Random, activations: Sequence[str] = ACTIVATIONS) -> Genotype:
    """Change one gene of a cell at random: the activation of a node, or the node before it.

    Examples:
        >>> import random, wenet
        >>> print(wenet.cells.mutated(wenet.cells.load_genotype("tanh0 relu1 relu2"), random.Random(1)))
        identity0 relu1 relu2
    """
    choices = [
        (place, gene)
        for place, (activation, ancestor) in enumerate(genotype.recurrent)
        for gene in [
            *((other, ancestor) for other in activations if other != activation),
            *((activation, other) for other in range(place + 1) if other != ancestor),
        ]
    ]
    if not choices:
        return genotype
    place, gene = generator.choice(choices)
    recurrent = [*genotype.recurrent[:place], gene, *genotype.recurrent[place + 1 :]]
    return Genotype(recurrent, genotype.concat)


def check_activations(activations: Sequence[str]) -> None:
    """Raise `WenetError` unless these are known activations, at least one, without duplicates."""
    for activation in activations:
        check_choice("activation", activation, activation_names())
    if not activations or len(set(activations)) < len(activations):
        raise WenetError(
            f"activations must be at least one, and each named once, not {', '.join(activations) or 'none'}"
        )
