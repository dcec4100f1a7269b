"""A race that fits into a time: how many cells it has, and for how long they train."""

from __future__ import annotations

import math
from collections.abc import Sequence

from wenet.cells import Cell
from wenet.run import Session
from wenet.run.budget import Budget
from wenet.searching.contest import kept_for_measuring
from wenet.searching.race.rates import typical, windows_of_rates
from wenet.searching.race.rungs import networks_of_entrant, rungs_from
from wenet.searching.settings import SearchConfig
from wenet.searching.shapes import config_for
from wenet.training import kind_of, seconds_per_network, training_windows

# The part of the rest of the time before a contest, before one with several finalists, and where none follows.
RACE_SHARE, SHARE_BEFORE_FINALISTS, SHARE_ALONE = 0.4, 0.3, 0.95
RATES_SHARE = 0.1  # of the whole time, for trying rates
FEWEST_CELLS, FEWEST_WINDOWS, WANTED_WINDOWS = 6, 4, 30  # the last two of a first rung
WANTED_PASSES = 0.5  # over the data in a first rung, if the settings do not ask for fewer


def share_of_race(config: SearchConfig) -> float:
    """The part of the time left that a race may take."""
    if not config.contest:
        return SHARE_ALONE
    return SHARE_BEFORE_FINALISTS if config.finalists > 1 else RACE_SHARE


def end_of_race(session: Session[SearchConfig], budget: Budget) -> float:
    """When a race should be over, in seconds of the budget."""
    left = max(0.0, budget.left - kept_for_measuring(session))
    return round(min(budget.last_moment, budget.spent + share_of_race(session.config) * left), 3)


def fitting_windows_of_rates(session: Session[SearchConfig], budget: Budget, cells: Sequence[Cell]) -> int:
    """Windows with which trying rates takes a small part of the time, no more than the last rung may have."""
    config = session.config
    kinds, rates = dict.fromkeys(map(kind_of, cells)), len(config.rate_grid)
    tried = [len(typical(kind, cells)) for kind in kinds]
    each = probed_seconds(session, cells, max(tried) * rates)
    *_, first = fitting_sizes(session, share_of_race(config) * budget.left, each, len(cells))
    fitting = int(RATES_SHARE * budget.total / (sum(tried) * rates * each))
    return min(max(FEWEST_WINDOWS, fitting), windows_of_rates(config, rungs_from(first, config.rungs)[-1]))


def probed_seconds(session: Session[SearchConfig], cells: Sequence[Cell], side_by_side: int) -> float:
    """What a window takes for each of the networks in a call, by a short measurement of one kind."""
    task, data = session.task, session.data
    cell = typical(kind_of(cells[0]), cells)[0]
    shaped = config_for(cell, session.config, task, data)
    seconds = seconds_per_network(shaped, cell, 1.0, task, data, side_by_side=side_by_side)
    return seconds / training_windows(session, 1.0)


def fitting_sizes(session: Session[SearchConfig], seconds: float, each: float, most: int) -> tuple[int, int, int]:
    """The generations, the cells of each, and the windows of the first rung, that fit into so many seconds.

    Args:
        each: seconds that a window takes for each network of a call.
        most: cells that a generation may have.
    """
    config = session.config
    windows = max(0.0, seconds) / (each * networks_of_entrant(config))  # of a single cell
    wanted = max(WANTED_WINDOWS, training_windows(session, min(WANTED_PASSES, config.epochs_per_round)))
    affordable = windows / wanted
    if config.falling_rates:  # cells need a part of a whole training, so both shrink alike
        affordable = math.sqrt(most * config.rounds * affordable)
    generations = max(1, min(config.rounds, int(affordable) // FEWEST_CELLS))
    count = max(min(FEWEST_CELLS, most), min(most, int(affordable / generations)))
    return generations, count, max(FEWEST_WINDOWS, int(windows / (generations * count)))
