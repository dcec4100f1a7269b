"""Variational dropout: one draw a call, shared over time and over networks."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


def draw_rows(model: nn.Module, rows: int, own: slice) -> None:
    """From now on draw dropout for so many rows of a data batch and use that of the rows `own`, which are all that the
    model is then called with: so the models of several processes, each with a part of a batch, draw alike."""
    for module in model.modules():
        module.rows_drawn = (rows, own)  # type: ignore[assignment]


def draw_mask(module: nn.Module, x: Tensor, probability: float, features: int) -> Tensor | None:
    """A draw of variational dropout, `[M, features]`, shared over time; None outside training."""
    if not module.training or probability == 0:
        return None
    rows, own = getattr(module, "rows_drawn", (x.shape[-2], slice(None)))
    return functional.dropout(x.new_ones(rows, features), probability)[own]


def locked_dropout(module: nn.Module, x: Tensor, probability: float) -> Tensor:
    """Variational dropout of `[T, M, features]`; of `[n, T, M, features]` or `[T, n, M, features]` alike for all n."""
    mask = draw_mask(module, x, probability, x.shape[-1])
    return x if mask is None else x * mask


def word_dropout(module: nn.Module, embedded: Tensor, tokens: Tensor, words: int, probability: float) -> Tensor:
    """Embedded tokens, `[..., T, M, d]` of `[T, M]`, those of some words zero; one draw of words per call."""
    if not module.training or probability == 0:
        return embedded
    kept = functional.dropout(embedded.new_ones(words), probability)  # [V]
    return embedded * kept[tokens].unsqueeze(-1)
