"""Checks of the operators' arguments, whoever calls them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from wenet_kernels.cells import CellBatch
from wenet_kernels.errors import WenetError, check_choice
from wenet_kernels.recurrence import FORMS, NORMS, Evaluation, Recurrence

Shape = tuple[int, ...]


def check_recurrence(r: Recurrence) -> None:
    """Raise `WenetError` unless the operands agree with one another and with the cells."""
    _check_options(r)
    cells = CellBatch(r.cells)
    if r.pre.dim() != 4 or r.h0.dim() < 2:
        raise WenetError(f"pre {list(r.pre.shape)} must be [T, n, M, G] and h0 {list(r.h0.shape)} [M, H] or [n, M, H]")
    steps, _, rows, _ = r.pre.shape
    hidden = r.h0.shape[-1]
    count, nodes = cells.count, cells.nodes
    width = 2 * hidden if r.highway else hidden
    if steps < 1 or hidden < 1:
        raise WenetError(f"pre {list(r.pre.shape)} and h0 {list(r.h0.shape)} need at least one time step and unit")
    statistics = (count, nodes + 1, hidden)
    expected: dict[str, tuple[Tensor | None, Shape]] = {
        "pre": (r.pre, (steps, count, rows, width)),
        "h0": (r.h0, (rows, hidden) if r.mix is not None else (count, rows, hidden)),
        "weight_hidden": (r.weight_hidden, (count, hidden, width)),
        "weight_nodes": (r.weight_nodes, (count, nodes, hidden, width)),
        "mix": (r.mix, (count,)),
        "mask_h": (r.mask_h, (rows, hidden)),
        "norm's mean": (r.running_mean, statistics),
        "norm's var": (r.running_var, statistics),
    }
    for name, (operand, shape) in expected.items():
        if operand is None:
            continue
        if operand.shape != shape:
            found = list(operand.shape)
            raise WenetError(f"{name} must have shape {list(shape)} for {r.form} cells (here {count}), not {found}")
        _check_kind(name, operand, "pre", r.pre)
    if r.norm == "batch" and rows < 2:
        raise WenetError(f"batch normalisation needs at least 2 rows in the data batch, this one has {rows}")


def _check_options(r: Recurrence) -> None:
    check_choice("form", r.form, FORMS)
    if r.norm not in NORMS:
        raise WenetError(f"unknown norm {r.norm!r}; pass 'batch', a pair (mean, var) or None")
    if (r.norm == "running") != (r.running_mean is not None and r.running_var is not None):
        raise WenetError("a pair (mean, var) comes with norm 'running' and with no other")
    if r.all_ranks and r.mix is None:
        raise WenetError("independent networks have nothing that is summed over ranks; leave all_ranks out")


def check_evaluation(r: Recurrence, evaluation: Evaluation, shapes: Sequence[Shape], grad_output: Tensor) -> None:
    """Raise `WenetError` unless `evaluation` has the shapes that forward returns, and `grad_output` fits it."""
    for name, found, shape in zip(evaluation._fields, evaluation, shapes, strict=True):
        check_like(name, found, shape, r.pre)
    check_like("grad_output", grad_output, shapes[0], r.pre)


def check_projection(x: Tensor, weight: Tensor) -> None:
    """Raise `WenetError` unless the operands of the input's product agree."""
    if x.dim() != 2 or weight.dim() != 3 or x.shape[1] != weight.shape[1]:
        raise WenetError(f"x {list(x.shape)} must be [R, I] and weight_input {list(weight.shape)} [n, I, G]")
    _check_kind("weight_input", weight, "x", x)


def check_projection_gradient(grad_output: Tensor, x: Tensor, weight: Tensor) -> None:
    """Raise `WenetError` unless `grad_output` fits the product of these operands."""
    check_projection(x, weight)
    check_like("grad_output", grad_output, (weight.shape[0], x.shape[0], weight.shape[2]), x)


def check_like(name: str, operand: Tensor, shape: Shape, other: Tensor, other_name: str = "the operands") -> None:
    """Raise `WenetError` unless an operand has this shape, and the type and device of another operand."""
    if operand.shape != shape:
        raise WenetError(f"{name} must have shape {list(shape)}, not {list(operand.shape)}")
    _check_kind(name, operand, other_name, other)


def _check_kind(name: str, operand: Tensor, other_name: str, other: Tensor) -> None:
    if operand.dtype != other.dtype or operand.device != other.device:
        found, wanted = (f"{x.dtype} on {x.device}" for x in (operand, other))
        raise WenetError(f"{name} is {found}, but {other_name} is {wanted}")


def check_finite(r: Recurrence, output: Tensor) -> None:
    """Name the operand that brought NaN into the output. This is done only on the CPU, where it costs no
    synchronisation.

    If all operands are finite and statistics are given, the states grew because these statistics do not follow them.
    """
    if output.device.type != "cpu" or is_finite(output):
        return
    for name in ("pre", "h0", "weight_hidden", "weight_nodes", "mix", "mask_h", "running_mean", "running_var"):
        operand = getattr(r, name)
        if operand is not None:
            check_nan(name, operand)
    if r.norm == "running" and not bool(output.isfinite().all()):
        raise WenetError(
            "the states grow without bound under the statistics that norm gives, which do not follow them as batch "
            "statistics do; normalise with norm='batch', over as many rows as in training"
        )


def check_finite_projection(x: Tensor, weight: Tensor, output: Tensor) -> None:
    """Like `check_finite`. NaN in `x` fills a whole row of the output and NaN in a weight a whole column, so looking at
    one column and one row is enough."""
    if output.device.type != "cpu" or output.numel() == 0 or (is_finite(output[0, :, 0]) and is_finite(output[:, 0])):
        return
    check_nan("x", x)
    check_nan("weight_input", weight)


def is_finite(tensor: Tensor) -> bool:
    """Whether all elements are finite, judged by their sum, which takes one pass; an overflow counts as not finite."""
    return math.isfinite(tensor.sum().item())


def check_nan(name: str, operand: Tensor) -> None:
    if bool(torch.isnan(operand).any()):
        raise WenetError(f"{name} holds NaN; find where it comes from, for example an input or a diverged update")
