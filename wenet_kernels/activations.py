"""The activations of nodes: built-in ones, which every backend has, and ones registered by a program."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from wenet_kernels.errors import WenetError

# The position of a name in this tuple is its code in `CellBatch.activation`, in every backend.
ACTIVATIONS: tuple[str, ...] = ("tanh", "relu", "sigmoid", "identity")
WITH_REGISTERED = ("reference",)  # backends that can call Python functions; others are compiled

POINTS = (-2.3, -0.7, -0.1, 0.2, 0.9, 3.1)  # where a derivative is compared with finite differences
STEP, TOLERANCE = 1e-6, 1e-5


class Activation(NamedTuple):
    """An elementwise function of a tensor, and its derivative."""

    forward: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]


# By name, in order of registration; their codes follow those of `ACTIVATIONS`.
REGISTERED: dict[str, Activation] = {}


def register_activation(name: str, forward: Callable[[Tensor], Tensor], derivative: Callable[[Tensor], Tensor]) -> None:
    """Add an activation to the space of cells for the rest of this process; `"name0"` is then a node with it.

    Only the backend "reference" supports it; "auto" chooses that backend for cells that use it.

    Args:
        name: lower-case letters.
        forward: the elementwise function u -> f(u) of a tensor; it keeps shape and type.
        derivative: u -> f'(u), likewise, as a function of u and not of f(u).

    Raises:
        WenetError: the name is taken or not allowed, or the functions disagree.

    Examples:
        >>> import wenet
        >>> wenet.register_activation("softsign", lambda u: u / (1 + u.abs()), lambda u: (1 + u.abs()) ** -2)
        >>> wenet.Genotype.from_text("softsign0 relu1").activations
        ('softsign', 'relu')
    """
    if not re.fullmatch("[a-z]+", name) or name == "mean":
        raise WenetError(f"{name!r} cannot name an activation; use lower-case letters, and not 'mean'")
    if name in activation_names():
        raise WenetError(f"there is an activation {name!r} already")
    _check_derivative(name, forward, derivative)
    REGISTERED[name] = Activation(forward, derivative)


def activation_names() -> tuple[str, ...]:
    """The names of all activations; the position of a name is its code."""
    return (*ACTIVATIONS, *REGISTERED)


def registered_among(names: Iterable[str]) -> tuple[str, ...]:
    """The registered activations among some names, each once."""
    return tuple(name for name in dict.fromkeys(names) if name not in ACTIVATIONS)


def _check_derivative(name: str, forward: Callable[[Tensor], Tensor], derivative: Callable[[Tensor], Tensor]) -> None:
    u = torch.tensor(POINTS, dtype=torch.float64)
    found, slope = forward(u), derivative(u)
    for value in (found, slope):
        if value.shape != u.shape or value.dtype != u.dtype:
            raise WenetError(f"activation {name!r} must keep the shape and type of its argument")
    expected = (forward(u + STEP) - forward(u - STEP)) / (2 * STEP)
    wrong = (slope - expected).abs() > TOLERANCE * (1 + expected.abs())
    if bool(wrong.any()):
        at = u[wrong][0].item()
        raise WenetError(
            f"the derivative of activation {name!r} at {at:g} is {slope[wrong][0]:.6g}, but its slope there is "
            f"{expected[wrong][0]:.6g}"
        )
