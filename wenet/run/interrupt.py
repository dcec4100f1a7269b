"""Stop long work between two steps when a signal asks for it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType


class Stopped(Exception):
    """A signal ended the run early; its checkpoint holds everything up to then."""

    def __init__(self, signal_number: int, folder: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}; continue with --resume {folder}")
        self.signal_number = signal_number
        self.folder = folder


POLL_SECONDS = 0.1


class Interrupt:
    """A context in which SIGINT and SIGTERM only set `requested`; a second SIGINT stops at once."""

    def __init__(self) -> None:
        self.requested: int | None = None

    def __enter__(self) -> Interrupt:
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # the only thread that can set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = number


def wait_until(happened: Callable[[], bool], interrupt: Interrupt, folder: Path) -> None:
    """Wait for the other processes of a run, however long they take.

    Raises:
        Stopped: SIGINT or SIGTERM came; torchrun sends them to all ranks if one has died.
    """
    while not happened():
        if interrupt.requested is not None:
            raise Stopped(interrupt.requested, folder)
        time.sleep(POLL_SECONDS)
