"""Evaluation that adapts to the text read so far: the neural cache and dynamic evaluation. The paper uses neither."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wenet.data import batchify, window, windows_per_pass
from wenet.nn import LanguageModel


@dataclass(frozen=True)
class Cache:
    """The neural cache (Grave et al. 2017): words that recently followed similar states become more likely.

    Attributes:
        length: number of states remembered.
        flatness: the weight of similarity; theta in the paper.
        share: the cache's share of the prediction; lambda in the paper.
    """

    length: int
    flatness: float = 0.3
    share: float = 0.1


@dataclass(frozen=True)
class Dynamic:
    """Dynamic evaluation (Krause et al. 2018): after each segment, a gradient step on it and a pull back.

    For each parameter, the step is divided by the root mean square of its gradient on the training text, and the pull
    is multiplied by it. The defaults are those of the authors' code, for one stream of text and statistics over windows
    of `STATISTICS_ROWS` streams with as many steps as a segment. The paper prints values for another scaling.

    Attributes:
        lr, decay: rates of the step and of the pull towards the trained weights; eta and lambda in the paper.
        segment: number of time steps.
    """

    lr: float = 5e-5
    decay: float = 0.002
    segment: int = 5


DYNAMIC_EPS = 2e-5  # added to the root mean square, as published
STATISTICS_ROWS = 100  # text streams side by side for gradient statistics


@torch.no_grad()
def cache_cross_entropy(model: LanguageModel, stream: Tensor, bptt: int, cache: Cache) -> float:
    """Nats per token of a stream `[steps, M]`, each row with a cache of its own added to the model."""
    model.eval()
    total, h = 0.0, None
    states = words = None
    for index in range(windows_per_pass(stream, bptt)):
        tokens, targets = window(stream, bptt, index)
        raw, h = model.rnn(model.embedding(tokens), h)  # [T, M, H]
        log_vocabulary = model.log_probabilities(raw).gather(-1, targets.unsqueeze(-1)).squeeze(-1)  # [T, M]
        states = raw if states is None else torch.cat([states[-cache.length :], raw])  # [C, M, H]
        words = targets if words is None else torch.cat([words[-cache.length :], targets])  # [C, M]
        log_cache = _log_cache(raw, states, words, targets, cache)
        mixed = torch.logaddexp(log_vocabulary + math.log1p(-cache.share), log_cache + math.log(cache.share))
        total -= float(torch.where(log_cache.isnan(), log_vocabulary, mixed).sum())
    return total / stream[1:].numel()


def _log_cache(raw: Tensor, states: Tensor, words: Tensor, targets: Tensor, cache: Cache) -> Tensor:
    """Log-probabilities of the targets under the cache, `[T, M]`; NaN at the very beginning."""
    steps, remembered = len(raw), len(states)
    now = torch.arange(remembered - steps, remembered, device=raw.device).unsqueeze(-1)
    age = now - torch.arange(remembered, device=raw.device)  # [T, C]
    similarity = cache.flatness * torch.einsum("tmh,cmh->tmc", raw, states)
    beyond = ((age < 1) | (age > cache.length)).unsqueeze(1)
    log_share = torch.log_softmax(similarity.masked_fill(beyond, -math.inf), -1)  # [T, M, C]
    hit = words.t() == targets.unsqueeze(-1)  # [T, M, C]
    log_hits = torch.logsumexp(log_share.masked_fill(~hit, -math.inf), -1)
    return log_hits.masked_fill(beyond.all(-1), math.nan)


def dynamic_cross_entropy(model: LanguageModel, train_stream: Tensor, stream: Tensor, dynamic: Dynamic) -> float:
    """Nats per token of a stream `[steps, M]` with weights that adapt to it. In the end, even after an error, the
    weights are restored.

    Args:
        train_stream: `[steps, STATISTICS_ROWS]` of the training text. Other numbers of rows, here or in `stream`,
            change the scale of gradients and need another rate.
    """
    model.eval()
    parameters = list(model.parameters())
    trained = [parameter.detach().clone() for parameter in parameters]
    scales = _gradient_scales(model, train_stream, dynamic.segment)
    mean_scale = sum(float(scale.mean()) for scale in scales) / len(scales)  # each tensor counts the same
    pulls = [(dynamic.decay / mean_scale * scale).clamp(max=1.0) for scale in scales]
    total, h = 0.0, None
    try:
        for index in range(windows_per_pass(stream, dynamic.segment)):
            tokens, targets = window(stream, dynamic.segment, index)
            loss, cross_entropy, state = model.loss(tokens, targets, h)
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for p, gradient, scale, pull, origin in zip(parameters, gradients, scales, pulls, trained, strict=True):
                    p.add_(pull * (origin - p) - dynamic.lr * gradient / (scale + DYNAMIC_EPS))
            total += float(cross_entropy) * targets.numel()
            h = state.detach()
    finally:
        with torch.no_grad():
            for parameter, origin in zip(parameters, trained, strict=True):
                parameter.copy_(origin)
    return total / stream[1:].numel()


def statistics_stream(tokens: Tensor, segment: int) -> Tensor:
    """The training text `[tokens]` as `[steps, STATISTICS_ROWS]`, with fewer rows if a row would not fill a segment."""
    return batchify(tokens, max(1, min(STATISTICS_ROWS, len(tokens) // (segment + 1))))


def _gradient_scales(model: LanguageModel, train_stream: Tensor, segment: int) -> list[Tensor]:
    """Root mean square of each parameter's gradient over the windows of the training text."""
    squares = [torch.zeros_like(parameter) for parameter in model.parameters()]
    windows, h = windows_per_pass(train_stream, segment), None
    for index in range(windows):
        loss, _, state = model.loss(*window(train_stream, segment, index), h)
        for square, gradient in zip(squares, torch.autograd.grad(loss, list(model.parameters())), strict=True):
            square.addcmul_(gradient, gradient, value=1 / windows)
        h = state.detach()
    return [square.sqrt() for square in squares]
