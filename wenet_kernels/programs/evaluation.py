"""The operands and results of a backend that runs programs."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class ProgramRun:
    """The operands of one evaluation of `n` programs over `T` time steps.

    Sizes: M rows of the data batch, H hidden units, S carried states; of all programs together X products that read the
    input, P that read values, and V learned vectors.
    """

    pre: Tensor  # [T, X, M, H] the projected input
    states: Tensor  # [S, M, H] weighted, [S, n, M, H] independent: before the first step
    weight: Tensor  # [P, H, H]
    vectors: Tensor  # [V, H]
    mix: Tensor | None  # [n], or None if the networks are independent
    mask_h: Tensor | None  # [M, H]
    programs: str  # `ProgramBatch.text`
    precision: str  # of the products' factors, as in `Recurrence`

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls))

    def values(self) -> tuple[Any, ...]:
        """The operands in the order in which operators take them."""
        return tuple(getattr(self, name) for name in self.names())


class ProgramEvaluation(NamedTuple):
    """The results of the forward pass."""

    output: Tensor  # [T, M, H] weighted, [T, n, M, H] independent
    apart: Tensor  # [R, T, ...] as the output: carried states, without h if that is the output; empty if R is 0
    kept: Tensor  # for the backward pass; empty if it needs nothing, or no gradients are wanted


class ProgramGradients(NamedTuple):
    """Gradients of a scalar loss; `mix` is empty if the networks are independent."""

    pre: Tensor
    states: Tensor
    weight: Tensor
    vectors: Tensor
    mix: Tensor
