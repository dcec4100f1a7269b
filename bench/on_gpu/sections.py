"""The sections of `python bench/gpu.py`; measurements that fail are left out of the results."""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from bench.cases import Case, make_operands
from bench.contestants import PEERS, Contestant, prepare
from bench.floors import Card, find_floor
from bench.on_gpu import programs
from bench.on_gpu.ahead import ROOT, Compiling, without
from bench.on_gpu.choice import CHOICES, COMPILED, PRECISIONS, Choice
from bench.on_gpu.clock import Gpu, launches_in, seconds_of, summarise
from bench.on_gpu.results import Report, reason, say
from bench.parity import Deviation, check_parity, draw_operands, moved, results
from wenet.cells.published import DARTS_V2
from wenet.nn.language import LanguageModel
from wenet.nn.rnn import DagRNN
from wenet.run.machine import pytorch_products_in, resolve_machine
from wenet.searching.settings import resolve_config
from wenet_kernels import WenetError
from wenet_kernels import triton as backend

LOOP_STEPS = 5  # of the loop over many networks, whose graph would be too large; its time is proportional to the steps
PTB_TRAINING_TOKENS = 929_589
EVALUATION_ROWS, EVALUATION_STEPS = 64, 35
MAIN_KERNELS = ("step_forward", "step_backward", "weight_gradient")


@dataclass
class Bench:
    """What a section works with; `deadline` is a time of `time.monotonic`, at which its process is stopped."""

    report: Report
    gpu: Gpu
    choice: Choice
    deadline: float

    def attempt(self, what: str, measure: Callable[[], None]) -> None:
        if time.monotonic() > self.deadline:
            self.report.leave_out(what, "no time was left")
            return self.report.write()
        self.report.attempt(what, measure)
        self.gpu.release()

    def card(self) -> Card:
        """As it was measured.

        Raises:
            WenetError: a part of it could not be.
        """
        measured = self.report.results.card
        if not {"bandwidth", "rates"} <= measured.keys():
            raise WenetError("the card was not measured")
        return Card(**measured)


class float32_products:
    """PyTorch's fp32 products in TF32 ("high") or not ("highest") within a block."""

    def __init__(self, precision: str) -> None:
        self.precision = precision

    def __enter__(self) -> None:
        self.before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.precision)

    def __exit__(self, *_: object) -> None:
        torch.set_float32_matmul_precision(self.before)


# ---- parts of the floors


