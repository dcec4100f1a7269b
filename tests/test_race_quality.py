"""The benches of a race's ranking and of sampled softmaxes, on a tiny text."""

import json

from bench import sampled_softmax
from bench.race_quality import main

from .wenet.helpers import write_text


def test_a_pool_is_measured_and_read_again(tmp_path, monkeypatch, capsys):
    text, out = write_text(tmp_path / "text"), tmp_path / "out"
    flags = ["--level", "words", "--cells", "6", "--nodes", "1-2", "--parameters", "700", "--windows", "48"]
    monkeypatch.setattr("sys.argv", ["race_quality", str(text), *flags, "--out", str(out)])
    main()
    said = capsys.readouterr().out
    found = json.loads((out / "race-quality.json").read_text())
    assert [rung["windows"] for rung in found["rungs"]] == [3, 6, 12, 24]
    for medians in zip(*(rung["medians"] for rung in found["rungs"]), strict=True):  # of a rate
        assert list(medians) == sorted(medians, reverse=True) and len(set(medians)) == 4  # they train on
    same = [rung["tau_extrapolated"] == rung["tau"] for rung in found["rungs"]]
    assert same[0] and not all(same)
    assert len(set(found["cells"])) == len(set(found["truth"])) == 6 and set(found["best_rates"]) <= {0.01, 0.02}
    assert "| windows | rate 0.01 | rate 0.02 | the lowest of all rates |" in said and "ceiling: " in said
    main()  # reads what is there
    assert json.loads((out / "race-quality.json").read_text()) == found


def test_sampled_softmaxes_are_measured(tmp_path, monkeypatch, capsys):
    text, out = write_text(tmp_path / "text"), tmp_path / "out"
    flags = ["--cells", "4", "--windows", "6", "--sampled", "2", "1000"]
    monkeypatch.setattr("sys.argv", ["sampled_softmax", str(text), *flags, "--out", str(out)])
    sampled_softmax.main()
    found = json.loads((out / "sampled-softmax.json").read_text())
    assert [row["words"] for row in found] == [0, 2, 1000]
    assert found[1]["mean"] == found[2]["mean"] != found[0]["mean"]  # a window of so small a text has all its words
    assert "| words of the window and 1,000 |" in capsys.readouterr().out
