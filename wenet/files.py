"""Atomic writes: a file appears complete or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL = ".partial"  # suffix of files that are still being written


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces `path` once it is complete and on disk.

    Readers see the old file or the new one. After a failed write the old one stays.

    Examples:
        >>> with written_whole(Path("cell.json")) as file:
        ...     count = file.write_text("{}")
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        yield partial
        _put_on_disk(partial)
        os.replace(partial, path)
        _put_on_disk(path.parent)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def _put_on_disk(path: Path) -> None:
    """Flush a file's contents, or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
