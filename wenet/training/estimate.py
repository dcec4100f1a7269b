"""Estimates of the time (by a short measurement) and memory (by counting) that training one cell takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from wenet.cells import Cell
from wenet.data.windows import LONGER_AT_MOST
from wenet.nn import CHUNK, MIXTURE_ROWS
from wenet.run.settings import DTYPES
from wenet.tasks import Task
from wenet.training.architectures import Architecture, build_standalone
from wenet.training.memory import INTERPRETER, network_weights, recurrence_bytes
from wenet.training.nt_asgd import build_model
from wenet.training.settings import TrainConfig

PROBE_STEPS = (2, 10)  # of one model, which may be large
LONGEST_PROBE = 50  # steps of small models, whose windows cost most where they have outgrown the caches
MOST_PROBED = 16
PROBE_WEIGHTS = 1_500_000  # of the standalone models in a probe, which must be quick
TAME = 1e-3  # of the weights, at most


@dataclass(frozen=True)
class Estimate:
    """Seconds of a whole run and peak memory in bytes, both rough."""

    seconds: float
    memory: int


def estimate_training(config: TrainConfig, cell: Cell | None, task: Task, data: Any) -> Estimate:
    """Estimate the training of one cell on the device and backend of the settings."""
    per_epoch = _seconds_per_epoch(config, cell, task, data)
    return Estimate(config.epochs * per_epoch, estimate_training_memory(config, cell, task, data))


def estimate_training_memory(config: TrainConfig, cell: Cell | None, task: Task, data: Any) -> int:
    """Bytes of a training step on the longest window: weights, gradients, averages, and tensors kept for backward."""
    positions = (config.bptt + LONGER_AT_MOST) * config.data_batch
    vocabulary = task.outputs(data)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build_model(config, cell, task, data).parameters())
    number = DTYPES[config.precision].itemsize
    if cell is None:
        recurrence = positions * number * config.layers * 8 * config.hidden  # four gates, forward and backward
    else:
        recurrence = positions * recurrence_bytes(config, cell)
    words = vocabulary * (config.embedding or config.hidden)
    logits = 2 * max(CHUNK, vocabulary) + 2 * words  # and the decoder's share of the embedding's gradient
    if config.softmax == "mos":
        logits = 3 * MIXTURE_ROWS * vocabulary
    return INTERPRETER + number * (3 * parameters + logits) + recurrence


def estimate_standalone(config: Any, cell: Cell, networks: int, epochs: float, task: Task, data: Any) -> float:
    """Seconds for standalone training of many networks like a cell's and their validation, extrapolated from a few."""
    training = seconds_per_network(config, cell, epochs, task, data)
    measuring = windows_measured(config, task, data, "valid") * seconds_per_measured(config, cell, task, data)
    return networks * (training + measuring)


