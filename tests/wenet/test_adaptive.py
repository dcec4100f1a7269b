"""The neural cache and dynamic evaluation, against their formulas written out."""

import math

import pytest
import torch

from wenet.adaptive import Cache, Dynamic, cache_perplexity, dynamic_perplexity
from wenet.genotypes import load_genotype
from wenet.nn import DagRNN, LanguageModel
from wenet.training import perplexity, window, windows_per_epoch


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LanguageModel(7, DagRNN(5, 5, load_genotype("tanh0 relu1")), init_range=0.5).double()


@pytest.mark.parametrize(("length", "bptt"), [(6, 4), (3, 10), (100, 10)])
def test_cache_follows_its_formula(model, length, bptt):
    """Word by word, as in eqs. 2 and 3 of Grave et al."""
    stream = torch.randint(7, (30, 2))
    model.eval()
    raw, _ = model.rnn(model.embedding(stream[:-1]))
    nats = 0.0
    for row in range(2):
        for t in range(29):
            target, own = stream[t + 1, row], torch.softmax(model._decode(raw[t, row]), -1)
            probability = own[target]
            past = range(max(0, t - length), t)
            if past:
                similar = torch.exp(torch.stack([0.3 * raw[t, row] @ raw[i, row] for i in past]))
                same = torch.tensor([bool(stream[i + 1, row] == target) for i in past])
                probability = 0.8 * probability + 0.2 * (similar * same).sum() / similar.sum()
            nats -= float(probability.detach().log())
    found = cache_perplexity(model, stream, bptt, Cache(length, 0.3, 0.2))
    assert found == pytest.approx(math.exp(nats / 58), rel=1e-9)


def test_cache_helps_where_the_text_repeats(model):
    stream = torch.randint(7, (6, 2)).repeat(10, 1)
    assert cache_perplexity(model, stream, 10, Cache(20, 3.0, 0.5)) < perplexity(model, stream, 10)


def test_dynamic_evaluation_follows_its_formula(model):
    stream, train_stream = torch.randint(7, (13, 2)), torch.randint(7, (25, 3))
    parameters = list(model.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    found = dynamic_perplexity(model, train_stream, stream, 8, Dynamic(lr=0.01, decay=0.3, segment=5))
    assert all(torch.equal(parameter, origin) for parameter, origin in zip(parameters, before, strict=True))
    squares, h = [0.0] * len(parameters), None
    for index in range(windows_per_epoch(train_stream, 8)):
        loss, _, h = model.loss(*window(train_stream, 8, index), None if h is None else h.detach())
        for number, gradient in enumerate(torch.autograd.grad(loss, parameters)):
            squares[number] = squares[number] + gradient**2 / 3
    scales = [square**0.5 for square in squares]
    mean = torch.cat([scale.flatten() for scale in scales]).mean()
    nats, h = 0.0, None
    for index, length in enumerate((5, 5, 2)):
        loss, _, h = model.loss(*window(stream, 5, index), None if h is None else h.detach())
        nats += float(loss.detach()) * 2 * length
        with torch.no_grad():
            for p, g, s, origin in zip(parameters, torch.autograd.grad(loss, parameters), scales, before, strict=True):
                p += -0.01 * g / (s + 2e-5) + torch.clamp(0.3 * s / mean, max=1) * (origin - p)
    assert found == pytest.approx(math.exp(nats / 24), rel=1e-9)


def test_dynamic_evaluation_helps_where_the_text_repeats(model):
    stream = torch.randint(7, (6, 2)).repeat(20, 1)
    train_stream = torch.randint(7, (60, 2))
    adapted = dynamic_perplexity(model, train_stream, stream, 10, Dynamic(lr=2e-4))
    assert adapted < perplexity(model, stream, 10)
