"""Numbers in words: figures, counts, durations and sizes, as lines and pages have them; and what is quoted."""

from __future__ import annotations

import math

DIGITS = 6  # at most, where that takes none before the point
LEAST, MOST = 1e-6, 1e9  # of a figure without an exponent
QUOTED = 40  # characters, at most


def duration(seconds: float) -> str:
    """Format seconds in words; minutes and hours have two figures, so that parts of a time nearly add up to it.

    >>> duration(89), duration(204), duration(720), duration(5400)
    ('89 s', '3.4 min', '12 min', '1.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.2g} min"
    if seconds < 36 * 3600:
        return f"{seconds / 3600:.2g} h"
    return f"{seconds / 86400:.0f} days"


def size(count: float) -> str:
    """Format bytes in words."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"


def figure(value: float | None, places: int = 2, missing: str = "unknown") -> str:
    """Format a number of a result; `missing` stands in if there is none.

    A small number has three digits, a large one no more than six but for those before the point.

    >>> figure(0.98765, 3), figure(0.0012345, 3), figure(1.2345e-12, 3), figure(1303885.7532, 4)
    ('0.988', '0.00123', '1.23e-12', '1303886')
    """
    return missing if value is None else f"{value:{_form(value, places)}}"


def figure_and_spread(mean: float | None, sd: float | None, places: int, missing: str = "unknown") -> str:
    """Mean and standard deviation, if there are several values."""
    if mean is None or sd is None:
        return figure(mean, places, missing)
    return f"{figure(mean, places)} ± {sd:{_form(mean, places)}}"


def _form(value: float, places: int) -> str:
    """How to format numbers of the size of `value`."""
    if not math.isfinite(value) or value == 0:
        return f".{places}f"
    if 10.0 ** (2 - places) <= abs(value) < MOST:
        return f".{max(0, min(places, DIGITS - 1 - math.floor(math.log10(abs(value)))))}f"
    return f".{2 - math.floor(math.log10(abs(value)))}f" if LEAST <= abs(value) < MOST else ".2e"


def counted(count: float, noun: str) -> str:
    """A number with its noun, such as "1 window", "2,000 windows" or "0.4 epochs"."""
    number = f"{count:,}" if isinstance(count, int) else f"{count:g}"
    return f"{number} {noun if count == 1 else plural(noun)}"


def plural(noun: str) -> str:
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def quoted(text: str) -> str:
    """A text in quotation marks; of a long one only the beginning, so that a message stays short.

    >>> quoted("zebra"), quoted(1000 * "a")
    ("'zebra'", "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'...")
    """
    return repr(text) if len(text) <= QUOTED else f"{text[:QUOTED]!r}..."


def share(part: float) -> str:
    """Format a share, to be followed by "of": "none", "all" or "25%"."""
    return "none" if part == 0 else "all" if part == 1 else f"{part:.0%}"
