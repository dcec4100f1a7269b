"""Programs in the commands: shown, listed, trained as language models, evaluated, exported."""

import json
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file

import wenet
from wenet import WenetError, evaluate, export
from wenet.cells import cell_to_dict, load_program
from wenet.cells.gated import random_mixed_programs
from wenet.cells.program_source import program_layer_source
from wenet.cli.cell import main as cell_main
from wenet.cli.train import main as train_main
from wenet.nn import CellRNN
from wenet.programs import PROGRAMS
from wenet.training import resolve_train_config
from wenet_kernels import Program

from .helpers import fails, results
from .test_export import SHAPES, imported, onnx_session, run_alone

CELLS = {
    **{name: program for name, (program, _) in PROGRAMS.items()},
    **{f"drawn {n}": cell for n, cell in enumerate(random_mixed_programs(12, (1, 2), range(2, 9), 3, known=False))},
    "all": Program.from_text(
        "h, c | v1 = vector(0.5) | v2 = silu(linear(x)) - hardtanh(product(h)) | "
        "v3 = softplus(v2) + hardsigmoid(c) * v1 | 0.5 * v3 + scalar() * h, v1"
    ),
    "learned alone": Program.from_text("h, c | tanh(linear(x, c) + h), product(vector())"),
    "normalised": Program.from_text("h, c | v1 = batchnorm(linear(x, h) + c) | tanh(v1), v1 * batchnorm(tanh(v1))"),
    "apart": Program.from_text("h | v1 = tanh(linear(x, h)) | sigmoid(v1), v1"),
}
TINY = [
    *("--preset", "quick", "--hidden", "8", "--epochs", "2", "--data-batch", "4", "--eval-batch", "2"),
    *("--test-batch", "1", "--bptt", "8", "--lr", "4.0", "--quiet"),
]


