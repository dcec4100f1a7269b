"""Published cells as programs are equal to their originals: outputs, states and every derivative."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import wenet
from wenet.programs import program_of

T, M, I, H = 5, 3, 4, 6  # noqa: E741
# Derivatives of biases are sums of numbers that cancel, of which PyTorch too knows fewer digits.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12}


def close(found: Tensor, expected: Tensor) -> None:
    """Relative, in root mean square."""
    error = (found - expected).norm() / expected.norm().clamp(min=1e-12)
    assert expected.norm() > 0 and error < TOLERANCE[found.dtype], error.item()


def differentiate(output: Tensor, states: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    torch.manual_seed(2)
    loss = sum((each * torch.randn_like(each)).sum() for each in (output, *states))
    return list(torch.autograd.grad(loss, leaves))


def as_list(states: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [states] if isinstance(states, Tensor) else list(states)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["RNN_TANH", "RNN_RELU", "LSTM", "GRU"])
def test_layers_of_pytorch(kind, bias, bidirectional, dtype):
    torch.manual_seed(0)
    options = {"num_layers": 2, "bias": bias, "bidirectional": bidirectional, "dtype": dtype}
    if kind.startswith("RNN"):
        original: nn.RNNBase = nn.RNN(I, H, nonlinearity=kind.split("_")[1].lower(), **options)
    else:
        original = getattr(nn, kind)(I, H, **options)
    layer = wenet.nn.CellRNN.from_torch(original)
    x = torch.randn(T, M, I, dtype=dtype, requires_grad=True)
    states = [torch.randn(2 * (1 + bidirectional), M, H, dtype=dtype).requires_grad_() for _ in range(layer.carried)]
    given = states[0] if layer.carried == 1 else tuple(states)
    results = []
    for module in (layer, original):
        output, last = module(x, given)
        results.append([output, *as_list(last), *differentiate(output, as_list(last), [x, *states])])
    for found, expected in zip(*results, strict=True):
        close(found, expected)
    own = [grads_of(module, x, given) for module in (layer, original)]
    for number in range(2):
        for direction in range(1 + bidirectional):
            compare_weights(own[0], own[1], kind, bias, number, direction)


def grads_of(module: nn.Module, x: Tensor, given: Tensor | tuple[Tensor, ...]) -> dict[str, Tensor]:
    output, last = module(x, given)
    names, parameters = zip(*module.named_parameters(), strict=True)
    return dict(zip(names, differentiate(output, as_list(last), list(parameters)), strict=True))


def compare_weights(ours: dict, theirs: dict, kind: str, bias: bool, number: int, direction: int) -> None:
    """PyTorch has the gates of a weight beneath each other, [gates * H, I], and two biases."""
    suffix = f"_l{number}" + ("_reverse" if direction else "")
    own = (f"_l{number}" if number else "") + ("_reverse" if direction else "")
    for name, original in (("weight_input", "weight_ih"), ("weight_hidden", "weight_hh")):
        close(ours[name + own], theirs[original + suffix].unflatten(0, (-1, H)).mT)
    if not bias:
        return
    of_input, of_hidden = (theirs[name + suffix].unflatten(0, (-1, H)) for name in ("bias_ih", "bias_hh"))
    close(ours["biases" + own], torch.cat([of_input, of_hidden[2:]]) if kind == "GRU" else of_input)


def test_other_modules_cannot_be_taken_over():
    for module in (nn.Linear(2, 3), nn.LSTM(4, 6, proj_size=2)):
        with pytest.raises(wenet.WenetError, match="without proj_size"):
            wenet.nn.CellRNN.from_torch(module)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("form", ["highway", "plain"])
@pytest.mark.parametrize("cell", ["darts-v2", "enas", "tanh0 relu0 identity1 mean 2"])
def test_dag_cells(cell, form, bias, dtype):
    torch.manual_seed(1)
    original = wenet.nn.DagRNN(I, H, cell, form, bias=bias, dtype=dtype)
    original.reset_parameters(0.8)
    genotype = original.genotype
    layer = wenet.nn.CellRNN(I, H, program_of(genotype, form, bias), dtype=dtype)
    reaching = sorted(wenet.cells.source.reaching_output(genotype))
    per = 2 if form == "highway" else 1

    def taken(weights: dict[str, Tensor]) -> dict[str, Tensor]:
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
        return apart

    with torch.no_grad():
        for name, weight in taken(dict(original.named_parameters())).items():
            if name == "biases":
                weight = weight + original.bias_hidden.unflatten(-1, (per, H))
            getattr(layer, name).copy_(weight)
    x, h = torch.randn(T, M, I, dtype=dtype), torch.randn(1, M, H, dtype=dtype)
    for found, expected in zip(layer(x, h), original(x, h), strict=True):
        close(found, expected)
    expected = taken(grads_of(original, x, h))
    for name, found in grads_of(layer, x, h).items():
        close(found, expected[name])


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


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", ["mgu", "indrnn", "fastgrnn", "lem", "nas", "rhn"])
def test_published_equations(name, dtype):
    torch.manual_seed(3)
    layer = wenet.nn.CellRNN(I, H, name, dtype=dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-0.6, 0.6)
    none = torch.empty(0, H, dtype=dtype)
    names = ("weight_input", "weight_hidden", "biases", "vectors", "scalars")
    weights = [getattr(layer, each, none) for each in names]
    x = torch.randn(T, M, I, dtype=dtype, requires_grad=True)
    first = [torch.randn(M, H, dtype=dtype).requires_grad_() for _ in range(layer.carried)]
    states, outputs = first, []
    for each in x:
        states = getattr(Equations, name)(each, states, *weights)
        outputs.append(states[0])
    given = [state.unsqueeze(0) for state in first]
    output, last = layer(x, given[0] if layer.carried == 1 else tuple(given))
    leaves = [x, *first, *layer.parameters()]
    close(output, torch.stack(outputs))
    for found, expected in zip(as_list(last), states, strict=True):
        close(found[0], expected)
    own = differentiate(output, [each[0] for each in as_list(last)], leaves)
    for found, expected in zip(own, differentiate(torch.stack(outputs), states, leaves), strict=True):
        close(found, expected)


def test_first_values_of_learned_numbers():
    layer = wenet.nn.CellRNN(I, H, "fastgrnn", num_layers=2)
    assert layer.scalars.tolist() == layer.scalars_l1.tolist() == [1, -4]
    assert layer.vectors.abs().max() <= H**-0.5
