"""`python -m bench.train_step`: a training step of the evaluation, and the same with a cell in plain PyTorch."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.machine import DenseRate, PeakMemory
from bench.peers import FUNCTIONS
from wenet import Genotype
from wenet.cells.published import load_genotype
from wenet.nn.language import LanguageModel
from wenet.nn.rnn import DagRNN

CLIP, RATE, WEIGHT_DECAY, TEMPORAL_REG = 0.25, 20.0, 8e-7, 1e-3  # of the evaluation; the time does not depend on them
DROPOUT_X, DROPOUT_H, DROPOUT_OUTPUT = 0.75, 0.25, 0.75


class EagerRNN(nn.Module):
    """A cell as research code for it is written: in every step one product of input and state, then node by node.

    Called like `DagRNN`, in its highway form; parameters weight_first `[I + H, 2H]` and weight_nodes, `[H, 2H]` each.
    """

    def __init__(
        self, input_size: int, hidden_size: int, genotype: Genotype, dropout_x: float = 0.0, dropout_h: float = 0.0
    ) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.genotype = input_size, hidden_size, genotype
        self.dropout_x, self.dropout_h = dropout_x, dropout_h
        self.weight_first = nn.Parameter(torch.empty(input_size + hidden_size, 2 * hidden_size))
        self.weight_nodes = nn.ParameterList(torch.empty(hidden_size, 2 * hidden_size) for _ in range(genotype.nodes))
        self.reset_parameters(0.04)

    def reset_parameters(self, bound: float) -> None:
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        rows = x.shape[1]
        h = x.new_zeros(rows, self.hidden_size) if h0 is None else h0[0]
        mask_x = functional.dropout(x.new_ones(rows, self.input_size), self.dropout_x, self.training)
        mask_h = functional.dropout(x.new_ones(rows, self.hidden_size), self.dropout_h, self.training)
        outputs = []
        for step in x.unbind(0):
            h = self._step(step * mask_x, h, mask_h)
            outputs.append(h)
        return torch.stack(outputs), h.unsqueeze(0)

    def _step(self, x: Tensor, h: Tensor, mask_h: Tensor) -> Tensor:
        states = [_gated(h, torch.cat([x, h * mask_h], -1) @ self.weight_first, torch.tanh)]
        for (activation, ancestor), weight in zip(self.genotype.recurrent, self.weight_nodes, strict=True):
            previous = states[ancestor]
            states.append(_gated(previous, (previous * mask_h) @ weight, FUNCTIONS[activation]))
        return torch.stack([states[node] for node in self.genotype.concat]).mean(0)  # [M, H]


def _gated(state: Tensor, product: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    c, u = product.chunk(2, -1)
    return state + torch.sigmoid(c) * (function(u) - state)


@dataclass(frozen=True)
class Shape:
    hidden: int
    rows: int
    steps: int
    vocabulary: int


def main() -> None:
    options = _options()
    genotype = load_genotype(options.cell)
    shapes = [Shape(hidden, options.data_batch, options.bptt, options.vocabulary) for hidden in options.hidden]
    results = [measure(shape, genotype, options.backend, options.pairs) for shape in shapes]
    print("\n".join(table(results)))
    if options.out:
        machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cell": options.cell}
        options.out.write_text(json.dumps({**machine, "results": results}, indent=2) + "\n")


def measure(shape: Shape, genotype: Genotype, backend: str, pairs: int) -> dict[str, Any]:
    """Time steps of both in turn, so that drifts in speed affect both; memory is measured for ours only."""
    grown = PeakMemory()
    size = shape.hidden
    ours = training_step(shape, DagRNN(size, size, genotype, "highway", DROPOUT_X, DROPOUT_H, backend))
    ours()
    peak_memory = grown.grown()
    eager = training_step(shape, EagerRNN(size, size, genotype, DROPOUT_X, DROPOUT_H))
    eager()
    dense = DenseRate()
    times = []
    for _ in range(pairs):
        dense.sample()
        times.append((_seconds(ours), _seconds(eager)))
    ratios = sorted(theirs / own for own, theirs in times)
    return {
        "hidden": shape.hidden,
        "data_batch": shape.rows,
        "bptt": shape.steps,
        "vocabulary": shape.vocabulary,
        "backend": backend,
        "seconds": statistics.median(own for own, _ in times),
        "eager_seconds": statistics.median(theirs for _, theirs in times),
        "times_as_fast": statistics.median(ratios),
        "times_as_fast_range": [ratios[0], ratios[-1]],
        "peak_memory_bytes": peak_memory,
        "dense_gflops": dense.median(),
    }


def training_step(shape: Shape, rnn: DagRNN | EagerRNN) -> Callable[[], None]:
    """Loss, gradients, clipping and update, as in `wenet-train`."""
    model = LanguageModel(shape.vocabulary, rnn, 0.2, DROPOUT_OUTPUT, dropout_word=0.1)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(model.parameters(), RATE, weight_decay=WEIGHT_DECAY, fused=True)
    tokens = torch.randint(shape.vocabulary, (shape.steps + 1, shape.rows))

    def step() -> None:
        loss, _, _ = model.loss(tokens[:-1], tokens[1:], None, 0.0, TEMPORAL_REG)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()

    return step


def _seconds(step: Callable[[], None]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def table(results: list[dict[str, Any]]) -> list[str]:
    return [
        "| hidden | batch | steps | a step | eager | times as fast (range) | peak memory |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {r['hidden']} | {r['data_batch']} | {r['bptt']} | {r['seconds']:.3f} s | {r['eager_seconds']:.3f} s | "
            f"{r['times_as_fast']:.2f} ({r['times_as_fast_range'][0]:.2f}-{r['times_as_fast_range'][1]:.2f}) | "
            + ("-" if r["peak_memory_bytes"] is None else f"{r['peak_memory_bytes'] / 1e9:.2f} GB")
            + " |"
            for r in results
        ),
    ]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time training steps of the evaluation in turn with an eager cell's.")
    parser.add_argument("--hidden", type=int, nargs="+", default=[850, 200], help="default: 850 200")
    parser.add_argument("--data-batch", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--bptt", type=int, default=35, help="default: %(default)s")
    parser.add_argument("--vocabulary", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--cell", default="darts-v2", help="default: %(default)s")
    parser.add_argument("--backend", default="auto", help="default: %(default)s")
    parser.add_argument("--pairs", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
