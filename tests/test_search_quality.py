"""The driver of search-quality experiments on a tiny text."""

import json
import sys

from bench import search_quality

from .wenet.helpers import write_text

TINY = {
    "pool": 7, "batch": 3, "seeds": 2, "hidden": 8, "nodes": 3, "data_batch": 4, "eval_batch": 2, "bptt": 6,
    "epochs_per_round": 0.2, "audit_epochs": 0.2,
}  # fmt: skip


def test_settings_times_seeds(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(search_quality, "GRID", {"default": TINY, "mixing rate / 3": {**TINY, "mix_lr": 3e-3}})
    monkeypatch.setattr("wenet.launch_search._say_header", lambda *_: None)
    text, out = write_text(tmp_path / "text"), tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["search_quality", str(text), "--seeds", "2", "--cells", "5", "--out", str(out)])
    search_quality.main()
    rows = json.loads((out / "search-quality.json").read_text())
    assert [row["setting"] for row in rows] == ["default", "mixing rate / 3"]
    assert all(len(row["kendall"]) == row["seeds"] == 2 for row in rows)
    assert (out / "mixing-rate-by-3-2" / "audit.json").exists()
    search_quality.main()
    assert json.loads((out / "search-quality.json").read_text()) == rows
    assert "| mixing rate / 3 | 2 |" in capsys.readouterr().out
