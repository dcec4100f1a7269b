"""`python -m bench.sampled_softmax`: what a sampled softmax costs in ranking, and saves in time.

The same random cells are trained standalone on words twice with the softmax over the whole vocabulary, and once with
each sampled one, on the same number of windows; validation is always over the whole vocabulary. The table shows how
each training agrees with the mean of the two full ones, beside how well those agree with each other. Trainings are kept
under --out, and the same command goes on with them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bench.race_quality import tau_of, written
from bench.sessions import pool_parser, session_in
from wenet.cells import Genotype, random_genotypes
from wenet.run import Session, resolve_machine
from wenet.searching.settings import SearchConfig, resolve_config
from wenet.tasks import task_of
from wenet.training import Plan, StandaloneResult, train_standalone


def main() -> None:
    options = _parser().parse_args()
    config = resolve_machine(resolve_config("quick", {"dataset": options.dataset}))
    cells = random_genotypes(options.cells, config.most_nodes, options.pool_seed)
    with session_in(options.out, config, task_of(config).load(config, options.data_dir)) as session:
        full = [train(session, cells, options.windows, 0, seed) for seed in (1, 2)]
        sampled = {words: train(session, cells, options.windows, words, 3) for words in options.sampled}
    found = rows(full, sampled)
    options.out.joinpath("sampled-softmax.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found))


def train(
    session: Session[SearchConfig], cells: Sequence[Genotype], windows: int, words: int, seed: int
) -> StandaloneResult:
    own = replace(session, config=replace(session.config, sampled_words=words))
    path, label = session.folder.path / f"{words}-{seed}", f"{words or 'all'} words, seed {seed}"
    return train_standalone(own, path, Plan(cells, windows, seed), label)


def rows(full: Sequence[StandaloneResult], sampled: dict[int, StandaloneResult]) -> list[dict[str, Any]]:
    """One for each kind of training: agreement with the full ones, mean and seconds."""
    first, second = map(_values, full)
    found = [
        {
            "words": words,
            "tau": tau_of(_values(result), (first + second) / 2),
            "mean": float(_values(result).mean()),
            "seconds": result.seconds,
        }
        for words, result in sampled.items()
    ]
    ceiling = {"words": 0, "tau": tau_of(first, second), "mean": float(first.mean()), "seconds": full[0].seconds}
    return [ceiling, *found]


def _values(result: StandaloneResult) -> np.ndarray:
    return np.array([outcome.value for outcome in result.outcomes])


def table(found: Sequence[dict[str, Any]]) -> str:
    """As Markdown."""
    lines = ["| softmax | τ (95 %) | mean perplexity | seconds |", "|---|---|---|---|"]
    for row in found:
        name = f"words of the window and {row['words']:,}" if row["words"] else "all words; τ of two trainings"
        lines.append(f"| {name} | {written(row['tau'])} | {row['mean']:.1f} | {row['seconds']:.0f} |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = pool_parser(__doc__, "ptb", 24, 300)
    parser.add_argument("--sampled", type=int, nargs="+", default=[500, 2000], metavar="N", help="default: %(default)s")
    return parser


if __name__ == "__main__":
    main()
