"""Rules of the operators for `torch.vmap`: as in `wenet_kernels.batching`, a batch of calls is one call of more
networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from wenet_kernels.batching import Call, Dims, Result, fold, one_by_one, to_front, unfold
from wenet_kernels.programs.evaluation import ProgramEvaluation, ProgramGradients, ProgramRun

# The dimension of an operand that counts networks, or their products and vectors.
_NETWORKS = {"pre": 1, "states": 1, "weight": 0, "vectors": 0}
_EVALUATION = len(ProgramEvaluation._fields)


def cell_rnn(call: Call, size: int, dims: Dims, *arguments: Any) -> Result:
    *operands, keep, backend = to_front(arguments, dims)
    r = ProgramRun(*operands)
    if not _can_fold(dims, r):
        return one_by_one(call, size, dims, arguments)
    output, apart, kept = call(*_folded(size, r, dims).values(), keep, backend)
    # `kept` stays that of all networks together, as `cell_rnn_backward` takes it.
    apart_dim = 2 if apart.dim() > 1 else None
    return (unfold(output, size, 1), unfold(apart, size, apart_dim), kept), (1, apart_dim, None)


def cell_rnn_backward(call: Call, size: int, dims: Dims, *arguments: Any) -> Result:
    grad_output, grad_apart, output, apart, kept, *operands, backend = to_front(arguments, dims)
    r, of_run = ProgramRun(*operands), dims[2 + _EVALUATION :]
    if not any(dim is not None for dim in of_run) or not _can_fold(of_run, r):
        return one_by_one(call, size, dims, arguments)  # as forward ran
    if grad_apart is not None:
        grad_apart = fold(grad_apart, dims[1] is not None, size, 2)
    found = ProgramGradients(
        *call(
            fold(grad_output, dims[0] is not None, size, 1),
            grad_apart,
            fold(output, True, size, 1),
            fold(apart, True, size, 2) if apart.dim() > 2 else apart,
            kept,
            *_folded(size, r, of_run).values(),
            backend,
        )
    )
    each = tuple(unfold(gradient, size, dim) for gradient, dim in zip(found[:-1], _NETWORKS.values(), strict=True))
    return (*each, found.mix), (*_NETWORKS.values(), None)


def _can_fold(dims: Sequence[int | None], r: ProgramRun) -> bool:
    """Whether a batch of calls can be one call of more networks: they must be independent and share a mask."""
    return r.mix is None and dims[ProgramRun.names().index("mask_h")] is None


def _folded(size: int, r: ProgramRun, dims: Sequence[int | None]) -> ProgramRun:
    """All networks of a batch of calls beside one another."""
    batched = {name: dim is not None for name, dim in zip(ProgramRun.names(), dims, strict=False)}
    changes: dict[str, Any] = {
        name: fold(getattr(r, name), batched[name], size, dim) for name, dim in _NETWORKS.items()
    }
    return replace(r, programs="; ".join([r.programs] * size), **changes)
