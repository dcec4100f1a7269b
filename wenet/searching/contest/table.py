"""The result of a contest in rows, and how fast its layers are."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wenet.nn import LAYERS
from wenet.run import DTYPES, Session
from wenet.searching.audit import summary, welch
from wenet.searching.contest.contestants import Contestant
from wenet.searching.contest.model import save_winner
from wenet.searching.contest.trainings import Trained
from wenet.searching.contest.verdict import not_diverged
from wenet.searching.settings import SearchConfig
from wenet.training import build_standalone, parameter_count

TIMED_STEPS, TIMED_ROUNDS = 200, 20


def table_of(session: Session[SearchConfig], trained: Sequence[Trained]) -> list[dict[str, Any]]:
    """A row for each contestant, the best on the test part first; the winner's model is saved on the way."""
    metric = session.task.metric
    save_winner(session, trained)
    microseconds = _microseconds_per_step(session, [each.entrant for each in trained])
    winner, *others = [_measured(session, *each) for each in zip(trained, microseconds, strict=True)]
    rows = [{**winner, "p": None}, *({**row, "p": welch(not_diverged(winner), not_diverged(row))} for row in others)]
    return sorted(rows, key=lambda row: math.inf if row["mean"] is None else metric.order(row["mean"]))


def _measured(session: Session[SearchConfig], trained: Trained, microseconds: float) -> dict[str, Any]:
    """A contestant's row of the table."""
    entrant, outcomes = trained.entrant, trained.outcomes
    test = [math.inf if outcome.test is None else outcome.test for outcome in outcomes]
    of_test = summary(test)
    return {
        "name": entrant.name,
        "genotype": entrant.genotype,
        "hidden": entrant.config.hidden,
        "parameters": parameter_count(entrant.config, entrant.architecture, session.task, session.data),
        "rate": trained.trial.rate,
        "weight_decay": trained.trial.weight_decay,
        "valid": [outcome.value if math.isfinite(outcome.value) else None for outcome in outcomes],
        "test": [value if math.isfinite(value) else None for value in test],
        "kept": trained.best(session.task.metric),
        "diverged": of_test["diverged"],
        "mean": of_test["mean"],
        "sd": of_test["sd"],
        "microseconds": round(microseconds, 2),
    }


@torch.no_grad()
def _microseconds_per_step(session: Session[SearchConfig], entrants: Sequence[Contestant]) -> list[float]:
    """Time of each layer for one sequence without gradients, of PyTorch's layers as PyTorch runs them.

    Layers run in turn, so that what else the machine does meets them all, each once before it is timed, as another
    has left the caches; and the fastest run of each counts.
    """
    runs = []
    for entrant in entrants:
        layer = _layer_of(session, entrant).to(session.device).eval()
        runs.append((layer, torch.zeros(TIMED_STEPS, 1, layer.input_size).to(next(layer.parameters()))))
    fastest = [math.inf] * len(runs)
    for _ in range(TIMED_ROUNDS):
        for place, (layer, x) in enumerate(runs):
            layer(x)
            fastest[place] = min(fastest[place], _seconds(layer, x))
    return [1e6 * seconds / TIMED_STEPS for seconds in fastest]


def _layer_of(session: Session[SearchConfig], entrant: Contestant) -> Any:
    """The layer of a contestant alone, which reads `[T, M, I]`."""
    with torch.random.fork_rng():
        if entrant.name in LAYERS:
            of_torch = getattr(nn, entrant.name.upper())
            layer = of_torch(session.task.inputs(session.data, entrant.config), entrant.config.hidden)
            return layer.to(DTYPES[entrant.config.precision])
        return build_standalone(entrant.config, [entrant.architecture], session.task, session.data).rnn


def _seconds(layer: Any, x: Tensor) -> float:
    started = time.perf_counter()
    layer(x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - started
