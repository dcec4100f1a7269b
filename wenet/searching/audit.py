"""Audit a search: train some of its cells standalone, and measure how well the search ranked them."""

from __future__ import annotations

import math
import random
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from wenet.cells import Cell, read_cell
from wenet.files import read_json
from wenet.run import Session
from wenet.searching.settings import SearchConfig
from wenet.searching.shapes import train_cells
from wenet.searching.strategy import RECORDS, Record, Strategy, generation_of, last_ranking, strategy_of
from wenet.tasks import Metric
from wenet.training import Outcome, training_windows
from wenet.words import counted, figure_and_spread, share

FOLDER, RESULT, BEGUN = "audit", "audit.json", "audit-begun.json"
CONFIDENCE, RESAMPLES = 0.95, 2000
FEW = 6  # cells, of whose orders all are looked at for a p


@dataclass(frozen=True)
class Ranked:
    """A cell at the end of a search.

    Attributes:
        score: the score by which the strategy ranked it.
        kept: whether it was among the K cells kept at the end.
        record, place: where it was last ranked.
    """

    genotype: Cell
    score: float
    round: int
    rounds_kept: int
    kept: bool
    record: Record
    place: int

    @property
    def generation(self) -> int:
        return generation_of(self.record["networks"][self.place])

    def to_dict(self) -> dict[str, Any]:
        return {
            "genotype": str(self.genotype),
            "score": self.score,
            "round": self.round,
            "rounds_kept": self.rounds_kept,
            "kept": self.kept,
        }


def run_audit(session: Session[SearchConfig]) -> dict[str, Any]:
    """Audit a finished search; returns the contents of `audit.json`.

    Raises:
        WenetError: as in `train_standalone`; also if an audit with other settings was begun in this folder.
        Stopped: a signal came; the same call resumes the audit.
    """
    config, folder, metric = session.config, session.folder, session.task.metric
    records = folder.records(RECORDS)
    strategy = strategy_of(config)
    ranking = final_ranking(records, config.keep, strategy)
    chosen = choose(ranking, config.audit, config.seed)
    windows = training_windows(session, config.audit_epochs)
    session.console.say(
        f"audit: {counted(len(chosen), 'cell')} standalone for {counted(config.audit_epochs, 'epoch')}, "
        f"{counted(windows, 'window')}"
    )
    folder.write_json(BEGUN, {"audit": config.audit, "audit_epochs": config.audit_epochs})
    cells = [cell.genotype for cell in chosen]
    training = train_cells(session, folder.path / FOLDER, cells, windows, config.seed, "audit")
    searched = records[-1]["seconds_so_far"]
    result = {
        "cells": len(chosen),
        "epochs": config.audit_epochs,
        "windows": windows,
        "network_windows": training.network_windows,
        "seconds": training.seconds,
        "search_seconds": searched,
        "total_seconds": round(searched + training.seconds, 3),
        "peak_memory_bytes": training.peak_memory,
        **verdict(chosen, training.outcomes, metric, config.seed),
        "seniority": seniority(records, config.keep) if strategy.keeps_cells else None,
        "networks": [
            {**cell.to_dict(), **outcome.to_dict(metric)}
            for cell, outcome in zip(chosen, training.outcomes, strict=True)
        ],
    }
    folder.write_json(RESULT, result)
    return result


def usual_audit(keep: int) -> int:
    """The usual number of cells to audit: the K kept, and enough rejected ones for a comparison."""
    return max(24, keep + 12)


def begun_audit(folder: Path) -> tuple[int, float] | None:
    """Number of cells and epochs of the audit begun in a run, if any.

    Raises:
        WenetError: they cannot be read.
    """
    begun, mend = folder / BEGUN, "delete it, then go on with --resume and --audit"
    if begun.exists():
        settings = read_json(begun, mend, "audit", "audit_epochs")
    else:  # older versions kept them with the training
        first = next(folder.glob(f"{FOLDER}*/config.json"), None)
        settings = {} if first is None else read_json(first, mend, "settings")["settings"]
    return (settings["audit"], settings["audit_epochs"]) if "audit" in settings else None


