"""The trainings of a contest, and what they make of the finalists."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from wenet.run import Session
from wenet.searching.contest.contestants import RUNNER_UP, WINNER, Contestant
from wenet.searching.contest.trials import Trial, checks_in, place_of, where_several
from wenet.searching.settings import SearchConfig
from wenet.searching.shapes import Group
from wenet.tasks import Metric
from wenet.training import Origin, Outcome, Plan, StandaloneResult, networks_left, train_standalone


@dataclass(frozen=True)
class Trained:
    """The final trainings of a contestant.

    Attributes:
        trial: the best, whose rate and weight decay these have.
        outcomes, networks: one for each seed.
    """

    entrant: Contestant
    trial: Trial
    outcomes: list[Outcome]
    networks: list[Origin]

    def best(self, metric: Metric) -> int:
        """The training that was best on the validation part."""
        return min(range(len(self.outcomes)), key=lambda number: self.outcomes[number].order(metric))

    def order(self, metric: Metric) -> tuple[float, float]:
        """What to sort by, the best first: the mean metric on the validation part, and where it is equal the loss."""
        orders = [outcome.order(metric) for outcome in self.outcomes]
        return statistics.fmean(value for value, _ in orders), statistics.fmean(loss for _, loss in orders)


def train_group(
    session: Session[SearchConfig],
    group: Group,
    entrants: Sequence[Contestant],
    chosen: Sequence[Trial],
    windows: int,
) -> StandaloneResult:
    """Run all trainings of all contestants in a group, at once."""
    seeds = session.config.contest_seeds
    plan = Plan(
        [architecture for architecture in group.architectures for _ in range(seeds)],
        windows,
        session.config.seed + 1,
        rates=[trial.rate for trial in chosen for _ in range(seeds)],
        decay=True,
        leave=any(entrant.finalist for entrant in entrants),
        test=True,
        hidden=group.hidden(seeds),
        checks=checks_in(session),
        weight_decays=where_several(session.config, [trial.weight_decay for trial in chosen for _ in range(seeds)]),
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
        yield Trained(entrant, trial, training.outcomes[own], left[own])


def named_by_rank(trained: Sequence[Trained], metric: Metric) -> list[Trained]:
    """The winner first, as the validation part has it; then the other finalists, by their rank there. A rival keeps its
    name, and stands there twice if it is the winner."""
    best, *finalists = sorted((each for each in trained if each.entrant.finalist), key=lambda each: each.order(metric))
    cells = [each for each in finalists if not each.entrant.rival]
    names = [RUNNER_UP, *(f"finalist {place}" for place in range(3, 2 + len(cells)))]
    ranked = [_renamed(best, WINNER), *(_renamed(each, name) for each, name in zip(cells, names, strict=False))]
    return [*ranked, *(each for each in trained if each.entrant.rival or not each.entrant.finalist)]


def _renamed(trained: Trained, name: str) -> Trained:
    return replace(trained, entrant=replace(trained.entrant, name=name))
