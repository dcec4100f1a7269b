"""Options of `pytest bench/`, and its additional output: the machine, and ratios within the run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from bench.machine import DenseRate
from wenet.version import VERSION


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--steps", type=int, metavar="T", help="time steps of every case, for a quick look (default: the case's own)"
    )


@pytest.fixture(scope="session", autouse=True)
def empty_compile_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Use an empty cache of compiled code, or an earlier run would hide the time of compiling."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        yield


@pytest.fixture(scope="session")
def dense_rate() -> DenseRate:
    return DenseRate()


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["threads"] = torch.get_num_threads()
    machine_info["versions"] = {"torch": torch.__version__, "wenet-rnn": VERSION}


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    """Add to each figure its speed relative to all other contestants at the same case."""
    entries = output_json["benchmarks"]
    for own in entries:
        info = own["extra_info"]
        info["faster_than"] = {
            other["extra_info"]["contestant"]: other["extra_info"]["seconds"] / info["seconds"]
            for other in entries
            if other["group"] == own["group"] and other is not own
        }
