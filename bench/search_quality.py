"""`python -m bench.search_quality`: how well searches rank a pool of cells, all of which are also trained standalone.

One standalone training of the whole pool measures every search, whatever its settings and seed. Searches and trainings
are run folders under --out; the same command again goes on where it was stopped, and with more settings or seeds it
adds to what is there.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from scipy import stats

from bench.report import insert
from bench.sessions import session_in
from wenet import resume_search, search
from wenet.cells import Genotype
from wenet.data import LEVELS
from wenet.report.cells import save_picture
from wenet.report.figures import BLUE, Picture, new_drawing, styled
from wenet.run import Session
from wenet.run.console import Console
from wenet.run.machine import resolve_machine
from wenet.run.settings import flag
from wenet.searching.audit import RESAMPLES, final_ranking, summary
from wenet.searching.repeated import overlap
from wenet.searching.settings import SearchConfig, resolve_config
from wenet.searching.space import Dag
from wenet.searching.strategy import RECORDS, strategy_of
from wenet.tasks import LanguageModelling, Metric, task_of
from wenet.training import Plan, StandaloneResult, train_standalone, training_windows
from wenet.training.standalone import RECORDS as TRAINING_RECORDS
from wenet.training.standalone import RESULT as TRAINING_RESULT
from wenet.version import VERSION
from wenet.words import duration
from wenet_kernels import ACTIVATIONS

FIGURE, FIGURES = "figures/search-quality.svg", "figures/search-quality.json"  # beside the document
GROUP = 20  # cells trained standalone at once
RACE_RUNGS = 3
RACE_SHARE = 1 / 4  # of a mixture's windows in the first rung; two networks a cell and later rungs make it as dear
EARLY = 2  # records of a standalone training, of 20, after which learning is called early

# Departures from the preset; "default" is the preset itself.
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "batch norm": {"norm": "batch"},
    "mixing rate / 3": {"mix_lr": 1.7e-3},
    "mixing rate x 3": {"mix_lr": 1.5e-2},
    "embedding carried on": {"carry_embedding": True},
    "plain form": {"form": "plain"},
    # Departures from the paper.
    "weights shared": {"cell_weights": "shared"},
    "score held out": {"score": "held-out"},
    "networks dropped, 0.75": {"mix_dropout": 0.75},
    "networks dropped, 0.75, held out": {"mix_dropout": 0.75, "score": "held-out"},
    # Standalone trainings, for about as many network-steps.
    "successive halving": {"strategy": "random"},
    "race": {"strategy": "race", "batch": 1000, "rungs": RACE_RUNGS, "rates": "0.005"},
}


@dataclass(frozen=True)
class Quality:
    """The result of one search on the pool.

    Attributes:
        scores: of every cell of the pool, as `wenet.searching.audit.final_ranking` has them; higher is better.
        kept: numbers of the K cells kept at the end, the best first.
        first_round, rounds_kept: of every cell.
        seconds: of the search.
    """

    scores: np.ndarray
    kept: list[int]
    first_round: np.ndarray
    rounds_kept: np.ndarray
    seconds: float


@dataclass(frozen=True)
class Standalone:
    """The result of standalone training on the pool.

    Attributes:
        trainings: the metric of every cell on the validation part in each training of it, `[trainings, cells]`;
            infinite where training diverged.
        early: training loss of every cell in the second twentieth of its training, mean over trainings.
        seconds: of all trainings.
        windows: of one training.
    """

    trainings: np.ndarray
    early: np.ndarray
    seconds: float
    windows: int

    @property
    def values(self) -> np.ndarray:
        """Geometric mean of each cell's values; of perplexities, that is the perplexity of the mean loss."""
        return np.exp(np.log(self.trainings).mean(axis=0))

    @property
    def quality(self) -> np.ndarray:
        """Places in a ranking, higher is better; diverged cells count as last."""
        return stats.rankdata(-self.values)


