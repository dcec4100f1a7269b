"""Windows over streams: what a model reads at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

WINDOWS = ("fixed", "darts", "merity")  # how long the windows of a search are
USUAL_WINDOW = 0.95  # the share of windows around the usual length; the others are around half of it
WINDOW_SD, SHORTEST_WINDOW, LONGER_AT_MOST = 5.0, 5, 20  # time steps


def windows_per_pass(streams: Tensor, steps: float) -> int:
    """How many windows of `steps` steps streams `[time, M]` have; the last one may be shorter."""
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
    """Time steps of the next window of a kind of `WINDOWS`.

    "merity": a random number, mostly near `steps`, so that windows do not begin at the same words every epoch; "darts":
    `steps`, or now and then half of it.
    """
    if kind == "fixed":
        return steps
    usual = bool(torch.rand(()) < USUAL_WINDOW)
    base = steps if usual else steps / 2
    if kind == "darts":
        return max(1, int(base))
    return min(max(SHORTEST_WINDOW, int(torch.normal(base, WINDOW_SD, ()))), steps + LONGER_AT_MOST)


def mean_window(steps: int, kind: str) -> float:
    """What `window_length` comes to on average, but for its bounds."""
    return steps if kind == "fixed" else (USUAL_WINDOW + (1 - USUAL_WINDOW) / 2) * steps
