"""What searches found, beside what others found in the same searches, in words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy import stats

from wenet.tasks import Metric
from wenet.words import figure_and_spread


def written(values: Sequence[float], places: int) -> str:
    """Mean and standard deviation over searches, of those that have a value.

    Example:
        >>> written([1.5, 1.7, float("nan")], 2)
        '1.60 ± 0.14'
    """
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return ""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return figure_and_spread(statistics.fmean(values), spread, places)


def compared(winners: Sequence[float], others: Sequence[float], metric: Metric) -> str:
    """In how many searches the winner was better, in how many it was equal (the winner may be the other itself), and p
    of a paired t-test over searches, two-sided. Searches without the other count for nothing.

    Example:
        >>> compared([1.0, 1.1, 1.2], [1.5, 1.2, 1.5], Metric("perplexity", "perplexity"))
        '3 of 3, p 0.12'
        >>> compared([1.0, 1.1, 1.2], [1.0, 1.2, 1.5], Metric("perplexity", "perplexity"))
        '2 of 3 (1 equal), p 0.27'
    """
    pairs = [(one, other) for one, other in zip(winners, others, strict=True) if not math.isnan(other)]
    better = sum(metric.order(one) < metric.order(other) for one, other in pairs)
    equal = sum(one == other for one, other in pairs)
    counted = f"{better} of {len(pairs)}" + (f" ({equal} equal)" if equal else "")
    if len(pairs) < 3 or equal == len(pairs):
        return counted
    return f"{counted}, p {stats.ttest_rel(*zip(*pairs, strict=True)).pvalue:.2g}"
