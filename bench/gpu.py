"""`python bench/gpu.py`: everything that needs a GPU, in one command: parity, speed beside the floors, whole epochs."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
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
TARGETS = (PAPER_120, LARGE_CELL)
CASES = [*TARGETS, *(case for case in [*COMPARED, *SWEEPS] if case != LARGE_CELL)]
PRECISIONS = ("bf16", "tf32", "fp32")
OURS = {"triton bf16": "bf16", "triton tf32": "tf32", "triton": "fp32"}
COMPILED = "compile graphed"  # takes minutes to compile
# The batched peers run as CUDA graphs too, and those of bf16 have all operands in bf16.
PEERS = {
    "graphed bf16": "bf16",
    "graphed": "tf32",
    COMPILED: "tf32",
    "traced": "tf32",
    "reference": "tf32",
    "lstm": "tf32",
}
QUICK_PEERS = [name for name in PEERS if name != COMPILED]
PTB_TRAINING_TOKENS = 929_589
EVALUATION_ROWS, EVALUATION_STEPS = 64, 35
WARM_UP, TIMED_SECONDS, LEAST_CALLS, MOST_CALLS = 3, 0.4, 5, 100
TESTS = ("tests/wenet_kernels/test_triton_gpu.py", "tests/wenet_kernels/test_triton.py")


@dataclass
class Results:
    """What the JSON file holds; times are medians in seconds."""

    device: str
    versions: dict[str, str]
    bandwidth: float | None = None  # bytes a second that a copy reads and writes
    rates: dict[str, float] = field(default_factory=dict)  # operations a second by precision
    parity: dict[str, dict[str, Any]] = field(default_factory=dict)  # by section
    recurrence: list[dict[str, Any]] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)  # what was not measured, or not to its end, and why

    def floor(self, case: Case, precision: str, backward: bool, sequences: int = 1) -> float | None:
        """Least seconds on this GPU as it was measured; None where that failed."""
        if self.bandwidth is None or precision not in self.rates:
            return None
        return sequences * floor_seconds(case, Card(self.bandwidth, self.rates), precision, backward)


class Report:
    """The results of a run and the files that they are written to."""

    def __init__(self, results: Results, out: Path) -> None:
        self.results, self.out = results, out

    @classmethod
    def read(cls, out: Path) -> Report:
        return cls(Results(**json.loads(out.read_text(encoding="utf-8"))), out)

    def write(self) -> None:
        new = self.out.with_suffix(".new")
        new.write_text(json.dumps(asdict(self.results), indent=1) + "\n", encoding="utf-8")
        new.replace(self.out)  # at once: a section may be stopped at any time
        self.out.with_suffix(".md").write_text("\n".join(table(self.results)) + "\n", encoding="utf-8")

    def attempt(self, what: str, measure: Callable[[], None]) -> None:
        """A measurement that adds its figures to the results, or in their place why there are none."""
        try:
            measure()
        except Exception as error:  # compilers raise what they like; all else is measured all the same
            self.leave_out(what, reason(error))
        self.write()

    def leave_out(self, what: str, why: str) -> None:
        self.results.left_out[what] = why
        say(f"{what}: left out: {why}")


def measure_card(report: Report) -> None:
    """What the floors are made of."""
    results = report.results

    def bandwidth() -> None:
        results.bandwidth = measure_bandwidth()
        say(f"copies {results.bandwidth / 1e12:.2f} TB/s")

    def rate(precision: str) -> None:
        results.rates[precision] = measure_rate(precision)
        say(f"dense products, {precision}: {results.rates[precision] / 1e12:.0f} TF/s")

    report.attempt("bandwidth", bandwidth)
    for precision in PRECISIONS:
        report.attempt(f"dense rate, {precision}", functools.partial(rate, precision))


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


def pytest_command(choice: Sequence[str]) -> list[str]:
    """The tests of the Triton kernels on this GPU, in as many processes as can be: most of it is compiling."""
    parallel = ["-n", str(min(12, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
    return [sys.executable, "-m", "pytest", "-q", "-rs", "--tb=line", *parallel, *choice]


def check_parity(report: Report, name: str, choice: Sequence[str], limit: float) -> None:
    if importlib.util.find_spec("pytest") is None:
        report.leave_out(name, "pytest is not installed")
        return
    started = time.monotonic()
    code, output = run_for(pytest_command(choice), limit)
    lines = output.strip().splitlines() or [""]
    outcome = f"not finished after {limit:.0f} s" if code is None else lines[-1]
    seconds = time.monotonic() - started
    report.results.parity[name] = {"outcome": outcome, "exit_code": code, "seconds": seconds, "report": lines[-60:]}
    say(f"{name}: {outcome}")


def run_for(command: Sequence[str], limit: float, live: bool = False) -> tuple[int | None, str]:
    """Exit code, None where all that it started was stopped after `limit` seconds; and its output, if `live` stderr."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=None if live else output,
            stderr=output,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        return code, output.read()


