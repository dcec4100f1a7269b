"""Published cells as programs are equal to their originals: outputs, states and every derivative."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import wenet
from wenet.programs import program_of

T, M, I, H = 5, 3, 4, 6  # noqa: E741
# Of the difference from the original in double precision, relative in root mean square.
BARS = {torch.float32: 1e-6, torch.float64: 1e-12}

Results = dict[str, Tensor]


def compare(found: Results, exact: Results) -> None:
    assert found.keys() == exact.keys()
    for name, each in found.items():
        assert exact[name].dtype == torch.float64 and exact[name].norm() > 0
        error = (each - exact[name]).norm() / exact[name].norm()
        assert error < BARS[each.dtype], (name, error.item())


def evaluated(module: nn.Module, x: Tensor, states: list[Tensor], dtype: torch.dtype) -> Results:
    """Output, last states and all derivatives, in a precision."""
    module = copy.deepcopy(module).to(dtype)
    x, *states = (each.to(dtype).requires_grad_() for each in (x, *states))
    output, last = module(x, states[0] if len(states) == 1 else tuple(states))
    leaves = {"x": x, **{f"first {k}": state for k, state in enumerate(states)}, **dict(module.named_parameters())}
    return results(output, as_list(last), leaves)


def results(output: Tensor, last: list[Tensor], leaves: dict[str, Tensor]) -> Results:
    torch.manual_seed(2)
    loss = sum((each * torch.randn(each.shape).to(each.dtype)).sum() for each in (output, *last))
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    computed = {"output": output, **{f"last {k}": state for k, state in enumerate(last)}}
    return computed | dict(zip(leaves, gradients, strict=True))


def as_list(states: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [states] if isinstance(states, Tensor) else list(states)


@pytest.mark.parametrize("dtype", BARS, ids=str)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["RNN_TANH", "RNN_RELU", "LSTM", "GRU"])
def test_layers_of_pytorch(kind, bias, bidirectional, dtype):
    torch.manual_seed(0)
    options = {"num_layers": 2, "bias": bias, "bidirectional": bidirectional}
    if kind.startswith("RNN"):
        original: nn.RNNBase = nn.RNN(I, H, nonlinearity=kind.split("_")[1].lower(), **options)
    else:
        original = getattr(nn, kind)(I, H, **options)
    layer = wenet.nn.CellRNN.from_torch(original.to(dtype))
    original.float()
    x, *states = torch.randn(T, M, I), *torch.randn(layer.carried, 2 * (1 + bidirectional), M, H)
    exact = in_our_form(evaluated(original, x, states, torch.float64), kind, bias)
    compare(evaluated(layer, x, states, dtype), exact)


def in_our_form(theirs: Results, kind: str, bias: bool) -> Results:
    """PyTorch has the gates of a weight beneath each other, [gates * H, I], and two biases."""
    found = {name: each for name, each in theirs.items() if "_l" not in name}
    for name in theirs:
        if not name.startswith("weight_ih"):
            continue
        suffix = name.removeprefix("weight_ih")
        own = suffix.replace("_l0", "")
        for ours, original in (("weight_input", "weight_ih"), ("weight_hidden", "weight_hh")):
            found[ours + own] = theirs[original + suffix].unflatten(0, (-1, H)).mT
        if bias:
            of_input, of_hidden = (theirs[each + suffix].unflatten(0, (-1, H)) for each in ("bias_ih", "bias_hh"))
            found["biases" + own] = torch.cat([of_input, of_hidden[2:]]) if kind == "GRU" else of_input
    return found


def test_other_modules_cannot_be_taken_over():
    for module in (nn.Linear(2, 3), nn.LSTM(4, 6, proj_size=2)):
        with pytest.raises(wenet.WenetError, match="without proj_size"):
            wenet.nn.CellRNN.from_torch(module)


@pytest.mark.parametrize("dtype", BARS, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("form", ["highway", "plain"])
@pytest.mark.parametrize("cell", ["darts-v2", "enas", "tanh0 relu0 identity1 mean 2"])
def test_dag_cells(cell, form, bias, dtype):
    torch.manual_seed(1)
    original = wenet.nn.DagRNN(I, H, cell, form, bias=bias)
    original.reset_parameters(0.8)
    genotype = original.genotype
    layer = wenet.nn.CellRNN(I, H, program_of(genotype, form, bias), dtype=dtype)
    reaching = sorted(wenet.cells.source.reaching_output(genotype))
    per = 2 if form == "highway" else 1

    def taken(weights: Results) -> Results:
        """Gate and value of a DagRNN lie beside each other, [I, 2H]; of nodes without a use there is none."""
        nodes = weights["weight_nodes"][[node - 1 for node in reaching]]
        apart = {
            "weight_input": weights["weight_input"].unflatten(-1, (per, H)).movedim(-2, 0),
            "weight_hidden": torch.cat(
                [weights["weight_hidden"].unflatten(-1, (per, H)).movedim(-2, 0)]
                + [node.unflatten(-1, (per, H)).movedim(-2, 0) for node in nodes]
            ),
        }
        if bias:
            apart["biases"] = weights["bias_input"].unflatten(-1, (per, H))
        return {name: each for name, each in weights.items() if "weight" not in name and "bias" not in name} | apart

    with torch.no_grad():
        for name, weight in taken({name: each.double() for name, each in original.named_parameters()}).items():
            if name == "biases":
                weight = weight + original.bias_hidden.double().unflatten(-1, (per, H))
            getattr(layer, name).copy_(weight)
    x, h = torch.randn(T, M, I), torch.randn(1, M, H)
    compare(evaluated(layer, x, [h], dtype), taken(evaluated(original, x, [h], torch.float64)))


class Equations:
    """Published equations, one step; `W`, `U` and `b` are the weights of the input, of states, and biases in turn."""

    @staticmethod
    def mgu(x, states, W, U, b, v, s):
        [h] = states
        f = torch.sigmoid(x @ W[0] + h @ U[0] + b[0])
        candidate = torch.tanh(x @ W[1] + (f * h) @ U[1] + b[1])
        return [(1 - f) * h + f * candidate]

    @staticmethod
    def indrnn(x, states, W, U, b, v, s):
        return [torch.relu(x @ W[0] + v[0] * states[0] + b[0])]

    @staticmethod
    def fastgrnn(x, states, W, U, b, v, s):
        [h] = states
        z = torch.sigmoid(x @ W[0] + h @ U[0] + v[0])
        candidate = torch.tanh(x @ W[0] + h @ U[0] + v[1])
        return [(torch.sigmoid(s[0]) * (1 - z) + torch.sigmoid(s[1])) * candidate + z * h]

    @staticmethod
    def lem(x, states, W, U, b, v, s):
        y, z = states
        p = [x @ W[k] + y @ U[k] + b[k] for k in range(3)]
        step_z, step_y = torch.sigmoid(p[0]), torch.sigmoid(p[2])
        z = (1 - step_z) * z + step_z * torch.tanh(p[1])
        return [(1 - step_y) * y + step_y * torch.tanh(x @ W[3] + z @ U[3] + b[3]), z]

    @staticmethod
    def nas(x, states, W, U, b, v, s):
        h, c = states
        p = [x @ W[k] + h @ U[k] + b[k] for k in range(8)]
        p[3] = (x @ W[3]) * (h @ U[3] + b[3])
        first = [kind(each) for kind, each in zip(NAS_KINDS, p, strict=True)]
        a, d = torch.tanh(first[0] * first[1]), torch.tanh(first[2] + first[3])
        e, g = torch.tanh(first[4] * first[5]), torch.sigmoid(first[6] + first[7])
        c = torch.tanh(a + c) * d
        return [torch.tanh(c * torch.tanh(e + g)), c]

    @staticmethod
    def rhn(x, states, W, U, b, v, s):
        [h] = states
        for layer in range(10):
            t, value = (h @ U[2 * layer + k] + b[2 * layer + k] + (x @ W[k] if layer == 0 else 0) for k in range(2))
            t = torch.sigmoid(t)
            h = torch.tanh(value) * t + h * (1 - t)
        return [h]


NAS_KINDS = (
    *(torch.sigmoid, torch.relu, torch.sigmoid, torch.relu),
    *(torch.tanh, torch.sigmoid, torch.tanh, torch.sigmoid),
)


@pytest.mark.parametrize("dtype", BARS, ids=str)
@pytest.mark.parametrize("name", ["mgu", "indrnn", "fastgrnn", "lem", "nas", "rhn"])
def test_published_equations(name, dtype):
    torch.manual_seed(3)
    layer = wenet.nn.CellRNN(I, H, name)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-0.6, 0.6)
    x, *states = torch.randn(T, M, I), *torch.randn(layer.carried, 1, M, H)
    compare(evaluated(layer, x, states, dtype), by_equations(name, layer, x, states))


def by_equations(name: str, layer: nn.Module, x: Tensor, states: list[Tensor]) -> Results:
    """In double precision."""
    parameters = {own: each.detach().double().requires_grad_() for own, each in layer.named_parameters()}
    none = torch.empty(0, H, dtype=torch.float64)
    weights = [parameters.get(own, none) for own in ("weight_input", "weight_hidden", "biases", "vectors", "scalars")]
    x, *first = (each.double().requires_grad_() for each in (x, *states))
    carried, outputs = [state[0] for state in first], []
    for each in x:
        carried = getattr(Equations, name)(each, carried, *weights)
        outputs.append(carried[0])
    leaves = {"x": x, **{f"first {k}": state for k, state in enumerate(first)}, **parameters}
    return results(torch.stack(outputs), [state.unsqueeze(0) for state in carried], leaves)


def test_first_values_of_learned_numbers():
    layer = wenet.nn.CellRNN(I, H, "fastgrnn", num_layers=2)
    assert layer.scalars.tolist() == layer.scalars_l1.tolist() == [1, -4]
    assert layer.vectors.abs().max() <= H**-0.5
