"""`python -m bench.compare_cells`: cells trained at equal size and budget over several seeds.

Every training has its own run folder; a repeated command resumes where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wenet.report.cells import save_picture
from wenet.report.figures import SERIES, Picture, new_drawing, styled

# With an embedding of 200, LSTM layers of 247 and 200 have as many parameters as a cell of 8 gated nodes at 200.
CELLS = [
    "darts-v2",
    "enas",
    "naonet-ws",
    "random:1",
    "random:2",
    "random:3",
    "lstm --layers 2 --hidden 247 --embedding 200",
]


@dataclass(frozen=True)
class Trained:
    """One finished training."""

    cell: str
    seed: int
    best: dict[str, Any]
    curve: list[float | None]  # validation perplexity of each epoch; None where it diverged


def main() -> None:
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    trained = [
        train(options.dataset, cell, seed, options.out, options.training)
        for seed in range(1, options.seeds + 1)
        for cell in options.cells
    ]
    write_results(options.out, trained)
    print("\n".join(table(trained)))


def train(dataset: str, cell: str, seed: int, out: Path, training: list[str]) -> Trained:
    """Train one cell with one seed, resume its training, or read its result."""
    name, flags = parse_cell(cell)
    folder = out / f"{_file_name(cell)}-seed{seed}"
    if not _finished(folder):
        begun = (folder / "config.json").exists()
        arguments = [dataset, "--cell", name, "--seed", str(seed), "--out", str(folder), *training, *flags]
        print(f"{cell}, seed {seed}", flush=True)
        command = str(Path(sys.executable).with_name("wenet-train"))
        subprocess.run([command, *(["--resume", str(folder)] if begun else arguments)], check=True)
    records = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    best = json.loads((folder / "best.json").read_text())
    return Trained(cell, seed, best, [record.get("valid_perplexity") for record in records])


def parse_cell(cell: str) -> tuple[str, list[str]]:
    """The value of `--cell`, and the flags after it."""
    words = shlex.split(cell)
    end = next((number for number, word in enumerate(words) if word.startswith("--")), len(words))
    return " ".join(words[:end]), words[end:]


def _finished(folder: Path) -> bool:
    best = folder / "best.json"
    return best.exists() and json.loads(best.read_text())["test_perplexity"] is not None


def _file_name(cell: str) -> str:
    return "".join(character if character.isalnum() else "-" for character in cell.strip("./"))


def write_results(out: Path, trained: list[Trained]) -> None:
    """Write `compare.json`, `table.md` and `curves.svg`."""
    (out / "compare.json").write_text(json.dumps([vars(one) for one in trained], indent=2) + "\n")
    (out / "table.md").write_text("\n".join(table(trained)) + "\n")
    with styled():
        drawing = new_drawing(5, 8)
        axes = drawing.subplots()
        for number, (cell, runs) in enumerate(_by_cell(trained).items()):
            for one in runs:
                label = cell if one is runs[0] else None
                epochs = range(1, len(one.curve) + 1)
                values = [float("nan") if value is None else value for value in one.curve]
                axes.plot(epochs, values, color=SERIES[number % len(SERIES)], label=label)
        axes.set(xlabel="epoch", ylabel="validation perplexity", yscale="log")
        axes.legend()
    title = "Validation perplexity by epoch"
    save_picture(Picture("curves", title, f"{title}, a line for each training.", drawing, []), out / "curves.svg")


def table(trained: list[Trained]) -> list[str]:
    """Cells by their mean validation perplexity, in Markdown."""
    cells = _by_cell(trained)
    order = sorted(cells, key=lambda cell: _mean(cells[cell], "valid_perplexity"))
    return [
        "| cell | parameters | seeds | valid, mean (sd) | test, mean (sd) | epochs | seconds, all seeds |",
        "|---|---|---|---|---|---|---|",
        *(_row(cell, cells[cell]) for cell in order),
    ]


def _row(cell: str, runs: list[Trained]) -> str:
    best = runs[0].best
    seconds = sum(one.best["seconds"] for one in runs)
    return (
        f"| {cell} | {best['parameters']:,} | {len(runs)} | {_spread(runs, 'valid_perplexity')} | "
        f"{_spread(runs, 'test_perplexity')} | {best['epochs']} | {seconds:,.0f} |"
    )


def _by_cell(trained: list[Trained]) -> dict[str, list[Trained]]:
    cells: dict[str, list[Trained]] = {}
    for one in trained:
        cells.setdefault(one.cell, []).append(one)
    return cells


def _mean(runs: list[Trained], key: str) -> float:
    return statistics.fmean(one.best[key] for one in runs)


def _spread(runs: list[Trained], key: str) -> str:
    sd = f" ({statistics.stdev(one.best[key] for one in runs):.2f})" if len(runs) > 1 else ""
    return f"{_mean(runs, key):.2f}{sd}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train cells at equal size and budget over several seeds; write a table and curves.",
        epilog="What follows -- goes to wenet-train (default: --preset quick --hidden 200 --epochs 10).",
    )
    parser.add_argument("dataset", nargs="?", default="ptb", help="default: %(default)s")
    parser.add_argument(
        "--cell", dest="cells", action="append", metavar="CELL",
        help="as for wenet-train, with flags of its own behind it if need be; may be repeated",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=2, help="trainings a cell (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and results")
    arguments = sys.argv[1:]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:end])
    options.cells = options.cells or CELLS
    options.training = arguments[end + 1 :] or ["--preset", "quick", "--hidden", "200", "--epochs", "10"]
    return options


if __name__ == "__main__":
    main()
