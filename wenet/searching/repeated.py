"""Several searches: rank their winners by standalone training, and compare the cells they kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

from wenet.cells import cell_from_dict
from wenet.files import WRITTEN_AGAIN, read_json
from wenet.run import wait_until
from wenet.searching.audit import RESULT as AUDIT
from wenet.searching.audit import run_audit
from wenet.searching.settings import SearchConfig
from wenet.searching.shapes import largest_memory, train_cells
from wenet.searching.strategy import (
    RECORDS,
    Record,
    StandaloneBest,
    Strategy,
    cells_in_words,
    last_ranking,
    read_best,
    strategy_of,
    unfinished_part,
)
from wenet.tasks import Metric, Task
from wenet.training import training_windows
from wenet.words import counted, duration, figure, share


@dataclass(frozen=True)
class RepeatedBest(StandaloneBest):
    """The best of several searches' winners.

    Attributes:
        value: its validation metric after standalone training; None if all winners diverged.
        windows: number of windows of that training.
        ranking_seconds: seconds of that training.
        runs: the winners' outcomes, the best first.
        overlap: share of kept cells that two searches have in common, if all used one pool and nothing but that.
        mutations: how many of the cells are mutations of others.
        own: the contents of `best.json` of the search that found the cell.
    """

    ranking_seconds: float
    runs: list[dict[str, Any]]
    overlap: dict[str, float] | None
    own: dict[str, Any]
    mutations: int = 0
    more_training: ClassVar[str] = "--audit-epochs"
    rate: ClassVar[str] = "--standalone-lr"
    first: ClassVar[str] = "the best of the winners"

    @classmethod
    def _in_file(cls, values: dict[str, Any], metric: Metric) -> dict[str, Any]:
        found = super()._in_file(values, metric)
        return {**found.pop("own"), **found}

    @classmethod
    def _from_file(cls, values: dict[str, Any], metric: Metric) -> dict[str, Any]:
        return {**super()._from_file(values, metric), "own": values}

    def how_it_won(self, metric: Metric) -> str:
        runs = f"first of the winners of {len(self.runs)} runs after standalone training"
        return f"best of {counted(self.networks_searched, 'network')}: {runs}"

    def lines(self, metric: Metric) -> list[str]:
        cost = duration(self.ranking_seconds)
        lines = [f"runs      winners by standalone validation {metric.name}, {cost} of the cost:"]
        for run in self.runs:
            value = figure(run[metric.key], metric.places, "diverged")
            lines.append(f"          run {run['run']}: {value}  {run['genotype']}")
        if self.overlap is not None:
            lines.append(
                f"          of the cells that one run kept, another kept {share(self.overlap['share'])}; chance would "
                f"keep {self.overlap['by_chance']:.0%}"
            )
        return lines

    def sentences(self, metric: Metric) -> Iterator[str]:
        yield (
            f"Of {cells_in_words(self.networks_searched, self.mutations)}, searched in {len(self.runs)} runs, this one "
            f"won: the winners of all runs were trained standalone, and it has the best validation {metric.name}, "
            f"{figure(self.value, metric.places, 'diverged')}."
        )


class Repeated(Strategy):
    """Searches with different seeds, each in its own run folder in which it can be resumed; then their ranking.

    The ranking trains the winners of all runs at once and keeps the one with the best validation metric (paper, section
    4.1). Several processes divide the searches.
    """

    best_type = RepeatedBest
    stage = "run"

    def run(self) -> RepeatedBest:
        session, config = self.session, self.session.config
        folders = [session.folder.path / f"run-{number + 1}" for number in range(config.runs)]
        for number in range(session.ranks.rank, config.runs, session.ranks.count):
            session.console.say(f"run {number + 1}/{config.runs}")
            with session.part(folders[number], runs=1, seed=config.seed + number) as own:
                strategy_of(own.config)(own).run()
                if config.audit:
                    run_audit(own)
        wait_until(lambda: all(self._is_finished(path) for path in folders), session.interrupt, session.folder.path)
        return self._rank([session.folder.read_json(f"{folder.name}/best.json") for folder in folders])

    def _is_finished(self, folder: Path) -> bool:
        """Whether a run, possibly of another process, is finished."""
        if not (folder / "best.json").exists():
            return False
        config = replace(self.session.config, runs=1)
        value = read_json(folder / "best.json", WRITTEN_AGAIN, "genotype")
        best = read_best(value, config, self.session.task.metric)
        return unfinished_part(best, (folder / AUDIT).exists(), True, config) is None

    def _rank(self, bests: Sequence[dict[str, Any]]) -> RepeatedBest:
        """Rank the winners, given `best.json` of each run; `seconds` include runs and ranking."""
        session, config, metric = self.session, self.session.config, self.session.task.metric
        windows = training_windows(session, config.audit_epochs)
        winners = [cell_from_dict(best["genotype"]) for best in bests]
        path = session.folder.path / "ranking"
        training = train_cells(session, path, winners, windows, config.seed, "ranking")
        order = sorted(range(len(winners)), key=lambda number: training.outcomes[number].order(metric))
        first, mutations = bests[order[0]], sum(best.get("mutations", 0) for best in bests)
        of_one_pool = config.pool_seed is not None and not mutations
        best = RepeatedBest(
            genotype=winners[order[0]],
            value=training.outcomes[order[0]].to_dict(metric)[metric.key],
            windows=windows,
            rounds_kept=first["rounds_kept"],
            rounds=first["rounds"],
            rounds_planned=first["rounds_planned"],
            networks_searched=sum(best["networks_searched"] for best in bests),
            network_windows=sum(best["network_windows"] for best in bests) + training.network_windows,
            seconds=round(sum(best["seconds"] for best in bests) + training.seconds, 3),
            ranking_seconds=training.seconds,
            peak_memory_bytes=max(training.peak_memory, *(best["peak_memory_bytes"] for best in bests)),
            runs=[{"run": number + 1, **training.outcomes[number].to_dict(metric)} for number in order],
            overlap=overlap(self._kept(), config.pool) if of_one_pool else None,
            own=first,
            mutations=mutations,
        )
        session.folder.write_json("best.json", best.to_dict(metric))
        return best

    def _kept(self) -> list[list[str]]:
        """The K cells that each run kept in the end."""
        kept = []
        for number in range(self.session.config.runs):
            last = last_ranking(self.session.folder.records(f"run-{number + 1}/{RECORDS}"))
            kept.append([network["genotype"] for network in last["networks"][: self.session.config.keep]])
        return kept

    @classmethod
    def check(cls, config: SearchConfig, processes: int = 1) -> None:
        strategy_of(replace(config, runs=1)).check(config)  # each search is the work of one process

    @classmethod
    def memory(cls, config: SearchConfig, data: Any, processes: int) -> int:
        one = strategy_of(replace(config, runs=1)).memory(config, data, 1)
        return max(one, largest_memory(config, data, config.runs, processes))

    @classmethod
    def outline(cls, config: SearchConfig) -> str:
        return strategy_of(replace(config, runs=1)).outline(config)

    @classmethod
    def seconds(cls, config: SearchConfig, task: Task, data: Any) -> float | None:
        return strategy_of(replace(config, runs=1)).seconds(config, task, data)

    @classmethod
    def stages(cls, config: SearchConfig) -> int:
        return config.runs

    @classmethod
    def score(cls, record: Record, place: int) -> float:
        raise NotImplementedError("several runs have no records of their own")


def overlap(kept: Sequence[Sequence[str]], pool: int) -> dict[str, float]:
    """Mean share of kept cells that two searches of one pool have in common, and its value by chance."""
    shares = [len(set(a) & set(b)) / min(len(a), len(b)) for a, b in combinations(kept, 2)]
    return {"share": sum(shares) / len(shares), "by_chance": max(len(cells) for cells in kept) / pool}
