"""What is exported computes what it was exported from, and needs nothing of this package."""

import ast
import importlib.util
import json
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from wenet import Genotype, WenetError, evaluate, export, search, train
from wenet.cells.published import PUBLISHED
from wenet.cli.cell import main as cell_main
from wenet.data import batchify, load_corpus
from wenet.exporting.formats import SUFFIXES
from wenet.nn.rnn import DagRNN
from wenet.tasks import LanguageModelling
from wenet.tasks.language import perplexity
from wenet.training.nt_asgd import trained_model
from wenet.training.settings import resolve_train_config

from .helpers import words

ALLOWED = {"__future__", "json", "pathlib", "torch"}
TINY = {
    "preset": "quick", "cell": "sigmoid0 relu1 tanh1 identity0 mean 2,3", "hidden": 8, "epochs": 2, "data_batch": 4,
    "eval_batch": 2, "test_batch": 1, "bptt": 8, "lr": 4.0, "backend": "reference",
}  # fmt: skip


@pytest.fixture(scope="module", params=["tied", "mos"])
def run(request, text, tmp_path_factory):
    mixture = {"softmax": "mos", "experts": 3, "embedding": 6} if request.param == "mos" else {}
    return train(str(text), out=tmp_path_factory.mktemp("runs") / "run", **{**TINY, **mixture}).folder


ONE_RUN = pytest.mark.parametrize("run", ["tied"], indirect=True)


