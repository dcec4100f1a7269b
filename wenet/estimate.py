"""What a search will take, before it starts: time from a short measurement, memory by counting."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch

from wenet.config import DTYPES, SearchConfig
from wenet.data import Corpus
from wenet.genotype import random_genotypes
from wenet.search import build_model, build_optimizer

PROBE_STEPS, PROBE_ROWS = 4, 20
PROBE_WEIGHTS = 5_000_000  # in the networks of the probe: enough to be typical, little enough to take a moment


@dataclass(frozen=True)
class Estimate:
    """Seconds of a whole search and bytes at its peak, both rough."""

    seconds: float
    memory: int


def estimate(config: SearchConfig, corpus: Corpus) -> Estimate:
    """Estimate a search on the device and backend that its settings name."""
    return Estimate(_seconds(config, corpus), estimate_memory(config, len(corpus.vocabulary)))


def estimate_memory(config: SearchConfig, vocabulary_size: int) -> int:
    """Bytes of a training step: parameters with their gradients and Adam's two moments, and what backward needs."""
    width = 2 * config.hidden if config.form == "highway" else config.hidden
    products = config.nodes + 1
    positions = config.bptt * config.data_batch
    parameters = config.networks * _network_weights(config) + vocabulary_size * (config.hidden + 1)
    # Per state and position: what forward keeps, and in backward both factors of the weight gradients.
    recurrence = config.networks * positions * (2 * width + products * (2 * width + config.hidden))
    logits = 3 * positions * vocabulary_size
    interpreter = 400_000_000
    return interpreter + DTYPES[config.precision].itemsize * (4 * parameters + recurrence + logits)


def _network_weights(config: SearchConfig) -> int:
    width = 2 * config.hidden if config.form == "highway" else config.hidden
    return (config.nodes + 2) * config.hidden * width


def _seconds(config: SearchConfig, corpus: Corpus) -> float:
    """Training on every token at the measured rate; validation costs a third of that a token, for want of backward."""
    per_token = _seconds_per_token(config, len(corpus.vocabulary))
    trained = config.epochs_per_round * len(corpus.train)
    return config.rounds * per_token * (trained + len(corpus.valid) / 3)


def _seconds_per_token(config: SearchConfig, vocabulary_size: int) -> float:
    """The rate of a smaller training step, taken as the same a network and token."""
    networks = max(1, min(config.networks, PROBE_WEIGHTS // _network_weights(config)))
    steps, rows = min(PROBE_STEPS, config.bptt), min(PROBE_ROWS, config.data_batch)
    with torch.random.fork_rng():  # the probe must not change what the search draws
        model = build_model(config, random_genotypes(networks, config.nodes, seed=0), vocabulary_size).to(config.device)
        optimizer = build_optimizer(replace(config, lr=1e-6), model)  # whatever the rate asked for, it must not diverge
        tokens = torch.randint(vocabulary_size, (steps + 1, rows), device=config.device)
        best = min(_timed_step(model, optimizer, tokens) for _ in range(3))
    return best / (steps * rows) * config.networks / networks


def _timed_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, tokens: torch.Tensor) -> float:
    started = time.perf_counter()
    loss, _, _ = model.loss(tokens[:-1], tokens[1:])  # type: ignore[operator]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if tokens.is_cuda:
        torch.cuda.synchronize(tokens.device)
    return time.perf_counter() - started
