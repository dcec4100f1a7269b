"""Layers under the tools of PyTorch that empty, move, copy or transform a module."""

import copy
import pickle

import pytest
import torch

from wenet.cells.published import DARTS_V2
from wenet.nn.rnn import DagRNN
from wenet_kernels import WenetError


def x():
    return torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(1))


def under_meta():
    with torch.device("meta"):
        return DagRNN(5, 8, DARTS_V2).to_empty(device="cpu")


MADE_WITHOUT_VALUES = {
    "to_empty": lambda: DagRNN(5, 8, DARTS_V2, device="meta").to_empty(device="cpu"),
    "skip_init": lambda: torch.nn.utils.skip_init(DagRNN, 5, 8, DARTS_V2),
    "torch.device": under_meta,
}


@pytest.mark.parametrize("how", MADE_WITHOUT_VALUES)
def test_a_layer_made_without_values_computes_the_same_once_it_has_them(how):
    layer, expected = MADE_WITHOUT_VALUES[how](), DagRNN(5, 8, DARTS_V2)
    layer.load_state_dict(expected.state_dict())
    assert torch.equal(layer(x())[0], expected(x())[0])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_computes_the_same(copied):
    layer = DagRNN(5, 8, DARTS_V2)
    assert torch.equal(copied(layer)(x())[0], layer(x())[0])


@pytest.fixture
def layers():
    torch.manual_seed(3)
    return [DagRNN(5, 8, DARTS_V2, num_layers=2) for _ in range(3)]


def test_an_ensemble_of_layers(layers):
    """As the tutorial of torch.func does it; the values and gradients of the layers one by one."""
    parameters, buffers = torch.func.stack_module_state(layers)
    skeleton = copy.deepcopy(layers[0]).to("meta")

    def loss(parameters, buffers, x):
        output, h = torch.func.functional_call(skeleton, (parameters, buffers), (x,))
        return output.square().sum() + h.sum()

    losses = torch.func.vmap(loss, in_dims=(0, 0, None))(parameters, buffers, x())
    (losses * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    for k, layer in enumerate(layers):
        output, h = layer(x())
        (expected := output.square().sum() + h.sum()).backward()
        torch.testing.assert_close(losses[k], expected)
        for name, parameter in layer.named_parameters():
            torch.testing.assert_close(parameters[name].grad[k], parameter.grad * (k + 1), rtol=1e-4, atol=1e-5)
            assert parameter.grad.abs().max() > 1e-3


def test_the_gradient_of_every_sample(layers):
    layer = layers[0]
    parameters = dict(layer.named_parameters())

    def loss(parameters, sequence):
        return torch.func.functional_call(layer, parameters, (sequence,))[0].square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 1))(parameters, x())  # sequences [T, I]
    for k in range(4):
        loss(parameters, x()[:, k]).backward()
        for name, parameter in parameters.items():
            torch.testing.assert_close(found[name][k], parameter.grad, rtol=1e-4, atol=1e-5)
            assert parameter.grad.abs().max() > 1e-3
            parameter.grad = None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_types_that_rnns_give(layers, dtype):
    rnn = torch.nn.RNN(5, 8, num_layers=2)
    for state_type in (None, torch.float32, dtype):
        h0 = None if state_type is None else torch.zeros(2, 4, 8, dtype=state_type)
        found = []
        for layer in (rnn, layers[0]):
            with torch.autocast("cpu", dtype=dtype):
                output, h = layer(x(), h0)
            output.float().square().sum().backward()
            found.append((output.dtype, h.dtype, *{p.grad.dtype for p in layer.parameters()}))
        assert found[0] == found[1] == (dtype, dtype, torch.float32)


def test_an_empty_batch(layers):
    for layer in (torch.nn.RNN(5, 8, num_layers=2), layers[0]):
        output, h = layer(torch.zeros(6, 0, 5))
        assert output.shape == (6, 0, 8) and h.shape == (2, 0, 8)
        output.sum().backward()
        assert all(parameter.grad is not None and not parameter.grad.any() for parameter in layer.parameters())


def test_nan_in_the_input_is_called_x(layers):
    with pytest.raises(WenetError, match="^x holds NaN"):
        layers[0](x().index_fill(0, torch.tensor([3]), torch.nan))


@pytest.mark.parametrize("wrong", [(6, 4), (6, 4, 7), (0, 4, 5), (5,), (2, 6, 4, 5)], ids=str)
def test_what_is_no_input(layers, wrong):
    with pytest.raises(WenetError):
        layers[0](torch.zeros(wrong))


@pytest.mark.parametrize("h0", [(torch.zeros(2, 4, 8),) * 2, torch.zeros(4, 8), torch.zeros(2, 3, 8), 0], ids=type)
def test_what_is_no_state(layers, h0):
    with pytest.raises(WenetError, match="h0"):
        layers[0](x(), h0)


@pytest.mark.parametrize("asked", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_autocast_of_a_layer_in_another_half_type(asked, dtype):
    ours = DagRNN(5, 8, DARTS_V2, num_layers=2, bidirectional=True, dtype=dtype)
    torchs = torch.nn.RNN(5, 8, num_layers=2, bidirectional=True, dtype=dtype)
    with torch.autocast("cpu", asked):
        found, expected = ours(x().to(dtype)), torchs(x().to(dtype))
    assert [y.dtype for y in found] == [y.dtype for y in expected]


def test_autocast_makes_no_numbers_of_integers(layers):
    tokens = x().int()
    for sequence in (tokens, torch.nn.utils.rnn.pack_padded_sequence(tokens, torch.tensor([6, 3, 2, 1]))):
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(WenetError, match="the input is torch.int32"):
            layers[0](sequence)
