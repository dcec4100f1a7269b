"""The losses by which a race compares cells."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from wenet.training import StandaloneResult

EXTRAPOLATED = 0.5  # an extrapolated loss is lower by so much of what the loss fell since half as many windows


def extrapolated(halfway: Sequence[float], last: Sequence[float]) -> list[float]:
    """The losses of a cell as they would be if they went on to fall.

    Small cells learn fast and are overtaken, and how fast the losses of others still fall tells by which.

    Args:
        halfway, last: its losses in the same windows after half of the training and after all; infinite if it diverged.

    Example:
        >>> extrapolated([2.0, 3.0], [1.5, 1.0])  # a loss that halved and more may be that of a network that recovered
        [1.25, 0.5]
    """
    return [
        after - EXTRAPOLATED * min(before - after, abs(after)) if math.isfinite(before + after) else after
        for before, after in zip(halfway, last, strict=True)
    ]


def of_cells(losses: Tensor, copies: int) -> list[list[float]]:
    """The mean losses of each cell's networks in all windows: `[windows, n]` -> `[n / copies][windows]`."""
    return [own.mean(1).tolist() for own in losses.split(copies, 1)]


def losses_of(result: StandaloneResult) -> Tensor:
    """The losses on held-out data of a training's networks, `[windows, n]`: infinite for those that diverged."""
    losses = torch.tensor(result.held_out, dtype=torch.float64)
    frozen = torch.tensor([outcome.diverged_at is not None for outcome in result.outcomes])
    return losses.masked_fill(frozen | ~losses.isfinite().all(0), math.inf)
