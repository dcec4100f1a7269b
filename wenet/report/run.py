"""Read a run folder, finished or not, without changing it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from wenet.cells import Cell, cell_from_dict
from wenet.files import WRITTEN_AGAIN, read_json
from wenet.run import NEW_RUN, stored_baseline
from wenet.run.budget import Spent, spent_in
from wenet.run.upgrade import upgraded
from wenet.searching import (
    Best,
    SearchConfig,
    Strategy,
    added_settings,
    read_best,
    resolve_config,
    strategy_of,
    unfinished_part,
)
from wenet.searching.audit import RESULT as AUDIT
from wenet.searching.contest import RESULT as CONTEST
from wenet.searching.strategy import RECORDS as SEARCH_RECORDS
from wenet.tasks import Baseline, Metric, Task, task_of
from wenet.training.nt_asgd import RECORDS as TRAIN_RECORDS
from wenet_kernels import WenetError

RECORDS = {"search": SEARCH_RECORDS, "train": TRAIN_RECORDS}  # by kind of run
FILES = ("config.json", "best.json", AUDIT, CONTEST, *RECORDS.values())


@dataclass(frozen=True)
class Run:
    """A search or a training, read from its files.

    Attributes:
        config: the contents of `config.json`, with the settings of an audit or contest that came later.
        records: one record per round or epoch.
        best: the contents of `best.json`; empty if there is none yet.
        audit: the contents of `audit.json`, if there was an audit.
        contest: the contents of `contest.json`, if there was a contest.
        flaws: sentences about damaged files.
    """

    path: Path
    kind: str
    config: dict[str, Any]
    records: list[dict[str, Any]]
    best: dict[str, Any]
    audit: dict[str, Any] | None
    contest: dict[str, Any] | None
    flaws: list[str]

    @property
    def settings(self) -> dict[str, Any]:
        return self.config["settings"]

    @property
    def genotype(self) -> Cell | None:
        """The winner so far, or the cell in training; None if there is none yet, and for an LSTM."""
        stored = self.config["genotype"] if self.kind == "train" else self.best.get("genotype")
        return None if stored is None else cell_from_dict(stored)

    @property
    def task(self) -> Task:
        return task_of(SimpleNamespace(**self.settings))

    @property
    def metric(self) -> Metric:
        """The metric of the task."""
        return self.task.metric

    @property
    def baseline(self) -> Baseline | None:
        """The value that a model must beat; unknown for older runs."""
        return stored_baseline(self.config)

    @property
    def search_config(self) -> SearchConfig:
        """The settings of a search."""
        given = {name: value for name, value in self.settings.items() if name != "preset"}
        return resolve_config(self.settings["preset"], given)

    @property
    def strategy(self) -> type[Strategy]:
        """The strategy of a search."""
        return strategy_of(self.search_config)

    @property
    def winner(self) -> Best | None:
        """The best cell of a search so far."""
        return read_best(self.best, self.search_config, self.metric) if self.best else None

    @property
    def spent(self) -> Spent | None:
        """The time of a run with `--minutes`."""
        return spent_in(self.path)

    @property
    def finished(self) -> bool:
        return self.unfinished_part is None

    @property
    def unfinished_part(self) -> str | None:
        """What has yet to end: "training", "search", "audit" or "contest"; None if nothing."""
        if self.kind == "train":
            return "training" if self.best.get(f"test_{self.metric.key}") is None else None
        return unfinished_part(self.winner, self.audit is not None, self.contest is not None, self.search_config)


def read_run(path: Path) -> Run:
    """Read a run folder. A line that a killed process did not finish is skipped and listed in `flaws`.

    Raises:
        WenetError: the path is no run folder, or its settings or result cannot be read.
    """
    if not os.path.isdir(path):
        raise WenetError(f"no run folder {path}")
    if not os.path.exists(path / "config.json"):
        raise WenetError(f"{path} has no config.json, so it is no run folder")
    config = upgraded(read_json(path / "config.json", NEW_RUN))
    if config.get("kind") not in RECORDS or not isinstance(config.get("settings"), dict):
        raise WenetError(f"{path / 'config.json'} is not of a search or a training")
    flaws: list[str] = []
    search = config["kind"] == "search"
    records = _read_records(path / RECORDS[config["kind"]], "networks" if search else "epoch", flaws)
    best = _read(path / "best.json", "genotype" if search else "cell")
    if search:
        config = {**config, "settings": {**config["settings"], **added_settings(path)}}
    audit, contest = _read(path / AUDIT, "networks"), _read(path / CONTEST, "contestants")
    audit = None if audit is None else _upgraded_audit(audit)
    return Run(path, config["kind"], config, records, best or {}, audit, contest, flaws)


def parts_of(run: Run) -> list[Run]:
    """The searches of a run with --runs that have begun."""
    folders = (run.path / f"run-{number + 1}" for number in range(run.settings["runs"]))
    return [read_run(folder) for folder in folders if (folder / "config.json").exists()]


def _read(path: Path, key: str) -> dict[str, Any] | None:
    """A file of a run, if it has been written; it must have the key."""
    return read_json(path, WRITTEN_AGAIN, key) if path.exists() else None


def _upgraded_audit(audit: dict[str, Any]) -> dict[str, Any]:
    """Convert an audit of any version to today's form; older versions called kept cells survivors."""
    if "survivors" not in audit:
        return audit
    networks = [{**cell, "kept": cell["survivor"]} for cell in audit["networks"]]
    return {**audit, "kept": audit["survivors"], "kept_better_p": audit["survivors_better_p"], "networks": networks}


def _read_records(path: Path, key: str, flaws: list[str]) -> list[dict[str, Any]]:
    """All records before the first damaged one; each must have the key."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    except OSError as error:
        raise WenetError(f"cannot read {path}: {error.strerror}") from None
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or key not in record:
            flaws.append(f"Line {number} of {path.name} is damaged or was cut off; what follows it is left out.")
            break
        records.append(record)
    return records
