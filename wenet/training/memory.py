"""Memory of training, computed from the settings."""

from __future__ import annotations

from typing import Any

from wenet.cells import Cell, Genotype
from wenet.run.settings import DTYPES
from wenet.tasks import task_of

INTERPRETER = 400_000_000  # bytes, with torch
STANDALONE_OUTPUTS = 8  # tensors of an output's size that loss, embedding and decoder of a network keep


def network_weights(config: Any, cell: Cell) -> int:
    """Number of weights of the layer of one network."""
    if not isinstance(cell, Genotype):
        return cell.parameters(config.hidden, config.hidden)
    width = 2 * config.hidden if config.form == "highway" else config.hidden
    return (cell.nodes + 2) * config.hidden * width


def recurrence_bytes(config: Any, cell: Cell) -> int:
    """Bytes for the recurrence of one network at one position of the text.

    Counted are the projected input and its gradient, and for each product the tensors that forward keeps and both
    factors of the weight gradient, which have the products' number type. Of a program these are all of its values; each
    product that reads the input also has a copy of it and its gradient.
    """
    number = DTYPES[config.precision].itemsize
    factor = 2 if config.precision == "bf16" else number
    if not isinstance(cell, Genotype):
        return config.hidden * (number * (4 * cell.of_input + len(cell.instructions)) + factor * 2 * cell.of_values)
    width = 2 * config.hidden if config.form == "highway" else config.hidden
    return number * 2 * width + (cell.nodes + 1) * (number * width + factor * (width + config.hidden))


def standalone_memory(config: Any, cell: Cell, data: Any, networks: int, processes: int) -> int:
    """Bytes that each process needs to train standalone networks like a cell's for a step, besides the interpreter.

    Counted are parameters, gradients, Adam's two moments, and tensors kept for backward. Each network has an embedding,
    whose gradient exists twice: once from the decoder, once from the input.
    """
    task = task_of(config)
    positions = task.window_steps(data, config) * config.data_batch
    words = task.outputs(data) * (config.hidden + 1)
    outputs = STANDALONE_OUTPUTS * positions * config.hidden
    network = DTYPES[config.precision].itemsize * (4 * network_weights(config, cell) + 6 * words + outputs)
    return -(-networks // processes) * (network + positions * recurrence_bytes(config, cell))
