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
    Cost,
    Plan,
    StandaloneResult,
    TooFewParameters,
    hidden_for,
    kind_in_words,
    kind_of,
    standalone_memory,
    train_standalone,
)
from wenet_kernels import Program

SMALLEST = 0.8  # a hidden size that joins a group of larger ones, as a part of the largest


@dataclass(frozen=True)
class Group:
    """Architectures that can train in one call: of one kind, and of one hidden size or nearly so.

    Attributes:
        kind: as in `kind_of`.
        config: the settings, with the largest of their hidden sizes.
        sizes: the hidden size of each.
        places: where they stood among those that were divided into groups.
    """

    kind: str
    config: SearchConfig
    architectures: list[Architecture]
    sizes: list[int]
    places: list[int]

    def hidden(self, copies: int = 1) -> list[int]:
        """For a plan with so many networks of each in a row: their sizes, or nothing where all are equal."""
        if set(self.sizes) == {self.config.hidden}:
            return []
        return [size for size in self.sizes for _ in range(copies)]

    def only(self, places: Sequence[int]) -> Group | None:
        """The part of the group that stood at some places; None if none of it did."""
        kept = [number for number, place in enumerate(self.places) if place in places]
        if not kept:
            return None
        sizes = [self.sizes[number] for number in kept]
        return Group(
            self.kind,
            replace(self.config, hidden=max(sizes)),
            [self.architectures[number] for number in kept],
            sizes,
            [self.places[number] for number in kept],
        )

    @property
    def name(self) -> str:
        """For folders."""
        return f"{self.kind}-{self.config.hidden}"

    @property
    def title(self) -> str:
        """For lines on a console."""
        return f"{kind_in_words(self.architectures[0])}, hidden {self.config.hidden}"

    def memory(self, data: Any, networks: int, processes: int) -> int:
        """Bytes that each process needs to train so many networks of its cells at once."""
        cell = self.architectures[0]
        assert not isinstance(cell, str)
        return standalone_memory(self.config, cell, data, networks, processes)


def by_shape(
    architectures: Sequence[Architecture],
    config: SearchConfig,
    task: Task,
    data: Any,
    parameters: int | None = None,
) -> list[Group]:
    """Divide architectures into groups that can train in one call, in the order of their first members.

    Args:
        parameters: as in `config_for`.

    Raises:
        TooFewParameters: some cannot be so small; the message says how many parameters would do for all.
    """
    sized: dict[object, SearchConfig] = {}
    refused: list[TooFewParameters] = []
    for architecture in architectures:
        size = _size(architecture)
        if size not in sized:
            try:
                sized[size] = config_for(architecture, config, task, data, parameters)
            except TooFewParameters as error:
                refused.append(error)
    if refused:
        raise max(refused, key=lambda error: error.fewest)
    return grouped(architectures, [sized[_size(architecture)] for architecture in architectures], task)


def grouped(architectures: Sequence[Architecture], configs: Sequence[SearchConfig], task: Task) -> list[Group]:
    """The same for architectures whose sizes are settled, each in settings of its own."""
    groups = [
        Group(
            kind_of(architectures[places[0]]),
            max((configs[place] for place in places), key=lambda config: config.hidden),
            [architectures[place] for place in places],
            [configs[place].hidden for place in places],
            places,
        )
        for places in _joined(architectures, [config.hidden for config in configs], task)
    ]
    return sorted(groups, key=lambda group: group.places[0])


def _joined(architectures: Sequence[Architecture], sizes: Sequence[int], task: Task) -> list[list[int]]:
    """The places of those that train in one call.

    Programs that read numbers may be smaller than the largest among them: what their units compute more costs less
    than a call of their own. Elsewhere the hidden size is also that of the embedding, and must be equal.
    """
    joined: list[list[int]] = []
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        program = isinstance(architectures[place], Program) and task.reads == "numbers"
        least = SMALLEST if program else 1.0
        kind = kind_of(architectures[place])
        for places in joined:
            first = places[0]
            if kind == kind_of(architectures[first]) and sizes[place] >= least * sizes[first]:
                places.append(place)
                break
        else:
            joined.append([place])
    return [sorted(places) for places in joined]


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
    architecture: Architecture,
    config: SearchConfig,
    task: Task,
    data: Any,
    parameters: int | None = None,
    generous: bool = False,
) -> SearchConfig:
    """Settings with the nodes of a DAG cell, and the hidden size that its parameters allow.

    Args:
        parameters: number of parameters of the whole model; by default that of the settings. If they name none, the
            hidden size stays.
        generous: a few parameters more rather than fewer, so that no claim to be better rests on size; a layer of
            PyTorch always has them.
    """
    generous = generous or isinstance(architecture, str)
    nodes = str(architecture.nodes) if isinstance(architecture, Genotype) else config.nodes
    wanted = parameters or config.parameters
    shaped = config if nodes == config.nodes else replace(config, nodes=nodes, initial_cells=None)
    if wanted is None:
        return shaped
    key = (wanted, generous, shaped, str(architecture), type(task), task.inputs(data, shaped), task.outputs(data))
    if key not in _SIZES:
        _SIZES[key] = hidden_for(wanted, shaped, architecture, task, data, generous)
    return replace(shaped, hidden=_SIZES[key])


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
            Plan(group.architectures, windows, seed, hidden=group.hidden()),
            label if len(groups) == 1 else f"{label}, {group.title}",
        )
        for group in groups
    ]
    outcomes = {
        place: outcome
        for group, part in zip(groups, parts, strict=True)
        for place, outcome in zip(group.places, part.outcomes, strict=True)
    }
    cost = Cost.of(parts)
    return StandaloneResult(
        [outcomes[place] for place in range(len(cells))], cost.network_windows, cost.seconds, cost.peak_memory
    )
