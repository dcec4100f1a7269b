"""The driver of search-quality experiments: its arithmetic, and a run on a tiny text."""

import json
import sys

import numpy as np
import pytest

from bench import search_quality
from bench.report import BEGIN, END
from bench.search_quality import Quality, Standalone, row, traits
from wenet import Genotype

from .wenet.helpers import write_text

TINY = {
    "pool": 7, "batch": 3, "keep": 2, "hidden": 8, "nodes": 3, "data_batch": 4, "eval_batch": 2, "bptt": 6,
    "epochs_per_round": 0.2,
}  # fmt: skip
CELLS = 24


def judged(scores, perplexities):
    """A row of two searches with the same scores, which kept the two cells of the highest."""
    kept = np.argsort(-scores)[:2].tolist()
    search = Quality(scores, kept, np.ones(CELLS), np.zeros(CELLS), seconds=1.0)
    trainings = np.stack([perplexities / 2, perplexities * 2])
    return row("default", [search, search], Standalone(trainings, perplexities, seconds=2.0, windows=3), {})


def measured(rows):
    """Without where the figures came from: not every row was measured by the same command."""
    return [{name: value for name, value in row.items() if name != "from"} for row in rows]


def test_full_agreement_and_chance():
    perplexities = np.arange(100.0, 100.0 + CELLS)
    full = judged(-perplexities, perplexities)
    assert full["tau"] == pytest.approx(1)
    assert full["tau_interval"] == pytest.approx([1, 1])
    assert [full["kept"], full["winner"], full["best"]] == pytest.approx([100.5, 100, 100])
    assert full["between_trainings"] == pytest.approx(1)
    assert full["tau_p"] < 0.001 and full["kept_p"] < 0.01
    shuffled = judged(np.random.default_rng(0).permutation(perplexities), perplexities)
    assert shuffled["tau_interval"][0] < 0 < shuffled["tau_interval"][1]
    assert shuffled["tau_p"] > 0.05


def test_two_searches_alike_are_no_stronger_evidence_than_one():
    """The best two of 24 cells are kept by chance once in 276 draws, however many searches agree on them."""
    found = judged(-np.arange(float(CELLS)), np.arange(100.0, 100.0 + CELLS))
    assert 0.5 / 276 < found["kept_p"] < 2 / 276


def test_a_cell_that_diverged_is_last_and_in_no_mean():
    perplexities = np.array([*range(100, 100 + CELLS - 1), np.inf])
    found = judged(-np.arange(float(CELLS)), perplexities)
    assert found["tau"] == pytest.approx(1)
    assert found["pool"]["mean"] == pytest.approx(111)
    assert found["pool"]["diverged"] == 1


def test_traits_of_a_cell():
    found = traits([Genotype.from_text("tanh0 relu1 relu1 sigmoid0")])
    assert {name: values.tolist() for name, values in found.items()} == {
        "tanh": [1], "relu": [2], "sigmoid": [1], "identity": [0], "mean depth": [1.5], "leaves": [3],
    }  # fmt: skip


def test_settings_times_seeds(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(search_quality, "SETTINGS", {"default": TINY, "mixing rate / 3": {**TINY, "mix_lr": 3e-3}})
    monkeypatch.setattr(search_quality, "GROUP", 4)
    monkeypatch.setattr("wenet.searching.work.SearchWork.announce", lambda *_: None)
    text, out = write_text(tmp_path / "text"), tmp_path / "out"
    command = [str(text), "--seeds", "2", "--trainings", "3", "--settings", "default", "mixing rate / 3"]
    command += ["--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["search_quality", *command])
    search_quality.main()
    rows = json.loads((out / "search-quality.json").read_text())
    assert [row["setting"] for row in rows] == ["default", "mixing rate / 3"]
    assert all(len(row["taus"]) == 2 and row["cells"] == 7 for row in rows)
    assert (out / "mixing-rate-by-3-2" / "best.json").exists()
    assert (out / "pool-highway" / "seed-3" / "from-5" / "result.json").exists()
    document = tmp_path / "search-quality.md"
    document.write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--settings", "default", "--document", str(document)])
    search_quality.main()
    assert measured(json.loads((out / "search-quality.json").read_text())) == measured(rows)
    assert "| mixing rate / 3 | 2 |" in capsys.readouterr().out
    written = document.read_text()
    assert "| mixing rate / 3 | 2 |" in written
    assert str(tmp_path) not in written.replace(str(text), "")
    assert written.startswith("before") and written.endswith("after\n")
    assert (tmp_path / "figures" / "search-quality.svg").exists()
    assert measured(json.loads((tmp_path / "figures" / "search-quality.json").read_text())) == measured(rows)
