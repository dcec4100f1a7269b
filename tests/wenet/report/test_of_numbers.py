"""The report of a search on sequences of numbers."""

import re

import wenet

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
