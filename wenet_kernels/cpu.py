"""The native kernels of `csrc/cpu`: the equations fused, on as many threads as PyTorch uses."""

from __future__ import annotations

import functools
import math
import os
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wenet_kernels.checks import check_finite_projection
from wenet_kernels.native import absence
from wenet_kernels.ranks import sum_over_ranks
from wenet_kernels.recurrence import Evaluation, Gradients, Recurrence

if TYPE_CHECKING:
    from wenet_kernels import _native
else:
    from wenet_kernels.native import native as _native

INSTRUCTION_SET_VARIABLE = "WENET_INSTRUCTION_SET"
# Read once, because torch.compile cannot trace native functions.
KERNEL_SETS: tuple[str, ...] = () if _native is None else tuple(_native.kernel_sets())
BF16_KERNEL_SETS: tuple[str, ...] = () if _native is None else tuple(_native.bf16_kernel_sets())


def status() -> str:
    if _native is None:
        return absence()
    wanted = os.environ.get(INSTRUCTION_SET_VARIABLE, "auto")
    if wanted not in ("auto", *KERNEL_SETS):
        return f"{INSTRUCTION_SET_VARIABLE}={wanted}, but this processor runs {', '.join(KERNEL_SETS)}"
    return "ready"


def runs_on(kind: str) -> bool:
    return kind == "cpu"


def refusal(dtype: torch.dtype, precision: str) -> str:
    if precision == "bf16" and dtype == torch.float32:
        return _bf16_refusal()
    if precision == "full" and dtype in (torch.float32, torch.float64):
        return ""
    return f"it has no products of {dtype} in precision {precision!r}"


def _bf16_refusal() -> str:
    if not BF16_KERNEL_SETS:
        return "this processor multiplies no bf16, only fp32 and fp64"
    wanted = os.environ.get(INSTRUCTION_SET_VARIABLE, "auto")
    if wanted not in ("auto", *BF16_KERNEL_SETS):
        return f"{INSTRUCTION_SET_VARIABLE}={wanted} does not multiply bf16, but {', '.join(BF16_KERNEL_SETS)} does"
    return ""


