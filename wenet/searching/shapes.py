"""Cells of different sizes at equal parameters; cells of one shape train at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wenet.cells import Genotype
from wenet.run import Session, counted
from wenet.searching.settings import SearchConfig
from wenet.tasks import Task
from wenet.training import Architecture, Plan, StandaloneResult, hidden_for, train_standalone


def config_for(
    architecture: Architecture, config: SearchConfig, task: Task, data: Any, parameters: int | None = None
) -> SearchConfig:
    """Settings with a cell's nodes, or for a layer beside cells, and the hidden size that its parameters allow.

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
    generous = not isinstance(architecture, Genotype)
    return replace(shaped, hidden=hidden_for(wanted, shaped, architecture, task, data, generous))


def session_for(
    architecture: Architecture, session: Session[SearchConfig], parameters: int | None = None
) -> Session[SearchConfig]:
    """The session with the settings of `config_for`."""
    return replace(session, config=config_for(architecture, session.config, session.task, session.data, parameters))


def train_cells(
    session: Session[SearchConfig],
    path: Path,
    cells: Sequence[Genotype],
    windows: int,
    seed: int,
    label: str,
    parameters: int | None = None,
) -> StandaloneResult:
    """Train a standalone model of each cell from new weights; cells of one shape train at once.

    Args:
        path: the folder of the training; cells of further shapes have folders beside it.
        parameters: as in `config_for`.

    Returns:
        Outcomes in the order of the cells.
    """
    groups = by_nodes(cells)
    parts = {
        nodes: train_standalone(
            session_for(own[0], session, parameters),
            path if len(groups) == 1 else path.with_name(f"{path.name}-{nodes}-nodes"),
            Plan(own, windows, seed),
            label if len(groups) == 1 else f"{label}, {counted(nodes, 'node')}",
        )
        for nodes, own in groups.items()
    }
    outcomes = {nodes: iter(part.outcomes) for nodes, part in parts.items()}
    return StandaloneResult(
        [next(outcomes[cell.nodes]) for cell in cells],
        sum(part.network_windows for part in parts.values()),
        round(sum(part.seconds for part in parts.values()), 3),
        max(part.peak_memory for part in parts.values()),
    )


def by_nodes(cells: Sequence[Genotype]) -> dict[int, list[Genotype]]:
    """Cells by their number of nodes, the fewest first, otherwise in order."""
    return {nodes: [cell for cell in cells if cell.nodes == nodes] for nodes in sorted({c.nodes for c in cells})}
