"""`python -m bench.space_table`: random cells of 1 to 8 nodes at equal parameters, each trained twice with its curve.

The table lets a strategy of search be replayed in seconds (`bench.space`). Trainings are kept under --out; the same
command goes on where it was stopped, and writes the table when all are done.
"""

from __future__ import annotations

import argparse
import json
import lzma
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.sessions import session_in
from wenet.cells import PUBLISHED, Genotype, load_genotype, random_mixed_genotypes
from wenet.run import Session, resolve_machine
from wenet.searching.settings import SearchConfig, resolve_config
from wenet.searching.shapes import by_shape, config_for
from wenet.tasks import task_of
from wenet.training import Plan, StandaloneResult, train_standalone

NODES = range(1, 9)
GROUP = 32  # cells that train at once
RATE = 2e-2


def main() -> None:
    options = _parser().parse_args()
    config = resolve_machine(
        resolve_config("race", {"dataset": options.dataset, "parameters": options.parameters, "nodes": "1-8"})
    )
    data = task_of(config).load(config, options.data_dir)
    cells = pool(options.cells)
    with session_in(options.out, config, data) as session:
        rows = [
            row
            for seed in range(1, options.trainings + 1)
            for group in by_shape(cells, config, session.task, data)
            for first in range(0, len(group.places), GROUP)
            for row in trained(
                session,
                [cells[place] for place in group.places[first : first + GROUP]],
                seed,
                options.windows,
                f"{seed}-{group.name}-{first}",
            )
        ]
    write_table(options.table, cells, rows, settings(config, options))


def pool(count: int) -> list[Genotype]:
    """The published cells of up to eight nodes, and random ones."""
    published = [cell for name in PUBLISHED if (cell := load_genotype(name)).nodes in NODES]
    drawn = random_mixed_genotypes(count + len(published), NODES, seed=1)
    return list(dict.fromkeys([*published, *drawn]))[:count]


def trained(
    session: Session[SearchConfig], cells: Sequence[Genotype], seed: int, windows: int, name: str
) -> list[dict[str, Any]]:
    """A row for each of the cells: its value and its training losses on the way."""
    own = replace(session, config=config_for(cells[0], session.config, session.task, session.data))
    folder = session.folder.path / name
    plan = Plan(cells, windows, seed, rates=[RATE] * len(cells), decay=True)
    result: StandaloneResult = train_standalone(own, folder, plan, f"training {name}")
    lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    curve = [json.loads(line) for line in lines]
    return [
        {
            "cell": str(cell),
            "seed": seed,
            "hidden": own.config.hidden,
            "value": outcome.to_dict(session.task.metric)[session.task.metric.key],
            "curve": [_rounded(record["train_loss"][place]) for record in curve],
        }
        for place, (cell, outcome) in enumerate(zip(cells, result.outcomes, strict=True))
    ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def settings(config: SearchConfig, options: argparse.Namespace) -> dict[str, Any]:
    """What the table was made with."""
    shared = ("dataset", "level", "parameters", "form", "data_batch", "bptt", "clip", "init_range", "decoder_bias")
    return {
        **{name: getattr(config, name) for name in shared},
        "rate": RATE,
        "schedule": "falls in a line to zero",
        "windows": options.windows,
        "trainings": options.trainings,
    }


def write_table(
    path: Path, cells: Sequence[Genotype], rows: Sequence[dict[str, Any]], made_with: dict[str, Any]
) -> None:
    """One compressed file: a line of settings, then a line for each training."""
    numbers = {str(cell): number for number, cell in enumerate(cells)}
    ordered = sorted(rows, key=lambda row: (numbers[row["cell"]], row["seed"]))
    text = "".join(json.dumps(line) + "\n" for line in [made_with, *ordered])
    path.write_bytes(lzma.compress(text.encode()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", nargs="?", default="ptb", help="as in wenet-search (default: %(default)s)")
    parser.add_argument("--cells", type=int, default=512, metavar="N")
    parser.add_argument("--parameters", type=int, default=20_000, metavar="N", help="of the model around a cell")
    parser.add_argument("--windows", type=int, default=300, metavar="N", help="of a training")
    parser.add_argument("--trainings", type=int, default=2, metavar="N", help="of each cell")
    parser.add_argument("--data-dir", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the trainings")
    parser.add_argument("--table", type=Path, required=True, metavar="FILE", help="the table, compressed (.xz)")
    return parser


if __name__ == "__main__":
    main()
