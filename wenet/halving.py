"""The baseline of every search: random cells under successive halving (Jamieson and Talwalkar 2016)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from wenet.audit import training_windows
from wenet.checkpoint import RunFolder
from wenet.config import SearchConfig
from wenet.console import duration
from wenet.genotype import Genotype
from wenet.independent import Outcome, TrainingResult, train_independently
from wenet.resumable import Workplace
from wenet.search import RECORDS, draw_pool

FOLDER = "rungs"


class Halving:
    """Successive halving over the pool that a search with the same settings would search.

    The budget is that of the search, in windows of training times networks, in equal parts over the rungs. A rung
    trains its cells from new weights, at most `batch` of them at once, and the better half by validation perplexity
    goes on to the next, where each is trained for twice as long.

    Args:
        work: the settings, the text, and where to report to.
        run: takes one record a rung.
    """

    def __init__(self, work: Workplace[SearchConfig], run: RunFolder) -> None:
        self.work, self.config, self.folder = work, work.config, run
        self.rungs = rungs(self.config)
        round_windows = training_windows(self.config, work.corpus, self.config.epochs_per_round)
        self.budget = network_rounds(self.config) * round_windows

    def run(self) -> dict[str, Any]:
        """All rungs, from where they were left; returns what `best.json` holds.

        Raises:
            WenetError, Stopped: as in `train_independently`.
        """
        self.folder.truncate_records(RECORDS, 0)  # finished trainings are read again, so records are written again
        cells = draw_pool(self.config)
        results: list[TrainingResult] = []
        for rung in range(len(self.rungs)):
            results += self._train_rung(rung, cells)
            outcomes = [outcome for result in results[-self._groups(cells) :] for outcome in result.outcomes]
            ranked = sorted(outcomes, key=lambda outcome: outcome.perplexity)
            self._record(rung, ranked, results)
            cells = [outcome.genotype for outcome in ranked[: -(-len(ranked) // 2)]]
        best = self._best(results)
        self.folder.write_json("best.json", best)
        return best

    def _groups(self, cells: Sequence[Genotype]) -> int:
        return -(-len(cells) // self.config.batch)

    def _windows(self, rung: int) -> int:
        return max(1, self.budget // (len(self.rungs) * self.rungs[rung]))

    def _train_rung(self, rung: int, cells: Sequence[Genotype]) -> list[TrainingResult]:
        groups = self._groups(cells)
        return [
            train_independently(
                self.work,
                self.folder.path / FOLDER / f"{rung + 1}-{group + 1}",
                cells[group * self.config.batch : (group + 1) * self.config.batch],
                self._windows(rung),
                self.config.seed + rung,
                f"rung {rung + 1}/{len(self.rungs)}, group {group + 1}/{groups}",
            )
            for group in range(groups)
        ]

    def _record(self, rung: int, ranked: Sequence[Outcome], results: Sequence[TrainingResult]) -> None:
        windows, best = self._windows(rung), ranked[0]
        losses = [outcome.train_loss for outcome in ranked if outcome.train_loss is not None]
        seconds = round(sum(result.seconds for result in results), 3)
        record = {
            "round": rung + 1,
            "windows": windows,
            "tokens": windows * self.config.bptt * self.config.data_batch,  # of each network, the last window in full
            "train_loss": sum(losses) / len(losses) if losses else None,
            "valid_perplexity": best.perplexity if math.isfinite(best.perplexity) else None,
            "uniform_weight": None,
            "seconds_so_far": seconds,
            "peak_memory_bytes": max(result.peak_memory for result in results),
            "networks": [{**outcome.to_dict(), "weight": None, "rounds_kept": rung} for outcome in ranked],
        }
        self.folder.append_record(RECORDS, record)
        self.work.console.say(
            f"rung {rung + 1}/{len(self.rungs)} done after {duration(seconds)}: {len(ranked)} cells, "
            f"{windows:,} windows, best validation perplexity {best.perplexity:.1f}: {best.genotype}"
        )

    def _best(self, results: Sequence[TrainingResult]) -> dict[str, Any]:
        last = self.folder.records(RECORDS)[-1]
        winner = last["networks"][0]
        genotype = Genotype.from_text(winner["genotype"])
        return {
            "genotype": genotype.to_dict(),
            "text": str(genotype),
            "weight": None,
            "uniform_weight": None,
            "perplexity": winner["perplexity"],
            "windows": last["windows"],
            "rounds_kept": winner["rounds_kept"],
            "rounds": len(self.rungs),
            "rounds_planned": len(self.rungs),
            "networks_searched": self.config.pool,
            "network_windows": sum(result.network_windows for result in results),
            "seconds": last["seconds_so_far"],
            "peak_memory_bytes": last["peak_memory_bytes"],
        }


def rungs(config: SearchConfig) -> list[int]:
    """Cells of each rung, halved until two are left, or one where the pool is no more."""
    counts = [config.pool]
    while counts[-1] > 2:
        counts.append(-(-counts[-1] // 2))
    return counts


def network_rounds(config: SearchConfig) -> int:
    """Networks that a search trains, counted once for each round."""
    return config.pool + min(config.seeds, config.batch) * (config.rounds - 1)
