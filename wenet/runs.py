"""Several searches: their winners ranked by standalone training, and what they have in common."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from wenet.audit import figure, training_windows
from wenet.checkpoint import RunFolder
from wenet.config import SearchConfig
from wenet.console import duration
from wenet.genotype import Genotype
from wenet.independent import train_independently
from wenet.resumable import Workplace
from wenet.search import RECORDS


def rank_runs(work: Workplace[SearchConfig], run: RunFolder, bests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Train the winners of all runs at once, and keep the best by validation perplexity (paper, section 4.1).

    Args:
        run: holds the runs as `run-1`, `run-2`, ...
        bests: what `best.json` of each holds.

    Returns what `best.json` of all runs holds; its `seconds` count the runs and the ranking.
    """
    config = work.config
    windows = training_windows(config, work.corpus, config.audit_epochs)
    winners = [Genotype.from_dict(best["genotype"]) for best in bests]
    training = train_independently(work, run.path / "ranking", winners, windows, config.seed, "ranking")
    order = sorted(range(len(winners)), key=lambda number: training.outcomes[number].perplexity)
    result = {
        **bests[order[0]],
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
    cost = duration(best["ranking_seconds"])
    lines = [f"runs      winners by standalone validation perplexity, {cost} of the cost:"]
    for run in best["runs"]:
        lines.append(f"          run {run['run']}: {figure(run['perplexity'], 1, 'diverged')}  {run['genotype']}")
    if best["overlap"] is not None:
        found = best["overlap"]
        lines.append(f"          kept by two runs alike {found['share']:.0%}, by chance {found['by_chance']:.0%}")
    return lines
