"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL = ".partial"  # how the names of files end that are still being written


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a file to write into, which takes the place of `path` once it is complete and on disk.

    Readers see the old file or the new one. A write that fails leaves the old one.

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
    """The contents of a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
