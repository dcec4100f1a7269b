"""The trainings of a contest, and what they make of the finalists."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from wenet.run import Session
from wenet.searching.contest.contestants import RUNNER_UP, WINNER, Contestant
from wenet.searching.contest.trials import Trial, checks_in, place_of, where_others
from wenet.searching.paired import are_larger
from wenet.searching.settings import SearchConfig
from wenet.searching.shapes import Group
from wenet.tasks import Metric
from wenet.training import (
    Origin,
    Outcome,
    Plan,
    StandaloneResult,
    networks_left,
    train_standalone,
    windows_measured,
)


@dataclass(frozen=True)
class Trained:
    """The final trainings of a contestant.

    Attributes:
        trial: the best, whose rate and weight decay these have.
        outcomes, networks: one for each seed.
        windows: on which each was trained, fewer than planned if the time was up.
        held_out: of finalists, the mean loss in each validation window, or on each sequence; infinite if one of them
            diverged.
    """

    entrant: Contestant
    trial: Trial
    outcomes: list[Outcome]
    networks: list[Origin]
    windows: int
    held_out: list[float]

    def best(self, metric: Metric) -> int:
        """The training that was best on the validation part."""
        return min(range(len(self.outcomes)), key=lambda number: self.outcomes[number].order(metric))

    def order(self, metric: Metric) -> tuple[float, float]:
        """What to sort by, the best first: the mean metric on the validation part, and where it is equal the loss."""
        orders = [outcome.order(metric) for outcome in self.outcomes]
        return statistics.fmean(value for value, _ in orders), statistics.fmean(loss for _, loss in orders)

    def is_shown_to_beat(self, other: Trained, metric: Metric) -> bool:
        """Whether its mean metric on the validation part is better, and the losses there by a paired t-test too."""
        return self.order(metric)[0] < other.order(metric)[0] and are_larger(other.held_out, self.held_out)


def train_group(
    session: Session[SearchConfig],
    group: Group,
    entrants: Sequence[Contestant],
    chosen: Sequence[Trial],
    windows: int,
) -> StandaloneResult:
    """Run all trainings of all contestants in a group, at once."""
    seeds, has_finalists = session.config.contest_seeds, any(entrant.finalist for entrant in entrants)
    plan = Plan(
        [architecture for architecture in group.architectures for _ in range(seeds)],
        windows,
        session.config.seed + 1,
        rates=[trial.rate for trial in chosen for _ in range(seeds)],
        decay=True,
        leave=has_finalists,
        test=True,
        hidden=group.hidden(seeds),
        held_out=windows_measured(session.config, session.task, session.data, "valid") if has_finalists else None,
        checks=checks_in(session),
        weight_decays=where_others(session.config, [trial.weight_decay for trial in chosen for _ in range(seeds)]),
    )
    own, path = place_of(session, group, "training")
    names = " and ".join(entrant.name for entrant in entrants)
    return train_standalone(own, path, plan, f"contest, {names}")


def by_contestant(
    session: Session[SearchConfig],
    group: Group,
    entrants: Sequence[Contestant],
    chosen: Sequence[Trial],
    training: StandaloneResult,
) -> Iterator[Trained]:
    seeds = session.config.contest_seeds
    left = networks_left(*place_of(session, group, "training"), len(training.outcomes))
    for number, (entrant, trial) in enumerate(zip(entrants, chosen, strict=True)):
        own = slice(number * seeds, (number + 1) * seeds)
        held_out = [statistics.fmean(losses[own]) for losses in training.held_out or []]
        if any(outcome.diverged_at is not None for outcome in training.outcomes[own]):
            held_out = [math.inf] * len(held_out)
        yield Trained(entrant, trial, training.outcomes[own], left[own], training.windows, held_out)


def named_by_rank(trained: Sequence[Trained], metric: Metric) -> list[Trained]:
    """The winner first, as the validation part has it; then the other finalists, by their rank there. A rival keeps its
    name, and stands there twice if it is the winner: which it is unless another is shown to beat it."""
    finalists = sorted((each for each in trained if each.entrant.finalist), key=lambda each: each.order(metric))
    best = next((each for each in finalists if each.entrant.rival), finalists[0])
    if finalists[0].is_shown_to_beat(best, metric):
        best = finalists[0]
    cells = [each for each in finalists if each is not best and not each.entrant.rival]
    names = [RUNNER_UP, *(f"finalist {place}" for place in range(3, 2 + len(cells)))]
    ranked = [_renamed(best, WINNER), *(_renamed(each, name) for each, name in zip(cells, names, strict=False))]
    return [*ranked, *(each for each in trained if each.entrant.rival or not each.entrant.finalist)]


def _renamed(trained: Trained, name: str) -> Trained:
    return replace(trained, entrant=replace(trained.entrant, name=name))
