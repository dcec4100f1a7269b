"""The random baseline, several runs, and the comparison of cells."""

import json
import re
import signal

import pytest

import wenet
from wenet import random_genotypes, resume_search
from wenet.cli.rank import main as rank_main
from wenet.cli.search import main as search_main
from wenet.data import load_corpus
from wenet.report.run import read_run
from wenet.report.words import status
from wenet.searching import halving
from wenet.searching.halving import network_rounds, rungs
from wenet.searching.repeated import overlap
from wenet.searching.settings import resolve_config
from wenet.tasks import LanguageModelling
from wenet.training import Outcome, StandaloneResult

from .helpers import TINY as REFERENCE
from .helpers import results, without

TINY = [*REFERENCE, "--backend", "auto"]  # the fastest there is
HALVING = [*without(TINY, "--norm", "--mix-lr"), "--strategy", "random"]
RUNS = [*TINY, "--runs", "2", "--pool-seed", "5", "--audit-epochs", "0.3"]


def test_rungs_halve():
    assert rungs(resolve_config("quick", {"pool": 64})) == [64, 32, 16, 8, 4, 2]
    assert rungs(resolve_config("quick", {"pool": 7})) == [7, 4, 2]
    assert rungs(resolve_config("quick", {"pool": 1})) == [1]


def test_budget_is_that_of_the_search():
    """Every network of every round counts: three new, then two seeds beside three new, then two beside the last."""
    assert network_rounds(resolve_config("quick", {"pool": 7, "batch": 3, "keep": 2})) == 3 + 5 + 3


