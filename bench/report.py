"""`python bench/report.py RESULT.json`: a run of `pytest bench/` as docs/measurements/recurrence.md and its figures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wenet.report.cells import save_picture
from wenet.report.figures import MUTED, Picture, new_drawing, styled

DOCUMENT = Path(__file__).parents[1] / "docs" / "measurements" / "recurrence.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

# Targets of forward with backward on two cores: share of the dense rate, and speed-up over each peer.
TARGETS: dict[str, dict[str, float]] = {
    "paper": {"dense": 1.0, "batched": 8, "loop": 7, "compile": 4},
    "quick": {"dense": 0.7, "batched": 6, "loop": 14, "compile": 2.5},
    "cell-200": {"dense": 0.6, "loop": 2.5},
    "cell-850": {"dense": 1.0, "loop": 1.25},
}
BF16_TARGETS: dict[str, float | None] = {"paper": 1.5, "quick": None}  # speed-up over fp32
FLAT_TARGET = 1.15  # largest over smallest cost per network
FLAT_CASES = ("n-16", "n-64", "n-120")

BATCHED = ("traced", "reference")  # two ways to write batched eager PyTorch; the faster one counts
PEERS = ("loop", "traced", "compile", "lstm")
TITLES = {
    "loop": "per-network loop",
    "traced": "batched eager, traced",
    "compile": "torch.compile of it",
    "lstm": "torch.nn.LSTM a network",
}


@dataclass(frozen=True)
class Figure:
    """One contestant at one case in one direction."""

    case: dict[str, Any]
    contestant: str
    backward: bool
    seconds: float
    gflops: float
    of_dense: float
    dense_gflops_range: tuple[float, float]
    dense_gflops: float
    memory_bytes: int | None
    first_call_seconds: float
    faster_than: dict[str, float]

    @property
    def is_backend(self) -> bool:
        return self.contestant not in PEERS

    @property
    def title(self) -> str:
        return TITLES.get(self.contestant, f"backend {self.contestant}")


class Run:
    """All figures of one run of `pytest bench/`."""

    def __init__(self, result: dict[str, Any]) -> None:
        self.machine, self.commit, self.date = result["machine_info"], result["commit_info"], result["datetime"]
        self.figures = [Figure(**benchmark["extra_info"]) for benchmark in result["benchmarks"]]

    def find(self, case: str, contestant: str, backward: bool = True) -> Figure | None:
        key = (case, contestant, backward)
        return next((f for f in self.figures if (f.case["name"], f.contestant, f.backward) == key), None)

    def backends(self) -> list[str]:
        return list(dict.fromkeys(figure.contestant for figure in self.figures if figure.is_backend))

    def peer(self, case: str, name: str, backward: bool = True) -> Figure | None:
        """A peer by name; "batched" is the faster way to write it at this case."""
        found = [self.find(case, n, backward) for n in (BATCHED if name == "batched" else (name,))]
        return min((figure for figure in found if figure is not None), key=lambda f: f.seconds, default=None)


def render(run: Run) -> str:
    """The text between the markers."""
    return "\n\n".join(
        [
            _machine(run),
            "### Targets, forward and backward\n\n" + "\n".join(_target_table(run)),
            "\n".join(_other_targets(run)),
            "![Fraction of the dense rate at every compared shape](figures/compared.svg)",
            "![Cost over the number of networks, rate over the hidden size](figures/sweeps.svg)",
            "### Everything measured",
            *_shape_tables(run),
        ]
    )


def _machine(run: Run) -> str:
    cpu, versions = run.machine["cpu"], run.machine["versions"]
    dense = sorted(figure.dense_gflops for figure in run.figures)
    changed = ", with changes" if run.commit["dirty"] else ""
    return (
        f"{run.date[:10]}, commit `{run.commit['id'][:10]}`{changed}. {cpu.get('brand_raw', 'unknown processor')} "
        f"({run.machine['machine']}), {run.machine['threads']} threads, {run.machine['system']}. "
        f"Python {run.machine['python_version']}, "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
        + f". Dense rate: median {dense[len(dense) // 2]:.0f} GF/s, from {dense[0]:.0f} to {dense[-1]:.0f} "
        "over the cases of the run."
    )


def _target_table(run: Run) -> Iterator[str]:
    yield "| shape | backend | time | of dense rate | over batched eager | over per-network loop | over torch.compile |"
    yield "|---|---|---|---|---|---|---|"
    for case, target in TARGETS.items():
        for backend in run.backends():
            figure = run.find(case, backend)
            if figure is None or backend == "reference":  # the reference is one of the peers
                continue
            dense = against(figure.of_dense, target.get("dense"))
            peers = [_over(run, figure, name, target.get(name)) for name in ("batched", "loop", "compile")]
            yield _row(_shape(figure.case), backend, _time(figure.seconds), dense, *peers)


def _over(run: Run, figure: Figure, name: str, target: float | None) -> str:
    peer = run.peer(figure.case["name"], name, figure.backward)
    if peer is None or peer is figure:
        return "-"
    which = f"{peer.contestant} " if name == "batched" else ""
    return f"{against(peer.seconds / figure.seconds, target)} ({which}{_time(peer.seconds)})"


def against(value: float, target: float | None) -> str:
    """A ratio beside its target."""
    if target is None:
        return f"{value:.2f}"
    return f"**{value:.2f}** ≥ {target:g}" if value >= target else f"{value:.2f} < {target:g}"


def _other_targets(run: Run) -> Iterator[str]:
    for backend in run.backends():
        flat = [figure for case in FLAT_CASES if (figure := run.find(case, backend)) is not None]
        if len(flat) == len(FLAT_CASES):
            costs = [figure.seconds / figure.case["networks"] for figure in flat]
            ratio = max(costs) / min(costs)
            verdict = f"**{ratio:.2f}** ≤ {FLAT_TARGET:g}" if ratio <= FLAT_TARGET else f"{ratio:.2f} > {FLAT_TARGET:g}"
            yield (
                f"- `{backend}`, dearest over cheapest cost a network at n = 16, 64, 120: {verdict} "
                f"({', '.join(map(_time, costs))})."
            )
        for case, target in BF16_TARGETS.items():
            half, full = run.find(case, f"{backend} bf16"), run.find(case, backend)
            if half is not None and full is not None:
                ratio = against(full.seconds / half.seconds, target)
                yield (
                    f"- `{backend}` at the {case} shape, bf16 over fp32: {ratio} "
                    f"({_time(half.seconds)} against {_time(full.seconds)})."
                )


def _shape_tables(run: Run) -> Iterator[str]:
    for case in dict.fromkeys(figure.case["name"] for figure in run.figures):
        figures = [figure for figure in run.figures if figure.case["name"] == case]
        yield f"#### {_shape(figures[0].case)}"
        yield "\n".join(_shape_table(run, figures))


def _shape_table(run: Run, figures: list[Figure]) -> Iterator[str]:
    yield (
        "| direction | contestant | time | of dense rate | over batched eager | over per-network loop "
        "| over torch.compile | over LSTMs | memory |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for figure in figures:
        title = figure.title
        if figure.contestant == "compile":
            title += f", first call {_time(figure.first_call_seconds)}"
        lowest, highest = figure.dense_gflops_range
        yield _row(
            "both" if figure.backward else "forward",
            title,
            _time(figure.seconds),
            f"{figure.of_dense:.2f} ({figure.gflops:.1f} of {lowest:.0f} to {highest:.0f} GF/s)",
            *(_over(run, figure, name, None) for name in ("batched", "loop", "compile", "lstm")),
            "-" if figure.memory_bytes is None else f"{figure.memory_bytes / 1e6:.0f} MB",
        )


def _shape(case: dict[str, Any]) -> str:
    sizes = f"n={case['networks']}, H={case['hidden']}, M={case['rows']}, T={case['steps']}"
    return f"{case['name']} ({sizes}, {case['form']}, {case['coupling']}, norm {case['norm'] or 'none'})"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def draw(run: Run, folder: Path) -> None:
    """The figures that the text shows."""
    with styled():
        pictures = [_compared(run), _sweeps(run)]
    for picture in pictures:
        save_picture(picture, folder / f"{picture.name}.svg")


def _compared(run: Run) -> Picture:
    compared = [f for f in run.figures if f.backward and run.find(f.case["name"], "loop") and f.contestant != "lstm"]
    cases = list(dict.fromkeys(figure.case["name"] for figure in compared))
    contestants = list(dict.fromkeys(figure.contestant for figure in compared))
    drawing = new_drawing(3.2, 8)
    axes = drawing.subplots()
    width = 0.8 / max(1, len(contestants))
    for index, contestant in enumerate(contestants):
        found = [run.find(case, contestant) for case in cases]
        heights = [0.0 if f is None else f.of_dense for f in found]
        title = next(f.title for f in compared if f.contestant == contestant)
        axes.bar([x + index * width for x in range(len(cases))], heights, width, label=title)
    axes.set_xticks([x + 0.4 - width / 2 for x in range(len(cases))], cases)
    axes.axhline(1, color=MUTED, linewidth=0.8)
    axes.set_ylabel("of the dense rate, forward and backward")
    if compared:
        axes.legend(fontsize=7)
    title = "Fraction of the dense rate at every compared shape"
    return Picture("compared", title, f"{title}, a bar for each contestant.", drawing, [])


def _sweeps(run: Run) -> Picture:
    drawing = new_drawing(3.2, 8)
    by_networks, by_hidden = drawing.subplots(1, 2)
    for backend in run.backends():
        swept = [f for f in run.figures if f.backward and f.contestant == backend]
        networks = [(f.case["networks"], 1e3 * f.seconds / f.case["networks"]) for f in swept if _is_sweep(f, "n-")]
        hidden = [(f.case["hidden"], f.of_dense) for f in swept if _is_sweep(f, "h-")]
        if networks:
            by_networks.loglog(*zip(*networks, strict=True), marker="o", label=backend)
            by_networks.legend(fontsize=7)
        if hidden:
            by_hidden.plot(*zip(*hidden, strict=True), marker="o", label=backend)
    by_networks.set(xlabel="networks", ylabel="ms a network, forward and backward")
    by_hidden.set(xlabel="hidden size", ylabel="of the dense rate")
    by_hidden.axhline(1, color=MUTED, linewidth=0.8)
    title = "Cost over the number of networks, rate over the hidden size"
    return Picture("sweeps", title, f"{title}, a line for each backend.", drawing, [])


def _is_sweep(figure: Figure, prefix: str) -> bool:
    return str(figure.case["name"]).startswith(prefix)


def insert(document: str, text: str) -> str:
    """The document with the text between its markers."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"the document has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write a run of `pytest bench/` into a document.")
    parser.add_argument("result", type=Path, help="what --benchmark-json wrote")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="default: docs/measurements/recurrence.md")
    options = parser.parse_args(arguments)
    run = Run(json.loads(options.result.read_text(encoding="utf-8")))
    draw(run, options.document.parent / "figures")
    document = options.document.read_text(encoding="utf-8")
    options.document.write_text(insert(document, render(run)), encoding="utf-8")


if __name__ == "__main__":
    main()
