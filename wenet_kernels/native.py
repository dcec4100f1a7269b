"""The compiled part of the package, absent if it was installed without a C++ compiler."""

from __future__ import annotations

from typing import TYPE_CHECKING

INTERFACE = 10  # as in csrc/module.cpp; increase both whenever the way Python calls the module changes

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
    """The reason why there is no native module; empty if there is one."""
    if IS_STALE:
        return "built from other sources than these; run pip install again"
    return "not built, as no C++ compiler was found at installation" if native is None else ""


def native_status() -> str:
    """The widest instruction set of this processor that the native module uses, or the reason for its absence."""
    if native is None:
        return f"{absence()}: this is pure Python"
    return f"built, on a processor with {native.instruction_sets()[-1]}"
