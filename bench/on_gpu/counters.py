"""Counts of NVIDIA's profiler for one launch of each main kernel."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "SchedulerStats", "WarpStateStats", "Occupancy")
METRICS = ("dram__bytes_read.sum", "dram__bytes_write.sum", "lts__t_bytes.sum", "gpu__time_duration.sum")
# The columns to keep, among hundreds: bytes, time, issued instructions, and reasons for waiting warps.
KEPT = re.compile(r"dram__bytes|lts__t_bytes|gpu__time_duration|issue_active|issued|issue_stalled|sm__warps_active")


def find_profiler() -> str | None:
    """Nsight Compute, on the path or in the installer's default place."""
    elsewhere = sorted(Path("/opt/nvidia/nsight-compute").glob("*/ncu"))
    return shutil.which("ncu") or (str(elsewhere[-1]) if elsewhere else None)


def profiler_command(profiler: str, log: Path, command: Sequence[str]) -> list[str]:
    """A command under the profiler, which leaves the clocks unchanged and records only the marked context."""
    options = ["--clock-control", "none", "--profile-from-start", "off", "--target-processes", "all"]
    sections = [part for section in SECTIONS for part in ("--section", section)]
    output = ["--metrics", ",".join(METRICS), "--csv", "--page", "raw", "--log-file", str(log)]
    return [profiler, *options, *sections, *output, *command]


def read_counters(log: str) -> dict[str, dict[str, float]]:
    """The kept metrics of each kernel, with its unit in the name, from a log with a row of names and one of units."""
    rows = list(csv.reader(line for line in log.splitlines() if line.startswith('"')))
    if len(rows) < 3:
        return {}
    names, units, *launches = rows
    found: dict[str, dict[str, float]] = {}
    for launch in launches:
        values = dict(zip(names, launch, strict=False))
        kept = {}
        for name, unit in zip(names, units, strict=False):
            number = values.get(name, "").replace(",", "")
            if KEPT.search(name) and re.fullmatch(r"-?[\d.]+(e[+-]?\d+)?", number):
                kept[f"{name} ({unit})" if unit else name] = float(number)
        found[values["Kernel Name"]] = kept
    return found
