"""Several searches: their winners ranked by standalone training, and cells compared on one final training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from scipy import stats

from wenet.audit import summary, training_windows
from wenet.checkpoint import RunFolder
from wenet.console import duration
from wenet.genotype import Genotype
from wenet.independent import IndependentTraining, Workplace
from wenet.search import RECORDS


def rank_runs(work: Workplace, run: RunFolder, bests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Train the winners of all runs at once, and keep the best by validation perplexity (paper, section 4.1).

    Args:
        run: holds the runs as `run-1`, `run-2`, ...
        bests: what `best.json` of each holds.

    Returns what `best.json` of all runs holds; its `seconds` count the runs and the ranking.
    """
    config = work.config
    windows = training_windows(config, work.corpus, config.audit_epochs)
    winners = [Genotype.from_dict(best["genotype"]) for best in bests]
    training = IndependentTraining(work, run.path / "ranking", winners, windows, config.seed, "ranking").run()
    order = sorted(range(len(winners)), key=lambda number: training.outcomes[number].perplexity)
    first = bests[order[0]]
    result = {
        **{name: value for name, value in first.items() if name != "perplexity"},
        "perplexity": training.outcomes[order[0]].to_dict()["perplexity"],
        "windows": windows,
        "networks_searched": sum(best["networks_searched"] for best in bests),
        "network_windows": sum(best["network_windows"] for best in bests) + training.network_windows,
        "seconds": round(sum(best["seconds"] for best in bests) + training.seconds, 3),
        "ranking_seconds": training.seconds,
        "peak_memory_bytes": max(training.peak_memory, *(best["peak_memory_bytes"] for best in bests)),
        "runs": [{"run": number + 1, **training.outcomes[number].to_dict()} for number in order],
        "overlap": None if config.pool_seed is None else overlap(_kept(run, config.runs, config.seeds), config.pool),
    }
    run.write_json("best.json", result)
    return result


def overlap(kept: Sequence[Sequence[str]], pool: int) -> dict[str, float]:
    """Mean share of the kept cells that two searches of one pool have in common, and what chance would give."""
    shares = [len(set(a) & set(b)) / min(len(a), len(b)) for a, b in combinations(kept, 2)]
    return {"share": sum(shares) / len(shares), "by_chance": max(len(cells) for cells in kept) / pool}


def _kept(run: RunFolder, runs: int, seeds: int) -> list[list[str]]:
    """The K cells that each run kept at its end."""
    kept = []
    for number in range(runs):
        last = run.records(f"run-{number + 1}/{RECORDS}")[-1]
        kept.append([network["genotype"] for network in last["networks"][:seeds]])
    return kept


def describe_runs(best: dict[str, Any]) -> list[str]:
    """The winners of all runs in lines for a person."""
    lines = [
        f"runs      winners by standalone validation perplexity, {duration(best['ranking_seconds'])} of the cost:",
        *(f"          run {run['run']}: {_perplexity(run['perplexity'])}  {run['genotype']}" for run in best["runs"]),
    ]
    if best["overlap"] is not None:
        found = best["overlap"]
        lines.append(f"          kept by two runs alike {found['share']:.0%}, by chance {found['by_chance']:.0%}")
    return lines


def compare(work: Workplace, run: RunFolder, cells: Mapping[str, Genotype], seeds: int) -> dict[str, Any]:
    """The same final training of every cell, once for each seed; the first cell against each of the others.

    Welch's t-test, two-sided, on validation perplexity over seeds. A training that diverged counts in `diverged` and
    is left out of mean and test. The result is also written to `compare.json`.
    """
    windows = training_windows(work.config, work.corpus, work.config.audit_epochs)
    trainings = [
        IndependentTraining(
            work, run.path / f"seed-{seed}", list(cells.values()), windows, seed, f"seed {number + 1}/{seeds}"
        ).run()
        for number, seed in enumerate(range(work.config.seed, work.config.seed + seeds))
    ]
    perplexities = {name: [training.outcomes[k].perplexity for training in trainings] for k, name in enumerate(cells)}
    first = next(iter(cells))
    result = {
        "epochs": work.config.audit_epochs,
        "windows": windows,
        "seconds": round(sum(training.seconds for training in trainings), 3),
        "cells": [
            {
                "name": name,
                "genotype": str(cells[name]),
                "perplexities": [value if math.isfinite(value) else None for value in values],
                **summary(values),
                "p": None if name == first else _welch(perplexities[first], values),
            }
            for name, values in perplexities.items()
        ],
    }
    run.write_json("compare.json", result)
    return result


def describe_comparison(result: dict[str, Any]) -> str:
    first = result["cells"][0]
    lines = [f"validation perplexity after {result['epochs']:g} epochs over {first['cells']} seeds"]
    for cell in result["cells"]:
        spread = "" if cell["sd"] is None else f" ± {cell['sd']:.1f}"
        against = "" if cell["p"] is None else f", differs from {first['name']} at p = {cell['p']:.3f}"
        lines.append(f"{cell['name']}: {_perplexity(cell['mean'])}{spread}{against}  {cell['genotype']}")
    return "\n".join([*lines, f"cost: {duration(result['seconds'])}"])


def _welch(first: Sequence[float], second: Sequence[float]) -> float | None:
    a, b = ([value for value in values if math.isfinite(value)] for values in (first, second))
    if min(len(a), len(b)) < 2:
        return None
    p = float(stats.ttest_ind(a, b, equal_var=False).pvalue)
    return p if math.isfinite(p) else None


def _perplexity(value: float | None) -> str:
    return "diverged" if value is None else f"{value:.1f}"
