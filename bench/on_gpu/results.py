"""The results of a stage and their files; imports nothing slow."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Results:
    """The contents of the JSON file; times are in seconds."""

    stage: str
    device: str = "unknown"
    versions: dict[str, str] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)  # the fields of `bench.floors.Card`, as far as measured
    parity: dict[str, dict[str, Any]] = field(default_factory=dict)  # by check
    recurrence: list[dict[str, Any]] = field(default_factory=list)
    kernels: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # by what was profiled
    tricks: list[dict[str, Any]] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    counters: dict[str, dict[str, float]] = field(default_factory=dict)  # of one launch of each main kernel
    sections: dict[str, float] = field(default_factory=dict)  # seconds that each took
    left_out: dict[str, str] = field(default_factory=dict)  # measurements that are missing or unfinished, and why

    @property
    def failed_checks(self) -> list[str]:
        return [name for name, check in self.parity.items() if not check["passed"]]


class Report:
    """The results of a stage and their files, `STAGE.json` and a table in `STAGE.md`."""

    def __init__(self, results: Results, folder: Path) -> None:
        self.results, self.folder = results, folder

    @classmethod
    def read(cls, folder: Path, stage: str) -> Report:
        return cls(Results(**json.loads((folder / f"{stage}.json").read_text(encoding="utf-8"))), folder)

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.results.stage}.json"
        new = path.with_suffix(".new")
        new.write_text(json.dumps(asdict(self.results), indent=1) + "\n", encoding="utf-8")
        new.replace(path)  # atomic: a section may be stopped at any time
        path.with_suffix(".md").write_text("\n".join(table(self.results)) + "\n", encoding="utf-8")

    def attempt(self, what: str, measure: Callable[[], None]) -> None:
        """A context for a measurement: on failure, the results get the reason in place of figures."""
        try:
            measure()
        except Exception as error:  # compilers may raise anything; the other measurements go on
            self.leave_out(what, reason(error))
        self.write()

    def leave_out(self, what: str, why: str) -> None:
        self.results.left_out[what] = why
        say(f"{what}: left out: {why}")

    def expect_parity(self, name: str) -> None:
        """A check that counts as failed until it has passed."""
        self.results.parity[name] = {"passed": False, "outcome": "not finished"}
        self.write()

    def add_parity(self, name: str, passed: bool, outcome: str, **more: Any) -> None:
        self.results.parity[name] = {"passed": passed, "outcome": outcome, **more}
        say(f"{name}: {outcome}")
        self.write()


def reason(error: Exception) -> str:
    """The first line of an error, with its type."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def say(line: str) -> None:
    print(line, flush=True)


def table(results: Results) -> list[str]:
    """The figures as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    return [
        f"{results.stage}: {results.device}; {versions}.",
        "",
        *(f"- {name}: {_card_figure(name, value)}" for name, value in results.card.items()),
        *(f"- {name}: {check['outcome']}" for name, check in results.parity.items()),
        *_recurrence(results.recurrence),
        *_tricks(results.tricks),
        *(line for name, rows in results.kernels.items() for line in _kernels(name, rows)),
        *_epochs(results.epochs),
        *(line for name, values in results.counters.items() for line in _counters(name, values)),
        "",
        *(f"- {name}: {seconds:.1f} s" for name, seconds in results.sections.items()),
        *(f"- left out: {what}: {why}" for what, why in results.left_out.items()),
    ]


def _card_figure(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{precision} {rate / 1e12:.0f} TF/s" for precision, rate in value.items())
    units = {"bandwidth": (1e12, "TB/s"), "cache_bandwidth": (1e12, "TB/s"), "handover": (1e-6, "µs")}
    size, unit = units.get(name, (1e6, "MB"))
    return f"{value / size:.2f} {unit}"


def _recurrence(entries: list[dict[str, Any]]) -> Iterator[str]:
    if entries:
        yield from ("", "| case | contestant | direction | ms, replayed | ms, called | floor, ms | by | times |")
        yield "|---|---|---|---|---|---|---|---|"
    for entry in entries:
        yield (
            f"| {entry['case']} | {entry['contestant']} | {'both' if entry['backward'] else 'forward'} | "
            f"{_milliseconds(entry['seconds'])} | {_milliseconds(entry['called_seconds'])} | "
            f"{_milliseconds(entry['floor_seconds'])} | {entry['floor_by']} | {_digits(entry['over_floor'])} |"
        )


def _tricks(entries: list[dict[str, Any]]) -> Iterator[str]:
    if entries:
        yield from ("", "| without | direction | ms | times with it |", "|---|---|---|---|")
    for entry in entries:
        direction = "both" if entry["backward"] else "forward"
        yield f"| {entry['without']} | {direction} | {_milliseconds(entry['seconds'])} | {_digits(entry['ratio'])} |"


def _kernels(name: str, rows: list[dict[str, Any]]) -> Iterator[str]:
    yield from ("", f"| {name}: kernel | launches | µs each | µs before it | µs in all |", "|---|---|---|---|---|")
    for row in rows:
        yield (
            f"| `{row['kernel']}` | {row['launches']} | {row['us']:.2f} | {row['gap_us']:.2f} | {row['total_us']:.1f} |"
        )


def _epochs(entries: list[dict[str, Any]]) -> Iterator[str]:
    if entries:
        yield from ("", "| PTB epoch | s | floor of the recurrence, s | windows |", "|---|---|---|---|")
    for epoch in entries:
        yield (
            f"| {epoch['what']} ({epoch['text']}) | {epoch['epoch_seconds']:.2f} | {_digits(epoch['floor_seconds'])} | "
            f"{epoch['windows']} |"
        )


def _counters(name: str, values: dict[str, float]) -> Iterator[str]:
    yield from ("", f"| {name} | counted |", "|---|---|")
    yield from (f"| `{metric}` | {value:g} |" for metric, value in values.items())


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.3f}"


def _digits(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.2f}"