def test_successive_halving(text, tmp_path, capsys):
    run = tmp_path / "run"
    assert search_main([str(text), *HALVING, "--out", str(run)]) == 0
    assert "by successive halving: validation perplexity" in capsys.readouterr().out
    *records, best = results(run)
    cells = {str(genotype) for genotype in random_genotypes(7, 3, seed=1)}
    for record, count in zip(records, [7, 4, 2], strict=True):
        names = [network["genotype"] for network in record["networks"]]
        perplexities = [network["perplexity"] for network in record["networks"]]
        assert set(names) <= cells and len(names) == count
        assert perplexities == sorted(perplexities)
        cells = set(names[: -(-count // 2)])
    assert best["text"] == records[-1]["networks"][0]["genotype"]
    budget = 11 * 28  # networks over the rounds of the search times its windows a round, 0.6 of 46
    assert 0.9 * budget < best["network_windows"] <= budget
    assert [record["windows"] for record in records] == sorted(record["windows"] for record in records)


def test_stopped_halving_goes_on(text, tmp_path, stop_at):
    assert search_main([str(text), *HALVING, "--out", str(tmp_path / "whole")]) == 0
    stop_at(40)
    run = tmp_path / "run"
    assert search_main([str(text), *HALVING, "--out", str(run)]) == 128 + signal.SIGTERM
    resume_search(run)
    assert results(run) == results(tmp_path / "whole")


def test_audit_of_the_baseline(text, tmp_path):
    run = tmp_path / "run"
    assert search_main([str(text), *HALVING, "--audit", "5", "--audit-epochs", "0.3", "--out", str(run)]) == 0
    scores = [network["score"] for network in json.loads((run / "audit.json").read_text())["networks"]]
    assert scores[:2] == [3, 2.5]
    assert all(score < 2.5 for score in scores[2:])


def test_runs_are_ranked_by_standalone_training(text, tmp_path, capsys):
    run = tmp_path / "runs"
    assert search_main([str(text), *RUNS, "--out", str(run)]) == 0
    assert "winners by standalone validation perplexity" in capsys.readouterr().out
    best = json.loads((run / "best.json").read_text())
    winners = [json.loads((run / f"run-{k}" / "best.json").read_text()) for k in (1, 2)]
    assert {r["genotype"] for r in best["runs"]} == {winner["text"] for winner in winners}
    perplexities = [r["perplexity"] for r in best["runs"]]
    assert perplexities == sorted(perplexities)
    assert best["text"] == best["runs"][0]["genotype"]
    assert best["seconds"] == pytest.approx(sum(w["seconds"] for w in winners) + best["ranking_seconds"], abs=0.01)
    assert 0 <= best["overlap"]["share"] <= 1
    settings = [json.loads((run / f"run-{k}" / "config.json").read_text())["settings"] for k in (1, 2)]
    assert [(s["seed"], s["pool_seed"]) for s in settings] == [(1, 5), (2, 5)]


@pytest.mark.parametrize("step", [1, 5])
def test_stopped_runs_go_on(text, tmp_path, stop_at, step, capsys):
    whole, run = tmp_path / "whole", tmp_path / "runs"
    assert search_main([str(text), *RUNS, "--out", str(whole)]) == 0
    stop_at(step)
    assert search_main([str(text), *RUNS, "--out", str(run)]) == 128 + signal.SIGTERM
    assert f"continue with: wenet-search --resume {run}\n" in capsys.readouterr().err
    done = sum((run / f"run-{number}" / "best.json").exists() for number in (1, 2))
    assert status(read_run(run)) in [f"not finished: {done - unfinished} of 2 runs done" for unfinished in (0, 1)]
    assert search_main(["--resume", str(run)]) == 0
    assert status(read_run(run)) == "finished"
    for path in ("best.json", "run-1/best.json", "run-2/best.json"):
        found, expected = (json.loads((folder / path).read_text()) for folder in (run, whole))
        assert (found["text"], found.get("runs")) == (expected["text"], expected.get("runs"))


def test_several_races_count_their_mutations(text, tmp_path):
    """Cells that a race makes of others are not of the pool, so that runs have them in common shows nothing."""
    sizes = ["--parameters", "900", "--nodes", "1-2", "--pool", "7", "--batch", "3", "--keep", "2", "--rungs", "2"]
    data = ["--level", "words", "--data-batch", "4", "--eval-batch", "2", "--bptt", "6", "--epochs-per-round", "0.3"]
    runs = ["--no-contest", "--runs", "2", "--pool-seed", "5", "--audit-epochs", "0.3", "--lr", "0.02"]
    run = tmp_path / "runs"
    flags = [*sizes, *data, "--rates", "0.01", *runs, "--out", str(run)]
    assert search_main([str(text), "--preset", "race", *flags]) == 0
    best = wenet.load(run).best
    assert (best.networks_searched, best.mutations, best.overlap) == (14, 8, None)
    assert "Of 6 random cells and 8 mutations of the best" in " ".join(best.sentences(LanguageModelling.metric))


def test_equal_values_are_ranked_by_loss(text, tmp_path, monkeypatch):
    """Where a metric has few values, as of few sequences, the order of the pool would decide."""

    def train(session, path, cells, windows, seed, label):
        losses = (1.0 + pool.index(str(cell)) % 3 for cell in cells)
        outcomes = [Outcome(cell, 5.0, None, None, valid_loss=loss) for cell, loss in zip(cells, losses, strict=True)]
        return StandaloneResult(outcomes, windows * len(cells), 1.0, 1)

    pool = [str(cell) for cell in random_genotypes(7, 3, seed=1)]
    monkeypatch.setattr(halving, "train_cells", train)
    assert search_main([str(text), *HALVING, "--out", str(tmp_path / "run")]) == 0
    first, *_ = results(tmp_path / "run")
    assert [network["genotype"] for network in first["networks"]] == [pool[place] for place in (0, 3, 6, 1, 4, 2, 5)]


def test_overlap():
    found = overlap([["a", "b"], ["b", "c"], ["a", "b"]], pool=10)
    assert found["share"] == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert found["by_chance"] == pytest.approx(0.2)


def test_ranking_of_cells(text, tmp_path, capsys, stop_at):
    run, out = tmp_path / "run", tmp_path / "ranking"
    assert search_main([str(text), *TINY, "--out", str(run)]) == 0
    command = [str(run), "relu0 relu0 relu0", "--seeds", "2", "--epochs", "0.5", "--out", str(out)]
    stop_at(9)
    assert rank_main(command) == 128 + signal.SIGTERM
    assert "continue with: the same command" in capsys.readouterr().err
    assert rank_main(command) == 0
    assert re.search(rf", p = [0-9.]+ against {run}", capsys.readouterr().out)
    cells = json.loads((out / "ranking.json").read_text())["cells"]
    assert cells[0]["mean"] < cells[1]["mean"]
    first, second = sorted(cells, key=lambda cell: cell["name"] != str(run))
    assert first["genotype"] == json.loads((run / "best.json").read_text())["text"]
    assert (first["p"], second["genotype"], second["against"]) == (None, "relu0 relu0 relu0", str(run))
    assert 0 <= second["p"] <= 1
    assert second["mean"] == pytest.approx(sum(second["values"]) / 2)
    assert len(set(first["values"])) == 2


def test_ranking_with_an_lstm(text, tmp_path, capsys, stop_at):
    """It has as many parameters as a cell, or a few more, and changes nothing for the cells; stopped, it goes on."""
    run, out = tmp_path / "run", tmp_path / "ranking"
    assert search_main([str(text), *TINY, "--out", str(run)]) == 0
    options = ["--seeds", "2", "--epochs", "0.5", "--out"]
    assert rank_main([str(run), "relu0 relu0 relu0", *options, str(tmp_path / "without")]) == 0
    command = [str(run), "lstm", "relu0 relu0 relu0", *options, str(out)]
    stop_at(9)
    assert rank_main(command) == 128 + signal.SIGTERM
    assert rank_main(command) == 0
    said = capsys.readouterr().out
    size = int(re.search(r"lstm: one layer of size (\d+)", said)[1])
    words, hidden, nodes = len(load_corpus(str(text)).vocabulary), 8, 3
    wanted = words * (hidden + 1) + 4 * hidden**2 + 2 * nodes * hidden**2
    assert _lstm_parameters(words, size - 1) < wanted <= _lstm_parameters(words, size)
    found, without = (
        {cell["name"]: cell["values"] for cell in json.loads((folder / "ranking.json").read_text())["cells"]}
        for folder in (out, tmp_path / "without")
    )
    assert {name: values for name, values in found.items() if name != "lstm"} == without
    assert len(set(found["lstm"])) == 2 and "lstm, p = " in said


def _lstm_parameters(words: int, size: int) -> int:
    return words * (size + 1) + 8 * size**2 + 8 * size


def test_ranking_refuses(text, tmp_path, capsys):
    run = tmp_path / "run"
    assert search_main([str(text), *TINY, "--out", str(run)]) == 0
    for arguments, message in (
        ([str(run)], "at least two"),
        ([str(run), "relu0 relu0 relu0", "--seeds", "1"], "--seeds must be at least 2"),
        (["darts-v2", "relu0"], "no run folder darts-v2"),
        (["lstm", str(run)], "lstm cannot come first"),
        ([str(run), "lstn"], "did you mean 'lstm'?"),
    ):
        capsys.readouterr()
        assert rank_main([*arguments, "--out", str(tmp_path / "out")]) == 2
        captured = capsys.readouterr().err
        assert message in captured and captured.count("\n") == 1
