"""Files of a run: written whole or not at all, and read with an error that names the file and the mend."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from wenet_kernels import WenetError

SHOWN = 40  # characters of a name that is too long
PARTIAL = ".partial"  # suffix of files that are still being written
DELETE = "delete it, and "
WRITTEN_AGAIN = f"{DELETE}--resume writes it again"  # the mend of what a run can make from its other files


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


def too_long(name: object) -> str:
    """The error of a name that is too long for a file, in a line."""
    return f"a name is too long for a file: {str(name)[:SHOWN]}...; name another"


def read_json(path: Path, mend: str, *keys: str) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Args:
        mend: what to do if the file is damaged, behind a semicolon.
        keys: what it must have.

    Raises:
        WenetError: it is missing, was cut short, or is something else; the message names it.
    """
    value = _parsed(_text(path, mend), path, mend)
    for key in keys:
        if key not in value:
            raise WenetError(f"{path} is damaged (it has no {key!r}); {mend}")
    return value


def read_records(path: Path, mend: str) -> list[dict[str, Any]]:
    """Read a file that holds a JSON object on every line.

    Raises:
        WenetError: as in `read_json`.
    """
    lines = _text(path, mend).split("\n")
    return [_parsed(line, path, mend, f"line {number}: ") for number, line in enumerate(lines, start=1) if line]


def _text(path: Path, mend: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise WenetError(f"{path} is missing; {mend.removeprefix(DELETE)}") from None
    except OSError as error:
        raise WenetError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise WenetError(f"{path} is damaged ({error}); {mend}") from None


def _parsed(text: str, path: Path, mend: str, where: str = "") -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WenetError(f"{path} is damaged ({where}{error}); {mend}") from None
    if not isinstance(value, dict):
        raise WenetError(f"{path} is damaged ({where}no JSON object); {mend}")
    return value


def _put_on_disk(path: Path) -> None:
    """Flush a file's contents, or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
