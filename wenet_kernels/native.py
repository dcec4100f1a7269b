"""The compiled part of the package, absent if it was installed without a C++ compiler, or cannot be loaded."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

_reason = ""  # why it cannot be loaded

if TYPE_CHECKING:
    from wenet_kernels import _native
else:
    try:
        from wenet_kernels import _native
    except ImportError as error:
        _native, _reason = None, str(error).split("\n")[0]


def sources_digest(checkout: Path) -> str | None:
    """That of the sources of the module, as CMakeLists.txt takes it; None where they are not, as in an installation."""
    if not (checkout / "csrc" / "module.cpp").exists():
        return None
    sources = [path for path in (checkout / "csrc").rglob("*") if path.suffix in (".cpp", ".h")]
    paths = [checkout / "CMakeLists.txt", *sorted(sources, key=Path.as_posix)]
    digests = (sha256(path.read_bytes()).hexdigest() for path in paths)
    return sha256("".join(digests).encode()).hexdigest()


_wanted = sources_digest(Path(__file__).parents[1]) if _native is not None else None
IS_STALE = _wanted is not None and getattr(_native, "SOURCES", "") != _wanted
native = None if IS_STALE else _native


def absence() -> str:
    """The reason why there is no native module; empty if there is one."""
    if IS_STALE:
        return "built from other sources than these; run pip install again"
    if native is not None:
        return ""
    beside = any(path.suffix in (".so", ".pyd") for path in Path(__file__).parent.glob("_native.*"))
    if beside or not _reason.startswith("cannot import name"):  # as where there is no such module
        return f"built, but it cannot be loaded ({_reason}); run pip install again with this Python"
    return "not built at installation (no C++ compiler, or WENET_NATIVE=0)"


def native_status() -> str:
    """The widest instruction set of this processor that the native module uses, or the reason for its absence."""
    if native is None:
        return f"{absence()}: this is pure Python"
    return f"built, on a processor with {native.instruction_sets()[-1]}"
