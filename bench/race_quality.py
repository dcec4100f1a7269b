"""`python -m bench.race_quality`: how well the score of a race agrees with what its cells are worth in the end.

Cells are drawn as the preset draws them, at equal parameters. The truth of a cell is its validation loss after
trainings whose rates fall to zero, at the rate of the grid that is best for it; the ceiling is how well two such
trainings agree. Its score is the loss of a moving average of the weights on the way, in a third training, at each rate
of the grid, and that loss extrapolated from half as many windows. Trainings are kept under --out, and the same command
goes on with them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from bench.sessions import pool_parser, session_in
from wenet.run import Session, resolve_machine
from wenet.searching.audit import correlation
from wenet.searching.race import extrapolated, held_out_windows, losses_of
from wenet.searching.settings import SearchConfig, resolve_config
from wenet.searching.shapes import Group, by_shape
from wenet.searching.space import draw_pool
from wenet.tasks import task_of
from wenet.training import Origin, Plan, StandaloneResult, train_standalone

SEEDS = (1, 2)  # of the truth
SEED = 3  # of the score
SHARES = (16, 8, 4, 2)  # of the windows: a sixteenth, an eighth, a quarter, a half
KEPT = ("dataset", "level", "nodes", "parameters", "windows", "pool_seed")  # of the options, in the file


def main() -> None:
    options = _parser().parse_args()
    given = {"dataset": options.dataset, "level": options.level, "max_vocabulary": options.max_vocabulary}
    sizes = {"nodes": options.nodes, "parameters": options.parameters, "rates": options.rates}
    pool = {"pool": options.cells, "batch": options.cells, "pool_seed": options.pool_seed}
    config = resolve_machine(resolve_config("race", {**given, **sizes, **pool}))
    data = task_of(config).load(config, options.data_dir)
    with session_in(options.out, config, data) as session:
        found = measure(session, options.windows)
    found["settings"] = {name: getattr(options, name) for name in KEPT}
    options.out.joinpath("race-quality.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found))


def measure(session: Session[SearchConfig], windows: int) -> dict[str, Any]:
    """All trainings of a pool, and how they agree."""
    cells, rates = draw_pool(session.config), session.config.rate_grid
    groups = by_shape(cells, session.config, session.task, session.data)
    trainings = np.stack([_ends(session, groups, windows, seed) for seed in SEEDS])  # [2, cells, rates]
    truth = trainings.mean(0).min(1)
    scores = _scores(session, groups, windows)  # [rungs, cells, rates]
    rungs = [
        {
            "windows": windows // share,
            "medians": np.median(losses, 0).tolist(),
            "tau": [tau_of(losses[:, place], truth) for place in range(len(rates))],
            "tau_of_the_lowest": tau_of(losses.min(1), truth),
            "tau_extrapolated": [tau_of(ahead[:, place], truth) for place in range(len(rates))],
        }
        for share, losses, ahead in zip(SHARES, scores, _extrapolated(scores), strict=True)
    ]
    return {
        "cells": [str(cell) for cell in cells],
        "rates": rates,
        "truth": [loss if np.isfinite(loss) else None for loss in truth.tolist()],
        "best_rates": [rates[place] for place in trainings.mean(0).argmin(1)],
        "ceiling": tau_of(trainings[0].min(1), trainings[1].min(1)),
        "rungs": rungs,
    }


def _ends(session: Session[SearchConfig], groups: Sequence[Group], windows: int, seed: int) -> np.ndarray:
    """The losses of trainings whose rates fall to zero, `[cells, rates]`."""

    def ran(group: Group) -> np.ndarray:
        result = _train(session, group, f"ends-{seed}", _plan(session, group, windows, seed, decay=True))
        return np.array([np.inf if o.valid_loss is None else o.valid_loss for o in result.outcomes])

    return _in_place(groups, [ran(group) for group in groups])


def _scores(session: Session[SearchConfig], groups: Sequence[Group], windows: int) -> np.ndarray:
    """The losses after shares of the windows, `[rungs, cells, rates]`."""

    held_out = held_out_windows(session.config, session.task, session.data, windows // SHARES[-1])

    def ran(group: Group) -> np.ndarray:
        origins: list[Origin] = []
        losses = []
        for share in SHARES:
            more = {"origins": origins, "average": True, "leave": True, "held_out": held_out}
            more |= {"decay": True, "schedule": windows}
            result = _train(session, group, f"race-{share}", _plan(session, group, windows // share, SEED, **more))
            origins = [Origin(_path(session, group, f"race-{share}"), n) for n in range(len(result.outcomes))]
            losses.append(losses_of(result).mean(0).numpy())
        return np.stack(losses)

    found = [ran(group) for group in groups]
    return np.stack([_in_place(groups, [each[rung] for each in found]) for rung in range(len(SHARES))])


def _extrapolated(scores: np.ndarray) -> np.ndarray:
    """The losses after shares of the windows, extrapolated from half as many; those after the first as they are."""
    ahead = [extrapolated(halfway.ravel(), last.ravel()) for halfway, last in pairwise(scores)]
    return np.stack([scores[0], *(np.reshape(losses, scores[0].shape) for losses in ahead)])


def _plan(session: Session[SearchConfig], group: Group, windows: int, seed: int, **more: Any) -> Plan:
    """A network of every cell at every rate."""
    rates = session.config.rate_grid
    cells = [cell for cell in group.architectures for _ in rates]
    return Plan(cells, windows, seed, rates=rates * len(group.places), hidden=group.hidden(len(rates)), **more)


def _path(session: Session[SearchConfig], group: Group, what: str) -> Path:
    return session.folder.path / f"{what}-{group.name}"


def _train(session: Session[SearchConfig], group: Group, what: str, plan: Plan) -> StandaloneResult:
    own = replace(session, config=group.config)
    return train_standalone(own, _path(session, group, what), plan, f"{what}, {group.name}")


def _in_place(groups: Sequence[Group], found: Sequence[np.ndarray]) -> np.ndarray:
    """What all networks of each group have, `[n]`, in the order of the cells: `[cells, rates]`."""
    rows = {
        place: row
        for group, values in zip(groups, found, strict=True)
        for place, row in zip(group.places, values.reshape(len(group.places), -1), strict=True)
    }
    return np.stack([rows[place] for place in sorted(rows)])


def tau_of(first: np.ndarray, second: np.ndarray) -> dict[str, float | None]:
    """Kendall's tau with its interval; a network that diverged counts as the worst."""
    one, other = (np.where(np.isfinite(values), values, 1e9).tolist() for values in (first, second))
    return correlation(stats.kendalltau, one, other, 1)


