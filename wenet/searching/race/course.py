"""Cells on their way through a race: what they reached, and which of them go on."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import Any

from wenet.cells import Cell
from wenet.searching.paired import are_larger
from wenet.searching.race.rungs import ONE_IN, ONE_IN_EXTRAPOLATED
from wenet.tasks import Metric
from wenet.training import Origin, StandaloneResult

MOST = 1.5  # times as many as planned go on, at most, where some cannot be told from the last of these


@dataclass(frozen=True)
class Runner:
    """A cell that has finished a rung, or enters the race.

    Attributes:
        generation: the generation, from 0, in which it entered the race.
        networks: the places of its networks, from which the next rung continues.
        rate: the learning rate of its networks.
        held_out: their mean loss in each validation window of the rung, or on each sequence; infinite if one diverged.
        extrapolated: these losses extrapolated, where the rung compares cells by that; else empty.
        value: their mean metric.
        windows: on which each of them has trained, fewer than those of the rung if the time was up.
    """

    genotype: Cell
    generation: int
    networks: list[Origin] = field(default_factory=list)
    rate: float = math.nan
    held_out: list[float] = field(default_factory=list)
    extrapolated: list[float] = field(default_factory=list)
    value: float = math.nan
    windows: int = 0

    @property
    def compared(self) -> list[float]:
        """The losses by which the rung compares it."""
        return self.extrapolated or self.held_out

    @property
    def loss(self) -> float:
        return statistics.fmean(self.compared)

    @property
    def order(self) -> tuple[bool, int, float]:
        """By which cells of a rung are sorted: those that the time cut short are behind the others, and those that
        diverged behind these."""
        return not math.isfinite(self.loss), -self.windows, self.loss

    def to_dict(self, rung: int, metric: Metric) -> dict[str, Any]:
        finite = math.isfinite(self.loss)
        return {
            "genotype": str(self.genotype),
            metric.key: self.value if finite else None,
            "held_out_loss": statistics.fmean(self.held_out) if finite else None,
            **({"extrapolated_loss": self.loss if finite else None} if self.extrapolated else {}),
            "rate": self.rate,
            "windows": self.windows,
            "rung": rung + 1,
            "rounds_kept": rung,
            "generation": self.generation + 1,
        }


@dataclass
class Course:
    """The events of a race so far."""

    finished: list[list[Runner]]  # by rung
    gone_on: set[tuple[int, Cell]] = field(default_factory=set)  # rung and cell
    results: list[StandaloneResult] = field(default_factory=list)
    recorded: int = 0  # windows of networks, in the records so far

    def ranked(self, rung: int) -> list[Runner]:
        """All that ever finished a rung, the best first."""
        return sorted(self.finished[rung], key=lambda runner: runner.order)

    def standings(self) -> list[Runner]:
        """All cells, sorted by the rung they reached, then by loss."""
        reached: dict[Cell, Runner] = {}
        for rung in reversed(range(len(self.finished))):
            for runner in self.ranked(rung):
                reached.setdefault(runner.genotype, runner)
        return list(reached.values())

    def going_on(self, rung: int) -> list[Runner]:
        """Cells that finished a rung and may now go on for the first time; none from the last."""
        if rung + 1 == len(self.finished):
            return []
        ranked = self.ranked(rung)
        one_in = ONE_IN_EXTRAPOLATED if any(runner.extrapolated for runner in ranked) else ONE_IN
        better = -(-len(ranked) // one_in)
        last, most = ranked[better - 1], max(better, int(MOST * len(ranked) / one_in))
        allowed = ranked[:better] + [
            runner for runner in ranked[better:most] if not are_larger(runner.compared, last.compared)
        ]
        going = [runner for runner in allowed if (rung, runner.genotype) not in self.gone_on]
        self.gone_on |= {(rung, runner.genotype) for runner in going}
        return [runner for runner in going if math.isfinite(runner.loss)]
