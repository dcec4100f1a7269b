"""What mixes networks: learned weights, one for each."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Mixing(nn.Module):
    """A layer whose networks are mixed by the softmax of `mix_logits`, `[n]`; None mixes nothing.

    In training a network is left out of a call with probability `mix_dropout`, but never all of them; the other weights
    are scaled to sum to one.
    """

    mix_logits: nn.Parameter | None
    mix_dropout: float

    def mixing_weights(self) -> Tensor | None:
        """`softmax(mix_logits)`, `[n]`; None with independent coupling."""
        return None if self.mix_logits is None else torch.softmax(self.mix_logits, dim=0)

    def _mix(self) -> Tensor | None:
        """The weights of this call, `[n]`, after mix_dropout; None with independent coupling."""
        weights = self.mixing_weights()
        if weights is None:
            return None
        if self.training and self.mix_dropout > 0:
            kept = torch.rand_like(weights) >= self.mix_dropout
            weights = weights * (kept | ~kept.any())
            weights = weights / weights.sum()
        return weights
