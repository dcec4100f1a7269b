"""The inputs and outputs of a backend, with all shapes of the recurrence."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wenet_kernels.cells import CellBatch, Tables

FORMS = ("highway", "plain")
COUPLINGS = ("weighted", "independent")
NORMS = ("none", "batch", "running")
OPERANDS = {"fp32": torch.float32, "fp64": torch.float64}  # the operand type that a precision requires
PRECISIONS = ("full", *OPERANDS, "tf32", "bf16")

# Added to the variance before the square root, as in `torch.nn.BatchNorm1d`.
NORM_EPS = 1e-5


@dataclass(frozen=True)
class Recurrence:
    """The operands of one evaluation of `n` cells over `T` time steps.

    Sizes: T time steps, n networks, L nodes, M rows of the data batch, H hidden units, and G columns of a weight:
    2H in the highway form (gate and candidate side by side), H in the plain form.
    """

    pre: Tensor  # [T, n, M, G] (x * mask_x) @ weight_input
    h0: Tensor  # [M, H] weighted, [n, M, H] independent
    weight_hidden: Tensor  # [n, H, G]
    weight_nodes: Tensor  # [n, L, H, G]
    mix: Tensor | None  # [n]; None for independent networks
    mask_h: Tensor | None  # [M, H]
    running_mean: Tensor | None  # [n, L+1, H], only with norm == "running"
    running_var: Tensor | None  # [n, L+1, H]
    cells: str  # `CellBatch.text`
    form: str  # "highway" or "plain"
    norm: str  # "none", "batch" or "running"
    precision: str  # of the products' factors: "full", "tf32" or "bf16"
    all_ranks: bool = False  # whether the mixture has networks in other processes

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls))

    def values(self) -> tuple[Any, ...]:
        """The operands in the order in which operators take them."""
        return tuple(getattr(self, name) for name in self.names())

    @cached_property
    def tables(self) -> Tables:
        """The cells' tables on the operands' device."""
        return CellBatch(self.cells).tables(self.pre.device)

    @property
    def ancestor(self) -> Tensor:
        return self.tables.ancestor

    @property
    def activation(self) -> Tensor:
        return self.tables.activation

    @property
    def concat(self) -> Tensor:
        return self.tables.concat

    @property
    def highway(self) -> bool:
        return self.form == "highway"

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """T, n, M, H, L."""
        steps, networks, rows, _ = self.pre.shape
        return steps, networks, rows, self.h0.shape[-1], self.weight_nodes.shape[1]


class TracedRecurrence(Recurrence):
    """Operands under a transform or a tracer. Its tensors must not outlive it, so the tables are made anew."""

    @cached_property
    def tables(self) -> Tables:
        return CellBatch(self.cells).new_tables(self.pre.device)


class Evaluation(NamedTuple):
    """The results of the forward pass; the last three tensors are empty if nothing has to be kept."""

    output: Tensor  # [T, M, H] weighted, [T, n, M, H] independent
    activated: Tensor  # [T, n, L+1, M, G] gate and candidate after activation; plain: only candidate
    mean: Tensor  # [T, n, L+1, H] of the batch, if norm == "batch"
    var: Tensor  # [T, n, L+1, H] biased


class Gradients(NamedTuple):
    """Derivatives of a scalar loss; `mix` is empty for independent networks."""

    pre: Tensor
    h0: Tensor
    weight_hidden: Tensor
    weight_nodes: Tensor
    mix: Tensor
