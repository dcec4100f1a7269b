"""Activations that a program registers: in the reference like any other, elsewhere an error that says so."""

import copy
import pickle

import pytest
import torch

from wenet_kernels import (
    ACTIVATIONS,
    CellBatch,
    WenetError,
    activation_names,
    backends,
    dag_rnn,
    register_activation,
    resolve_backend,
)
from wenet_kernels.activations import REGISTERED


class Cell:
    def __init__(self, *recurrent):
        self.recurrent, self.concat = recurrent, range(1, len(recurrent) + 1)


def swish(u):
    return u * torch.sigmoid(u)


def swish_slope(u):
    gate = torch.sigmoid(u)
    return gate + u * gate * (1 - gate)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Two activations for the length of a test, of which one repeats a built-in."""
    for name in list(REGISTERED):
        monkeypatch.delitem(REGISTERED, name)
    for name, *functions in (("swish", swish, swish_slope), ("twin", torch.tanh, lambda u: 1 - torch.tanh(u) ** 2)):
        register_activation(name, *functions)
    yield
    REGISTERED.clear()


def operands(form, count, nodes, rows=3, hidden=4, steps=3):
    generator = torch.Generator().manual_seed(1)
    width = 2 * hidden if form == "highway" else hidden
    shapes = ((steps, count, rows, width), (rows, hidden), (count, hidden, width), (count, nodes, hidden, width))
    return [torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("form", ["highway", "plain"])
@pytest.mark.parametrize("norm", [None, "batch"])
def test_derivatives(form, norm):
    cells = CellBatch.from_genotypes(
        [Cell(("swish", 0), ("relu", 1), ("twin", 1)), Cell(("tanh", 0), ("swish", 0), ("swish", 2))]
    )
    mix = torch.tensor([0.3, 0.7], dtype=torch.float64)

    def run(*tensors):
        result = dag_rnn(*tensors, mix, cells, form=form, norm=norm, backend="reference")
        return result[0] if isinstance(result, tuple) else result

    assert torch.autograd.gradcheck(run, operands(form, 2, 3))


@pytest.mark.parametrize("form", ["highway", "plain"])
def test_a_registered_twin_of_a_built_in_is_the_same(form):
    mix = torch.ones(1, dtype=torch.float64)
    results = []
    for name in ("tanh", "twin"):
        inputs = operands(form, 1, 2)
        mask = torch.tensor([[2.0, 0, 2, 2]], dtype=torch.float64).expand(3, 4)
        cells = CellBatch.from_genotypes([Cell((name, 0), (name, 1))])
        output = dag_rnn(*inputs, mix, cells, form=form, mask_h=mask, backend="reference")
        results.append([output, *torch.autograd.grad(output.square().sum(), inputs)])
    torch.testing.assert_close(*results)


def test_swish_by_hand():
    cells = CellBatch.from_genotypes([Cell(("swish", 0))])
    pre, h0, weight_hidden, weight_nodes = operands("plain", 1, 1, steps=1)
    output = dag_rnn(pre, h0, weight_hidden, weight_nodes, torch.ones(1).double(), cells, form="plain")
    init = h0 + torch.sigmoid(pre[0, 0]) * (torch.tanh(h0 @ weight_hidden[0]) - h0)
    torch.testing.assert_close(output[0], swish(init @ weight_nodes[0, 0]))


def test_auto_takes_a_backend_that_has_it_and_says_what_the_others_lack():
    assert resolve_backend("auto", activations=("tanh", "swish")) == "reference"
    assert resolve_backend("auto", activations=("tanh",)) == resolve_backend("auto")
    found = backends(("tanh", "swish"))
    assert found["reference"] == "ready"
    for name in ("cpu", "triton"):
        assert found[name] == "it lacks swish, registered in Python, which only reference has"
        with pytest.raises(WenetError, match=f"backend {name!r} cannot run: it lacks swish, .* only reference has"):
            resolve_backend(name, activations=("swish",))


def test_an_operator_of_a_backend_that_lacks_it_refuses():
    cells = CellBatch.from_genotypes([Cell(("swish", 0))])
    with pytest.raises(WenetError, match="'cpu' cannot run: it lacks swish"):
        dag_rnn(*operands("highway", 1, 1), torch.ones(1).double(), cells, backend="cpu")
    for copied in (copy.deepcopy(cells), pickle.loads(pickle.dumps(cells))):
        with pytest.raises(WenetError, match="'cpu' cannot run: it lacks swish"):
            dag_rnn(*operands("highway", 1, 1), torch.ones(1).double(), copied, backend="cpu")


def test_names_follow_the_built_in_ones():
    assert activation_names() == (*ACTIVATIONS, "swish", "twin")


@pytest.mark.parametrize(
    ("name", "forward", "derivative", "message"),
    [
        ("tanh", torch.tanh, torch.tanh, "already"),
        ("swish", swish, swish_slope, "already"),
        ("mean", swish, swish_slope, "cannot name"),
        ("leaky_relu", swish, swish_slope, "cannot name"),
        ("sine", torch.sin, torch.sin, r"derivative of activation 'sine' at -2.3 is -0.745705, but its slope there is"),
        ("total", torch.sum, torch.cos, "keep the shape"),
        ("single", lambda u: u.float(), torch.ones_like, "keep the shape and type"),
    ],
)
def test_what_cannot_be_registered(name, forward, derivative, message):
    with pytest.raises(WenetError, match=message):
        register_activation(name, forward, derivative)
    assert list(REGISTERED) == ["swish", "twin"]
