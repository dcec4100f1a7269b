"""The report of a search on sequences of numbers."""

import re

import wenet
from wenet.programs import load_program
from wenet.report import words
from wenet.report.plots import audit_picture
from wenet.searching.contest import describe_contest
from wenet.tasks import LanguageModelling
from wenet.tasks.measures import METRICS

from ..series.test_searches import SHORT, sums


def test_it_speaks_of_numbers(tmp_path):
    wenet.search(sums(), task="classify", out=tmp_path / "run", **{**SHORT, "contest_epochs": 2.0})
    page = (tmp_path / "run" / "report.html").read_text()
    said = re.sub(r"<[^>]+>", " ", page[page.index("<main>") :])
    assert "test accuracy" in said and "it is highest" in said and "The contest in figures" in said
    assert "perplexity" not in said and "--bptt" not in said and "--missing" in said and "--decoder-bias" not in said
    listed = set(re.findall(r'<th scope="row">(--[a-z-]+)</th>', page))
    assert not listed & {"--blocks", "--hidden", "--mix-lr", "--norm", "--lr", "--audit-epochs"}
    assert listed >= {"--nodes", "--rungs", "--rates"} and "cells that raced 4 of at most 4" in " ".join(said.split())
    assert "training steps a second" in said and "the paper searches" not in said


def test_good_cells_are_where_the_metric_has_them():
    """An accuracy rises with the score, and a cell that diverged is at the lower edge."""
    cells = [{"genotype": name, "score": score, "kept": score > 1, "round": 1} for name, score in (("a", 1), ("b", 2))]
    undefined = {"low": None}
    for key, word, edge in (("accuracy", "rise", min), ("rmse", "fall", max)):
        networks = [*({**cell, key: 0.5 + cell["score"] / 9} for cell in cells), {**cells[0], "score": 0, key: None}]
        picture = audit_picture({"networks": networks, "kendall": undefined, "epochs": 1, "cells": 3}, METRICS[key])
        assert f"points {word} to the right" in picture.description
        (axes,) = picture.drawing.axes
        heights = [height for line in axes.lines for height in line.get_ydata()]
        assert [note.xy[1] for note in axes.texts if note.get_text() == "diverged"] == [edge(heights)]


def test_contestants_that_are_published_cells_have_their_names():
    """In the tables of the report as on a terminal."""
    of_all = {"mean": 9.0, "sd": None, "diverged": 0, "rate": 0.01, "hidden": 4, "parameters": 300, "microseconds": 1.0}
    rows = [
        {**of_all, "name": "winner", "genotype": str(load_program("lstm-program")), "p": None},
        {**of_all, "name": "gru", "genotype": "gru", "p": 0.5},
    ]
    contest = {"contestants": rows, "seeds": 2, "parameters": 300, "windows": 5}
    table = words.contest_table(contest, LanguageModelling.metric)[1]
    assert [row[0] for row in table] == ["winner (lstm)", "gru"]
    assert words.contestants_cells(contest) == [("winner (lstm)", rows[0]["genotype"])]
    assert any("winner (lstm)" in line for line in describe_contest(contest, LanguageModelling.metric))