def main() -> None:
    options = _parser().parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found = {
        name: [search_once(name, seed, options) for seed in range(1, options.seeds + 1)] for name in options.settings
    }
    for name, folders in found.items():
        config = _config(name, options)
        standalone = train_pool(config, options.data_dir, options.out / f"pool-{config.form}", options.trainings)
        cells = Dag().draw(config)
        pool = [str(cell) for cell in cells]
        searches = [read_search(folder, pool, config) for folder in folders]
        measured = row(name, searches, standalone, traits(cells), task_of(config).metric)
        origin = {"pool_seed": options.pool_seed, "from": _origin(options)}
        rows = add_row(options.out / "search-quality.json", {**measured, **origin})
    print(render(rows))
    if options.document is not None:
        write_document(rows, options.document)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", nargs="?", default="ptb", help="as in wenet-search (default: %(default)s)")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=["default"], metavar="NAME")
    parser.add_argument("--seeds", type=int, default=4, metavar="N", help="searches a setting (default: %(default)s)")
    parser.add_argument("--pool", type=int, metavar="T", help="cells in all (default: the preset's)")
    parser.add_argument("--pool-seed", type=int, default=1, metavar="N", help="of the one pool of all searches")
    parser.add_argument("--level", choices=LEVELS, help="words or characters (default: the preset's)")
    parser.add_argument("--max-vocabulary", type=int, metavar="N", help="as in wenet-search")
    parser.add_argument("--epochs-per-round", type=float, metavar="F", help="as in wenet-search")
    parser.add_argument("--epochs", type=float, default=0.25, metavar="F", help="of a standalone training")
    parser.add_argument("--trainings", type=int, default=2, metavar="N", help="standalone, of each cell")
    parser.add_argument("--data-dir", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--document", type=Path, metavar="FILE", help="write tables and figure into docs/measurements/search-quality.md"
    )
    return parser


def add_row(path: Path, added: dict[str, Any]) -> list[dict[str, Any]]:
    """Replace the row of the same setting, or add it; returns all rows in the order of SETTINGS."""
    rows = {r["setting"]: r for r in json.loads(path.read_text(encoding="utf-8"))} if path.exists() else {}
    rows[added["setting"]] = added
    ordered = [rows[name] for name in SETTINGS if name in rows]
    path.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    return ordered


def write_document(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the tables into the document, and their data beside it."""
    draw(rows, path.parent / FIGURE)
    (path.parent / FIGURES).write_text(json.dumps(rows) + "\n", encoding="utf-8")
    path.write_text(insert(path.read_text(encoding="utf-8"), render(rows)), encoding="utf-8")


def _given(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `search` for a setting with these options."""
    names = ("level", "pool", "max_vocabulary", "pool_seed", "epochs_per_round")
    asked = {name: value for name in names if (value := getattr(options, name)) is not None}
    given = {**asked, **SETTINGS[name]}
    if name == "race":
        given["epochs_per_round"] = RACE_SHARE * resolve_config("quick", given).epochs_per_round
    return given


def _config(name: str, options: argparse.Namespace) -> SearchConfig:
    given = {"dataset": options.dataset, "audit_epochs": options.epochs}
    return resolve_machine(resolve_config("quick", _given(name, options), given))


def search_once(name: str, seed: int, options: argparse.Namespace) -> Path:
    """Run or resume one search in its own folder; returns the folder."""
    folder = options.out / f"{_file_name(name)}-{seed}"
    if not _finished(folder):
        console = Console(quiet=True)
        console.say(f"{name}, seed {seed}")
        if (folder / "config.json").exists():
            resume_search(folder, data_dir=options.data_dir, console=console)
        else:
            settings = {**_given(name, options), "seed": seed}
            search(options.dataset, preset="quick", out=folder, data_dir=options.data_dir, console=console, **settings)
    return folder


def _finished(folder: Path) -> bool:
    best = folder / "best.json"
    if not best.exists():
        return False
    found = json.loads(best.read_text(encoding="utf-8"))
    return bool(found["rounds"] == found["rounds_planned"])


def _file_name(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name.replace("/", "by")).split())


def train_pool(config: SearchConfig, data_dir: Path | None, folder: Path, trainings: int) -> Standalone:
    """Train every cell of the pool standalone several times; unfinished trainings are resumed, finished ones read."""
    data = task_of(config).load(config, data_dir)
    with session_in(folder, config, data) as session:
        windows = training_windows(session, config.audit_epochs)
        found = [train_once(session, folder / f"seed-{seed}", windows, seed) for seed in range(1, trainings + 1)]
    values, early, seconds = zip(*found, strict=True)
    return Standalone(np.array(values), np.mean(early, axis=0), sum(seconds), windows)


