"""`python -m bench.series`: searches on sequences of numbers, and a GRU that a tuner has for as many minutes.

A search ends with its contest at equal parameters: the winner, the median cell, and layers of PyTorch. A GRU of as many
parameters is then tuned by optuna on the same parts of the data for the same time: rate, weight decay, dropout,
clipping and rows of a batch, trial by trial with early stopping; the settings that are best in validation are then
trained with other seeds, as often as the contest trains. The test part decides nothing. A file for each set and seed
lies under --out; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import wenet
from bench.paired import compared, written
from bench.series_sets import SETS, TUNED_ON
from bench.sessions import session_in
from wenet.run import Session, resolve_machine
from wenet.run.session import taken
from wenet.searching.contest import CHECKS, not_diverged
from wenet.searching.settings import SearchConfig, resolve_config
from wenet.searching.shapes import config_for
from wenet.tasks import Metric, task_of
from wenet.training import Plan, train_standalone

COLUMNS = ("winner", "median cell", "gru", "lstm", "rnn", "tuned gru")
TRIALS = 12  # that fit into the time, the last trainings among them
PROBE = 20  # windows by which their length is found


def main() -> None:
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    if not options.table:
        for seed in range(1, options.seeds + 1):
            for name in options.sets.split(","):
                measure(options.out, name, seed, options.minutes)
    print(table(options.out))


def measure(out: Path, name: str, seed: int, minutes: float) -> None:
    """Search and tune, unless the result is there."""
    path = out / f"{name}-{seed}.json"
    if path.exists():
        return
    given, settings = SETS[name].given(), {**SETS[name].settings, "seed": seed}
    found = searched(given, settings, out / "runs" / f"{name}-{seed}", minutes)
    tuned = tune(given, settings, out / "tuned" / f"{name}-{seed}", minutes)
    result = {
        "set": name,
        "seed": seed,
        "minutes": minutes,
        "metric": vars(found.metric),
        "cell": str(found.genotype),
        "contest": found.contest,
        "tuned gru": tuned,
    }
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{name} {seed}: {summary(result)}", flush=True)


def searched(given: Any, settings: Mapping[str, Any], folder: Path, minutes: float) -> Any:
    if (folder / "config.json").exists():
        return wenet.resume_search(folder)
    return wenet.search(given, minutes=minutes, out=folder, **settings)


def tune(given: Any, settings: Mapping[str, Any], folder: Path, minutes: float) -> dict[str, Any]:
    """The GRU of the trial that was best in validation."""
    import optuna

    started = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)  # of one that was stopped: its time is unknown
    name = given if isinstance(given, str) else "arrays"
    config = resolve_machine(resolve_config("numbers", {**settings, "dataset": name}))
    task = task_of(config)
    data = task.load(config, None) if isinstance(given, str) else taken(task, given, config)
    config = config_for("gru", config, task, data)
    trials: list[dict[str, Any]] = []
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=config.seed))
    study.enqueue_trial({"rate": 0.01, "decay": 1e-6, "dropout": 0.0, "clip": 1.0, "rows": 32})
    with session_in(folder, config, data) as session:
        probe = time.monotonic()
        trained(session, PROBE, {"rate": 0.01}, "probe")
        rows_a_second = PROBE * config.data_batch / (time.monotonic() - probe)
        rows = 60 * minutes / TRIALS * rows_a_second
        share = 1 - (config.contest_seeds + 0.5) / TRIALS
        while time.monotonic() - started < 60 * minutes * share:
            trial = study.ask()
            chosen = {
                "rate": trial.suggest_float("rate", 1e-3, 1e-1, log=True),
                "decay": trial.suggest_float("decay", 1e-6, 1e-2, log=True),
                "dropout": trial.suggest_float("dropout", 0.0, 0.5),
                "clip": trial.suggest_float("clip", 0.25, 4.0, log=True),
                "rows": trial.suggest_categorical("rows", [16, 32, 64]),
            }
            chosen["rows"] = min(chosen["rows"], len(data.train))
            windows = max(PROBE, int(rows / chosen["rows"]))
            outcome = trained(session, windows, chosen, f"trial-{trial.number}")
            finite = math.isfinite(outcome.value)
            study.tell(trial, task.metric.order(outcome.value) if finite else 1e9)
            order = outcome.order(task.metric)
            trials.append({**chosen, "windows": windows, "valid": outcome.value, "order": order})
        best = min(trials, key=lambda each: each["order"])
        outcomes = [
            trained(session, best["windows"], best, f"final-{number}", number) for number in range(config.contest_seeds)
        ]
    test = [outcome.test for outcome in outcomes]
    seconds = round(time.monotonic() - started, 1)
    return {**best, "test": test, "trials": len(trials), "hidden": config.hidden, "seconds": seconds}


def trained(
    session: Session[SearchConfig], windows: int, chosen: Mapping[str, Any], name: str, number: int | None = None
) -> Any:
    """The outcome of a GRU; one of the last trainings has a number, and is measured on the test part."""
    config = session.config
    own = replace(
        config,
        weight_decay=chosen.get("decay", 0.0),
        dropout_output=chosen.get("dropout", 0.0),
        clip=chosen.get("clip", config.clip),
        data_batch=chosen.get("rows", config.data_batch),
    )
    seed = config.seed if number is None else config.seed + 1 + number
    rates, last = [chosen["rate"]], number is not None
    plan = Plan(["gru"], windows, seed, rates=rates, decay=True, test=last, checks=CHECKS)
    path = session.folder.path / name
    return train_standalone(replace(session, config=own), path, plan, name).outcomes[0]


def summary(result: Mapping[str, Any]) -> str:
    names = [*(row["name"] for row in result["contest"]["contestants"]), "tuned gru"]
    figures = (f"{name} {mean_of(result, name):.4g}" for name in names)
    return f"{', '.join(figures)}  {result['cell']}"


def mean_of(result: Mapping[str, Any], name: str) -> float:
    """Of a contestant's trainings in one search that did not diverge, on the test part; NaN if there are none."""
    rows = {row["name"]: row for row in result["contest"]["contestants"]}
    row = result[name] if name == "tuned gru" else rows.get(name, {"test": []})
    reached = not_diverged(row)
    return statistics.fmean(reached) if reached else math.nan


def table(out: Path) -> str:
    """As Markdown: mean and standard deviation over searches, of which each is one value."""
    lines = [f"| set | metric | searches | {' | '.join(COLUMNS)} | against GRU | against tuned GRU |"]
    lines.append("|---|" + "---|" * (len(COLUMNS) + 4))
    for name in SETS:
        results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob(f"{name}-[0-9]*.json"))]
        if not results:
            continue
        metric = Metric(**results[0]["metric"])
        found = {column: [mean_of(result, column) for result in results] for column in COLUMNS}
        cells = [written(values, metric.places) for values in found.values()]
        against = [compared(found["winner"], found[rival], metric) for rival in ("gru", "tuned gru")]
        mark = " (settings were chosen on it)" if name in TUNED_ON else ""
        lines.append(f"| {name}{mark} | {metric.name} | {len(results)} | {' | '.join([*cells, *against])} |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/series"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--sets", default=",".join(SETS), metavar="NAME,NAME...", help="default: all")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="default: %(default)s")
    parser.add_argument("--minutes", type=float, default=1.0, metavar="M", help="of a search (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="default: %(default)s")
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    return parser


if __name__ == "__main__":
    main()
