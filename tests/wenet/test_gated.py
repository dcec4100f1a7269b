"""The space of gated cells."""

from __future__ import annotations

import pytest
import torch

import wenet
from wenet import WenetError
from wenet.cells.gated import mutated, random_programs
from wenet.programs import load_program
from wenet_kernels.programs import canonical


@pytest.mark.parametrize("states", [1, 2])
@pytest.mark.parametrize("blocks", [4, 8])
def test_cells_are_valid_and_different(states, blocks):
    cells = random_programs(100, states, seed=1, blocks=blocks)
    assert len({canonical(cell) for cell in cells}) == 100
    assert all(cell.states == states and 2 <= len(cell.products) <= blocks for cell in cells)
    assert cells == random_programs(100, states, seed=1, blocks=blocks)
    assert cells[5:] != random_programs(100, states, seed=2, blocks=blocks)[5:]


def test_lstm_and_gru_are_in_it():
    assert random_programs(1, 1, seed=3, blocks=4) == [load_program("gru")]
    assert random_programs(1, 2, seed=3, blocks=4) == [load_program("lstm")]


@pytest.mark.parametrize("cell", ["lstm", "gru", "mgu"])
def test_a_mutation_is_one_change(cell):
    program = load_program(cell)
    found = [mutated(program, seed) for seed in range(30)]
    assert all(len(other.products) == len(program.products) for other in found)
    assert all(canonical(other) != canonical(program) for other in found)
    assert len({canonical(other) for other in found}) > 10


def test_they_can_be_trained():
    torch.manual_seed(0)
    for cell in random_programs(20, 2, seed=4, blocks=5):
        layer = wenet.nn.CellRNN(3, 4, cell)
        output, _ = layer(torch.randn(6, 2, 3))
        output.square().sum().backward()
        assert output.isfinite().all()
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_what_cannot_be_drawn_is_told():
    with pytest.raises(WenetError, match="1 or 2 states"):
        random_programs(3, 3, seed=1)
    with pytest.raises(WenetError, match="fewer than"):
        random_programs(10000, 1, seed=1, blocks=2)
