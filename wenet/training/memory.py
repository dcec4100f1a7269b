"""Memory of a training, counted from its settings."""

from __future__ import annotations

from typing import Any

from wenet.run.settings import DTYPES

INTERPRETER = 400_000_000  # bytes, with torch
STANDALONE_OUTPUTS = 8  # tensors as large as a network's output that its loss, embedding and decoder keep


def network_weights(config: Any) -> int:
    """Weights of one network of a search."""
    width = 2 * config.hidden if config.form == "highway" else config.hidden
    return (config.nodes + 2) * config.hidden * width


def recurrence_bytes(config: Any, nodes: int) -> int:
    """Bytes that the recurrence of one network needs at one position of the text.

    The projected input and its derivative; of every product what forward keeps, and both factors of the weight
    gradient, which have the type of the products.
    """
    width = 2 * config.hidden if config.form == "highway" else config.hidden
    number = DTYPES[config.precision].itemsize
    factor = 2 if config.precision == "bf16" else number
    return number * 2 * width + (nodes + 1) * (number * width + factor * (width + config.hidden))


def standalone_memory(config: Any, data: Any, networks: int, processes: int) -> int:
    """Bytes of each process at a step of standalone training, besides the interpreter.

    Parameters with their gradients and Adam's two moments, and what backward needs; each network has an embedding, with
    two copies of its gradient, as decoder and as input both add to it.
    """
    positions = config.bptt * config.data_batch
    words = len(data.vocabulary) * (config.hidden + 1)
    outputs = STANDALONE_OUTPUTS * positions * config.hidden
    network = DTYPES[config.precision].itemsize * (4 * network_weights(config) + 6 * words + outputs)
    return -(-networks // processes) * (network + positions * recurrence_bytes(config, config.nodes))
