"""When one cell counts as worse than another."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

SIGNIFICANCE = 0.05  # p below which losses count as larger


def are_larger(losses: Sequence[float], others: Sequence[float]) -> bool:
    """Whether losses are larger than others on the same windows or sequences, by a paired t-test.

    Infinite ones are those of a cell that diverged.
    """
    from scipy import stats  # takes a second to import

    if not (math.isfinite(sum(losses)) and math.isfinite(sum(others))):
        return not math.isfinite(sum(losses))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of cells that are nearly alike
        p = stats.ttest_rel(losses, others, alternative="greater").pvalue
    return bool(p < SIGNIFICANCE)
