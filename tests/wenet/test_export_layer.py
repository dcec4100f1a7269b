"""A model of one's own with a `DagRNN` in it goes where one with `torch.nn.RNN` goes: ONNX, torch.export, a trace."""

import copy
import io
import warnings

import pytest
import torch
from torch import nn
from torch.export import Dim

from wenet import Genotype, WenetError, register_activation
from wenet.nn.rnn import DagRNN
from wenet.nn.weighted import WeightedDagRNN
from wenet_kernels.activations import REGISTERED

CELL = Genotype([("sigmoid", 0), ("relu", 1), ("tanh", 1), ("identity", 2)], [2, 3, 4])
SHAPES = [(9, 2), (1, 1), (4, 7)]  # T and M; the example has others
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}  # fp32
LAYERS = {
    "highway": {},
    "plain": {"form": "plain"},
    "stacked": {"num_layers": 2, "batch_first": True},
    "both ways": {"bidirectional": True, "bias": True},
}


class Model(nn.Module):
    """A head above a recurrent layer, as a user would write it."""

    def __init__(self, **settings):
        super().__init__()
        self.rnn = DagRNN(5, 8, CELL, **settings)
        self.head = nn.Linear(8 * self.rnn.directions, 3)

    def forward(self, x, h0=None):
        output, h = self.rnn(x, h0)
        return self.head(output), h


def arguments(model, steps, rows, with_state):
    first = (rows, steps) if model.rnn.batch_first else (steps, rows)
    x, h0 = torch.randn(*first, 5), torch.randn(model.rnn.num_layers * model.rnn.directions, rows, 8)
    return (x, h0) if with_state else (x,)


def free(model, with_state):
    """Time and batch of every argument."""
    axes = {0: Dim("batch"), 1: Dim("time")} if model.rnn.batch_first else {0: Dim("time"), 1: Dim("batch")}
    return {"x": axes, **({"h0": {1: Dim("batch")}} if with_state else {})}


# Every kind of layer, with a state given or not.
CASES = pytest.mark.parametrize(
    ("name", "with_state"), [("highway", False), ("plain", True), ("stacked", True), ("both ways", True)]
)


def drawn(name, **more):
    torch.manual_seed(1)
    return Model(**LAYERS[name], **more).eval()


