"""What a race takes: time and memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from wenet.cells import Cell
from wenet.searching.race.rates import tries_rates, typical, windows_of_rates
from wenet.searching.race.rungs import (
    extrapolates,
    held_out_windows,
    mutations_in,
    rungs_from,
    shares_left,
    trained_in,
)
from wenet.searching.settings import SearchConfig
from wenet.searching.shapes import Group, by_shape, config_for
from wenet.searching.space import draw_pool
from wenet.tasks import Task, task_of
from wenet.training import kind_of, seconds_per_measured, seconds_per_network


def seconds_of_race(config: SearchConfig, task: Task, data: Any) -> float:
    """An estimate, as if the same part of each kind left at a rung, and all cells of a kind were alike."""
    pool = draw_pool(config)
    return sum(_seconds_of(kind, pool, config, task, data) for kind in dict.fromkeys(map(kind_of, pool)))


def _seconds_of(kind: str, pool: Sequence[Cell], config: SearchConfig, task: Task, data: Any) -> float:
    """Of the cells of one kind: rates first, then all rungs."""
    typical_cells = typical(kind, pool)
    cell = typical_cells[0]
    shaped = config_for(cell, config, task, data)
    of_first = seconds_per_network(shaped, cell, config.epochs_per_round, task, data)
    of_measured = seconds_per_measured(shaped, cell, task, data)
    first = config.epochs_per_round * task.windows(task.streams(data, "train", config.data_batch), config.bptt)

    def seconds(networks: int, trained: int, so_far: int, times: int = 1) -> float:
        """In windows of the first rung; measured so many times."""
        measured = held_out_windows(config, task, data, round(first * so_far))
        return networks * (trained * of_first + times * measured * of_measured)

    ends = rungs_from(1, config.rungs)
    tried = len(typical_cells) * len(config.rate_grid) if tries_rates(config) else 0
    longest = windows_of_rates(config, ends[-1])
    total = seconds(tried, longest, longest)
    entering = sum(kind_of(cell) == kind for cell in pool)
    for rung, share in enumerate(shares_left(config)):
        networks = math.ceil(share * entering) * config.networks_per_cell
        total += seconds(networks, trained_in(rung), ends[rung], 2 if extrapolates(config, rung) else 1)
    return total


def memory_of_race(config: SearchConfig, data: Any, processes: int) -> int:
    """Bytes that the call with the most networks needs: a kind in the first rung, or some of its cells at all rates."""
    pool, size = draw_pool(config), config.batch
    drawn = 1 if mutations_in(config) else config.rounds
    generations = [pool[number * size : (number + 1) * size] for number in range(drawn)]
    return max(_memory_of_generation(cells, config, data, processes) for cells in generations)


def _memory_of_generation(cells: Sequence[Cell], config: SearchConfig, data: Any, processes: int) -> int:
    rates = len(config.rate_grid) if tries_rates(config) else 0

    def networks(group: Group) -> int:
        size = len(group.places)
        raced = len(cells) if mutations_in(config) else size  # all mutations may be of one kind
        return max(config.networks_per_cell * raced, rates * min(size, len(typical(group.kind, cells))))

    groups = by_shape(cells, config, task_of(config), data)
    return max(group.memory(data, networks(group), processes) for group in groups)
