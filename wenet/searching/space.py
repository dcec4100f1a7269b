"""The spaces that a search draws its cells from."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import zip_longest
from typing import Protocol

from wenet.cells import Cell, Genotype, cells_in_all, mutated, random_mixed_genotypes
from wenet.cells.gated import mutated as mutated_program
from wenet.cells.gated import random_mixed_programs
from wenet.cells.instances import PROGRAMS, program_of
from wenet.searching.settings import SearchConfig
from wenet.words import counted, plural
from wenet_kernels import Program, WenetError
from wenet_kernels.programs import canonical


class Space(Protocol):
    """What a search needs to know of a space. To add one, write a class and list it in `SPACES`."""

    unread: tuple[str, ...]  # settings that say nothing of its cells

    def draw(self, config: SearchConfig) -> Sequence[Cell]: ...  # the pool, in the order of use
    def mutated(self, cell: Cell, generator: random.Random, config: SearchConfig) -> Cell: ...  # differs by one gene
    def largest(self, config: SearchConfig) -> Cell: ...  # a cell that takes as much time and memory as any drawn
    def outline(self, config: SearchConfig) -> str: ...  # its cells in words, behind "cells of"


class Dag:
    """Nodes that each read one other (paper, Algorithm 1)."""

    unread: tuple[str, ...] = ("blocks", "states", "known")

    def draw(self, config: SearchConfig) -> list[Genotype]:
        cells = self.draw_at_most(config)
        if len(cells) < config.pool:
            raise WenetError(
                f"--pool must be at most {len(cells)}, not {config.pool}: there are no more different cells of "
                f"{self.outline(config)} with these --activations"
            )
        return cells

    def draw_at_most(self, config: SearchConfig) -> list[Genotype]:
        """Different cells, as many as the pool wants or as there are. Those that differ only in how their nodes are
        numbered count as one."""
        activations, counts = config.activations.split(","), config.node_counts
        there_are, tried = sum(cells_in_all(number, activations) for number in counts), config.pool
        while True:
            drawn = random_mixed_genotypes(min(tried, there_are), counts, config.seed_of_pool, activations)
            different: dict[Cell, Genotype] = {}
            for cell in drawn:
                different.setdefault(identity(cell), cell)
            if len(different) >= config.pool or tried >= there_are:
                return list(different.values())[: config.pool]
            tried *= 2

    def mutated(self, cell: Cell, generator: random.Random, config: SearchConfig) -> Cell:
        assert isinstance(cell, Genotype)
        return mutated(cell, generator, config.activations.split(","))

    def largest(self, config: SearchConfig) -> Cell:
        return Genotype([("tanh", 0)] * config.most_nodes)

    def outline(self, config: SearchConfig) -> str:
        return _counted(config.nodes, "node")


class Gated:
    """Programs with gates and memory, LSTM and GRU among them."""

    unread: tuple[str, ...] = ("nodes", "activations")

    def draw(self, config: SearchConfig) -> list[Program]:
        return random_mixed_programs(
            config.pool, config.state_counts, config.block_counts, config.seed_of_pool, config.known
        )

    def mutated(self, cell: Cell, generator: random.Random, config: SearchConfig) -> Cell:
        assert isinstance(cell, Program)
        with suppress(WenetError):  # no change of one gene is possible, which leaves the cell itself
            cell = mutated_program(cell, generator.randrange(2**32))
        return cell

    def largest(self, config: SearchConfig) -> Cell:
        programs = (cell for cell in draw_pool(config) if isinstance(cell, Program))
        return max(programs, key=lambda cell: len(cell.instructions))

    def outline(self, config: SearchConfig) -> str:
        return f"{_counted(config.blocks, 'block')}, {_counted(config.states, 'state')}"


class Both(Gated):
    """The cells of the two spaces by turns, all of them programs; those known by name come first."""

    unread: tuple[str, ...] = ()

    def draw(self, config: SearchConfig) -> list[Program]:
        gated, known = super().draw(config), 0
        while known < len(gated) and known_name(gated[known]) is not None:
            known += 1
        nodes = [program_of(cell, config.form, bias=True) for cell in Dag().draw_at_most(config)]
        turns = zip_longest(gated[known:], nodes)
        drawn = [*gated[:known], *(cell for pair in turns for cell in pair if cell is not None)]
        return list({identity(cell): cell for cell in drawn}.values())[: config.pool]

    def outline(self, config: SearchConfig) -> str:
        return f"{super().outline(config)} or {Dag().outline(config)}"


def _counted(number: str, noun: str) -> str:
    """A number or a range with its noun."""
    return f"{number} {noun if number == '1' else plural(noun)}"


# By the names of the setting `space`.
SPACES: dict[str, Space] = {"dag": Dag(), "gated": Gated(), "both": Both()}


def space_of(config: SearchConfig) -> Space:
    """The space of the settings."""
    return SPACES[config.space]


def pool_in_words(config: SearchConfig) -> str:
    """The cells of a pool, and the size of their standalone models."""
    size = f"hidden {config.hidden}" if config.parameters is None else f"{config.parameters:,} parameters"
    return f"{counted(config.pool, 'cell')} of {space_of(config).outline(config)} and {size}"


def draw_pool(config: SearchConfig) -> list[Cell]:
    """Draw the cells of a search, in the order of use."""
    return list(_drawn(config))


@lru_cache(4)  # a search asks several times, and to tell programs apart takes a second
def _drawn(config: SearchConfig) -> tuple[Cell, ...]:
    return tuple(space_of(config).draw(config))


def identity(cell: Cell) -> Cell:
    """The same for all cells that differ in nothing but how they are written."""
    return canonical(cell) if isinstance(cell, Program) else cell.canonical()


def known_name(cell: Cell) -> str | None:
    """The name of a published program that a cell is equal to.

    >>> from wenet.programs import load_program
    >>> known_name(load_program("gru-program"))
    'gru'
    """
    if not isinstance(cell, Program):
        return None
    found = identity(cell)
    return next((name for name, (program, _) in PROGRAMS.items() if identity(program) == found), None)
