"""Run by torchrun: on every rank, a divided layer beside the undivided one, and what ranks hand each other."""

import itertools

import pytest
import torch
from torch import nn

from wenet import random_genotypes
from wenet.nn.divided import DividedDagRNN
from wenet.nn.weighted import WeightedDagRNN
from wenet.parallel.gradients import clip_gradients
from wenet.parallel.ranks import joined
from wenet_kernels import WenetError, backends

NETWORKS, NODES, SIZE, STEPS, ROWS = 5, 3, 6, 3, 4


def check_layer(ranks, backend, form, norm, dtype, tolerance):
    genotypes = random_genotypes(NETWORKS, NODES, seed=3)
    options = {"form": form, "norm": norm, "dropout_x": 0.3, "dropout_h": 0.2, "backend": backend}
    torch.manual_seed(5)
    whole = WeightedDagRNN(SIZE, SIZE, genotypes, **options)
    after_whole = torch.get_rng_state()
    torch.manual_seed(5)
    divided = DividedDagRNN(SIZE, SIZE, genotypes, ranks, **options)
    assert torch.equal(torch.get_rng_state(), after_whole)
    own = ranks.own(NETWORKS)
    for name in ("weight_input", "weight_hidden", "weight_nodes"):
        assert torch.equal(getattr(divided, name), getattr(whole, name)[own]), name

    whole, divided = whole.to(dtype), divided.to(dtype)
    x, h0 = torch.randn(STEPS, ROWS, SIZE, dtype=dtype), torch.randn(1, ROWS, SIZE, dtype=dtype)
    seen = []
    for layer in (whole, divided):
        with torch.no_grad():
            layer.mix_logits.copy_(torch.linspace(-1, 1, NETWORKS))
        torch.manual_seed(7)
        own_x = x.clone().requires_grad_()
        output, last = layer(own_x, h0)
        (output.square().sum() + last.sum()).backward()
        seen.append((output, last, own_x.grad, layer.mix_logits.grad))
    for expected, found in zip(*seen, strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    for name in ("weight_input", "weight_hidden", "weight_nodes"):
        found, expected = getattr(divided, name).grad, getattr(whole, name).grad[own]
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    check_clipping(ranks, whole, divided, tolerance)
    with torch.no_grad():
        expected, found = whole.eval()(x)[0], divided.eval()(x)[0]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def check_clipping(ranks, whole, divided, tolerance):
    expected = nn.utils.clip_grad_norm_(whole.parameters(), 0.5)
    found = clip_gradients([divided.mix_logits], divided.divided_parameters(), 0.5, ranks)
    assert float(found) == pytest.approx(float(expected), rel=tolerance)
    own = whole.weight_hidden.grad[ranks.own(NETWORKS)]
    torch.testing.assert_close(divided.weight_hidden.grad, own, rtol=tolerance, atol=tolerance)


def check_talk(ranks):
    assert ranks.largest(ranks.rank) == ranks.count - 1
    assert ranks.from_first([ranks.rank, "näher"]) == [0, "näher"]
    assert ranks.on_first(lambda: {"rank": ranks.rank}) == {"rank": 0}
    with pytest.raises(WenetError, match="disk full"):
        ranks.on_first(full_disk)
    ranks.check_same({"text": 1.5})
    if ranks.first:
        ranks.check_same({"text": 1, "seed": 2})
    else:
        with pytest.raises(WenetError, match="differs from the first in seed;"):
            ranks.check_same({"text": 1, "seed": 3})
    for dim in (0, 1):
        whole = torch.arange(10 * 10).view(10, 10)
        part = ranks.scatter(whole if ranks.first else None, whole.shape, whole.dtype, dim)
        own = ranks.own(10)
        assert torch.equal(part, whole.narrow(dim, own.start, own.stop - own.start))
        gathered = ranks.gather(part, dim)
        assert not ranks.first or torch.equal(gathered, whole)


def full_disk():
    raise WenetError("disk full")


with joined() as ranks:
    assert ranks.count > 1
    check_talk(ranks)
    ready = [name for name in ("reference", "cpu") if backends()[name] == "ready"]
    for backend, form, norm in itertools.product(ready, ("highway", "plain"), ("batch", None)):
        check_layer(ranks, backend, form, norm, torch.float64, 1e-12)
    for backend in (ready[-1], "triton"):  # the latter in its interpreter
        check_layer(ranks, backend, "highway", "batch", torch.float32, 1e-4)
    print(f"rank {ranks.rank} of {ranks.count} agrees")
