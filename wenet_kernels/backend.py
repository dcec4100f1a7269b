"""The backends that can evaluate the operators, and the choice among them."""

import os
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from wenet_kernels import cpu, reference, triton
from wenet_kernels.activations import WITH_REGISTERED, activation_names, registered_among
from wenet_kernels.errors import WenetError, check_choice
from wenet_kernels.recurrence import OPERANDS, PRECISIONS, Evaluation, Gradients, Recurrence


class Backend(Protocol):
    """The interface of a backend module."""

    def status(self) -> str: ...  # "ready", or the reason why not
    def runs_on(self, kind: str) -> bool: ...  # of device, as in `torch.device.type`
    def refusal(self, dtype: torch.dtype, precision: str) -> str: ...  # why it has no such products, or empty
    def kept_shape(
        self,
        steps: int,
        networks: int,
        rows: int,
        hidden: int,
        nodes: int,
        form: str,
        dtype: torch.dtype,
        precision: str,
    ) -> tuple[int, ...]: ...  # of `Evaluation.activated`
    def project(self, x: Tensor, weight: Tensor) -> Tensor: ...
    def project_backward(self, grad_output: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]: ...
    def forward(self, r: Recurrence, keep: bool) -> Evaluation: ...
    def backward(self, r: Recurrence, evaluation: Evaluation, grad_output: Tensor) -> Gradients: ...


BACKENDS: dict[str, Backend] = {"reference": reference, "cpu": cpu, "triton": triton}
PREFERENCE = {"cpu": ("cpu", "reference"), "cuda": ("triton", "reference")}  # by device, best first


def backends(activations: Sequence[str] = ()) -> dict[str, str]:
    """All backends by name, each with "ready" or the reason why it cannot run here or lacks these activations.

    Examples:
        >>> from wenet_kernels import backends
        >>> backends()["reference"]
        'ready'
    """
    return {name: _status(name, activations) for name in BACKENDS}


def resolve_backend(
    backend: str = "auto",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    precision: str = "full",
    activations: Sequence[str] = (),
) -> str:
    """The name of the backend that `dag_rnn` will use for a device, operand type, precision and activations.

    "auto" follows the environment variable WENET_BACKEND; without it, the fastest backend that is ready is chosen.

    Raises:
        WenetError: an explicitly named backend is unknown or cannot run, for the reason given; no other replaces it.
            Or no backend has products of that precision, or an activation is unknown.
    """
    for activation in activations:
        check_choice("activation", activation, activation_names())
    precision = of_products(precision, dtype)
    name = os.environ.get("WENET_BACKEND", "auto") if backend == "auto" else backend
    kind = torch.device(device).type
    if name == "auto":
        obstacles = {}
        for candidate in PREFERENCE.get(kind, ("reference",)):
            obstacles[candidate] = _obstacle(candidate, kind, dtype, precision, activations)
            if not obstacles[candidate]:
                return candidate
        reasons = "; ".join(f"{candidate}: {obstacle}" for candidate, obstacle in obstacles.items())
        raise WenetError(f"no backend on {kind} has precision {precision!r}: {reasons}")
    check_choice("backend", name, ["auto", *BACKENDS])
    obstacle = _obstacle(name, kind, dtype, precision, activations)
    if obstacle:
        raise WenetError(f"backend {name!r} cannot run: {obstacle}")
    return name


def first_possible(precision: str, dtype: torch.dtype, resolve: Callable[[str], str]) -> tuple[str, str]:
    """The backend and precision of a call; precisions separated by "|" are tried in turn.

    Args:
        resolve: gives the backend for a precision.

    Raises:
        WenetError: as `resolve` does, for the last precision.
    """
    *preferred, last = precision.split("|")
    for choice in preferred:
        try:
            return resolve(choice), of_products(choice, dtype)
        except WenetError:
            continue
    return resolve(last), of_products(last, dtype)


def of_products(precision: str, dtype: torch.dtype) -> str:
    """A precision in the words of backends: "full" if it is that of the operands."""
    check_choice("precision", precision, PRECISIONS)
    if precision not in OPERANDS:
        return precision
    if dtype != OPERANDS[precision]:
        raise WenetError(f"precision {precision!r} needs operands of {OPERANDS[precision]}, not {dtype}; convert them")
    return "full"


def _obstacle(name: str, kind: str, dtype: torch.dtype, precision: str, activations: Sequence[str]) -> str:
    """The reason why a backend cannot run these operands and cells on this device; empty if it can."""
    status = _status(name, activations)
    if status != "ready":
        return status
    if not BACKENDS[name].runs_on(kind):
        return f"it does not run on {kind}"
    return BACKENDS[name].refusal(dtype, precision)


def _status(name: str, activations: Sequence[str]) -> str:
    """The status of one backend: the activations it lacks, or else its own status."""
    lacking = registered_among(activations)
    if lacking and name not in WITH_REGISTERED:
        return f"it lacks {', '.join(lacking)}, registered in Python, which only {', '.join(WITH_REGISTERED)} has"
    return BACKENDS[name].status()
