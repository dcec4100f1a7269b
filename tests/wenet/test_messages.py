"""What is said of numbers: as a person would say it, and with the time that the next step takes."""

import math

import pytest
import torch

from wenet import search
from wenet.cli.search import main as search_main
from wenet.data import Corpus
from wenet.searching.audit import correlation_in_words, describe_audit, spread_in_words
from wenet.searching.mixture import MixtureBest
from wenet.searching.settings import resolve_config
from wenet.searching.space import space_of
from wenet.tasks import Baseline, LanguageModelling, Metric, failure_to_learn
from wenet.words import counted, share

from .helpers import TINY, write_text

PERPLEXITY = LanguageModelling.metric
NOTHING = {"value": None, "low": None, "high": None, "p": None}
ALONE = {"cells": 1, "diverged": 0, "mean": 20.0, "sd": None}


@pytest.mark.parametrize(
    ("count", "noun", "said"),
    [
        (1, "window", "1 window"),
        (2000, "window", "2,000 windows"),
        (0, "cell", "0 cells"),
        (1.0, "epoch", "1 epoch"),
        (0.4, "epoch", "0.4 epochs"),
        (1.0, "pass", "1 pass"),
        (2.0, "pass", "2 passes"),
    ],
)
def test_a_number_meets_its_noun(count, noun, said):
    assert counted(count, noun) == said


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"space": "dag", "nodes": "1"}, "1 node"),
        ({"space": "dag", "nodes": "1-4"}, "1-4 nodes"),
        ({"space": "gated", "blocks": "3", "states": "1"}, "3 blocks, 1 state"),
    ],
)
def test_the_cells_of_a_space_in_words(settings, said):
    config = resolve_config("race", settings)
    assert space_of(config).outline(config) == said


def test_shares_are_words_where_they_are_whole():
    assert [share(part) for part in (0, 0.25, 1)] == ["none", "25%", "all"]


def test_a_correlation_that_is_not_there():
    assert correlation_in_words(NOTHING, 0.95) == "undefined, as all are equal"
    found = {"value": 0.4, "low": None, "high": None, "p": 0.1}
    assert correlation_in_words(found, 0.95) == "0.40 (too few cells for an interval, p = 0.100)"
    found = {"value": 0.4, "low": -0.2, "high": 0.8, "p": 0.1}
    assert correlation_in_words(found, 0.95) == "0.40 (95% interval -0.20 to 0.80, p = 0.100)"


def test_a_spread_that_is_not_there():
    assert spread_in_words({"cells": 0, "diverged": 0, "mean": None, "sd": None}, 1) == "none"
    assert spread_in_words(ALONE, 1) == "20.0 (1 cell)"
    assert spread_in_words({"cells": 2, "diverged": 1, "mean": 20.0, "sd": None}, 1) == "20.0 (2 cells, 1 diverged)"
    assert spread_in_words({"cells": 2, "diverged": 2, "mean": None, "sd": None}, 1).startswith("none that did not")


def test_an_audit_of_next_to_nothing():
    audit = {
        **{"cells": 1, "epochs": 1.0, "seconds": 3.0, "confidence": 0.95, "kendall": NOTHING, "spearman": NOTHING},
        **{"kept": ALONE, "rejected": {**ALONE, "cells": 0, "mean": None}, "kept_better_p": None},
        "seniority": {"kept_again": 0.0, "by_chance": 0.25, "spearman": None},
    }
    said = "\n".join(describe_audit(audit, PERPLEXITY))
    assert "1 cell trained standalone for 1 epoch" in said
    assert "none of the kept cells were kept again; chance would keep 25%" in said
    assert not any(word in said for word in ("unknown", "None", "nan", "undefined to"))


def test_word_frequencies_by_hand():
    train, valid = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 1, 3])
    corpus = Corpus("toy", train, valid, valid, ("a", "b", "c", "d"), "")
    expected = math.exp(-(math.log(4 / 10) + math.log(3 / 10) + math.log(1 / 10)) / 3)  # each counts once more
    assert LanguageModelling().baseline(corpus).value == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("value", "told"), [(80.0, False), (100.0, True), (4148.0, True), (None, True)])
def test_a_model_must_beat_the_baseline(value, told):
    baseline = Baseline("word frequencies", 100.0)
    said = failure_to_learn("the mixture", value, PERPLEXITY, baseline)
    assert (said is not None) is told
    assert failure_to_learn("the mixture", value, PERPLEXITY, None) is None  # in a run of before


def test_higher_may_be_better():
    accuracy, baseline = Metric("accuracy", "accuracy", lower_is_better=False), Baseline("the commonest", 0.3)
    assert failure_to_learn("it", 0.4, accuracy, baseline) is None
    assert failure_to_learn("it", 0.2, accuracy, baseline) is not None


def test_the_end_of_a_search_warns_or_names_next_steps(tmp_path, capsys):
    text = write_text(tmp_path / "text")
    run = tmp_path / "run of mine"
    assert search_main([str(text), *TINY, "--lr", "1e-9", "--out", str(run)]) == 0
    said = capsys.readouterr().out
    assert "caution   the mixture of the last round has not learned: its validation perplexity is" in said
    assert "--audit" not in said  # which would tell nothing
    learned = tmp_path / "learned"
    flags = ["--lr", "0.05", "--epochs-per-round", "3", "--norm", "none"]
    assert search_main([str(text), *TINY, *flags, "--out", str(learned)]) == 0
    said = capsys.readouterr().out
    assert "has not learned" not in said
    assert f"wenet-search --resume {learned} --audit 24   # about " in said
    assert f"next      wenet-train {text} --cell {learned} --preset quick   # about " in said


def test_a_program_that_prints_nothing_pays_for_no_estimate(tmp_path):
    found = search(str(write_text(tmp_path / "text")), preset="quick", pool=2, batch=2, keep=1, hidden=4, nodes=2,
                   data_batch=4, eval_batch=2, epochs_per_round=0.1, max_vocabulary=15,
                   out=tmp_path / "run of mine")  # fmt: skip
    assert found.next_steps.audit_seconds is None
    assert found.next_steps.train.endswith("--preset quick --max-vocabulary 15")
    assert f"--resume '{tmp_path / 'run of mine'}'" in found.next_steps.audit


def test_a_winner_kept_once_before():
    values = {"rounds_kept": 2, "rounds": 3, "rounds_planned": 3, "networks_searched": 1, "network_windows": 1}
    costs = {"seconds": 1.0, "peak_memory_bytes": 1, "weight": 0.5, "uniform_weight": 0.5, "held_out_loss": None}
    best = MixtureBest(None, **values, **costs, mixture_value=20.0)
    assert best.how_it_won(PERPLEXITY).startswith("best of 1 network: ")
    assert best.how_it_won(PERPLEXITY).endswith("kept from 1 earlier round")
