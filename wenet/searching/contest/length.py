"""How long a contest takes, and how long it may train where its time is limited."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from wenet.files import WRITTEN_AGAIN, read_json
from wenet.run import Session
from wenet.searching.contest.trials import grid_of
from wenet.searching.settings import FULLY, SearchConfig
from wenet.searching.shapes import Group, config_for
from wenet.searching.space import space_of
from wenet.training import StandaloneResult, seconds_per_network, training_windows

OTHERS = 5  # contestants that are no finalists, at most
TRIALS_SHARE = 0.5  # of the time for a contest, where that is limited


def windows_of_trials(session: Session[SearchConfig], groups: Sequence[Group]) -> int:
    """Windows of each trial. Within a budget they take a part of the time left, if calls take as long as those of the
    search."""
    config, budget = session.config, session.budget
    if budget is None:
        return training_windows(session, config.contest_epochs)
    trained = [read_json(path, WRITTEN_AGAIN, "outcomes") for path in session.folder.path.glob("rungs/*/result.json")]
    of_call, of_network = seconds_of_a_window(
        [len(result["outcomes"]) for result in trained],
        [result["seconds"] * len(result["outcomes"]) / result["network_windows"] for result in trained],
    )
    networks = len(grid_of(config)) * sum(len(group.places) for group in groups)
    each = len(groups) * of_call + networks * of_network
    time_for_them = TRIALS_SHARE * budget.for_training
    planned: int = budget.planned("windows_of_trials", lambda: max(1, int(time_for_them / each)))
    return planned


def seconds_of_a_window(networks: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """What a call takes, and what each of its networks adds: the line through calls of different size, `seconds` each,
    that has the least squares. A few networks in a call of their own take nearly as long as many."""
    size, time_taken = statistics.fmean(networks), statistics.fmean(seconds)
    spread = math.fsum((count - size) ** 2 for count in networks)
    pairs = zip(networks, seconds, strict=True)
    slope = math.fsum((count - size) * (one - time_taken) for count, one in pairs) / spread if spread else 0.0
    slope = min(max(slope, 0.0), time_taken / size)
    return time_taken - slope * size, slope


def windows_of_trainings(
    session: Session[SearchConfig],
    groups: Sequence[Group],
    trials: Sequence[StandaloneResult],
    of_trials: int,
    going_on: Sequence[int],
) -> int:
    """Windows of each training; within a budget as many as fit into the rest of it, by the time that trials took."""
    config, budget = session.config, session.budget
    if budget is None:
        return training_windows(session, config.contest_epochs)
    left = [len(set(group.places) & set(going_on)) for group in groups]
    seconds = sum(
        trial.seconds / of_trials * (count * config.contest_seeds) / (len(group.places) * len(grid_of(config)))
        for group, trial, count in zip(groups, trials, left, strict=True)
    )
    planned: int = budget.planned("windows_of_contest", lambda: max(1, int(budget.for_training / seconds)))
    return planned


def networks_in(config: SearchConfig) -> tuple[int, int]:
    """How many networks a contest has in trials, and in trainings to the end, at most."""
    several = config.finalists > 1
    others = OTHERS - several  # the runner-up is one of several finalists
    tried, trained = config.finalists + others, min(config.finalists, FULLY) + others
    return tried * len(grid_of(config)), trained * config.contest_seeds


def estimate_contest(session: Session[SearchConfig]) -> float:
    """Seconds of the contest, as if all contestants were like the largest cell of the search."""
    config, task, data = session.config, session.task, session.data
    cell = space_of(config).largest(config)
    sized = config_for(cell, config, task, data)
    valid, test = (task.positions(data, part) / 3 / task.positions(data, "train") for part in ("valid", "test"))
    tried, trained = networks_in(config)
    passes = (tried + trained) * (config.contest_epochs + valid) + trained * test
    side_by_side = max(config.contest_seeds, len(grid_of(config)))
    return seconds_per_network(sized, cell, passes, task, data, side_by_side=side_by_side)
