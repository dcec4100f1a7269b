"""Cells as pictures: nothing drawn over anything else, all of it in words too."""

import re
import xml.etree.ElementTree as ET

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import FancyBboxPatch

from wenet import Genotype, random_genotypes
from wenet.cells.published import DARTS_V2, ENAS, PUBLISHED
from wenet.cli.cell import main as cell_main
from wenet.report.cells import BOX_WIDTH, SHIFT, Layout, cell_picture, comparison_picture, shorten
from wenet_kernels.activations import REGISTERED, Activation

CELLS = [*(genotype for genotype, _ in PUBLISHED.values()), *random_genotypes(20, 12, seed=3)]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("genotype", CELLS, ids=str)
def test_no_line_crosses_a_box(genotype):
    layout = Layout.of(genotype)
    assert sorted(layout.row.values()) == list(range(genotype.nodes + 1))
    for node, (_, ancestor) in enumerate(genotype.recurrent, start=1):
        x = SHIFT * (layout.depth[ancestor] + 0.5)
        between = [n for n in layout.row if layout.row[ancestor] < layout.row[n] < layout.row[node]]
        assert layout.row[node] > layout.row[ancestor]
        assert all(SHIFT * layout.depth[n] > x for n in between)  # boxes stand to the right of the line down
        assert x < SHIFT * layout.depth[ancestor] + BOX_WIDTH  # and the line begins below the box it comes from


def test_a_cell_as_svg():
    svg = cell_picture(DARTS_V2, "darts-v2 & $more$").svg
    root = ET.fromstring(svg)
    assert root.attrib["role"] == "img"
    labels = root.attrib["aria-labelledby"].split()
    ids = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    assert set(labels) <= set(ids) and all(name.startswith("cell-") for name in ids)
    assert set(re.findall(r'href="#([^"]*)"', svg)) <= set(ids)
    description = root.find(f"{SVG}desc").text
    assert "node 5, tanh of 2" in description and "Averaged into the output: all" in description
    texts = ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]
    assert "darts-v2 & $more$" in texts
    for node, (activation, _) in enumerate(DARTS_V2.recurrent, start=1):
        assert f"{node}  {activation}" in texts


def test_only_what_is_averaged_runs_to_the_output():
    cell = Genotype.from_text("tanh0 relu1 relu1 mean 2,3")
    lines = {tuple(line.get_xdata()) for line in cell_picture(cell, "a cell").drawing.axes[0].lines}
    right = max(x for ends in lines for x in ends)
    assert sum(right in ends and ends[0] < right for ends in lines) == 1  # both nodes have the same depth, so one line
    assert "Averaged into the output: 2, 3." in cell_picture(cell, "a cell").description


def test_the_same_cell_gives_the_same_files():
    first, second = (cell_picture(ENAS, "enas") for _ in range(2))
    assert first.svg_file() == second.svg_file()
    assert first.png_file() == second.png_file()


def test_the_common_part_is_marked():
    picture = comparison_picture("enas", ENAS, "darts-v2", DARTS_V2)
    bold = {text.get_text() for text in picture.drawing.axes[0].texts if text.get_weight() == "bold"}
    common = {"3  relu = 2", "4  tanh = 5", "7  relu = 8", "2  relu = 3", "5  tanh = 4", "8  relu = 7"}
    assert bold == common | {"enas", "darts-v2"}
    assert "node 4, tanh of 3, common: 5 in the other cell" in picture.description
    assert ["enas", 4, "tanh", 3, 0, 5] in picture.table


def test_a_long_title_is_cut():
    assert shorten("darts-v2", 2.0) == "darts-v2"
    assert shorten("sigmoid0 relu1 relu1 identity1 tanh2", 2.0) == "sigmoid0 relu1 relu…"


@pytest.fixture
def long_name(monkeypatch):
    """An activation that a program has added."""
    monkeypatch.setitem(REGISTERED, "shiftedexponential", Activation(torch.exp, torch.exp))
    return "shiftedexponential"


def test_names_fit_into_their_boxes(long_name):
    added = Genotype([(long_name, 0), ("identity", 1)])
    for picture in (
        cell_picture(added, "added"),
        cell_picture(ENAS, "enas"),
        comparison_picture("enas", ENAS, "one more", Genotype([*ENAS.recurrent, ("identity", 2)])),
        comparison_picture("added", added, "the same", added),
    ):
        renderer = FigureCanvasAgg(picture.drawing).get_renderer()
        axes = picture.drawing.axes[0]
        boxes = [box.get_window_extent(renderer) for box in axes.patches if isinstance(box, FancyBboxPatch)]
        labels = [text for text in axes.texts if text.get_text()[:1].isdigit()]
        assert len(labels) == len(boxes)
        for label, box in zip(labels, boxes, strict=True):
            assert label.get_window_extent(renderer).x1 < box.x1, label.get_text()


def test_show_and_compare_draw(tmp_path, capsys):
    assert cell_main(["show", "darts-v2", "--draw", str(tmp_path / "new" / "cell.svg")]) == 0
    assert "└─" in capsys.readouterr().out
    text = (tmp_path / "new" / "cell.svg").read_text()
    assert "prefers-color-scheme: dark" in text
    ET.fromstring(text)
    assert cell_main(["show", "enas", "--json", "--draw", str(tmp_path / "cell.PNG")]) == 0
    assert Genotype.from_json(capsys.readouterr().out) == ENAS
    assert (tmp_path / "cell.PNG").read_bytes().startswith(b"\x89PNG")
    assert cell_main(["compare", "enas", "darts-v2", "--draw", str(tmp_path / "both.png")]) == 0
    assert "common      3 nodes" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both.png", "cell.PNG", "new"]


@pytest.mark.parametrize(("name", "message"), [("cell.pdf", "ends in .svg or .png"), ("file/cell.svg", "cannot write")])
def test_what_cannot_be_drawn_to(name, message, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cell_main(["show", "enas", "--draw", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
