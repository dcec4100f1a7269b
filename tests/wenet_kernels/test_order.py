"""The levels of cells, in which GPUs compute them where networks are few."""

import random

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from wenet_kernels.triton.order import Level, find_order

DARTS_V2 = [0, 1, 1, 1, 2, 5, 3, 5]


def test_levels_of_a_published_cell():
    order = find_order([DARTS_V2])
    nodes = [order.positions[level.first : level.first + level.size] for level in order.levels]
    assert nodes == [[1], [2, 3, 4], [5, 7], [6, 8]]
    assert order.positions[8:] == [4, 6, 7, 8]  # the leaves
    assert [level.ends for level in order.levels] == [False, False, False, True]


def test_cells_of_different_depth_end_in_different_levels():
    order = find_order([[0, 0], [0, 1]])
    assert order.levels == (Level(0, 3, True), Level(3, 1, True))
    assert order.positions == [1, 2, 4, 5, 1, 2, 5]
    assert [rows[-1][:2] for rows in order.links] == [(0, 2), (3, 4)]


def test_every_node_follows_its_ancestor_and_is_found_by_it():
    generator = random.Random(5)
    cells = [[generator.randrange(node) for node in range(1, 8)] for _ in range(20)]
    order = find_order(cells)
    level_of = {}
    for number, level in enumerate(order.levels, start=1):
        level_of |= dict.fromkeys(order.positions[level.first : level.first + level.size], number)
    assert sorted(level_of) == [8 * network + node for network in range(20) for node in range(1, 8)]
    for network, cell in enumerate(cells):
        for node, ancestor in enumerate(cell, start=1):
            own = order.links[network][node][2]
            first, end, _ = order.links[network][ancestor]
            assert order.positions[own] == 8 * network + node
            assert first <= own < end
            assert {cells[network][order.positions[p] % 8 - 1] for p in range(first, end)} == {ancestor}
            assert level_of[8 * network + node] == 1 + level_of.get(8 * network + ancestor, 0)
