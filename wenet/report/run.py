"""What a run folder holds, finished or not, read without touching it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wenet.audit import RESULT as AUDIT
from wenet.genotype import Genotype
from wenet.search import RECORDS as SEARCH_RECORDS
from wenet.train import RECORDS as TRAIN_RECORDS
from wenet_kernels import WenetError

RECORDS = {"search": SEARCH_RECORDS, "train": TRAIN_RECORDS}  # by kind of run
FILES = ("config.json", "best.json", AUDIT, *RECORDS.values())


@dataclass(frozen=True)
class Run:
    """A search or a training as its files tell it.

    Attributes:
        records: one a round or an epoch.
        best: what `best.json` holds, empty where there is none yet.
        audit: what `audit.json` holds, if there was an audit.
        flaws: what could not be read, in sentences.
    """

    path: Path
    kind: str
    config: dict[str, Any]
    records: list[dict[str, Any]]
    best: dict[str, Any]
    audit: dict[str, Any] | None
    flaws: list[str]

    @property
    def settings(self) -> dict[str, Any]:
        return self.config["settings"]

    @property
    def genotype(self) -> Genotype | None:
        """The winner so far, or the cell in training; None before there is one, and of an LSTM."""
        stored = self.config["genotype"] if self.kind == "train" else self.best.get("genotype")
        return None if stored is None else Genotype.from_dict(stored)

    @property
    def finished(self) -> bool:
        if self.kind == "train":
            return self.best.get("test_perplexity") is not None
        if self.settings.get("runs", 1) > 1:
            return bool(self.best)  # written once all runs are ranked
        done = bool(self.best) and self.best["rounds"] >= self.best["rounds_planned"]
        return done and (self.audit is not None or not self.settings.get("audit"))


def read_run(path: Path) -> Run:
    """Read a run folder; a line that a killed process left half written is left out and named among the flaws.

    Raises:
        WenetError: it is no run folder, or its settings or result cannot be read.
    """
    if not path.is_dir():
        raise WenetError(f"no run folder {path}")
    if not (path / "config.json").exists():
        raise WenetError(f"{path} has no config.json, so it is no run folder")
    config = _read_json(path / "config.json")
    if config.get("kind") not in RECORDS or not isinstance(config.get("settings"), dict):
        raise WenetError(f"{path / 'config.json'} is not of a search or a training")
    flaws: list[str] = []
    records = _read_records(path / RECORDS[config["kind"]], flaws)
    best = _read_json(path / "best.json") if (path / "best.json").exists() else {}
    audit = _read_json(path / AUDIT) if (path / AUDIT).exists() else None
    return Run(path, config["kind"], config, records, best, audit, flaws)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WenetError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise WenetError(f"{path} is not the file of a run")
    return value


def _read_records(path: Path, flaws: list[str]) -> list[dict[str, Any]]:
    """All whole records before the first damaged one."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    except OSError as error:
        raise WenetError(f"cannot read {path}: {error.strerror}") from None
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except ValueError:
            flaws.append(f"Line {number} of {path.name} is damaged or was cut off; what follows it is left out.")
            break
    return records
