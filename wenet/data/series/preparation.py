"""How sequences become examples, as the settings of a run have it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from wenet.data.series.series import Series


@dataclass(frozen=True)
class Preparation:
    """How sequences become examples.

    Attributes:
        kind: "classify", "regress", "forecast" or "label".
        classes: whether targets are classes, and not numbers.
        split: shares of the parts, where they are not given.
        seed: of the split.
        missing: "error", or "mask" to mark missing values by a feature more for each.
        constant: "error", or "keep" to allow features that do not vary in training.
        window, horizon, target: of forecasts; the target names columns, with commas between them.
    """

    kind: str
    classes: bool
    split: tuple[float, float, float]
    seed: int
    missing: str = "error"
    constant: str = "error"
    window: int = 0
    horizon: int = 0
    target: str | None = None

    def fingerprint(self, series: Series) -> str:
        """sha256 over everything that the parts follow from."""
        return hashlib.sha256(f"series 1 {series.fingerprint()} {self}".encode()).hexdigest()
