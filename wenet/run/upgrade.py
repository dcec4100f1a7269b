"""Convert the settings of older runs to today's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED = {"seeds": "keep", "init_seeds": "initial_cells"}  # settings
# Settings that older runs lack, with the values that describe them.
ADDED = {"task": "language", "level": "words", "decoder_bias": "zero"}
ADDED_TO_SEARCHES = {"carry_embedding": False}


def upgraded(config: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the contents of a `config.json` of any version to today's form."""
    found = dict(config)
    if isinstance(found.get("settings"), dict):
        settings = {RENAMED.get(name, name): value for name, value in found["settings"].items()}
        of_search = ADDED_TO_SEARCHES if "pool" in settings else {}
        found["settings"] = {**ADDED, **of_search, **settings}
    if found.get("kind") == "independent training":
        found["kind"] = "standalone training"
        if not found.get("shared_embedding"):
            found.pop("shared_embedding", None)
    return found
