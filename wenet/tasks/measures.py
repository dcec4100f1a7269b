"""How good predictions of sequences are: accuracy, macro-F1, and errors in the targets' own units."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from wenet.data import SeriesData
from wenet.tasks.task import Metric
from wenet_kernels import WenetError

METRICS = {
    "accuracy": Metric("accuracy", "accuracy", lower_is_better=False, places=3),
    "f1": Metric("macro-F1", "macro_f1", lower_is_better=False, places=3),
    "rmse": Metric("RMSE", "rmse", places=4),
    "mae": Metric("MAE", "mae", places=4),
    "mase": Metric("MASE", "mase", places=3),
}
OF_CLASSES, OF_NUMBERS, OF_FORECASTS = ("accuracy", "f1"), ("rmse", "mae"), ("rmse", "mae", "mase")


class Measure(ABC):
    """Gathers the predictions of n networks, batch by batch, and gives the metric of each, `[n]` float64."""

    @abstractmethod
    def add(self, outputs: Tensor, targets: Tensor, there: Tensor) -> None:
        """Count a batch.

        Args:
            outputs: `[n, M, K]`, or of all steps `[n, T, M, K]`.
            targets: `[M]` or `[M, K]`, or with T before.
            there: where there is a target, shaped like `[M]` or `[T, M]`.
        """

    @abstractmethod
    def value(self) -> Tensor:
        """The metric of all that was added."""


class Classified(Measure):
    """Accuracy or macro-F1: the mean over classes of 2 TP / (2 TP + FP + FN)."""

    def __init__(self, kind: str, classes: int) -> None:
        self.kind, self.classes = kind, classes
        self.counts: Tensor | float = 0.0  # of each target and prediction, [n, K, K]

    def add(self, outputs: Tensor, targets: Tensor, there: Tensor) -> None:
        found = outputs.argmax(-1)[:, there.bool()]  # [n, all]
        pairs = targets[there.bool()] * self.classes + found
        each = [torch.bincount(row, minlength=self.classes**2) for row in pairs.cpu()]
        self.counts = self.counts + torch.stack(each).double().unflatten(1, (self.classes, self.classes))

    def value(self) -> Tensor:
        assert isinstance(self.counts, Tensor)
        right = self.counts.diagonal(dim1=1, dim2=2)  # [n, K]
        if self.kind == "accuracy":
            return right.sum(1) / self.counts.sum((1, 2))
        wanted, found = self.counts.sum(2), self.counts.sum(1)
        seen = wanted + found > 0
        f1 = 2 * right / (wanted + found).clamp(min=1)
        return (f1 * seen).sum(1) / seen.sum(1)


class Errors(Measure):
    """RMSE, MAE, or MASE: the error in the unit of a target's mean change from step to step in training."""

    def __init__(self, kind: str, unit: Tensor) -> None:
        self.kind, self.unit = kind, unit  # [K], of standardised targets in what the metric counts
        self.total: Tensor | float = 0.0  # [n]
        self.count = 0

    def add(self, outputs: Tensor, targets: Tensor, there: Tensor) -> None:
        differences = (outputs.double() - targets)[:, there.bool()].cpu() * self.unit  # [n, all, K]
        each = differences.square() if self.kind == "rmse" else differences.abs()
        self.total = self.total + each.sum((1, 2))
        self.count += each[0].numel()

    def value(self) -> Tensor:
        assert isinstance(self.total, Tensor)
        mean = self.total / self.count
        return mean.sqrt() if self.kind == "rmse" else mean


def measure_of(kind: str, data: SeriesData) -> Measure:
    """An empty measure for the targets of some data."""
    if data.classes:
        return Classified(kind, len(data.classes))
    unit = data.scaling.target_scale
    if kind == "mase":
        if not (data.naive > 0).all():
            raise WenetError("--metric mase divides by a series' mean change, and one never changes; say --metric rmse")
        unit = unit / data.naive.repeat(data.horizon)
    return Errors(kind, unit)
