"""GPU memory of the kernels, computed before it is allocated."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wenet_kernels.errors import WenetError
from wenet_kernels.triton.plan import Machine, Shape, choose_tiling


@dataclass(frozen=True)
class Memory:
    """Bytes of a recurrence over some steps, by purpose.

    Attributes:
        operands: copies of the operands, with weights in the type of the products.
        kept: states, gates and candidates of all steps.
        gradients: work space of backward; the factors of the weight gradients are here and in `kept`.
    """

    operands: int
    kept: int
    gradients: int

    @property
    def total(self) -> int:
        return self.operands + self.kept + self.gradients


def count_memory(shape: Shape, steps: int) -> Memory:
    """Bytes of a workspace; parameters, their gradients and optimizer state are not included."""
    s, size = shape, shape.dtype.itemsize
    # Where rows need an end, kernels read and write copies.
    copied = steps * s.networks * s.rows * s.width if s.pitch > s.hidden else 0
    state = s.networks * s.rows * s.pitch
    hidden = s.rows * s.pitch if s.weighted else state
    statistics = steps * s.networks * (s.nodes + 1) * s.hidden if s.norm == "batch" else 0
    weights = s.networks * (s.nodes + 1) * s.hidden * s.width
    tiling = choose_tiling(shape, Machine())
    products = s.networks * (1 if tiling.fused else s.nodes + 1) * s.rows * s.width
    operands = 4 * (copied + (steps + 1) * hidden + 2 * statistics + state + products)
    operands += size * (weights + (steps + 1) * hidden)
    if not s.keep:
        return Memory(operands, 4 * s.states_size + size * s.nodes * state, 0)
    alignment = steps * s.networks * s.nodes * tiling.pieces
    gradients = 4 * (copied + (steps + 1) * hidden + 2 * s.states_size + state + alignment)
    return Memory(
        operands,
        steps * (4 * s.states_size + size * (s.activated_size + s.nodes * state)),
        gradients + steps * size * s.activated_size,
    )


def check_memory(shape: Shape, steps: int, device: torch.device) -> None:
    """Raise `WenetError` if the workspace does not fit into the free memory of a GPU."""
    if device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    needed = count_memory(shape, steps).total
    if needed > free:
        less = "" if shape.precision == "bf16" else ", and so does precision 'bf16'"
        advice = f"fewer networks, rows or steps need less{less}"
        raise WenetError(
            f"the recurrence (cells: {shape.networks}, steps: {steps}) needs {needed / 1e9:.1f} GB of memory and "
            f"{device} has {free / 1e9:.1f} GB left; {advice}"
        )
