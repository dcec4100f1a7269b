"""`pytest bench/`: all backends and peers at all cases, forward only and with backward."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.cases import CASES, Case, make_operands
from bench.contestants import Contestant, contestants_of, prepare
from bench.machine import DenseRate, PeakMemory
from wenet_kernels import WenetError

# At least five rounds, and at most fifty; between them as many as fit into a second.
LEAST_ROUNDS, MOST_ROUNDS, SECONDS = 5, 50, 1.0

DIRECTIONS = {"forward": False, "backward": True}
RUNS = [
    pytest.param(case, name, backward, id=f"{case.name}-{name.replace(' ', '-')}-{direction}")
    for case in CASES
    for direction, backward in DIRECTIONS.items()
    for name in contestants_of(case)
]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("case", "name", "backward"), RUNS)
def test_recurrence(
    case: Case, name: str, backward: bool, request: pytest.FixtureRequest, dense_rate: DenseRate,
    benchmark: BenchmarkFixture,
) -> None:  # fmt: skip
    case = replace(case, steps=request.config.getoption("--steps") or case.steps)
    benchmark.group = f"{case.name}, forward{' and backward' * backward}"
    memory = PeakMemory()
    try:
        contestant = prepare(name, make_operands(case))
        first_call = _seconds(contestant, backward)
    except WenetError as error:
        pytest.skip(str(error))
    benchmark.extra_info.update(
        case={**asdict(case), "cell": None if case.cell is None else str(case.cell)},
        contestant=name,
        backward=backward,
        memory_bytes=memory.grown(),
        first_call_seconds=first_call,
        **_measure(contestant, backward, benchmark, dense_rate),
    )


def _measure(
    contestant: Contestant, backward: bool, benchmark: BenchmarkFixture, dense_rate: DenseRate
) -> dict[str, Any]:
    """Time the contestant between two samples of the machine's dense rate."""
    rounds = min(MOST_ROUNDS, max(LEAST_ROUNDS, int(SECONDS / _seconds(contestant, backward))))
    dense_rate.samples.clear()
    dense_rate.sample()
    benchmark.pedantic(contestant.run, args=(backward,), rounds=rounds)
    dense_rate.sample()
    median = benchmark.stats.stats.median
    gflops = contestant.flops(backward) / median / 1e9
    return {
        "seconds": median * contestant.calls,  # for the work of the whole case
        "gflops": gflops,
        "dense_gflops": dense_rate.median(),
        "dense_gflops_range": [min(dense_rate.samples), max(dense_rate.samples)],
        "of_dense": gflops / dense_rate.median(),
    }


def _seconds(contestant: Contestant, backward: bool) -> float:
    started = time.perf_counter()
    contestant.run(backward)
    return time.perf_counter() - started
