"""The bench of random gated cells, on a tiny text and on waves."""

import json

import pytest

from bench import gated_cells
from bench.gated_cells import main

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
    assert all(len(set(row["values"])) == 2 and row["rate"] in (0.01, 0.02, 0.04) for row in found["cells"])
    assert "better than lstm:" in said and "τ between two trainings:" in said
    main()  # reads what is there
    assert json.loads((out / "gated-cells.json").read_text()) == found


@pytest.mark.parametrize("most_bytes", [1 << 40, 1])
def test_waves_are_forecast_in_as_many_parts_as_memory_needs(tmp_path, monkeypatch, capsys, most_bytes):
    monkeypatch.setattr(gated_cells, "MOST_BYTES", most_bytes)
    flags = ["--cells", "4", "--blocks", "2-3", "--parameters", "300", "--windows", "6", "--rates", "0.01,0.03"]
    monkeypatch.setattr("sys.argv", ["gated_cells", "waves", *flags, "--seeds", "2", "--out", str(tmp_path)])
    main()
    found = json.loads((tmp_path / "gated-cells.json").read_text())
    assert len({row["cell"] for row in found["cells"]}) == 6
    assert all(0 < value < 10 for row in found["cells"] for value in row["values"])
    parts = list(tmp_path.glob("*-states-*-part-*"))
    assert len(parts) == (0 if most_bytes > 1 else 2)
    assert "| | RMSE |" in capsys.readouterr().out
