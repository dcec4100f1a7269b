"""What the layers refuse."""

from __future__ import annotations

from typing import Any, SupportsFloat, SupportsIndex

from torch import Tensor, nn

from wenet_kernels import WenetError
from wenet_kernels.autocast import is_autocast

FORMER_BUFFERS = ("running_mean", "running_var", "running_scale")  # in checkpoints of older runs; no longer used


def check_probability(name: str, value: float, below_one: bool = True) -> None:
    """With `below_one` not all may be dropped."""
    if not isinstance(value, SupportsFloat) or not 0 <= value <= 1 or (below_one and value == 1):
        raise WenetError(f"{name} must lie in 0 <= p {'<' if below_one else '<='} 1, not {value!r}")


def check_input(layer: Any, x: Tensor, time: int = 0) -> None:
    """`time` is the dimension of the steps."""
    if x.dim() != 3 or x.shape[-1] != layer.input_size:
        expected = f"[{'M, T' if time else 'T, M'}, {layer.input_size}]"
        raise WenetError(f"the input must have shape {expected}, not {list(x.shape)}")
    if x.shape[time] == 0:
        raise WenetError(f"the input {list(x.shape)} has no time steps; give at least one")


def check_count(name: str, value: int) -> None:
    if not isinstance(value, SupportsIndex) or value < 1:
        raise WenetError(f"{name} must be at least 1 and an integer, not {value!r}")


def check_tensor(name: str, value: object, weight: Tensor) -> None:
    """Of the type and on the device of a weight, but for what autocast does with types of floating point."""
    if not isinstance(value, Tensor):
        raise WenetError(f"{name} must be a tensor, not of type {type(value).__name__}")
    same = value.dtype == weight.dtype or (value.is_floating_point() and is_autocast(value.device))
    if not same or value.device != weight.device:
        raise WenetError(
            f"{name} is {value.dtype} on {value.device}, but the layer is {weight.dtype} on {weight.device}; "
            "move one with .to()"
        )


def check_state(h0: Tensor, shape: tuple[int, ...], weight: Tensor) -> None:
    if isinstance(h0, tuple):
        raise WenetError("h0 must be one tensor; a cell has no second state like the c0 of an LSTM, leave that out")
    check_tensor("h0", h0, weight)
    if h0.shape != shape:
        raise WenetError(f"h0 must have shape {list(shape)}, not {list(h0.shape)}")


def leave_former_buffers(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Drop from a state that is about to be loaded what layers no longer hold."""
    for name in FORMER_BUFFERS:
        state.pop(prefix + name, None)
