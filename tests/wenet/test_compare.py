from itertools import pairwise

import pytest

from wenet import Genotype, random_genotypes
from wenet.cells.comparison import common_structure, same_beginning
from wenet.cells.published import DARTS_V1, DARTS_V2, ENAS
from wenet.cli.cell import main as cell_main


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("tanh0 relu1 relu0", "tanh0 relu1 sigmoid0", {0: 0, 1: 1, 2: 2}),
        ("tanh0 relu1", "sigmoid0 tanh1 relu2", {1: 2, 2: 3}),  # not from the init node on
        ("relu0 tanh0", "tanh0 relu0", {0: 0, 1: 2, 2: 1}),  # the order of children does not matter
        ("tanh0 identity0", "relu0 sigmoid0", {0: 0}),
        # One relu below tanh is the end, the other has two more nodes; each must meet its equal.
        ("tanh0 relu1 relu1 tanh2 sigmoid4", "tanh0 relu1 relu1 tanh3 sigmoid4", {0: 0, 1: 1, 2: 3, 3: 2, 4: 4, 5: 5}),
    ],
)
def test_common_structure(a, b, expected):
    assert common_structure(Genotype.from_text(a), Genotype.from_text(b)) == expected


def test_a_common_structure_is_in_both_cells():
    cells = random_genotypes(12, 8, seed=4)
    for a, b in pairwise(cells):
        common = common_structure(a, b)
        assert len(common) == len(common_structure(b, a))
        assert len(set(common.values())) == len(common)
        top = min(common)
        for i, j in common.items():
            if i > 0:
                (activation, ancestor), (other, other_ancestor) = a.recurrent[i - 1], b.recurrent[j - 1]
                assert activation == other
                assert i == top or common[ancestor] == other_ancestor
    assert common_structure(cells[0], cells[0]) == {node: node for node in range(9)}


def test_published_cells():
    assert common_structure(ENAS, DARTS_V2) == {3: 2, 4: 5, 7: 8}  # relu, tanh, relu
    assert len(common_structure(DARTS_V1, DARTS_V2)) == 3
    assert same_beginning(DARTS_V1, DARTS_V2) == 0
    assert same_beginning(Genotype.from_text("tanh0 relu1 relu0"), Genotype.from_text("tanh0 relu1 tanh0")) == 2


def test_the_command_draws_both(capsys):
    assert cell_main(["compare", "enas", "darts-v2"]) == 0
    output = capsys.readouterr().out
    assert "common      3 nodes from node 3 on the left and 2 on the right" in output
    assert "3 relu  (not averaged)  = 2" in output
    assert "2 relu  = 3" in output
    assert "beginning   node 1 differs" in output
    assert cell_main(["compare", "enas", "no-such-cell"]) == 2
