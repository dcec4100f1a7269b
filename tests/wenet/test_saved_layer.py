"""A layer that a user trained and saved goes on without this package, its weights with it."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from wenet import Genotype, WenetError, export
from wenet.cli.cell import main as cell_main
from wenet.exporting.saved_layer import saved_layer
from wenet.nn.rnn import DagRNN
from wenet.nn.weighted import WeightedDagRNN

CELL = Genotype.from_text("sigmoid0 relu1 tanh1 mean 2,3")
PLAIN = {"form": "plain"}
DEEP = {"num_layers": 3, "bias": True}
BOTH = {"bidirectional": True, "bias": True, "form": "plain"}
DEEP_BOTH = {"num_layers": 2, "bidirectional": True}


class Model(nn.Module):
    """A model of somebody's own, with a layer in it."""

    def __init__(self, **options):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 5), DagRNN(5, 7, CELL, **options))
        self.weight_input = nn.Parameter(torch.zeros(3))  # of the model, not of the layer
        self.norm = nn.BatchNorm1d(7)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


def imported(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments(rnn, dtype=torch.float32):
    states = rnn.num_layers * rnn.directions
    for steps, rows in ((6, 3), (1, 1), (9, 2)):
        yield torch.randn(steps, rows, 5, dtype=dtype), torch.randn(states, rows, 7, dtype=dtype)


@pytest.mark.parametrize("options", [{}, PLAIN, DEEP, BOTH, DEEP_BOTH])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_as_a_module(options, dtype, tmp_path):
    rnn = DagRNN(5, 7, CELL, dtype=dtype, **options)
    torch.save(rnn.state_dict(), "mine.pt")
    path, weights = export("mine.pt", out=tmp_path / "layer.py")
    layer = imported(path).load(weights)
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    for x, h0 in arguments(rnn, dtype):
        for state in (None, h0):
            for found, expected in zip(layer(x, state), rnn(x, state), strict=True):
                torch.testing.assert_close(found, expected, **close)
    turned = imported(path).load(weights, batch_first=True)
    torch.testing.assert_close(turned(x.transpose(0, 1), h0)[0], rnn(x, h0)[0].transpose(0, 1), **close)
    torch.testing.assert_close(turned(x.transpose(0, 1), h0)[1], rnn(x, h0)[1], **close)


@pytest.mark.parametrize("options", [{}, DEEP, BOTH, DEEP_BOTH])
def test_as_a_graph(options, tmp_path):
    rnn = DagRNN(5, 7, CELL, **options)
    torch.save(rnn.state_dict(), "mine.pt")
    [path] = export("mine.pt", "torch-export")
    graph = torch.export.load(path).module()
    for given in arguments(rnn):
        for found, expected in zip(graph(*given), rnn(*given), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, DEEP, BOTH, DEEP_BOTH])
