"""Timing on a GPU, the same for our kernels and for their peers."""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

WARM_UP, ROUNDS, ROUND_SECONDS, MOST_CALLS, MOST_SECONDS = 3, 7, 0.04, 1000, 2.0


class Gpu:
    """The current CUDA device, as the sections use it. Tests without a GPU use another object in its place."""

    kind = "cuda"

    def name(self) -> str:
        return torch.cuda.get_device_name()

    def cache_bytes(self) -> float:
        return float(torch.cuda.get_device_properties().L2_cache_size)

    def graphed(self, call: Callable[[], object]) -> Callable[[], object]:
        """Record a call as one CUDA graph."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def seconds_between(self, call: Callable[[], object], count: int) -> float:
        """Seconds of a number of calls between two events."""
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        for _ in range(count):
            call()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1e3

    def peak_bytes(self, call: Callable[[], object]) -> int:
        """The largest growth of memory during a call, in bytes."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def release(self) -> None:
        """Release the memory of earlier measurements."""
        torch.cuda.empty_cache()

    @contextmanager
    def profiled(self) -> Iterator[None]:
        """A context that a waiting profiler records."""
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        yield
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()

    def trace(self, call: Callable[[], object]) -> dict[str, Any]:
        """Trace a call in the format of Chrome."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
                call()
                torch.cuda.synchronize()
            profiler.export_chrome_trace(str(path))
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return found


def seconds_of(gpu: Gpu, call: Callable[[], object]) -> float:
    """Median time of a call, from several series of calls between two events."""
    for _ in range(WARM_UP):
        once = gpu.seconds_between(call, 1)
    count = max(1, min(MOST_CALLS, math.ceil(ROUND_SECONDS / max(once, 1e-9))))
    started, rounds = time.monotonic(), [gpu.seconds_between(call, count)]
    while len(rounds) < ROUNDS and time.monotonic() - started < MOST_SECONDS:
        rounds.append(gpu.seconds_between(call, count))
    return statistics.median(rounds) / count


@dataclass(frozen=True)
class Launch:
    """An activity of the GPU, in microseconds."""

    name: str
    start: float
    duration: float


def launches_in(trace: dict[str, Any]) -> list[Launch]:
    """Kernels, copies and fills, in the order of their starts."""
    found = [
        Launch(event["name"], float(event["ts"]), float(event["dur"]))
        for event in trace["traceEvents"]
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")
    ]
    return sorted(found, key=lambda launch: launch.start)


def summarise(launches: Sequence[Launch]) -> list[dict[str, Any]]:
    """For each kernel: launches, median duration, median gap to the activity before it; the most costly first.

    The last row is all of them, with the gaps in all as its gap.
    """
    if not launches:
        return []
    durations, gaps = defaultdict(list), defaultdict(list)
    ended = launches[0].start
    for launch in launches:
        durations[launch.name].append(launch.duration)
        gaps[launch.name].append(max(0.0, launch.start - ended))
        ended = max(ended, launch.start + launch.duration)
    rows = [
        _row(name[:80], found, statistics.median(found), statistics.median(gaps[name]))
        for name, found in durations.items()
    ]
    rows.sort(key=lambda row: -row["total_us"])
    everything = [launch.duration for launch in launches]
    idle = sum(sum(found) for found in gaps.values())
    return [*rows, _row("all", everything, statistics.median(everything), idle)]


def _row(name: str, durations: Sequence[float], each: float, gap: float) -> dict[str, Any]:
    return {"kernel": name, "launches": len(durations), "us": each, "gap_us": gap, "total_us": sum(durations)}
