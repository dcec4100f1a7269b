import json
from pathlib import Path

import pytest

from wenet.api import _on_the_text_of_its_run
from wenet.cells.genotype import Genotype
from wenet.cells.published import DARTS_V2, ENAS, PUBLISHED, load_genotype
from wenet.cells.space import random_genotypes
from wenet.cli.cell import main as cell_main
from wenet.exporting.winner import has_trained_winner
from wenet.run.session import Surroundings
from wenet_kernels import WenetError


@pytest.mark.parametrize("genotype", [genotype for genotype, _ in PUBLISHED.values()], ids=PUBLISHED)
def test_text_and_json_round_trip(genotype):
    assert Genotype.from_text(str(genotype)) == genotype
    assert Genotype.from_json(genotype.to_json()) == genotype
    assert hash(Genotype.from_json(genotype.to_json())) == hash(genotype)


def test_published_cells():
    assert DARTS_V2.recurrent[4] == ("tanh", 2)
    assert ENAS.concat == (2, 5, 6, 9, 10, 11)
    assert [genotype.nodes for genotype, _ in PUBLISHED.values()] == [8, 8, 11, 8, 11, 11, 9]


def test_concat_defaults_to_all_nodes_in_order():
    cell = Genotype([["relu", 0], ["tanh", 1]])
    assert cell == Genotype((("relu", 0), ("tanh", 1)), (2, 1))
    assert cell != Genotype((("relu", 0), ("tanh", 1)), (2,))
    assert str(cell) == "relu0 tanh1"


def test_draw_is_the_tree():
    cell = Genotype.from_text("tanh0 relu1 sigmoid0 identity2 mean 2,4")
    assert cell.draw().splitlines() == [
        "0 init (x, h)",
        "├─ 1 tanh  (not averaged)",
        "│  └─ 2 relu",
        "│     └─ 4 identity",
        "└─ 3 sigmoid  (not averaged)",
    ]


@pytest.mark.parametrize(
    "text", ["", "tanh", "tanh0 mean", "tanh0 mean 1,", "tanh-1", "tanh0, relu1", "mean 1", "tanh0 mean 2", "swish0"]
)
def test_text_that_is_no_cell(text):
    with pytest.raises(WenetError):
        Genotype.from_text(text)


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        {"recurrent": 3},
        {"recurrent": [["tanh"]]},
        {"recurrent": [["tanh", 0.5]]},
        {"recurrent": [["tanh", True]]},
        {"recurrent": [["tanh", 0]], "concat": ["1"]},
        {"recurrent": [["tanh", 0]], "concat": []},
        {"recurrent": [["tanh", 0]] * 10_000},
    ],
)
def test_json_that_is_no_cell(value):
    with pytest.raises(WenetError):
        Genotype.from_json(json.dumps(value))


def test_broken_json():
    with pytest.raises(WenetError, match="not valid JSON"):
        Genotype.from_json("{")


def test_random_genotypes_follow_the_seed():
    assert random_genotypes(50, 8, seed=3) == random_genotypes(50, 8, seed=3)
    assert random_genotypes(50, 8, seed=3) != random_genotypes(50, 8, seed=4)


def test_random_genotypes_are_distinct_until_the_space_is_exhausted():
    assert len(set(random_genotypes(2000, 8, seed=0))) == 2000
    all_two_node_cells = random_genotypes(32, 2, seed=0)  # 2! * 4^2
    assert len(set(all_two_node_cells)) == 32
    twice = random_genotypes(70, 2, seed=0)
    assert len(set(twice[32:64])) == 32
    assert len(twice) == 70


def test_random_genotypes_cover_the_space_evenly():
    cells = random_genotypes(4000, 3, seed=1)[:300]
    ancestors = [cell.recurrent[2][1] for cell in cells]
    assert all(70 <= ancestors.count(j) <= 130 for j in range(3))


@pytest.mark.parametrize(("count", "nodes"), [(0, 8), (3, 0), (3, 65)])
def test_random_genotypes_that_cannot_be(count, nodes):
    with pytest.raises(WenetError):
        random_genotypes(count, nodes, seed=0)


def test_load_genotype(tmp_path):
    assert load_genotype("darts-v2") == DARTS_V2
    assert load_genotype(str(DARTS_V2)) == DARTS_V2
    (tmp_path / "cell.json").write_text(DARTS_V2.to_json())
    assert load_genotype(str(tmp_path / "cell.json")) == DARTS_V2
    (tmp_path / "best.json").write_text(json.dumps({"genotype": DARTS_V2.to_dict(), "weight": 0.1}))
    assert load_genotype(str(tmp_path)) == DARTS_V2


def test_cells_longer_than_a_files_name(tmp_path):
    text = " ".join(f"tanh{node}" for node in range(60))
    cell = load_genotype(text)
    assert cell.nodes == 60 and str(cell) == text
    assert not has_trained_winner(Path(text))
    assert _on_the_text_of_its_run({"cell": text}, Surroundings())[0] == {"cell": text}
    assert cell_main(["show", text, "--draw", str(tmp_path / "cell.svg")]) == 0
    with pytest.raises(WenetError, match="no cell 'xxx"):
        load_genotype(5000 * "x")


def test_load_genotype_errors(tmp_path):
    with pytest.raises(WenetError, match="darts-v2"):
        load_genotype("darts-v7")
    with pytest.raises(WenetError, match="ancestor 9"):
        load_genotype("tanh9")
    with pytest.raises(WenetError, match="best.json is missing"):
        load_genotype(str(tmp_path))
    (tmp_path / "best.json").write_text("{")
    with pytest.raises(WenetError, match="holds no cell"):
        load_genotype(str(tmp_path))
    (tmp_path / "best.json").write_text('{"recurrent": [["tanh", 7]]}')
    with pytest.raises(WenetError, match=r"best\.json: node 1: ancestor 7"):
        load_genotype(str(tmp_path))


def test_cells_numbered_otherwise_are_the_same():
    cell = Genotype.from_text("tanh0 relu0 tanh2 sigmoid2 mean 1,3")
    same = [
        Genotype.from_text(text)
        for text in ("relu0 sigmoid1 tanh1 tanh0 mean 3,4", "relu0 tanh0 tanh1 sigmoid1 mean 2,3")
    ]
    assert {each.canonical() for each in same} == {cell.canonical()}
    assert cell.canonical().canonical() == cell.canonical()
    others = (
        "tanh0 relu0 tanh2 sigmoid2 mean 1,4",
        "tanh0 relu0 tanh1 sigmoid2 mean 1,3",
        "tanh0 relu0 tanh2 sigmoid2",
    )
    assert not {Genotype.from_text(text).canonical() for text in others} & {cell.canonical()}
