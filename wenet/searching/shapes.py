"""Cells of different sizes at equal parameters: those of one shape train at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from wenet.cells import Genotype
from wenet.run import Session
from wenet.searching.settings import SearchConfig
from wenet.tasks import Task
from wenet.training import Architecture, hidden_for


def config_for(
    architecture: Architecture, config: SearchConfig, task: Task, data: Any, parameters: int | None = None
) -> SearchConfig:
    """Settings with the nodes of a cell, or of a layer beside cells, and the hidden size that its parameters allow.

    A layer gets a few parameters more rather than fewer: a claim to be better than it must not rest on size.

    Args:
        parameters: of the whole model; by default those of the settings. If these name none, the hidden size stays.
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


def by_nodes(cells: Sequence[Genotype]) -> dict[int, list[Genotype]]:
    """Cells by their number of nodes, the fewest first, otherwise in order."""
    return {nodes: [cell for cell in cells if cell.nodes == nodes] for nodes in sorted({c.nodes for c in cells})}
