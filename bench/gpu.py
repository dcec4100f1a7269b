"""`python bench/gpu.py`: everything that needs a GPU, in one command: parity, speed beside the floors, whole epochs."""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that the command runs from a checkout as it is

from bench.cases import COMPARED, LARGE_CELL, PAPER, SWEEPS, Case, Operands, make_operands
from bench.contestants import Contestant, prepare, prepare_traced
from bench.floors import Card, floor_seconds
from bench.peers import BatchedStep, batched_loop
from wenet.config import resolve_config
from wenet.genotypes import DARTS_V2
from wenet.launch import pytorch_products_in, resolve_machine
from wenet.nn import DagRNN, LanguageModel
from wenet_kernels import WenetError

PAPER_120 = replace(PAPER, name="paper-120", networks=120)
CASES = [PAPER_120, LARGE_CELL, *(case for case in [*COMPARED, *SWEEPS] if case != LARGE_CELL)]
PRECISIONS = ("bf16", "tf32", "fp32")
OURS = {"triton bf16": "bf16", "triton tf32": "tf32", "triton": "fp32"}
# The batched peers run as CUDA graphs too, and those of bf16 have all operands in bf16.
PEERS = {
    "graphed bf16": "bf16",
    "graphed": "tf32",
    "compile graphed": "tf32",
    "traced": "tf32",
    "reference": "tf32",
    "lstm": "tf32",
}
PTB_TRAINING_TOKENS = 929_589
EVALUATION_ROWS, EVALUATION_STEPS = 64, 35
WARM_UP, TIMED_SECONDS, LEAST_CALLS, MOST_CALLS = 3, 0.4, 5, 100
PARITY_SECONDS = 200


@dataclass
class Results:
    """What the JSON file holds; times are medians in seconds."""

    device: str
    versions: dict[str, str]
    bandwidth: float = 0.0  # bytes a second that a copy reads and writes
    rates: dict[str, float] = field(default_factory=dict)  # operations a second by precision
    parity: dict[str, Any] = field(default_factory=dict)
    recurrence: list[dict[str, Any]] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def card(self) -> Card:
        """This GPU as it was measured."""
        return Card(self.bandwidth, self.rates)


class Clock:
    """What is left of the time that the command may take."""

    def __init__(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds

    def left(self) -> float:
        return self.deadline - time.monotonic()


def measure_bandwidth() -> float:
    source = torch.empty(1 << 28, device="cuda")  # 1 GiB
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / seconds_of(lambda: target.copy_(source))


def measure_rate(precision: str, size: int = 8192) -> float:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = torch.randn(2, size, size, device="cuda").to(dtype).unbind(0)
    with float32_products("high" if precision == "tf32" else "highest"):
        return 2 * size**3 / seconds_of(lambda: left @ right)


class float32_products:
    """PyTorch's fp32 products in TF32 ("high") or not ("highest") within a block."""

    def __init__(self, precision: str) -> None:
        self.precision = precision

    def __enter__(self) -> None:
        self.before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.precision)

    def __exit__(self, *_: object) -> None:
        torch.set_float32_matmul_precision(self.before)


def seconds_of(call: Callable[[], object]) -> float:
    """Median time of a call on the GPU, launched back to back, so that the host is hidden where it can be."""
    for _ in range(WARM_UP):
        call()
    torch.cuda.synchronize()
    durations: list[float] = []
    started = time.monotonic()
    while len(durations) < LEAST_CALLS or (time.monotonic() - started < TIMED_SECONDS and len(durations) < MOST_CALLS):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        call()
        last.record()
        last.synchronize()
        durations.append(first.elapsed_time(last) / 1e3)
    return statistics.median(durations)


