"""`python -m bench.gated_cells`: random gated cells against LSTM and GRU, at equal parameters on characters.

Every cell and both layers train with several seeds, each at the rate of a grid that was best for it after a third of
the windows with another seed; rates fall to zero. How many cells are better than a layer goes by their means over
seeds; the best is chosen by all seeds but the last, which then measures it. Trainings are kept under --out, and the
same command goes on with them.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from scipy import stats

from bench.sessions import pool_parser, session_in
from wenet.cells.gated import random_mixed_programs
from wenet.run import Session, resolve_machine
from wenet.searching.audit import welch
from wenet.searching.settings import SearchConfig, resolve_config
from wenet.searching.shapes import Group, by_shape
from wenet.tasks import task_of
from wenet.training import Architecture, Plan, train_standalone

RIVALS = ("lstm", "gru")
RATES = (0.01, 0.02, 0.04)
RATE_SHARE = 3  # rates are tried for one in this many of the windows
HELD_OUT = 30  # windows of the validation part on which a training is measured
KEPT = ("dataset", "level", "blocks", "parameters", "windows", "data_batch", "pool_seed")  # of the options, in the file


def main() -> None:
    options = _parser().parse_args()
    given = {"dataset": options.dataset, "level": options.level, "blocks": options.blocks, "space": "gated"}
    given |= {"parameters": options.parameters, "data_batch": options.data_batch}
    config = resolve_machine(resolve_config("race", given))
    data = task_of(config).load(config, options.data_dir)
    drawn = random_mixed_programs(options.cells, (1, 2), config.block_counts, options.pool_seed, known=False)
    with session_in(options.out, config, data) as session:
        groups = by_shape([*RIVALS, *drawn], config, session.task, data)
        rows = [row for group in groups for row in measured(session, group, options.windows, options.seeds)]
    kept = [{**row, "values": [each if math.isfinite(each) else None for each in row["values"]]} for row in rows]
    found = {"settings": {name: getattr(options, name) for name in KEPT}, "cells": kept}
    options.out.joinpath("gated-cells.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


def measured(session: Session[SearchConfig], group: Group, windows: int, seeds: int) -> list[dict[str, Any]]:
    """A row for every architecture of a shape: its rate, and its value by seed."""
    own = replace(session, config=group.config)
    folder, members = session.folder.path / group.name, group.architectures

    def values(seed: int, rates: Sequence[float], cells: Sequence[Architecture], length: int) -> list[float]:
        plan = Plan(cells, length, seed, rates=rates, decay=True, held_out=HELD_OUT)
        result = train_standalone(own, folder / f"seed-{seed}", plan, f"{group.name}, seed {seed}")
        return [outcome.value for outcome in result.outcomes]

    grid = [(cell, rate) for cell in members for rate in RATES]
    tried = values(0, [rate for _, rate in grid], [cell for cell, _ in grid], windows // RATE_SHARE)
    of_each = [tried[first : first + len(RATES)] for first in range(0, len(tried), len(RATES))]
    rates = [RATES[own.index(min(own))] for own in of_each]
    trained = [values(seed, rates, members, windows) for seed in range(1, seeds + 1)]
    return [
        {"cell": str(cell), "hidden": group.config.hidden, "rate": rate, "values": [each[place] for each in trained]}
        for place, (cell, rate) in enumerate(zip(members, rates, strict=True))
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """As Markdown: the layers, the best cell and the median, and what the pool says."""
    layers = {row["cell"]: row for row in rows if row["cell"] in RIVALS}
    drawn = sorted((row for row in rows if row["cell"] not in RIVALS), key=_mean)
    best = min(drawn, key=lambda row: statistics.fmean(row["values"][:-1]))
    lines = ["| | bits per character | rate | hidden | cell |", "|---|---|---|---|---|"]
    shown = {"best of the pool": best, "median of the pool": drawn[len(drawn) // 2], **layers}
    lines += [
        f"| {name} | {_written(row)} | {row['rate']:g} | {row['hidden']} | `{_in_a_cell(row['cell'])}` |"
        for name, row in shown.items()
    ]
    lines.append("")
    for name, layer in layers.items():
        better = [row for row in drawn if _mean(row) < _mean(layer)]
        shown_to_be = [row for row in better if (welch(row["values"], layer["values"]) or 1.0) < 0.05]
        lines.append(f"better than {name}: {len(better)} of {len(drawn)} by the mean, {len(shown_to_be)} with p < 0.05")
    last = {name: row["values"][-1] for name, row in {"the best": best, **layers}.items()}
    diverged = sum(not math.isfinite(_mean(row)) for row in drawn)
    lines.append(f"diverged with some seed: {diverged}; such a cell counts as the worst")
    lines.append("on the last seed: " + ", ".join(f"{name} {value:.3f}" for name, value in last.items()))
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


def _written(row: dict[str, Any]) -> str:
    return f"{_mean(row):.3f} ± {statistics.stdev(row['values']):.3f}"


def _parser() -> argparse.ArgumentParser:
    parser = pool_parser(__doc__, "sotu", 64, 240)
    parser.add_argument("--level", default="characters", help="default: %(default)s")
    parser.add_argument("--blocks", default="2-6", metavar="B", help="default: %(default)s")
    parser.add_argument("--parameters", type=int, default=10_000, metavar="N", help="default: %(default)s")
    parser.add_argument("--data-batch", type=int, default=16, metavar="M", help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="default: %(default)s")
    return parser


if __name__ == "__main__":
    main()
