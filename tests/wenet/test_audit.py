"""The audit: which cells it takes, what it concludes, and that it survives a stop."""

import json
import math
import signal

import pytest
from scipy import stats

from wenet import random_genotypes, resume_search
from wenet.cli.search import main as search_main
from wenet.searching.audit import Ranked, choose, correlation, final_ranking, seniority, verdict
from wenet.searching.estimate import estimate_search_memory
from wenet.searching.mixture import Mixture
from wenet.searching.settings import STRATEGIES, resolve_config
from wenet.searching.strategy import strategy_named
from wenet.tasks import LanguageModelling
from wenet.training.outcome import Outcome
from wenet.training.standalone import StandaloneTraining

from .helpers import TINY, fails, words

AUDIT = ["--audit", "5", "--audit-epochs", "0.5"]


def ranking(survivors, rejected):
    cells = random_genotypes(survivors + rejected, 4, 0)
    count = len(cells)
    return [Ranked(cell, float(count - i), 1, 0, i < survivors, {}, i) for i, cell in enumerate(cells)]


def outcomes(perplexities):
    return [Outcome(cell, p, None, None) for cell, p in zip(random_genotypes(99, 4, 0), perplexities, strict=False)]


def network(name, weight, rounds_kept=0):
    return {"genotype": name, "weight": weight, "rounds_kept": rounds_kept}


RECORDS = [
    {"round": 1, "uniform_weight": 0.5, "networks": [network("tanh0", 0.6), network("relu0", 0.4)]},
    {
        "round": 2,
        "uniform_weight": 1 / 3,
        "networks": [network("sigmoid0", 0.5), network("tanh0", 0.3, 1), network("identity0", 0.2)],
    },
]


def test_the_last_score_of_every_cell_counts():
    found = {str(cell.genotype): (cell.score, cell.round, cell.kept) for cell in final_ranking(RECORDS, 1, Mixture)}
    assert found == {
        "sigmoid0": (pytest.approx(1.5), 2, True),
        "tanh0": (pytest.approx(0.9), 2, False),
        "relu0": (pytest.approx(0.8), 1, False),
        "identity0": (pytest.approx(0.6), 2, False),
    }


def test_kept_cells_come_first():
    """Though one that was rejected had a larger share of an earlier mixture."""
    records = [
        {"round": 1, "uniform_weight": 0.2, "networks": [network("tanh0", 0.9), network("relu0", 0.1)]},
        {"round": 2, "uniform_weight": 0.5, "networks": [network("sigmoid0", 0.51), network("identity0", 0.49)]},
    ]
    assert [str(cell.genotype) for cell in final_ranking(records, 1, Mixture)][:2] == ["sigmoid0", "tanh0"]


def test_seniority():
    found = seniority(RECORDS, keep=1)
    assert found["kept_again"] == 0
    assert found["by_chance"] == pytest.approx(1 / 3)
    assert found["spearman"]["value"] == 0


def test_seniority_is_that_of_cells_kept_from_round_to_round():
    """In a race, and in halving, every cell of a later rung was kept, whatever its merit."""
    assert [name for name in STRATEGIES if strategy_named(name).keeps_cells] == ["wenet"]


