"""`python -m bench.profile_window`: the phases of one training window of `wenet-search`."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from bench.cases import Case
from bench.machine import DenseRate
from wenet.run import Interrupt, RunFolder, Session, Surroundings
from wenet.run.machine import peak_memory, resolve_machine
from wenet.searching.mixture import Mixture
from wenet.searching.settings import PRESETS, SearchConfig, resolve_config
from wenet.tasks import LanguageModelling

WINDOWS = 5  # timed without the profiler, after as many to warm up

# The outermost operator whose name contains such a word counts with all its callees. The first match decides.
PHASES = {
    "recurrence, backward": ("wenet_kernels::dag_rnn_backward",),
    "recurrence, forward": ("wenet_kernels::dag_rnn",),
    "input projection, backward": ("wenet_kernels_project", "wenet_kernels::project_backward"),
    "input projection, forward": ("wenet_kernels::project",),
    "decoder and loss": ("DecoderLoss",),
    "embedding": ("aten::embedding", "EmbeddingBackward"),
    "optimizer": ("Optimizer.step",),
    "clipping and checks": ("aten::_foreach", "aten::linalg_vector_norm", "aten::isfinite", "aten::stack"),
    "gradients put down": ("AccumulateGrad", "Optimizer.zero_grad"),
    "dropout and penalties": (
        "aten::dropout",
        "aten::mul",
        "aten::square",
        "aten::mean",
        "aten::diff",
        "MulBackward",
        "PowBackward",
        "MeanBackward",
    ),
}
WINDOW = "window"
OTHER, BETWEEN = "other operators", "Python between operators"
PRODUCTS = ("aten::bmm", "aten::baddbmm", "aten::mm", "aten::addmm")


def main() -> None:
    parser = argparse.ArgumentParser(description="Where the time of one training window of `wenet-search` goes.")
    parser.add_argument("dataset", nargs="?", default="ptb", help="as in wenet-search (default: %(default)s)")
    parser.add_argument("--preset", choices=PRESETS, default="paper")
    parser.add_argument("--networks", type=int, metavar="N", help="default: those of a round after the first")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--data-dir", type=Path, metavar="DIR")
    options = parser.parse_args()
    config = resolve_machine(
        resolve_config(options.preset, {"dataset": options.dataset, "backend": options.backend, "device": "cpu"})
    )
    networks = options.networks or config.networks
    with tempfile.TemporaryDirectory() as folder:
        run_window = prepare_window(config, networks, Path(folder), options.data_dir)
        print("\n".join(report(config, networks, run_window)))


def prepare_window(config: SearchConfig, networks: int, folder: Path, data_dir: Path | None) -> Callable[[], float]:
    """Set up a search like the command; each call trains on the first window again."""
    config = replace(config, pool=networks, batch=networks)
    task = LanguageModelling()
    run = RunFolder.create(folder / "run", {})
    data = task.load(config, data_dir)
    search = Mixture(Session(config, None, task, data, run, Interrupt(), Surroundings()))
    torch.manual_seed(config.seed)
    search.prepare()
    search.begin_stage()
    tokens, targets = search.next_window()
    return lambda: search.step(tokens, targets)


def report(config: SearchConfig, networks: int, run_window: Callable[[], float]) -> Iterator[str]:
    """The table in lines of Markdown."""
    seconds = timed(run_window)
    window_event = profiled(run_window)
    total = window_event.cpu_time_total
    phases, products = split(window_event)
    yield (
        f"n={networks}, H={config.hidden}, M={config.data_batch}, T={config.bptt}, backend {config.backend}, "
        f"{torch.get_num_threads()} threads: {1e3 * seconds:.0f} ms a window (median of {WINDOWS}), "
        f"{total / 1e3:.0f} ms under the profiler, peak memory {peak_memory(torch.device('cpu')) / 1e9:.2f} GB."
    )
    yield ""
    yield "| phase | share | ms | of it in PyTorch's products |"
    yield "|---|---|---|---|"
    for name, microseconds in sorted(phases.items(), key=lambda item: -item[1]):
        within = f"{products[name] / 1e3:.1f} ms" if products[name] else "-"
        yield f"| {name} | {microseconds / total:.1%} | {microseconds / 1e3:.1f} | {within} |"
    yield ""
    yield floor(config, networks, seconds)
    others = [event for event in window_event.cpu_children if phase_of(event) == OTHER]
    largest = sorted(others, key=lambda event: -event.cpu_time_total)[:3]
    yield f"Largest of the other operators: {', '.join(event.name for event in largest)}."


def floor(config: SearchConfig, networks: int, seconds: float) -> str:
    """The time of the recurrence's products at the rate of one large dense product."""
    case = Case("window", networks, config.hidden, config.data_batch, config.bptt, form=config.form)
    dense_rate = DenseRate()
    dense_rate.sample()
    flops = case.flops(backward=True)
    share = flops / dense_rate.median() / 1e9 / seconds
    return (
        f"The recurrence's products are {flops / 1e9:.1f} GF; at the dense rate of {dense_rate.median():.0f} GF/s they "
        f"would take {share:.1%} of the window."
    )


def timed(run_window: Callable[[], float]) -> float:
    """Median seconds of a window without the profiler."""
    durations = []
    for _ in range(2 * WINDOWS):
        started = time.perf_counter()
        run_window()
        durations.append(time.perf_counter() - started)
    return statistics.median(durations[WINDOWS:])


def profiled(run_window: Callable[[], float]) -> FunctionEvent:
    """One window as a tree of operators."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler, record_function(WINDOW):
        run_window()
    return next(event for event in profiler.events() if event.name == WINDOW)


def split(window_event: FunctionEvent) -> tuple[dict[str, float], dict[str, float]]:
    """Microseconds of each phase, and of PyTorch's own products within it."""
    phases: dict[str, float] = dict.fromkeys([*PHASES, OTHER, BETWEEN], 0.0)
    products = dict.fromkeys(phases, 0.0)
    phases[BETWEEN] = window_event.self_cpu_time_total
    for event in window_event.cpu_children:
        phase = phase_of(event)
        phases[phase] += event.cpu_time_total
        products[phase] += time_in_products(event)
    return phases, products


def phase_of(event: FunctionEvent) -> str:
    """The phase that an operator belongs to by its name, or else by the first of its callees that belongs to one."""
    for phase, names in PHASES.items():
        if any(name in event.name for name in names):
            return phase
    return next((phase for child in event.cpu_children if (phase := phase_of(child)) != OTHER), OTHER)


def time_in_products(event: FunctionEvent) -> float:
    if event.name in PRODUCTS:
        return event.cpu_time_total
    return sum(time_in_products(child) for child in event.cpu_children)


if __name__ == "__main__":
    main()
