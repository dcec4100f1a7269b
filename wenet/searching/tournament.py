"""Cells on equal terms: the same standalone training of each over several seeds, and whether they differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from wenet.cells import Genotype, load_genotype
from wenet.run import (
    Interrupt,
    RunFolder,
    Session,
    Surroundings,
    counted,
    duration,
    figure,
    pytorch_products_in,
    run_settings,
    stored_config,
    stored_data,
)
from wenet.searching.audit import summary
from wenet.searching.settings import SearchConfig
from wenet.searching.work import SEARCH
from wenet.tasks import Metric, task_of
from wenet.training.standalone import LSTM, genotype_text, size_of_lstm, train_standalone, training_windows
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
    if cells[0] == LSTM:
        raise WenetError(f"{LSTM} cannot come first; the first is the folder of a search, whose settings all take")
    genotypes = {cell: None if cell == LSTM else load_genotype(cell, besides=[LSTM]) for cell in cells}
    with closing(RunFolder.open(Path(cells[0]))) as first:
        stored = stored_config(first, SEARCH)
        task = task_of(stored)
        data = stored_data(first, stored, task, surroundings.data_dir)
    config = stored if epochs is None else replace(stored, audit_epochs=epochs)
    settings = run_settings("ranking", config, data, surroundings.data_dir)
    settings |= {"cells": {cell: genotype_text(genotype) for cell, genotype in genotypes.items()}, "seeds": seeds}
    with Interrupt() as interrupt, closing(RunFolder.open_or_create(out, settings)) as run:
        session = Session(config, None, task, data, run, interrupt, surroundings)
        try:
            with pytorch_products_in(config):
                return _rank(session, genotypes, seeds)
        finally:
            session.console.stop()


def _rank(session: Session[SearchConfig], cells: Mapping[str, Genotype | None], seeds: int) -> dict[str, Any]:
    epochs, first_seed = session.config.audit_epochs, session.config.seed
    windows, folder = training_windows(session, epochs), session.folder
    lstm = _session_of_lstm(session, cells) if LSTM in cells else None
    found, seconds = [], 0.0
    for number, seed in enumerate(range(first_seed, first_seed + seeds), start=1):
        values, cost = _train(session, lstm, cells, windows, seed, f"seed {number}/{seeds}")
        found.append(values)
        seconds += cost
    result = {
        "epochs": epochs,
        "windows": windows,
        "seconds": round(seconds, 3),
        "cells": _ranking(cells, {name: [values[name] for values in found] for name in cells}, session.task.metric),
    }
    folder.write_json(RESULT, result)
    return result


def _session_of_lstm(session: Session[SearchConfig], cells: Mapping[str, Genotype | None]) -> Session[SearchConfig]:
    """One whose hidden size gives an LSTM as many parameters as a cell."""
    genotypes = [genotype for genotype in cells.values() if genotype is not None]
    size = size_of_lstm(session.config, genotypes, session.task, session.data)
    session.console.say(
        f"{LSTM}: one layer of size {size}, with as many parameters as a cell of {session.config.hidden}"
    )
    return replace(session, config=replace(session.config, hidden=size))


def _train(
    session: Session[SearchConfig],
    lstm: Session[SearchConfig] | None,
    cells: Mapping[str, Genotype | None],
    windows: int,
    seed: int,
    label: str,
) -> tuple[dict[str, float], float]:
    """Values by name, and seconds: all cells at once, then the LSTM."""
    path = session.folder.path / f"seed-{seed}"
    genotypes = {name: genotype for name, genotype in cells.items() if genotype is not None}
    training = train_standalone(session, path, list(genotypes.values()), windows, seed, label)
    values = {name: outcome.value for name, outcome in zip(genotypes, training.outcomes, strict=True)}
    if lstm is None:
        return values, training.seconds
    other = train_standalone(lstm, path.with_name(f"{path.name}-{LSTM}"), [None], windows, seed, f"{label}, {LSTM}")
    return {**values, LSTM: other.outcomes[0].value}, training.seconds + other.seconds


def _ranking(
    cells: Mapping[str, Genotype | None], values: Mapping[str, Sequence[float]], metric: Metric
) -> list[dict[str, Any]]:
    """Cells by their mean value, those that always diverged at the end."""
    first = next(iter(cells))
    found = [
        {
            "name": name,
            "genotype": genotype_text(cells[name]),
            "values": [value if math.isfinite(value) else None for value in of_cell],
            **summary(of_cell),
            "against": None if name == first else first,
            "p": None if name == first else _welch(values[first], of_cell),
        }
        for name, of_cell in values.items()
    ]
    return sorted(found, key=lambda cell: math.inf if cell["mean"] is None else metric.order(cell["mean"]))


def _welch(first: Sequence[float], second: Sequence[float]) -> float | None:
    """None where there is nothing to compare."""
    from scipy import stats  # takes a second to import

    a, b = ([value for value in values if math.isfinite(value)] for values in (first, second))
    if min(len(a), len(b)) < 2:
        return None
    p = float(stats.ttest_ind(a, b, equal_var=False).pvalue)
    return p if math.isfinite(p) else None


def describe_ranking(result: dict[str, Any], metric: Metric) -> str:
    """A line for each cell, the best first."""
    seeds = len(result["cells"][0]["values"])
    lines = [f"validation {metric.name} after {counted(result['epochs'], 'epoch')}, mean over {counted(seeds, 'seed')}"]
    for cell in result["cells"]:
        spread = "" if cell["sd"] is None else f" ± {cell['sd']:.{metric.places}f}"
        diverged = f", {cell['diverged']} diverged" if cell["diverged"] else ""
        against = "" if cell["p"] is None else f", differs from {cell['against']} at p = {cell['p']:.3f}"
        lines.append(f"{figure(cell['mean'], metric.places, 'diverged')}{spread}{diverged}  {cell['name']}{against}")
        lines.append(f"    {cell['genotype']}")
    return "\n".join([*lines, f"cost: {duration(result['seconds'])}"])
