"""The trained model of a search on numbers in every format: the same predictions, from sequences of any length."""

import importlib.util

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import wenet
from wenet import WenetError
from wenet.cli.cell import main as cell_main
from wenet.exporting.sequences import sequence_source
from wenet.nn import CellRNN, SequenceModel

from .test_searches import SHORT, sums, waves

QUICK = {**SHORT, "contest_epochs": 2.0, "pool": 2, "batch": 2, "rungs": 1, "rates": "0.03"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A classification by DAG cells, and a forecast by programs, whose values are far from zero."""
    folder = tmp_path_factory.mktemp("taken")
    x, y = sums()
    x[3, 2, 1] = np.nan
    one = wenet.search(
        (x * 3 + 50, y), task="classify", missing="mask", readout="mean", out=folder / "classes", **QUICK
    )
    gated = {**QUICK, "space": "gated", "known": False, "blocks": "2-3"}
    del gated["nodes"]
    series = 1000 + 7 * waves()
    two = wenet.search(series, task="forecast", window=12, horizon=3, out=folder / "forecast", **gated)
    assert two.model.relative == (0,)  # the first of the two drifts
    return {"classes": (one, 50 + 3 * sums(9, seed=4)[0]), "forecast": (two, np.stack([series[:20], series[40:60]]))}


def loaded(path, weights):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(weights)


@pytest.mark.parametrize("name", ["classes", "forecast"])
def test_every_format_gives_the_same(runs, name, tmp_path):
    found, x = runs[name]
    model = found.model
    x = torch.from_numpy(x).float()
    with torch.no_grad():
        expected = {steps: model(x[:, :steps]) for steps in (8, 5)}
    source, weights = wenet.export(found.folder, out=tmp_path / "taken.py")
    alone = loaded(source, weights)
    [graph] = wenet.export(found.folder, "torch-export", tmp_path / "taken.pt2")
    program = torch.export.load(graph).module()
    for steps, wanted in expected.items():
        for run in (alone, program):
            torch.testing.assert_close(run(x[:, :steps]), wanted, rtol=1e-5, atol=1e-5)
    lengths = torch.tensor([8, 5] * 5)[: len(x)]
    with torch.no_grad():
        torch.testing.assert_close(alone(x[:, :8], lengths), model(x[:, :8], lengths), rtol=1e-5, atol=1e-5)
    assert float(expected[8].std()) > 0


def test_a_cell_that_compares_rows_refuses_sequences_that_end_early(tmp_path):
    layer = CellRNN(4, 5, "h | tanh(vector(1) * batchnorm(linear(x, h)) + vector(0))")
    scaling = (torch.zeros(3), torch.ones(3), torch.zeros(2), torch.ones(2))
    model = SequenceModel(layer, 2, tuple(each.double() for each in scaling))
    (tmp_path / "taken.py").write_text(sequence_source(model), encoding="utf-8")
    save_file(model.state_dict(), tmp_path / "taken.safetensors")
    alone, x = loaded(tmp_path / "taken.py", tmp_path / "taken.safetensors"), torch.randn(2, 6, 3)
    whole, ending = torch.tensor([6, 6]), torch.tensor([6, 5])
    with torch.no_grad():
        torch.testing.assert_close(alone(x, whole), model(x, whole), rtol=1e-4, atol=1e-5)
        with pytest.raises(WenetError, match="must be equally long"):
            model(x, ending)
        with pytest.raises(ValueError, match="must be equally long"):
            alone(x, ending)


def test_a_forecast_from_a_missing_value_is_nan(tmp_path):
    """Not the 0 that the layer reads in its place: a model cannot refuse values as `predict` does once it is traced."""
    scaling = tuple(torch.tensor(each).double() for each in ([5.0, 2.0, 1.0], [3.0, 1.0, 2.0], [5.0, 1.0], [3.0, 2.0]))
    of_targets = [each.repeat(2) for each in scaling[2:]]  # of two steps
    forecast = {"repeats": (0, 2), "horizon": 2, "relative": (0,)}
    model = SequenceModel(CellRNN(7, 5, "gru"), 4, (*scaling[:2], *of_targets), marked=True, **forecast)
    (tmp_path / "taken.py").write_text(sequence_source(model), encoding="utf-8")
    save_file(model.state_dict(), tmp_path / "taken.safetensors")
    x = torch.randn(5, 6, 3)
    x[1, 5, 2] = x[2, 3, 2] = x[3, 0, 0] = x[4, 5, 0] = torch.nan  # the last, amid, the first of what drifts, the last
    unknown = torch.zeros(5, 2, 2, dtype=torch.bool)
    unknown[1, :, 1] = unknown[3] = unknown[4, :, 0] = True
    program = torch.export.export(model, (x,)).module()
    with torch.no_grad():
        found = model(x)
        assert torch.equal(found.isnan(), unknown)
        for other in (loaded(tmp_path / "taken.py", tmp_path / "taken.safetensors"), program):
            torch.testing.assert_close(other(x), found, rtol=1e-5, atol=1e-5, equal_nan=True)
        state = None
        for step in x.unbind(1):
            streamed, state = model.step(step, state)
        torch.testing.assert_close(streamed, found, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("name", ["classes", "forecast"])
def test_onnx(runs, name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    found, x = runs[name]
    [path] = wenet.export(found.folder, "onnx", tmp_path / "taken.onnx")
    session = onnxruntime.InferenceSession(str(path))
    for rows, steps in ((2, 8), (1, 5)):
        part = torch.from_numpy(x[:rows, :steps]).float()
        [output] = session.run(None, {"x": part.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(output), found.model(part), rtol=1e-4, atol=1e-4)


def test_onnx_of_values_far_from_zero(tmp_path):
    """Single precision would round off a fifth of what tells times of today in seconds apart here."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    x, y = sums()
    x = x * 300 + 1.7e9
    found = wenet.search((x, y), task="classify", out=tmp_path / "run", **{**QUICK, "contest_epochs": 16.0})
    [path] = wenet.export(found.folder, "onnx", tmp_path / "taken.onnx")
    session = onnxruntime.InferenceSession(str(path))
    assert session.get_inputs()[0].type == "tensor(double)"
    [output] = session.run(None, {"x": x[:20]})
    assert (np.array(found.model.classes)[output.argmax(1)] == found.predict(x[:20])).all()
    with torch.no_grad():
        torch.testing.assert_close(
            torch.from_numpy(output), found.model(torch.from_numpy(x[:20])), rtol=1e-3, atol=1e-3
        )


def test_from_the_command(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = str(runs["classes"][0].folder)
    assert cell_main(["export", folder]) == 0
    assert "the trained model, with its standardisation: classes.py, classes.safetensors" in capsys.readouterr().out
    with pytest.raises(WenetError, match="leave out --form: a trained model has its own"):
        wenet.export(folder, "onnx", tmp_path / "other.onnx", form="plain")


def test_streaming_gives_the_same(runs):
    for found, x in runs.values():
        model, state = found.model, None
        for number, step in enumerate(torch.from_numpy(x).unbind(1), start=1):
            with torch.no_grad():
                prediction, state = model.step(step, state)
                whole = model(torch.from_numpy(x)[:, :number])
            torch.testing.assert_close(prediction, whole, rtol=1e-5, atol=1e-5)
