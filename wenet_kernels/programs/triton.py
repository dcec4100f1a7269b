"""Programs in the Triton kernels of `wenet_kernels/triton/programs.py`, on GPUs and in Triton's interpreter."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from wenet_kernels import triton
from wenet_kernels.programs.evaluation import ProgramEvaluation, ProgramGradients, ProgramRun


def obstacle(kind: str, dtype: torch.dtype, precision: str, compared_rows: int) -> str:
    """The reason why it cannot run on this kind of device, has no such products, or cannot compare so many rows of the
    data batch; empty if it can."""
    status = triton.status()
    if status != "ready":
        return status
    if not triton.runs_on(kind):
        return f"it does not run on {kind}"
    if dtype == torch.float32 and precision != "full":
        return f"it has no products of {precision} for cells that are programs"
    if compared_rows and (most := _most_rows()) < compared_rows:
        return (
            f"batchnorm compares all rows, and its programs hold {most} of {compared_rows}; use smaller batches, or "
            "backend 'reference'"
        )
    return triton.refusal(dtype, precision)


def _most_rows() -> int:
    from wenet_kernels.triton.program_launches import MOST_ROWS

    return MOST_ROWS


def kept_shape(r: ProgramRun) -> tuple[int, ...]:
    """The matrices of states and of what backward reads, over time."""
    from wenet_kernels.triton.program_tables import lower

    steps, _, rows, hidden = r.pre.shape
    return lower(r.programs, r.mix is not None, True).over_time(steps), rows, hidden


def forward(r: ProgramRun, keep: bool) -> ProgramEvaluation:
    """Run all programs over all time steps; `keep` stores what backward needs."""
    from wenet_kernels.triton.program_launches import ProgramLaunches

    with _on_device_of(r.pre):
        evaluation, memory = ProgramLaunches(_laid_out(r), keep).forward()
        return evaluation._replace(kept=memory) if keep else evaluation


def backward(
    r: ProgramRun, evaluation: ProgramEvaluation, grad_output: Tensor, grad_apart: Tensor | None
) -> ProgramGradients:
    """Gradients of a loss, given its gradients with respect to the output and the states apart from it."""
    from wenet_kernels.triton.program_launches import ProgramLaunches

    with _on_device_of(r.pre):
        launches = ProgramLaunches(_laid_out(r), keep=True)
        found = launches.backward(evaluation.kept.contiguous(), grad_output, grad_apart)
        return found if r.pre.is_contiguous() else found._replace(pre=torch.empty_like(r.pre).copy_(found.pre))


def _laid_out(r: ProgramRun) -> ProgramRun:
    """The operands in the layout of the kernels: contiguous, except that `pre` may have steps or columns first."""
    rows_follow = r.pre.transpose(0, 1).is_contiguous()
    return replace(
        r,
        pre=r.pre if rows_follow else r.pre.contiguous(),
        states=r.states.contiguous(),
        weight=r.weight.contiguous(),
        vectors=r.vectors.contiguous(),
        mix=None if r.mix is None else r.mix.contiguous(),
        mask_h=None if r.mask_h is None else r.mask_h.contiguous(),
    )


def _on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    return torch.cuda.device_of(tensor) if tensor.is_cuda else nullcontext()
