"""What a search will take, before it starts: time from a short measurement, memory by counting."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from wenet.cells import random_genotypes
from wenet.searching.mixture import build_mixture, build_optimizer
from wenet.searching.settings import SearchConfig
from wenet.searching.strategy import strategy_of
from wenet.tasks import Task
from wenet.training import INTERPRETER, Estimate, network_weights, standalone_memory, timed_step

PROBE_STEPS, PROBE_ROWS = 4, 20
PROBE_WEIGHTS = 5_000_000  # in the networks of the probe: enough to be typical, little enough to take a moment


def estimate_search(config: SearchConfig, task: Task, data: Any) -> Estimate:
    """Estimate a search on the device and backend that its settings name."""
    seconds = strategy_of(config).seconds(config, task, data)
    if seconds is None:
        seconds = _seconds(config, task, data)
    return Estimate(seconds, estimate_search_memory(config, data))


def estimate_search_memory(config: SearchConfig, data: Any, processes: int = 1) -> int:
    """Bytes of each process at the peak: of a step of the search, or of the audit after it."""
    searching = strategy_of(config).memory(config, data, processes)
    audited = standalone_memory(config, data, min(config.audit, config.pool), processes)
    return INTERPRETER + max(searching, audited)


def _seconds(config: SearchConfig, task: Task, data: Any) -> float:
    """Training on every token at the measured rate; validation costs a third of that a token, for want of backward."""
    per_token = _seconds_per_token(config, task, data)
    trained = config.epochs_per_round * task.positions(data, "train")
    return config.rounds * per_token * (trained + task.positions(data, "valid") / 3)


def _seconds_per_token(config: SearchConfig, task: Task, data: Any) -> float:
    """The rate of a smaller training step, taken as the same a network and token."""
    networks = max(1, min(config.networks, PROBE_WEIGHTS // network_weights(config)))
    steps, rows = min(PROBE_STEPS, config.bptt), min(PROBE_ROWS, config.data_batch)
    cells = random_genotypes(networks, config.most_nodes, seed=0)
    with torch.random.fork_rng():  # the probe must not change what the search draws
        torch.manual_seed(config.seed)
        model = build_mixture(config, cells, task, data).to(config.device)
        optimizer = build_optimizer(replace(config, lr=1e-6), model)  # whatever the rate asked for, it must not diverge
        window = task.probe(data, rows, steps)
        best = min(timed_step(model, optimizer, *window) for _ in range(3))
    return best / (steps * rows) * config.networks / networks
