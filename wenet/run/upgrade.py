"""Convert the settings of older runs to today's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED = {"seeds": "keep", "init_seeds": "initial_cells"}  # settings
# Settings that older runs lack, with the values that describe them.
ADDED = {"task": "language", "level": "words", "decoder_bias": "zero"}
ADDED_TO_SEARCHES = {
    "carry_embedding": False,
    "parameters": None,
    "space": "dag",
    "blocks": "2-6",
    "states": "1-2",
    "known": True,
    "contest": False,
    "rungs": 4,
    "falling_rates": False,
    "networks_per_cell": 2,
    "mutate": False,
    "rates": "0.005,0.01,0.02",
    "contest_epochs": 1.0,
    "contest_seeds": 3,
    "sampled_words": 0,
    "target": None,
    "sequence": None,
    "window": 48,
    "horizon": 1,
    "layout": "ntf",
    "missing": "error",
    "constant": "error",
    "split": "70,15,15",
    "loss": None,
    "metric": None,
    "readout": "last",
    "weight_decays": None,
    "minutes": None,
    "finalists": 1,
}
# Settings that a resumed run may change, and that no standalone training within it depends on.
OF_THE_WHOLE = ("audit", "audit_epochs", "contest", "contest_epochs", "contest_seeds")


def upgraded(config: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the contents of a `config.json` of any version to today's form."""
    found = dict(config)
    if isinstance(found.get("settings"), dict):
        settings = {RENAMED.get(name, name): value for name, value in found["settings"].items()}
        of_search = ADDED_TO_SEARCHES if "pool" in settings else {}
        found["settings"] = {**ADDED, **of_search, **settings}
        if type(settings.get("nodes")) is int:
            found["settings"]["nodes"] = str(settings["nodes"])
    if found.get("kind") in ("standalone training", "independent training"):
        found["settings"] = without_the_whole(found["settings"])
    if found.get("kind") == "independent training":
        found["kind"] = "standalone training"
        if not found.get("shared_embedding"):
            found.pop("shared_embedding", None)
    return found


def without_the_whole(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that a standalone training within a run depends on."""
    return {name: value for name, value in settings.items() if name not in OF_THE_WHOLE}
