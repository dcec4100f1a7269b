"""`python -m bench.program_speed`: cells that are programs, beside PyTorch's layers, eager loops and dense products.

What is compared is run in turn, and the fastest round of each counts.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.jax_programs import JaxCells
from bench.machine import DENSE_SIZE, fastest
from wenet.nn import CellRNN, StandaloneCellRNN
from wenet.programs import random_programs
from wenet_kernels import ProgramBatch, cell_rnn
from wenet_kernels.programs import reference

Layer = type[nn.LSTM] | type[nn.GRU]
Clock = Callable[[], float]
Run = Callable[[], object]

JAX_HELP = "beside the same in JAX, as one interpreter of all cells (vmap, scan, switch) or with code of each cell"

LAYERS = [(nn.LSTM, 64, 32, 100), (nn.LSTM, 200, 20, 35), (nn.GRU, 64, 32, 100), (nn.GRU, 200, 20, 35)]  # H, M, T
CELLS, HIDDEN, ROWS, STEPS = 64, 32, 64, 100  # of the gated cells; as many features as hidden units
LARGE = 12, 200, 20, 35  # of fewer and larger ones, for products of a precision


@dataclass(frozen=True)
class Row:
    what: str
    direction: str
    seconds: float
    beside: str
    ratio: float  # above 1: faster than what it is beside


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="default: %(default)s")
    parser.add_argument("--compiled", type=int, default=0, metavar="N", help="gated cells to compile, some 30 s each")
    parser.add_argument("--jax", choices=("interpreter", "own-code"), nargs="+", default=[], help=JAX_HELP)
    parser.add_argument("--precision", metavar="NAME", help="only this: products of such factors beside fp32")
    parser.add_argument("--processor-time", action="store_true", help="of one thread, on a machine with other work")
    options = parser.parse_args()
    if options.processor_time:
        torch.set_num_threads(1)
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    clock = time.process_time if options.processor_time else time.perf_counter
    if options.precision:
        rows = precision_rows(options.precision, clock, options.rounds)
    else:
        rows = [row for shape in LAYERS for row in layer_rows(*shape, clock, options.rounds)]
        rows += gated_rows(clock, options.rounds, options.compiled, options.jax)
    print("\n".join(table(rows)))


def layer_rows(
    kind: type[nn.LSTM] | type[nn.GRU], hidden: int, batch: int, steps: int, clock: Clock, rounds: int
) -> list[Row]:
    """A layer beside PyTorch's with the same weights, and beside the same cell step by step in eager PyTorch."""
    torch.manual_seed(0)
    theirs = kind(hidden, hidden)
    own, eager = CellRNN.from_torch(theirs), CellRNN.from_torch(theirs)
    eager.backend = "reference"
    x, grad = torch.randn(2, steps, batch, hidden).unbind(0)
    name = f"{kind.__name__}, H={hidden}, M={batch}, T={steps}"
    rows = []
    for direction, run in (("forward", forward), ("both", both)):
        seconds = fastest([run(module, x, grad) for module in (own, theirs, eager)], clock, rounds)
        rows += beside(name, direction, seconds, [f"torch.nn.{kind.__name__}", "eager PyTorch"])
    return rows


def gated_rows(clock: Clock, rounds: int, compiled: int, jax: Sequence[str]) -> list[Row]:
    """Different gated cells at once beside dense products of as many operations, and beside loops over the cells."""
    torch.manual_seed(0)
    programs = random_programs(CELLS, states=1, seed=1)
    layer = StandaloneCellRNN(HIDDEN, HIDDEN, programs)
    x, grad = torch.randn(STEPS, ROWS, HIDDEN), torch.randn(STEPS, CELLS, ROWS, HIDDEN)
    operations = 2 * STEPS * ROWS * HIDDEN * HIDDEN * (layer.cells.weights + layer.cells.of_input)
    left, right = torch.randn(2, DENSE_SIZE, DENSE_SIZE).unbind(0)
    name = f"{CELLS} gated cells, H={HIDDEN}, M={ROWS}, T={STEPS}"
    rows = []
    for direction, run, passes in (("forward", forward, 1), ("both", both, 3)):
        own, dense = fastest([run(layer, x, grad), lambda: torch.mm(left, right)], clock, rounds)
        dense *= passes * operations / (2 * DENSE_SIZE**3)
        rows += beside(name, direction, [own, dense], ["torch.mm"])
        loop = [EagerCell(str(program)) for program in programs]
        rows += beside(name, direction, [own, *fastest([of_all(loop, run, x, grad[:, 0])], clock, 1)], ["eager loop"])
    for kind in jax:
        rows += jax_rows(layer, kind, x, grad, clock, rounds)
    if compiled:
        rows += compiled_rows(layer, compiled, x, grad, clock, rounds)
    return rows


def precision_rows(precision: str, clock: Clock, rounds: int) -> list[Row]:
    """Layers and gated cells with products of a precision, beside the same in fp32; also without the product of the
    input, which is of fp32 in both."""
    torch.manual_seed(0)
    layers: list[tuple[str, CellRNN | StandaloneCellRNN, int, int]] = [
        (kind.__name__, CellRNN.from_torch(kind(hidden, hidden)), batch, steps) for kind, hidden, batch, steps in LAYERS
    ]
    for cells, hidden, batch, steps in ((CELLS, HIDDEN, ROWS, STEPS), LARGE):
        gated = StandaloneCellRNN(hidden, hidden, random_programs(cells, states=1, seed=1))
        layers.append((f"{cells} gated cells", gated, batch, steps))
    rows = []
    for name, layer, batch, steps in layers:
        hidden = layer.hidden_size
        name += f", H={hidden}, M={batch}, T={steps}"
        pre = torch.randn(layer.cells.of_input, steps, batch, hidden).transpose(0, 1)
        rows += in_both(name, layer, torch.randn(steps, batch, hidden), precision, clock, rounds)
        rows += in_both(f"{name}: cells alone", CellsAlone(layer.cells, hidden), pre, precision, clock, rounds)
    return rows


