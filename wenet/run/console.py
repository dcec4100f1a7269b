"""The output of a command: lines, and a progress bar on a terminal."""

from __future__ import annotations

import math
import sys
import time

from tqdm import tqdm

PLAIN_LINE_SECONDS = 30.0


class Console:
    """Prints lines and a progress bar; `silent` prints nothing, `quiet` and non-terminals get no bar."""

    def __init__(self, quiet: bool = False, silent: bool = False) -> None:
        self.silent = silent
        self.with_bar = not quiet and not silent and sys.stderr.isatty()
        self._bar: tqdm[None] | None = None

    def say(self, text: str = "") -> None:
        if self.silent:
            return
        if self._bar is not None:
            self._bar.clear()
        print(text, flush=True)
        if self._bar is not None:
            self._bar.refresh()

    def start(self, total: int, done: int, unit: str = "window") -> None:
        """Start counting windows or another unit of work; `done` of `total` are done already."""
        self._total, self._done, self._first, self._unit = total, done, done, unit
        self._tokens = 0
        self._started = self._last_line = time.monotonic()
        if self.with_bar:
            self._bar = tqdm(total=total, initial=done, unit=unit, dynamic_ncols=True, smoothing=0.1)

    def advance(self, label: str, tokens: int, state: str, count: int = 1) -> None:
        """Report `count` more units with `tokens` tokens; `label` says where the run is, `state` how it goes."""
        now = time.monotonic()
        self._done += count
        self._tokens += tokens
        state = f"{state}, {self._tokens / (now - self._started):,.0f} tokens/s"
        if self._bar is not None:
            self._bar.set_description_str(label, refresh=False)
            self._bar.set_postfix_str(state, refresh=False)
            self._bar.update(count)
        elif now - self._last_line >= PLAIN_LINE_SECONDS:
            self._last_line = now
            each = (now - self._started) / (self._done - self._first)
            left = duration(each * (self._total - self._done))
            self.say(f"{label}, {self._unit} {self._done:,}/{self._total:,}, {state}, about {left} left")

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def duration(seconds: float) -> str:
    """Format seconds in words, to two figures."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 36 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.0f} days"


def size(count: float) -> str:
    """Format bytes in words."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"


def figure(value: float | None, places: int = 2, missing: str = "unknown") -> str:
    """Format a number of a result, a small one with three digits; `missing` stands in if there is none.

    >>> figure(0.98765, 3), figure(0.0012345, 3)
    ('0.988', '0.00123')
    """
    return missing if value is None else f"{value:.{_places(value, places)}f}"


def figure_and_spread(mean: float | None, sd: float | None, places: int, missing: str = "unknown") -> str:
    """Mean and standard deviation, if there are several values."""
    if mean is None or sd is None:
        return figure(mean, places, missing)
    return f"{figure(mean, places)} ± {sd:.{_places(mean, places)}f}"


def _places(value: float, places: int) -> int:
    small = math.isfinite(value) and 0 < abs(value) < 10.0 ** (2 - places)
    return 2 - math.floor(math.log10(abs(value))) if small else places


def counted(count: float, noun: str) -> str:
    """A number with its noun, such as "1 window", "2,000 windows" or "0.4 epochs"."""
    number = f"{count:,}" if isinstance(count, int) else f"{count:g}"
    return f"{number} {noun if count == 1 else plural(noun)}"


def plural(noun: str) -> str:
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def share(part: float) -> str:
    """Format a share, to be followed by "of": "none", "all" or "25%"."""
    return "none" if part == 0 else "all" if part == 1 else f"{part:.0%}"
