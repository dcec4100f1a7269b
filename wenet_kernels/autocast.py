"""Autocast on any device, even on devices such as meta, where PyTorch raises an error when asked about it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def is_autocast(device: torch.device) -> bool:
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Within, no operator casts."""
    return torch.autocast(device.type, enabled=False) if is_autocast(device) else nullcontext()


def autocast_type(operand: Tensor) -> torch.dtype | None:
    """The type that autocast would give an operand such as this; None if it leaves it alone."""
    kind = operand.device.type
    if kind not in ("cpu", "cuda") or not torch.is_autocast_enabled(kind) or operand.dtype == torch.float64:
        return None
    return torch.get_autocast_dtype(kind)


def in_fp32(operand: Tensor) -> Tensor:
    return operand if operand.dtype == torch.float64 else operand.float()