def table(found: dict[str, Any]) -> str:
    """As Markdown."""
    rates = [f"rate {rate}" for rate in found["rates"]]
    names = [*rates, "the lowest of all rates", *(f"{rate}, extrapolated" for rate in rates)]
    lines = [f"| windows | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for rung in found["rungs"]:
        taus = [written(tau) for tau in (*rung["tau"], rung["tau_of_the_lowest"], *rung["tau_extrapolated"])]
        lines.append(f"| {rung['windows']} | {' | '.join(taus)} |")
    return "\n".join([*lines, f"ceiling: {written(found['ceiling'])}"])


def written(tau: dict[str, float | None]) -> str:
    if tau["value"] is None:
        return "undefined"
    interval = "" if tau["low"] is None else f" ({tau['low']:.2f} to {tau['high']:.2f})"  # too few cells for one
    return f"{tau['value']:.2f}{interval}"


def _parser() -> argparse.ArgumentParser:
    parser = pool_parser(__doc__, "ptb", 24, 1000)
    parser.add_argument("--level", default="characters", help="default: %(default)s")
    parser.add_argument("--max-vocabulary", type=int, metavar="N")
    parser.add_argument("--nodes", default="1-4", metavar="L[-L]", help="default: %(default)s")
    parser.add_argument("--parameters", type=int, default=80_000, metavar="N", help="default: %(default)s")
    parser.add_argument("--rates", default="0.01,0.02", metavar="RATE,...", help="default: %(default)s")
    return parser


if __name__ == "__main__":
    main()
