"""What a search was given after it began: an audit or a contest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wenet.searching.audit import begun_audit
from wenet.searching.contest import FOLDER, RESULT


def added_settings(folder: Path) -> dict[str, Any]:
    """Settings of the audit and the contest that were begun in a run; its `config.json` has those from its beginning.

    Raises:
        WenetError: they cannot be read.
    """
    found: dict[str, Any] = {}
    if (audit := begun_audit(folder)) is not None:
        found |= {"audit": audit[0], "audit_epochs": audit[1]}
    if any((folder / name).exists() for name in (FOLDER, RESULT)):
        found["contest"] = True
    return found