def test_as_onnx(options, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    rnn = DagRNN(5, 7, CELL, **options)
    torch.save(rnn.state_dict(), "mine.pt")
    [path] = export("mine.pt", "onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for x, h0 in arguments(rnn):
        found = session.run(["output", "h_n"], {"x": x.numpy(), "h0": h0.numpy()})
        for one, expected in zip(found, rnn(x, h0), strict=True):
            torch.testing.assert_close(torch.from_numpy(one), expected, rtol=1e-5, atol=1e-5)
    said = session.get_modelmeta().custom_metadata_map
    assert said["cell"] == str(CELL)
    assert ("num_layers" in said, "bidirectional" in said) == ("num_layers" in options, "bidirectional" in options)


@pytest.mark.parametrize("kind", ["torch.save", "safetensors", "old torch.save", "checkpoint", "compiled"])
def test_out_of_a_model(kind):
    model = Model(**DEEP_BOTH)
    weights = torch.compile(model).state_dict() if kind == "compiled" else model.state_dict()
    path = "mine.safetensors" if kind == "safetensors" else "mine.ckpt"
    if kind == "safetensors":
        save_file(weights, path)
    elif kind == "checkpoint":
        optimizer = torch.optim.Adam(model.parameters()).state_dict()
        torch.save({"model": weights, "optimizer": optimizer, "epoch": 3}, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=kind != "old torch.save")
    assert cell_main(["export", path, "--out", "layer.py"]) == 0
    layer, rnn = imported(Path("layer.py")).load("layer.safetensors"), model.encoder[1]
    x = torch.randn(4, 3, 5)
    for found, expected in zip(layer(x), rnn(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_one_of_several():
    model = nn.ModuleDict({"reads": DagRNN(5, 7, CELL), "writes": DagRNN(5, 7, Genotype.from_text("tanh0"))})
    torch.save(model.state_dict(), "mine.pt")
    with pytest.raises(WenetError, match="mine.pt holds the layers reads, writes; name one with --layer"):
        export("mine.pt")
    layer = saved_layer(Path("mine.pt"), "writes")
    assert str(layer.genotype) == "tanh0"
    assert torch.equal(layer.weight_input, model["writes"].weight_input)


def test_a_module_is_tidy_and_says_what_it_is(capsys):
    torch.save(DagRNN(5, 7, CELL, **DEEP_BOTH).state_dict(), "mine.pt")
    assert cell_main(["export", "mine.pt"]) == 0
    output = capsys.readouterr().out
    assert "wrote     the recurrent layer and its weights: mine_pt.py, mine_pt.safetensors" in output
    assert 'load it   import mine_pt; model = mine_pt.load("mine_pt.safetensors")' in output
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--config", "line-length = 120", "--isolated", "mine_pt.py"],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout


def test_a_module_refuses_weights_of_another_cell(tmp_path):
    [path] = export("darts-v2", out=tmp_path / "cell.py")
    layer = imported(path).DartsV2(5, 7)
    with pytest.raises(
        ValueError, match="sigmoid0 relu1 tanh1 mean 2,3.* but this module needs .*sigmoid0 relu1 relu1"
    ):
        layer.load_state_dict(DagRNN(5, 7, CELL).state_dict(), strict=False)


def without(name):
    weights = DagRNN(5, 7, CELL, num_layers=2).state_dict()
    del weights[name]
    return weights


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        (None, [], "cannot read mine.pt: No such file"),
        (b"", [], "mine.pt is not a file of plain tensors"),
        (b"PK of something else", [], "mine.pt is not a file of plain tensors"),
        (b"hello world", [], "mine.pt is not a file of plain tensors"),
        (b"\x80\x02)", [], "mine.pt is not a file of plain tensors"),
        ({**DagRNN(5, 7, CELL).state_dict(), "weight_input": torch.zeros(())}, [], "are not those of a whole DagRNN"),
        (nn.Linear(2, 3), [], "not a file of plain tensors; save model.state_dict(), not the model"),
        (nn.Linear(2, 3).state_dict(), [], "mine.pt holds no weights of a DagRNN or CellRNN"),
        (3, [], "mine.pt holds no weights of a DagRNN or CellRNN"),
        (dict(DagRNN(5, 7, CELL).named_parameters()), [], "do not name their cell, as an earlier version"),
        (without("weight_input"), [], "are not those of a whole DagRNN: 'weight_input'"),
        (
            without("weight_hidden_l1"),
            [],
            'are not those of a whole DagRNN: Missing key(s) in state_dict: "weight_hidden',
        ),
        (WeightedDagRNN(5, 7, [CELL] * 3).state_dict(), [], "of 3 cells side by side; only a single one is exported"),
        (Model().state_dict(), ["--layer", "decoder"], "mine.pt has no layer 'decoder'; it has encoder.1"),
        (Model().state_dict(), ["--hidden", "7"], "leave out --hidden: a file of weights has its own"),
        (Model().state_dict(), ["--form", "plain"], "leave out --form: a file of weights has its own"),
    ],
)
def test_errors(content, flags, message, capsys):
    if isinstance(content, bytes):
        Path("mine.pt").write_bytes(content)
    elif content is not None:
        torch.save(content, "mine.pt")
    assert cell_main(["export", "mine.pt", "--out", "layer.py", *flags]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert not Path("layer.py").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out", "."], "--out . must end in .py, as a module does"),
        (["--out", "layer.safetensors"], "must end in .py, as a module does"),
        (["--out", "none/layer.pt2", "--format", "torch-export", "--hidden", "3"], "there is no folder none; name"),
    ],
)
def test_files_that_cannot_be_written_or_loaded(flags, message, capsys):
    assert cell_main(["export", "darts-v2", *flags]) == 2
    errors = capsys.readouterr().err
    assert message in errors and errors.count("\n") == 1


def test_a_file_without_a_name_given_can_be_imported(tmp_path):
    path = tmp_path / "1"
    path.write_text(CELL.to_json())
    assert [file.name for file in export(path)] == ["cell_1.py"]
    assert hasattr(imported(Path("cell_1.py")), "Cell")


def test_other_errors(capsys):
    Path("mine.safetensors").write_bytes(b"nothing")
    assert cell_main(["export", "mine.safetensors"]) == 2
    assert cell_main(["export", "darts-v2", "--layer", "encoder"]) == 2
    errors = capsys.readouterr().err
    assert "mine.safetensors is not a file of plain tensors" in errors
    assert "leave out --layer: only a file of weights has several" in errors
