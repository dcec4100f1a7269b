"""The compiled part of the package, which an installation without a C++ compiler does without."""

from __future__ import annotations

from typing import TYPE_CHECKING

INTERFACE = 3  # as in csrc/module.cpp: raised there and here whenever Python calls the module in another way

if TYPE_CHECKING:
    from wenet_kernels import _native
else:
    try:
        from wenet_kernels import _native
    except ImportError:
        _native = None

IS_STALE = _native is not None and getattr(_native, "INTERFACE", 1) != INTERFACE
native = None if IS_STALE else _native


def absence() -> str:
    """Why there is no native module; empty where there is one."""
    if IS_STALE:
        return "built from other sources than these; run pip install again"
    return "not built, as no C++ compiler was found at installation" if native is None else ""


def native_status() -> str:
    """The widest instruction set that the native module finds on this processor, or that there is no such module."""
    if native is None:
        return f"{absence()}: this is pure Python"
    return f"built, on a processor with {native.instruction_sets()[-1]}"
