"""The chunked cross-entropy against PyTorch's over all logits at once."""

import pytest
import torch
from torch.nn import functional

from wenet.nn import cross_entropy as loss


@pytest.mark.parametrize("chunk", [1, 7 * 11, 10**6], ids=["a row at a time", "ragged chunks", "one chunk"])
def test_value_and_gradients_are_those_of_all_logits_at_once(chunk, monkeypatch):
    monkeypatch.setattr(loss, "CHUNK", chunk)
    torch.manual_seed(1)
    features, weight, bias = (torch.randn(*s, dtype=torch.float64).requires_grad_() for s in ((16, 5), (11, 5), (11,)))
    targets = torch.randint(11, (16,))
    ours = loss.decoder_cross_entropy(features, weight, bias, targets)
    whole = functional.cross_entropy(functional.linear(features, weight, bias), targets)
    torch.testing.assert_close(ours, whole)
    operands = (features, weight, bias)
    for own, expected in zip(
        torch.autograd.grad(3 * ours, operands), torch.autograd.grad(3 * whole, operands), strict=True
    ):
        torch.testing.assert_close(own, expected)


def test_without_gradients_the_value_is_the_same(monkeypatch):
    features, weight, bias = torch.randn(6, 4).requires_grad_(), torch.randn(9, 4), torch.zeros(9)
    targets = torch.tensor([0, 8, 1, 1, 5, 2])
    whole = loss.decoder_cross_entropy(features, weight, bias, targets).detach()
    monkeypatch.setattr(loss, "_add_gradients", lambda *_: pytest.fail("computed gradients that nobody wants"))
    with torch.no_grad():
        assert torch.equal(loss.decoder_cross_entropy(features, weight, bias, targets), whole)


def test_a_word_beyond_single_precision_keeps_its_loss():
    """A probability below the smallest number has a finite logarithm all the same."""
    features, weight = torch.tensor([[200.0]]), torch.tensor([[1.0], [0.0]])
    value = loss.decoder_cross_entropy(features, weight, torch.zeros(2), torch.tensor([1]))
    assert value == pytest.approx(200.0)
