"""`python -m bench.race_quality`: how well the score of a race agrees with what its cells are worth in the end.

The truth of a cell is its validation loss after trainings whose rates fall to zero, at the rate of a grid that is best
for the pool. Its score is the loss of a moving average of the weights while the rate stays constant, after an eighth, a
quarter, a half and all of the windows, as in a race; beside it stands the same training at the other rate. The ceiling
is how well two trainings of the truth agree. Trainings are kept under --out, and the same command goes on with them.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
from scipy import stats

from bench.sessions import pool_parser, session_in
from wenet.cells import random_genotypes
from wenet.run import Session, resolve_machine
from wenet.searching.audit import correlation, summary
from wenet.searching.settings import SearchConfig, resolve_config
from wenet.searching.shapes import session_for
from wenet.tasks import task_of
from wenet.training import Origin, Plan, train_standalone

RATES = (0.02, 0.04)
KEPT = ("dataset", "level", "nodes", "parameters", "windows", "pool_seed")  # of the options, in the file
SHARES = (8, 4, 2, 1)  # of the windows: an eighth, a quarter, a half, all


def main() -> None:
    options = _parser().parse_args()
    given = {"dataset": options.dataset, "level": options.level, "max_vocabulary": options.max_vocabulary}
    config = resolve_machine(
        resolve_config("race", {**given, "nodes": options.nodes, "parameters": options.parameters})
    )
    data = task_of(config).load(config, options.data_dir)
    with session_in(options.out, config, data) as whole:
        found = measure(whole, options)
    options.out.joinpath("race-quality.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found))


def measure(whole: Session[SearchConfig], options: argparse.Namespace) -> dict[str, Any]:
    """All trainings of a pool, and how they agree."""
    cells = random_genotypes(options.cells, options.nodes, options.pool_seed)
    session = session_for(cells[0], whole)
    folder, windows, count = whole.folder.path, options.windows, len(cells)

    def ends(rate: float, seed: int) -> np.ndarray:
        plan = Plan(cells, windows, seed, rates=[rate] * count, decay=True)
        result = train_standalone(session, folder / f"ends-{rate}-{seed}", plan, f"rate {rate}, seed {seed}")
        return np.array([outcome.value for outcome in result.outcomes])

    first = {rate: ends(rate, 1) for rate in RATES}
    rate = min(RATES, key=lambda each: first[each].mean())
    trainings = np.stack([first[rate], ends(rate, 2)])
    truth = trainings.mean(0)
    rows: list[dict[str, Any]] = []
    origins: list[Origin] = []
    for share in SHARES:
        path = folder / f"race-{share}"
        plan = Plan(
            cells,
            windows // share,
            3,
            rates=[rate / 2] * count,
            origins=origins,
            average=True,
            leave=True,
            held_out=10**6,
        )
        result = train_standalone(session, path, plan, f"race, {windows // share} windows")
        origins = [Origin(path, place) for place in range(count)]
        losses = np.array(result.held_out).mean(0)
        rows.append({"windows": windows // share, "mean": float(losses.mean()), "tau": tau_of(losses, truth)})
    return {
        "settings": {name: getattr(options, name) for name in KEPT},
        "cells": count,
        "rate": rate,
        "ceiling": tau_of(trainings[0], trainings[1]),
        "values": summary(truth.tolist()),
        "other_rate": tau_of(first[next(r for r in RATES if r != rate)], truth),
        "rungs": rows,
    }


def tau_of(first: np.ndarray, second: np.ndarray) -> dict[str, float | None]:
    return correlation(stats.kendalltau, first.tolist(), second.tolist(), 1)


def table(found: dict[str, Any]) -> str:
    """As Markdown."""
    lines = ["| score | τ with the end (95 %) |", "|---|---|"]
    lines += [f"| race, {row['windows']} windows | {written(row['tau'])} |" for row in found["rungs"]]
    lines.append(f"| the same training at the other rate | {written(found['other_rate'])} |")
    lines.append(f"| ceiling: a second training at rate {found['rate']} | {written(found['ceiling'])} |")
    return "\n".join(lines)


def written(tau: dict[str, float | None]) -> str:
    if tau["value"] is None:
        return "undefined"
    interval = "" if tau["low"] is None else f" ({tau['low']:.2f} to {tau['high']:.2f})"  # too few cells for one
    return f"{tau['value']:.2f}{interval}"


def _parser() -> argparse.ArgumentParser:
    parser = pool_parser(__doc__, "ptb", 24, 480)
    parser.add_argument("--level", default="characters", help="default: %(default)s")
    parser.add_argument("--max-vocabulary", type=int, metavar="N")
    parser.add_argument("--nodes", type=int, default=3, metavar="L", help="default: %(default)s")
    parser.add_argument("--parameters", type=int, default=20_000, metavar="N", help="default: %(default)s")
    return parser


if __name__ == "__main__":
    main()