def final_ranking(records: Sequence[Record], keep: int, strategy: type[Strategy]) -> list[Ranked]:
    """All cells of a search with their last score, the best first: those kept at the end come before all others."""
    ranked, last = {}, last_ranking(records)
    for record in records:
        for place, network in enumerate(record["networks"]):
            ranked[network["genotype"]] = Ranked(
                read_cell(network["genotype"]),
                strategy.score(record, place),
                record["round"],
                network["rounds_kept"],
                kept=record is last and place < keep,
                record=record,
                place=place,
            )
    return sorted(ranked.values(), key=lambda cell: (not cell.kept, -cell.score))


def choose(ranking: Sequence[Ranked], count: int, seed: int) -> list[Ranked]:
    """Choose the kept cells, and rejected ones over the range of scores: a random one from each of equal strata."""
    kept = [cell for cell in ranking if cell.kept]
    rejected = [cell for cell in ranking if not cell.kept]
    strata = min(count - len(kept), len(rejected))
    generator = random.Random(seed)
    bounds = [len(rejected) * i // strata for i in range(strata + 1)] if strata else [0]
    return kept + [rejected[generator.randrange(low, high)] for low, high in pairwise(bounds)]


def verdict(cells: Sequence[Ranked], outcomes: Sequence[Outcome], metric: Metric, seed: int) -> dict[str, Any]:
    """Measure the agreement of the search's ranking with standalone quality.

    Correlations are between score and quality: 1 is full agreement, 0 is chance. A diverged cell counts as worse than
    all others. A one-sided Mann-Whitney test compares kept and rejected cells.
    """
    from scipy import stats  # takes a second to import

    scores = [cell.score for cell in cells]
    quality = [-metric.order(outcome.value) for outcome in outcomes]
    kept = [o.value for c, o in zip(cells, outcomes, strict=True) if c.kept]
    rejected = [o.value for c, o in zip(cells, outcomes, strict=True) if not c.kept]
    better = "less" if metric.lower_is_better else "greater"
    test = stats.mannwhitneyu(kept, rejected, alternative=better) if kept and rejected else None
    return {
        "confidence": CONFIDENCE,
        "spearman": correlation(stats.spearmanr, scores, quality, seed),
        "kendall": correlation(stats.kendalltau, scores, quality, seed),
        "kept": summary(kept),
        "rejected": summary(rejected),
        "kept_better_p": None if test is None else float(test.pvalue),
    }


def correlation(
    measure: Callable[..., Any], first: Sequence[float], second: Sequence[float], seed: int
) -> dict[str, float | None]:
    """A rank correlation, its two-sided p, exact for few cells, and a bootstrap interval over cells.

    All are None where it is undefined.
    """
    from scipy import stats

    if len(set(first)) < 2 or len(set(second)) < 2:
        return {"value": None, "low": None, "high": None, "p": None}
    found = measure(first, second)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # with few cells, a resample may contain only one of them
        interval = stats.bootstrap(
            (first, second),
            lambda x, y: measure(x, y).statistic,
            n_resamples=RESAMPLES,
            paired=True,
            vectorized=False,
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=seed,
        ).confidence_interval
    p = found.pvalue
    if len(first) <= FEW:  # where the usual approximation of Spearman's rho is wrong by much
        exact = stats.permutation_test(
            (first,), lambda x: measure(x, second).statistic, permutation_type="pairings", n_resamples=math.inf
        )
        p = exact.pvalue
    values = {"value": found.statistic, "low": interval.low, "high": interval.high, "p": p}
    return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Number, mean and standard deviation over the cells that did not diverge, and the number that did."""
    finite = [value for value in values if math.isfinite(value)]
    return {
        "cells": len(values),
        "diverged": len(values) - len(finite),
        "mean": statistics.fmean(finite) if finite else None,
        "sd": statistics.stdev(finite) if len(finite) > 1 else None,
    }


def welch(first: Sequence[float], second: Sequence[float]) -> float | None:
    """The p of Welch's t-test, two-sided; None if either side has fewer than two values, or neither side varies."""
    from scipy import stats  # takes a second to import

    a, b = ([value for value in values if math.isfinite(value)] for values in (first, second))
    if min(len(a), len(b)) < 2 or len(set(a)) == len(set(b)) == 1:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of trainings that end nearly alike
        p = float(stats.ttest_ind(a, b, equal_var=False).pvalue)
    return p if math.isfinite(p) else None


def seniority(records: Sequence[Record], keep: int) -> dict[str, Any]:
    """Measure whether rank follows seniority, the number of rounds for which a cell has been kept.

    Returned are the share of kept cells that a round keeps again, with its value by chance, and for the last round the
    correlation of place (the first is the highest) with the number of rounds kept. This needs no training.
    """
    from scipy import stats

    later = [record["networks"] for record in records[1:]]
    again = [sum(network["rounds_kept"] > 0 for network in networks[:keep]) for networks in later]
    there = [sum(network["rounds_kept"] > 0 for network in networks) for networks in later]
    kept = [network["rounds_kept"] for network in last_ranking(records)["networks"]]
    found = stats.spearmanr(range(len(kept), 0, -1), kept) if len(set(kept)) > 1 else None
    return {
        "kept_again": sum(again) / sum(there) if any(there) else None,
        "by_chance": statistics.fmean(min(1, keep / len(networks)) for networks in later) if later else None,
        "spearman": None if found is None else {"value": float(found.statistic), "p": float(found.pvalue)},
    }


def describe_audit(audit: dict[str, Any], metric: Metric) -> list[str]:
    """The verdict in lines, for a terminal."""
    kept, rejected, p = audit["kept"], audit["rejected"], audit["kept_better_p"]
    places, order = metric.places, audit["seniority"]
    compared = "" if p is None else f"; one-sided test that the kept are better: p = {p:.3f}"
    lines = [
        f"audit     {counted(audit['cells'], 'cell')} trained standalone for {counted(audit['epochs'], 'epoch')}",
        f"          agreement of score and {metric.name}, 1 in full and 0 by chance: "
        f"Kendall's tau {correlation_in_words(audit['kendall'], audit['confidence'])}, "
        f"Spearman's rho {correlation_in_words(audit['spearman'], audit['confidence'])}",
        f"          kept {spread_in_words(kept, places)}, rejected {spread_in_words(rejected, places)}{compared}",
    ]
    if order is not None and order["kept_again"] is not None:
        lines.append(
            f"          from round to round {share(order['kept_again'])} of the kept cells were kept again; chance "
            f"would keep {order['by_chance']:.0%}"
        )
    return lines


def correlation_in_words(found: dict[str, float | None], confidence: float) -> str:
    """A correlation with its interval and p in words, or the reason why there is none."""
    if found["value"] is None:
        return "undefined, as all are equal"
    interval = "too few cells for an interval"
    if found["low"] is not None and found["high"] is not None:
        interval = f"{confidence:.0%} interval {found['low']:.2f} to {found['high']:.2f}"
    p = "" if found["p"] is None else f", p = {found['p']:.3f}"
    return f"{found['value']:.2f} ({interval}{p})"


def spread_in_words(found: dict[str, Any], places: int) -> str:
    """Mean and standard deviation of a group of cells in words, if it has them."""
    if found["cells"] == 0:
        return "none"
    cells = counted(found["cells"], "cell")
    if found["mean"] is None:
        return f"none that did not diverge ({cells})"
    diverged = f", {found['diverged']} diverged" if found["diverged"] else ""
    return f"{figure_and_spread(found['mean'], found['sd'], places)} ({cells}{diverged})"
