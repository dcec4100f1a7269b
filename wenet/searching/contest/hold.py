"""The contest that ends a search: its winner against other cells and PyTorch's layers, on equal terms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from wenet.cells import Cell
from wenet.files import written_whole
from wenet.run import Session
from wenet.run.budget import Budget
from wenet.searching.audit import final_ranking
from wenet.searching.contest.contestants import Contestant, contestants_of
from wenet.searching.contest.length import (
    Times,
    end_of_trainings,
    times_of_trainings,
    windows_of_trainings,
    windows_of_trials,
)
from wenet.searching.contest.model import RESULT, read_winner
from wenet.searching.contest.table import table_of
from wenet.searching.contest.trainings import Trained, by_contestant, named_by_rank, train_group
from wenet.searching.contest.trials import FOLDER, Trial, best_trials, places_to_train, try_all
from wenet.searching.settings import SearchConfig
from wenet.searching.shapes import grouped
from wenet.searching.space import identity
from wenet.searching.strategy import RECORDS, Best, Final, Record, strategy_of
from wenet.training import Cost
from wenet.words import counted
from wenet_kernels import WenetError


def hold_contest(session: Session[SearchConfig], best: Best) -> tuple[Best, dict[str, Any]]:
    """Train the finalists of a search beside their rivals; returns its winner and the contents of `contest.json`.

    Finalists are the first cells of the search, and if these are several, also rivals that took part in it. All have as
    many parameters as the settings name, or as the first cell has; PyTorch's layers have a few more rather than fewer.
    Each is tried at every rate of the settings' grid, with every weight decay, for as many windows as it trains (within
    a budget, for as many as half of its time allows) with a seed that is not used again, and trains as was best; of the
    finalists only rivals and the `FULLY` whose trials were the best. The finalist whose trainings are the best on the
    validation part is the winner; if rivals are among the finalists, the best of these, unless another is shown to beat
    it. The test part decides nothing.

    Raises:
        WenetError: as in `train_standalone`; also if a contest with other settings was begun in this folder.
        Stopped: a signal came; the same call resumes the contest.
    """
    contestants = contestants_of(session)
    architectures, configs = [each.architecture for each in contestants], [each.config for each in contestants]
    groups = grouped(architectures, configs, session.task)
    of_trials = windows_of_trials(session, groups)
    trials = [try_all(session, group, of_trials) for group in groups]
    tried = best_trials(session, groups, trials)
    going_on = places_to_train(contestants, tried, session.task.metric)
    times = times_of_trainings(session, groups, trials, going_on)
    windows = windows_of_trainings(session, times)
    session.console.say(_announced(session, contestants, going_on, windows))
    trained: list[Trained] = []
    trainings = []
    for number, whole in enumerate(groups):
        group = whole.only(going_on)
        if group is None:
            continue
        entrants = [contestants[place] for place in group.places]
        chosen = [tried[place] for place in group.places]
        with _in_its_time(session.budget, times, windows, number):
            trainings.append(train_group(session, group, entrants, chosen, windows))
        trained += by_contestant(session, group, entrants, chosen, trainings[-1])
    trained, trained_for = named_by_rank(trained, session.task.metric), [each.windows for each in trainings]
    cost = Cost.of(trials + trainings)
    result: dict[str, Any] = session.ranks.on_first(
        lambda: {
            **_settings(session),
            "windows": windows,
            "windows_trained": [min(trained_for), max(trained_for)],  # fewer where the time was up
            "network_windows": cost.network_windows,
            "seconds": cost.seconds,
            "trials": _trial_rows(session, contestants, tried, going_on),
            "contestants": table_of(session, trained),
        }
    )
    best = _confirmed(session, best, trained, sum(contestants[place].finalist for place in going_on))
    session.folder.write_json(RESULT, result)
    return best, result


def _in_its_time(
    budget: Budget | None, times: Sequence[Times], windows: int, number: int
) -> AbstractContextManager[None]:
    """A context in which the trainings of a group end when its share of the time is up; those before it have ended."""
    if budget is None:
        return nullcontext()
    until: float = budget.planned(
        f"end_of_training_{number + 1}", lambda: end_of_trainings(budget, times[number:], windows)
    )
    return budget.ending(until)


@contextmanager
def contest_withdrawn(session: Session[SearchConfig]) -> Iterator[None]:
    """A context without `contest.json`: the search writes a winner that its contest has yet to confirm. If the run is
    refused there, the former result is put back.

    Raises:
        WenetError: the trained winner of a former contest is gone or damaged.
    """
    path = session.folder.path
    session.ranks.on_first(lambda: _check_winner(path))
    if not session.ranks.first or not (path / RESULT).exists():
        yield
        return
    former = {name: (path / name).read_bytes() for name in (RESULT, "best.json") if (path / name).exists()}
    (path / RESULT).unlink()
    try:
        yield
    except WenetError:
        for name, content in former.items():
            with written_whole(path / name) as partial:
                partial.write_bytes(content)
        raise


def _check_winner(folder: Path) -> None:
    if (folder / RESULT).exists() and (folder / FOLDER).exists():
        read_winner(folder)


def _announced(
    session: Session[SearchConfig], contestants: Sequence[Contestant], going_on: Sequence[int], windows: int
) -> str:
    """What the trainings are, before they begin."""
    left = len(contestants) - len(going_on)
    finalists = sum(entrant.finalist for entrant in contestants)
    behind = f" ({finalists - left} of {finalists} finalists, by their trials)" if left else ""
    return (
        f"contest: {counted(len(going_on), 'contestant')}{behind}, "
        f"{counted(session.config.contest_seeds, 'training')} each, {counted(windows, 'window')}"
    )


def _confirmed(session: Session[SearchConfig], best: Best, trained: Sequence[Trained], finalists: int) -> Best:
    """The winner of the search, which several finalists may have become."""
    if finalists == 1:
        return best
    winner, metric = trained[0], session.task.metric
    values = [outcome.value for outcome in winner.outcomes]
    beaten = any(each.entrant.finalist and each.order(metric) < winner.order(metric) for each in trained)
    cell = winner.outcomes[0].cell
    best = best.after_final(Final(cell, _network_of(session, cell), values, winner.windows, finalists, beaten))
    session.folder.write_json("best.json", best.to_dict(metric))
    return best


def _network_of(session: Session[SearchConfig], cell: Cell) -> Record:
    """A cell's network in the last record of the search that has it, with what the record says of all; else empty."""
    config = session.config
    for each in final_ranking(session.folder.records(RECORDS), config.keep, strategy_of(config)):
        if identity(each.genotype) == identity(cell):
            return {**each.record, **each.record["networks"][each.place]}
    return {}


def _settings(session: Session[SearchConfig]) -> dict[str, Any]:
    """What all contestants have in common."""
    config = session.config
    return {
        "seeds": config.contest_seeds,
        "rates": config.rate_grid,
        "weight_decays": config.decay_grid,
    }


def _trial_rows(
    session: Session[SearchConfig],
    contestants: Sequence[Contestant],
    tried: Mapping[int, Trial],
    going_on: Sequence[int],
) -> list[dict[str, Any]]:
    """The best trial of each contestant, and whether it trained in full."""
    return [
        {
            "genotype": contestant.genotype,
            **tried[place].to_dict(session.task.metric),
            "trained": place in going_on,
        }
        for place, contestant in enumerate(contestants)
    ]