def imported(path):
    """The file as a module; it may import nothing but PyTorch and a little of the standard library."""
    tree = ast.parse(path.read_text())
    names = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    names |= {str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names <= ALLOWED
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def model_of(run):
    """The trained model as evaluation builds it."""
    config = json.loads((run / "config.json").read_text())
    settings = config["settings"]
    with safe_open(run / "checkpoint" / "best.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    vocabulary = load_corpus(settings["dataset"], None, None).vocabulary
    resolved = resolve_train_config(settings.pop("preset"), settings)
    return trained_model(
        resolved, Genotype.from_dict(config["genotype"]), LanguageModelling(), words(len(vocabulary)), tensors
    ).eval()


@pytest.mark.parametrize("form", ["highway", "plain"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_cell_as_a_module(name, form, tmp_path):
    [path] = export(name, out=tmp_path / "cell.py", form=form)
    module = imported(path)
    torch.manual_seed(0)
    ours = DagRNN(5, 7, PUBLISHED[name][0], form=form, dtype=torch.float64)
    layer = getattr(module, "".join(part.capitalize() for part in name.split("-")))(5, 7).double()
    layer.load_state_dict(ours.state_dict())
    x, h0 = torch.randn(4, 3, 5, dtype=torch.float64), torch.randn(1, 3, 7, dtype=torch.float64)
    for given in (None, h0):
        torch.testing.assert_close(layer(x, given), ours(x, given), rtol=1e-12, atol=1e-12)
    layer.batch_first = True
    torch.testing.assert_close(layer(x.transpose(0, 1), h0)[0], ours(x, h0)[0].transpose(0, 1))


def test_a_module_is_tidy(run, tmp_path):
    files = export("enas", out=tmp_path / "enas.py") + export(run, out=tmp_path / "model.py")[:1]
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--config", "line-length = 120", "--isolated", *files],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout


def test_a_run_as_a_module(run, text, tmp_path):
    path, weights, vocabulary = export(run, out=tmp_path / "model.py")
    model, ours = imported(path).load(weights), model_of(run)
    tokens, h0 = torch.randint(20, (6, 3)), torch.randn(1, 3, 8)
    for given in (None, h0):
        for found, expected in zip(model(tokens, given), ours(tokens, given), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert load_file(weights).keys() == ours.state_dict().keys()
    words = vocabulary.read_text().splitlines()
    assert words == list(load_corpus(str(text), None, None).vocabulary)


@pytest.fixture(
    scope="module", params=[{"space": "dag", "nodes": "2"}, {"space": "gated", "states": "2", "known": False}]
)
def found(request, text, tmp_path_factory):
    """A race with a contest."""
    short = {"pool": 4, "batch": 4, "keep": 2, "rungs": 1, "epochs_per_round": 1, "contest_epochs": 2}
    sizes = {"level": "words", "parameters": 700, "contest_seeds": 2, "data_batch": 4, "eval_batch": 2, "bptt": 8}
    out = tmp_path_factory.mktemp("runs") / "found"
    return search(str(text), preset="race", out=out, **short, **sizes, **request.param)


def test_the_winner_of_a_search_is_exported_as_trained(found, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cell_main(["export", str(found.folder)]) == 0
    said = capsys.readouterr().out
    assert "the trained model and its vocabulary: found.py, found.safetensors, found.vocabulary.txt" in said
    model, tokens = imported(tmp_path / "found.py").load("found.safetensors"), torch.randint(20, (6, 3))
    h0 = torch.randn(found.model(tokens)[1].shape)  # of several states side by side
    for given in (None, h0):
        for ours, alone in zip(found.model(tokens, given), model(tokens, given), strict=True):
            torch.testing.assert_close(alone, ours, rtol=1e-5, atol=1e-5)
    row = next(row for row in found.contest["contestants"] if row["name"] == "winner")
    with safe_open("found.safetensors", "pt") as file:
        assert float(file.metadata()["valid_perplexity"]) == row["valid"][row["kept"]]
    assert Path("found.vocabulary.txt").read_text().splitlines() == list(found.vocabulary)
    assert cell_main(["export", str(found.folder), "--format", "torch-export", "--hidden", "8"]) == 0
    assert "the recurrent layer, its weights fresh: found.pt2" in capsys.readouterr().out


def test_perplexity_stays(run, text, tmp_path):
    """That of the run, loaded again, to the last digit; that of the module to rounding."""
    best = json.loads((run / "best.json").read_text())
    assert evaluate(run, backend="reference")["test"]["perplexity"] == best["test_perplexity"]
    stream = batchify(load_corpus(str(text), None, None).test, 1)
    assert perplexity(model_of(run), stream, 8) == best["test_perplexity"]
    path, weights, _ = export(run, out=tmp_path / "model.py")
    model = imported(path).load(weights)
    with torch.no_grad():
        scores, _ = model(stream[:-1])
    nats = torch.nn.functional.cross_entropy(scores.flatten(0, 1), stream[1:].flatten())
    assert float(nats.exp()) == pytest.approx(best["test_perplexity"], rel=1e-5)


LOADS = """
import sys, torch
sys.modules["wenet"] = sys.modules["wenet_kernels"] = None  # not to be had
program = torch.export.load(sys.argv[1]).module()
arguments = torch.load(sys.argv[2])
torch.save([program(*each) for each in arguments], sys.argv[3])
"""


def run_alone(path, arguments, tmp_path):
    """A saved graph in a process that has not this package."""
    torch.save(arguments, tmp_path / "in.pt")
    command = [sys.executable, "-c", LOADS, path, tmp_path / "in.pt", tmp_path / "out.pt"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return torch.load(tmp_path / "out.pt")


SHAPES = [(6, 3), (3, 2), (1, 1), (9, 1)]  # T and M, also those of the example and single ones


def test_a_cell_as_torch_export(tmp_path):
    [path] = export("darts-v2", "torch-export", tmp_path / "cell.pt2", input_size=5, hidden_size=7, seed=3)
    arguments = [(torch.randn(steps, rows, 5), torch.randn(1, rows, 7)) for steps, rows in SHAPES]
    ours = DagRNN(5, 7, PUBLISHED["darts-v2"][0])
    ours.load_state_dict(torch.export.load(path).state_dict)
    for (output, h), given in zip(run_alone(path, arguments, tmp_path), arguments, strict=True):
        expected, h_expected = ours(*given)
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(h, h_expected, rtol=1e-5, atol=1e-5)


def test_a_run_as_torch_export(run, tmp_path):
    path, _ = export(run, "torch-export", tmp_path / "model.pt2")
    arguments = [(torch.randint(20, (steps, rows)), torch.randn(1, rows, 8)) for steps, rows in SHAPES]
    ours = model_of(run)
    for found, given in zip(run_alone(path, arguments, tmp_path), arguments, strict=True):
        for one, expected in zip(found, ours(*given), strict=True):
            torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-5)


def onnx_session(path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("form", ["highway", "plain"])
def test_a_cell_as_onnx(form, tmp_path):
    pytest.importorskip("onnxscript")
    sizes = {"input_size": 5, "hidden_size": 7}
    [path] = export("darts-v2", "onnx", tmp_path / "cell.onnx", form=form, seed=3, **sizes)
    [graph] = export("darts-v2", "torch-export", tmp_path / "cell.pt2", form=form, seed=3, **sizes)
    session, ours = onnx_session(path), DagRNN(5, 7, PUBLISHED["darts-v2"][0], form=form)
    ours.load_state_dict(torch.export.load(graph).state_dict)
    for steps, rows in SHAPES:
        x, h0 = torch.randn(steps, rows, 5), torch.randn(1, rows, 7)
        found = session.run(["output", "h_n"], {"x": x.numpy(), "h0": h0.numpy()})
        for one, expected in zip(found, ours(x, h0), strict=True):
            torch.testing.assert_close(torch.from_numpy(one), expected, rtol=1e-5, atol=1e-5)


def test_a_run_as_onnx(run, tmp_path, capfd):
    pytest.importorskip("onnxscript")
    assert cell_main(["export", str(run), "--format", "onnx", "--out", str(tmp_path / "model.onnx")]) == 0
    output, errors = capfd.readouterr()
    assert output.count("\n") == 2  # what was written and how to load it, nothing of the exporter's
    assert not errors
    session, ours = onnx_session(tmp_path / "model.onnx"), model_of(run)
    for steps, rows in SHAPES:
        tokens, h0 = torch.randint(20, (steps, rows)), torch.randn(1, rows, 8)
        found = session.run(["scores", "h_n"], {"tokens": tokens.numpy(), "h0": h0.numpy()})
        for one, expected in zip(found, ours(tokens, h0), strict=True):
            torch.testing.assert_close(torch.from_numpy(one), expected, rtol=1e-5, atol=1e-5)


@ONE_RUN
def test_a_file_says_what_it_holds(run, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    best = json.loads((run / "best.json").read_text())
    expected = {
        "cell": TINY["cell"], "form": "highway", "input_size": "8", "hidden_size": "8",
        "vocabulary_size": str(model_of(run).embedding.num_embeddings),
        "valid_perplexity": str(best["valid_perplexity"]), "test_perplexity": str(best["test_perplexity"]),
    }  # fmt: skip
    path, _ = export(run, "onnx", tmp_path / "model.onnx")
    assert {each.key: each.value for each in onnx.load(path).metadata_props} == expected
    extra = {"description.json": ""}
    torch.export.load(export(run, "torch-export", tmp_path / "model.pt2")[0], extra_files=extra)
    assert json.loads(extra["description.json"]) == expected
    _, weights, _ = export(run, out=tmp_path / "model.py")
    with safe_open(weights, "pt") as file:
        assert file.metadata() == expected
    inputs = {each.name: each.shape for each in onnx_session(path).get_inputs()}
    assert inputs == {"tokens": ["time", "batch"], "h0": [1, "batch", 8]}


@pytest.mark.parametrize("format", ["onnx", "torch-export"])
def test_a_file_says_nothing_of_the_machine_that_wrote_it(format, tmp_path):
    pytest.importorskip("onnxscript")
    [path] = export("darts-v2", format, tmp_path / "cell", hidden_size=4)
    written = b"".join(zipped(path)) if format == "torch-export" else path.read_bytes()
    assert b"MatMul" in written or b"aten.matmul" in written  # and so would be what stands beside it
    for name in (b"stack_trace", b"nn.py", str(Path(torch.__file__).parent).encode()):
        assert name not in written


def zipped(path):
    with zipfile.ZipFile(path) as file:
        return [file.read(name) for name in file.namelist()]


def test_a_graph_prepares_for_no_backward_pass(tmp_path):
    """Which would take fifty times as long as the pass forward."""
    [path] = export("darts-v2", "torch-export", tmp_path / "cell.pt2", hidden_size=4)
    graph = torch.export.load(path).module()
    output, _ = graph(torch.randn(3, 2, 4), torch.zeros(1, 2, 4))
    assert not output.requires_grad


@ONE_RUN
def test_formats_side_by_side(run, text, tmp_path):
    """They share a vocabulary; one of other words is not overwritten."""
    pytest.importorskip("onnxscript")
    written = {path.name for format in SUFFIXES for path in export(run, format, tmp_path / f"model{SUFFIXES[format]}")}
    assert written == {"model.py", "model.safetensors", "model.onnx", "model.pt2", "model.vocabulary.txt"}
    (tmp_path / "other.vocabulary.txt").write_text("mine\n")
    with pytest.raises(WenetError, match="other.vocabulary.txt exists"):
        export(run, out=tmp_path / "other.py")
    assert not (tmp_path / "other.py").exists()


@ONE_RUN
def test_files_follow_the_umask(run, tmp_path):
    before = os.umask(0o027)
    try:
        files = export(run, out=tmp_path / "model.py")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o640}


@ONE_RUN
def test_step_by_step(run, tmp_path):
    """A state handed on from call to call leads where one call leads, to rounding."""
    pytest.importorskip("onnxscript")
    path, weights, _ = export(run, out=tmp_path / "model.py")
    session = onnx_session(export(run, "onnx", tmp_path / "model.onnx")[0])
    graph = torch.export.load(export(run, "torch-export", tmp_path / "model.pt2")[0]).module()
    tokens, h0 = torch.randint(20, (6, 3)), torch.randn(1, 3, 8)

    def onnx(tokens, h0):
        given = {"tokens": tokens.numpy(), "h0": h0.detach().numpy()}
        return [torch.from_numpy(each) for each in session.run(["scores", "h_n"], given)]

    for call in (imported(path).load(weights), graph, onnx):
        h, scores = h0, []
        for token in tokens.split(1):
            score, h = call(token, h)
            scores.append(score)
        expected, h_expected = call(tokens, h0)
        torch.testing.assert_close(torch.cat(scores), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(h, h_expected, rtol=1e-5, atol=1e-6)


def test_double_precision_stays(text, tmp_path):
    settings = {**TINY, "epochs": 1, "precision": "fp64"}
    folder = train(str(text), out=tmp_path / "run", **settings).folder
    path, weights, _ = export(folder, out=tmp_path / "model.py")
    tokens = torch.randint(20, (6, 3))
    found, expected = imported(path).load(weights)(tokens)[0], model_of(folder)(tokens)[0]
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_files_are_named_like_the_source(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cell_main(["export", "darts-v2"]) == 0
    assert cell_main(["export", str(run)]) == 0
    assert cell_main(["export", "tanh0 relu1"]) == 0
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["darts_v2.py", "run.py", "run.safetensors", "run.vocabulary.txt", "tanh0_relu1.py"]
    output = capsys.readouterr().out
    assert "the recurrent layer, its weights fresh: darts_v2.py" in output
    assert 'import run; model = run.load("run.safetensors")' in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["darts-v7"], "no cell 'darts-v7'"),
        (["darts-v2", "--format", "gif"], "unknown format 'gif'"),
        (["darts-v2", "--hidden", "8"], "leave out --hidden"),
        (["darts-v2", "--format", "torch-export"], "give --hidden"),
        (["darts-v2", "--format", "torch-export", "--hidden", "0"], "at least 1"),
        (["darts-v2", "--out", "taken.py"], "taken.py exists"),
        (["darts-v2", "--out", "no-such-folder/cell.py"], "cannot write"),
        (["RUN", "--form", "plain"], "leave out --form"),
        (["RUN", "--format", "onnx", "--hidden", "3"], "leave out --hidden"),
    ],
)
def test_errors(run, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.py").write_text("mine")
    assert cell_main(["export", *(str(run) if word == "RUN" else word for word in arguments)]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["taken.py"]
    assert (tmp_path / "taken.py").read_text() == "mine"


def test_an_exporter_that_is_missing(tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else real(name))
    with pytest.raises(WenetError, match=r"pip install 'wenet-rnn\[export\]'"):
        export("darts-v2", "onnx", tmp_path / "cell.onnx", hidden_size=4)


def test_an_lstm_is_no_cell(text, tmp_path):
    folder = train(str(text), out=tmp_path / "run", **{**TINY, "cell": "lstm", "epochs": 1}).folder
    with pytest.raises(WenetError, match="only cells are exported"):
        export(folder, out=tmp_path / "model.py")
