"""Windows over streams, the parts that a model reads at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

WINDOWS = ("fixed", "darts", "merity")  # ways to choose the lengths of a search's windows
USUAL_WINDOW = 0.95  # share of windows near the usual length; the others are near half of it
WINDOW_SD, SHORTEST_WINDOW, LONGER_AT_MOST = 5.0, 5, 20  # time steps


def windows_per_pass(streams: Tensor, steps: float) -> int:
    """The number of windows of `steps` steps in streams `[time, M]`; the last one may be shorter."""
    return math.ceil((len(streams) - 1) / steps)


def window(streams: Tensor, steps: int, index: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a window, `[T, M]` each, T <= steps; the targets are one step ahead."""
    return window_at(streams, index * steps, steps)


def window_at(streams: Tensor, start: int, steps: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of the window that begins at step `start`, `[T, M]` int64 each, T <= steps."""
    stop = min(start + steps, len(streams) - 1)
    read = streams[start : stop + 1].long()  # streams of characters are kept in less memory
    return read[:-1], read[1:]


def window_length(steps: int, kind: str = "merity") -> int:
    """The length of the next window, for one of the kinds `WINDOWS`.

    "merity" is a random number, mostly near `steps`, so that windows start at different words in each epoch; "darts" is
    `steps`, or occasionally half of it.
    """
    if kind == "fixed":
        return steps
    usual = bool(torch.rand(()) < USUAL_WINDOW)
    base = steps if usual else steps / 2
    if kind == "darts":
        return max(1, int(base))
    return min(max(SHORTEST_WINDOW, int(torch.normal(base, WINDOW_SD, ()))), steps + LONGER_AT_MOST)


def mean_window(steps: int, kind: str) -> float:
    """The mean of `window_length`, apart from its bounds."""
    return steps if kind == "fixed" else (USUAL_WINDOW + (1 - USUAL_WINDOW) / 2) * steps
