"""`python -m bench.searches TEXT`: many default searches, each beside a random search that costs as much.

A search races its cells and ends with its contest. The random search draws from the same pool, whose first cells are
the first generation of the race, and trains as many, as long as the race trains its last, as the windows of the race
allow. It is given the learning rate that most cells of the race had, so the windows in which the race tried rates do
not count: had it to try rates as the race does, its cost would be that of the whole race. Its best cells then train as
the finalists of the contest do. Differences are those of whole searches: the mean of a contestant's trainings in one
search is one value, and p is that of a paired t-test. A file for each text and seed lies under --out; the same command
goes on where it was stopped. With --nodes the pools have other sizes, and contests are held between cells alone. With
--anew both winners of each search train so many times more, from new seeds, and are compared by these trainings alone:
the few of a contest differ more than the winners do.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import wenet
from bench.paired import compared, written
from bench.sessions import session_in
from wenet.cells import read_cell
from wenet.run import resolve_machine
from wenet.searching.contest import hold_contest
from wenet.searching.race import FOLDER, Race, RaceBest
from wenet.searching.settings import resolve_config
from wenet.searching.shapes import by_shape
from wenet.searching.strategy import RECORDS
from wenet.tasks import CharacterModelling, task_of
from wenet.training import Plan, train_standalone

TWO = ("winner", "random search")  # that are trained anew
FIRST_SEED = 1000  # of trainings anew, with that of the search on top
CONTESTANTS = ("winner", "random search", "lstm", "gru", "median cell")


def main() -> None:
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    for seed in range(1, options.seeds + 1):
        for name in options.datasets:
            settings = {"seed": seed} if options.nodes is None else {"seed": seed, "nodes": options.nodes}
            path = measure(options.out, name, options.data_dir, settings, rivals=options.nodes is None)
            if options.anew:
                train_anew(path, name, options.data_dir, options.anew)
    print(table(options.out))


def measure(out: Path, name: str, data_dir: Path | None, settings: dict[str, Any], rivals: bool = True) -> Path:
    """Search by a race and at random, unless the result is there; returns its file.

    Args:
        rivals: whether LSTM, GRU and published cells take part in the contest of the race.
    """
    label = f"{Path(name).stem}-{settings['seed']}"
    path = out / f"{label}.json"
    if path.exists():
        there = json.loads(path.read_text(encoding="utf-8"))["settings"]
        if there != settings:
            raise SystemExit(f"{path} holds a search with other settings, {there}; name another --out")
        return path
    folder = out / "runs" / label
    given = {**settings, "dataset": name}
    contest = whole(folder, given, data_dir) if rivals else among_cells(folder, given, {}, data_dir)[1]
    best = json.loads((folder / "best.json").read_text(encoding="utf-8"))
    result = {
        "text": Path(name).stem,
        "settings": settings,
        "windows_of_networks": best["network_windows"],
        "windows_of_rungs": windows_of_rungs(folder),
        "cell": next(row["genotype"] for row in contest["contestants"] if row["name"] == "winner"),
        "contest": contest,
        "random search": random_search(out / "random" / label, folder, given, data_dir),
    }
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{label}: {summary(result)}", flush=True)
    return path


def whole(folder: Path, given: dict[str, Any], data_dir: Path | None) -> dict[str, Any]:
    """The contest of a whole search."""
    if (folder / "config.json").exists():
        found = wenet.resume_search(folder)
    else:
        found = wenet.search(data_dir=data_dir, out=folder, preset="race", **given)
    assert found.contest is not None
    return found.contest


def among_cells(
    folder: Path, given: dict[str, Any], of_race: dict[str, Any], data_dir: Path | None
) -> tuple[RaceBest, dict[str, Any]]:
    """A race with some settings of its own, and the contest of its finalists with none but cells of the pool."""
    searching = resolve_machine(resolve_config("race", given, of_race))
    contest = replace(searching, rates=resolve_config("race", given).rates)
    data = task_of(searching).load(searching, data_dir)
    with session_in(folder, searching, data) as session:
        best = Race(session).run()
    with session_in(folder, contest, data) as session:
        session.task.rivals = ()
        _, held = hold_contest(session, best)
    return best, held


def random_search(folder: Path, raced: Path, given: dict[str, Any], data_dir: Path | None) -> dict[str, Any]:
    """The contest of the best cells of a random search that costs as much as a race, trials of rates aside."""
    config = resolve_config("race", given)
    spent = windows_of_rungs(raced)
    records = raced.joinpath(RECORDS).read_text(encoding="utf-8").splitlines()
    last = max(json.loads(record)["windows"] for record in records)
    cells = min(config.pool, spent // (config.networks_per_cell * last))
    longer = {"rungs": 1, "epochs_per_round": config.epochs_per_round * 2 ** (config.rungs - 1)}
    alone = {**longer, "pool": cells, "batch": cells, "keep": min(config.keep, cells), "rates": str(usual_rate(raced))}
    best, held = among_cells(folder, given, alone, data_dir)
    return {"cells": cells, "windows_of_networks": best.network_windows, **held}


def train_anew(path: Path, name: str, data_dir: Path | None, trainings: int) -> None:
    """Train both winners of a search so many times more, and keep their values on the test part in its result."""
    result = json.loads(path.read_text(encoding="utf-8"))
    if len(result.get("anew", {}).get("winner", [])) == trainings:
        return
    config = resolve_machine(resolve_config("race", {**result["settings"], "dataset": name}))
    data = task_of(config).load(config, data_dir)
    rows = {name: row for name in TWO if (row := row_of(result, name)) is not None}
    found: dict[tuple[str, float], list[float]] = {}
    with session_in(path.parent / "anew" / f"{path.stem}-{trainings}", config, data) as session:
        for cell, rate in dict.fromkeys((row["genotype"], row["rate"]) for row in rows.values()):
            (group,) = by_shape([read_cell(cell)], config, session.task, data)
            own, folder = replace(session, config=group.config), session.folder.path / str(len(found))
            networks = group.architectures * trainings
            rates, windows = [rate] * trainings, result["contest"]["windows"]
            plan = Plan(networks, windows, FIRST_SEED + config.seed, rates=rates, decay=True, test=True)
            outcomes = train_standalone(own, folder, plan, cell).outcomes
            found[cell, rate] = [math.nan if outcome.test is None else outcome.test for outcome in outcomes]
    result["anew"] = {name: found[row["genotype"], row["rate"]] for name, row in rows.items()}
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{path.stem}, anew: {', '.join(f'{name} {mean_anew(result, name):.4f}' for name in rows)}", flush=True)


def windows_of_rungs(raced: Path) -> int:
    """Those of all networks of a race, but for its trials of rates."""
    results = raced.glob(f"{FOLDER}/[0-9]*/result.json")
    return sum(json.loads(path.read_text(encoding="utf-8"))["network_windows"] for path in results)


def usual_rate(raced: Path) -> float:
    """The rate that most networks of the first rung had."""
    plans = [json.loads(path.read_text(encoding="utf-8")) for path in raced.glob(f"{FOLDER}/1-1-*/config.json")]
    return float(Counter(rate for plan in plans for rate in plan["rates"]).most_common(1)[0][0])


def mean_of(result: dict[str, Any], name: str) -> float:
    """Of a contestant's trainings in one search, on the test part; not a number if it did not take part."""
    row = row_of(result, name)
    return math.nan if row is None else float(row["mean"])


