"""Checks of the operator's arguments."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from wenet_kernels.checks import check_like, check_nan, is_finite
from wenet_kernels.errors import WenetError
from wenet_kernels.programs.batch import ProgramBatch
from wenet_kernels.programs.evaluation import ProgramEvaluation, ProgramRun


def check_run(r: ProgramRun) -> None:
    """Raise `WenetError` unless the operands agree with one another and with the programs."""
    batch = ProgramBatch(r.programs)
    networks = () if r.mix is not None else (batch.count,)
    if r.pre.dim() != 4 or r.states.dim() != 3 + len(networks):
        states = list(r.states.shape)
        raise WenetError(f"pre {list(r.pre.shape)} must be [T, X, M, H], and states {states} [S, M, H] or [S, n, M, H]")
    (steps, _, _, hidden), rows = r.pre.shape, r.states.shape[-2]
    if steps < 1 or hidden < 1:
        raise WenetError(f"pre {list(r.pre.shape)} needs at least one time step and hidden unit")
    check_rows(r.programs, rows)
    expected: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "pre": (r.pre, (steps, batch.of_input, rows, hidden)),
        "states": (r.states, (batch.states, *networks, rows, hidden)),
        "weight": (r.weight, (batch.weights, hidden, hidden)),
        "vectors": (r.vectors, (batch.vectors, hidden)),
        "mix": (r.mix, (batch.count,)),
        "mask_h": (r.mask_h, (rows, hidden)),
    }
    for name, (operand, shape) in expected.items():
        if operand is not None:
            check_like(name, operand, shape, r.pre, "pre")


def check_rows(programs: str, rows: int) -> None:
    """Raise `WenetError` if programs that normalise over the rows have a single one."""
    if rows == 1 and ProgramBatch(programs).normalises:
        raise WenetError("batchnorm needs at least two rows of the data batch, and there is one")


def check_evaluation(
    r: ProgramRun,
    evaluation: ProgramEvaluation,
    shapes: Sequence[tuple[int, ...]],
    grad_output: Tensor,
    grad_apart: Tensor | None,
) -> None:
    """Raise `WenetError` unless `evaluation` and the gradients have the shapes of this run."""
    for name, found, shape in zip(evaluation._fields, evaluation, shapes, strict=True):
        check_like(name, found, shape, r.pre)
    check_like("grad_output", grad_output, shapes[0], r.pre)
    if grad_apart is not None:
        check_like("grad_apart", grad_apart, shapes[1], r.pre)


def check_finite(r: ProgramRun, output: Tensor) -> None:
    """Name the operand that brought NaN into the output. Only on the CPU, where the check needs no synchronisation."""
    if output.device.type != "cpu" or is_finite(output):
        return
    for name in ("pre", "states", "weight", "vectors", "mix", "mask_h"):
        operand = getattr(r, name)
        if operand is not None:
            check_nan(name, operand)
