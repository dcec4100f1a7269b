"""`python -m bench.search_speed`: whole runs of `wenet-search`, one backend and the reference in turn."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

BASELINE = "reference"


@dataclass(frozen=True)
class Cost:
    """Of one whole process."""

    seconds: float
    peak_memory: int  # bytes


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Time whole searches in pairs, so that a machine whose speed drifts slows both of a pair.",
        epilog="What follows -- goes to wenet-search (default: ptb --preset quick).",
    )
    parser.add_argument("--backend", default="auto", help="what is compared with the reference (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument("search", nargs="*", default=["ptb", "--preset", "quick"], metavar="ARGUMENT")
    options = parser.parse_args()
    pairs = []
    for number in range(options.pairs):
        own, baseline = run_search(options.search, options.backend), run_search(options.search, BASELINE)
        pairs.append((own, baseline))
        ratio = baseline.seconds / own.seconds
        print(f"pair {number + 1}/{options.pairs}: {own.seconds:.1f} s, {baseline.seconds:.1f} s, ratio {ratio:.2f}")
    print(f"\nwenet-search {' '.join(options.search)}, {options.pairs} pairs\n")
    print("\n".join(table(options.backend, pairs)))


def run_search(arguments: list[str], backend: str) -> Cost:
    """Run one search in its own process; its output is dropped unless it fails."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
        command = [str(Path(sys.executable).with_name("wenet-search")), *arguments]
        options = ["--backend", backend, "--quiet", "--out", str(Path(folder) / "run")]
        started = time.perf_counter()
        process = subprocess.Popen([*command, *options], stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        if status != 0:
            output.seek(0)
            raise SystemExit(output.read().decode())
    return Cost(seconds, 1024 * usage.ru_maxrss)


def table(backend: str, pairs: list[tuple[Cost, Cost]]) -> list[str]:
    """Medians in Markdown, and the speed-up of the backend, pair by pair."""
    ratios = sorted(baseline.seconds / own.seconds for own, baseline in pairs)
    rows = [(backend, [own for own, _ in pairs]), (BASELINE, [baseline for _, baseline in pairs])]
    return [
        "| backend | median | peak memory |",
        "|---|---|---|",
        *(
            f"| {name} | {statistics.median(cost.seconds for cost in costs):.1f} s | "
            f"{max(cost.peak_memory for cost in costs) / 1e9:.2f} GB |"
            for name, costs in rows
        ),
        "",
        f"{backend} over {BASELINE}: {statistics.median(ratios):.2f} times as fast, from {ratios[0]:.2f} to "
        f"{ratios[-1]:.2f} over the pairs.",
    ]


if __name__ == "__main__":
    main()