def train_once(
    session: Session[SearchConfig], folder: Path, windows: int, seed: int
) -> tuple[list[float], list[float], float]:
    """One training of every cell of the pool: values, early losses and seconds."""
    pool = Dag().draw(session.config)
    values: list[float] = []
    early: list[float] = []
    seconds = 0.0
    for first in range(0, len(pool), GROUP):
        part, cells = folder / f"from-{first + 1}", pool[first : first + GROUP]
        label = f"training {seed}, pool {first + 1} to {first + len(cells)}"
        if (part / TRAINING_RESULT).exists():  # possibly of a version with fewer settings
            training = StandaloneResult.from_dict(json.loads((part / TRAINING_RESULT).read_text()), session.task.metric)
        else:
            session.console.say(label)
            training = train_standalone(session, part, Plan(cells, windows, seed), label)
        values += [outcome.value for outcome in training.outcomes]
        losses = _records(part / TRAINING_RECORDS)[EARLY - 1]["train_loss"]
        early += [np.inf if loss is None else loss for loss in losses]
        seconds += training.seconds
    return values, early, seconds


def _records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_search(folder: Path, pool: Sequence[str], config: SearchConfig) -> Quality:
    """The result of a finished search, which went through the whole pool."""
    records = _records(folder / RECORDS)
    ranked = {str(cell.genotype): cell for cell in final_ranking(records, config.keep, strategy_of(config))}
    first_round = {network["genotype"]: record["round"] for record in records[::-1] for network in record["networks"]}
    numbers = {genotype: number for number, genotype in enumerate(pool)}
    return Quality(
        np.array([ranked[genotype].score for genotype in pool]),
        [numbers[name] for name, cell in ranked.items() if cell.kept],
        np.array([first_round[genotype] for genotype in pool]),
        np.array([ranked[genotype].rounds_kept for genotype in pool]),
        records[-1]["seconds_so_far"],
    )


def traits(cells: Sequence[Genotype]) -> dict[str, np.ndarray]:
    """Properties of each cell that need no training."""
    depths = [_depths(cell) for cell in cells]
    inner = [{ancestor for _, ancestor in cell.recurrent} - {0} for cell in cells]
    counts = {name: np.array([cell.activations.count(name) for cell in cells]) for name in ACTIVATIONS}
    leaves = [cell.nodes - len(nodes) for cell, nodes in zip(cells, inner, strict=True)]
    return {**counts, "mean depth": np.array([statistics.fmean(d) for d in depths]), "leaves": np.array(leaves)}


def _depths(cell: Genotype) -> list[int]:
    """For every node, the number of edges to the init node."""
    depths = [0]
    for _, ancestor in cell.recurrent:
        depths.append(depths[ancestor] + 1)
    return depths[1:]


def row(
    name: str,
    searches: Sequence[Quality],
    standalone: Standalone,
    cell_traits: Mapping[str, np.ndarray],
    metric: Metric = LanguageModelling.metric,
) -> dict[str, Any]:
    """The figures of a setting over its searches.

    The intervals are of the bootstrap over cells. The p are of one-sided permutation tests that shuffle the standalone
    results among the cells, the same for all searches, so that searches that agree with one another are not taken for
    independent witnesses.
    """
    scores, quality = [search.scores for search in searches], standalone.quality
    finite = np.where(np.isfinite(standalone.values), standalone.values, np.nan)
    kept = [search.kept for search in searches]
    return {
        "setting": name,
        "changes": SETTINGS[name],
        "cells": len(quality),
        "taus": [_tau(s, quality) for s in scores],
        "tau": _mean_tau(scores, quality),
        "tau_interval": _interval(scores, quality),
        "tau_p": _permutation_p(lambda shuffled: _mean_tau(scores, shuffled), quality),
        "between_searches": _mean_between(scores),
        "between_trainings": _mean_between([stats.rankdata(-t) for t in standalone.trainings]),
        "kept_cells": kept,
        "kept_values": [finite[k].tolist() for k in kept],
        "kept": float(np.nanmean([np.nanmean(finite[k]) for k in kept])),
        "pool": summary(standalone.values.tolist()),
        "kept_p": _permutation_p(lambda shuffled: float(np.mean([shuffled[k].mean() for k in kept])), quality),
        "winner": float(np.nanmean([finite[k[0]] for k in kept])),
        "best": float(np.nanmin(finite)),
        "overlap": overlap([[str(n) for n in k] for k in kept], len(quality)) if len(kept) > 1 else None,
        "reasons": _reasons(searches, standalone),
        "traits": {trait: _mean_tau(scores, values) for trait, values in cell_traits.items()},
        "traits_of_quality": {trait: _tau(quality, values) for trait, values in cell_traits.items()},
        "seconds": [search.seconds for search in searches],
        "standalone_seconds": standalone.seconds,
        "standalone_windows": standalone.windows,
        "metric": metric.name,
        "places": metric.places,
        "scores": [s.tolist() for s in scores],
        "values": finite.tolist(),
    }