def in_both(name: str, full: nn.Module, x: Tensor, precision: str, clock: Clock, rounds: int) -> list[Row]:
    own = deepcopy(full)
    own.precision = precision  # type: ignore[assignment]
    grad = torch.randn_like(full(x)[0])
    rows = []
    for direction, run in (("forward", forward), ("both", both)):
        seconds = fastest([run(module, x, grad) for module in (own, full)], clock, rounds)
        rows += beside(f"{name}, {precision}", direction, seconds, ["fp32"])
    return rows


class CellsAlone(nn.Module):
    """Independent cells behind a projected input `[T, X, M, H]`."""

    def __init__(self, cells: ProgramBatch, hidden: int) -> None:
        super().__init__()
        self.cells, self.precision = cells, "full"
        self.weight = nn.Parameter(torch.randn(cells.weights, hidden, hidden) * hidden**-0.5)
        self.vectors = nn.Parameter(torch.zeros(cells.vectors, hidden))

    def forward(self, pre: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        first = pre.new_zeros(self.cells.states, self.cells.count, *pre.shape[2:])
        return cell_rnn(pre, first, self.weight, self.vectors, None, self.cells, precision=self.precision)


def jax_rows(layer: StandaloneCellRNN, kind: str, x: Tensor, grad: Tensor, clock: Clock, rounds: int) -> list[Row]:
    """All cells beside the same in JAX, without the time to compile."""
    theirs = JaxCells(layer.cells, HIDDEN, interpreted=kind == "interpreter")
    weights = layer.operands()
    rows = []
    for direction, run, given in (("forward", forward, None), ("both", both, grad)):
        seconds = fastest([run(layer, x, grad), theirs.run(weights, x, given)], clock, min(rounds, 3))
        rows += beside(f"{CELLS} gated cells", direction, seconds, [f"JAX, {kind}"])
    return rows


def compiled_rows(
    layer: StandaloneCellRNN, compiled: int, x: Tensor, grad: Tensor, clock: Clock, rounds: int
) -> list[Row]:
    """All cells at once beside a loop over them, the step of each compiled. The loop is timed on some, and counts as if
    all took as long."""
    torch._dynamo.config.recompile_limit = 4 * CELLS  # all have the code of one function
    texts = [str(program) for program in layer.cells.programs]
    loop = [EagerCell(text, compiled=True) for text in texts[:: CELLS // compiled][:compiled]]
    rows = []
    for direction, run in (("forward", forward), ("both", both)):
        own, theirs = fastest([run(layer, x, grad), of_all(loop, run, x, grad[:, 0])], clock, min(rounds, 3))
        seconds = [own, theirs * CELLS / compiled]
        rows += beside(f"{CELLS} gated cells", direction, seconds, ["torch.compile'd steps"])
    return rows


class EagerCell(nn.Module):
    """One program, step by step in PyTorch; its step may be compiled."""

    def __init__(self, text: str, compiled: bool = False) -> None:
        super().__init__()
        batch = ProgramBatch(text)
        rows = batch.rows()
        self.states = batch.states
        self.weight_input = nn.Parameter(torch.randn(batch.of_input, HIDDEN, HIDDEN) * HIDDEN**-0.5)
        self.weight = nn.Parameter(torch.randn(batch.weights, HIDDEN, HIDDEN) * HIDDEN**-0.5)
        self.vectors = nn.Parameter(torch.zeros(batch.vectors, HIDDEN))

        def step(pre: Tensor, states: list[Tensor], weight: Tensor, vectors: Tensor) -> list[Tensor]:
            return reference.step(rows, 0, pre, states, weight, vectors)

        self.step = torch.compile(step, dynamic=False) if compiled else step

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        pre = torch.einsum("tmi,xih->txmh", x, self.weight_input)
        states = [x.new_zeros(x.shape[1], HIDDEN)] * self.states
        outputs = []
        for each in pre.unbind():
            *states, output = self.step(each, states, self.weight, self.vectors)
            outputs.append(output)
        return torch.stack(outputs), states


def forward(module: nn.Module, x: Tensor, grad: Tensor) -> Run:
    @torch.no_grad()
    def run() -> object:
        return module(x)

    return run


def both(module: nn.Module, x: Tensor, grad: Tensor) -> Run:
    """Forward, and the derivatives of input and parameters."""
    leaf = x.clone().requires_grad_()
    leaves = [leaf, *module.parameters()]
    return lambda: torch.autograd.grad(module(leaf)[0], leaves, grad, allow_unused=True)


def of_all(modules: Sequence[nn.Module], run: Callable[..., Run], x: Tensor, grad: Tensor) -> Run:
    runs = [run(module, x, grad) for module in modules]
    return lambda: [each() for each in runs]


def beside(what: str, direction: str, seconds: Sequence[float], names: Sequence[str]) -> list[Row]:
    """The first beside each of the others."""
    own, *others = seconds
    return [Row(what, direction, own, name, other / own) for name, other in zip(names, others, strict=True)]


def table(rows: Sequence[Row]) -> list[str]:
    return [
        f"{torch.get_num_threads()} thread(s), torch {torch.__version__}",
        "",
        "| cells as programs | | time | beside | times as fast |",
        "|---|---|---|---|---|",
        *(
            f"| {row.what} | {row.direction} | {1e3 * row.seconds:.1f} ms | {row.beside} | {row.ratio:.2f} |"
            for row in rows
        ),
    ]


if __name__ == "__main__":
    main()
