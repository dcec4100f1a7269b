"""Compare results with a reference in double precision; all parity checks use this, on a GPU or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bench.cases import DROPOUT, NODES, Case, Operands
from bench.contestants import evaluate
from wenet_kernels import CellBatch, WenetError

NAMES = ("output", "grad of pre", "grad of h0", "grad of weight_hidden", "grad of weight_nodes", "grad of mix")
# A root mean square below this is a zero up to rounding, and all results are equally correct.
NOTHING = {torch.float64: 1e-10, torch.float32: 1e-5}
# No error may be larger, even if that of eager PyTorch in the same precision is.
MOST = {"full": 1e-3, "tf32": 3e-2, "bf16": 2e-1}


@dataclass(frozen=True)
class Deviation:
    """The error of one tensor and the allowed error, both relative to its norm."""

    tensor: str
    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed  # false for NaN


def relative_error(ours: Tensor, truth: Tensor) -> float:
    """`|ours - truth| / |truth|`.

    Raises:
        WenetError: the truth is zero up to rounding, so a comparison shows nothing.
    """
    truth = truth.detach()
    size = float(truth.norm()) / truth.numel() ** 0.5
    if size <= NOTHING.get(truth.dtype, 1e-10):
        raise WenetError(f"nothing to compare: the truth has a root mean square of {size:.1e}; choose other operands")
    return float((ours.detach().to(truth) - truth).norm() / truth.norm())


def compare(
    truths: Sequence[Tensor], ours: Sequence[Tensor], eager: Sequence[Tensor], most: float = float("inf")
) -> list[Deviation]:
    """Compare an output and its gradients; each error may be twice that of eager PyTorch, plus 1e-5.

    Raises:
        WenetError: a truth is zero but for rounding.
    """
    return [
        Deviation(name, relative_error(own, truth), min(most, 2 * relative_error(peer, truth) + 1e-5))
        for name, own, truth, peer in zip(NAMES, ours, truths, eager, strict=False)
    ]


def check_parity(case: Case, precision: str, backend: str, device: str, seed: int) -> list[Deviation]:
    """Compare a backend with the reference in double precision, for random operands and a random loss derivative."""
    exact = draw_operands(case, seed)
    truths = results(moved(exact, device, torch.float64), "reference")
    eager_type = torch.float32 if precision == "full" else torch.bfloat16
    eager = results(moved(exact, device, eager_type), "reference")
    ours = results(moved(exact, device, torch.float32), backend, precision=precision)
    return compare(truths, ours, eager, MOST[precision])


def results(operands: Operands, backend: str, **options: Any) -> list[Tensor]:
    """The output and the derivatives of all operands, in the order of `NAMES`."""
    output = evaluate(operands, backend, **options)
    return [output.detach(), *torch.autograd.grad(output, operands.leaves, operands.grad_output)]


def draw_operands(case: Case, seed: int) -> Operands:
    """Operands in double precision, large enough to saturate some gates and to leave no activation linear."""
    generator = torch.Generator().manual_seed(seed)
    networks, rows, hidden, width = case.networks, case.rows, case.hidden, case.width

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weighted = case.coupling == "weighted"
    h0 = normal(rows, hidden) if weighted else normal(networks, rows, hidden)
    kept = torch.rand(rows, hidden, generator=generator) > DROPOUT
    return Operands(
        case,
        normal(case.steps, networks, rows, width),
        h0,
        normal(networks, hidden, width) / hidden**0.5,
        normal(networks, NODES, hidden, width) / hidden**0.5,
        torch.softmax(normal(networks), 0) if weighted else None,
        CellBatch.from_genotypes(case.genotypes),
        normal(case.steps, *h0.shape),
        kept.double() / (1 - DROPOUT) if case.masked else None,
    )


def moved(operands: Operands, device: str, dtype: torch.dtype) -> Operands:
    """New leaves of a type on a device."""

    def leaf(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach().to(device, dtype, copy=True).requires_grad_()

    tensors: dict[str, Any] = {
        name: leaf(getattr(operands, name)) for name in ("pre", "h0", "weight_hidden", "weight_nodes", "mix")
    }
    mask = None if operands.mask_h is None else operands.mask_h.to(device, dtype)
    return replace(operands, **tensors, mask_h=mask, grad_output=operands.grad_output.to(device, dtype))
