"""The output of a command: lines, and a progress bar on a terminal."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from wenet.words import duration

PLAIN_LINE_SECONDS = 30.0


class Console:
    """Prints lines and a progress bar; `silent` prints nothing, `quiet` and non-terminals get no bar."""

    def __init__(self, quiet: bool = False, silent: bool = False) -> None:
        self.silent = silent
        self.with_bar = not quiet and not silent and sys.stderr is not None and sys.stderr.isatty()
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
