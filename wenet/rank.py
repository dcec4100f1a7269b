"""Cells on equal terms: the same standalone training of each over several seeds, and whether they differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from scipy import stats

from wenet.audit import figure, summary, training_windows
from wenet.checkpoint import RunFolder
from wenet.config import SearchConfig, resolve_config
from wenet.console import Console, duration
from wenet.genotype import Genotype
from wenet.genotypes import load_genotype
from wenet.independent import TrainingResult, train_independently
from wenet.interrupt import Interrupt
from wenet.launch import CHECKPOINT_MINUTES, pytorch_products_in, run_settings, stored_config, stored_corpus
from wenet.resumable import Workplace
from wenet_kernels import WenetError

RESULT = "ranking.json"


def rank_cells(
    cells: Sequence[str],
    out: str | Path,
    *,
    seeds: int = 3,
    epochs: float | None = None,
    data_dir: str | Path | None = None,
    checkpoint_every: float = CHECKPOINT_MINUTES,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train cells standalone on equal terms, over several seeds; the same call again goes on where it was stopped.

    Args:
        cells: run folders, names, files or texts of cells, as `load_genotype` takes them; the first is a search, from
            which the text and all settings are taken.
        out: folder for `ranking.json` and the trainings.
        seeds: trainings of each cell, at least 2.
        epochs: passes over the training text; by default the search's `audit_epochs`.

    Returns:
        What `ranking.json` holds: cells by their mean validation perplexity, each with the p of Welch's two-sided
        t-test against the cell named first. A training that diverged is counted, and left out of mean and test.

    Raises:
        WenetError: fewer than two cells or seeds, cells of different sizes, no such run, or its text has changed.
        Stopped: SIGINT or SIGTERM came; a checkpoint was written first.
    """
    console = console or Console(silent=True)
    if len(cells) < 2 or len(set(cells)) < len(cells):
        raise WenetError("name at least two different cells, the first of them the folder of a search")
    if seeds < 2:
        raise WenetError(f"--seeds must be at least 2, not {seeds}")
    genotypes = {cell: load_genotype(cell) for cell in cells}
    with closing(RunFolder.open(Path(cells[0]))) as first:
        given = {} if epochs is None else {"audit_epochs": epochs}
        stored = stored_config(first, "search", resolve_config)
        config = resolve_config(stored.preset, stored.to_dict(), given)
        corpus = stored_corpus(first, stored, data_dir)
    settings = run_settings("ranking", config, corpus, data_dir)
    settings |= {"cells": {cell: str(genotype) for cell, genotype in genotypes.items()}, "seeds": seeds}
    with Interrupt() as interrupt, closing(RunFolder.open_or_create(Path(out), settings)) as run:
        work = Workplace(config, corpus, console, checkpoint_every, interrupt)
        try:
            with pytorch_products_in(config):
                return _rank(work, run, genotypes, seeds)
        finally:
            console.stop()


def _rank(work: Workplace[SearchConfig], run: RunFolder, cells: Mapping[str, Genotype], seeds: int) -> dict[str, Any]:
    epochs, first_seed = work.config.audit_epochs, work.config.seed
    windows = training_windows(work.config, work.corpus, epochs)
    genotypes = list(cells.values())
    trainings = [
        train_independently(work, run.path / f"seed-{seed}", genotypes, windows, seed, f"seed {number}/{seeds}")
        for number, seed in enumerate(range(first_seed, first_seed + seeds), start=1)
    ]
    result = {
        "epochs": epochs,
        "windows": windows,
        "seconds": round(sum(training.seconds for training in trainings), 3),
        "cells": _ranking(cells, trainings),
    }
    run.write_json(RESULT, result)
    return result


def _ranking(cells: Mapping[str, Genotype], trainings: Sequence[TrainingResult]) -> list[dict[str, Any]]:
    """Cells by their mean perplexity, those that always diverged at the end."""
    perplexities = {name: [training.outcomes[k].perplexity for training in trainings] for k, name in enumerate(cells)}
    first = next(iter(cells))
    found = [
        {
            "name": name,
            "genotype": str(cells[name]),
            "perplexities": [value if math.isfinite(value) else None for value in values],
            **summary(values),
            "against": None if name == first else first,
            "p": None if name == first else _welch(perplexities[first], values),
        }
        for name, values in perplexities.items()
    ]
    return sorted(found, key=lambda cell: math.inf if cell["mean"] is None else cell["mean"])


def _welch(first: Sequence[float], second: Sequence[float]) -> float | None:
    """None where there is nothing to compare."""
    a, b = ([value for value in values if math.isfinite(value)] for values in (first, second))
    if min(len(a), len(b)) < 2:
        return None
    p = float(stats.ttest_ind(a, b, equal_var=False).pvalue)
    return p if math.isfinite(p) else None


def describe_ranking(result: dict[str, Any]) -> str:
    """A line for each cell, the best first."""
    seeds = len(result["cells"][0]["perplexities"])
    lines = [f"validation perplexity after {result['epochs']:g} epochs, mean over {seeds} seeds"]
    for cell in result["cells"]:
        spread = "" if cell["sd"] is None else f" ± {cell['sd']:.1f}"
        diverged = f", {cell['diverged']} diverged" if cell["diverged"] else ""
        against = "" if cell["p"] is None else f", differs from {cell['against']} at p = {cell['p']:.3f}"
        lines.append(f"{figure(cell['mean'], 1, 'diverged')}{spread}{diverged}  {cell['name']}{against}")
        lines.append(f"    {cell['genotype']}")
    return "\n".join([*lines, f"cost: {duration(result['seconds'])}"])