@CASES
def test_onnx(name, with_state, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = drawn(name)
    example, shapes = arguments(model, 3, 2, with_state), free(model, with_state)
    torch.onnx.export(model, example, dynamo=True, dynamic_shapes=shapes).save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [*(axis.__name__ for axis in shapes["x"].values()), 5]
    for steps, rows in SHAPES:
        given = arguments(model, steps, rows, with_state)
        names = [each.name for each in session.get_inputs()]
        found = session.run(None, dict(zip(names, (x.numpy() for x in given), strict=True)))
        for one, expected in zip(found, model(*given), strict=True):
            torch.testing.assert_close(torch.from_numpy(one), expected.detach(), **TOLERANCE)


@CASES
def test_torch_export(name, with_state):
    model = drawn(name)
    example, shapes = arguments(model, 3, 2, with_state), free(model, with_state)
    program = torch.export.export(model, example, dynamic_shapes=shapes)
    loaded = torch.export.load(in_memory(torch.export.save, program)).module()
    for graph in (program.module(), loaded):
        for steps, rows in SHAPES:
            given = arguments(model, steps, rows, with_state)
            torch.testing.assert_close(graph(*given), model(*given), **TOLERANCE)


def in_memory(save, value):
    file = io.BytesIO()
    save(value, file)
    file.seek(0)
    return file


def test_an_exported_program_trains():
    model = drawn("highway")
    [x] = arguments(model, 3, 2, False)
    graph = torch.export.export(copy.deepcopy(model), (x,), dynamic_shapes=free(model, False)).module()
    [x] = arguments(model, 5, 4, False)
    for each in (graph, model):
        each(x)[0].square().sum().backward()
    found = dict(graph.named_parameters())
    for parameter, expected in model.named_parameters():
        torch.testing.assert_close(found[parameter].grad, expected.grad, rtol=1e-4, atol=1e-5)


def test_step_by_step():
    """A state handed on from call to call leads where one call leads."""
    model = drawn("highway")
    program = torch.export.export(model, arguments(model, 3, 2, True), dynamic_shapes=free(model, True))
    graph = program.module()
    x, h = arguments(model, 6, 3, True)
    expected = model(x, h)
    scores = []
    for x_t in x.split(1):
        score, h = graph(x_t, h)
        scores.append(score)
    torch.testing.assert_close((torch.cat(scores), h), expected, **TOLERANCE)


def test_a_registered_activation(monkeypatch):
    monkeypatch.setitem(REGISTERED, "swish", None)
    del REGISTERED["swish"]
    register_activation("swish", lambda u: u * u.sigmoid(), lambda u: u.sigmoid() * (1 + u * (1 - u.sigmoid())))
    layer, x = DagRNN(5, 8, Genotype([("swish", 0), ("tanh", 1)])), torch.randn(3, 2, 5)
    graph = torch.export.export(layer, (x,), dynamic_shapes={"x": {0: Dim.DYNAMIC}}).module()
    x = torch.randn(7, 2, 5)
    torch.testing.assert_close(graph(x), layer(x), **TOLERANCE)


@CASES
def test_trace(name, with_state):
    model = drawn(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        trace = torch.jit.trace(model, arguments(model, 3, 2, with_state))
    loaded = torch.jit.load(in_memory(torch.jit.save, trace))
    for steps, rows in SHAPES:
        given = arguments(model, steps, rows, with_state)
        for each in (trace, loaded):
            torch.testing.assert_close(each(*given), model(*given))


def test_a_trace_made_without_gradients_trains():
    model = drawn("highway")
    with torch.no_grad():
        trace = torch.jit.trace(copy.deepcopy(model), arguments(model, 3, 2, False))
    [x] = arguments(model, 5, 4, False)
    for each in (trace, model):
        each(x)[0].square().sum().backward()
    assert model.rnn.weight_nodes.grad.abs().sum() > 0
    torch.testing.assert_close(trace.rnn.weight_nodes.grad, model.rnn.weight_nodes.grad)


@pytest.mark.parametrize(
    ("x", "h0", "message"),
    [
        ((3, 2, 7), (1, 2, 8), "weight_input"),  # features
        ((3, 2, 5), (1, 4, 8), "h0 must have shape"),  # rows
        ((3, 2, 5), (1, 2, 9), "h0 must have shape|pre must have shape"),
    ],
)
def test_a_trace_refuses_what_does_not_fit(x, h0, message):
    """Nothing of Python's checks is in it: the operators must look for themselves before they read memory."""
    model = drawn("highway")
    trace = torch.jit.trace(model, arguments(model, 3, 2, True))
    with pytest.raises(Exception, match=message):
        trace(torch.randn(x), torch.randn(h0))


@pytest.mark.parametrize("layer", [DagRNN(5, 8, CELL), WeightedDagRNN(5, 8, [CELL])])
def test_script_says_why_not(layer):
    with pytest.raises(WenetError, match=f"a {type(layer).__name__}; use torch.jit.trace"):
        torch.jit.script(nn.Sequential(nn.Linear(5, 5), layer))


def test_the_old_onnx_exporter_says_why_not(tmp_path):
    model = drawn("highway")
    with warnings.catch_warnings(), pytest.raises(WenetError, match="dynamo=True"):
        warnings.simplefilter("ignore")
        torch.onnx.export(model, arguments(model, 3, 2, False), tmp_path / "model.onnx", dynamo=False)


def test_dropout_of_states_is_not_exported():
    model = drawn("highway", dropout_h=0.5).train()
    with pytest.raises(WenetError, match="model.eval"):
        torch.export.export(model, arguments(model, 3, 2, False))
    torch.export.export(model.eval(), arguments(model, 3, 2, False))


def test_strict_export_says_why_not():
    model = drawn("highway")
    with pytest.raises(Exception, match="cannot be exported with strict=True"):
        torch.export.export(model, arguments(model, 3, 2, False), strict=True)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_state_of_any_strides_is_exported(rows):
    model = drawn("highway")
    x, h0 = torch.randn(3, rows, 5), torch.randn(1, 8, 2 * rows)[:, :, ::2].transpose(1, 2)
    assert not h0.is_contiguous()
    graph = torch.export.export(model, (x, h0), dynamic_shapes={"x": {0: Dim.DYNAMIC}, "h0": None}).module()
    for found, expected in zip(graph(x, h0), model(x, h0), strict=True):
        torch.testing.assert_close(found, expected, **TOLERANCE)
