"""Pictures of programs: everything is there, and nothing lies on anything else."""

import re
from itertools import pairwise

import pytest

from wenet.cells.gated import random_mixed_programs
from wenet.cli.search import main as search_main
from wenet.programs import PROGRAMS, load_program
from wenet.report.cells import cell_picture
from wenet.report.programs import BOX_WIDTH, _Graph

from ..helpers import write_text

CELLS = {
    **{name: program for name, (program, _) in PROGRAMS.items()},
    "darts-v2": load_program("darts-v2"),
    **{str(cell): cell for cell in random_mixed_programs(8, (1, 2), range(2, 9), seed=3, known=False)},
}


@pytest.mark.parametrize("name", CELLS)
def test_boxes_lie_apart_and_lines_lead_down(name):
    graph = _Graph(CELLS[name])
    assert {item for layer in graph.layers for item in layer if isinstance(item, int)} == set(graph.operands)
    for row, layer in enumerate(graph.layers):
        middles = sorted((graph.x[item], graph.wide(item)) for item in layer)
        for (left, own), (right, other) in pairwise(middles):
            assert right - left > (own + other) / 2 - 1e-6
        for item in layer:
            assert all(above in graph.layers[row - 1] for above in graph.above[item])
            assert BOX_WIDTH / 10 < graph.x[item] < graph.width


def test_a_picture_of_an_lstm():
    picture = cell_picture(load_program("lstm"), "An LSTM")
    texts = re.findall(r">([^<>]+)</text>", picture.svg)
    assert texts.count("linear x, h") == 4 and texts.count("sigmoid") == 3 and texts.count("tanh") == 2
    assert {"new h", "new c", "c", "An LSTM"} <= set(texts)
    assert ["v9", "mul", "", "v4 c"] in picture.table and picture.table[-1] == ["new c", "", "", "v11"]
    assert picture.svg.startswith("<svg") and "linear(x, h)" in picture.description


def test_the_report_of_a_race_of_programs(tmp_path):
    text = write_text(tmp_path)
    flags = [
        *("--preset", "race", "--space", "gated", "--level", "words", "--parameters", "900", "--blocks", "2-4"),
        *("--pool", "3", "--batch", "3", "--keep", "2", "--rungs", "1", "--epochs-per-round", "0.3", "--no-known"),
        *("--data-batch", "4", "--eval-batch", "2", "--bptt", "6", "--rates", "0.02", "--no-contest", "--quiet"),
    ]
    assert search_main([str(text), *flags, "--out", str(tmp_path / "run")]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "new h" in page and "--space gated" in page and "linear(x" in page
    assert (tmp_path / "run" / "figures" / "cell.svg").exists()
