"""`python -m bench.searches TEXT`: many default searches, each beside a random search that costs as much.

A search races its cells and ends with its contest. The random search draws the same cells in the same order, and trains
as many of them, as long as the race trains its last, as the windows of the race allow; it is given the learning rate
that most cells of the race had. Its best cells then train as the finalists of the contest do. Differences are those
of whole searches: the mean of a contestant's trainings in one search is one value, and p is that of a paired t-test.
A file for each text and seed lies under --out; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import wenet
from bench.paired import compared, written
from bench.sessions import session_in
from wenet.run import resolve_machine
from wenet.searching.contest import hold_contest
from wenet.searching.race import FOLDER, Race
from wenet.searching.settings import resolve_config
from wenet.searching.strategy import RECORDS
from wenet.tasks import CharacterModelling, task_of

CONTESTANTS = ("winner", "random search", "lstm", "gru", "median cell")


def main() -> None:
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    for seed in range(1, options.seeds + 1):
        for name in options.datasets:
            measure(options.out, name, options.data_dir, {"seed": seed})
    print(table(options.out))


def measure(out: Path, name: str, data_dir: Path | None, settings: dict[str, Any]) -> None:
    """Search by a race and at random, unless the result is there."""
    label = f"{Path(name).stem}-{settings['seed']}"
    path = out / f"{label}.json"
    if path.exists():
        return
    folder = out / "runs" / label
    if (folder / "config.json").exists():
        found = wenet.resume_search(folder)
    else:
        found = wenet.search(name, data_dir=data_dir, out=folder, preset="race", **settings)
    result = {
        "text": Path(name).stem,
        "settings": settings,
        "windows_of_networks": json.loads((folder / "best.json").read_text(encoding="utf-8"))["network_windows"],
        "cell": str(found.genotype),
        "contest": found.contest,
        "random search": random_search(out / "random" / label, folder, name, data_dir, settings),
    }
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{label}: {summary(result)}", flush=True)


def random_search(
    folder: Path, raced: Path, name: str, data_dir: Path | None, settings: dict[str, Any]
) -> dict[str, Any]:
    """The contest of the best cells of a random search that costs as much as a race."""
    config = resolve_machine(resolve_config("race", {**settings, "dataset": name}))
    spent = json.loads((raced / "best.json").read_text(encoding="utf-8"))["network_windows"]
    data = task_of(config).load(config, data_dir)
    records = raced.joinpath(RECORDS).read_text(encoding="utf-8").splitlines()
    last = max(json.loads(record)["windows"] for record in records)
    cells = min(config.pool, spent // (config.networks_per_cell * last))
    longer = {"rungs": 1, "epochs_per_round": config.epochs_per_round * 2 ** (config.rungs - 1)}
    rate = str(usual_rate(raced))
    alone = {**longer, "pool": cells, "batch": cells, "keep": min(config.keep, cells), "rates": rate}
    searching = resolve_machine(resolve_config("race", {**settings, "dataset": name, **alone}))
    with session_in(folder, searching, data) as session:
        best = Race(session).run()
    contest = resolve_machine(resolve_config("race", {**settings, "dataset": name, **alone, "rates": config.rates}))
    with session_in(folder, contest, data) as session:
        session.task.rivals = ()
        _, held = hold_contest(session, best)
    return {"cells": cells, "windows_of_networks": best.network_windows, **held}


def usual_rate(raced: Path) -> float:
    """The rate that most networks of the first rung had."""
    plans = [json.loads(path.read_text(encoding="utf-8")) for path in raced.glob(f"{FOLDER}/1-1-*/config.json")]
    return float(Counter(rate for plan in plans for rate in plan["rates"]).most_common(1)[0][0])


def mean_of(result: dict[str, Any], name: str) -> float:
    """Of a contestant's trainings in one search, on the test part."""
    contest = result["random search"] if name == "random search" else result["contest"]
    wanted = "winner" if name == "random search" else name
    return float(next(row for row in contest["contestants"] if row["name"] == wanted)["mean"])


def summary(result: dict[str, Any]) -> str:
    return ", ".join(f"{name} {mean_of(result, name):.4f}" for name in CONTESTANTS) + f"  {result['cell']}"


def table(out: Path) -> str:
    """As Markdown."""
    metric = CharacterModelling.metric
    lines = [f"| text | searches | {' | '.join(CONTESTANTS)} |", "|---|---|" + "---|" * len(CONTESTANTS)]
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*-[0-9]*.json"))]
    for text in dict.fromkeys(result["text"] for result in results):
        own = [result for result in results if result["text"] == text]
        found = {name: [mean_of(result, name) for result in own] for name in CONTESTANTS}
        cells = [
            written(values, 4) + ("" if name == "winner" else f" ({compared(found['winner'], values, metric)})")
            for name, values in found.items()
        ]
        lines.append(f"| {text} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="*", default=["sotu", "ptb"], metavar="TEXT", help="as in wenet-search")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="default: %(default)s")
    parser.add_argument("--data-dir", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, default=Path("runs/searches"), metavar="DIR", help="default: %(default)s")
    return parser


if __name__ == "__main__":
    main()