def _reasons(searches: Sequence[Quality], standalone: Standalone) -> dict[str, float]:
    """Mean Kendall's tau over searches between the score and other properties, and the quality of fast learners."""
    quality, fast = standalone.quality, stats.rankdata(-standalone.early)
    taus = [
        {
            "fast learners": _tau(search.scores, fast),
            "rounds kept": _tau(search.scores, search.rounds_kept),
            "quality, within the round of entry": _tau_within(search.scores, quality, search.first_round),
            "quality of the rounds kept": _tau(search.rounds_kept, quality),
        }
        for search in searches
    ]
    means = {name: float(np.mean([each[name] for each in taus])) for name in taus[0]}
    return {**means, "quality of fast learners": _tau(fast, quality)}


def _tau(first: np.ndarray, second: np.ndarray) -> float:
    """Kendall's tau; zero if there is no order on one side, as of one value or of equal ones."""
    return 0.0 if len(first) < 2 else float(np.nan_to_num(stats.kendalltau(first, second).statistic))


def _mean_between(scores: Sequence[np.ndarray]) -> float | None:
    """Mean tau between two searches or two trainings. Chance in a ranking limits its agreement with anything else."""
    taus = [_tau(first, second) for first, second in combinations(scores, 2)]
    return float(np.mean(taus)) if taus else None


def _mean_tau(scores: Sequence[np.ndarray], quality: np.ndarray) -> float:
    return float(np.mean([_tau(s, quality) for s in scores]))


def _tau_within(scores: np.ndarray, quality: np.ndarray, groups: np.ndarray) -> float:
    """Mean of the taus within each group."""
    return float(np.mean([_tau(scores[groups == group], quality[groups == group]) for group in np.unique(groups)]))


def _interval(scores: Sequence[np.ndarray], quality: np.ndarray) -> list[float]:
    found = stats.bootstrap(
        (np.arange(len(quality)),),
        lambda cells: _mean_tau([s[cells] for s in scores], quality[cells]),
        n_resamples=RESAMPLES,
        vectorized=False,
        method="percentile",
        rng=1,
    ).confidence_interval
    return [float(found.low), float(found.high)]


def _permutation_p(statistic: Callable[[np.ndarray], float], quality: np.ndarray) -> float:
    found = stats.permutation_test(
        (quality,),
        statistic,
        permutation_type="pairings",
        vectorized=False,
        n_resamples=RESAMPLES,
        alternative="greater",
        rng=1,
    )
    return float(found.pvalue)


def render(rows: Sequence[dict[str, Any]]) -> str:
    """The text between the markers of the document."""
    searched = duration(sum(sum(r["seconds"]) for r in rows))
    trained = {r["standalone_seconds"] for r in rows}  # settings that are trained standalone alike share one
    origins = dict.fromkeys(r["from"] for r in rows)
    agreement = rows[0]["between_trainings"]
    return "\n\n".join(
        [
            "\n".join(f"- {origin}" for origin in origins),
            f"Pool seed {rows[0]['pool_seed']}, search seeds from 1 on. Cost: {searched} for the searches and "
            f"{duration(sum(trained))} for the standalone trainings of all {rows[0]['cells']} cells, each of "
            f"{rows[0]['standalone_windows']:,} windows."
            + ("" if agreement is None else f" Two trainings of the same cells agree with τ = {agreement:.2f}."),
            "\n".join(quality_table(rows)),
            f"![Place by score of every cell against its quality trained standalone]({FIGURE})",
            "What the score follows, as mean Kendall's tau over the searches of a setting:",
            "\n".join(reasons_table(rows)),
            "Which cells score high, as Kendall's tau with what can be counted of a cell; first, which are good:",
            "\n".join(traits_table(rows)),
        ]
    )


