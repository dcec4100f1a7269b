"""`python -m bench.search_quality`: searches under different settings over several seeds, audited and tabulated."""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from wenet import SearchResult, resume_search, search
from wenet.console import Console, duration
from wenet.runs import overlap

# One departure each from the preset; "default" is the preset itself.
GRID: dict[str, dict[str, Any]] = {
    "default": {},
    "seeds keep their parameters": {"seed_parameters": "keep"},
    "without norm": {"norm": "none"},
    "plain form": {"form": "plain"},
    "mixing rate / 3": {"mix_lr": 3e-3},
    "mixing rate x 3": {"mix_lr": 3e-2},
    "twice the training a round": {"epochs_per_round": 0.24},
    "light dropout": {"dropout_embedding": 0.1, "dropout_x": 0.2, "dropout_h": 0.1, "dropout_output": 0.2},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Audit searches under different settings; the same command goes on where it was stopped.",
    )
    parser.add_argument("dataset", nargs="?", default="ptb", help="as in wenet-search (default: %(default)s)")
    parser.add_argument("--settings", nargs="+", choices=GRID, default=list(GRID), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=4, metavar="N", help="searches a setting (default: %(default)s)")
    parser.add_argument("--cells", type=int, default=24, metavar="N", help="audited a search (default: %(default)s)")
    parser.add_argument("--pool-seed", type=int, default=1, help="all searches share one pool (default: %(default)s)")
    parser.add_argument("--data-dir", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    options = parser.parse_args()
    rows = []
    for name in options.settings:
        results = [run_once(name, seed, options) for seed in range(1, options.seeds + 1)]
        rows.append(row(name, results))
        (options.out / "search-quality.json").write_text(json.dumps(rows, indent=2) + "\n")
        (options.out / "search-quality.md").write_text("\n".join(table(rows)) + "\n")
    print("\n".join(table(rows)))


def run_once(name: str, seed: int, options: argparse.Namespace) -> SearchResult:
    """One search with its audit, in a folder of its own that is gone on with where it is there."""
    folder = options.out / f"{name.replace(' ', '-').replace('/', 'by')}-{seed}"
    console = Console(quiet=True)
    if (folder / "config.json").exists():
        return resume_search(folder, data_dir=options.data_dir, console=console)
    settings = {**GRID[name], "seed": seed, "pool_seed": options.pool_seed, "audit": options.cells}
    return search(options.dataset, preset="quick", out=folder, data_dir=options.data_dir, console=console, **settings)


def row(name: str, results: list[SearchResult]) -> dict[str, Any]:
    """The figures of a setting, one of each search."""
    audits = [result.audit for result in results if result.audit is not None]
    kept = [[cell["genotype"] for cell in audit["networks"] if cell["survivor"]] for audit in audits]
    pool = results[0].best["networks_searched"]
    return {
        "setting": name,
        "changes": GRID[name],
        "seeds": len(audits),
        "kendall": [audit["kendall"] for audit in audits],
        "spearman": [audit["spearman"] for audit in audits],
        "survivors": [audit["survivors"] for audit in audits],
        "rejected": [audit["rejected"] for audit in audits],
        "survivors_better_p": [audit["survivors_better_p"] for audit in audits],
        "kept_again": [audit["seniority"]["kept_again"] for audit in audits],
        "overlap": overlap(kept, pool) if len(kept) > 1 else None,
        "seconds": [audit["total_seconds"] for audit in audits],
    }


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Means over seeds in Markdown, with the spread of Kendall's tau; the JSON beside it has every single figure."""
    lines = [
        "| setting | seeds | Kendall's tau, mean (from, to) | kept | rejected | kept better, p a seed | kept again "
        "| overlap (chance) | a search with audit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        tau = [found["value"] for found in r["kendall"] if found["value"] is not None]
        spread = f"{statistics.fmean(tau):.2f} ({min(tau):.2f}, {max(tau):.2f})" if tau else "undefined"
        shared = "-" if r["overlap"] is None else f"{r['overlap']['share']:.0%} ({r['overlap']['by_chance']:.0%})"
        lines.append(
            f"| {r['setting']} | {r['seeds']} | {spread} | {_mean([s['mean'] for s in r['survivors']])} | "
            f"{_mean([s['mean'] for s in r['rejected']])} | {', '.join(f'{p:.2f}' for p in r['survivors_better_p'])} | "
            f"{_mean(r['kept_again'], 2)} | {shared} | {duration(statistics.fmean(r['seconds']))} |"
        )
    return lines


def _mean(values: list[float | None], places: int = 1) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.fmean(known):.{places}f}" if known else "-"


if __name__ == "__main__":
    main()
