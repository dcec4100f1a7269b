"""How long a contest takes, and how long it may train where its time is limited."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from wenet.cells import Cell
from wenet.files import WRITTEN_AGAIN, read_json
from wenet.run import Session
from wenet.run.budget import Budget
from wenet.searching.contest.trials import checks_in, grid_of
from wenet.searching.settings import FULLY, SearchConfig
from wenet.searching.shapes import Group, config_for
from wenet.searching.space import space_of
from wenet.tasks import Task
from wenet.training import (
    StandaloneResult,
    seconds_of_measured,
    seconds_per_measured,
    seconds_per_network,
    seconds_per_window,
    training_windows,
    windows_measured,
)

OTHERS = 5  # contestants that are no finalists, at most,
OTHER_CELLS = 2  # of them the runner-up and the median cell
TRIALS_SHARE = 0.5  # of the time for a contest, where that is limited


class Times(NamedTuple):
    """Seconds that all trainings of a group take: for each window, and to be measured in the end."""

    window: float
    measuring: float


def windows_of_trials(session: Session[SearchConfig], groups: Sequence[Group]) -> int:
    """Windows of each trial. Within a budget they take a part of the time left, if calls take as long as those of the
    search."""
    config, budget = session.config, session.budget
    if budget is None:
        return training_windows(session, config.contest_epochs)
    of_call, of_network = _calls_of_the_search(session)
    networks = len(grid_of(config)) * sum(len(group.places) for group in groups)
    each = len(groups) * of_call + networks * of_network
    time_for_them = TRIALS_SHARE * (budget.for_training - kept_for_measuring(session))
    planned: int = budget.planned("windows_of_trials", lambda: max(1, int(time_for_them / each)))
    return planned


def _calls_of_the_search(session: Session[SearchConfig]) -> tuple[float, float]:
    """What calls took in the search, as in `seconds_of_a_window`."""
    trained = [read_json(path, WRITTEN_AGAIN, "outcomes") for path in session.folder.path.glob("rungs/*/result.json")]
    sizes = [len(result["outcomes"]) for result in trained]
    times = [size * result["seconds"] / result["network_windows"] for size, result in zip(sizes, trained, strict=True)]
    return seconds_of_a_window(sizes, times)


def seconds_of_a_window(networks: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """What a call takes, and what each of its networks adds: the line through calls of different size, `seconds` each,
    that has the least squares. A few networks in a call of their own take nearly as long as many."""
    size, time_taken = statistics.fmean(networks), statistics.fmean(seconds)
    spread = math.fsum((count - size) ** 2 for count in networks)
    pairs = zip(networks, seconds, strict=True)
    slope = math.fsum((count - size) * (one - time_taken) for count, one in pairs) / spread if spread else 0.0
    slope = min(max(slope, 0.0), time_taken / size)
    return time_taken - slope * size, slope


def times_of_trainings(
    session: Session[SearchConfig],
    groups: Sequence[Group],
    trials: Sequence[StandaloneResult],
    going_on: Sequence[int],
) -> list[Times]:
    """What the trainings of each group take: in a window as long as one of its trials, checks included, by the ratio
    that a short measurement of both gives. 0 without a budget, or where none of a group goes on."""
    if session.budget is None:
        return [Times(0.0, 0.0)] * len(groups)
    grid, seeds = len(grid_of(session.config)), session.config.contest_seeds

    def measured(group: Group, trial: StandaloneResult) -> Times:
        left = group.only(going_on)
        if left is None:
            return Times(0.0, 0.0)
        tried, trained = _probed(session, group, grid), _probed(session, left, seeds, "test")
        taken = max(tried.window, (trial.seconds - tried.measuring) / trial.windows)
        return Times(taken * trained.window / tried.window, trained.measuring)

    planned: list[tuple[float, float]] = session.budget.planned(
        "times_of_trainings", lambda: [measured(*each) for each in zip(groups, trials, strict=True)]
    )
    return [Times(*each) for each in planned]


def _probed(session: Session[SearchConfig], group: Group, copies: int, *more: str) -> Times:
    """What so many networks of each contestant in a group take, by a short measurement.

    Args:
        more: parts of the data that they are measured on besides validation.
    """
    task, data, sizes = session.task, session.data, group.hidden(copies)
    networks = [architecture for architecture in group.architectures for _ in range(copies)]
    window = seconds_per_window(group.config, networks, task, data, sizes)
    measured = seconds_of_measured(group.config, networks, task, data, sizes)
    return Times(window, measured * _windows_measured(session, *more))


def _windows_measured(session: Session[SearchConfig], *more: str) -> int:
    """On which a network is measured at the end of its training. Where checks seek the best weights on the way, it is
    measured on validation twice."""
    valid = ["valid"] * (2 if checks_in(session) else 1)
    return windows_measured(session.config, session.task, session.data, *valid, *more)


def windows_of_trainings(session: Session[SearchConfig], times: Sequence[Times]) -> int:
    """Windows of each training; within a budget as many as fit into the rest of it."""
    budget = session.budget
    if budget is None:
        return training_windows(session, session.config.contest_epochs)
    left = budget.for_training - sum(each.measuring for each in times)
    of_window = sum(each.window for each in times)
    planned: int = budget.planned("windows_of_contest", lambda: max(1, int(left / of_window)))
    return planned


def end_of_trainings(budget: Budget, times: Sequence[Times], windows: int) -> float:
    """When the trainings of the first of these groups have to end, in seconds spent.

    What the others need is kept for them, and what all need is shared out where it is more than the time left. So all
    end early on a machine that has become slower, where otherwise the last would not train at all.

    Args:
        times: of the trainings of each group.
        windows: of each training.
    """
    time_left = budget.last_moment - budget.spent - sum(each.measuring for each in times)
    own, others = windows * times[0].window, windows * sum(each.window for each in times[1:])
    share = time_left - others if time_left > own + others else time_left * own / (own + others)
    return round(budget.spent + share, 3)


def networks_in(config: SearchConfig) -> tuple[int, int]:
    """How many networks a contest has in trials, and in trainings to the end, at most."""
    return _networks_beside(OTHERS, config)


def networks_at_once(config: SearchConfig) -> int:
    """How many networks train in one call of a contest, at most: if all cells of the search are of one kind."""
    return max(_networks_beside(OTHER_CELLS, config))


def _networks_beside(others: int, config: SearchConfig) -> tuple[int, int]:
    """How many networks finalists and so many others have in trials, and in trainings to the end."""
    others -= config.finalists > 1  # the runner-up is one of several finalists
    tried, trained = config.finalists + others, min(config.finalists, FULLY) + others
    return tried * len(grid_of(config)), trained * config.contest_seeds


def estimate_contest(session: Session[SearchConfig]) -> float:
    """Seconds of the contest, as if all contestants were like the largest cell of the search."""
    sized, cell, side_by_side = _largest_contestant(session.config, session.task, session.data)
    epochs = session.config.contest_epochs
    training = seconds_per_network(sized, cell, epochs, session.task, session.data, side_by_side)
    return sum(networks_in(session.config)) * training + _estimate_measuring(session)


def kept_for_measuring(session: Session[SearchConfig]) -> float:
    """Seconds of a contest in which networks are measured and not trained, if the time of the search is limited."""
    if not session.config.contest or session.budget is None:
        return 0.0
    planned: float = session.budget.planned("kept_for_measuring", lambda: _estimate_measuring(session))
    return planned


def _estimate_measuring(session: Session[SearchConfig]) -> float:
    sized, cell, side_by_side = _largest_contestant(session.config, session.task, session.data)
    of_window = seconds_per_measured(sized, cell, session.task, session.data, side_by_side)
    tried, trained = networks_in(session.config)
    return of_window * (tried * _windows_measured(session) + trained * _windows_measured(session, "test"))


def _largest_contestant(config: SearchConfig, task: Task, data: Any) -> tuple[SearchConfig, Cell, int]:
    """The largest cell of the search, its settings, and how many networks of a contestant train side by side."""
    cell = space_of(config).largest(config)
    return config_for(cell, config, task, data), cell, max(config.contest_seeds, len(grid_of(config)))
