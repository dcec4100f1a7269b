"""The compiled part of the package, which an installation without a C++ compiler does without."""

from __future__ import annotations


def native_status() -> str:
    """The widest instruction set that the native module finds on this processor, or that there is no such module."""
    try:
        from wenet_kernels import _native
    except ImportError:
        return "not built, as no C++ compiler was found at installation: this is pure Python"
    return f"built, on a processor with {_native.instruction_sets()[-1]}"
