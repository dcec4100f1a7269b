"""Estimates of the time (by a short measurement) and memory (by counting) that a search takes."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle, islice
from typing import Any

import torch

from wenet.searching.contest import networks_at_once
from wenet.searching.mixture import build_mixture, build_optimizer
from wenet.searching.settings import SearchConfig
from wenet.searching.shapes import largest_memory
from wenet.searching.space import draw_pool, space_of
from wenet.searching.strategy import strategy_of
from wenet.tasks import Task
from wenet.training import INTERPRETER, Estimate, kind_of, network_weights, tamed, timed_step

PROBE_STEPS, PROBE_ROWS = 4, 20
PROBE_WEIGHTS = 5_000_000  # in the networks of the probe: enough to be typical, and still quick


def estimate_search(config: SearchConfig, task: Task, data: Any) -> Estimate:
    """Estimate a search on the device and backend of its settings."""
    seconds = strategy_of(config).seconds(config, task, data)
    if seconds is None:
        seconds = _seconds(config, task, data)
    return Estimate(seconds, estimate_search_memory(config, data))


def estimate_search_memory(config: SearchConfig, data: Any, processes: int = 1) -> int:
    """Peak memory of each process in bytes, in a step of the search, or of the audit or contest after it."""
    searching = strategy_of(config).memory(config, data, processes)
    standalone = max(min(config.audit, config.pool), networks_at_once(config) if config.contest else 0)
    return INTERPRETER + max(searching, largest_memory(config, data, standalone, processes))


def _seconds(config: SearchConfig, task: Task, data: Any) -> float:
    """Seconds at the measured rate per token; validation costs a third per token, as it has no backward."""
    per_token = _seconds_per_token(config, task, data)
    trained = config.epochs_per_round * task.positions(data, "train")
    return config.rounds * per_token * (trained + task.positions(data, "valid") / 3)


def _seconds_per_token(config: SearchConfig, task: Task, data: Any) -> float:
    """Seconds per token, from a smaller training step with the same cost per network and token."""
    networks = max(1, min(config.networks, PROBE_WEIGHTS // network_weights(config, space_of(config).largest(config))))
    steps, rows = min(PROBE_STEPS, config.bptt), min(PROBE_ROWS, config.data_batch)
    pool = draw_pool(config)
    alike = [cell for cell in pool if kind_of(cell) == kind_of(pool[0])]  # a mixture has one number of states
    cells = list(islice(cycle(alike), networks))
    with torch.random.fork_rng():  # the probe must not change what the search draws
        torch.manual_seed(config.seed)
        model = tamed(build_mixture(config, cells, task, data)).to(config.device)
        optimizer = build_optimizer(replace(config, lr=1e-6), model)  # the probe must not diverge, whatever the rate
        window = task.probe(data, rows, steps)
        best = min(timed_step(model, optimizer, *window) for _ in range(3))
    return best / (steps * rows) * config.networks / networks
