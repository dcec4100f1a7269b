"""The backends that run programs, and the choice among them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from wenet_kernels.backend import first_possible, of_products
from wenet_kernels.errors import WenetError, check_choice
from wenet_kernels.programs import cpu, reference, triton
from wenet_kernels.programs.batch import ProgramBatch
from wenet_kernels.programs.evaluation import ProgramEvaluation, ProgramGradients, ProgramRun
from wenet_kernels.reference import refusal
from wenet_kernels.registration import vjp


class Backend(Protocol):
    """The interface of a backend."""

    # Why it cannot run on this device, has no such products, or cannot compare so many rows; empty if it can.
    def obstacle(self, kind: str, dtype: torch.dtype, precision: str, compared_rows: int) -> str: ...
    def kept_shape(self, r: ProgramRun) -> tuple[int, ...]: ...  # of `ProgramEvaluation.kept`
    def forward(self, r: ProgramRun, keep: bool) -> ProgramEvaluation: ...
    def backward(
        self, r: ProgramRun, evaluation: ProgramEvaluation, grad_output: Tensor, grad_apart: Tensor | None
    ) -> ProgramGradients: ...


class Reference:
    """PyTorch's own operators, differentiated by autograd."""

    def obstacle(self, kind: str, dtype: torch.dtype, precision: str, compared_rows: int) -> str:
        return refusal(dtype, precision)

    def kept_shape(self, r: ProgramRun) -> tuple[int, ...]:
        return (0,)

    def forward(self, r: ProgramRun, keep: bool) -> ProgramEvaluation:
        output, apart = reference.forward(r)
        return ProgramEvaluation(output, apart, output.new_empty(0))

    def backward(
        self, r: ProgramRun, evaluation: ProgramEvaluation, grad_output: Tensor, grad_apart: Tensor | None
    ) -> ProgramGradients:
        found = pulled_back(r.values(), grad_output, grad_apart)
        pre = torch.empty_like(r.pre).copy_(found.pre)  # in its layout, which compilers rely on
        return ProgramGradients(pre, *(each.contiguous() for each in found[1:]))


BACKENDS: dict[str, Backend] = {"reference": Reference(), "cpu": cpu, "triton": triton}
PREFERENCE = {"cpu": ("cpu", "reference"), "cuda": ("triton", "reference")}  # by device, best first


def resolve_backend(
    backend: str, device: torch.device, dtype: torch.dtype, precision: str = "full", compared_rows: int = 0
) -> str:
    """The name of the backend that runs programs on a device; "auto" as in `wenet_kernels.resolve_backend`.

    Args:
        compared_rows: rows of the data batch, if the programs normalise over them; else 0.

    Raises:
        WenetError: the named backend is unknown or cannot run, with the reason; nothing replaces it. Or none has
            products of that precision.
    """
    precision = of_products(precision, dtype)
    name = os.environ.get("WENET_BACKEND", "auto") if backend == "auto" else backend
    check_choice("backend", name, ["auto", *BACKENDS])
    reasons = {}
    for candidate in PREFERENCE.get(device.type, ("reference",)) if name == "auto" else (name,):
        reasons[candidate] = BACKENDS[candidate].obstacle(device.type, dtype, precision, compared_rows)
        if not reasons[candidate]:
            return candidate
    raise WenetError("; ".join(f"backend {each!r} cannot run: {reason}" for each, reason in reasons.items()))


def settled(backend: str, operand: Tensor, precision: str, programs: str) -> tuple[str, str]:
    """The backend and precision of a call with such an operand, `[..., M, columns]`."""
    device, dtype = operand.device, operand.dtype
    several = operand.dim() > 1 and ProgramBatch(programs).normalises  # shapes are checked later
    compared_rows = operand.shape[-2] if several else 0
    return first_possible(
        precision, dtype, lambda choice: resolve_backend(backend, device, dtype, choice, compared_rows)
    )


def pulled_back(operands: Sequence[object], grad_output: Tensor, grad_apart: Tensor | None) -> ProgramGradients:
    """Gradients of all operands by functions that PyTorch can differentiate again."""
    variables = [operand for operand in operands[: len(ProgramGradients._fields)] if operand is not None]
    given = [position for position in range(len(ProgramGradients._fields)) if operands[position] is not None]

    def outputs(*variables: Tensor) -> tuple[Tensor, ...]:
        filled = list(operands)
        for position, variable in zip(given, variables, strict=True):
            filled[position] = variable
        output, apart = reference.forward(ProgramRun(*filled))  # type: ignore[arg-type]
        return (output,) if grad_apart is None else (output, apart)

    _, pull_back = vjp(outputs, *variables)
    found = pull_back((grad_output,) if grad_apart is None else (grad_output, grad_apart))
    return ProgramGradients(*found, *[grad_output.new_empty(0)] * (len(ProgramGradients._fields) - len(found)))
