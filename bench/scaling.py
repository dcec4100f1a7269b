"""`python -m bench.scaling`: the speed of networks divided among GPUs, on paper; nothing is measured."""

from __future__ import annotations

import argparse
from dataclasses import replace

from bench.cases import PAPER, Case
from bench.floors import CARDS, SIZES, count_backward, count_forward

# Seconds of a sum of a few kB over the GPUs of one machine and of eight machines. A guess, as they depend on links and
# libraries. A time step has one sum forward and one backward.
LATENCIES = {1: 25e-6, 8: 60e-6}
GPUS = 8  # of a machine


def step_seconds(case: Case, bandwidth: float, precision: str, ranks: int, latency: float) -> float:
    """Forward and backward of a time step: all bytes counted for a rank's networks, at the bandwidth, and two sums."""
    own = replace(case, networks=-(-case.networks // ranks))
    moved = count_forward(own, precision).total + count_backward(own, precision).total
    return moved / bandwidth + (2 * latency if ranks > 1 else 0.0)


def table(case: Case, bandwidth: float, precision: str, latencies: dict[int, float]) -> list[str]:
    """One GPU, a machine and eight: for as many networks as one GPU trains at once, and for as many on each."""
    one = step_seconds(case, bandwidth, precision, 1, 0.0)
    lines = [
        "| GPUs | machines | networks at once | on each GPU | µs a time step | networks a second, times one GPU's |",
        "|---|---|---|---|---|---|",
    ]
    for machines, latency in [(0, 0.0), *latencies.items()]:
        ranks = GPUS * machines or 1
        for networks in sorted({case.networks, case.networks * ranks}):
            seconds = step_seconds(replace(case, networks=networks), bandwidth, precision, ranks, latency)
            gain = networks / seconds / (case.networks / one)
            each = -(-networks // ranks)
            lines.append(f"| {ranks} | {machines or 1} | {networks:,} | {each} | {1e6 * seconds:.0f} | {gain:.1f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__)
    parser.add_argument("--card", choices=CARDS, default="h200")
    parser.add_argument("--precision", choices=SIZES, default="bf16", help="default: %(default)s")
    parser.add_argument("--networks", type=int, default=120, metavar="N", help="of one GPU; default: %(default)s")
    parser.add_argument("--bandwidth", type=float, metavar="TB/S", help="as measured, in place of the maker's figure")
    parser.add_argument(
        "--latency", type=float, nargs=2, metavar="US", help="of a sum within a machine and over eight, in µs"
    )
    options = parser.parse_args()
    bandwidth = CARDS[options.card].bandwidth if options.bandwidth is None else 1e12 * options.bandwidth
    latencies = LATENCIES
    if options.latency is not None:
        latencies = dict(zip(LATENCIES, (1e-6 * latency for latency in options.latency), strict=True))
    case = replace(PAPER, networks=options.networks)
    print("\n".join(table(case, bandwidth, options.precision, latencies)))


if __name__ == "__main__":
    main()
