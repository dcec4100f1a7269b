"""Fingerprints of all numbers that small runs of every command write. A change that only moves code keeps them all.

    python scripts/fingerprints.py record before.json
    python scripts/fingerprints.py compare before.json

Both run the commands of this checkout, each in a process of its own with one thread. The figures depend on the
processor and on the versions of PyTorch and NumPy: record and compare on one machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
VOLATILE = ("seconds", "memory", "threads", "version", "time")  # parts of keys with values that differ between runs

SMALL = "--hidden 8 --nodes 3 --data-batch 4 --eval-batch 4 --bptt 6 --device cpu --quiet"
SEARCH = f"wenet-search TEXT --preset quick --pool 8 --batch 4 --keep 2 --epochs-per-round 0.5 {SMALL}"
RANKED = "ALL/search-batch-norm 'relu0 tanh1 sigmoid0' 'tanh0 relu1 relu1'"
OFTEN = "--checkpoint-every 0"
TRAIN = "wenet-train TEXT --preset quick --hidden 8 --data-batch 4 --eval-batch 4 --test-batch 2 --bptt 6 --device cpu"

# By name. Each case writes into a folder of its name, and may read folders of earlier cases.
CASES: dict[str, list[str]] = {
    "search-batch-norm": [f"{SEARCH} --norm batch --out OUT"],
    "search-without-norm": [f"{SEARCH} --norm none --form plain --out OUT"],
    "search-reference": [f"{SEARCH} --backend reference --precision fp64 --out OUT"],
    "search-held-out": [f"{SEARCH} --norm none --score held-out --mix-dropout 0.5 --out OUT"],
    "search-initial-cells": [f"{SEARCH} --initial-cells CELLS --out OUT"],
    "search-halving": [f"{SEARCH} --strategy random --out OUT"],
    "search-runs": [f"{SEARCH} --runs 2 --pool-seed 3 --audit-epochs 0.2 --out OUT"],
    "search-audit": [f"{SEARCH} --audit 5 --audit-epochs 0.3 --out OUT"],
    "search-audit-later": [f"{SEARCH} --out OUT", "wenet-search --resume OUT --audit 5 --audit-epochs 0.3"],
    "search-stopped": [f"stopped {SEARCH} {OFTEN} --out OUT", "wenet-search --resume OUT"],
    "search-two-processes": [f"torchrun {SEARCH} --out OUT"],
    "rank": [f"wenet-rank {RANKED} --seeds 2 --epochs 0.2 --out OUT"],
    "train-averaged": [f"{TRAIN} --cell enas --epochs 7 --nonmonotone 1 --lr 40 --out OUT"],
    "train-found": [f"{TRAIN} --cell ALL/search-batch-norm --epochs 2 --out OUT"],
    "train-lstm": [f"{TRAIN} --cell lstm --epochs 2 --out OUT"],
    "train-lstm-skip": [f"{TRAIN} --cell lstm-skip --epochs 1 --out OUT"],
    "train-softmaxes": [f"{TRAIN} --cell darts-v1 --softmax mos --experts 3 --epochs 1 --out OUT"],
    "train-stopped": [f"stopped {TRAIN} --cell enas --epochs 4 {OFTEN} --out OUT", "wenet-train --resume OUT"],
    "evaluate": [
        "wenet-eval ALL/train-averaged",
        "wenet-eval ALL/train-averaged --cache 50",
        "wenet-eval ALL/train-averaged --dynamic",
        "wenet-eval ALL/train-averaged TEXT",
    ],
    "cells": ["wenet-cell random --count 5 --seed 4", "wenet-cell compare enas darts-v2", "wenet-cell list"],
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--rename", nargs="*", default=[], metavar="NEW=OLD", help="flags with other names here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = fingerprints(Path(folder), dict(pair.split("=") for pair in options.rename))
    if options.action == "record":
        options.file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{sum(map(len, found.values()))} fingerprints of {len(found)} cases in {options.file}")
        return 0
    before = json.loads(options.file.read_text(encoding="utf-8"))
    differing = list(differences(before, found))
    print("\n".join(differing) or f"all {sum(map(len, found.values()))} fingerprints are equal")
    return 1 if differing else 0


def differences(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    for case in sorted({*before, *now}):
        a, b = before.get(case, {}), now.get(case, {})
        yield from (f"{case}: {name} differs" for name in sorted({*a, *b}) if a.get(name) != b.get(name))


def fingerprints(folder: Path, rename: dict[str, str]) -> dict[str, dict[str, str]]:
    """For every case, the hashes of numbers by file or command."""
    text = write_text(folder / "text")
    cells = folder / "cells.txt"
    cells.write_text("tanh0 relu1 sigmoid1\nrelu0 identity1 tanh2\n", encoding="utf-8")
    found: dict[str, dict[str, str]] = {}
    for case, commands in CASES.items():
        out, printed = folder / case, []
        for command in commands:
            for new, old in rename.items():
                command = command.replace(f"--{new} ", f"--{old} ")
            for word, path in (("TEXT", text), ("CELLS", cells), ("ALL", folder), ("OUT", out)):
                command = command.replace(word, str(path))
            printed.append(run(command, folder))
        found[case] = of_folder(out) if out.exists() else {"printed": digest(printed)}
        if case == "evaluate":
            found[case] = of_folder(folder / "train-averaged")
        print(f"{case}: {len(found[case])} files", file=sys.stderr)
    return found


def write_text(folder: Path) -> Path:
    """Write a text with something to learn: words follow each other by rules."""
    generator = random.Random(5)
    words = [f"word{i}" for i in range(30)]
    folder.mkdir()
    for part, lines in (("train", 160), ("valid", 30), ("test", 30)):
        text = []
        for _ in range(lines):
            at, line = generator.randrange(30), []
            for _ in range(generator.randint(3, 9)):
                line.append(words[at])
                at = (2 * at + generator.randrange(3)) % 30
            text.append(" ".join(line))
        start = " ".join(words) + "\n" if part == "train" else ""
        (folder / f"{part}.txt").write_text(start + "\n".join(text) + "\n", encoding="utf-8")
    return folder


def run(command: str, folder: Path) -> str:
    """Run a command and return its output; "stopped" sends SIGTERM after a round, "torchrun" starts two processes."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    words = shlex.split(command)
    how = words.pop(0) if words[0] in ("stopped", "torchrun") else ""
    module, function = scripts[words[0]].split(":")
    starter = folder / f"{words[0]}.py"
    starter.write_text(f"from {module} import {function}\nraise SystemExit({function}())\n", encoding="utf-8")
    begin = [sys.executable]
    if how == "torchrun":
        begin += ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    process = subprocess.Popen(
        [*begin, str(starter), *words[1:]], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    printed = []
    assert process.stdout is not None and process.stderr is not None
    for line in process.stdout:
        printed.append(line)
        if how == "stopped" and line.startswith(("round 1/", "epoch 1/")):
            process.send_signal(signal.SIGTERM)
    errors = process.stderr.read()
    if process.wait() != (128 + signal.SIGTERM if how == "stopped" else 0):
        raise SystemExit(f"{command}\nexit code {process.returncode}\n{''.join(printed)}{errors}")
    return "".join(printed)


def of_folder(folder: Path) -> dict[str, str]:
    """Hashes of the numbers in all files of a run, except for values that differ between any two runs."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            found[name] = digest(
                [(str(t.dtype), list(t.shape), t.double().flatten().tolist()) for t in tensors.values()]
            )
        elif path.name in ("config.json", "data.json"):
            continue  # settings, which the cases name
        elif path.suffix == ".json":
            found[name] = digest(numbers(json.loads(path.read_text(encoding="utf-8"))))
        elif path.suffix == ".jsonl":
            records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            found[name] = digest(numbers(records))
    return found


def numbers(value: Any) -> list[Any]:
    """All numbers and words of a JSON value in order, except for paths."""
    if isinstance(value, dict):
        steady = [k for k, v in value.items() if v is not None and not any(word in k for word in VOLATILE)]
        return sorted((numbers(value[key]) for key in steady), key=json.dumps)  # whatever the keys are called
    if isinstance(value, list):
        return [numbers(item) for item in value]
    named_by_place = value is None or (isinstance(value, str) and "/" in value)
    return [] if named_by_place else [value]


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


if __name__ == "__main__":
    sys.exit(main())
