"""Trainings that choose a rate and a weight decay for each contestant, and the finalists that go on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wenet.run import Session
from wenet.searching.contest.contestants import Contestant
from wenet.searching.settings import FULLY, SearchConfig
from wenet.searching.shapes import Group
from wenet.tasks import Metric
from wenet.training import Outcome, Plan, StandaloneResult, train_standalone

FOLDER = "contest"
CHECKS = 20  # of a training on sequences of numbers, whose best weights count


@dataclass(frozen=True)
class Trial:
    """A training at one rate, with one weight decay."""

    rate: float
    weight_decay: float
    outcome: Outcome

    def to_dict(self, metric: Metric) -> dict[str, Any]:
        value = self.outcome.value
        return {
            "rate": self.rate,
            "weight_decay": self.weight_decay,
            metric.key: value if math.isfinite(value) else None,
        }


def grid_of(config: SearchConfig) -> list[tuple[float, float]]:
    """Pairs of a rate and a weight decay to try."""
    return list(itertools.product(config.rate_grid, config.decay_grid))


def try_all(session: Session[SearchConfig], group: Group, windows: int) -> StandaloneResult:
    """Train every contestant of a group at every rate with every weight decay."""
    grid = grid_of(session.config)
    plan = Plan(
        [architecture for architecture in group.architectures for _ in grid],
        windows,
        session.config.seed,
        rates=[rate for rate, _ in grid] * len(group.places),
        decay=True,
        hidden=group.hidden(len(grid)),
        checks=checks_in(session),
        weight_decays=where_others(session.config, [weight_decay for _, weight_decay in grid] * len(group.places)),
    )
    return train_standalone(*place_of(session, group, "trials"), plan, f"trials, {group.title}")


def best_trials(
    session: Session[SearchConfig], groups: Sequence[Group], trials: Sequence[StandaloneResult]
) -> dict[int, Trial]:
    """The best trial of each contestant by the validation metric, by its place."""
    grid, metric = grid_of(session.config), session.task.metric
    found = {}
    for group, trial in zip(groups, trials, strict=True):
        for number, place in enumerate(group.places):
            own = trial.outcomes[number * len(grid) : (number + 1) * len(grid)]
            each = (Trial(*pair, outcome) for pair, outcome in zip(grid, own, strict=True))
            found[place] = min(each, key=lambda one: one.outcome.order(metric))
    return found


def places_to_train(contestants: Sequence[Contestant], tried: Mapping[int, Trial], metric: Metric) -> list[int]:
    """The places of those that train in full: of the search's finalists those with the best trials, and all others."""
    finalists = [place for place, entrant in enumerate(contestants) if entrant.finalist and not entrant.rival]
    left_out = sorted(finalists, key=lambda place: tried[place].outcome.order(metric))[FULLY:]
    return [place for place in range(len(contestants)) if place not in left_out]


def where_others(config: SearchConfig, weight_decays: list[float]) -> list[float]:
    """Nothing where all have the weight decay of the settings."""
    return [] if config.decay_grid == [config.weight_decay] else weight_decays


def checks_in(session: Session[SearchConfig]) -> int:
    """A text is read too few times for a model to overfit."""
    return 0 if session.task.reads == "text" else CHECKS


def place_of(session: Session[SearchConfig], group: Group, what: str) -> tuple[Session[SearchConfig], Path]:
    return replace(session, config=group.config), session.folder.path / FOLDER / f"{what}-{group.name}"