def seconds_per_network(
    config: Any, cell: Cell, epochs: float, task: Task, data: Any, side_by_side: int = MOST_PROBED
) -> float:
    """Seconds that one network among several of a cell trains for some passes over the training part.

    Args:
        side_by_side: networks in a call; where these are fewer than a probe holds, each takes longer.
    """
    probed = _networks_in_probe(config, cell, task, data, side_by_side)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = tamed(build_standalone(config, [cell] * probed, task, data)).to(config.device)
        optimizer = torch.optim.Adam(model.parameters(), 1e-6, fused=True)
        longest = max(2, min(LONGEST_PROBE, task.window_steps(data, config)))
        lengths = (-(-longest // 5), longest)
        per_window, per_step = _step_costs(model, optimizer, config, task, data, lengths)
    steps = epochs * _steps(config, task, data, "train")
    return (steps / task.window_steps(data, config) * per_window + steps * per_step) / probed


def seconds_per_measured(config: Any, cell: Cell, task: Task, data: Any, side_by_side: int = MOST_PROBED) -> float:
    """Seconds in which one network among several of a cell is measured on a window, as of validation.

    Args:
        side_by_side: as in `seconds_per_network`.
    """
    probed = _networks_in_probe(config, cell, task, data, side_by_side)
    return seconds_of_measured(config, [cell] * probed, task, data) / probed


def windows_measured(config: Any, task: Task, data: Any, *parts: str) -> int:
    """The windows in which these parts of the data are read where networks are measured."""
    return sum(task.windows(task.streams(data, part, config.eval_batch), config.bptt) for part in parts)


def _networks_in_probe(config: Any, cell: Cell, task: Task, data: Any, side_by_side: int) -> int:
    own = network_weights(config, cell) + task.outputs(data) * (config.hidden + 1)
    return max(2, min(side_by_side, MOST_PROBED, PROBE_WEIGHTS // own))


def seconds_per_window(
    config: Any, architectures: Sequence[Architecture], task: Task, data: Any, sizes: Sequence[int] = ()
) -> float:
    """Seconds that standalone networks take for a training window of the usual length, by a short measurement.

    Args:
        architectures, sizes: as in `build_standalone`.
    """
    with torch.random.fork_rng():  # the probe must not change what the training draws
        torch.manual_seed(config.seed)
        model = tamed(build_standalone(config, architectures, task, data, sizes=sizes)).to(config.device)
        optimizer = torch.optim.Adam(model.parameters(), 1e-6, fused=True)
        window = task.probe(data, config.data_batch, task.window_steps(data, config))
        return min(timed_step(model, optimizer, *window) for _ in range(3))


def seconds_of_measured(
    config: Any, architectures: Sequence[Architecture], task: Task, data: Any, sizes: Sequence[int] = ()
) -> float:
    """Seconds in which standalone networks are measured on a window of validation, by a short measurement.

    Args:
        architectures, sizes: as in `build_standalone`.
    """
    window = task.first(task.streams(data, "valid", config.eval_batch).to(config.device), 1, config.bptt)
    with torch.random.fork_rng():
        model = tamed(build_standalone(config, architectures, task, data, sizes=sizes)).to(config.device)

    def timed() -> float:
        started = time.perf_counter()
        task.measure(model, window, config.bptt, lambda: None)
        return time.perf_counter() - started

    return min(timed() for _ in range(2))


def _seconds_per_epoch(config: TrainConfig, cell: Cell | None, task: Task, data: Any) -> float:
    with torch.random.fork_rng():  # the probe must not change what the training draws
        torch.manual_seed(config.seed)
        model = tamed(build_model(config, cell, task, data)).to(config.device)
        optimizer = torch.optim.SGD(model.parameters(), 1e-6, weight_decay=config.weight_decay, fused=True)
        per_window, per_step = _step_costs(model, optimizer, config, task, data)
    steps, validation = _steps(config, task, data, "train"), _steps(config, task, data, "valid") / 3
    return steps / config.bptt * per_window + (steps + validation) * per_step


def _steps(config: Any, task: Task, data: Any, part: str) -> float:
    """Time steps of a part in data batches; one of validation, without backward, costs a third of one of training."""
    return task.positions(data, part) / config.data_batch


def _step_costs(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    config: Any,
    task: Task,
    data: Any,
    lengths: tuple[int, int] = PROBE_STEPS,
) -> tuple[float, float]:
    """Seconds of a training step per window and per time step, from windows of two lengths: one part of the cost grows
    with the window, another does not. Each is run twice: the first run also allocates memory."""
    few, many = lengths
    short, long = (
        min(timed_step(model, optimizer, *task.probe(data, config.data_batch, steps)) for _ in range(2))
        for steps in lengths
    )
    per_step = max(0.0, long - short) / (many - few)
    return max(0.0, short - few * per_step), per_step


@torch.no_grad()
def tamed(model: Any) -> Any:
    """A model with small weights, so that a probe does not diverge, however large the settings make them."""
    for parameter in filter(torch.numel, model.parameters()):
        parameter.mul_(TAME / parameter.abs().amax().clamp(min=TAME))
    return model


def timed_step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds of one training step on a window."""
    device = next(model.parameters()).device
    inputs, targets = inputs.to(device), targets.to(device)
    started = clock()
    loss, _, _ = model.loss(inputs, targets)  # type: ignore[operator]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - started
