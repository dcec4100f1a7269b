"""`python -m bench.standalone_speed`: training many standalone models at once against one after the other."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from wenet.cells.genotype import Genotype
from wenet.cells.space import random_genotypes
from wenet.run.machine import resolve_machine
from wenet.searching.settings import SearchConfig, resolve_config
from wenet.tasks import LanguageModelling
from wenet.training.architectures import build_standalone
from wenet.training.estimate import timed_step

Clock = Callable[[], float]

ROUNDS = 3  # of which the fastest counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=24, metavar="N", help="default: %(default)s")
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[100, 2000, 10_000], metavar="V")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON file for the figures")
    parser.add_argument("--processor-time", action="store_true", help="of one thread, on a machine with other work")
    options = parser.parse_args()
    if options.processor_time:
        torch.set_num_threads(1)
    clock = time.process_time if options.processor_time else time.perf_counter
    config = resolve_machine(resolve_config("quick"))
    measured = [measure(config, options.cells, vocabulary, clock) for vocabulary in options.vocabularies]
    options.out.write_text(json.dumps(measured, indent=1) + "\n")
    print("\n".join(table(measured)))


def measure(config: SearchConfig, cells: int, vocabulary: int, clock: Clock) -> dict[str, Any]:
    """Seconds of one training window of all cells at once, and summed over the cells one by one."""
    genotypes = random_genotypes(cells, config.most_nodes, seed=1)
    return {
        "cells": cells,
        "vocabulary": vocabulary,
        "threads": torch.get_num_threads(),
        "at_once": _seconds(config, genotypes, vocabulary, clock),
        "one_by_one": sum(_seconds(config, [genotype], vocabulary, clock) for genotype in genotypes),
    }


def _seconds(config: SearchConfig, genotypes: Sequence[Genotype], vocabulary: int, clock: Clock) -> float:
    data = SimpleNamespace(vocabulary=range(vocabulary))
    model = build_standalone(config, genotypes, LanguageModelling(), data).to(config.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-6, fused=True)
    tokens = torch.randint(vocabulary, (config.bptt + 1, config.data_batch), device=config.device)
    return min(timed_step(model, optimizer, tokens[:-1], tokens[1:], clock) for _ in range(ROUNDS))


def table(measured: Sequence[dict[str, Any]]) -> list[str]:
    return [
        "| cells | words | threads | a window at once | one after the other | times as fast |",
        "|---|---|---|---|---|---|",
        *(
            f"| {m['cells']} | {m['vocabulary']:,} | {m['threads']} | {1e3 * m['at_once']:.0f} ms | "
            f"{1e3 * m['one_by_one']:.0f} ms | {m['one_by_one'] / m['at_once']:.2f} |"
            for m in measured
        ),
    ]


if __name__ == "__main__":
    main()
