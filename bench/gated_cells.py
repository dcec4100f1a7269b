"""`python -m bench.gated_cells`: random gated cells against LSTM and GRU, at equal parameters.

The data are the characters of a text, or with `waves` the next value of three noisy waves. Every cell and both layers
train with several seeds, each at the rate of a grid that was best for it after a third of the windows with another
seed; rates fall to zero. How many cells are better than a layer goes by their means over seeds; the best is chosen by
all seeds but the last, which then measures it. Trainings are kept under --out, and the same command goes on with them.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any

from scipy import stats

from bench.series_sets import WAVES
from bench.sessions import pool_parser, session_in
from wenet.cells.gated import random_mixed_programs
from wenet.run import Session, resolve_machine
from wenet.run.session import taken
from wenet.searching.audit import welch
from wenet.searching.settings import SearchConfig, resolve_config
from wenet.searching.shapes import Group, by_shape
from wenet.tasks import Metric, task_of
from wenet.training import Plan, train_standalone
from wenet.words import figure_and_spread

RIVALS = ("lstm", "gru")
RATES = "0.01,0.02,0.04"
RATE_SHARE = 3  # rates are tried for one in this many of the windows
HELD_OUT = 30  # windows of the validation part on which a training is measured
MOST_BYTES = 2 << 30  # of the networks that train at once
# Of the options, in the file.
KEPT = ("dataset", "level", "blocks", "parameters", "windows", "data_batch", "rates", "pool_seed")


def main() -> None:
    options = _parser().parse_args()
    config, data = config_and_data(options)
    drawn = random_mixed_programs(options.cells, (1, 2), config.block_counts, options.pool_seed, known=False)
    with session_in(options.out, config, data) as session:
        groups = by_shape([*RIVALS, *drawn], config, session.task, data)
        parts = [part for group in groups for part in fitting(group, session)]
        rows = [row for part in parts for row in measured(session, *part, options.windows, options.seeds)]
    kept = [{**row, "values": [each if math.isfinite(each) else None for each in row["values"]]} for row in rows]
    found = {"settings": {name: getattr(options, name) for name in KEPT}, "cells": kept}
    options.out.joinpath("gated-cells.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(rows, task_of(config).metric))


def config_and_data(options: argparse.Namespace) -> tuple[SearchConfig, Any]:
    """Of a text, or of the waves."""
    of_waves = options.dataset == "waves"
    given = {name: getattr(options, name) for name in ("blocks", "parameters", "data_batch", "rates")}
    given |= WAVES.settings if of_waves else {"dataset": options.dataset, "level": options.level}
    given["space"] = "gated"
    config = resolve_machine(resolve_config("numbers" if of_waves else "race", given))
    task = task_of(config)
    return config, taken(task, WAVES.given(), config) if of_waves else task.load(config, options.data_dir)


def fitting(group: Group, session: Session[SearchConfig]) -> Iterator[tuple[str, Group]]:
    """The parts of a group that train at once, with their names: as many cells as fit into the memory at every rate."""
    count, rates = len(group.places), len(session.config.rate_grid)
    parts = 1
    if group.kind not in RIVALS:
        parts = min(count, math.ceil(group.memory(session.data, rates * len(group.places), 1) / MOST_BYTES))
    ends = [count * part // parts for part in range(parts + 1)]
    for number, (first, end) in enumerate(pairwise(ends), start=1):
        own = {name: getattr(group, name)[first:end] for name in ("architectures", "sizes", "places")}
        yield group.name if parts == 1 else f"{group.name}-part-{number}", replace(group, **own)


def measured(session: Session[SearchConfig], name: str, group: Group, windows: int, seeds: int) -> list[dict[str, Any]]:
    """A row for every architecture of a shape: its rate, and its value by seed."""
    own, grid = replace(session, config=group.config), group.config.rate_grid
    folder, members = session.folder.path / name, group.architectures

    def values(seed: int, rates: Sequence[float], copies: int, length: int) -> list[float]:
        cells = [cell for cell in members for _ in range(copies)]
        plan = Plan(cells, length, seed, rates=rates, decay=True, held_out=HELD_OUT, hidden=group.hidden(copies))
        result = train_standalone(own, folder / f"seed-{seed}", plan, f"{name}, seed {seed}")
        return [outcome.value for outcome in result.outcomes]

    tried = values(0, grid * len(members), len(grid), windows // RATE_SHARE)
    of_each = [tried[first : first + len(grid)] for first in range(0, len(tried), len(grid))]
    rates = [grid[each.index(min(each))] for each in of_each]
    trained = [values(seed, rates, 1, windows) for seed in range(1, seeds + 1)]
    return [
        {"cell": str(cell), "hidden": hidden, "rate": rate, "values": [each[place] for each in trained]}
        for place, (cell, hidden, rate) in enumerate(zip(members, group.sizes, rates, strict=True))
    ]


def table(rows: Sequence[dict[str, Any]], metric: Metric) -> str:
    """As Markdown: the layers, the best cell and the median, and what the pool says."""
    layers = {row["cell"]: row for row in rows if row["cell"] in RIVALS}
    drawn = sorted((row for row in rows if row["cell"] not in RIVALS), key=_mean)
    best = min(drawn, key=lambda row: statistics.fmean(row["values"][:-1]))
    lines = [f"| | {metric.name} | rate | hidden | cell |", "|---|---|---|---|---|"]
    shown = {"best of the pool": best, "median of the pool": drawn[len(drawn) // 2], **layers}
    lines += [
        f"| {name} | {_written(row, metric)} | {row['rate']:g} | {row['hidden']} | `{_in_a_cell(row['cell'])}` |"
        for name, row in shown.items()
    ]
    lines.append("")
    for name, layer in layers.items():
        better = [row for row in drawn if _mean(row) < _mean(layer)]
        shown_to_be = [row for row in better if (welch(row["values"], layer["values"]) or 1.0) < 0.05]
        lines.append(f"better than {name}: {len(better)} of {len(drawn)} by the mean, {len(shown_to_be)} with p < 0.05")
    places = metric.final_places
    last = {name: row["values"][-1] for name, row in {"the best": best, **layers}.items()}
    diverged = sum(not math.isfinite(_mean(row)) for row in drawn)
    lines.append(f"diverged with some seed: {diverged}; such a cell counts as the worst")
    lines.append("on the last seed: " + ", ".join(f"{name} {value:.{places}f}" for name, value in last.items()))
    taus = [
        float(stats.kendalltau(*([row["values"][seed] for row in drawn] for seed in pair)).statistic)
        for pair in combinations(range(len(best["values"])), 2)
    ]
    lines.append("τ between two trainings: " + ", ".join(f"{tau:.2f}" for tau in taus))
    return "\n".join(lines)


def _mean(row: dict[str, Any]) -> float:
    return statistics.fmean(row["values"])


def _in_a_cell(text: str) -> str:
    return text.replace("|", chr(92) + "|")


def _written(row: dict[str, Any], metric: Metric) -> str:
    return figure_and_spread(_mean(row), statistics.stdev(row["values"]), metric.final_places)


def _parser() -> argparse.ArgumentParser:
    parser = pool_parser(__doc__, "sotu", 64, 240)
    parser.add_argument("--level", default="characters", help="default: %(default)s")
    parser.add_argument("--blocks", default="2-6", metavar="B", help="default: %(default)s")
    parser.add_argument("--parameters", type=int, default=10_000, metavar="N", help="default: %(default)s")
    parser.add_argument("--data-batch", type=int, default=16, metavar="M", help="default: %(default)s")
    parser.add_argument("--rates", default=RATES, metavar="RATE,RATE...", help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="default: %(default)s")
    return parser


if __name__ == "__main__":
    main()
