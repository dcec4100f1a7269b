"""The compiled part of the package, which an installation without a C++ compiler does without."""

from __future__ import annotations


def native_status() -> str:
    """The widest instruction set that the native module finds on this processor, or that there is no such module."""
    try:
        from wenet_kernels._native import instruction_sets
    except ImportError:
        return "not built, as no C++ compiler was found at installation: this is pure Python"
    return f"built, on a processor with {instruction_sets()[-1]}"
