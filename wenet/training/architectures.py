"""What standalone training can train: cells of both kinds and PyTorch's own layers, at equal numbers of parameters."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from wenet.cells import Cell, Genotype, read_cell
from wenet.nn import LAYERS, StandaloneCellRNN, StandaloneRNN, WeightedDagRNN
from wenet.run.settings import DTYPES
from wenet.tasks import Task
from wenet.words import counted
from wenet_kernels import Program, WenetError

Architecture = Cell | str  # a cell, or the name of a layer in `LAYERS`


def read_architecture(text: str) -> Architecture:
    """What `str` of one gives."""
    return text if text in LAYERS else read_cell(text)


def kind_of(architecture: Architecture) -> str:
    """What networks have in common that train in one call, besides their hidden size."""
    if isinstance(architecture, Genotype):
        return f"{architecture.nodes}-nodes"
    return f"{architecture.states}-states" if isinstance(architecture, Program) else architecture


def kind_in_words(architecture: Architecture) -> str:
    """The kind for lines on a console: "1 node", "2 states" or "lstm"."""
    if isinstance(architecture, Genotype):
        return counted(architecture.nodes, "node")
    return counted(architecture.states, "state") if isinstance(architecture, Program) else architecture


def build_standalone(
    config: Any,
    architectures: Sequence[Architecture],
    task: Task,
    data: Any,
    among: tuple[int, slice] | None = None,
    sizes: Sequence[int] = (),
) -> Any:
    """Standalone models of the settings' sizes, without normalisation.

    Args:
        architectures: of one kind, as `kind_of` has it; a layer's name as often as there are to be networks.
        sizes: hidden sizes of programs, where these are not all that of the settings.
    """
    cells = [cell for cell in architectures if isinstance(cell, Genotype)]
    programs = [cell for cell in architectures if isinstance(cell, Program)]
    layer: WeightedDagRNN | StandaloneCellRNN | StandaloneRNN
    if programs:
        dropouts = {"dropout_x": config.dropout_x, "dropout_h": config.dropout_h}
        layer = StandaloneCellRNN(
            *(task.inputs(data, config), config.hidden, programs),
            backend=config.backend,
            precision=config.precision,
            among=among,
            sizes=sizes,
            **dropouts,
        )
    elif cells:
        layer = WeightedDagRNN(
            task.inputs(data, config),
            config.hidden,
            cells,
            form=config.form,
            coupling="independent",
            dropout_x=config.dropout_x,
            dropout_h=config.dropout_h,
            backend=config.backend,
            precision=config.precision,
            among=among,
        )
    else:
        layer = StandaloneRNN(
            str(architectures[0]),
            *(task.inputs(data, config), config.hidden, len(architectures)),
            dropout_x=config.dropout_x,
            dropout_h=config.dropout_h,
            among=among,
            backend=config.backend,
        )
    return task.standalone_models(layer, config, data).to(DTYPES[config.precision])


def parameter_count(config: Any, architecture: Architecture, task: Task, data: Any) -> int:
    """Of a whole model around one network: its layer, embedding and decoder."""
    if isinstance(architecture, Program):  # of which a pool has many: a model of each would take a second
        around = _parameter_count_around(config, task, data)
        return around + architecture.parameters(task.inputs(data, config), config.hidden)
    with torch.device("meta"):
        return sum(p.numel() for p in build_standalone(config, [architecture], task, data).parameters())


def _parameter_count_around(config: Any, task: Task, data: Any) -> int:
    """Of a model around a network, without the network's own."""
    with torch.device("meta"):
        model = build_standalone(config, ["rnn"], task, data)
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith("rnn."))


class TooFewParameters(WenetError):
    """A model has more than wanted even at hidden size 1."""

    def __init__(self, fewest: int, wanted: int) -> None:
        super().__init__(f"--parameters must be at least {fewest:,} for these data and cells, not {wanted:,}")
        self.fewest = fewest


def hidden_for(
    parameters: int, config: Any, architecture: Architecture, task: Task, data: Any, generous: bool = False
) -> int:
    """The largest hidden size at which a model has no more parameters than wanted.

    Args:
        generous: give the smallest size with no fewer parameters instead, as a rival of our cells should have.

    Raises:
        TooFewParameters: a model of size 1 already has more.
    """

    fewest, second, third = (
        parameter_count(replace(config, hidden=size), architecture, task, data) for size in (1, 2, 3)
    )

    def count(size: int) -> int:
        """A polynomial of degree two, as weights are products of two sizes; counting models takes a second."""
        return fewest + (size - 1) * (second - fewest) + (size - 1) * (size - 2) // 2 * (third - 2 * second + fewest)

    sizes = range(1, 2 + round(parameters**0.5))
    if fewest > parameters:
        raise TooFewParameters(fewest, parameters)
    if generous:
        return sizes[bisect_left(sizes, parameters, key=count)]
    return sizes[bisect_right(sizes, parameters, key=count) - 1]
