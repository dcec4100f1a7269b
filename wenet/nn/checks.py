"""Checks of layers' arguments."""

from __future__ import annotations

from typing import Any, SupportsFloat, SupportsIndex

from torch import Tensor, nn

from wenet_kernels import ProgramBatch, WenetError
from wenet_kernels.autocast import is_autocast

FORMER_BUFFERS = ("running_mean", "running_var", "running_scale")  # in checkpoints of older runs, no longer used


def check_probability(name: str, value: float, below_one: bool = True) -> None:
    """Refuse a probability outside 0..1; with `below_one` also 1 itself, which would drop everything."""
    if not isinstance(value, SupportsFloat) or not 0 <= value <= 1 or (below_one and value == 1):
        raise WenetError(f"{name} must lie in 0 <= p {'<' if below_one else '<='} 1, not {value!r}")


def check_input(layer: Any, x: Tensor, time: int = 0) -> None:
    """Refuse an input of the wrong shape; `time` is its dimension of time steps."""
    if x.dim() != 3 or x.shape[-1] != layer.input_size:
        expected = f"[{'M, T' if time else 'T, M'}, {layer.input_size}]"
        raise WenetError(f"the input must have shape {expected}, not {list(x.shape)}")
    if x.shape[time] == 0:
        raise WenetError(f"the input {list(x.shape)} has no time steps; give at least one")


def check_no_end(cells: object, ended: Tensor) -> None:
    """Refuse cells that compare the rows of a batch if some have ended, which no other row may see.

    Args:
        cells: of a layer.
        ended: whether a row has no such step any more, of any shape.
    """
    if isinstance(cells, ProgramBatch) and cells.normalises and bool(ended.any()):
        raise WenetError("batchnorm compares the rows of a batch, so all sequences of one must be equally long")


def check_count(name: str, value: int) -> None:
    if not isinstance(value, SupportsIndex) or value < 1:
        raise WenetError(f"{name} must be at least 1 and an integer, not {value!r}")


def check_tensor(name: str, value: object, weight: Tensor) -> None:
    """Refuse a value of another type or device than a weight; under autocast, any floating-point type passes."""
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
        raise WenetError("h0 must be one tensor; a cell has no second state like the c0 of an LSTM, so leave it out")
    check_tensor("h0", h0, weight)
    if h0.shape != shape:
        raise WenetError(f"h0 must have shape {list(shape)}, not {list(h0.shape)}")


def check_states(h0: object, carried: int, shape: tuple[int, ...], weight: Tensor) -> list[Tensor]:
    """The first states of a layer of cells as a list, one tensor where a cell carries one."""
    if carried == 1:
        check_state(h0, shape, weight)  # type: ignore[arg-type]
        return [h0]  # type: ignore[list-item]
    if not isinstance(h0, tuple | list) or len(h0) != carried:
        raise WenetError(f"the first states must be a tuple of {carried} tensors, as this cell carries so many")
    for state in h0:
        check_state(state, shape, weight)
    return list(h0)


def leave_former_buffers(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Before a state dict is loaded, drop the buffers that layers no longer have."""
    for name in FORMER_BUFFERS:
        state.pop(prefix + name, None)
