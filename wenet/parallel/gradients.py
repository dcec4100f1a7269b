"""Derivatives of a model that is divided over processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wenet.parallel.ranks import Ranks


class _Copy(torch.autograd.Function):
    """What every rank has is read by each rank's own part of the model, so the derivatives of all parts add up."""

    @staticmethod
    def forward(ctx: Any, shared: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return shared.view_as(shared)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.sum(grad.clone(memory_format=torch.contiguous_format)), None


def enter_divided(shared: Tensor, ranks: Ranks) -> Tensor:
    """Where a part of a model that is divided over ranks begins: the same value, its derivative summed over ranks.

    One of a pair of conjugate operators (f of Megatron-LM, Shoeybi et al. 2019, section 3); the other is in `dag_rnn`.
    """
    result: Tensor = _Copy.apply(shared, ranks)
    return result


def clip_gradients(
    shared: Sequence[nn.Parameter], divided: Sequence[nn.Parameter], limit: float, ranks: Ranks
) -> Tensor:
    """Scale gradients to at most a global norm, which is returned as it was: of parameters that every rank has, counted
    once, and of those that each has a part of."""
    square = nn.utils.get_total_norm(_gradients(divided)).square()
    norm = (ranks.sum(square) + nn.utils.get_total_norm(_gradients(shared)).square()).sqrt()
    nn.utils.clip_grads_with_norm_([*shared, *divided], limit, norm)
    return norm


def _gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
