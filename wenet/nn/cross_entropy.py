"""The decoder's cross-entropy, computed for some rows at a time so that not all logits exist at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 1 << 22  # logits at a time, 16 MiB in single precision: fewer cost more passes over the weights' gradient


def decoder_cross_entropy(features: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of `softmax(features @ weight.T + bias)`, in nats per row.

    Gradients are computed along with the value, chunk by chunk, if any is needed. The precision is that of the weight,
    under autocast too, which leaves losses in full precision.

    Args:
        features: `[N, d]`.
        weight: `[V, d]`, bias: `[V]`.
        targets: `[N]`, word indices.
    """
    loss: Tensor = DecoderLoss.apply(features.to(weight.dtype), weight, bias, targets, torch.is_grad_enabled())
    return loss


class DecoderLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, enabled: bool) -> Tensor:
        wanted = enabled and any(ctx.needs_input_grad)  # which are set under `no_grad` too
        total = features.new_zeros(())
        grads = (torch.empty_like(features), torch.zeros_like(weight), torch.zeros_like(bias)) if wanted else ()
        rows = max(1, CHUNK // len(weight))
        buffers = features.new_empty(2, min(rows, len(features)), len(weight))
        for first in range(0, len(features), rows):
            part = slice(first, first + rows)
            own = targets[part].unsqueeze(1)  # [rows, 1]
            logits, log_probabilities = buffers[:, : len(own)]  # [rows, V]
            torch.addmm(bias, features[part], weight.t(), out=logits)
            torch.log_softmax(logits, 1, out=log_probabilities)
            total -= log_probabilities.gather(1, own).sum()
            if wanted:
                _add_gradients(log_probabilities, own, features, weight, part, grads)
        ctx.save_for_backward(*grads)
        return total / len(features)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        return *(grad * grad_loss for grad in ctx.saved_tensors), None, None


def _add_gradients(
    log_probabilities: Tensor, own: Tensor, features: Tensor, weight: Tensor, part: slice, grads: tuple[Tensor, ...]
) -> None:
    grad_features, grad_weight, grad_bias = grads
    grad_logits = log_probabilities.exp_()
    grad_logits.scatter_add_(1, own, grad_logits.new_full(own.shape, -1.0))
    grad_logits /= len(features)
    torch.mm(grad_logits, weight, out=grad_features[part])
    grad_weight.addmm_(grad_logits.t(), features[part])
    grad_bias += grad_logits.sum(0)