def kept_shape(
    steps: int, networks: int, rows: int, hidden: int, nodes: int, form: str, dtype: torch.dtype, precision: str
) -> tuple[int, ...]:
    """The shape of gates and candidates, in blocks of as many hidden units as a vector holds."""
    width = kernels(dtype, "full").width
    vectors = -(-hidden // width) * (2 if form == "highway" else 1)
    return networks, steps, nodes + 1, vectors, rows, width


def forward(r: Recurrence, keep: bool) -> Evaluation:
    """Evaluate all cells over all time steps; `keep` stores what backward needs."""
    steps, networks, _, hidden, nodes = r.sizes
    statistics = (steps, networks, nodes + 1, hidden) if r.norm == "batch" else (0,)
    evaluation = Evaluation(
        r.pre.new_empty(steps, *r.h0.shape),
        reusable(kept_shape(*r.sizes, r.form, r.pre.dtype, r.precision), r.pre.dtype) if keep else r.pre.new_empty(0),
        r.pre.new_empty(statistics),
        r.pre.new_empty(statistics),
    )
    operands = _laid_out(r)
    between_steps = (lambda t: sum_over_ranks(evaluation.output[t])) if r.all_ranks else None
    kernels(r.pre.dtype, r.precision).forward(_recurrence(operands), _evaluation(evaluation), between_steps)
    return evaluation


def backward(r: Recurrence, evaluation: Evaluation, grad_output: Tensor) -> Gradients:
    """The derivatives of a loss, given its derivative with respect to the output."""
    operands = _laid_out(r)
    grads = Gradients(
        reusable(r.pre.shape, r.pre.dtype).as_strided(r.pre.shape, operands.pre.stride()),
        torch.empty_like(operands.h0),
        reusable(r.weight_hidden.shape, r.pre.dtype),
        reusable(r.weight_nodes.shape, r.pre.dtype),
        r.pre.new_empty(0 if r.mix is None else r.mix.shape),
    )
    addresses = _native.Gradients()
    addresses.output = grad_output.data_ptr()
    for name in grads._fields:
        setattr(addresses, name, getattr(grads, name).data_ptr())
    # Each step passes its derivative to the step before in the memory that finally holds the derivative of h0.
    between_steps = (lambda t: sum_over_ranks(grads.h0)) if r.all_ranks else None
    kernels(r.pre.dtype, r.precision).backward(_recurrence(operands), _evaluation(evaluation), addresses, between_steps)
    if grads.pre.stride() == torch.empty_like(r.pre, device="meta").stride():
        return grads
    return grads._replace(pre=torch.empty_like(r.pre).copy_(grads.pre))


def project(x: Tensor, weight: Tensor) -> Tensor:
    """The product of `[R, I]` with each network's `[I, G]`, as `[n, R, G]`."""
    x, weight = x.contiguous(), weight.contiguous()
    output = reusable((weight.shape[0], x.shape[0], weight.shape[2]), x.dtype)
    if not kernels(x.dtype, "full").project(_projection(x, weight, output)):
        check_finite_projection(x, weight, output)
    return output


def project_backward(grad_output: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives with respect to input and weights."""
    grad_output, x, weight = grad_output.contiguous(), x.contiguous(), weight.contiguous()
    grad_x, grad_weight = reusable(x.shape, x.dtype), reusable(weight.shape, x.dtype)
    native = _projection(x, weight, grad_output)
    native.grad_input, native.grad_weight = grad_x.data_ptr(), grad_weight.data_ptr()
    kernels(x.dtype, "full").project_backward(native)
    return grad_x, grad_weight


def _projection(x: Tensor, weight: Tensor, output: Tensor) -> _native.Projection:
    native = _native.Projection()
    native.rows, native.inputs = x.shape
    native.networks, _, native.columns = weight.shape
    native.threads = torch.get_num_threads()
    native.input, native.weight, native.output = x.data_ptr(), weight.data_ptr(), output.data_ptr()
    return native


def kernels(dtype: torch.dtype, precision: str) -> _native.Kernels:
    """Those for operands of a type and products of a precision."""
    factor = "bf16" if precision == "bf16" else "fp64" if dtype == torch.float64 else "fp32"
    return _kernels_of(os.environ.get(INSTRUCTION_SET_VARIABLE, "auto"), factor)


@functools.cache
def _kernels_of(instruction_set: str, factor: str) -> _native.Kernels:
    return _native.Kernels(instruction_set, getattr(_native.Factor, factor))


# Of tensors for which the allocator of PyTorch asks the system for new pages each time, as malloc does.
_NEEDS_PAGES = 1 << 17


def reusable(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor whose memory the next call can reuse without new pages from the system."""
    size = math.prod(shape) * dtype.itemsize
    if size < _NEEDS_PAGES:
        return torch.empty(shape, dtype=dtype, device="cpu")
    tensor = torch.frombuffer(_native.Block(size), dtype=dtype)
    return tensor.resize_(shape)  # a view would have a base, which autograd tracks


def _laid_out(r: Recurrence) -> Recurrence:
    """The operands in the layout of the kernels: contiguous, except that `pre` may have networks before steps."""
    contiguous: dict[str, Any] = {
        field.name: value.contiguous()
        for field in fields(r)
        if isinstance(value := getattr(r, field.name), Tensor) and field.name != "pre"
    }
    by_network = r.pre.transpose(0, 1).is_contiguous()
    return replace(r, pre=r.pre if by_network else r.pre.contiguous(), **contiguous)


def _recurrence(r: Recurrence) -> _native.Recurrence:
    native = _native.Recurrence()
    native.steps, native.networks, native.rows, native.hidden, native.nodes = r.sizes
    native.highway, native.weighted = r.highway, r.mix is not None
    native.norm = getattr(_native.Norm, r.norm)
    native.threads = torch.get_num_threads()
    native.pre_step_stride, native.pre_network_stride = r.pre.stride()[:2]
    for field in fields(r):
        value = getattr(r, field.name)
        if isinstance(value, Tensor):
            setattr(native, field.name, value.data_ptr())
    for name, table in r.tables._asdict().items():
        setattr(native, name, table.data_ptr())
    return native


def _evaluation(evaluation: Evaluation) -> _native.Evaluation:
    native = _native.Evaluation()
    native.output, native.kept = evaluation.output.data_ptr(), evaluation.activated.data_ptr()
    native.mean, native.var = evaluation.mean.data_ptr(), evaluation.var.data_ptr()
    return native
