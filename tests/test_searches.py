"""The bench of whole searches: what a random search beside one may cost, and how differences are reckoned."""

import json
import math

import pytest

from bench import searches
from bench.paired import compared, written
from wenet.tasks import CharacterModelling, Metric

from .wenet.helpers import write_text

SMALL = {
    "parameters": 700,
    "pool": 16,
    "batch": 16,
    "nodes": "1-2",
    "rungs": 3,
    "epochs_per_round": 0.5,
    "contest_epochs": 1.0,
    "data_batch": 4,
}
SMALL |= {"rates": "0.01,0.03", "bptt": 10, "contest_seeds": 2, "eval_batch": 4}


def test_a_random_search_costs_no_more_than_the_race(tmp_path):
    text = write_text(tmp_path / "text")
    searches.measure(tmp_path / "out", str(text), None, {**SMALL, "seed": 1})
    (path,) = (tmp_path / "out").glob("*-1.json")
    result = json.loads(path.read_text())
    chance = result["random search"]
    assert result["windows_of_rungs"] / 2 < chance["windows_of_networks"] <= result["windows_of_rungs"]
    assert result["windows_of_rungs"] < result["windows_of_networks"]  # by the trials of rates
    assert chance["windows"] == result["contest"]["windows"] and 0 < chance["cells"] < SMALL["pool"]
    assert {row["name"] for row in chance["contestants"]} <= {"winner", "runner-up", "finalist 3", "median cell"}
    before = path.stat().st_mtime_ns
    searches.measure(tmp_path / "out", str(text), None, {**SMALL, "seed": 1})
    assert path.stat().st_mtime_ns == before
    assert f"{searches.mean_of(result, 'random search'):.4f}" in searches.table(tmp_path / "out")
    searches.train_anew(path, str(text), None, 4)
    anew = json.loads(path.read_text())["anew"]
    contested = {name: searches.row_of(result, name) for name in anew}
    assert list(anew) == ["winner", "random search"] and all(len(values) == 4 for values in anew.values())
    for name, values in anew.items():
        assert not set(values) & set(contested[name]["test"]) and abs(values[0] - contested[name]["mean"]) < 0.5
    same = all(contested["winner"][key] == contested["random search"][key] for key in ("genotype", "rate"))
    assert (anew["winner"] == anew["random search"]) is same
    before = path.stat().st_mtime_ns
    searches.train_anew(path, str(text), None, 4)
    assert path.stat().st_mtime_ns == before and searches.table(tmp_path / "out").count("| winner |") == 2


def test_a_search_without_rivals(tmp_path):
    text = write_text(tmp_path / "text")
    searches.measure(tmp_path / "out", str(text), None, {**SMALL, "seed": 1}, rivals=False)
    searches.measure(tmp_path / "whole", str(text), None, {**SMALL, "seed": 1})
    alone, whole = (json.loads(next((tmp_path / where).glob("*-1.json")).read_text()) for where in ("out", "whole"))
    assert {row["name"] for row in whole["contest"]["contestants"]} > {"winner", "lstm", "gru"}
    assert "lstm" not in {row["name"] for row in alone["contest"]["contestants"]}
    assert alone["cell"] == whole["cell"] and alone["windows_of_networks"] == whole["windows_of_networks"]
    assert searches.mean_of(alone, "random search") == searches.mean_of(whole, "random search")
    assert "lstm" not in searches.summary(alone) and " |  |  | " in searches.table(tmp_path / "out")
    assert math.isnan(searches.mean_of(alone, "gru")) and not math.isnan(searches.mean_of(alone, "median cell"))


def test_the_usual_rate_is_that_of_most_networks(tmp_path):
    for number, rates in enumerate(([0.02] * 3, [0.04] * 2, [0.02], [0.01] * 3)):
        (tmp_path / searches.FOLDER / f"1-1-{number}").mkdir(parents=True)
        (tmp_path / searches.FOLDER / f"1-1-{number}" / "config.json").write_text(json.dumps({"rates": rates}))
    assert searches.usual_rate(tmp_path) == 0.02


@pytest.mark.parametrize(("others", "expected"), [([1.5, 1.6, 1.7], "3 of 3, p 0.0"), ([1.1, 1.0, 1.2], "0 of 3")])
def test_differences_are_those_of_searches(others, expected):
    assert expected in compared([1.2, 1.25, 1.3], others, CharacterModelling.metric)
    higher = Metric("accuracy", "accuracy", lower_is_better=False)
    assert compared([0.9, 0.8], [0.7, 0.85], higher) == "1 of 2"  # too few for a test
    assert written([1.2, 1.25, 1.3], 4) == "1.2500 ± 0.0500" and written([1.2], 2) == "1.20"
