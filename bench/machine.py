"""The peak rate of the machine, fastest runs in turn, and the memory of a process."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

DENSE_SIZE = 2048
DENSE_ROUNDS = 3


class DenseRate:
    """The rate of `torch.mm` of two fp32 matrices of 2048 x 2048, sampled between other measurements."""

    def __init__(self) -> None:
        self.left, self.right = torch.randn(2, DENSE_SIZE, DENSE_SIZE).unbind(0)
        torch.mm(self.left, self.right)
        self.samples: list[float] = []  # GF/s

    def sample(self) -> None:
        for _ in range(DENSE_ROUNDS):
            started = time.perf_counter()
            torch.mm(self.left, self.right)
            self.samples.append(2 * DENSE_SIZE**3 / (time.perf_counter() - started) / 1e9)

    def median(self) -> float:
        return statistics.median(self.samples)


class PeakMemory:
    """The largest growth of this process since creation, in bytes; only Linux provides it."""

    def __init__(self) -> None:
        try:
            _release_free_memory()
            Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark, see proc(5)
            self.before: int | None = _memory("VmRSS")
        except (OSError, AttributeError):  # another system, or a C library other than glibc
            self.before = None

    def grown(self) -> int | None:
        return None if self.before is None else _memory("VmHWM") - self.before


def _release_free_memory() -> None:
    """Return memory freed by earlier measurements to the system, or growth into it would go unnoticed."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def fastest(runs: Sequence[Callable[[], object]], clock: Callable[[], float], rounds: int) -> list[float]:
    """Seconds of each, run in turn once to warm up and then so many times."""
    seconds = [float("inf")] * len(runs)
    for count in range(rounds + 1):
        for place, run in enumerate(runs):
            started = clock()
            run()
            if count:
                seconds[place] = min(seconds[place], clock() - started)
    return seconds
