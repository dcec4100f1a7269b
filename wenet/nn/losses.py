"""Losses of models of sequences: the usual ones by name, and functions of one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from wenet_kernels import WenetError

LOSSES = ("ce", "mse", "mae")
FAR = 30.0  # of standardised predictions; those of networks that learn are nearer
OWN = "own:"  # before the name of a function, in settings
Loss = Callable[[Tensor, Tensor], Tensor]
_OWN: dict[str, Loss] = {}  # functions by their names in settings


def named_loss(function: Loss) -> str:
    """The name by which settings know a function in this process.

    It is called as PyTorch's losses are: predictions `[M, K]` and targets `[M]` or `[M, K]` give a number. It must be
    made of operations that `torch.vmap` knows.
    """
    name = OWN + getattr(function, "__qualname__", type(function).__name__)
    _OWN[name] = function
    return name


def forget_loss(name: str | None) -> None:
    """Forget the function of a name, as another one of the same name may have taken its place since."""
    _OWN.pop(name or "", None)


def is_loss(name: str) -> bool:
    """Whether settings may have this name."""
    return name in LOSSES or name.startswith(OWN)


def row_losses(kind: str, outputs: Tensor, targets: Tensor, there: Tensor) -> Tensor:
    """The mean loss of each row, `[n, M]`.

    Args:
        kind: one of `LOSSES`, or what `named_loss` gave.
        outputs: `[n, M, K]`, or `[n, T, M, K]` of all steps.
        targets: classes `[M]` or `[T, M]`, or numbers `[M, K]` or `[T, M, K]`.
        there: 1 at the steps of a row, `[T, M]`; what stands behind its end does not count.

    Raises:
        WenetError: as in `batch_losses`.
    """
    if kind == "ce":
        of_all = targets.expand(outputs.shape[:-1])
        found = functional.cross_entropy(outputs.flatten(0, -2), of_all.flatten(), reduction="none")
        each = found.view(of_all.shape)
    elif kind in LOSSES:
        difference = outputs - targets
        each = (difference.square() if kind == "mse" else difference.abs()).mean(-1)
    else:
        each = _own_of_each(kind, outputs, targets)
        each = each.where(there.bool(), 0) if each.dim() == 3 else each
        _check_defined(kind, each, outputs.detach().abs().amax(-1), "a single sequence or step")
    return each if each.dim() == 2 else (each * there).sum(1) / there.sum(0)


def batch_losses(kind: str, outputs: Tensor, targets: Tensor, there: Tensor) -> Tensor:
    """The loss of each network on a batch, `[n]`; arguments as in `row_losses`. A function of one's own has the whole
    batch at once, and may weigh its rows.

    Raises:
        WenetError: the function is not known in this process, fails, does not give a number, or no finite one.
    """
    if kind in LOSSES:
        return row_losses(kind, outputs, targets, there).mean(1)
    if outputs.dim() == 4:
        within = there.bool()
        outputs, targets = outputs[:, within], targets[within]
    found = _own(kind, lambda one: one(outputs.clone(), targets.clone()), 1)  # it may work in place
    _check_defined(kind, found, outputs.detach().abs().flatten(1).amax(1), "a batch")
    if outputs.requires_grad and not found.requires_grad:
        raise WenetError(
            f"the loss {kind.removeprefix(OWN)!r} does not depend on the predictions, so nothing is learned"
        )
    return found


def _check_defined(kind: str, found: Tensor, largest: Tensor, of: str) -> None:
    """Refuse a loss that is not finite where predictions are nearer to 0 than `FAR`; beyond, a network has diverged."""
    if bool((~found.isfinite() & (largest < FAR)).any()):
        raise WenetError(f"the loss {kind.removeprefix(OWN)!r} is not finite for {of}; it must be for any prediction")


def _own_of_each(kind: str, outputs: Tensor, targets: Tensor) -> Tensor:
    """A function's loss on each row or step alone, `[n, M]` or `[n, T, M]`."""
    flat = outputs.flatten(1, -2).unsqueeze(2).clone()  # [n, rows, 1, K]
    wanted = targets.flatten(0, outputs.dim() - 3).clamp(min=0) if not targets.is_floating_point() else targets
    wanted = wanted.clone().reshape(flat.shape[1], 1, *([] if wanted.dtype == torch.long else [-1]))
    found = _own(kind, lambda one: torch.vmap(lambda all_rows: torch.vmap(one)(all_rows, wanted))(flat), 2)
    return found.view(outputs.shape[:-1])


def _own(kind: str, call: Callable[[Any], Tensor], dimensions: int) -> Tensor:
    function = _OWN.get(kind)
    if function is None:
        raise WenetError(
            f"the loss {kind.removeprefix(OWN)!r} of this run is a function; pass it again, as in "
            "wenet.resume_search(folder, loss=...)"
        )
    try:
        found = call(function if dimensions == 2 else torch.vmap(function, in_dims=(0, None)))
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise WenetError(f"the loss {kind.removeprefix(OWN)!r} cannot be computed: {reason}") from error
    if found.dim() != dimensions:
        shape = list(found.shape[dimensions:])
        raise WenetError(
            f"the loss {kind.removeprefix(OWN)!r} must give a number for a batch, not a tensor of shape {shape}; take "
            "the mean"
        )
    return found
