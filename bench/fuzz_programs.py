"""`python -m bench.fuzz_programs`: random programs in the native kernels against autograd of the reference, in fp64.

Each seed draws its own programs, sizes, masks and coupling, so any of them can be repeated alone.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tests.wenet_kernels.program_cases import drawn_case, error

BAR = 1e-9


@dataclass(frozen=True)
class Compared:
    seed: int
    programs: int
    error: float  # the largest of output, states and all derivatives; relative, in root mean square


def compare(seed: int) -> Compared:
    case = drawn_case(random.Random(seed))
    pairs = zip(case.results("cpu"), case.results("reference"), strict=True)
    return Compared(seed, case.batch.count, max(error(found, expected) for found, expected in pairs))


def summary(compared: Sequence[Compared]) -> str:
    programs, calls = sum(each.programs for each in compared), len(compared)
    worst = max(compared, key=lambda each: each.error)
    above = ", ".join(f"{sum(each.error > bar for each in compared)} above {bar:.0e}" for bar in (1e-13, 1e-12, BAR))
    largest = f"the largest {worst.error:.1e}, seed {worst.seed}"
    return f"{programs:,} programs in {calls:,} calls; errors: {above}; {largest}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=200, metavar="N", help="at least; default: %(default)s")
    parser.add_argument("--first-seed", type=int, default=0, metavar="SEED", help="default: %(default)s")
    options = parser.parse_args()
    torch.set_num_threads(1)
    compared: list[Compared] = []
    seed = options.first_seed
    while sum(each.programs for each in compared) < options.programs:
        compared.append(compare(seed))
        seed += 1
        if compared[-1].error > BAR:
            print(f"seed {compared[-1].seed}: {compared[-1].error:.1e}", flush=True)
    print(f"seeds {options.first_seed} to {seed - 1}: {summary(compared)}")
    raise SystemExit(any(each.error > BAR for each in compared))


if __name__ == "__main__":
    main()
