"""The machine of a run: device, backend, precision, memory, and errors about memory in words."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

import torch

from wenet.cells import Cell
from wenet.run.settings import DTYPES, AnyConfig, Config
from wenet.words import counted, size
from wenet_kernels import Program, WenetError, programs, resolve_backend


def resolve_machine(config: AnyConfig, cell: Cell | None = None) -> AnyConfig:
    """Replace "auto" in the settings by the device, backend and precision of this machine.

    Args:
        cell: the cell to train, if there is one; the backend must know its activations.

    Raises:
        WenetError: the device or backend is missing, or lacks the precision or an activation.
    """
    device = _device(config.device)
    if isinstance(cell, Program) or (cell is None and config.has_programs):
        return _resolved_for_programs(config, cell, device)
    activations = config.activation_names if cell is None else cell.activations
    precision = config.precision if config.precision != "auto" else best_precision(config.backend, device, activations)
    backend = resolve_backend(config.backend, device, DTYPES[precision], precision, activations)
    return replace(config, device=str(device), backend=backend, precision=precision)


def _resolved_for_programs(config: AnyConfig, cell: Program | None, device: torch.device) -> AnyConfig:
    precision = "fp32" if config.precision == "auto" else config.precision
    of_cell = config.most_rows if cell is not None and cell.normalises else 0
    compared_rows = config.compared_rows if cell is None else of_cell
    backend = programs.resolve_backend(config.backend, device, DTYPES[precision], precision, compared_rows)
    return replace(config, device=str(device), backend=backend, precision=precision)


def default_preset(without_gpu: str) -> str:
    """The preset of a run on this machine if none is named: the paper's settings on a GPU, else smaller ones."""
    return "paper" if torch.cuda.is_available() else without_gpu


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise WenetError(f"unknown --device {name!r}; choose auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise WenetError(f"unknown --device {name!r}; choose auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise WenetError(f"--device {name}: this machine has {counted(torch.cuda.device_count(), 'CUDA device')}")
    return device


def best_precision(backend: str, device: torch.device, activations: Sequence[str] = ()) -> str:
    """The fastest precision that trains equally well: bf16 on a GPU whose backend has it, else fp32."""
    if device.type == "cuda":
        with suppress(WenetError):
            resolve_backend(backend, device, precision="bf16", activations=activations)
            return "bf16"
    return "fp32"


@contextmanager
def pytorch_products_in(config: Config) -> Iterator[None]:
    """On a GPU, let PyTorch's own products (projection, decoder) use TF32 if the recurrence rounds its products too."""
    before = torch.get_float32_matmul_precision()
    if torch.device(config.device).type == "cuda" and config.precision in ("tf32", "bf16"):
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def peak_memory(device: torch.device) -> int:
    """The most bytes this process has held at once: on a GPU its tensors, on the CPU everything."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def total_memory(device: torch.device) -> int:
    """Total memory of a device in bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_memory(needed: int, device: str, flags: str, processes_here: int = 1) -> None:
    """Refuse a run that cannot fit.

    Args:
        needed: bytes for each process on this machine.

    Raises:
        WenetError: the device has less memory.
    """
    there = total_memory(torch.device(device))
    if torch.device(device).type == "cpu":
        needed *= processes_here
    if needed > there:
        raise WenetError(f"about {size(needed)} of memory are needed and {device} has {size(there)}; lower {flags}")


@contextmanager
def explaining_out_of_memory(advice: str) -> Iterator[None]:
    """Turn a failed allocation within this context into a `WenetError` with the advice."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        raise WenetError(f"out of memory: {advice}") from None
    except RuntimeError as error:  # raised by the CPU's allocator
        if "can't allocate memory" in str(error) or "not enough memory" in str(error):
            raise WenetError(f"out of memory: {advice}") from None
        raise
