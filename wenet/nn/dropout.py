"""Variational dropout: one draw per call, shared over time and networks."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


def draw_rows(model: nn.Module, rows: int, own: slice) -> None:
    """Make a model draw dropout for a whole data batch of `rows`, and use only the part for the rows `own`.

    Processes that divide a data batch then draw the same masks as one process with all of it.
    """
    for module in model.modules():
        module.rows_drawn = (rows, own)  # type: ignore[assignment]


def draw_mask(module: nn.Module, x: Tensor, probability: float, features: int) -> Tensor | None:
    """A mask `[M, features]` for all time steps; None outside training."""
    if not module.training or probability == 0:
        return None
    rows, own = getattr(module, "rows_drawn", (x.shape[-2], slice(None)))
    return functional.dropout(x.new_ones(rows, features), probability)[own]


def locked_dropout(module: nn.Module, x: Tensor, probability: float) -> Tensor:
    """Drop features of `[T, M, features]`; networks of `[n, T, M, features]` or `[T, n, M, features]` share a mask."""
    mask = draw_mask(module, x, probability, x.shape[-1])
    return x if mask is None else x * mask


def word_dropout(module: nn.Module, embedded: Tensor, tokens: Tensor, words: int, probability: float) -> Tensor:
    """Zero the embeddings `[..., T, M, d]` of some words among the tokens `[T, M]`; one draw of words per call."""
    if not module.training or probability == 0:
        return embedded
    kept = functional.dropout(embedded.new_ones(words), probability)  # [V]
    return embedded * kept[tokens].unsqueeze(-1)
