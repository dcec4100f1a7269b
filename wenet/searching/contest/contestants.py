"""Who takes part in a contest."""

from __future__ import annotations

from dataclasses import dataclass

from wenet.cells import load_genotype
from wenet.nn import LAYERS
from wenet.run import Session
from wenet.searching.audit import final_ranking
from wenet.searching.settings import SearchConfig
from wenet.searching.shapes import config_for
from wenet.searching.space import identity
from wenet.searching.strategy import RECORDS, are_mutations, strategy_of
from wenet.training import Architecture, parameter_count

WINNER, RUNNER_UP, MEDIAN = "winner", "runner-up", "median cell"


@dataclass(frozen=True)
class Contestant:
    """A participant, and the settings of its size.

    Attributes:
        architecture: one of PyTorch's layers is a program where all cells of the search are.
        finalist: whether it may become the winner.
        rival: whether the task names it; it keeps that name.
    """

    name: str
    architecture: Architecture
    config: SearchConfig
    finalist: bool = False
    rival: bool = False

    @property
    def genotype(self) -> str:
        """The cell in a line, or the name of one of PyTorch's layers."""
        return self.name if self.name in LAYERS else str(self.architecture)


def contestants_of(session: Session[SearchConfig]) -> list[Contestant]:
    """The finalists, the first of the search first, then the runner-up, the median cell, and the task's rivals.

    The median is that of cells drawn at random, without their mutations.

    Where there are several finalists, a rival that took part in the search as a cell is one of them; there are not two
    contestants then that differ in nothing but the name.
    """
    config, task, data = session.config, session.task, session.data
    ranking = final_ranking(session.folder.records(RECORDS), config.keep, strategy_of(config))
    cells = [cell.genotype for cell in ranking]
    rivals = {name: _rival(name, config) for name in task.rivals}
    several, identities = config.finalists > 1, [identity(cell) for cell in cells]
    cells_among_rivals = {name: identity(rival) for name, rival in rivals.items() if not isinstance(rival, str)}
    taking_part = {name: same for name, same in cells_among_rivals.items() if several and same in set(identities)}
    known = set(taking_part.values())
    own = [cell for cell, same in zip(cells, identities, strict=True) if same not in known]
    finalists, others = own[: config.finalists], own[config.finalists :]
    named: dict[str, Architecture] = {}
    if not several and others:
        named[RUNNER_UP] = others.pop(0)
    drawn = [cell.genotype for cell in ranking if not are_mutations(config, cell.generation)]
    if len(drawn) > 4 and (left := [cell for cell in others if cell in drawn]):
        middle = len(drawn) // 2
        named[MEDIAN] = min(left, key=lambda cell: abs(drawn.index(cell) - middle))
    wanted = parameters_of(session, cells[0])

    def sized(name: str, architecture: Architecture, finalist: bool = False, rival: bool = False) -> Contestant:
        own = config_for(architecture, config, task, data, wanted, generous=name in LAYERS)
        return Contestant(name, architecture, own, finalist, rival)

    return [
        *(sized(f"finalist {place}", cell, finalist=True) for place, cell in enumerate(finalists, start=1)),
        *(sized(name, architecture) for name, architecture in named.items()),
        *(sized(name, rival, finalist=name in taking_part, rival=True) for name, rival in rivals.items()),
    ]


def _rival(name: str, config: SearchConfig) -> Architecture:
    """The architecture of a rival, a program in its canonical form."""
    if name not in LAYERS:
        return load_genotype(name)
    return identity(LAYERS[name]) if config.has_programs else name


def parameters_of(session: Session[SearchConfig], first: Architecture) -> int:
    """The number of parameters of each contestant."""
    config, task, data = session.config, session.task, session.data
    return config.parameters or parameter_count(config_for(first, config, task, data), first, task, data)
