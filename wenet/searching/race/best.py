"""The result of a race."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from wenet.searching.strategy import StandaloneBest, cells_in_words
from wenet.tasks import Metric
from wenet.words import counted, figure

ALL_DIVERGED = "all that were left diverged"


@dataclass(frozen=True)
class RaceBest(StandaloneBest):
    """The first cell of the last rung.

    Attributes:
        value: the metric on the validation part, as far as the rung was measured on it; the mean of its networks.
        windows: number of windows that its networks were trained on.
        networks_per_cell: number of its networks.
        mutations: how many of the cells are mutations of better ones; the others were drawn at random.
    """

    networks_per_cell: int
    mutations: int = 0
    more_training: ClassVar[str] = "--rungs"
    rate: ClassVar[str] = "--rates"
    first: ClassVar[str] = "the first cell of the race"

    def _field(self) -> str:
        return f"a race of {counted(self.networks_searched, 'cell')}"

    def _course(self) -> str:
        cells = cells_in_words(self.networks_searched, self.mutations)
        return (
            f"{cells} raced: their networks trained side by side, and at every rung those that did worse on held-out "
            "data left."
        )

    def _how_it_came_first(self, metric: Metric) -> str:
        which = f"first of {counted(self.networks_searched, 'cell')} in a race"
        if self.value is None:
            return f"{which}, by chance: {ALL_DIVERGED}"
        return (
            f"{which}: validation {metric.name} {figure(self.value, metric.places)} after "
            f"{counted(self.windows, 'window')} ({counted(self.networks_per_cell, 'network')})"
        )

    def _place(self, metric: Metric) -> str:
        if self.value is None:
            return f"This one came first by chance: {ALL_DIVERGED}."
        return (
            f"This one came first: after {counted(self.windows, 'window')} its validation {metric.name} was "
            f"{figure(self.value, metric.places)} ({counted(self.networks_per_cell, 'network')})."
        )
