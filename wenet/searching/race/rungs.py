"""The rungs of a race: how long networks train, and how many cells usually do."""

from __future__ import annotations

from itertools import accumulate
from operator import mul
from typing import Any

from wenet.searching.settings import SearchConfig
from wenet.tasks import Task
from wenet.training import windows_measured

# Of so many cells of a rung one goes on. At a quarter of a training whose rates fall, cells are compared by an
# extrapolated loss, which tells more than the loss, so fewer go on.
ONE_IN, ONE_IN_EXTRAPOLATED = 2, 3
USUALLY = 1.2  # times as many go on, on average, as some cannot be told from the last of these
OF_MUTATIONS = 1.4  # the same over all generations, as mutations are better than the cells before them
HELD_OUT_SHARE = 4  # a rung is measured on at most one token for this many trained on


def rungs_from(first: int, rungs: int) -> list[int]:
    """The windows that networks have seen after each rung, so many after the first.

    Example:
        >>> rungs_from(30, 3)
        [30, 60, 120]
    """
    return [first * 2**rung for rung in range(rungs)]


def trained_in(rung: int) -> int:
    """What a network trains in a rung, in windows of the first.

    Example:
        >>> [trained_in(rung) for rung in range(4)]
        [1, 1, 2, 4]
    """
    return 2 ** max(0, rung - 1)


def extrapolates(config: SearchConfig, rung: int) -> bool:
    """Whether a rung compares cells by extrapolated losses: the one at a quarter of a training whose rates fall."""
    return config.falling_rates and rung == config.rungs - 3


def mutations_in(config: SearchConfig) -> int:
    """How many cells of a race are mutations of others, at most."""
    return max(0, config.pool - config.batch) if config.mutate else 0


def shares_left(config: SearchConfig) -> list[float]:
    """The part of all cells that usually runs each rung."""
    one_in = [ONE_IN_EXTRAPOLATED if extrapolates(config, rung) else ONE_IN for rung in range(config.rungs - 1)]
    usually = OF_MUTATIONS if mutations_in(config) else USUALLY
    return list(accumulate((usually / cells for cells in one_in), mul, initial=1.0))


def networks_of_entrant(config: SearchConfig) -> float:
    """Networks that train for the windows of the first rung, for each cell that enters a race."""
    return config.networks_per_cell * sum(share * trained_in(rung) for rung, share in enumerate(shares_left(config)))


def held_out_windows(config: SearchConfig, task: Task, data: Any, windows: int) -> int:
    """The number of validation windows on which networks are measured that were trained on so many windows."""
    whole = windows_measured(config, task, data, "valid")
    return max(2, min(whole, windows * config.data_batch // (HELD_OUT_SHARE * config.eval_batch)))
