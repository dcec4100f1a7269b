"""`CellRNN` is called as the layers of PyTorch are."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import wenet
from wenet import WenetError

APART = "h, c | v1 = tanh(linear(x, h) + c) | 0.5 * v1, v1, h"  # puts out what is no state, and hands one on


def pair(kind: str, **options) -> tuple[wenet.nn.CellRNN, nn.RNNBase]:
    torch.manual_seed(0)
    original = getattr(nn, kind)(4, 6, dtype=torch.float64, **options)
    return wenet.nn.CellRNN.from_torch(original), original


def flat(found: object) -> list[torch.Tensor]:
    if isinstance(found, torch.Tensor):
        return [found]
    return [tensor for each in found for tensor in flat(each)]


def same(found: object, expected: object) -> None:
    found, expected = flat(found), flat(expected)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"num_layers": 2, "bidirectional": True}])
def test_shapes_of_calls(kind, options):
    layer, original = pair(kind, **options)
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    same(layer(x), original(x))
    same(layer(x[0]), original(x[0]))
    states = original(x)[1]
    same(layer(x, states), original(x, states))
    states = original(x[0])[1]
    same(layer(x[0], states), original(x[0], states))


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("enforce_sorted", [False, True])
def test_packed_sequences(kind, enforce_sorted):
    layer, original = pair(kind, num_layers=2, bidirectional=True)
    lengths = [5, 3, 1] if enforce_sorted else [3, 5, 1]
    packed = pack_sequence([torch.randn(length, 4).double() for length in lengths], enforce_sorted=enforce_sorted)
    (output, states), (expected, expected_states) = layer(packed), original(packed)
    same(output.data, expected.data)
    same(states, expected_states)
    same(layer(packed, states)[1], original(packed, expected_states)[1])


@pytest.mark.parametrize("cell", ["lstm", "gru", APART])
def test_a_sequence_in_pieces(cell):
    layer = wenet.nn.CellRNN(4, 6, cell, num_layers=2, dtype=torch.float64)
    x = torch.randn(7, 3, 4, dtype=torch.float64)
    whole, last = layer(x)
    states, pieces = None, []
    for piece in x.split(2):
        output, states = layer(piece, states)
        pieces.append(output)
    same(torch.cat(pieces), whole)
    same(states, last)


def test_an_output_that_is_no_state():
    layer = wenet.nn.CellRNN(4, 6, APART, bidirectional=True, dtype=torch.float64)
    x = torch.randn(7, 3, 4, dtype=torch.float64)
    output, (h, c) = layer(x)
    same(output[-1, :, :6], 0.5 * h[0])
    same(output[0, :, 6:], 0.5 * h[1])
    same(2 * output[-2, :, :6], c[0])


def test_without_biases():
    layer = wenet.nn.CellRNN(4, 6, "gru", bias=False)
    assert [name for name, _ in layer.named_parameters()] == ["weight_input", "weight_hidden"]
    assert sum(parameter.numel() for parameter in layer.parameters()) == layer.program.parameters(4, 6)


@pytest.mark.parametrize("name", wenet.programs.PROGRAMS)
def test_parameters_are_counted(name):
    layer = wenet.nn.CellRNN(4, 6, name)
    assert sum(parameter.numel() for parameter in layer.parameters()) == layer.program.parameters(4, 6)


def test_dropout_is_one_draw_a_call():
    layer = wenet.nn.CellRNN(4, 6, "lstm", dropout_x=0.5, dropout_h=0.5)
    x = torch.randn(5, 3, 4)
    torch.manual_seed(1)
    first = layer(x)[0]
    torch.manual_seed(1)
    same(layer(x)[0], first)
    assert not torch.equal(layer(x)[0], first)
    same(layer.eval()(x)[0], layer(x)[0])


def test_weights_know_their_cell(tmp_path):
    lstm, gru = wenet.nn.CellRNN(4, 6, "lstm"), wenet.nn.CellRNN(4, 6, "gru")
    other = wenet.nn.CellRNN(4, 6, "lstm")
    other.load_state_dict(lstm.state_dict())
    x = torch.randn(2, 3, 4)
    same(other(x), lstm(x))
    with pytest.raises(WenetError, match="are those of the cell"):
        gru.load_state_dict(lstm.state_dict())
    same(copy.deepcopy(lstm)(x), lstm(x))


@pytest.mark.parametrize(
    ("states", "fault"),
    [
        (lambda: torch.zeros(1, 3, 6), "tuple of 2 tensors"),
        (lambda: (torch.zeros(1, 3, 6),), "tuple of 2 tensors"),
        (lambda: (torch.zeros(1, 3, 6), torch.zeros(1, 2, 6)), "must have shape"),
        (lambda: (torch.zeros(1, 3, 6), None), "must be a tensor"),
    ],
)
def test_states_that_disagree(states, fault):
    with pytest.raises(WenetError, match=fault):
        wenet.nn.CellRNN(4, 6, "lstm")(torch.randn(2, 3, 4), states())


def test_nan_and_sizes_are_told():
    layer = wenet.nn.CellRNN(4, 6, "lstm")
    with pytest.raises(WenetError, match="holds NaN"):
        layer(torch.full((2, 3, 4), torch.nan))
    with pytest.raises(WenetError, match="must have shape"):
        layer(torch.randn(2, 3, 5))
    with pytest.raises(WenetError, match="hidden_size"):
        wenet.nn.CellRNN(4, 0, "lstm")
    with pytest.raises(WenetError, match="no cell"):
        wenet.nn.CellRNN(4, 6, "transformer")


def test_an_empty_data_batch():
    output, (h, c) = wenet.nn.CellRNN(4, 6, "lstm")(torch.randn(2, 0, 4))
    assert output.shape == (2, 0, 6) and h.shape == c.shape == (1, 0, 6)


def test_functional_transforms_and_second_derivatives():
    layer = wenet.nn.CellRNN(4, 6, "lstm", dtype=torch.float64)
    x = torch.randn(5, 2, 3, 4, dtype=torch.float64)
    same(torch.vmap(lambda each: layer(each)[0])(x), torch.stack([layer(each)[0] for each in x]))
    assert torch.autograd.gradgradcheck(lambda each: layer(each)[0], x[0, :, :1].requires_grad_())
    jacobian = torch.autograd.functional.jacobian
    at_once, one_by_one = (jacobian(lambda each: layer(each)[0], x[0], vectorize=kind) for kind in (True, False))
    same(at_once, one_by_one)


@pytest.mark.parametrize("cell", ["lstm", APART])
def test_compilers_and_exporters(cell):
    layer = wenet.nn.CellRNN(4, 6, cell, num_layers=2, bidirectional=True).eval()
    x, other = torch.randn(3, 2, 4), torch.randn(5, 3, 4)
    same(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
    free = ({0: torch.export.Dim("T"), 1: torch.export.Dim("M")},)
    exported = torch.export.export(layer, (x,), dynamic_shapes=free)
    same(exported.module()(other), layer(other))


COMPILED = """
import sys
import torch, wenet
layer, x = wenet.nn.CellRNN(3, 8, sys.argv[1], backend=sys.argv[2]), torch.randn(5, 7, 3)
found = torch.compile(layer)(x)[0]  # the first call of all
gradients = torch.autograd.grad(found.square().sum(), list(layer.parameters()))
expected = layer(x)[0]
wanted = torch.autograd.grad(expected.square().sum(), list(layer.parameters()))
torch.testing.assert_close((found, *gradients), (expected, *wanted))
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch's compiler needs a C++ compiler")
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_compiled_from_the_first_call_with_derivatives(backend):
    """The compiler sees the operators without memory, and relies on the layout that they promise."""
    fresh = {**os.environ, "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}  # which know nothing of the operators' code
    subprocess.run([sys.executable, "-c", COMPILED, "gru", backend], check=True, env=fresh)


def test_onnx(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.compiler.reset()  # or what was compiled before makes sizes symbolic, which this exporter does not expect
    layer = wenet.nn.CellRNN(4, 6, "lstm").eval()
    free = ({0: "T", 1: "M"},)
    file = str(tmp_path / "cell.onnx")
    torch.onnx.export(layer, (torch.randn(3, 2, 4),), file, dynamo=True, dynamic_shapes=free, verbose=False)
    session, other = onnxruntime.InferenceSession(file), torch.randn(5, 3, 4)
    found = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    same([torch.from_numpy(each) for each in found], layer(other))
