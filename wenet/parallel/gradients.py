"""Gradients of a model that is divided among processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wenet.parallel.ranks import Ranks


class _Copy(torch.autograd.Function):
    """Hands a shared tensor to each rank's part of the model; its gradient is the sum over all parts."""

    @staticmethod
    def forward(ctx: Any, shared: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return shared.view_as(shared)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.sum(grad.clone(memory_format=torch.contiguous_format)), None


def enter_divided(shared: Tensor, ranks: Ranks) -> Tensor:
    """Mark where a divided part of the model begins: the value passes through, its gradient is summed over ranks.

    This is the operator f of Megatron-LM (Shoeybi et al. 2019, section 3); its conjugate g is in `dag_rnn`.
    """
    result: Tensor = _Copy.apply(shared, ranks)
    return result


def clip_gradients(
    shared: Sequence[nn.Parameter], divided: Sequence[nn.Parameter], limit: float, ranks: Ranks
) -> Tensor:
    """Scale all gradients so that their global norm is at most `limit`; returns the norm before scaling.

    Args:
        shared: parameters that every rank has, counted once.
        divided: parameters of which each rank has its own part.
    """
    square = nn.utils.get_total_norm(_gradients(divided)).square()
    norm = (ranks.sum(square) + nn.utils.get_total_norm(_gradients(shared)).square()).sqrt()
    nn.utils.clip_grads_with_norm_([*shared, *divided], limit, norm)
    return norm


def _gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
