"""Curves for TensorBoard, written while a run goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from wenet_kernels import WenetError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
POINT_SECONDS = 1.0  # between two points of a curve; the windows between them are averaged


def require_tensorboard(wanted: bool) -> None:
    """Check before a run begins that `--tensorboard` can work.

    Raises:
        WenetError: TensorBoard is not installed.
    """
    if wanted:
        _import_writer()


def _import_writer() -> type[SummaryWriter]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise WenetError('--tensorboard needs TensorBoard: pip install "wenet-rnn[tensorboard]"') from None
    return SummaryWriter


class Curves:
    """Loss and throughput by window, results by round or epoch.

    Args:
        folder: where TensorBoard looks; None if no curves are wanted, and then all calls do nothing.
        step: where the run goes on; points that a stopped process wrote beyond it are dropped.
    """

    def __init__(self, folder: Path | None, step: int) -> None:
        self._writer = None if folder is None else _import_writer()(str(folder), purge_step=step + 1, flush_secs=10)
        self._begin_point()

    def window(self, step: int, loss: float, tokens: int, more: Callable[[], Mapping[str, float]] = lambda: {}) -> None:
        """Count one window of training; whenever a point is due, `more` is called for further curves."""
        if self._writer is None:
            return
        self._losses.append(loss)
        self._tokens += tokens
        if time.monotonic() - self._begun >= POINT_SECONDS:
            self.values(step, more())

    def values(self, step: int, values: Mapping[str, float]) -> None:
        """Write a point of each given curve, and of loss and throughput since their last point."""
        if self._writer is None:
            return
        if self._losses:
            values = {
                "training/loss": sum(self._losses) / len(self._losses),
                "training/tokens per second": self._tokens / (time.monotonic() - self._begun),
                **values,
            }
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._begin_point()

    def histogram(self, step: int, name: str, values: Sequence[float]) -> None:
        if self._writer is not None:
            self._writer.add_histogram(name, torch.tensor(values), step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _begin_point(self) -> None:
        self._losses: list[float] = []
        self._tokens = 0
        self._begun = time.monotonic()
