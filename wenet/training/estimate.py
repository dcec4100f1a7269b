"""What the training of one cell will take: time from a short measurement, memory by counting."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from wenet.cells import Genotype
from wenet.data.windows import LONGER_AT_MOST
from wenet.nn import CHUNK, MIXTURE_ROWS
from wenet.run.settings import DTYPES
from wenet.tasks import Task
from wenet.training.memory import INTERPRETER, recurrence_bytes
from wenet.training.nt_asgd import build_model
from wenet.training.settings import TrainConfig

PROBE_STEPS = (2, 10)


@dataclass(frozen=True)
class Estimate:
    """Seconds of a whole run and bytes at its peak, both rough."""

    seconds: float
    memory: int


def estimate_training(config: TrainConfig, genotype: Genotype | None, task: Task, data: Any) -> Estimate:
    """Estimate the training of one cell on the device and backend that its settings name."""
    per_epoch = _seconds_per_epoch(config, genotype, task, data)
    return Estimate(config.epochs * per_epoch, estimate_training_memory(config, genotype, task, data))


def estimate_training_memory(config: TrainConfig, genotype: Genotype | None, task: Task, data: Any) -> int:
    """Bytes of a training step of the longest window: weights, their gradients and average, and what backward needs."""
    positions = (config.bptt + LONGER_AT_MOST) * config.data_batch
    vocabulary = len(data.vocabulary)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build_model(config, genotype, task, data).parameters())
    number = DTYPES[config.precision].itemsize
    if genotype is None:
        recurrence = positions * number * config.layers * 8 * config.hidden  # four gates, forward and backward
    else:
        recurrence = positions * recurrence_bytes(config, genotype.nodes)
    words = vocabulary * (config.embedding or config.hidden)
    logits = 2 * max(CHUNK, vocabulary) + 2 * words  # and the decoder's share of the embedding's gradient
    if config.softmax == "mos":
        logits = 3 * MIXTURE_ROWS * vocabulary
    return INTERPRETER + number * (3 * parameters + logits) + recurrence


def _seconds_per_epoch(config: TrainConfig, genotype: Genotype | None, task: Task, data: Any) -> float:
    """From windows of two lengths, as one part of a step's cost grows with the window and another does not."""
    vocabulary = len(data.vocabulary)
    with torch.random.fork_rng():  # the probe must not change what the training draws
        torch.manual_seed(config.seed)
        model = build_model(config, genotype, task, data).to(config.device)
        optimizer = torch.optim.SGD(model.parameters(), 1e-6, weight_decay=config.weight_decay, fused=True)
        short, long = (
            min(timed_step(model, optimizer, tokens) for _ in range(2))
            for tokens in (
                torch.randint(vocabulary, (steps + 1, config.data_batch), device=config.device) for steps in PROBE_STEPS
            )
        )
    per_step = max(0.0, long - short) / (PROBE_STEPS[1] - PROBE_STEPS[0])
    per_window = max(0.0, short - PROBE_STEPS[0] * per_step)
    steps = len(data.train) / config.data_batch
    validated = len(data.valid) / 3 / config.data_batch  # validation costs a third, for want of backward
    return steps / config.bptt * per_window + (steps + validated) * per_step


def timed_step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    tokens: torch.Tensor,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds of one training step on tokens `[T + 1, M]`, by a clock."""
    started = clock()
    loss, _, _ = model.loss(tokens[:-1], tokens[1:])  # type: ignore[operator]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if tokens.is_cuda:
        torch.cuda.synchronize(tokens.device)
    return clock() - started