@pytest.fixture(scope="module", params=["nas", "gru"])
def run(request, text, tmp_path_factory):
    """The folder of a training: of a cell of two states, and of one."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train_main([str(text), "--cell", request.param, *TINY, "--out", str(folder)]) == 0
    return folder


def as_list(states):
    return list(states) if isinstance(states, tuple) else [states]


@pytest.mark.parametrize("name", CELLS)
def test_every_program_as_source(name, tmp_path):
    path = tmp_path / "cell.py"
    path.write_text(program_layer_source("Cell", CELLS[name]))
    torch.manual_seed(0)
    ours = CellRNN(5, 7, CELLS[name], dtype=torch.float64)
    layer = imported(path).Cell(5, 7).double()
    fresh = {name: tuple(each.shape) for name, each in layer.named_parameters()}
    assert fresh == {name: tuple(each.shape) for name, each in ours.named_parameters()}
    layer.load_state_dict(ours.state_dict())
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    h0 = tuple(torch.randn(1, 3, 7, dtype=torch.float64) for _ in range(ours.carried))
    for given in (None, h0 if ours.carried > 1 else h0[0]):
        found, expected = layer(x, given), ours(x, given)
        torch.testing.assert_close(found[0], expected[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(as_list(found[1]), as_list(expected[1]), rtol=1e-12, atol=1e-12)
    layer.batch_first = True
    torch.testing.assert_close(layer(x.transpose(0, 1))[0], ours(x)[0].transpose(0, 1))
    other = imported(path).Cell(5, 7)
    with pytest.raises(ValueError, match="but this module needs"):
        other.load_state_dict(CellRNN(5, 7, "mgu" if name != "mgu" else "gru").state_dict(), strict=False)


def test_source_starts_as_the_cell_does(tmp_path):
    [path] = export("fastgrnn", out=tmp_path / "cell.py")
    assert imported(path).Fastgrnn(3, 4).scalars.tolist() == [1, -4]


def test_a_run_of_a_program(run, text, tmp_path):
    trained = wenet.load(run)
    stored = json.loads((run / "config.json").read_text())["genotype"]
    assert stored == cell_to_dict(load_program(trained.run.settings["cell"]))
    best = json.loads((run / "best.json").read_text())
    assert best["genotype"] == stored and best["text"] == stored["program"]
    assert evaluate(run)["test"]["perplexity"] == best["test_perplexity"] < 21
    scores, h = trained.model(torch.zeros(5, 1, dtype=torch.long))
    again, _ = trained.model(torch.zeros(1, 1, dtype=torch.long), h)
    assert scores.shape[-1] == again.shape[-1] and h.shape == (1, 1, 8 * trained.model.rnn.carried)
    assert isinstance(trained.layer(3, 4), CellRNN)
    if trained.model.rnn.carried > 1:
        for state in (tuple(h.chunk(2, -1)), h[..., :-1]):
            with pytest.raises(WenetError, match=r"one tensor \[1, M, 16\], the cell's 2 states beside one another"):
                trained.model(torch.zeros(1, 1, dtype=torch.long), state)


def test_a_stopped_training_goes_on(run, text, tmp_path, monkeypatch):
    from wenet.training.nt_asgd import EvaluationTraining

    real, steps = EvaluationTraining.step, []

    def step(self, *operands):
        steps.append(1)
        if len(steps) == 9:
            self.session.interrupt.requested = signal.SIGTERM
        return real(self, *operands)

    monkeypatch.setattr(EvaluationTraining, "step", step)
    cell = wenet.load(run).run.settings["cell"]
    again = tmp_path / "again"
    assert train_main([str(text), "--cell", cell, *TINY, "--out", str(again)]) == 128 + signal.SIGTERM
    assert train_main(["--resume", str(again), "--quiet"]) == 0
    assert results(again, "train.jsonl") == results(run, "train.jsonl")


def test_the_row_of_the_paper():
    config = resolve_train_config("paper", {"cell": "nas", "dataset": "ptb"})
    size = config.hidden
    count = load_program("nas").parameters(size, size) + 10_000 * (size + 1)
    assert 24_900_000 < count <= 25_000_000


def test_a_run_as_a_module(run, tmp_path):
    path, weights, _ = export(run, out=tmp_path / "model.py")
    model, ours = imported(path).load(weights), wenet.load(run).model
    tokens, h0 = torch.randint(20, (6, 3)), torch.randn(1, 3, 8 * ours.rnn.carried)
    for given in (None, h0):
        for found, expected in zip(model(tokens, given), ours(tokens, given), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert load_file(weights).keys() == ours.state_dict().keys()


def test_a_run_as_a_graph(run, tmp_path):
    """As torch.export and as ONNX, with steps and rows free, and the state handed on."""
    pytest.importorskip("onnxscript")
    torch.compiler.reset()
    ours = wenet.load(run).model
    path, _ = export(run, "torch-export", tmp_path / "model.pt2")
    session = onnx_session(export(run, "onnx", tmp_path / "model.onnx")[0])
    width = 8 * ours.rnn.carried
    arguments = [(torch.randint(20, (steps, rows)), torch.randn(1, rows, width)) for steps, rows in SHAPES]
    for found, given in zip(run_alone(path, arguments, tmp_path), arguments, strict=True):
        expected = ours(*given)
        onnx = session.run(["scores", "h_n"], {"tokens": given[0].numpy(), "h0": given[1].numpy()})
        for one, other, right in zip(found, onnx, expected, strict=True):
            torch.testing.assert_close(one, right, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(torch.from_numpy(other), right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cell", ["lstm", "mgu"])
def test_a_fresh_layer_as_a_graph(cell, tmp_path):
    pytest.importorskip("onnxscript")
    torch.compiler.reset()
    [path] = export(cell, "torch-export", tmp_path / "cell.pt2", input_size=5, hidden_size=7, seed=3)
    [graph] = export(cell, "onnx", tmp_path / "cell.onnx", input_size=5, hidden_size=7, seed=3)
    session, ours = onnx_session(graph), CellRNN(5, 7, cell)
    ours.load_state_dict(torch.export.load(path).state_dict)
    names = ["h", "c"][: ours.carried]
    for steps, rows in SHAPES:
        x, states = torch.randn(steps, rows, 5), tuple(torch.randn(1, rows, 7) for _ in names)
        output, last = ours(x, states if ours.carried > 1 else states[0])
        given = {"x": x.numpy(), **{f"{name}0": each.numpy() for name, each in zip(names, states, strict=True)}}
        found = session.run(["output", *(f"{name}_n" for name in names)], given)
        for one, expected in zip(found, [output, *as_list(last)], strict=True):
            torch.testing.assert_close(torch.from_numpy(one), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}])
@pytest.mark.parametrize("cell", ["lem", "indrnn"])
def test_a_saved_layer(cell, options, tmp_path):
    torch.manual_seed(0)
    ours = CellRNN(5, 7, cell, **options)
    save_file({f"encoder.{name}": each for name, each in ours.state_dict().items()}, tmp_path / "mine.safetensors")
    path, weights = export(tmp_path / "mine.safetensors", out=tmp_path / "layer.py")
    layer = imported(path).load(weights)
    x = torch.randn(4, 3, 5)
    states = tuple(torch.randn(ours.num_layers * ours.directions, 3, 7) for _ in range(ours.carried))
    for given in (None, states if ours.carried > 1 else states[0]):
        found, expected = layer(x, given), ours(x, given)
        torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(as_list(found[1]), as_list(expected[1]), rtol=1e-5, atol=1e-6)


def test_shown_and_listed(capsys, tmp_path):
    (tmp_path / "cell.json").write_text(load_program("mgu").to_json())
    for cell in ("nas", "rhn-program", str(load_program("gru")), str(tmp_path / "cell.json")):
        assert cell_main(["show", cell, "--draw", str(tmp_path / "cell.svg")]) == 0
        shown = capsys.readouterr().out
        assert "read x, h" in shown and "new h" in shown
        assert "new h" in (tmp_path / "cell.svg").read_text()
    assert cell_main(["show", "lstm", "--json"]) == 0
    assert Program.from_json(capsys.readouterr().out) == load_program("lstm")
    assert cell_main(["show", "rhn"]) == 0
    assert "0 init" in capsys.readouterr().out  # as ever the DAG cell
    assert cell_main(["list"]) == 0
    listed = capsys.readouterr().out
    for name in (*PROGRAMS, "rhn-program", "darts-v2"):
        assert f"\n{name} " in f"\n{listed}"


def test_what_programs_cannot(capsys, run, tmp_path):
    fails(capsys, cell_main, ["compare", "lstm", "darts-v2"], "only DAG cells", "lstm")
    fails(capsys, cell_main, ["show", "lstn"], "did you mean lstm")
    fails(capsys, cell_main, ["export", "gru", "--form", "plain", "--out", str(tmp_path / "c.py")], "leave out --form")
    fails(capsys, train_main, ["sotu", "--cell", "h | tanh(linear(x)"], "no expression")
    program = load_program(run)
    for cell, what in (
        (str(run), "holds a program"),
        (program, "the cell is a program"),
        (str(program), "the cell is a program"),
    ):
        with pytest.raises(WenetError, match=f"{what}, and a DAG cell is needed; use wenet.nn.CellRNN") as error:
            wenet.nn.DagRNN(3, 4, cell)
        assert "Program(" not in str(error.value) and "\n" not in str(error.value)
    assert CellRNN(3, 4, run).program == load_program(run)