def test_survivors_and_one_of_each_stratum():
    cells = ranking(4, 60)
    chosen = choose(cells, 24, seed=3)
    assert chosen[:4] == cells[:4]
    assert [(cells.index(cell) - 4) // 3 for cell in chosen[4:]] == list(range(20))
    assert choose(cells, 24, seed=3) == chosen != choose(cells, 24, seed=4)
    assert choose(cells, 500, seed=3) == cells


@pytest.mark.parametrize("measure", [stats.spearmanr, stats.kendalltau])
@pytest.mark.parametrize("count", [3, 4, 6])
def test_p_of_few_cells_is_exact(measure, count):
    """Of all orders only two agree as well: the same, and the reverse."""
    found = correlation(measure, range(count), range(count), seed=1)
    assert found["value"] == pytest.approx(1) and found["p"] == pytest.approx(2 / math.factorial(count))


def test_agreement_and_chance():
    cells = ranking(4, 20)
    full = verdict(cells, outcomes(range(100, 124)), LanguageModelling.metric, seed=1)
    assert full["kendall"]["value"] == pytest.approx(1)
    assert full["spearman"]["value"] == pytest.approx(1)
    assert full["kept_better_p"] < 1e-3
    assert full["kept"]["mean"] == 101.5
    against = verdict(cells, outcomes(range(124, 100, -1)), LanguageModelling.metric, seed=1)
    assert against["kendall"]["value"] == pytest.approx(-1)
    assert against["kept_better_p"] > 0.99


def test_correlation_against_hand():
    """Of the 28 pairs of eight cells one disagrees: tau = (27 - 1) / 28."""
    found = correlation(stats.kendalltau, [1, 2, 3, 4, 5, 6, 7, 8], [1, 3, 2, 4, 5, 6, 7, 8], seed=1)
    assert found["value"] == pytest.approx(26 / 28)
    assert found["low"] < found["value"] < found["high"]
    assert correlation(stats.kendalltau, [1, 2, 3, 4], [5, 5, 5, 5], seed=1)["value"] is None


def test_a_cell_that_diverged_is_the_worst():
    result = verdict(ranking(2, 4), outcomes([5, 6, 7, 8, 9, math.inf]), LanguageModelling.metric, seed=1)
    assert result["kendall"]["value"] == pytest.approx(1)
    assert (result["rejected"]["diverged"], result["rejected"]["mean"]) == (1, 8)


def audit_of(run):
    result = json.loads((run / "audit.json").read_text())
    return {name: value for name, value in result.items() if "seconds" not in name and "memory" not in name}


def test_audit_within_a_search_and_after_it(text, tmp_path, capsys):
    assert search_main([str(text), *TINY, *AUDIT, "--out", str(tmp_path / "within")]) == 0
    output = capsys.readouterr().out
    assert "Kendall's tau" in output
    assert "was not measured" not in output
    assert search_main([str(text), *TINY, "--out", str(tmp_path / "after")]) == 0
    assert search_main(["--resume", str(tmp_path / "after"), *AUDIT]) == 0
    assert audit_of(tmp_path / "within") == audit_of(tmp_path / "after")
    audit = json.loads((tmp_path / "within" / "audit.json").read_text())
    assert audit["total_seconds"] == pytest.approx(audit["search_seconds"] + audit["seconds"], abs=0.01)
    assert [network["kept"] for network in audit["networks"]] == [True, True, False, False, False]
    last = json.loads((tmp_path / "within" / "search.jsonl").read_text().splitlines()[-1])
    assert [n["genotype"] for n in audit["networks"][:2]] == [n["genotype"] for n in last["networks"][:2]]


def test_a_stopped_audit_goes_on(text, tmp_path, monkeypatch):
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert search_main([str(text), *TINY, *AUDIT, "--out", str(whole)]) == 0
    assert search_main([str(text), *TINY, "--out", str(run)]) == 0
    real, steps = StandaloneTraining.step, []

    def step(self, *operands):
        steps.append(1)
        if len(steps) == 10:
            self.session.interrupt.requested = signal.SIGTERM
        return real(self, *operands)

    with monkeypatch.context() as patch:
        patch.setattr(StandaloneTraining, "step", step)
        assert search_main(["--resume", str(run), *AUDIT]) == 128 + signal.SIGTERM
    assert not (run / "audit.json").exists()
    assert resume_search(run).audit is not None
    assert audit_of(run) == audit_of(whole)


def test_memory_counts_the_audit():
    """Each cell of it has an embedding of its own, with two copies of its gradient and moments."""
    search, small, large = (
        estimate_search_memory(resolve_config("quick", {"audit": cells, "precision": "fp32"}), words(10_000))
        for cells in (0, 6, 80)
    )
    embeddings = 80 * 10_000 * 64 * 4 * 4
    assert search == small
    assert 1.5 * embeddings < large < 4 * embeddings


def test_too_few_cells_and_other_settings(text, tmp_path, capsys):
    assert "--audit must be at least 4" in fails(capsys, text, *TINY, "--audit", "3", "--out", tmp_path / "run")
    assert search_main([str(text), *TINY, *AUDIT, "--out", str(tmp_path / "run")]) == 0
    assert "begun with other settings" in fails(capsys, "--resume", tmp_path / "run", "--audit", "6")
    assert "begun with other settings" in fails(capsys, "--resume", tmp_path / "run", "--audit-epochs", "0.4")
    short = ["--epochs-per-round", "0.05", "--pool", "3", "--out", str(tmp_path / "without")]
    assert search_main([str(text), *TINY, *short]) == 0
    message = fails(capsys, "--resume", tmp_path / "without", "--audit-epochs", "0.4")
    assert "--audit-epochs is for --audit or --runs; say --audit too" in message


def test_an_audit_of_more_cells_than_there_are(text, tmp_path, capsys):
    short = ["--epochs-per-round", "0.05", "--audit-epochs", "0.05"]
    flags = ["--pool", "3", "--audit", "99", *short, "--out", str(tmp_path / "run")]
    assert search_main([str(text), *TINY, *flags]) == 0
    said = capsys.readouterr().out
    assert "audit     3 cells standalone for 0.05 epochs, on top" in said and "99" not in said
