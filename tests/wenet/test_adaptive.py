"""The neural cache and dynamic evaluation, against their formulas written out."""

import math

import pytest
import torch

from wenet import WenetError
from wenet.cells.published import load_genotype
from wenet.data import batchify, window, windows_per_pass
from wenet.nn.language import LanguageModel
from wenet.nn.rnn import DagRNN
from wenet.tasks.language import perplexity
from wenet.training.adaptive import (
    DYNAMIC_EPS,
    STATISTICS_ROWS,
    Cache,
    Dynamic,
    cache_cross_entropy,
    dynamic_cross_entropy,
    statistics_stream,
)


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
    found = math.exp(cache_cross_entropy(model, stream, bptt, Cache(length, 0.3, 0.2)))
    assert found == pytest.approx(math.exp(nats / 58), rel=1e-9)


def test_cache_helps_where_the_text_repeats(model):
    stream = torch.randint(7, (6, 2)).repeat(10, 1)
    assert math.exp(cache_cross_entropy(model, stream, 10, Cache(20, 3.0, 0.5))) < perplexity(model, stream, 10)


def dynamic_case():
    """A model and texts that every program can make again."""
    model = LanguageModel(7, DagRNN(5, 5, load_genotype("tanh0 relu1"), backend="reference")).double()
    with torch.no_grad():
        for phase, parameter in enumerate(model.parameters()):
            running = torch.arange(1, parameter.numel() + 1, dtype=torch.float64)
            parameter.copy_(0.5 * torch.sin(1.7 * running + phase).view(parameter.shape))
    train, valid = torch.arange(75) ** 2 + 1, torch.arange(26) ** 2 + 2
    return model, batchify(train % 7, 3), batchify(valid % 7, 1)


def test_dynamic_evaluation_is_that_of_its_authors():
    """The perplexity that their script (dynamiceval.py, without --oldhyper) gives for the same model and texts."""
    model, train_stream, stream = dynamic_case()
    assert [name for name, _ in model.named_parameters()][:2] == ["decoder_bias", "embedding.weight"]
    before = [parameter.detach().clone() for parameter in model.parameters()]
    found = math.exp(dynamic_cross_entropy(model, train_stream, stream, Dynamic(lr=0.01, decay=0.3)))
    assert found == pytest.approx(6.759190943017763, rel=1e-12)
    assert all(torch.equal(p, origin) for p, origin in zip(model.parameters(), before, strict=True))


def test_defaults_of_dynamic_evaluation_are_those_of_its_authors():
    assert (Dynamic().lr, Dynamic().decay, Dynamic().segment) == (5e-5, 0.002, 5)
    assert (DYNAMIC_EPS, STATISTICS_ROWS) == (2e-5, 100)
    assert statistics_stream(torch.arange(1000), 5).shape == (10, 100)
    assert statistics_stream(torch.arange(30), 5).shape == (6, 5)
    assert statistics_stream(torch.arange(3), 5).shape == (3, 1)


@pytest.mark.parametrize("error", [KeyboardInterrupt, WenetError])
def test_weights_are_restored_after_an_error(monkeypatch, error):
    model, train_stream, stream = dynamic_case()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    real, changed = LanguageModel.loss, []

    def loss(self, tokens, targets, h0=None):
        changed.append(any(not torch.equal(p, origin) for p, origin in zip(self.parameters(), before, strict=True)))
        if sum(changed) == 2:
            raise error
        return real(self, tokens, targets, h0)

    monkeypatch.setattr(LanguageModel, "loss", loss)
    with pytest.raises(error):
        dynamic_cross_entropy(model, train_stream, stream, Dynamic())
    assert changed[-1]
    assert all(torch.equal(p, origin) for p, origin in zip(model.parameters(), before, strict=True))


def test_defaults_of_dynamic_evaluation_help_a_trained_model():
    """On a text like that trained on, but where some words are followed by others: lower perplexity, however long."""
    torch.manual_seed(0)

    def text(length, rule):
        words = [0]
        while len(words) < length:
            words.append(rule(words[-1]) if torch.rand(()) < 0.8 else int(torch.randint(20, ())))
        return torch.tensor(words)

    model = LanguageModel(20, DagRNN(16, 16, load_genotype("tanh0 relu1")))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    train = text(6000, lambda word: (3 * word + 1) % 20)
    stream = batchify(train, 20)
    for index in range(120):
        loss, _, _ = model.loss(*window(stream, 10, index % windows_per_pass(stream, 10)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    other = batchify(text(4000, lambda word: (3 * word + 1 + word // 10) % 20), 1)
    plain = math.log(perplexity(model, other, 10))
    adapted = dynamic_cross_entropy(model, statistics_stream(train, 5), other, Dynamic())
    assert adapted < 0.98 * plain
    assert dynamic_cross_entropy(model, statistics_stream(train, 5), other, Dynamic(lr=2e-4)) < adapted