def _origin(options: argparse.Namespace) -> str:
    """The command without paths, and the software versions."""
    given = {name: value for name, value in vars(options).items() if value is not None}
    words = ["python", "-m", "bench.search_quality", given.pop("dataset")]
    for name, value in given.items():
        if name not in ("out", "data_dir", "document"):
            words += [flag(name), *(value if isinstance(value, list) else [str(value)])]
    return f"`{shlex.join([*words, '--out', 'DIR'])}`, commit `{_commit()}`, {_versions()}"


def _commit() -> str:
    command = ["git", "rev-parse", "--short=10", "HEAD"]
    return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()


def _versions() -> str:
    packages = ", ".join([f"wenet-rnn {VERSION}", *(f"{name} {version(name)}" for name in ("torch", "scipy"))])
    return f"{packages}, Python {platform.python_version()}"


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Place by mean score over searches against quality trained standalone, one panel per setting; cells that a search
    kept are filled."""
    columns = min(3, len(rows))
    lines = -(-len(rows) // columns)
    with styled():
        drawing = new_drawing(2.6 * lines, 2.7 * columns + 0.4)
        for axes, r in zip(drawing.subplots(lines, columns, squeeze=False).flat, rows, strict=False):
            _draw_setting(axes, r)
        for axes in list(drawing.axes)[len(rows) :]:
            axes.remove()
    title = "Place by score of every cell against its quality trained standalone"
    save_picture(Picture("search-quality", title, f"{title}, a panel for each setting.", drawing, []), path)


def _draw_setting(axes: Axes, r: dict[str, Any]) -> None:
    """Draw outliers, which would compress the scale for all others, as triangles at the edge."""
    place = stats.rankdata(-np.mean(r["scores"], axis=0))
    kept = np.isin(np.arange(r["cells"]), r["kept_cells"])
    values = np.array(r["values"])
    quarter, median, three_quarters = np.nanquantile(values, (0.25, 0.5, 0.75))
    edge = median + 5 * (three_quarters - quarter)
    far = values > edge
    for cells, marker in ((~far, "o"), (far, ">")):
        x, faces = np.minimum(values[cells], edge), np.where(kept[cells], BLUE, "none")
        axes.scatter(x, place[cells], s=14, marker=marker, facecolors=faces, edgecolors=BLUE)
    axes.invert_yaxis()
    axes.set_title(f"{r['setting']}\nτ {r['tau']:.2f}", fontsize=9)
    axes.set_xlabel(f"{r['metric']}, standalone")
    axes.set_ylabel("place by score")


def quality_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| setting | searches | Kendall's tau, mean (95 % interval) | p | of each search "
        f"| {rows[0]['metric']} of the kept "
        "| of the pool | kept better, p | of the first | τ between searches | kept alike (chance) | a search |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        (low, high), places = r["tau_interval"], r["places"]
        cells = [
            r["setting"],
            str(len(r["taus"])),
            f"{r['tau']:.2f} ({low:.2f} to {high:.2f})",
            f"{r['tau_p']:.3f}",
            ", ".join(f"{tau:.2f}" for tau in r["taus"]),
            f"{r['kept']:.{places}f}",
            f"{r['pool']['mean']:.{places}f} ± {r['pool']['sd']:.{places}f}",
            f"{r['kept_p']:.3f}",
            f"{r['winner']:.{places}f}",
            "-" if r["between_searches"] is None else f"{r['between_searches']:.2f}",
            "-" if r["overlap"] is None else f"{r['overlap']['share']:.0%} ({r['overlap']['by_chance']:.0%})",
            duration(statistics.fmean(r["seconds"])),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def reasons_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    names = list(rows[0]["reasons"])
    return [
        f"| setting | {' | '.join(names)} |",
        "|---" * (len(names) + 1) + "|",
        *(" | ".join([f"| {r['setting']}", *(f"{r['reasons'][name]:.2f}" for name in names)]) + " |" for r in rows),
    ]


def traits_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    names = list(rows[0]["traits"])
    lines = [("standalone quality", rows[0]["traits_of_quality"]), *((r["setting"], r["traits"]) for r in rows)]
    return [
        f"| | {' | '.join(names)} |",
        "|---" * (len(names) + 1) + "|",
        *(" | ".join([f"| {title}", *(f"{found[name]:.2f}" for name in names)]) + " |" for title, found in lines),
    ]


if __name__ == "__main__":
    main()
