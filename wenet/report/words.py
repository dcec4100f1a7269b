"""A run in words: result, caveats, cost, and the command to repeat it."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from wenet.cells import PROGRAMS, PUBLISHED
from wenet.data import KEPT
from wenet.nn import OWN
from wenet.report.run import Run, parts_of
from wenet.run import Config, as_flag, flag
from wenet.run.unread import Unread, names_of
from wenet.searching import SearchConfig, correlation_in_words, resolve_config, spread_in_words, usual_audit
from wenet.searching.contest import cautions, contestant_name, parameters_of_all, reached, verdict
from wenet.searching.settings import INSTEAD
from wenet.searching.strategy import last_ranking
from wenet.searching.unread import unread_by_search
from wenet.tasks import Metric, failure_to_learn
from wenet.training import TrainConfig, resolve_train_config, unread_by_training
from wenet.words import counted, duration, figure, size

Row = tuple[str, ...]
UNKNOWN = "-"  # in a table
CLOSE = 1.05  # ratio of two weights below which the page warns that they are nearly equal


def title(run: Run) -> str:
    text = Path(run.settings["dataset"]).name
    return f"Search on {text}" if run.kind == "search" else f"Training of {_short(run.settings['cell'])} on {text}"


def _short(cell: str) -> str:
    """The name of a cell as given; for a path only its last part."""
    return Path(cell).name if os.sep in cell else cell


def status(run: Run) -> str:
    """The progress of a run in words."""
    if run.finished:
        return "finished"
    if run.unfinished_part in ("audit", "contest"):
        return f"not finished: the {run.unfinished_part} has not ended"
    return f"not finished: {_progress(run)} done"


def _progress(run: Run) -> str:
    """How many rounds, rungs or epochs of all have ended."""
    if run.kind == "train":
        return f"{len(run.records)} of {counted(run.settings['epochs'], 'epoch')}"
    done = len(run.records) if run.settings["runs"] == 1 else sum(part.finished for part in parts_of(run))
    return f"{done} of {counted(run.strategy.stages(run.search_config), run.strategy.stage)}"


def summary(run: Run) -> list[str]:
    """The result, as paragraphs."""
    if not run.best:
        return [f"There is no result yet: {_progress(run)} done."]
    return list(_search_summary(run) if run.kind == "search" else _training_summary(run))


def caveats(run: Run) -> list[str]:
    """Limits of the result, and problems on the way."""
    return [*run.flaws, *(_search_caveats(run) if run.kind == "search" else _training_caveats(run))]


def _search_summary(run: Run) -> Iterator[str]:
    assert run.winner is not None
    yield from run.winner.sentences(run.metric)
    if run.baseline is not None:
        name, value = run.baseline
        in_words = figure(value, run.metric.places)
        yield _as_sentence(f"{name} alone would give a validation {run.metric.name} of {in_words}")
    if run.audit is not None:
        yield from _audit_summary(run.audit, run.metric)
    if run.contest is not None:
        seeds, parameters = counted(run.contest["seeds"], "training"), parameters_of_all(run.contest)
        yield _as_sentence(
            f"in the contest of models with {parameters} parameters, {seeds} each, {verdict(run.contest, run.metric)}"
        )


def _audit_summary(audit: dict[str, Any], metric: Metric) -> Iterator[str]:
    found, kept, rejected = audit["kendall"], audit["kept"], audit["rejected"]
    yield (
        f"The audit trained {audit['cells']} of the cells standalone for {counted(audit['epochs'], 'epoch')}. "
        f"Kendall's tau of score and {metric.name}, 1 in full agreement and 0 by chance, is "
        f"{correlation_in_words(found, audit['confidence'])}. {_verdict(found)}"
    )
    p = audit["kept_better_p"]
    compared = "" if p is None else f"; a one-sided test that the kept are better gives p = {p:.3f}"
    yield (
        f"The cells that the search kept reach {spread_in_words(kept, metric.places)}, a sample of those it rejected "
        f"{spread_in_words(rejected, metric.places)}{compared}."
    )


def _verdict(found: dict[str, Any]) -> str:
    if found["low"] is None:
        return "So few cells say little about how well the search ranks."
    if found["low"] <= 0 <= found["high"]:
        return "That the search ranks cells better than chance was not shown: the interval holds 0."
    if found["low"] > 0:
        return "The search ranks cells better than chance."
    return "The search ranks cells worse than chance."


def _search_caveats(run: Run) -> Iterator[str]:
    settings, winner = run.settings, run.winner
    failure = winner and winner.failure_to_learn(run.metric, run.baseline, run.spent is not None)
    if failure:
        yield _as_sentence(failure)
    if run.contest is not None:
        yield from map(_as_sentence, cautions(run.contest))
    if run.spent is not None and run.spent.seconds is not None and run.spent.is_late:
        yield f"The search took {duration(run.spent.seconds)}, longer than --minutes allows."
    if run.unfinished_part == "search":
        yield f"The search has not ended; all of this is of the {run.strategy.stage}s so far."
    elif run.unfinished_part is not None:
        yield f"The {run.unfinished_part} has not ended."
    if winner is not None and winner.is_ranked_by_chance():
        if run.audit is None and run.contest is None:
            yield f"Whether the cell beats a random one was not measured. Measure it with: `{_audit_command(run)}`"
        passes = counted(settings["epochs_per_round"], "pass")
        yield (
            f"Cells were trained together, for {passes} over the text a round. A weight "
            "after so short a training may reward learning fast, or being useful beside others, rather than being best "
            "alone."
        )
    ranked = run.records[-1]["networks"] if run.records and _is_ranked_by_weight(run) else []
    if len(ranked) > 1 and ranked[0]["weight"] < CLOSE * ranked[1]["weight"]:
        ratio = ranked[0]["weight"] / ranked[1]["weight"] - 1
        yield f"The first cell's weight is only {ratio:.1%} above the second's: they may as well change places."
    if settings["runs"] == 1:
        yield "This is one search with one seed. Another seed draws other cells, and may rank the same ones otherwise."
    yield from _about_preset(run, "a first look: the paper searches 10,000 cells, each of hidden size 200")


def _as_sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _is_ranked_by_weight(run: Run) -> bool:
    return "weights" in run.strategy.figures and run.settings["score"] == "weight"


def _audit_command(run: Run) -> str:
    return shlex.join(["wenet-search", "--resume", str(run.path), "--audit", str(usual_audit(run.settings["keep"]))])


def _training_summary(run: Run) -> Iterator[str]:
    best, metric = run.best, run.metric
    places = metric.final_places
    valid = f"{best[f'valid_{metric.key}']:.{places}f} on the validation text"
    test = best[f"test_{metric.key}"]
    if test is None:
        yield f"So far the {metric.name} is {valid}, after epoch {best['epoch']}."
    else:
        yield f"The {metric.name} is {test:.{places}f} on the test text and {valid}."
    averaging = best["averaging_from"]
    averaged = "weights were never averaged" if averaging is None else f"weights are averaged from epoch {averaging} on"
    yield (
        f"These are the weights of epoch {best['epoch']} of {best['epochs']}, the best in validation; {averaged}. The "
        f"model has {best['parameters']:,} parameters."
    )


def _training_caveats(run: Run) -> Iterator[str]:
    best, value = run.best, run.best.get(f"valid_{run.metric.key}")
    failure = failure_to_learn("the model", value, run.metric, run.baseline) if best else None
    if failure:
        yield _as_sentence(failure)
    if not run.finished:
        yield "Training has not ended, and the test text has not been looked at."
    if best and best["epoch"] == best["epochs"]:
        yield f"The last epoch is the best so far: with more of them the {run.metric.name} would probably improve."
    if best.get("rollbacks"):
        yield f"Training diverged {counted(best['rollbacks'], 'time')} and went back to the best epoch each time."
    yield "This is one training with one seed; figures of other seeds differ. Compare means of several."
    yield f"The validation {run.metric.name} is the best of all epochs, and so a little too good; the test's is not."
    yield from _about_preset(run, "a first look: the paper trains larger models for 1600 epochs and more")


def _about_preset(run: Run, what: str) -> Iterator[str]:
    if run.settings["preset"] != "paper" and run.task.reads == "text":
        yield f"The preset {run.settings['preset']} is for {what}."


def machine_and_cost(run: Run) -> list[Row]:
    """Rows on machine, text and cost."""
    settings, config = run.settings, run.config
    rows = [
        ("device", f"{settings['device']}, {counted(config['threads'], 'thread')}"),
        ("backend", f"{settings['backend']}, precision {settings['precision']}"),
        *config["versions"].items(),
        (run.task.reads, f"{settings['dataset']}, fingerprint {config['corpus']}"),
    ]
    if run.best:
        rows.append(("time", duration(run.best["seconds"])))
        rows.append(("peak memory", size(run.best["peak_memory_bytes"])))
    if run.audit is not None:
        rows.append(("audit", f"{duration(run.audit['seconds'])} more"))
    if run.contest is not None:
        rows.append(("contest", f"{duration(run.contest['seconds'])} more"))
    tokens = sum(record["tokens"] for record in run.records)
    if tokens:
        seconds = max(run.records[-1]["seconds_so_far"], 1e-3)
        unit = "training tokens" if run.task.reads == "text" else "training steps"
        rows.append((unit, f"{tokens:,}"))
        rows.append(("throughput", f"{tokens / seconds:,.0f} {unit} a second, validation counted in"))
    return rows


def setting_rows(run: Run) -> list[Row]:
    """Rows of the settings that the run has read: flag, value, meaning."""
    config_class: type[Config] = SearchConfig if run.kind == "search" else TrainConfig
    meanings = {option.name: option.metadata["help"] for option in dataclasses.fields(config_class)}
    unread = names_of(_unread(run))
    return [
        (name if name == "dataset" else flag(name), _value(run, name), meanings.get(name, ""))
        for name in run.settings
        if name not in unread
    ]


def _value(run: Run, name: str) -> str:
    value = run.settings[name]
    limit = "at most " if name in ("pool", "batch") and run.settings.get("minutes") is not None else ""
    return "none" if value is None else f"{limit}{value}"


def _unread(run: Run) -> list[Unread]:
    """Settings that do not matter to the run."""
    if run.kind == "search":
        return unread_by_search(run.search_config)
    return [Unread(run.task.unread, ""), *unread_by_training(SimpleNamespace(**run.settings), run.genotype)]


def course_rows(run: Run) -> list[Row]:
    """Rows of what a race and its contest came to, which --minutes decides where it is given."""
    rows: list[Row] = []
    if run.records and "generation" in run.records[0]:
        rungs = [record for record in run.records if record["generation"] == 1]
        raced = run.best.get("networks_searched", len(rungs[0]["networks"]))
        first = " of the first generation" if len(rungs) < len(run.records) else ""
        rows += [
            ("cells that raced", f"{raced} of at most {run.settings['pool']}"),
            (f"cells{first} in each rung", ", ".join(str(len(record["networks"])) for record in rungs)),
            ("windows trained on by the end of each rung", ", ".join(f"{record['windows']:,}" for record in rungs)),
        ]
    if run.contest is not None:
        trials = run.contest.get("trials", [])  # earlier versions kept none
        if trials:
            rows.append(
                ("contestants tried", f"{len(trials)}, of which {sum(each['trained'] for each in trials)} went on")
            )
        each = f"{counted(run.contest['seeds'], 'training')} of {counted(run.contest['windows'], 'window')} each"
        rows.append(("contest", f"{counted(len(run.contest['contestants']), 'contestant')}, {each}"))
    return rows


def own_loss(run: Run) -> str | None:
    """The name of the function that was the loss of a run, if it was one."""
    loss = str(run.settings.get("loss"))
    return loss.removeprefix(OWN) if loss.startswith(OWN) else None


def command(run: Run) -> list[str]:
    """The command that repeats this run: its name with the text, then each flag."""
    settings, refused = run.settings, names_of(each for each in _unread(run) if not each.later)
    if run.kind == "search":
        usual = resolve_config(settings["preset"]).to_dict()
        if settings["level"] == "words":
            usual["parameters"] = None  # they follow from the vocabulary, unless they are given
    else:  # the preset depends on them
        given = {name: settings[name] for name in ("dataset", "cell", "softmax")}
        usual = {**resolve_train_config(settings["preset"], given).to_dict(), "cell": None, "softmax": "tied"}
    displacing = {
        name for name, other in INSTEAD.items() if usual.get(other) is not None and settings.get(other) is None
    }
    flags = {
        name: _cell_as_text(run) if name == "cell" else value
        for name, value in settings.items()
        if name not in ("dataset", "preset", *refused, *(("loss",) if own_loss(run) else ()))
        and value is not None
        and (value != usual.get(name) or name in displacing)
    }
    numbers = {} if run.task.reads == "text" else {"task": settings["task"]}
    flags = {"preset": settings["preset"], **numbers, **flags}
    if run.config["data_dir"] is not None:
        flags["data_dir"] = run.config["data_dir"]
    kept = run.path / KEPT  # of a run on arrays
    begin = shlex.join([f"wenet-{run.kind}", str(kept) if kept.exists() else settings["dataset"]])
    return [begin, *(shlex.join(as_flag(name, value)) for name, value in flags.items())]


def _cell_as_text(run: Run) -> str:
    """The cell of a training as text, which stays valid if its file or run changes."""
    cell = run.settings["cell"]
    return cell if run.genotype is None or cell in (*PUBLISHED, *PROGRAMS) else str(run.genotype)


def kept_table(run: Run) -> tuple[Row, list[Row]]:
    """Columns and rows of the cells kept by the last stage, with their standalone metric if known."""
    record, key = last_ranking(run.records), run.metric.key
    known = {} if run.audit is None else {cell["genotype"]: cell[key] for cell in run.audit["networks"]}
    known |= {cell["genotype"]: cell[key] for cell in record["networks"] if key in cell}
    rows: list[Row] = []
    of_strategy: tuple[str, ...] = ()
    for rank, network in enumerate(record["networks"][: run.settings["keep"]], start=1):
        columns = run.strategy.columns(record, network)
        of_strategy = tuple(columns)
        standalone = [figure(known.get(network["genotype"]), run.metric.places, UNKNOWN)] if known else []
        rows.append((str(rank), *columns.values(), str(network["rounds_kept"]), *standalone, network["genotype"]))
    standalone = [f"standalone {run.metric.name}"] * bool(known)
    earlier = "earlier rungs" if run.strategy.stage == "rung" else "earlier rounds"
    return ("rank", *of_strategy, earlier, *standalone, "cell"), rows


def contest_table(contest: dict[str, Any], metric: Metric) -> tuple[Row, list[Row]]:
    """Columns and rows of the contest, the best first."""
    decays = len(contest.get("weight_decays", ())) > 1  # earlier versions chose none
    columns = (
        "contestant",
        f"test {metric.name}",
        "p against the winner",
        "rate",
        *(("decay",) if decays else ()),
        "hidden",
        "parameters",
        "µs a step",
    )
    rows: list[Row] = [
        (
            contestant_name(row),
            reached(row, metric),
            UNKNOWN if row["p"] is None else f"{row['p']:.2g}",
            f"{row['rate']:g}",
            *((f"{row['weight_decay']:g}",) if decays else ()),
            str(row["hidden"]),
            f"{row['parameters']:,}",
            f"{row['microseconds']:.3g}",
        )
        for row in contest["contestants"]
    ]
    return columns, rows


def contestants_cells(contest: dict[str, Any]) -> list[Row]:
    """Names of contestants that are cells, with the cells."""
    return [(contestant_name(row), row["genotype"]) for row in contest["contestants"] if row["name"] != row["genotype"]]


def run_columns(run: Run) -> Row:
    return "run", f"standalone {run.metric.name}", "cell"


def run_rows(run: Run) -> list[Row]:
    key, places = run.metric.key, run.metric.places
    return [(str(one["run"]), figure(one[key], places, "diverged"), one["genotype"]) for one in run.best["runs"]]


def epoch_columns(run: Run) -> Row:
    return "epoch", "training loss", f"validation {run.metric.name}", "weights", "time so far"


def epoch_rows(run: Run) -> list[Row]:
    key = f"valid_{run.metric.key}"
    return [
        (
            str(record["epoch"]),
            f"{record['train_loss']:.3f}",
            f"{record[key]:.{run.metric.final_places}f}" if key in record else "diverged",
            "averaged" if record.get("averaged") else "as trained",
            duration(record["seconds_so_far"]),
        )
        for record in run.records
    ]
