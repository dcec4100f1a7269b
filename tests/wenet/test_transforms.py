"""Layers under the tools of PyTorch that empty, move, copy or transform a module."""

import copy
import pickle

import pytest
import torch

from wenet.genotypes import DARTS_V2
from wenet.nn import DagRNN


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
