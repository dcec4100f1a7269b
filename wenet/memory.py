"""Memory: what a device has, what this process has used, and a failed allocation in words."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from wenet_kernels import WenetError


def peak_memory(device: torch.device) -> int:
    """Bytes that this process has held at most: on a GPU its tensors, on the CPU everything."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def total_memory(device: torch.device) -> int:
    """Bytes that a device has in all."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@contextmanager
def explaining_out_of_memory(advice: str) -> Iterator[None]:
    """Raise `WenetError` with the advice where an allocation within fails."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        raise WenetError(f"out of memory: {advice}") from None
    except RuntimeError as error:  # which is what the CPU's allocator raises
        if "can't allocate memory" in str(error) or "not enough memory" in str(error):
            raise WenetError(f"out of memory: {advice}") from None
        raise