def run_parity(limit: float) -> dict[str, Any]:
    """The tests of the Triton kernels on this GPU, in as many processes as can be."""
    if importlib.util.find_spec("pytest") is None:
        return {"outcome": "pytest is not installed"}
    parallel = ["-n", str(min(12, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
    tests = ["tests/wenet_kernels/test_triton.py", "tests/wenet_kernels/test_triton_gpu.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "--tb=line", *parallel, *tests]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    started = time.monotonic()
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"outcome": f"not finished after {limit:.0f} s"}
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()]
    seconds = time.monotonic() - started
    return {"outcome": lines[-1], "exit_code": done.returncode, "seconds": seconds, "report": lines[-60:]}


def on_gpu(operands: Operands, dtype: torch.dtype = torch.float32) -> Operands:
    def moved(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach().to("cuda", dtype).requires_grad_()

    names = ("pre", "h0", "weight_hidden", "weight_nodes", "mix")
    tensors: dict[str, Any] = {name: moved(getattr(operands, name)) for name in names}
    grad_output = operands.grad_output.to("cuda", dtype)
    return replace(operands, cells=copy.deepcopy(operands.cells).cuda(), grad_output=grad_output, **tensors)


def prepare_on_gpu(name: str, operands: Operands) -> Contestant:
    """A backend or a peer; operands are on the GPU already."""
    if name.startswith("graphed"):
        return prepare_traced(operands)
    if name == "compile graphed":
        torch.compiler.reset()
        step = torch.compile(BatchedStep(operands), dynamic=False, fullgraph=True, mode="max-autotune-no-cudagraphs")
        eager = prepare_traced(operands)
        return replace(eager, forward=lambda: batched_loop(step, operands))
    return prepare(name, operands)


def graphed(call: Callable[[], object]) -> Callable[[], object]:
    """A call as one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def measure_contestant(case: Case, name: str, card: Card) -> Iterator[dict[str, Any]]:
    precision = {**OURS, **PEERS}[name]
    whole_bf16 = precision == "bf16" and name not in OURS
    operands = on_gpu(make_operands(case), torch.bfloat16 if whole_bf16 else torch.float32)
    contestant = prepare_on_gpu(name, operands)
    for backward in (False, True):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()

        def call(backward: bool = backward) -> None:
            contestant.run(backward)

        with float32_products("high" if precision == "tf32" else "highest"):
            started = time.monotonic()
            call()
            torch.cuda.synchronize()
            first_call = time.monotonic() - started
            seconds = seconds_of(graphed(call) if "graphed" in name else call) * contestant.calls
        floor = floor_seconds(case, card, precision, backward)
        yield {
            "case": case.name,
            "contestant": name,
            "precision": precision,
            "backward": backward,
            "seconds": seconds,
            "first_call_seconds": first_call,
            "floor_seconds": floor,
            "over_floor": seconds / floor,
            "peak_bytes": torch.cuda.max_memory_allocated() - before,
        }


def measure_recurrence(results: Results, clock: Clock, out: Path) -> None:
    """The cases with targets first, then the others, as long as there is time: most of it is spent on compiling."""
    targets = (PAPER_120, LARGE_CELL)
    others = [case for case in CASES if case not in targets]
    quick_peers = [name for name in PEERS if name != "compile graphed"]  # compiling takes minutes
    everything = [(case, name) for case in targets for name in [*OURS, *quick_peers]]
    everything += [(case, "triton bf16") for case in others]
    everything += [(case, name) for case in COMPARED if case not in targets for name in quick_peers]
    everything += [(case, "compile graphed") for case in targets]
    everything += [(case, name) for case in others for name in OURS if name != "triton bf16"]
    for case, name in everything:
        entry = {"case": case.name, "contestant": name}
        if clock.left() < 0:
            results.recurrence.append({**entry, "left_out": "no time left"})
            continue
        try:
            for figure in measure_contestant(case, name, results.card):
                results.recurrence.append(figure)
                say(
                    f"{case.name:<12} {name:<16} {'both' if figure['backward'] else 'forward':<8}"
                    f"{1e3 * figure['seconds']:9.3f} ms, {figure['over_floor']:6.2f} x the floor"
                )
        except Exception as error:  # compilers raise what they like; the others are measured all the same
            results.recurrence.append({**entry, "left_out": reason(error)})
            say(f"{case.name:<12} {name:<16} left out: {reason(error)}")
        torch.cuda.empty_cache()
        write(results, out)


def reason(error: Exception) -> str:
    """The first line of what an error says, with its kind."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def measure_epoch(results: Results, measure: Callable[[Results, str], None], precision: str) -> None:
    """An epoch, or in its place why there is none."""
    try:
        measure(results, precision)
    except Exception as error:  # as in `measure_recurrence`
        results.epochs.append({"what": f"{measure.__name__}, {precision}", "left_out": reason(error)})
        say(f"{measure.__name__}, {precision}: left out: {reason(error)}")
    torch.cuda.empty_cache()


def measure_search_epoch(results: Results, precision: str) -> None:
    """Training windows of a search at the paper's setting, on PTB where it is at hand, else on the embedded text."""
    from bench.profile_window import prepare_window

    config = resolve_machine(resolve_config("paper", {"dataset": "ptb", "device": "cuda", "precision": precision}))
    with tempfile.TemporaryDirectory() as folder, pytorch_products_in(config):
        try:
            run = prepare_window(config, config.networks, Path(folder) / "ptb", None)
        except WenetError:
            config = replace(config, dataset="sotu")
            run = prepare_window(config, config.networks, Path(folder) / "sotu", None)
        seconds = seconds_of(run)
    windows = -(-PTB_TRAINING_TOKENS // (config.data_batch * config.bptt))
    case = replace(PAPER_120, networks=config.networks)
    floor = windows * floor_seconds(case, results.card, precision, backward=True)
    add_epoch(results, f"search, paper setting, {precision}", config.dataset, windows, seconds, floor)


def measure_evaluation_epoch(results: Results, precision: str) -> None:
    """Training windows of one cell at d=850, with plain SGD."""
    model = LanguageModel(
        10_000,
        DagRNN(
            850, 850, DARTS_V2, dropout_x=0.75, dropout_h=0.25, precision="full" if precision == "fp32" else precision
        ),
        dropout_embedding=0.2,
        dropout_output=0.75,
    ).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    tokens = torch.randint(10_000, (EVALUATION_STEPS + 1, EVALUATION_ROWS), device="cuda")

    def run() -> None:
        loss, _, _ = model.loss(tokens[:-1], tokens[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    with float32_products("highest" if precision == "fp32" else "high"):
        seconds = seconds_of(run)
    windows = -(-PTB_TRAINING_TOKENS // (EVALUATION_ROWS * EVALUATION_STEPS))
    floor = windows * floor_seconds(LARGE_CELL, results.card, precision, backward=True)
    add_epoch(results, f"evaluation, d=850, {precision}", "random words", windows, seconds, floor)


def add_epoch(results: Results, what: str, text: str, windows: int, seconds: float, floor: float) -> None:
    """A PTB epoch by the median of its windows; its floor counts the recurrence alone."""
    results.epochs.append(
        {
            "what": what,
            "text": text,
            "windows": windows,
            "window_seconds": seconds,
            "epoch_seconds": windows * seconds,
            "floor_seconds": floor,
        }
    )
    say(f"{what}: {windows * seconds:.2f} s an epoch ({windows} windows), floor of the recurrence {floor:.2f} s")


def table(results: Results) -> list[str]:
    """The figures as Markdown."""
    rates = ", ".join(f"{name} {rate / 1e12:.0f} TF/s" for name, rate in results.rates.items())
    lines = [
        f"{results.device}: copies {results.bandwidth / 1e12:.2f} TB/s; {rates}. Parity: {results.parity['outcome']}.",
        "",
        "| case | contestant | direction | ms | floor, ms | over the floor | peak memory, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in results.recurrence:
        head = f"| {entry['case']} | {entry['contestant']} |"
        if "left_out" in entry:
            lines.append(f"{head} left out: {entry['left_out']} | | | | |")
        else:
            lines.append(
                f"{head} {'both' if entry['backward'] else 'forward'} | {1e3 * entry['seconds']:.3f} | "
                f"{1e3 * entry['floor_seconds']:.3f} | {entry['over_floor']:.2f} | {entry['peak_bytes'] / 1e9:.2f} |"
            )
    lines += ["", "| PTB epoch | s | floor of the recurrence, s | windows |", "|---|---|---|---|"]
    for epoch in results.epochs:
        lines.append(
            f"| {epoch['what']} ({epoch.get('text', '')}) | {epoch.get('epoch_seconds', float('nan')):.2f} | "
            f"{epoch.get('floor_seconds', float('nan')):.2f} | {epoch.get('windows', epoch.get('left_out'))} |"
        )
    return lines


def say(line: str) -> None:
    print(line, flush=True)


def write(results: Results, out: Path) -> None:
    out.write_text(json.dumps(asdict(results), indent=1) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text("\n".join(table(results)) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("gpu.json"), help="and a table beside it (default: %(default)s)"
    )
    parser.add_argument("--minutes", type=float, default=8.5, help="start nothing new after (default: %(default)s)")
    parser.add_argument("--no-parity", action="store_true", help="leave the tests out")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench/gpu.py: this machine has no CUDA device that PyTorch can use", file=sys.stderr)
        return 2
    clock = Clock(60 * options.minutes)
    versions = {"torch": torch.__version__, "cuda": str(torch.version.cuda), "python": sys.version.split()[0]}
    if importlib.util.find_spec("triton"):
        versions["triton"] = importlib.import_module("triton").__version__
    results = Results(torch.cuda.get_device_name(), versions)
    results.bandwidth = measure_bandwidth()
    results.rates = {precision: measure_rate(precision) for precision in PRECISIONS}
    say(f"{results.device}: copies {results.bandwidth / 1e12:.2f} TB/s")
    results.parity = {"outcome": "left out"} if options.no_parity else run_parity(PARITY_SECONDS)
    say(f"parity: {results.parity['outcome']}")
    write(results, options.out)
    for measure, precision in (
        (measure_search_epoch, "bf16"),
        (measure_evaluation_epoch, "bf16"),
        (measure_search_epoch, "fp32"),
    ):
        measure_epoch(results, measure, precision)
        write(results, options.out)
    measure_recurrence(results, clock, options.out)
    say("\n".join(table(results)))
    return int(bool(results.parity.get("exit_code")))


if __name__ == "__main__":
    sys.exit(main())
