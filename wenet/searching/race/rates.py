"""The learning rate of a race, tried on some of its cells."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

from wenet.cells import Cell, Genotype
from wenet.run import Session
from wenet.searching.race.losses import losses_of
from wenet.searching.race.rungs import held_out_windows
from wenet.searching.settings import SearchConfig
from wenet.searching.shapes import Group, by_shape
from wenet.training import Plan, StandaloneResult, kind_of
from wenet_kernels import Program

TRIED, TRIED_IN_ALL = 2, 4  # cells of a kind, and of a family, on which rates are tried; at least one of each kind


def tries_rates(config: SearchConfig) -> bool:
    """Whether there are learning rates to choose from."""
    return len(config.rate_grid) > 1


def windows_of_rates(config: SearchConfig, last: int) -> int:
    """Windows for which rates are tried in a race whose last rung has so many.

    A constant rate that is best for a short training is too high in a long one, where networks go wrong at it. Rates
    that fall to zero are told apart by a training half as long.
    """
    return -(-last // 2) if config.falling_rates else last


def choose_rate(
    session: Session[SearchConfig],
    family: str,
    cells: Sequence[Cell],
    windows: int,
    train: Callable[[Group, Plan], StandaloneResult],
) -> float:
    """The rate at which some cells of each kind in a family have the lowest mean loss; first of all, one at which few
    diverge."""
    config, rates = session.config, session.config.rate_grid
    if not tries_rates(config):
        return rates[0]
    sums = torch.zeros(len(rates), dtype=torch.float64)
    diverged = torch.zeros(len(rates), dtype=torch.int64)
    kinds = dict.fromkeys(kind_of(cell) for cell in cells if family_of(cell) == family)
    tried = [cell for kind in kinds for cell in typical(kind, cells)]
    for group in by_shape(tried, config, session.task, session.data):
        plan = Plan(
            [cell for _ in rates for cell in group.architectures],
            windows,
            config.seed,
            rates=[rate for rate in rates for _ in group.architectures],
            hidden=group.hidden() * len(rates),
            decay=config.falling_rates,
            average=True,
            held_out=held_out_windows(config, session.task, session.data, windows),
        )
        losses = losses_of(train(group, plan)).mean(0).view(len(rates), -1)  # [rates, cells]
        diverged += losses.isinf().sum(1)
        sums += losses.where(losses.isfinite(), 0).sum(1)
    order = zip(diverged.tolist(), sums.tolist(), rates, strict=True)  # a cell may diverge at every rate
    return min(order)[-1]


def family_of(cell: Cell) -> str:
    """What cells have in common that race at one rate: to be DAG cells, or programs with as many states.

    A rate for each number of nodes would rest on two cells, and where it is too high by chance its cells are ahead in
    short rungs, displace all others there, and learn no more in the last.
    """
    return "dag" if isinstance(cell, Genotype) else kind_of(cell)


def typical(kind: str, cells: Sequence[Cell]) -> list[Cell]:
    """Some cells of a kind, those in the middle by their number of weights; fewer if its family has many kinds."""
    own = [cell for cell in cells if kind_of(cell) == kind]
    kinds = len({kind_of(cell) for cell in cells if family_of(cell) == family_of(own[0])})
    weights = [cell.parameters(1, 1) if isinstance(cell, Program) else 0 for cell in own]
    middle = statistics.median(weights)
    order = sorted(range(len(own)), key=lambda place: abs(weights[place] - middle))
    return [own[place] for place in order[: max(1, min(TRIED, TRIED_IN_ALL // kinds))]]
