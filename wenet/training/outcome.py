"""What a standalone training returns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from wenet.cells import Cell
from wenet.tasks import Metric
from wenet.training.architectures import Architecture, read_architecture


@dataclass(frozen=True)
class Outcome:
    """The result of training one network.

    Attributes:
        genotype: its cell, or the name of a layer.
        value: the task's metric on the validation part; infinitely bad if training diverged.
        train_loss: mean over the last twentieth of the training.
        diverged_at: the window in which training diverged.
        test: the metric on the test part, if the plan includes it.
        valid_loss: the loss on the validation part, which decides between equal metrics.
    """

    genotype: Architecture
    value: float
    train_loss: float | None
    diverged_at: int | None
    test: float | None = None
    valid_loss: float | None = None

    @property
    def cell(self) -> Cell:
        """The cell of a network that has one."""
        assert not isinstance(self.genotype, str)
        return self.genotype

    def to_dict(self, metric: Metric) -> dict[str, Any]:
        """Convert to JSON, with the metric under its own key."""
        values = {
            "genotype": str(self.genotype),
            metric.key: self.value if math.isfinite(self.value) else None,
            "train_loss": self.train_loss,
            "diverged_at": self.diverged_at,
            "valid_loss": self.valid_loss if self.diverged_at is None else None,
        }
        return values if self.test is None else {**values, "test": self.test if math.isfinite(self.test) else None}

    @classmethod
    def from_dict(cls, value: dict[str, Any], metric: Metric) -> Outcome:
        measured = metric.worst if value[metric.key] is None else value[metric.key]
        test = value.get("test")
        if "test" in value and test is None:  # measured, and not finite
            test = metric.worst
        loss = value.get("valid_loss")  # earlier versions had none
        architecture = read_architecture(value["genotype"])
        return cls(architecture, measured, value["train_loss"], value["diverged_at"], test, loss)

    def order(self, metric: Metric) -> tuple[float, float]:
        """What to sort by, the best first: the metric, and where it is equal the loss."""
        return metric.order(self.value), math.inf if self.valid_loss is None else self.valid_loss


@dataclass(frozen=True)
class StandaloneResult:
    """Outcomes of one training in the order of its cells, and its cost.

    Attributes:
        network_windows: networks times windows trained on.
        peak_memory: bytes.
        held_out: each network's loss in each validation window, `[windows][n]`, if the plan includes them.
    """

    outcomes: list[Outcome]
    network_windows: int
    seconds: float
    peak_memory: int
    held_out: list[list[float]] | None = None

    @property
    def windows(self) -> int:
        """Windows that each network was trained on."""
        return self.network_windows // len(self.outcomes)

    def to_dict(self, metric: Metric) -> dict[str, Any]:
        values = {**asdict(self), "outcomes": [outcome.to_dict(metric) for outcome in self.outcomes]}
        return values if self.held_out is not None else {k: v for k, v in values.items() if k != "held_out"}

    @classmethod
    def from_dict(cls, value: dict[str, Any], metric: Metric) -> StandaloneResult:
        return cls(**{**value, "outcomes": [Outcome.from_dict(outcome, metric) for outcome in value["outcomes"]]})

    @classmethod
    def of_parts(cls, parts: Sequence[StandaloneResult]) -> StandaloneResult:
        """Concatenate the results of parallel trainings in rank order."""
        return cls(
            [outcome for part in parts for outcome in part.outcomes],
            sum(part.network_windows for part in parts),
            max(part.seconds for part in parts),
            max(part.peak_memory for part in parts),
            _side_by_side([part.held_out for part in parts]),
        )


@dataclass(frozen=True)
class Cost:
    """What trainings took, one after another.

    Attributes:
        network_windows: networks times windows trained on.
        seconds: to a thousandth.
        peak_memory: bytes; 0 before the first training.
    """

    network_windows: int
    seconds: float
    peak_memory: int

    @classmethod
    def of(cls, results: Sequence[StandaloneResult]) -> Cost:
        return cls(
            sum(result.network_windows for result in results),
            round(sum(result.seconds for result in results), 3),
            max((result.peak_memory for result in results), default=0),
        )


def _side_by_side(parts: Sequence[list[list[float]] | None]) -> list[list[float]] | None:
    """Join losses of all ranks' networks, window by window."""
    measured = [part for part in parts if part is not None]
    windows = zip(*measured, strict=True)
    return [[loss for part in window for loss in part] for window in windows] if measured else None