def on_gpu(operands: Operands, dtype: torch.dtype = torch.float32) -> Operands:
    def moved(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach().to("cuda", dtype).requires_grad_()

    names = ("pre", "h0", "weight_hidden", "weight_nodes", "mix")
    tensors: dict[str, Any] = {name: moved(getattr(operands, name)) for name in names}
    grad_output = operands.grad_output.to("cuda", dtype)
    return replace(operands, grad_output=grad_output, **tensors)


def prepare_on_gpu(name: str, operands: Operands) -> Contestant:
    """A backend or a peer; operands are on the GPU already."""
    if name.startswith("graphed"):
        return prepare_traced(operands)
    if name == COMPILED:
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


def measure_contestant(results: Results, case: Case, name: str) -> Iterator[dict[str, Any]]:
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
        floor = results.floor(case, precision, backward)
        yield {
            "case": case.name,
            "contestant": name,
            "precision": precision,
            "backward": backward,
            "seconds": seconds,
            "first_call_seconds": first_call,
            "floor_seconds": floor,
            "over_floor": None if floor is None else seconds / floor,
            "peak_bytes": torch.cuda.max_memory_allocated() - before,
        }


def measure_recurrence(report: Report, pairs: Sequence[tuple[Case, str]]) -> None:
    """Cases with who computes them, in this order."""

    def measure(case: Case, name: str) -> None:
        for figure in measure_contestant(report.results, case, name):
            report.results.recurrence.append(figure)
            over = figure["over_floor"]
            say(
                f"{case.name:<12} {name:<16} {'both' if figure['backward'] else 'forward':<8}"
                f"{1e3 * figure['seconds']:9.3f} ms{'' if over is None else f', {over:6.2f} x the floor'}"
            )

    for case, name in pairs:
        report.attempt(f"{case.name}, {name}", functools.partial(measure, case, name))
        torch.cuda.empty_cache()


def other_pairs() -> list[tuple[Case, str]]:
    """All but the cases with targets, our bf16 first."""
    others = [case for case in CASES if case not in TARGETS]
    return [
        *((case, "triton bf16") for case in others),
        *((case, name) for case in TARGETS for name in OURS if name != "triton bf16"),
        *((case, name) for case in others if case in COMPARED for name in PEERS if name != COMPILED),
        *((case, name) for case in others for name in OURS if name != "triton bf16"),
    ]


def reason(error: Exception) -> str:
    """The first line of what an error says, with its kind."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def measure_epochs(report: Report) -> None:
    for what, measure, precision in (
        ("search epoch", measure_search_epoch, "bf16"),
        ("evaluation epoch", measure_evaluation_epoch, "bf16"),
        ("search epoch", measure_search_epoch, "fp32"),
    ):
        report.attempt(f"{what}, {precision}", functools.partial(measure, report.results, precision))
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
    floor = results.floor(case, precision, backward=True, sequences=windows)
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
    floor = results.floor(LARGE_CELL, precision, backward=True, sequences=windows)
    add_epoch(results, f"evaluation, d=850, {precision}", "random words", windows, seconds, floor)


def add_epoch(results: Results, what: str, text: str, windows: int, seconds: float, floor: float | None) -> None:
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
    least = "" if floor is None else f", floor of the recurrence {floor:.2f} s"
    say(f"{what}: {windows * seconds:.2f} s an epoch ({windows} windows){least}")


def table(results: Results) -> list[str]:
    """The figures as Markdown."""
    rates = ", ".join(f"{name} {rate / 1e12:.0f} TF/s" for name, rate in results.rates.items())
    copies = "unknown" if results.bandwidth is None else f"{results.bandwidth / 1e12:.2f} TB/s"
    lines = [f"{results.device}: copies {copies}; dense products {rates or 'unknown'}.", ""]
    lines += [f"- {name}: {parity['outcome']}" for name, parity in results.parity.items()]
    lines += [
        "",
        "| case | contestant | direction | ms | floor, ms | over the floor | peak memory, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in results.recurrence:
        lines.append(
            f"| {entry['case']} | {entry['contestant']} | {'both' if entry['backward'] else 'forward'} | "
            f"{1e3 * entry['seconds']:.3f} | {_milliseconds(entry['floor_seconds'])} | "
            f"{_digits(entry['over_floor'])} | {entry['peak_bytes'] / 1e9:.2f} |"
        )
    lines += ["", "| PTB epoch | s | floor of the recurrence, s | windows |", "|---|---|---|---|"]
    for epoch in results.epochs:
        lines.append(
            f"| {epoch['what']} ({epoch['text']}) | {epoch['epoch_seconds']:.2f} | "
            f"{_digits(epoch['floor_seconds'])} | {epoch['windows']} |"
        )
    lines += ["", *(f"- left out: {what}: {why}" for what, why in results.left_out.items())]
    return lines


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.3f}"


def _digits(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.2f}"


def say(line: str) -> None:
    print(line, flush=True)


# Each in a process of its own, so that a kernel that fails, crashes or hangs there spoils no other section.
SECTIONS: dict[str, Callable[[Report], None]] = {
    "card": measure_card,
    "paper shape": lambda report: measure_recurrence(
        report, [(PAPER_120, name) for name in ("triton bf16", *QUICK_PEERS)]
    ),
    "large cell": lambda report: measure_recurrence(
        report, [(LARGE_CELL, name) for name in ("triton bf16", *QUICK_PEERS)]
    ),
    "other cases": lambda report: measure_recurrence(report, other_pairs()),
    "epochs": measure_epochs,
    "compiled peers": lambda report: measure_recurrence(report, [(case, COMPILED) for case in TARGETS]),
}
# In this order, each with the share of the time that may have passed at its end: the most valuable first, and what one
# does not use is there for those after it.
SCHEDULE = {
    "parity at the main shapes": 0.12,
    "card": 0.16,
    "paper shape": 0.32,
    "large cell": 0.42,
    "other cases": 0.56,
    "epochs": 0.68,
    "compiled peers": 0.80,
    "parity": 1.0,
}
# The arguments of pytest.
PARITY = {"parity at the main shapes": (TESTS[0], "-k", "test_precisions"), "parity": TESTS}


def run_section(report: Report, name: str, limit: float) -> Report:
    """Run a section and read what it has added to the file."""
    command = [sys.executable, __file__, "--section", name, "--out", str(report.out.absolute())]
    code, errors = run_for(command, limit, live=True)
    report = Report.read(report.out)
    if code is None:
        report.leave_out(f"{name}, the rest of it", f"stopped after {limit:.0f} s")
    elif code != 0:
        report.leave_out(f"{name}, the rest of it", f"exit code {code}: {(errors.strip().splitlines() or [''])[-1]}")
    return report


def found_versions() -> dict[str, str]:
    versions = {"torch": torch.__version__, "cuda": str(torch.version.cuda), "python": sys.version.split()[0]}
    try:
        versions["triton"] = importlib.import_module("triton").__version__
    except Exception as error:  # it may be there and broken
        versions["triton"] = reason(error)
    return versions


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("gpu.json"), help="and a table beside it (default: %(default)s)"
    )
    parser.add_argument("--minutes", type=float, default=8.7, help="for all of it (default: %(default)s)")
    parser.add_argument("--no-parity", action="store_true", help="leave the tests out")
    parser.add_argument("--section", choices=SECTIONS, help="measure this alone, into the file of an earlier run")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("bench/gpu.py: this machine has no CUDA device that PyTorch can use", file=sys.stderr)
        return 2
    if options.section:
        SECTIONS[options.section](Report.read(options.out))
        return 0
    started = time.monotonic()
    report = Report(Results(torch.cuda.get_device_name(), found_versions()), options.out)
    say(report.results.device)
    for name, share in SCHEDULE.items():
        report.write()
        limit = started + share * 60 * options.minutes - time.monotonic()
        if name not in PARITY:
            report = run_section(report, name, limit)
        elif not options.no_parity:
            check_parity(report, name, PARITY[name], limit)
    report.write()
    say("\n".join(table(report.results)))
    return int(any(parity["exit_code"] for parity in report.results.parity.values()))


if __name__ == "__main__":
    sys.exit(main())
