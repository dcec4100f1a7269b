"""A strategy and a task that the package does not have: one class and one line in a table each, and every command."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from wenet import random_genotypes
from wenet.cli.report import main as report_main
from wenet.cli.search import main as search_main
from wenet.cli.train import main as train_main
from wenet.data import Corpus
from wenet.searching.estimate import estimate_search
from wenet.searching.settings import STRATEGIES, resolve_config
from wenet.searching.space import draw_pool
from wenet.searching.strategy import RECORDS, Best, Record, Strategy
from wenet.tasks import TASKS, Baseline, LanguageModelling, Metric
from wenet.tasks.task import Measurement
from wenet.training import estimate_standalone, estimate_training, resolve_train_config

from ..helpers import STANDALONE, TINY, fails, results, words

SYMBOLS = 6


class Dice(Strategy):
    """Ranks the pool by chance, without training."""

    stage = "throw"

    def run(self) -> Best:
        config, folder, metric = self.session.config, self.session.folder, self.session.task.metric
        cells = draw_pool(config)
        random.Random(config.seed).shuffle(cells)
        cost = {"seconds_so_far": 0.5, "peak_memory_bytes": 1_000_000}
        folder.truncate_records(RECORDS, 0)
        folder.append_record(
            RECORDS,
            {
                **{"round": 1, "windows": 0, "tokens": 0, "train_loss": None, f"valid_{metric.key}": None, **cost},
                "networks": [{"genotype": str(cell), "rounds_kept": 0} for cell in cells],
            },
        )
        best = Best(cells[0], 0, 1, 1, len(cells), 0, cost["seconds_so_far"], cost["peak_memory_bytes"])
        folder.write_json("best.json", best.to_dict(metric))
        return best

    @classmethod
    def memory(cls, config: Any, data: Any, processes: int) -> int:
        return 0

    @classmethod
    def stages(cls, config: Any) -> int:
        return 1

    @classmethod
    def score(cls, record: Record, place: int) -> float:
        return -float(place)


class Symbols(LanguageModelling):
    """The next symbol of a repeating sequence, measured by the share that is right; no file is read."""

    metric = Metric("accuracy", "accuracy", lower_is_better=False, places=3)

    def load(self, config: Any, data_dir: Path | None) -> Corpus:
        generator = torch.Generator().manual_seed(7)
        parts = {}
        for part, length in (("train", 600), ("valid", 200), ("test", 200)):
            noise = torch.rand(length, generator=generator) < 0.05
            parts[part] = (torch.arange(length) + noise.cumsum(0)) % SYMBOLS
        fingerprint = hashlib.sha256(str([part.tolist() for part in parts.values()]).encode()).hexdigest()
        return Corpus("symbols", **parts, vocabulary=tuple("abcdef"), fingerprint=fingerprint)

    def baseline(self, data: Corpus) -> Baseline:
        return Baseline("the commonest symbol", float(torch.bincount(data.valid).max() / len(data.valid)))

    @torch.no_grad()
    def measure(self, model, streams, steps, between=lambda: None, of_networks=False) -> Measurement:
        assert not of_networks
        loss, _, windows = super().measure(model, streams, steps, between)
        return Measurement(loss, torch.exp(-loss), windows)  # near enough, and higher where the model is better


@pytest.fixture
def dice(monkeypatch):
    monkeypatch.setitem(STRATEGIES, "dice", f"{__name__}:Dice")


@pytest.fixture
def symbols(monkeypatch):
    monkeypatch.setitem(TASKS, "symbols", Symbols)


def test_a_strategy_is_a_class_and_a_line(dice, text, tmp_path, capsys):
    run = tmp_path / "run"
    flags = ["--strategy", "dice", "--audit", "4", "--audit-epochs", "0.2"]
    assert search_main([str(text), *TINY, *flags, "--out", str(run)]) == 0
    said = capsys.readouterr().out
    pool = random_genotypes(7, 3, seed=1)
    random.Random(1).shuffle(pool)
    assert f"cell      {pool[0]}" in said and "best of 7 networks" in said and "4 cells trained standalone" in said
    audit = json.loads((run / "audit.json").read_text())
    assert [cell["genotype"] for cell in audit["networks"] if cell["kept"]] == [str(cell) for cell in pool[:2]]
    page = (run / "report.html").read_text()
    assert "Of 7 random cells this one won." in page and "The audit trained 4 of the cells" in page
    assert search_main(["--resume", str(run)]) == 0
    assert f"cell      {pool[0]}" in capsys.readouterr().out
    assert report_main([str(run)]) == 0


def test_runs_of_a_strategy_of_ones_own(dice, text, tmp_path):
    run = tmp_path / "run"
    flags = ["--strategy", "dice", "--runs", "2", "--audit-epochs", "0.2"]
    assert search_main([str(text), *TINY, *flags, "--out", str(run)]) == 0
    winners = [json.loads((run / f"run-{number}" / "best.json").read_text())["text"] for number in (1, 2)]
    assert winners[0] != winners[1]
    assert json.loads((run / "best.json").read_text())["text"] in winners


@pytest.mark.parametrize("strategy", ["wenet", "random"])
def test_a_task_is_a_class_and_a_line(symbols, strategy, tmp_path, capsys):
    run = tmp_path / "run"
    flags = ["--task", "symbols", "--strategy", strategy, "--audit", "4", "--audit-epochs", "0.2"]
    assert search_main([*STANDALONE, *flags, "--out", str(run)]) == 0
    said = capsys.readouterr().out
    assert "text      symbols: 600 training tokens, 6 words" in said and "validation accuracy" in said
    *rounds, _ = results(run)
    assert all(0 < record["valid_accuracy"] < 1 for record in rounds)
    cells = json.loads((run / "audit.json").read_text())["networks"]
    assert all(0 < cell["accuracy"] < 1 for cell in cells)
    if strategy == "random":  # the highest is the best
        for record in rounds:
            reached = [network["accuracy"] for network in record["networks"]]
            assert reached == sorted(reached, reverse=True)
    page = (run / "report.html").read_text()
    assert "validation accuracy" in page and "perplexity" not in page.split("<h2>Settings")[0].split("<main>")[1]


def test_training_for_a_task_keeps_its_highest_epoch(symbols, tmp_path):
    run = tmp_path / "run"
    flags = ["--preset", "quick", "--cell", "tanh0 relu1", "--hidden", "6", "--epochs", "4", "--data-batch", "4"]
    machine = ["--eval-batch", "4", "--test-batch", "4", "--backend", "reference"]
    assert train_main(["--task", "symbols", *flags, *machine, "--out", str(run)]) == 0
    *epochs, best = results(run, "train.jsonl")
    reached = [epoch["valid_accuracy"] for epoch in epochs]
    assert best["valid_accuracy"] == max(reached) and min(reached) < max(reached)


class Opaque(LanguageModelling):
    """Data that nobody but the task can look into."""

    def outputs(self, data) -> int:
        return data

    def positions(self, data, part) -> int:
        return {"train": 9000, "valid": 3000}[part]

    def streams(self, data, part, rows):
        return torch.zeros(3000 // rows, rows, dtype=torch.long)

    def model(self, layer, config, data):
        with torch.device("cpu"):
            return super().model(layer, config, words(data))

    def standalone_models(self, layer, config, data):
        with torch.device("cpu"):
            return super().standalone_models(layer, config, words(data))


def test_estimates_ask_the_task(monkeypatch):
    monkeypatch.setitem(TASKS, "opaque", Opaque)
    settings = {"task": "opaque", "hidden": 8, "backend": "reference", "device": "cpu", "precision": "fp32"}
    search, train = resolve_config("quick", {**settings, "nodes": 3}), resolve_train_config("quick", settings)
    cell = random_genotypes(1, 3, seed=0)[0]
    for estimate in (
        lambda words: estimate_search(search, Opaque(), words),
        lambda words: estimate_training(train, cell, Opaque(), words),
    ):
        small, large = estimate(30), estimate(300_000)
        assert small.seconds > 0 and large.memory > small.memory + 300_000 * 8 * 4
    assert estimate_standalone(search, random_genotypes(1, 2, 0)[0], 3, 0.5, Opaque(), 30) > 0


def test_an_unknown_task_is_named(text, tmp_path, capsys):
    assert "unknown --task 'chess'" in fails(capsys, text, *TINY, "--task", "chess", "--out", tmp_path / "run")