def measure_card(bench: Bench, elements: int = 1 << 28, size: int = 8192) -> None:
    """Bandwidth of memory and cache, dense rates, and the time between two launches."""
    card, gpu = bench.report.results.card, bench.gpu

    def versions() -> None:
        bench.report.results.device = gpu.name()
        bench.report.results.versions.update(found_versions())

    def bandwidth() -> None:
        card["bandwidth"] = copied_bytes(gpu, elements)
        say(f"copies {card['bandwidth'] / 1e12:.2f} TB/s")

    def cache() -> None:
        card["cache"] = gpu.cache_bytes()
        card["cache_bandwidth"] = copied_bytes(gpu, max(1, int(card["cache"]) // 16))  # both sides, half of it

    def rate(precision: str) -> None:
        card.setdefault("rates", {})[precision] = dense_rate(gpu, precision, size)
        say(f"dense products, {precision}: {card['rates'][precision] / 1e12:.0f} TF/s")

    def handover() -> None:
        card["handover"] = seconds_of_handover(gpu)
        say(f"a launch after another: {1e6 * card['handover']:.2f} µs")

    bench.attempt("versions", versions)
    bench.attempt("bandwidth", bandwidth)
    bench.attempt("cache", cache)
    for precision in dict.fromkeys(bench.choice.contestants.values()):
        bench.attempt(f"dense rate, {precision}", functools.partial(rate, precision))
    bench.attempt("handover", handover)


def copied_bytes(gpu: Gpu, elements: int, count: int = 20) -> float:
    """Bytes a second that copies of fp32 elements read and write, many in a graph, so that its own launch is hidden."""
    source = torch.rand(elements, device=gpu.kind)
    target = torch.empty_like(source)

    def copies() -> None:
        for _ in range(count):
            target.copy_(source)

    return count * 2 * source.numel() * 4 / seconds_of(gpu, gpu.graphed(copies))


def dense_rate(gpu: Gpu, precision: str, size: int) -> float:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = torch.randn(2, size, size, device=gpu.kind).to(dtype).unbind(0)
    with float32_products("high" if precision == "tf32" else "highest"):
        return 2 * size**3 / seconds_of(gpu, lambda: left @ right)


def seconds_of_handover(gpu: Gpu, count: int = 200) -> float:
    """Seconds of one of many launches in a graph, each of which reads the result of the one before."""
    number = torch.zeros(1, device=gpu.kind)

    def chain() -> None:
        for _ in range(count):
            number.add_(1)

    return seconds_of(gpu, gpu.graphed(chain)) / count


def found_versions() -> dict[str, str]:
    """Versions of the software, the driver and this checkout."""
    versions = {"python": sys.version.split()[0], "torch": torch.__version__, "cuda": str(torch.version.cuda)}
    try:
        import triton

        versions["triton"] = triton.__version__
    except Exception as error:  # it may be installed but broken
        versions["triton"] = reason(error)
    versions["driver"] = _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    versions["commit"] = _first_line("git", "-C", str(ROOT), "rev-parse", "--short=10", "HEAD")
    return versions


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return (done.stdout.strip().splitlines() or ["unknown"])[0]


# ---- correctness


def parity_names(choice: Choice) -> list[str]:
    """All checks of a stage; one that does not end has failed."""
    checks = [f"{case.name}, {precision}" for case in choice.targets for precision in choice.parity]
    return [*checks, *(f"{case.name}, {choice.repeats} repeats" for case in choice.targets), choice.programs.name]


def measure_parity(bench: Bench) -> None:
    """The targets in each precision against double precision, with memory that was NaN before."""
    name = bench.choice.main.split()[0]

    def check(case: Case, precision: str, seed: int) -> None:
        short = replace(case, steps=bench.choice.parity_steps)
        with float32_products("highest"), nan_in_new_memory():
            deviations = check_parity(short, precision, name, bench.gpu.kind, seed)
        add_deviations(bench, f"{case.name}, {precision}", deviations)

    for seed, case in enumerate(bench.choice.targets):
        for precision in bench.choice.parity:
            bench.attempt(f"{case.name}, {precision}", functools.partial(check, case, precision, seed))


def add_deviations(bench: Bench, name: str, deviations: Sequence[Deviation]) -> None:
    worst = max(deviations, key=lambda d: d.error / d.allowed if d.error == d.error else float("inf"))
    bench.report.add_parity(
        name,
        all(deviation.passed for deviation in deviations),
        f"worst is {worst.tensor}, off by {worst.error:.1e}, allowed {worst.allowed:.1e}",
        deviations=[vars(deviation) for deviation in deviations],
    )


class nan_in_new_memory:
    """A context in which new memory of kernels is filled with NaN."""

    def __enter__(self) -> None:
        def filled(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def poisoned(*arguments: object, **options: object) -> Tensor:
                made = make(*arguments, **options)
                return made.fill_(float("nan")) if made.is_floating_point() else made

            return poisoned

        backend._pool().lanes.clear()
        self.patches = [patch.object(torch, name, filled(getattr(torch, name))) for name in ("empty", "empty_like")]
        for each in self.patches:
            each.start()

    def __exit__(self, *_: object) -> None:
        for each in self.patches:
            each.stop()
        backend._pool().lanes.clear()


def measure_repeats(bench: Bench) -> None:
    """The same operands again and again: launched, recorded and replayed, all results are the same to the bit."""
    name, precision = bench.choice.main.split()[0], PRECISIONS[bench.choice.ours[bench.choice.main]]

    def repeat(case: Case) -> None:
        operands = moved(draw_operands(case, seed=7), bench.gpu.kind, torch.float32)
        first = results(operands, name, precision=precision)
        different = 0
        for _ in range(bench.choice.repeats - 1):
            again = results(operands, name, precision=precision)
            different += not all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in first)
        bench.report.add_parity(
            f"{case.name}, {bench.choice.repeats} repeats",
            different == 0 and finite,
            "all the same" if not different else f"{different} differ from the first",
            finite=finite,
        )

    for case in bench.choice.targets:
        bench.attempt(f"{case.name}, {bench.choice.repeats} repeats", functools.partial(repeat, case))


# ---- time of the recurrence


def measure_recurrence(bench: Bench, pairs: Sequence[tuple[Case, str]]) -> None:
    """Measure cases and contestants in this order, forward and with backward."""

    def measure(case: Case, name: str) -> None:
        contestant = ready(bench, case, name)
        for backward in (False, True):
            entry = timed(bench, case, name, contestant, backward)
            bench.report.results.recurrence.append(entry)
            over = entry["over_floor"]
            say(
                f"{case.name:<12} {name:<12} {'both' if backward else 'forward':<8}"
                f"{1e3 * entry['seconds']:9.3f} ms{'' if over is None else f', {over:6.2f} x the floor'}"
            )

    for case, name in pairs:
        bench.attempt(f"{case.name}, {name}", functools.partial(measure, case, name))


def ready(bench: Bench, case: Case, name: str) -> Contestant:
    """A backend or a peer with operands on the GPU."""
    base, _, _ = name.partition(" ")
    precision = bench.choice.contestants.get(name, "tf32")
    whole_bf16 = base in PEERS and precision == "bf16"
    long_graph = base == "loop" and case.networks > 1
    short = replace(case, steps=min(LOOP_STEPS, case.steps)) if long_graph else case
    operands = moved(make_operands(short), bench.gpu.kind, torch.bfloat16 if whole_bf16 else torch.float32)
    contestant = prepare(base if base in PEERS else name, operands)
    return replace(contestant, calls=contestant.calls * (case.steps // short.steps))


def timed(bench: Bench, case: Case, name: str, contestant: Contestant, backward: bool) -> dict[str, Any]:
    """Time a contestant, beside the floor of its case."""
    precision = bench.choice.contestants.get(name, "tf32")
    entry = timed_alone(bench, case.name, name, precision, contestant, backward)
    try:
        floor = find_floor(case, bench.card(), precision, backward)
    except (WenetError, KeyError):
        return entry
    return entry | {
        "floor_seconds": floor.seconds,
        "floor_by": floor.reason,
        "over_floor": entry["seconds"] / floor.seconds,
    }


def timed_alone(
    bench: Bench, case: str, name: str, precision: str, contestant: Contestant, backward: bool
) -> dict[str, Any]:
    """Time a contestant as replays of one CUDA graph, and as plain calls."""

    def call() -> None:
        contestant.run(backward)

    with float32_products("high" if precision == "tf32" else "highest"):
        started = time.monotonic()
        peak = bench.gpu.peak_bytes(call)
        first_call = time.monotonic() - started
        called = seconds_of(bench.gpu, call) * contestant.calls
        seconds = seconds_of(bench.gpu, bench.gpu.graphed(call)) * contestant.calls
    entry: dict[str, Any] = {"case": case, "contestant": name, "precision": precision, "backward": backward}
    entry |= {"seconds": seconds, "called_seconds": called, "first_call_seconds": first_call, "peak_bytes": peak}
    return entry | {"floor_seconds": None, "floor_by": "-", "over_floor": None}


def target_pairs(bench: Bench, case: Case) -> list[tuple[Case, str]]:
    return [(case, bench.choice.main), *((case, name) for name in bench.choice.peers)]


def other_pairs(choice: Choice) -> list[tuple[Case, str]]:
    """All but the targets, our main contestant first."""
    rest = [name for name in choice.ours if name != choice.main]
    return [
        *((case, choice.main) for case in choice.others),
        *((case, name) for case in choice.targets for name in rest),
        *((case, name) for case in choice.others for name in choice.peers if case.networks <= 20),
        *((case, name) for case in choice.others for name in rest),
    ]


def measure_programs(bench: Bench) -> None:
    """Cells that are programs: parity with NaN in new memory, then their time forward and with backward."""
    case = bench.choice.programs

    def check() -> None:
        with float32_products("highest"), nan_in_new_memory():
            deviations = programs.check(case, bench.choice.parity_steps, bench.gpu.kind, seed=3)
        add_deviations(bench, case.name, deviations)

    def measure() -> None:
        contestant = programs.contestant(case, bench.gpu.kind)
        for backward in (False, True):
            entry = timed_alone(bench, case.name, "triton", "fp32", contestant, backward)
            bench.report.results.recurrence.append(entry)
            say(f"{case.name:<12} {'both' if backward else 'forward':<8}{1e3 * entry['seconds']:9.3f} ms")

    bench.attempt(case.name, check)
    bench.attempt(f"time of {case.name}", measure)


def measure_kernels(bench: Bench) -> None:
    """Microseconds of each kernel and gaps between them, in one replay of forward and backward."""

    def profiled(case: Case) -> None:
        contestant = ready(bench, case, bench.choice.main)
        replay = bench.gpu.graphed(lambda: contestant.run(backward=True))
        replay()
        rows = summarise(launches_in(bench.gpu.trace(replay)))
        bench.report.results.kernels[case.name] = rows
        for row in rows:
            each = f"{row['launches']:5} x {row['us']:8.2f} µs, gap {row['gap_us']:.2f} µs"
            say(f"{case.name} {row['kernel'][:40]:<40} {each}")

    for case in bench.choice.targets:
        bench.attempt(f"kernels of {case.name}", functools.partial(profiled, case))


def measure_tricks(bench: Bench) -> None:
    """The first target without each trick, beside the same with all of them, measured in turn."""
    case, name = bench.choice.targets[0], bench.choice.main

    def seconds(trick: str | None, backward: bool) -> float:
        with without(trick):
            backend._pool().lanes.clear()
            contestant = ready(bench, case, name)
            found = seconds_of(bench.gpu, bench.gpu.graphed(lambda: contestant.run(backward)))
        backend._pool().lanes.clear()
        return found

    def measure(trick: str) -> None:
        for backward in (False, True):
            with_it, without_it = seconds(None, backward), seconds(trick, backward)
            entry = {"without": trick, "backward": backward, "seconds": without_it, "ratio": without_it / with_it}
            bench.report.results.tricks.append(entry)
            say(f"without {trick}, {'both' if backward else 'forward'}: {without_it / with_it:.3f} times as long")

    for trick in bench.choice.tricks:
        bench.attempt(f"without {trick}", functools.partial(measure, trick))


# ---- whole epochs


def measure_epochs(bench: Bench) -> None:
    for what, measure, precision in (
        ("search epoch", measure_search_epoch, "bf16"),
        ("evaluation epoch", measure_evaluation_epoch, "bf16"),
        ("search epoch", measure_search_epoch, "fp32"),
    ):
        bench.attempt(f"{what}, {precision}", functools.partial(measure, bench, precision))


def measure_search_epoch(bench: Bench, precision: str, preset: str = "paper", **settings: object) -> None:
    """Training windows of a search at the paper's setting, on PTB if available, else on the embedded text."""
    from bench.profile_window import prepare_window

    given = {"dataset": "ptb", "device": bench.gpu.kind, "precision": precision, **settings}
    config = resolve_machine(resolve_config(preset, given))
    with tempfile.TemporaryDirectory() as folder, pytorch_products_in(config):
        try:
            run = prepare_window(config, config.networks, Path(folder) / "first", None)
        except WenetError:
            config = replace(config, dataset="sotu")
            run = prepare_window(config, config.networks, Path(folder) / "second", None)
        seconds = seconds_of(bench.gpu, run)
    windows = -(-PTB_TRAINING_TOKENS // (config.data_batch * config.bptt))
    case = Case("", config.networks, config.hidden, config.data_batch, config.bptt, config.form)
    add_epoch(bench, f"search, {preset} setting, {precision}", config.dataset, windows, seconds, case, precision)


def measure_evaluation_epoch(bench: Bench, precision: str, size: int = 850, words: int = 10_000) -> None:
    """Training windows of one cell, with plain SGD."""
    cell = DagRNN(size, size, DARTS_V2, dropout_x=0.75, dropout_h=0.25, precision=PRECISIONS[precision])
    model = LanguageModel(words, cell, dropout_embedding=0.2, dropout_output=0.75).to(bench.gpu.kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    tokens = torch.randint(words, (EVALUATION_STEPS + 1, EVALUATION_ROWS), device=bench.gpu.kind)

    def run() -> None:
        loss, _, _ = model.loss(tokens[:-1], tokens[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    with float32_products("highest" if precision == "fp32" else "high"):
        seconds = seconds_of(bench.gpu, run)
    windows = -(-PTB_TRAINING_TOKENS // (EVALUATION_ROWS * EVALUATION_STEPS))
    case = Case("", 1, size, EVALUATION_ROWS, EVALUATION_STEPS, coupling="independent", cell=DARTS_V2)
    add_epoch(bench, f"evaluation, d={size}, {precision}", "random words", windows, seconds, case, precision)


def add_epoch(bench: Bench, what: str, text: str, windows: int, seconds: float, case: Case, precision: str) -> None:
    """A PTB epoch by the median of its windows; its floor counts the recurrence alone."""
    try:
        floor = windows * find_floor(case, bench.card(), precision, backward=True).seconds
    except (WenetError, KeyError):
        floor = None
    entry = {"what": what, "text": text, "windows": windows, "window_seconds": seconds, "floor_seconds": floor}
    bench.report.results.epochs.append(entry | {"epoch_seconds": windows * seconds})
    least = "" if floor is None else f", floor of the recurrence {floor:.2f} s"
    say(f"{what}: {windows * seconds:.2f} s an epoch ({windows} windows){least}")


# ---- for a profiler


def launch_once_each(bench: Bench) -> None:
    """Show a waiting profiler one launch of each main kernel, in the second time step."""
    from wenet_kernels.triton.workspace import Workspace

    launch, seen = Workspace._launch, dict.fromkeys(MAIN_KERNELS, 0)

    def watched(self: Workspace, kernel: object, grid: tuple[int, ...], *operands: object, **options: object) -> None:
        name = getattr(kernel, "fn").__name__  # noqa: B009  (kernels have no type)
        seen[name] = seen.get(name, 0) + 1
        chosen = name in MAIN_KERNELS and seen[name] == 2
        with bench.gpu.profiled() if chosen else nullcontext():
            launch(self, kernel, grid, *operands, **options)

    contestant = ready(bench, replace(bench.choice.targets[0], steps=2), bench.choice.main)
    with patch.object(Workspace, "_launch", watched):
        contestant.run(backward=True)


# ---- the processes


def smoke(bench: Bench) -> None:
    """The first look, in one process."""
    compiling = Compiling("smoke")
    measure_card(bench)
    compile_ahead(bench, compiling)
    measure_parity(bench)
    measure_repeats(bench)
    measure_recurrence(bench, [(case, bench.choice.main) for case in bench.choice.targets])
    measure_programs(bench)
    measure_kernels(bench)
    measure_tricks(bench)


def compile_ahead(bench: Bench, compiling: Compiling, most_seconds: float = 45) -> None:
    for failure in compiling.wait(min(bench.deadline, time.monotonic() + most_seconds)):
        bench.report.leave_out("kernels compiled ahead", failure)
    bench.report.write()


def paper_shape(bench: Bench) -> None:
    measure_card(bench)
    measure_recurrence(bench, target_pairs(bench, bench.choice.targets[0]))


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "smoke": smoke,
    "compiling": lambda bench: compile_ahead(bench, Compiling("main")),
    "paper shape": paper_shape,
    "large cell": lambda bench: measure_recurrence(bench, target_pairs(bench, bench.choice.targets[-1])),
    "epochs": measure_epochs,
    "other cases": lambda bench: measure_recurrence(bench, other_pairs(bench.choice)),
    "compiled peers": lambda bench: measure_recurrence(bench, [(case, COMPILED) for case in bench.choice.targets]),
    "launches": launch_once_each,
}


def run_section(name: str, stage: str, folder: Path, seconds: float) -> int:
    """Run a section here; exit code 2 without a GPU."""
    started = time.monotonic()
    if not torch.cuda.is_available():
        print("bench/gpu.py: this machine has no CUDA device that PyTorch can use", file=sys.stderr)
        return 2
    report = Report.read(folder, stage)
    bench = Bench(report, Gpu(), CHOICES[stage], started + seconds)
    if name == "smoke":
        for check in parity_names(bench.choice):
            report.expect_parity(check)
    SECTIONS[name](bench)
    return 0
