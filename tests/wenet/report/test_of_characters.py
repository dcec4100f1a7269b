"""Pages of runs by characters say nothing of words."""

from __future__ import annotations

import csv

import pytest

from wenet.cli.search import main as search_main
from wenet.cli.train import main as train_main

from ..helpers import STANDALONE

OF_WORDS = ("perplexity", "Perplexity", "word frequencies", "Word frequencies")


def told(run) -> str:
    """The page but for the table of settings, which explains them all."""
    return (run / "report.html").read_text().split("<h2>Settings")[0].split("<main>")[1]


@pytest.mark.parametrize("strategy", [["--audit", "4"], ["--strategy", "random"], ["--runs", "2"]])
def test_a_search(text, tmp_path, strategy):
    run = tmp_path / "run"
    flags = ["--level", "characters", "--audit-epochs", "0.1", "--epochs-per-round", "0.1", *strategy]
    assert search_main([str(text), *STANDALONE, *flags, "--out", str(run)]) == 0
    page = told(run)
    assert "bits per character" in page and not any(word in page for word in OF_WORDS)
    assert "--level characters" in page  # in the command that repeats it
    assert ("Character frequencies alone give" in page) is ("--audit" in strategy)


def test_a_training(text, tmp_path):
    run = tmp_path / "run"
    flags = ["--preset", "quick", "--cell", "tanh0 relu1", "--hidden", "6", "--epochs", "2", "--data-batch", "4"]
    level = ["--level", "characters", "--backend", "reference"]
    assert train_main([str(text), *flags, *level, "--out", str(run)]) == 0
    page = told(run)
    assert "bits per character (log scale)" in page and "character frequencies" in page
    assert not any(word in page for word in OF_WORDS)
    rows = list(csv.DictReader((run / "figures" / "learning.csv").open()))
    assert all(2 < float(row["train_bits_per_character"]) < 5 for row in rows)
    assert all(2 < float(row["valid_bits_per_character"]) < 5 for row in rows)
