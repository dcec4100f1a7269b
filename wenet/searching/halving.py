"""What a mixture is compared with: random cells under successive halving (Jamieson and Talwalkar 2016)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from wenet.cells import Cell, read_cell
from wenet.run import Session
from wenet.searching.settings import SearchConfig
from wenet.searching.shapes import by_shape, config_for, train_cells
from wenet.searching.space import draw_pool, pool_in_words
from wenet.searching.strategy import OF_MIXTURES, OF_RACES, RECORDS, Record, StandaloneBest, Strategy
from wenet.tasks import Metric, Task, task_of
from wenet.training import (
    Cost,
    Outcome,
    StandaloneResult,
    kind_of,
    seconds_per_measured,
    seconds_per_network,
    training_windows,
    windows_measured,
)
from wenet.words import counted, duration, figure

FOLDER = "rungs"


@dataclass(frozen=True)
class HalvingBest(StandaloneBest):
    """The best cell of the last rung.

    Attributes:
        value: its validation metric after standalone training; None if all cells diverged.
        windows: number of windows it was trained on in the last rung.
    """

    first: ClassVar[str] = "the best cell of the last rung"

    def _field(self) -> str:
        return f"successive halving of {counted(self.networks_searched, 'cell')}"

    def _course(self) -> str:
        cells = counted(self.networks_searched, "random cell")
        return (
            f"{cells} went through successive halving: the better half of each rung trained longer, from new weights."
        )

    def _how_it_came_first(self, metric: Metric) -> str:
        which = f"best of {counted(self.networks_searched, 'network')} by successive halving"
        if self.value is None:
            return f"{which}, by chance: all of the last rung diverged"
        return f"{which}: validation {metric.name} {figure(self.value, metric.places)} standalone"

    def _place(self, metric: Metric) -> str:
        if self.value is None:
            return "All that were trained last diverged, so this one comes first by chance."
        value = figure(self.value, metric.places)
        return f"Of the last that were trained standalone this one has the best validation {metric.name}, {value}."


class Halving(Strategy):
    """Successive halving over the pool of a search with the same settings.

    The budget equals that of the search, in windows of training times networks, and is divided equally among the rungs.
    Each rung trains its cells from new weights, at most `batch` at once. The half with the better validation metric
    reaches the next rung, where each cell is trained for twice as long.
    """

    best_type = HalvingBest
    stage = "rung"
    figures = ("rungs",)
    unread = (*OF_MIXTURES, *OF_RACES)

    def __init__(self, session: Session[SearchConfig]) -> None:
        super().__init__(session)
        self.config, self.folder, self.metric = session.config, session.folder, session.task.metric
        self.rungs = rungs(self.config)
        self._steps = session.task.window_steps(session.data, self.config)
        self.budget = network_rounds(self.config) * training_windows(session, self.config.epochs_per_round)

    def run(self) -> HalvingBest:
        """Run all rungs, resuming where they were stopped."""
        cells = draw_pool(self.config)
        results: list[StandaloneResult] = []
        for rung in range(len(self.rungs)):
            results += self._train_rung(rung, cells)
            outcomes = [outcome for result in results[-self._groups(cells) :] for outcome in result.outcomes]
            ranked = sorted(outcomes, key=lambda outcome: outcome.order(self.metric))
            self._record(rung, ranked, results)
            better = ranked[: -(-len(ranked) // 2)]
            cells = [outcome.cell for outcome in better]
        best = self._best(results)
        self.folder.write_json("best.json", best.to_dict(self.metric))
        return best

    def _groups(self, cells: Sequence[Cell]) -> int:
        return -(-len(cells) // self.config.batch)

    def _windows(self, rung: int) -> int:
        return max(1, self.budget // (len(self.rungs) * self.rungs[rung]))

    def _train_rung(self, rung: int, cells: Sequence[Cell]) -> list[StandaloneResult]:
        groups = self._groups(cells)
        return [
            train_cells(
                self.session,
                self.folder.path / FOLDER / f"{rung + 1}-{group + 1}",
                cells[group * self.config.batch : (group + 1) * self.config.batch],
                self._windows(rung),
                self.config.seed + rung,
                f"rung {rung + 1}/{len(self.rungs)}, group {group + 1}/{groups}",
            )
            for group in range(groups)
        ]

    def _record(self, rung: int, ranked: Sequence[Outcome], results: Sequence[StandaloneResult]) -> None:
        windows, best = self._windows(rung), ranked[0]
        losses = [outcome.train_loss for outcome in ranked if outcome.train_loss is not None]
        cost = Cost.of(results)
        reached = best.value if math.isfinite(best.value) else None
        record = {
            "round": rung + 1,
            "windows": windows,
            "tokens": windows * len(ranked) * self._steps * self.config.data_batch,  # of all networks
            "train_loss": sum(losses) / len(losses) if losses else None,
            f"valid_{self.metric.key}": reached,
            "seconds_so_far": cost.seconds,
            "peak_memory_bytes": cost.peak_memory,
            "networks": [{**outcome.to_dict(self.metric), "rounds_kept": rung} for outcome in ranked],
        }
        self.write_record(record)
        self.session.console.say(
            f"rung {rung + 1}/{len(self.rungs)} done after {duration(cost.seconds)}: {counted(len(ranked), 'cell')}, "
            f"{counted(windows, 'window')}, best validation {self.metric.name} "
            f"{figure(reached, self.metric.places, 'not finite, as all diverged')}: "
            f"{best.genotype}"
        )

    def _best(self, results: Sequence[StandaloneResult]) -> HalvingBest:
        last = self.folder.records(RECORDS)[-1]
        winner = last["networks"][0]
        return HalvingBest(
            genotype=read_cell(winner["genotype"]),
            value=winner[self.metric.key],
            windows=last["windows"],
            rounds_kept=winner["rounds_kept"],
            rounds=len(self.rungs),
            rounds_planned=len(self.rungs),
            networks_searched=self.config.pool,
            network_windows=Cost.of(results).network_windows,
            seconds=last["seconds_so_far"],
            peak_memory_bytes=last["peak_memory_bytes"],
        )

    @classmethod
    def memory(cls, config: SearchConfig, data: Any, processes: int) -> int:
        groups = by_shape(draw_pool(config), config, task_of(config), data)  # any of a kind may train at once
        return max(group.memory(data, min(config.batch, len(group.places)), processes) for group in groups)

    @classmethod
    def outline(cls, config: SearchConfig) -> str:
        return f"{pool_in_words(config)}, successive halving in {counted(len(rungs(config)), 'rung')}"

    @classmethod
    def seconds(cls, config: SearchConfig, task: Task, data: Any) -> float:
        """Estimated seconds, as if all cells of a kind were alike."""
        pool, seconds = draw_pool(config), 0.0
        for kind, count in Counter(map(kind_of, pool)).items():
            cell = next(cell for cell in pool if kind_of(cell) == kind)
            own, side_by_side = config_for(cell, config, task, data), min(config.batch, count)
            epochs = network_rounds(config) * config.epochs_per_round
            trained = seconds_per_network(own, cell, epochs, task, data, side_by_side)
            measured = seconds_per_measured(own, cell, task, data, side_by_side) * windows_measured(
                own, task, data, "valid"
            )
            seconds += count / len(pool) * (trained + sum(rungs(config)) * measured)
        return seconds

    @classmethod
    def stages(cls, config: SearchConfig) -> int:
        return len(rungs(config))

    @classmethod
    def score(cls, record: Record, place: int) -> float:
        """The number of rungs a cell reached, then its place in the last of them."""
        return float(record["round"] - place / len(record["networks"]))


def rungs(config: SearchConfig) -> list[int]:
    """The number of cells in each rung, halved until two are left, or one if the pool has only one."""
    counts = [config.pool]
    while counts[-1] > 2:
        counts.append(-(-counts[-1] // 2))
    return counts


def network_rounds(config: SearchConfig) -> int:
    """The number of networks that a search trains, counted once per round."""
    return config.pool + min(config.keep, config.batch) * (config.rounds - 1)
