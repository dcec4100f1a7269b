"""What a backend is given to run programs, and what it hands back."""

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

    pre: Tensor  # [T, X, M, H] the input times its weights
    states: Tensor  # [S, M, H] weighted, [S, n, M, H] independent: before the first step
    weight: Tensor  # [P, H, H]
    vectors: Tensor  # [V, H]
    mix: Tensor | None  # [n], or None where the networks are independent
    mask_h: Tensor | None  # [M, H]
    programs: str  # `ProgramBatch.text`

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls))

    def values(self) -> tuple[Any, ...]:
        """The operands in their order, as operators take them."""
        return tuple(getattr(self, name) for name in self.names())


class ProgramEvaluation(NamedTuple):
    """What the forward pass leaves behind."""

    output: Tensor  # [T, M, H] weighted, [T, n, M, H] independent
    apart: Tensor  # [R, T, ...] as the output: carried states, but for h where that is the output; empty where R is 0
    kept: Tensor  # what a backend needs for derivatives; empty where it needs nothing, or none are wanted


class ProgramGradients(NamedTuple):
    """Derivatives of a scalar loss; `mix` is empty where the networks are independent."""

    pre: Tensor
    states: Tensor
    weight: Tensor
    vectors: Tensor
    mix: Tensor
