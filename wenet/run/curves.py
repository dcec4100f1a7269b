"""Curves of a run for TensorBoard, while it goes on."""

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
POINT_SECONDS = 1.0  # from one point of a curve to the next; windows between them are averaged


def require_tensorboard(wanted: bool) -> None:
    """Refuse `--tensorboard` where it cannot work, before a run begins.

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
        folder: where TensorBoard looks; None where no curves are wanted, and all calls do nothing.
        step: from which the run goes on; what a stopped process wrote beyond it is dropped.
    """

    def __init__(self, folder: Path | None, step: int) -> None:
        self._writer = None if folder is None else _import_writer()(str(folder), purge_step=step + 1, flush_secs=10)
        self._begin_point()

    def window(self, step: int, loss: float, tokens: int, more: Callable[[], Mapping[str, float]] = lambda: {}) -> None:
        """One window of training; `more` is asked for further curves whenever a point is due."""
        if self._writer is None:
            return
        self._losses.append(loss)
        self._tokens += tokens
        if time.monotonic() - self._begun >= POINT_SECONDS:
            self.values(step, more())

    def values(self, step: int, values: Mapping[str, float]) -> None:
        """A point of each of some curves, and of loss and throughput where windows are left that have none yet."""
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
