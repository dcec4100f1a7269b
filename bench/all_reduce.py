"""`torchrun --nproc-per-node 2 -m bench.all_reduce`: the cost of dividing networks among ranks, per time step."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from bench.cases import NODES, SEED
from wenet import random_genotypes
from wenet.nn.divided import DividedDagRNN
from wenet.nn.weighted import WeightedDagRNN
from wenet.parallel.ranks import ALONE, Ranks, joined

REPEATS = 15


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="torchrun --nproc-per-node N -m bench.all_reduce",
        description="Sums of a hidden state alone, and a training window of the networks of a search: all on one rank, "
        f"and divided. The least of {REPEATS} times each; PyTorch uses as many threads a rank as OMP_NUM_THREADS says.",
    )
    parser.add_argument("--device", default="cpu", help="cpu (gloo) or cuda (NCCL); default: %(default)s")
    for name, size in (("networks", 20), ("hidden", 200), ("rows", 20), ("steps", 35)):
        parser.add_argument(f"--{name}", type=int, default=size, metavar="N", help="default: %(default)s")
    options = parser.parse_args()
    with joined() as ranks:
        if ranks.alone:
            parser.error("start it with torchrun, on at least 2 ranks")
        device = torch.device(options.device)
        report(ranks, device, options.networks, options.hidden, options.rows, options.steps)


def report(ranks: Ranks, device: torch.device, networks: int, hidden: int, rows: int, steps: int) -> None:
    """Measure, and print the first rank's figures."""
    h = torch.randn(rows, hidden, device=device)
    sums = _seconds(ranks, device, lambda: [ranks.sum(h) for _ in range(steps)][-1])
    alone = _window(ALONE, device, networks, hidden, rows, steps)
    divided = _window(ranks, device, networks, hidden, rows, steps)
    on_one = _seconds(ranks, device, alone if ranks.first else lambda: None)
    on_all = _seconds(ranks, device, divided)
    if not ranks.first:
        return
    kind = "gloo" if device.type == "cpu" else "NCCL"
    print(f"{ranks.count} ranks, {kind}, {torch.get_num_threads()} threads a rank")
    print(f"{networks} networks, H={hidden}, M={rows}, T={steps}, {NODES} nodes, highway, norm batch, fp32\n")
    print("| | ms a window | µs a time step |\n|---|---|---|")
    for what, seconds in (
        (f"a sum of {4 * rows * hidden / 1000:g} kB after every step, nothing else", sums),
        ("forward and backward, all networks on one rank, the others idle", on_one),
        (f"forward and backward, divided over {ranks.count} ranks, sums included", on_all),
    ):
        print(f"| {what} | {1e3 * seconds:.1f} | {1e6 * seconds / steps:.0f} |")


def _window(
    ranks: Ranks, device: torch.device, networks: int, hidden: int, rows: int, steps: int
) -> Callable[[], object]:
    """Forward and backward of a layer whose networks these ranks divide among them."""
    genotypes = random_genotypes(networks, NODES, SEED)
    if ranks.alone:
        layer = WeightedDagRNN(hidden, hidden, genotypes, norm="batch")
    else:
        layer = DividedDagRNN(hidden, hidden, genotypes, ranks, norm="batch")
    layer.to(device)
    x = torch.randn(steps, rows, hidden, generator=torch.Generator().manual_seed(SEED)).to(device)

    def window() -> Tensor:
        output, _ = layer(x)
        loss = output.square().mean()
        loss.backward()
        return loss

    return window


def _seconds(ranks: Ranks, device: torch.device, work: Callable[[], object]) -> float:
    """The shortest of several calls that all ranks start together; other work on the machine only adds time."""
    samples = []
    for _ in range(REPEATS + 1):
        ranks.largest(0)
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        samples.append(time.perf_counter() - started)
    return min(samples[1:])


if __name__ == "__main__":
    main()
