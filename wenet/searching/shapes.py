"""Cells of different sizes at equal parameters; what has one shape trains in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wenet.cells import Genotype
from wenet.run import Session
from wenet.searching.settings import SearchConfig
from wenet.searching.space import space_of
from wenet.tasks import Task, task_of
from wenet.training import (
    Architecture,
    Plan,
    StandaloneResult,
    hidden_for,
    kind_of,
    standalone_memory,
    train_standalone,
)
from wenet_kernels import Program


@dataclass(frozen=True)
class Group:
    """Architectures of one shape, which can train in one call.

    Attributes:
        kind: as in `kind_of`.
        config: the settings, with the hidden size that all of them have.
        places: where they stood among those that were divided into groups.
    """

    kind: str
    config: SearchConfig
    architectures: list[Architecture]
    places: list[int]

    @property
    def name(self) -> str:
        """For folders and lines on a console."""
        return shape_name(self.architectures[0], self.config)

    def memory(self, data: Any, copies: int, processes: int) -> int:
        """Bytes that each process needs to train so many networks of every cell at once."""
        cell = self.architectures[0]
        assert not isinstance(cell, str)
        return standalone_memory(self.config, cell, data, copies * len(self.places), processes)


def shape_name(architecture: Architecture, config: SearchConfig) -> str:
    """The shape of an architecture, under the settings of its size."""
    return f"{kind_of(architecture)}-{config.hidden}"


def by_shape(
    architectures: Sequence[Architecture],
    config: SearchConfig,
    task: Task,
    data: Any,
    parameters: int | None = None,
) -> list[Group]:
    """Divide architectures into groups of one shape, in the order of their first members.

    Args:
        parameters: as in `config_for`.
    """
    sized: dict[object, SearchConfig] = {}
    groups: dict[tuple[str, int], Group] = {}
    for place, architecture in enumerate(architectures):
        size = _size(architecture)
        if size not in sized:
            sized[size] = config_for(architecture, config, task, data, parameters)
        kind = kind_of(architecture)
        group = groups.setdefault((kind, sized[size].hidden), Group(kind, sized[size], [], []))
        group.architectures.append(architecture)
        group.places.append(place)
    return list(groups.values())


def _size(architecture: Architecture) -> object:
    """What the number of parameters follows from, besides hidden size and task."""
    if isinstance(architecture, Program):
        return kind_of(architecture), *(architecture.parameters(*sizes) for sizes in ((1, 1), (1, 2), (2, 1), (2, 3)))
    return kind_of(architecture)


def largest_memory(config: SearchConfig, data: Any, networks: int, processes: int) -> int:
    """Bytes that each process needs for standalone training of so many networks, all like the largest of the space."""
    cell = space_of(config).largest(config)
    return standalone_memory(config_for(cell, config, task_of(config), data), cell, data, networks, processes)


_SIZES: dict[object, int] = {}  # hidden sizes found so far, as each takes some models to count


def config_for(
    architecture: Architecture, config: SearchConfig, task: Task, data: Any, parameters: int | None = None
) -> SearchConfig:
    """Settings with the nodes of a DAG cell, and the hidden size that its parameters allow.

    A layer gets a few parameters more rather than fewer, so that no claim to be better rests on size.

    Args:
        parameters: number of parameters of the whole model; by default that of the settings. If they name none, the
            hidden size stays.
    """
    nodes = str(architecture.nodes) if isinstance(architecture, Genotype) else config.nodes
    wanted = parameters or config.parameters
    shaped = replace(config, nodes=nodes)
    if wanted is None:
        return shaped
    key = (wanted, shaped, str(architecture), type(task), task.inputs(data, shaped), task.outputs(data))
    if key not in _SIZES:
        _SIZES[key] = hidden_for(wanted, shaped, architecture, task, data, isinstance(architecture, str))
    return replace(shaped, hidden=_SIZES[key])


def session_for(
    architecture: Architecture, session: Session[SearchConfig], parameters: int | None = None
) -> Session[SearchConfig]:
    """The session with the settings of `config_for`."""
    return replace(session, config=config_for(architecture, session.config, session.task, session.data, parameters))


def train_cells(
    session: Session[SearchConfig],
    path: Path,
    cells: Sequence[Architecture],
    windows: int,
    seed: int,
    label: str,
    parameters: int | None = None,
) -> StandaloneResult:
    """Train a standalone model of each cell from new weights; cells of one shape train at once.

    Args:
        path: the folder of the training; where there are several shapes, each has a folder beside it.
        parameters: as in `config_for`.

    Returns:
        Outcomes in the order of the cells.
    """
    groups = by_shape(cells, session.config, session.task, session.data, parameters)
    parts = [
        train_standalone(
            replace(session, config=group.config),
            path if len(groups) == 1 else path.with_name(f"{path.name}-{group.name}"),
            Plan(group.architectures, windows, seed),
            label if len(groups) == 1 else f"{label}, {group.name}",
        )
        for group in groups
    ]
    outcomes = {
        place: outcome
        for group, part in zip(groups, parts, strict=True)
        for place, outcome in zip(group.places, part.outcomes, strict=True)
    }
    return StandaloneResult(
        [outcomes[place] for place in range(len(cells))],
        sum(part.network_windows for part in parts),
        round(sum(part.seconds for part in parts), 3),
        max(part.peak_memory for part in parts),
    )
