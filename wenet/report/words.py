"""A run in words: what it found, what that does not show, what it cost, and how to run it again."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wenet.config import Config, SearchConfig, TrainConfig, flag, resolve_config, resolve_train_config
from wenet.console import duration, size
from wenet.genotypes import PUBLISHED
from wenet.report.run import Run

Row = tuple[str, ...]
UNKNOWN = "-"  # in a table
CLOSE = 1.05  # ratio of two weights below which the page warns that they are nearly equal


def title(run: Run) -> str:
    text = Path(run.settings["dataset"]).name
    return f"Search on {text}" if run.kind == "search" else f"Training of {run.settings['cell']} on {text}"


def status(run: Run) -> str:
    """How far the run is."""
    if run.finished:
        return "finished"
    settings, done = run.settings, len(run.records)
    if run.kind == "train":
        return f"not finished: {done} of {settings['epochs']} epochs done"
    if settings.get("strategy", "wenet") == "random":
        return f"not finished: {done} rungs done"
    return f"not finished: {done} of {-(-settings['pool'] // settings['batch'])} rounds done"


def summary(run: Run) -> list[str]:
    """What was found, a paragraph each."""
    if not run.best:
        return [f"No {'round' if run.kind == 'search' else 'epoch'} is finished yet."]
    return list(_search_summary(run) if run.kind == "search" else _training_summary(run))


def caveats(run: Run) -> list[str]:
    """What the figures do not show, and what went wrong."""
    return [*run.flaws, *(_search_caveats(run) if run.kind == "search" else _training_caveats(run))]


def _search_summary(run: Run) -> Iterator[str]:
    best = run.best
    searched = f"Of {best['networks_searched']:,} random cells"
    if "runs" in best:
        yield (
            f"{searched}, searched in {len(best['runs'])} runs, this one won: the winners of all runs were trained "
            f"standalone, and it has the lowest validation perplexity, {number(best['perplexity'], 1)}."
        )
    elif best["weight"] is None:
        yield (
            f"{searched} this one is left after successive halving: of the last that were trained standalone it has "
            f"the lowest validation perplexity, {number(best['perplexity'], 1)}."
        )
    else:
        yield f"{searched} this one {_how_it_won(best)}. {_how_long_kept(best)}"
        valid = best["mixture_valid_perplexity"]
        reached = "has no finite validation perplexity" if valid is None else f"reaches {valid:.1f} in validation"
        yield f"The mixture of the last round {reached}. That is of all its networks together, not of the cell."
    if run.audit is not None:
        yield from _audit_summary(run.audit)


def _how_it_won(best: dict[str, Any]) -> str:
    share = f"{best['weight'] / best['uniform_weight']:.2f} times an equal share of {best['uniform_weight']:.4f}"
    if best.get("held_out_loss") is None:
        return f"has the largest weight in the last mixture, {best['weight']:.4f}: {share}"
    loss = f"{best['held_out_loss']:.3f} nats per token"
    return f"has the lowest loss by its own output on held-out text, {loss}; its weight in the last mixture is {share}"


def _how_long_kept(best: dict[str, Any]) -> str:
    earlier = best["rounds_kept"] - 1
    if best["rounds"] == 1:
        return "There was one round."
    if earlier == 0:
        return "It was new in the last round."
    return f"It was kept from {earlier} earlier round{'s' * (earlier > 1)}."


def _audit_summary(audit: dict[str, Any]) -> Iterator[str]:
    found, kept, rejected = audit["kendall"], audit["survivors"], audit["rejected"]
    yield (
        f"The audit trained {audit['cells']} of the cells standalone for {audit['epochs']:g} epochs. Kendall's tau of "
        "score and falling perplexity, 1 in full agreement and 0 by chance, is "
        f"{_interval(found, audit)}. {_verdict(found)}"
    )
    yield (
        f"The cells that the search kept reach {_spread(kept)}, a sample of those it rejected {_spread(rejected)}; "
        f"were both alike, the kept would be so much better with p = {number(audit['survivors_better_p'], 3)}."
    )


def _interval(found: dict[str, Any], audit: dict[str, Any]) -> str:
    interval = "no interval of so few cells"
    if found["low"] is not None:
        interval = f"{audit['confidence']:.0%} interval {found['low']:.2f} to {found['high']:.2f}"
    return f"{number(found['value'])} ({interval}, p = {number(found['p'], 3)})"


def _verdict(found: dict[str, Any]) -> str:
    if found["low"] is None:
        return "So few cells say little about how well the search ranks."
    if found["low"] <= 0 <= found["high"]:
        return "That the search ranks cells better than chance was not shown: the interval holds 0."
    if found["low"] > 0:
        return "The search ranks cells better than chance."
    return "The search ranks cells worse than chance."


def _spread(group: dict[str, Any]) -> str:
    diverged = f", {group['diverged']} diverged" if group["diverged"] else ""
    return f"{number(group['mean'], 1)} ± {number(group['sd'], 1)} ({group['cells']} cells{diverged})"


def _search_caveats(run: Run) -> Iterator[str]:
    settings, best = run.settings, run.best
    if not run.finished:
        yield "The search has not ended; all of this is of the rounds so far."
    if best.get("weight") is not None:
        if run.audit is None and "runs" not in best:
            yield f"Whether the cell beats a random one was not measured. {_how_to_measure(run)}"
        yield (
            f"Cells were trained together, for {settings['epochs_per_round']:g} passes over the text a round. A weight "
            "after so short a training may reward learning fast, or being useful beside others, rather than being best "
            "alone."
        )
    by_weight = best.get("weight") is not None and best.get("held_out_loss") is None
    ranked = run.records[-1]["networks"] if run.records and by_weight else []
    if len(ranked) > 1 and ranked[0]["weight"] < CLOSE * ranked[1]["weight"]:
        ratio = ranked[0]["weight"] / ranked[1]["weight"] - 1
        yield f"The first cell's weight is only {ratio:.1%} above the second's: they may as well change places."
    if settings.get("runs", 1) == 1:
        yield "This is one search with one seed. Another seed draws other cells, and may rank the same ones otherwise."
    yield from _about_preset(run, "a first look: the paper searches 10,000 cells, each of hidden size 200")


def _how_to_measure(run: Run) -> str:
    if "audit" in run.settings:
        count = max(24, run.settings["seeds"] + 12)
        return f"Measure it with wenet-search --resume {shlex.quote(str(run.path))} --audit {count}"
    return "Train it and some random ones by the same wenet-train, with several seeds each."


def _training_summary(run: Run) -> Iterator[str]:
    best = run.best
    valid = f"{best['valid_perplexity']:.2f} on the validation text"
    if best["test_perplexity"] is None:
        yield f"So far the perplexity is {valid}, after epoch {best['epoch']}."
    else:
        yield f"The perplexity is {best['test_perplexity']:.2f} on the test text and {valid}."
    averaging = best["averaging_from"]
    averaged = "weights were never averaged" if averaging is None else f"weights are averaged from epoch {averaging} on"
    yield (
        f"These are the weights of epoch {best['epoch']} of {best['epochs']}, the best in validation; {averaged}. The "
        f"model has {best['parameters']:,} parameters."
    )


def _training_caveats(run: Run) -> Iterator[str]:
    best = run.best
    if not run.finished:
        yield "Training has not ended, and the test text has not been looked at."
    if best and best["epoch"] == best["epochs"]:
        yield "The last epoch is the best so far: with more of them the perplexity would probably go on falling."
    if best.get("rollbacks"):
        times = f"{best['rollbacks']} time{'s' * (best['rollbacks'] > 1)}"
        yield f"Training diverged {times} and went back to the best epoch each time."
    yield "This is one training with one seed; figures of other seeds differ. Compare means of several."
    yield "The validation perplexity is the lowest of all epochs, and so a little too good; that of the test is not."
    yield from _about_preset(run, "a first look: the paper trains larger models for 1600 epochs and more")


def _about_preset(run: Run, what: str) -> Iterator[str]:
    if run.settings["preset"] != "paper":
        yield f"The preset {run.settings['preset']} is for {what}."


def machine_and_cost(run: Run) -> list[Row]:
    """Where it ran, on what, and what it took."""
    settings, config = run.settings, run.config
    rows = [
        ("device", f"{settings['device']}, {config['threads']} threads"),
        ("backend", f"{settings['backend']}, precision {settings['precision']}"),
        *config["versions"].items(),
        ("text", f"{settings['dataset']}, fingerprint {config['corpus']}"),
    ]
    if run.best:
        rows.append(("time", duration(run.best["seconds"])))
        rows.append(("peak memory", size(run.best["peak_memory_bytes"])))
    if run.audit is not None:
        rows.append(("audit", f"{duration(run.audit['seconds'])} more"))
    tokens = sum(record["tokens"] for record in run.records)
    if tokens:
        seconds = max(run.records[-1]["seconds_so_far"], 1e-3)
        rows.append(("training tokens", f"{tokens:,}"))
        rows.append(("throughput", f"{tokens / seconds:,.0f} training tokens a second, validation counted in"))
    return rows


def setting_rows(run: Run) -> list[Row]:
    """Every setting: flag, value, what it means."""
    config_class: type[Config] = SearchConfig if run.kind == "search" else TrainConfig
    meanings = {option.name: option.metadata["help"] for option in dataclasses.fields(config_class)}
    return [
        (name if name == "dataset" else flag(name), "none" if value is None else str(value), meanings.get(name, ""))
        for name, value in run.settings.items()
    ]


def command(run: Run) -> list[str]:
    """The command that gives this run again: its name with the text, then flag by flag."""
    settings = run.settings
    if run.kind == "search":
        usual = resolve_config(settings["preset"]).to_dict()
    else:  # the preset depends on these
        given = {name: settings[name] for name in ("dataset", "cell", "softmax")}
        usual = {**resolve_train_config(settings["preset"], given).to_dict(), "cell": None, "softmax": "tied"}
    flags = {
        name: _cell_as_text(run) if name == "cell" else value
        for name, value in settings.items()
        if name not in ("dataset", "preset") and value is not None and value != usual.get(name)
    }
    flags = {"preset": settings["preset"], **flags}
    if run.config["data_dir"] is not None:
        flags["data_dir"] = run.config["data_dir"]
    begin = shlex.join([f"wenet-{run.kind}", settings["dataset"]])
    return [begin, *(shlex.join([flag(name), str(value)]) for name, value in flags.items())]


def _cell_as_text(run: Run) -> str:
    """The cell of a training, whatever has become of the file or the run that it was read from."""
    cell = run.settings["cell"]
    return cell if run.genotype is None or cell in PUBLISHED else str(run.genotype)


def number(value: float | None, places: int = 2, missing: str = "undefined") -> str:
    """A figure, or what it means that there is none."""
    return missing if value is None else f"{value:.{places}f}"


def kept_table(run: Run) -> tuple[Row, list[Row]]:
    """Columns and rows: the cells that the last round kept, with their standalone perplexity where it is known."""
    record = run.records[-1]
    known = {} if run.audit is None else {cell["genotype"]: cell["perplexity"] for cell in run.audit["networks"]}
    known |= {cell["genotype"]: cell["perplexity"] for cell in record["networks"] if "perplexity" in cell}
    rows = []
    for rank, network in enumerate(record["networks"][: run.settings["seeds"]], start=1):
        weight, cell = network["weight"], network["genotype"]
        share = None if weight is None else weight / record["uniform_weight"]
        figures = [number(weight, 4, UNKNOWN), number(share, 2, UNKNOWN), str(network["rounds_kept"])]
        perplexity = [number(known.get(cell), 1, UNKNOWN)] if known else []
        rows.append((str(rank), *figures, *perplexity, cell))
    columns = ("rank", "weight", "equal shares", "earlier rounds", *["standalone perplexity"] * bool(known), "cell")
    return columns, rows


RUN_COLUMNS = ("run", "standalone perplexity", "cell")


def run_rows(runs: list[dict[str, Any]]) -> list[Row]:
    return [(str(one["run"]), number(one["perplexity"], 1), one["genotype"]) for one in runs]


EPOCH_COLUMNS = ("epoch", "training loss", "validation perplexity", "weights", "time so far")


def epoch_rows(run: Run) -> list[Row]:
    return [
        (
            str(record["epoch"]),
            f"{record['train_loss']:.3f}",
            f"{record['valid_perplexity']:.2f}" if "valid_perplexity" in record else "diverged",
            "averaged" if record.get("averaged") else "as trained",
            duration(record["seconds_so_far"]),
        )
        for record in run.records
    ]
