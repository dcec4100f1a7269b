"""A mixture of softmaxes over the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from wenet.nn.checks import check_probability
from wenet.nn.dropout import locked_dropout

MIXTURE_ROWS = 1024  # rows of scores over the vocabulary that a mixture of softmaxes holds at once


class MixtureOfSoftmaxes(nn.Module):
    """Several softmaxes over the vocabulary, mixed by weights that depend on the context (Yang et al. 2018).

    Args:
        hidden_size: features of the decoder's input, H.
        embedding_size: features of a word, d.
        experts: number of softmaxes, K.
        dropout: on each expert's context, one draw per call, shared over time.
    """

    def __init__(self, hidden_size: int, embedding_size: int, experts: int, dropout: float = 0.0) -> None:
        super().__init__()
        check_probability("dropout", dropout)
        self.experts, self.dropout = experts, dropout
        self.prior = nn.Linear(hidden_size, experts, bias=False)
        self.context = nn.Linear(hidden_size, experts * embedding_size)

    def forward(self, features: Tensor, words: Tensor, bias: Tensor) -> Tensor:
        """Log-probabilities `[T, M, V]` from features `[T, M, H]`, word vectors `[V, d]` and a bias `[V]`."""
        log_prior, contexts = self._experts(features)
        log_softmax = functional.log_softmax(functional.linear(contexts, words, bias), -1)  # [T, M, K, V]
        return torch.logsumexp(log_prior.unsqueeze(-1) + log_softmax, -2)

    def cross_entropy(self, features: Tensor, targets: Tensor, words: Tensor, bias: Tensor) -> Tensor:
        """Mean nats of the targets `[T, M]`; the scores of all positions are never held at once."""
        log_prior, contexts = self._experts(features)
        positions = max(1, MIXTURE_ROWS // self.experts)
        parts = zip(
            log_prior.flatten(0, 1).split(positions),
            contexts.flatten(0, 1).split(positions),
            targets.flatten().split(positions),
            strict=True,
        )
        nats = [
            checkpoint(_mixture_nats, *part, words, bias, use_reentrant=False, preserve_rng_state=False)
            for part in parts
        ]
        return torch.stack(nats).sum() / targets.numel()

    def _experts(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Log weights `[T, M, K]` and contexts `[T, M, K, d]`."""
        contexts = locked_dropout(self, torch.tanh(self.context(features)), self.dropout)
        return functional.log_softmax(self.prior(features), -1), contexts.unflatten(-1, (self.experts, -1))


def _mixture_nats(log_prior: Tensor, contexts: Tensor, targets: Tensor, words: Tensor, bias: Tensor) -> Tensor:
    """Sum of nats of N targets, given the experts' log weights `[N, K]` and contexts `[N, K, d]`."""
    count, experts = log_prior.shape
    scores = functional.linear(contexts.flatten(0, 1), words, bias)  # [N*K, V]
    each = functional.cross_entropy(scores, targets.repeat_interleave(experts), reduction="none")
    return -torch.logsumexp(log_prior - each.view(count, experts), -1).sum()
