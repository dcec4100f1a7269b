"""Who takes part in a contest."""

from __future__ import annotations

from dataclasses import dataclass

from wenet.cells import load_genotype
from wenet.cells.instances import GRU, LSTM
from wenet.run import Session
from wenet.searching.audit import final_ranking
from wenet.searching.settings import SearchConfig
from wenet.searching.shapes import config_for
from wenet.searching.space import identity
from wenet.searching.strategy import RECORDS, strategy_of
from wenet.training import LAYERS, Architecture, parameter_count
from wenet_kernels import Program

WINNER, RUNNER_UP, MEDIAN = "winner", "runner-up", "median cell"
KNOWN = (LSTM, GRU)  # which are among several finalists if they took part in the search


@dataclass(frozen=True)
class Contestant:
    """A participant, and the settings of its size.

    Attributes:
        finalist: whether it may become the winner.
    """

    name: str
    architecture: Architecture
    config: SearchConfig
    finalist: bool = False


def contestants_of(session: Session[SearchConfig]) -> list[Contestant]:
    """The finalists, the first of the search first, then the runner-up, the median cell, and the task's rivals."""
    config, task, data = session.config, session.task, session.data
    ranking = final_ranking(session.folder.records(RECORDS), config.keep, strategy_of(config))
    cells = [cell.genotype for cell in ranking]
    finalists = cells[: config.finalists]
    if config.finalists > 1:
        finalists += [cell for cell in cells if cell not in finalists and is_known(cell)]
    others = [cell for cell in cells if cell not in finalists]
    named: dict[str, Architecture] = {}
    if len(finalists) == 1 and others:
        named[RUNNER_UP] = others.pop(0)
    if len(cells) > 4 and others:
        middle = len(cells) // 2
        named[MEDIAN] = min(others, key=lambda cell: abs(cells.index(cell) - middle))
    named |= {rival: rival if rival in LAYERS else load_genotype(rival) for rival in task.rivals}
    wanted = parameters_of(session, cells[0])

    def sized(name: str, architecture: Architecture, finalist: bool) -> Contestant:
        return Contestant(name, architecture, config_for(architecture, config, task, data, wanted), finalist)

    first = [sized(f"finalist {place}", cell, True) for place, cell in enumerate(finalists, start=1)]
    return [*first, *(sized(name, architecture, False) for name, architecture in named.items())]


def is_known(architecture: Architecture) -> bool:
    return isinstance(architecture, Program) and identity(architecture) in map(identity, KNOWN)


def parameters_of(session: Session[SearchConfig], first: Architecture) -> int:
    """The number of parameters of each contestant."""
    config, task, data = session.config, session.task, session.data
    return config.parameters or parameter_count(config_for(first, config, task, data), first, task, data)