def mean_anew(result: dict[str, Any], name: str) -> float:
    """The same of its trainings anew."""
    return statistics.fmean(result["anew"][name]) if "anew" in result else math.nan


def row_of(result: dict[str, Any], name: str) -> dict[str, Any] | None:
    """A contestant in the table of its contest; None if it did not take part."""
    contest = result["random search"] if name == "random search" else result["contest"]
    wanted = "winner" if name == "random search" else name
    return next((row for row in contest["contestants"] if row["name"] == wanted), None)


def summary(result: dict[str, Any]) -> str:
    found = {name: mean_of(result, name) for name in CONTESTANTS}
    means = ", ".join(f"{name} {mean:.4f}" for name, mean in found.items() if not math.isnan(mean))
    return f"{means}  {result['cell']}"


def table(out: Path) -> str:
    """As Markdown: what the contests say, and below what trainings anew do."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*-[0-9]*.json"))]
    trained = [result for result in results if "anew" in result]
    parts = [_table(results, CONTESTANTS, mean_of), *([_table(trained, TWO, mean_anew)] if trained else [])]
    return "\n\n".join(parts)


def _table(
    results: Sequence[dict[str, Any]], names: Sequence[str], mean: Callable[[dict[str, Any], str], float]
) -> str:
    lines = [f"| text | searches | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for text in dict.fromkeys(result["text"] for result in results):
        own = [result for result in results if result["text"] == text]
        found = {name: [mean(result, name) for result in own] for name in names}
        cells = [_cell(values, [] if name == "winner" else found["winner"]) for name, values in found.items()]
        lines.append(f"| {text} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float], winners: Sequence[float]) -> str:
    """What searches found, compared with their winners if there are any; empty if nobody took part."""
    difference = f" ({compared(winners, values, CharacterModelling.metric)})" if winners else ""
    return "" if all(map(math.isnan, values)) else written(values, 4) + difference


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="*", default=["sotu", "ptb"], metavar="TEXT", help="as in wenet-search")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument("--nodes", metavar="L[-L]", help="of the cells, by default as in wenet-search")
    parser.add_argument("--anew", type=int, default=0, metavar="N", help="trainings of both winners (default: none)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="default: %(default)s")
    parser.add_argument("--data-dir", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, default=Path("runs/searches"), metavar="DIR", help="default: %(default)s")
    return parser


if __name__ == "__main__":
    main()
