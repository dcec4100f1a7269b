"""Rank cells on equal terms: the same standalone training for each, with several seeds, and tests of differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from wenet.cells import load_cell
from wenet.run import (
    Interrupt,
    RunFolder,
    Session,
    Surroundings,
    explaining_out_of_memory,
    pytorch_products_in,
    run_settings,
    stored_config,
    stored_data,
)
from wenet.searching.audit import summary, welch
from wenet.searching.settings import SearchConfig
from wenet.searching.shapes import Group, by_shape, config_for
from wenet.searching.work import SEARCH
from wenet.tasks import Metric, task_of
from wenet.training import LAYERS, Architecture, Plan, parameter_count, train_standalone, training_windows
from wenet.words import counted, duration, figure_and_spread
from wenet_kernels import WenetError

RESULT = "ranking.json"


def hold_tournament(
    cells: Sequence[str], out: Path, seeds: int, epochs: float | None, surroundings: Surroundings
) -> dict[str, Any]:
    """Train cells standalone on equal terms, over several seeds; see `wenet.rank_cells`."""
    if len(cells) < 2 or len(set(cells)) < len(cells):
        raise WenetError("name at least two different cells, the first of them the folder of a search")
    if seeds < 2:
        raise WenetError(f"--seeds must be at least 2, not {seeds}")
    if cells[0] in LAYERS:
        raise WenetError(f"{cells[0]} cannot come first; the first is the folder of a search, whose settings all take")
    entrants = {cell: cell if cell in LAYERS else load_cell(cell, besides=list(LAYERS)) for cell in cells}
    with closing(RunFolder.open(Path(cells[0]), to_read=True)) as first:
        stored = stored_config(first, SEARCH)
        task = task_of(stored)
        data = stored_data(first, stored, task, surroundings.data_dir)
    config = stored if epochs is None else replace(stored, audit_epochs=epochs)
    settings = run_settings("ranking", config, data, surroundings.data_dir)
    settings |= {"cells": {name: str(entrant) for name, entrant in entrants.items()}, "seeds": seeds}
    with Interrupt() as interrupt, closing(RunFolder.open_or_create(out, settings)) as run:
        session = Session(config, None, task, data, run, interrupt, surroundings)
        try:
            with explaining_out_of_memory("name fewer cells"), pytorch_products_in(config):
                return _rank(session, entrants, seeds)
        finally:
            session.console.stop()


def _rank(session: Session[SearchConfig], entrants: Mapping[str, Architecture], seeds: int) -> dict[str, Any]:
    epochs, first_seed = session.config.audit_epochs, session.config.seed
    windows, folder = training_windows(session, epochs), session.folder
    groups, of_names = _groups(session, entrants), list(entrants)
    values: dict[str, list[float]] = {name: [] for name in entrants}
    seconds = 0.0
    for number, seed in enumerate(range(first_seed, first_seed + seeds), start=1):
        for group in groups:
            plan = Plan(group.architectures, windows, seed, hidden=group.hidden())
            path, label = folder.path / f"seed-{seed}-{group.name}", f"seed {number}/{seeds}"
            training = train_standalone(replace(session, config=group.config), path, plan, label)
            seconds += training.seconds
            for place, outcome in zip(group.places, training.outcomes, strict=True):
                values[of_names[place]].append(outcome.value)
    result = {
        "epochs": epochs,
        "windows": windows,
        "seconds": round(seconds, 3),
        "cells": _ranking(entrants, values, session.task.metric),
    }
    folder.write_json(RESULT, result)
    return result


def _groups(session: Session[SearchConfig], entrants: Mapping[str, Architecture]) -> list[Group]:
    """What trains at once, all at hidden sizes that give as many parameters as the first cell has."""
    first = next(iter(entrants.values()))
    sized = config_for(first, session.config, session.task, session.data)
    wanted = parameter_count(sized, first, session.task, session.data)
    groups = by_shape(list(entrants.values()), session.config, session.task, session.data, wanted)
    for group in groups:
        if group.kind in LAYERS:
            size, of_cell = group.config.hidden, sized.hidden
            session.console.say(
                f"{group.kind}: one layer of size {size}, with as many parameters as a cell of {of_cell}"
            )
    return groups


def _ranking(
    entrants: Mapping[str, Architecture], values: Mapping[str, Sequence[float]], metric: Metric
) -> list[dict[str, Any]]:
    """The cells by their mean value; cells that always diverged come last."""
    first = next(iter(entrants))
    found = [
        {
            "name": name,
            "genotype": str(entrants[name]),
            "values": [value if math.isfinite(value) else None for value in of_cell],
            **summary(of_cell),
            "against": None if name == first else first,
            "p": None if name == first else welch(values[first], of_cell),
        }
        for name, of_cell in values.items()
    ]
    return sorted(found, key=lambda cell: math.inf if cell["mean"] is None else metric.order(cell["mean"]))


def describe_ranking(result: dict[str, Any], metric: Metric) -> str:
    """Describe the ranking, the best cell first."""
    seeds = len(result["cells"][0]["values"])
    lines = [f"validation {metric.name} after {counted(result['epochs'], 'epoch')}, mean over {counted(seeds, 'seed')}"]
    for cell in result["cells"]:
        diverged = f", {cell['diverged']} diverged" if cell["diverged"] else ""
        against = "" if cell["p"] is None else f", p = {cell['p']:.3f} against {cell['against']}"
        reached = figure_and_spread(cell["mean"], cell["sd"], metric.places, "diverged")
        lines.append(f"{reached}{diverged}  {cell['name']}{against}")
        lines.append(f"    {cell['genotype']}")
    return "\n".join([*lines, f"cost: {duration(result['seconds'])}"])
