"""The bench of random gated cells, on a tiny text."""

import json

from bench.gated_cells import RATES, main

from .wenet.helpers import write_text


def test_a_pool_is_measured_and_read_again(tmp_path, monkeypatch, capsys):
    text, out = write_text(tmp_path / "text"), tmp_path / "out"
    flags = ["--level", "words", "--cells", "4", "--blocks", "2-3", "--parameters", "700", "--windows", "6"]
    flags += ["--data-batch", "4"]
    monkeypatch.setattr("sys.argv", ["gated_cells", str(text), *flags, "--seeds", "2", "--out", str(out)])
    main()
    said = capsys.readouterr().out
    found = json.loads((out / "gated-cells.json").read_text())
    assert [row["cell"] for row in found["cells"]][:2] == ["lstm", "gru"] and len(found["cells"]) == 6
    assert all(len(set(row["values"])) == 2 and row["rate"] in RATES for row in found["cells"])
    assert "better than lstm:" in said and "τ between two trainings:" in said
    main()  # reads what is there
    assert json.loads((out / "gated-cells.json").read_text()) == found
