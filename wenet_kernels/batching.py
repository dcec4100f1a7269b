"""The operators' rules for `torch.vmap`, which replace a batch of calls by as few calls as possible.

Independent networks form a batch already, so a batch of `B` calls becomes one call of `B * n` networks. A rule takes
the operator, the size of the batch, and for each argument its batch dimension or None; it returns the outputs and their
batch dimensions.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from wenet_kernels import reference
from wenet_kernels.autocast import without_autocast
from wenet_kernels.recurrence import Evaluation, Gradients, Recurrence

Call = Callable[..., Any]
Dims = Sequence[int | None]
Result = tuple[Any, Any]
Batched = dict[str, bool]  # the operands of a recurrence by name

_EVALUATION = len(Evaluation._fields)


def dag_rnn(call: Call, size: int, dims: Dims, *arguments: Any) -> Result:
    *operands, keep, backend = to_front(arguments, dims)
    r, batched = Recurrence(*operands), _batched(dims)
    if not keep and _share_networks(r, batched):
        return _over_rows(call, size, r, batched, backend)
    if not _can_fold(r, batched):
        return one_by_one(call, size, dims, arguments)
    output, activated, mean, var = call(*_folded(size, r, batched).values(), keep, backend)
    # What is kept remains of all networks together, as `dag_rnn_backward` wants it.
    statistics = 1 if r.norm == "batch" else None
    tensors = unfold(output, size, 1), activated, unfold(mean, size, statistics), unfold(var, size, statistics)
    return tensors, (1, None, statistics, statistics)


def dag_rnn_backward(call: Call, size: int, dims: Dims, *arguments: Any) -> Result:
    grad_output, output, activated, mean, var, *operands, backend = to_front(arguments, dims)
    r, batched = Recurrence(*operands), _batched(dims[1 + _EVALUATION :])
    if not any(batched.values()) or not _can_fold(r, batched):
        return one_by_one(call, size, dims, arguments)  # as forward ran
    grad_output, output = fold(grad_output, dims[0] is not None, size, 1), fold(output, True, size, 1)
    if r.norm == "batch":
        mean, var = fold(mean, True, size, 1), fold(var, True, size, 1)
    found = Gradients(*call(grad_output, output, activated, mean, var, *_folded(size, r, batched).values(), backend))
    pre, h0, weight_hidden, weight_nodes = unfold(found.pre, size, 1), *(unfold(x, size, 0) for x in found[1:4])
    return (pre, h0, weight_hidden, weight_nodes, found.mix), (1, 0, 0, 0, None)


def project(call: Call, size: int, dims: Dims, *arguments: Any) -> Result:
    x, weight, backend = to_front(arguments, dims)
    if dims[0] is None:
        return unfold(call(x, weight.flatten(0, 1), backend), size, 0), 0
    if dims[1] is None:
        return unfold(call(x.flatten(0, 1), weight, backend), size, 1), 1
    return _in_full(reference.project, x.unsqueeze(1), weight), 0


def project_backward(call: Call, size: int, dims: Dims, *arguments: Any) -> Result:
    grad_output, x, weight = (
        tensor.unsqueeze(0) if dim is None else tensor
        for tensor, dim in zip(to_front(arguments, dims)[:3], dims, strict=False)
    )  # [B, n, R, G], [B, R, I], [B, n, I, G], or 1 in place of B
    grad_x, grad_weight = _in_full(reference.project_backward, grad_output, x.unsqueeze(1), weight)
    return (grad_x.expand(size, *grad_x.shape[1:]), grad_weight.expand(size, *grad_weight.shape[1:])), (0, 0)


def _in_full(function: Callable[..., Any], *tensors: Tensor) -> Any:
    with without_autocast(tensors[0].device):
        return function(*tensors)


def to_front(arguments: Sequence[Any], dims: Dims) -> list[Any]:
    return [x if dim is None else x.movedim(dim, 0) for x, dim in zip(arguments, dims, strict=True)]


def _batched(dims: Dims) -> Batched:
    return {name: dim is not None for name, dim in zip(Recurrence.names(), dims, strict=False)}


def _can_fold(r: Recurrence, batched: Batched) -> bool:
    """Whether a batch of calls can be one call of more networks: they must be in no mixture and share a mask."""
    return r.mix is None and not batched["mask_h"]


def _share_networks(r: Recurrence, batched: Batched) -> bool:
    """Whether all calls have the same networks, so that a batch of calls is a larger data batch."""
    return r.norm != "batch" and not any(is_batched for name, is_batched in batched.items() if name not in _OF_ROWS)


_OF_ROWS = ("pre", "h0", "mask_h")


def _over_rows(call: Call, size: int, r: Recurrence, batched: Batched, backend: str) -> Result:
    networks = 1 if r.mix is None else 0  # dimensions of networks in front of the rows of a state
    folded = replace(
        r,
        pre=fold(r.pre, batched["pre"], size, 2),
        h0=fold(r.h0, batched["h0"], size, networks),
        mask_h=None if r.mask_h is None else fold(r.mask_h, batched["mask_h"], size, 0),
    )
    output, *others = call(*folded.values(), False, backend)
    return (unfold(output, size, 1 + networks), *others), (1 + networks, None, None, None)


def _folded(size: int, r: Recurrence, batched: Batched) -> Recurrence:
    """The networks of all calls, side by side."""
    changes: dict[str, Any] = {
        name: fold(getattr(r, name), batched[name], size, 1 if name == "pre" else 0)
        for name in ("pre", "h0", "weight_hidden", "weight_nodes", "running_mean", "running_var")
        if getattr(r, name) is not None
    }
    return replace(r, cells="; ".join([r.cells] * size), **changes)


def fold(tensor: Tensor, batched: bool, size: int, dim: int) -> Tensor:
    """Merge the leading batch dimension, if any, into another: `[B, ..., d, ...]` becomes `[..., B * d, ...]`."""
    batch = tensor if batched else tensor.expand(size, *tensor.shape)
    return batch.movedim(0, dim).flatten(dim, dim + 1)


def unfold(tensor: Tensor, size: int, dim: int | None) -> Tensor:
    return tensor if dim is None else tensor.unflatten(dim, (size, -1))


def one_by_one(call: Call, size: int, dims: Dims, arguments: Sequence[Any]) -> Result:
    results = [
        call(*(x if dim is None else x.select(dim, index) for x, dim in zip(arguments, dims, strict=True)))
        for index in range(size)
    ]
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True)), (0,) * len(results[0])
