"""Autocast on any device: there are some, such as meta, of which PyTorch refuses to say that they have none."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def is_autocast(device: torch.device) -> bool:
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Within, no operator casts."""
    return torch.autocast(device.type, enabled=False) if is_autocast(device) else nullcontext()
