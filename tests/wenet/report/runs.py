"""Small finished runs, and files as an audit, a baseline and several runs write them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

SPREAD = {"cells": 2, "diverged": 0, "mean": 210.0, "sd": 4.0}


def copy_run(run: Path, to: Path) -> Path:
    """Without what the report wrote."""
    return Path(shutil.copytree(run, to, ignore=shutil.ignore_patterns("report.html", "figures")))


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_settings(run: Path, **changes) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "settings": {**config["settings"], **changes}}))


def read_records(run: Path, name: str = "search.jsonl") -> list[dict]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def write_records(run: Path, records: list[dict], name: str = "search.jsonl") -> None:
    (run / name).write_text("".join(json.dumps(record) + "\n" for record in records))


def add_audit(run: Path, low: float = -0.2) -> None:
    """Five cells, the last of which diverged."""
    networks = [network for record in reversed(read_records(run)) for network in record["networks"]][:5]
    cells = [
        {
            "genotype": network["genotype"],
            "score": 1.5 - 0.2 * place,
            "perplexity": None if place == 4 else 200.0 + 5 * place,
            "kept": place < 2,
            "round": 3,
            "rounds_kept": 0,
        }
        for place, network in enumerate(networks)
    ]
    audit = {
        "cells": len(cells),
        "epochs": 0.5,
        "seconds": 100.0,
        "confidence": 0.95,
        "kendall": {"value": 0.4, "low": low, "high": 0.8, "p": 0.1},
        "kept": SPREAD,
        "rejected": {**SPREAD, "diverged": 1, "mean": None, "sd": None},
        "kept_better_p": 0.2,
        "networks": cells,
    }
    (run / "audit.json").write_text(json.dumps(audit))


def make_baseline(run: Path) -> None:
    """Turn a search into one by successive halving."""
    rungs = []
    for record in read_records(run):
        networks = [
            {"genotype": n["genotype"], "weight": None, "rounds_kept": 0, "perplexity": 300.0 - place}
            for place, n in enumerate(record["networks"])
        ]
        rungs.append({**record, "uniform_weight": None, "train_loss": None, "networks": networks})
    rungs[0]["networks"][-1]["perplexity"] = None
    write_records(run, rungs)
    edit_json(run / "best.json", weight=None, uniform_weight=None, perplexity=290.0, windows=10)
    edit_settings(run, strategy="random")


def make_several(run: Path, part: Path) -> None:
    """Turn a search into one of two runs, each of them like `part`."""
    for number in (1, 2):
        copy_run(part, run / f"run-{number}")
    (run / "search.jsonl").unlink()
    text = json.loads((run / "best.json").read_text())["text"]
    runs = [{"run": 2, "genotype": text, "perplexity": 200.0}, {"run": 1, "genotype": text, "perplexity": None}]
    edit_json(run / "best.json", runs=runs, perplexity=200.0, overlap=None, windows=10, ranking_seconds=3.0)
    edit_settings(run, runs=2)
