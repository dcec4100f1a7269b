"""A contest in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wenet.cells import read_cell
from wenet.searching.contest.contestants import WINNER
from wenet.searching.space import known_name
from wenet.tasks import Metric
from wenet.training import LAYERS
from wenet.words import counted, figure_and_spread

FEWEST = 10  # windows, from which on a training says something about longer ones
INCOMPARABLE, SAME = "cannot be compared with", "has the same mean as"


def describe_contest(result: Mapping[str, Any], metric: Metric) -> list[str]:
    """Describe the contest: a line for each contestant, the best first, and a verdict on the winner."""
    lines = [
        f"contest   test {metric.name} of {counted(result['seeds'], 'training')} each, "
        f"{parameters_of_all(result)} parameters, {counted(result['windows'], 'window')}:"
    ]
    names = [contestant_name(row) for row in result["contestants"]]
    spreads = [reached(row, metric) for row in result["contestants"]]
    for row, name, spread in zip(result["contestants"], names, spreads, strict=True):
        p = "" if row["p"] is None else f"p = {row['p']:.2g}"
        lines.append(
            f"          {spread:<{max(map(len, spreads))}}  {name:<{max(map(len, names))}}  {p:<11}  "
            f"rate {row['rate']:g}, {_decay_of(row)}hidden {row['hidden']}, {row['parameters']:,} parameters, "
            f"{row['microseconds']:.3g} µs a step"
        )
    return [*lines, f"          {verdict(result, metric)}", *(f"caution   {each}" for each in cautions(result))]


def parameters_of_all(result: Mapping[str, Any]) -> str:
    """The number of parameters of the contestants, or the least and the most."""
    counts = [row["parameters"] for row in result["contestants"]]
    return " to ".join(f"{count:,}" for count in dict.fromkeys((min(counts), max(counts))))


def windows_of_all(result: Mapping[str, Any]) -> str:
    """The number of windows that the contestants trained on, and of how many planned where the time was up."""
    windows, (fewest, most) = result["windows"], _windows_trained(result)
    trained = " to ".join(f"{count:,}" for count in dict.fromkeys((fewest, most)))
    return f"{trained} of {counted(windows, 'window')}" if fewest < windows else counted(windows, "window")


def _windows_trained(result: Mapping[str, Any]) -> tuple[int, int]:
    """The fewest and the most that a contestant trained on; earlier versions did not say."""
    fewest, most = result.get("windows_trained", [result["windows"]] * 2)
    return fewest, most


def reached(row: Mapping[str, Any], metric: Metric) -> str:
    """What a contestant reached on the test part, and how many of its trainings diverged, which do not count."""
    diverged = diverged_in(row)
    spread = figure_and_spread(row["mean"], row["sd"], metric.final_places, "diverged")
    if row["mean"] is None or not diverged:
        return spread
    return f"{spread} ({diverged} of {len(row['valid'])} diverged)"


def not_diverged(row: Mapping[str, Any]) -> list[float]:
    """What a contestant's trainings reached on the test part, but for those that diverged."""
    return [value for value in row["test"] if value is not None]


def diverged_in(row: Mapping[str, Any]) -> int:
    """The number of a contestant's trainings that diverged."""
    return int(row["diverged"] if "diverged" in row else row["valid"].count(None))  # earlier versions did not say


def cautions(result: Mapping[str, Any]) -> list[str]:
    """Sentences on trainings that ended early, or were too short to say much."""
    found, (fewest, most) = [], _windows_trained(result)
    if fewest < result["windows"]:
        unfair = ", so these figures do not compare contestants fairly" if fewest < most else ""
        found.append(f"the time was up: contestants trained on {windows_of_all(result)}{unfair}")
    if most < FEWEST:
        found.append(f"trainings of {counted(most, 'window')} say little about longer ones")
    return found


def _decay_of(row: Mapping[str, Any]) -> str:
    decay = row.get("weight_decay", 0.0)  # earlier versions chose none
    return f"weight decay {decay:g}, " if decay else ""


def contestant_name(row: Mapping[str, Any]) -> str:
    """The name of a contestant, with that of the published cell that it is, if it is one."""
    known = published_name(row)
    return row["name"] if known is None else f"{row['name']} ({known})"


def published_name(row: Mapping[str, Any]) -> str | None:
    """The name of the published cell that a contestant is, if it is one; layers of PyTorch are named as it is."""
    return None if row["name"] in LAYERS else known_name(read_cell(row["genotype"]))


def verdict(result: Mapping[str, Any], metric: Metric) -> str:
    """A sentence that compares the winner with PyTorch's layers, and claims only what the trainings show."""
    if all(row["mean"] is None for row in result["contestants"]):
        return "all trainings diverged, so nothing was compared: lower --rates"
    winner = next(row for row in result["contestants"] if row["name"] == WINNER)
    same = known_name(read_cell(winner["genotype"]))
    found: dict[str, list[str]] = {}
    for row in result["contestants"]:
        if row["name"] in LAYERS and row["name"] != (same or "").removesuffix("-tanh"):
            found.setdefault(_compared(winner, row, metric), []).append(row["name"])
    parts = [f"{relation} {_listed(names)}" for relation, names in found.items()]
    itself = [] if same is None else [f"is the published cell {same}"]
    test = "" if set(found) <= {INCOMPARABLE, SAME} else " (Welch's t-test at the 5% level)"
    return f"the winner {_sentences([*itself, *parts])}{test}"


def _listed(words: Sequence[str]) -> str:
    """Words as in "a, b and c"."""
    return " and ".join([*([", ".join(words[:-1])] if words[1:] else []), words[-1]])


def _sentences(parts: Sequence[str]) -> str:
    """Parts of a sentence; a comma stands before the last "and" where there are others."""
    if len(parts) < 3 and not any(" and " in part for part in parts):
        return " and ".join(parts)
    return ", and ".join([", ".join(parts[:-1]), parts[-1]] if parts[1:] else parts)


def _compared(winner: Mapping[str, Any], row: Mapping[str, Any], metric: Metric) -> str:
    if row["mean"] is not None and row["mean"] == winner["mean"]:
        return SAME
    if row["p"] is None or winner["mean"] is None:
        return INCOMPARABLE
    if row["p"] >= 0.05:
        return "is not shown to differ from"
    better = metric.order(winner["mean"]) < metric.order(row["mean"])
    return f"is {'better' if better else 'worse'} than"
