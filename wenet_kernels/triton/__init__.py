"""Fused GPU kernels in Triton: a launch or two per time step of all networks, one CUDA graph per sequence."""

from __future__ import annotations

import functools
import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wenet_kernels.recurrence import Evaluation, Gradients, Recurrence
from wenet_kernels.reference import project, project_backward

if TYPE_CHECKING:
    from wenet_kernels.triton.pool import Lane, Pool

# The projection of the input is one large product, which PyTorch's library does best.
__all__ = ["backward", "forward", "kept_shape", "project", "project_backward", "refusal", "runs_on", "status"]

INTERPRETER_VARIABLE = "TRITON_INTERPRET"  # read by Triton when it is imported


def status() -> str:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not torch.cuda.is_available() and not _interpreted():
        return "no CUDA device"
    return "ready"


def runs_on(kind: str) -> bool:
    """Whether kernels run on this kind of device: a GPU, or in Triton's interpreter, for tests, also the CPU."""
    return kind == "cuda" or (kind == "cpu" and _interpreted())


def refusal(dtype: torch.dtype, precision: str) -> str:
    if dtype != torch.float32:
        return f"it has no products of {dtype} in precision {precision!r}"
    if precision == "bf16" and not _has_bf16():
        return "Triton's interpreter computes bf16 products wrongly" if _interpreted() else "this GPU has no bf16"
    if precision == "tf32" and not _has_tf32():
        return "this GPU has no tf32"
    return ""


def kept_shape(
    steps: int, networks: int, rows: int, hidden: int, nodes: int, form: str, dtype: torch.dtype, precision: str
) -> tuple[int, ...]:
    """The shape of the kept tensor: for each step states, then gates and candidates in the products' type, as fp32."""
    from wenet_kernels.triton.plan import Shape
    from wenet_kernels.triton.workspace import kept_words

    shape = Shape(networks, rows, hidden, nodes, form, "none", precision, weighted=True, masked=False, keep=True)
    return steps, kept_words(shape)


def forward(r: Recurrence, keep: bool) -> Evaluation:
    """Evaluate all cells over all time steps; `keep` stores what backward needs."""
    steps = len(r.pre)
    with _on_device_of(r.pre), _pool().lock:
        lane = _lane(r, keep)
        workspace = lane.workspace
        workspace.load(r)
        lane.run("forward", steps, workspace.forward)
        statistics = steps if r.norm == "batch" else 0
        return Evaluation(
            workspace.states_of(workspace.hidden[1 : steps + 1]).clone(memory_format=torch.contiguous_format),
            lane.hand_out(steps) if keep else r.pre.new_empty(0),
            workspace.mean[:statistics].clone() if statistics else r.pre.new_empty(0),
            workspace.var[:statistics].clone() if statistics else r.pre.new_empty(0),
        )


def backward(r: Recurrence, evaluation: Evaluation, grad_output: Tensor) -> Gradients:
    """The derivatives of a loss, given its derivative with respect to the output."""
    steps = len(r.pre)
    with _on_device_of(r.pre), _pool().lock:
        lane = _pool().holding(evaluation.activated) or _restored(r, evaluation)
        workspace = lane.workspace
        workspace.allocate_gradients()
        workspace.states_of(workspace.grad_hidden[1 : steps + 1]).copy_(grad_output)
        workspace.lend(0, r.pre)
        grad_pre = torch.empty_like(r.pre)
        copy = workspace.lend(1, grad_pre)
        lane.run("backward", steps, workspace.backward)
        if copy is not None:
            grad_pre.unflatten(-1, copy.shape[-2:]).copy_(copy)
        grads = Gradients(
            grad_pre,
            workspace.states_of(workspace.grad_hidden[0]).clone(memory_format=torch.contiguous_format),
            torch.empty(r.weight_hidden.shape, dtype=r.pre.dtype, device=r.pre.device),
            torch.empty(r.weight_nodes.shape, dtype=r.pre.dtype, device=r.pre.device),
            r.pre.new_empty(0) if r.mix is None else workspace.grad_mix(steps),
        )
        workspace.weight_gradients(steps, grads.weight_hidden, grads.weight_nodes)
        return grads


def _lane(r: Recurrence, keep: bool) -> Lane:
    """A lane for this call. Calls recorded in a user's CUDA graph get their own, which later calls leave alone."""
    from wenet_kernels.triton.plan import Shape

    shape, steps, device = Shape.of(r, keep), len(r.pre), r.pre.device
    if _captured(device):
        return _pool().make_captured(shape, steps, device)
    return _pool().take(shape, steps, device)


def _captured(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _restored(r: Recurrence, evaluation: Evaluation) -> Lane:
    """A lane in the state after forward, for a kept tensor that has been moved or copied since."""
    steps = len(r.pre)
    lane = _lane(r, keep=True)
    lane.workspace.load(r)
    lane.workspace.restore(steps, evaluation.output, evaluation.activated)
    if r.norm == "batch":
        lane.workspace.var[:steps].copy_(evaluation.var)
    return lane


def _on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    return torch.cuda.device_of(tensor) if tensor.is_cuda else nullcontext()


@functools.cache
def _pool() -> Pool:
    from wenet_kernels.triton.pool import Pool

    return Pool()


def _has_bf16() -> bool:
    """Whether the GPU multiplies bf16; the interpreter computes such products wrongly."""
    return not _interpreted() and torch.cuda.is_bf16_supported(including_emulation=False)


def _has_tf32() -> bool:
    """Whether the GPU multiplies tf32: NVIDIA's since Ampere, and AMD's of one architecture."""
    if _interpreted():
        return True
    if torch.version.hip is not None:
        return torch.cuda.get_device_properties().gcnArchName.split(":")[0] == "gfx942"
    return torch.cuda.get_device_capability() >= (8, 0)


def _interpreted() -> bool:
    return os.environ.get(INTERPRETER_VARIABLE) == "1"
