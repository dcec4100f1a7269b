"""`python -m bench.series_speed`: a training step of many gated cells that classify sequences, beside loops over them.

All cells have one hidden size. A round times every contestant once, and the best of all rounds counts, so that other
work on the machine hurts all alike; with one thread it is the processor's time that counts. Loops are timed on some of
the cells, and count as if all took as long.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.machine import DENSE_SIZE, PeakMemory, fastest
from wenet.cells.gated import random_mixed_programs
from wenet.nn import CellRNN, StandaloneCellRNN, StandaloneSequenceModels
from wenet_kernels import Program

CLASSES, DENSE = 10, "a dense product"


def main() -> None:
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    cells = random_mixed_programs(options.cells, (1, 2), range(2, 7), seed=1)
    some = random.Random(1).sample(cells, options.looped)
    inputs = torch.randn(options.steps, options.rows, options.features + 1)
    inputs[..., -1] = 1
    targets = torch.randint(CLASSES, (options.rows,))
    sizes = (options.features + 1, options.hidden)
    memory = PeakMemory()
    together = [
        models([cell for cell in cells if cell.states == states], *sizes) for states in {cell.states for cell in cells}
    ]
    steps_of(together, inputs, targets)
    grown = memory.grown()
    share = len(cells) / len(some)
    alone = [models([cell], *sizes) for cell in some]
    modules = [Eager(cell, *sizes) for cell in some]
    left, right = torch.randn(2, DENSE_SIZE, DENSE_SIZE).unbind(0)
    contestants: dict[str, tuple[Callable[[], object], float]] = {
        "all at once": (lambda: steps_of(together, inputs, targets), 1.0),
        "one after the other, native": (lambda: steps_of(alone, inputs, targets), share),
        "a loop over PyTorch modules": (lambda: steps_of(modules, inputs, targets), share),
        DENSE: (lambda: torch.mm(left, right), 1.0),
    }
    clock = time.process_time if options.threads == 1 else time.perf_counter
    best = fastest([step for step, _ in contestants.values()], clock, options.rounds)
    seconds = {name: share * one for (name, (_, share)), one in zip(contestants.items(), best, strict=True)}
    dense = 2 * DENSE_SIZE**3 / seconds.pop(DENSE) / 1e9  # GF/s
    weights = sum(cell.of_input * sizes[0] * sizes[1] + cell.of_values * sizes[1] ** 2 for cell in cells)
    rate = 6 * weights * options.steps * options.rows / seconds["all at once"] / 1e9
    print(f"{len(cells)} cells, hidden {options.hidden}, {options.rows} rows of {options.steps} steps")
    for name, value in seconds.items():
        print(f"{name}: {1e3 * value:.0f} ms a step, {value / seconds['all at once']:.1f} times all at once")
    print(f"rate {rate:.1f} GF/s, {rate / dense:.2f} of a dense product")
    if grown is not None:
        print(f"memory {grown / 2**20:.0f} MiB")


def models(cells: Sequence[Program], inputs: int, hidden: int) -> StandaloneSequenceModels:
    return StandaloneSequenceModels(StandaloneCellRNN(inputs, hidden, cells), CLASSES, "ce")


class Eager(torch.nn.Module):
    """A model of one cell by PyTorch's own operations, step by step."""

    def __init__(self, cell: Program, inputs: int, hidden: int) -> None:
        super().__init__()
        self.rnn = CellRNN(inputs, hidden, cell, backend="reference")
        self.head = torch.nn.Linear(hidden, CLASSES)

    def loss(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor]:
        output, _ = self.rnn(inputs)
        return (torch.nn.functional.cross_entropy(self.head(output[-1]), targets),)


def steps_of(models: Sequence[torch.nn.Module], inputs: Tensor, targets: Tensor) -> None:
    """Forward and backward of each."""
    for model in models:
        model.zero_grad()
        model.loss(inputs, targets)[0].backward()  # type: ignore[operator]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = {
        "cells": 64,
        "hidden": 32,
        "rows": 64,
        "steps": 100,
        "features": 8,
        "looped": 8,
        "rounds": 5,
        "threads": 1,
    }
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help="default: %(default)s")
    return parser


if __name__ == "__main__":
    main()
