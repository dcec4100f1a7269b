"""A time budget: what it plans, that it is kept, and that a stopped run goes on with what is left."""

import json
import re
import signal
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import wenet
from bench.sessions import session_in
from wenet import WenetError
from wenet.cli.search import main as search_main
from wenet.programs import load_program
from wenet.report import words
from wenet.run import Stopped, resolve_machine
from wenet.run.budget import Budget, Spent
from wenet.searching.contest import cautions, hold
from wenet.searching.contest.length import Times, end_of_trainings, seconds_of_a_window, windows_of_trainings
from wenet.searching.settings import resolve_config
from wenet.tasks import Baseline, LanguageModelling, task_of
from wenet.training import Plan, seconds_of_measured, train_standalone, windows_measured
from wenet.training.standalone import StandaloneTraining
from wenet.words import counted

from ..helpers import fails
from .test_searches import SHORT, sums

SETTINGS = {name: value for name, value in SHORT.items() if "epochs" not in name}


class Folder:
    def __init__(self, path):
        self.path = path

    def write_json(self, name, value):
        (self.path / name).write_text(json.dumps(value))


def test_a_plan_is_made_once_and_time_adds_up(tmp_path):
    first = Budget(Folder(tmp_path), 1, time.monotonic() - 20)
    assert first.planned("windows", lambda: 7) == 7 and 35 < first.left <= 40
    again = Budget(Folder(tmp_path), 1, time.monotonic() - 10)
    assert again.planned("windows", lambda: 8) == 7 and 30 <= again.spent < 35 and not again.is_over
    again.keep()
    late = Budget(Folder(tmp_path), 1, time.monotonic() - 40)
    assert late.is_over and Spent(1, late.spent).is_late
    assert not Spent(1, None).is_late and not Spent(1, 65).is_late and Spent(1, 67).is_late


def test_trainings_end_in_time_for_what_follows(tmp_path):
    """Also where they take longer than planned; five seconds are kept of a minute, and a part of an hour."""
    for minutes, kept in ((1, 5.0), (60, 180.0)):
        end = 60 * minutes * 1.05 - kept
        before, behind = (Budget(Folder(tmp_path), minutes, time.monotonic() - end + more) for more in (5, -1))
        assert not before.is_over and behind.is_over and not Spent(minutes, behind.spent).is_late
        assert abs(before.for_training - (before.left - kept)) < 0.1


def test_a_budget_is_kept(tmp_path):
    """Loosely here: other processes take the machine's time. The report is left out, for which some time is kept."""
    found = wenet.search(sums(), task="classify", minutes=0.4, out=tmp_path / "run", **SETTINGS)
    budget = json.loads((tmp_path / "run" / "budget.json").read_text())
    assert 0.3 * 24 < budget["seconds"] < 2 * 24
    assert found.contest["windows"] == budget["plans"]["windows_of_contest"]
    assert budget["plans"]["kept_for_measuring"] > 0 and found.spent == Spent(0.4, budget["plans"]["spent"])
    assert str(wenet.load(found.folder)) == str(found)
    assert re.search(r"cost +\d+ s \(search \d+ s, contest \d+ s, measuring and writing \d+ s\)", str(found))
    failure = found.best.failure_to_learn(found.metric, Baseline("guessing", 2.0), in_minutes=True)
    assert failure is not None and "raise --minutes or" in failure
    assert found.finished and len(found.contest["contestants"]) >= 5
    chosen = dict(words.course_rows(found.run))  # in the report
    generations, raced, windows = budget["plans"]["sizes_of_race"]
    assert generations == 1 and chosen["cells that raced"] == f"{raced} of at most 4"
    assert chosen["windows trained on by the end of each rung"].split(", ")[0] == f"{windows:,}"
    assert f" of {counted(found.contest['windows'], 'window')} each" in chosen["contest"]
    settings = {row[0]: row[1] for row in words.setting_rows(found.run)}
    assert settings["--pool"] == "at most 4" and settings["--minutes"] == "0.4"
    assert not {"--epochs-per-round", "--contest-epochs", "--hidden", "--lr"} & set(settings)


@pytest.mark.parametrize("moment", [15, 150])
def test_a_stopped_budget_goes_on(tmp_path, stop_at, moment, monkeypatch):
    from wenet.run import Stopped

    stop_at(moment)
    with pytest.raises(Stopped):
        wenet.search(sums(), task="classify", minutes=0.4, out=tmp_path / "run", **SETTINGS)
    monkeypatch.undo()
    before = json.loads((tmp_path / "run" / "budget.json").read_text())
    assert before["seconds"] > 0 and before["plans"]
    resumed = wenet.resume_search(tmp_path / "run")
    after = json.loads((tmp_path / "run" / "budget.json").read_text())
    assert resumed.finished and after["plans"].items() >= before["plans"].items()
    assert before["seconds"] < after["seconds"] < 2 * 24


def test_too_short_a_time_is_told_before_work_begins(tmp_path, capsys, monkeypatch):
    x, y = sums()
    np.savez(tmp_path / "sums.npz", x=x, y=y)
    settings = {**SETTINGS, "task": "classify", "minutes": 0.02}
    flags = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]

    def said(out):
        assert search_main([str(tmp_path / "sums.npz"), *flags, "--quiet", "--out", str(tmp_path / out)]) == 0
        return capsys.readouterr().out

    monkeypatch.setattr("wenet.run.budget.LATE", 0.0)  # a quick machine takes hardly longer
    text = said("short")
    assert "longer than --minutes allows" in text
    assert any("longer than --minutes allows" in each for each in words.caveats(wenet.load(tmp_path / "short").run))
    assert text.index("--minutes is too short: on these data the least search takes about ") < text.index("done after")
    monkeypatch.setattr("wenet.searching.work.least_seconds", lambda session: 1.0)
    assert "too short" not in said("long")


def test_time_that_is_up_ends_trainings(tmp_path, monkeypatch):
    """They end at their next window, and say so; all that follows is still measured."""
    monkeypatch.setattr("wenet.searching.contest.length.TRIALS_SHARE", 30.0)
    found = wenet.search(sums(), task="classify", minutes=0.15, out=tmp_path / "run", **SETTINGS)
    assert found.finished and all(row["test"] for row in found.contest["contestants"])
    assert 0 < found.contest["windows_trained"][0] <= found.contest["windows"]
    budget = json.loads((tmp_path / "run" / "budget.json").read_text())
    assert budget["seconds"] < 40


@pytest.mark.parametrize("after", [3, 7])
def test_a_training_whose_time_is_up_may_be_stopped_as_it_is_measured(after, tmp_path, monkeypatch):
    """Its last record is written once, and has the loss of the windows that it had."""
    whole = short_training(tmp_path / "whole", after, monkeypatch)
    real, calls = StandaloneTraining.measure, []

    def measure(self, *given):
        if not calls:
            calls.append(1)
            self.session.interrupt.requested = signal.SIGTERM
        return real(self, *given)

    monkeypatch.setattr(StandaloneTraining, "measure", measure)
    with pytest.raises(Stopped):
        short_training(tmp_path / "run", after, monkeypatch)
    assert short_training(tmp_path / "run", after, monkeypatch) == whole
    assert all(loss > 0 for record in whole for loss in record["train_loss"])


def short_training(folder, windows, monkeypatch):
    """The losses recorded of a training whose time is up after so many of 60 windows."""
    config = resolve_config("numbers", {"task": "classify", "dataset": "arrays", "precision": "fp32"})
    config, task = resolve_machine(replace(config, backend="reference", hidden=4, parameters=None)), task_of(config)
    over = SimpleNamespace(is_over=False, keep=lambda: None)
    with session_in(folder, config, task.take(sums(60))) as session:
        session = replace(session, budget=over)
        count = StandaloneTraining.count

        def counted(self, *given):
            count(self, *given)
            over.is_over = self.progress.windows >= windows

        monkeypatch.setattr(StandaloneTraining, "count", counted)
        over.is_over = (folder / "part" / "train.jsonl").exists()
        train_standalone(session, folder / "part", Plan([load_program("gru-program")], 60, 1), "training")
        monkeypatch.setattr(StandaloneTraining, "count", count)
    return [{**r, "seconds_so_far": 0} for r in session.folder.records("part/train.jsonl")]


def test_all_contestants_end_early_where_the_machine_is_slower(tmp_path, monkeypatch):
    """Not the last of them alone, which would have hardly trained."""
    measured = hold.times_of_trainings
    monkeypatch.setattr("wenet.run.budget.GRACE", 1.0)  # which would be much of so short a time
    monkeypatch.setattr(
        hold, "times_of_trainings", lambda *given: [Times(*(part / 4 for part in each)) for each in measured(*given)]
    )
    found = wenet.search(sums(), task="classify", minutes=0.4, out=tmp_path / "run", **SETTINGS)
    trained = [json.loads(path.read_text()) for path in tmp_path.glob("run/contest/training-*/result.json")]
    windows = [result["network_windows"] // len(result["outcomes"]) for result in trained]
    assert len(windows) > 2 and max(windows) < found.contest["windows"] and min(windows) > max(windows) / 4
    assert found.contest["windows_trained"] == [min(windows), max(windows)]
    assert f"contestants trained on {min(windows):,} to {max(windows):,} of" in str(found)
    assert found.best.windows in windows


def test_a_contest_that_was_cut_short_says_so():
    assert cautions({"windows": 40}) == cautions({"windows": 40, "windows_trained": [40, 40]}) == []
    [said] = cautions({"windows": 40, "windows_trained": [7, 40]})
    assert "trained on 7 to 40 of 40 windows, so these figures do not compare contestants fairly" in said
    said, short = cautions({"windows": 40, "windows_trained": [7, 9]})
    assert "7 to 9 of 40 windows, so" in said and short == "trainings of 9 windows say little about longer ones"
    assert cautions({"windows": 40, "windows_trained": [20, 20]}) == [
        "the time was up: contestants trained on 20 of 40 windows"
    ]
    assert cautions({"windows": 1}) == ["trainings of 1 window say little about longer ones"]


def test_time_that_is_left_is_for_those_who_need_it(tmp_path):
    """Ten seconds more than two groups need go to the first; what is short is short for both."""
    budget = Budget(Folder(tmp_path), 1, time.monotonic() - 20)  # the last moment is at 58 seconds

    def end(*needed: float, measuring: float = 0) -> float:
        return end_of_trainings(budget, [Times(seconds / 10, measuring) for seconds in needed], 10)

    assert end(18, 10) == pytest.approx(48, abs=0.5)
    assert end(57, 19) == pytest.approx(20 + 38 * 0.75, abs=0.5)
    assert end(10) == pytest.approx(58, abs=0.5)
    assert end(18, 10, measuring=3) == pytest.approx(42, abs=0.5)  # six are kept for the measurements of both


def test_time_to_measure_networks_is_kept(tmp_path):
    """Which takes longer than to train them where the decoder is large and trains on a sample of the words."""
    session = SimpleNamespace(budget=Budget(Folder(tmp_path), 1, time.monotonic() - 15))  # 40 seconds for trainings
    assert windows_of_trainings(session, [Times(0.5, 12), Times(0.5, 8)]) == pytest.approx(20, abs=1)


def test_measuring_is_timed_by_a_window(text, monkeypatch):
    given = {"dataset": str(text), "level": "words", "hidden": 8, "eval_batch": 4, "device": "cpu", "precision": "fp32"}
    config = resolve_config("race", {**given, "parameters": None, "backend": "reference", "sampled_words": 3})
    data, task = task_of(config).load(config, None), task_of(config)
    measured, given_streams = LanguageModelling.measure, []

    def spied(self, model, streams, *others):
        given_streams.append(streams.shape)
        return measured(self, model, streams, *others)

    monkeypatch.setattr(LanguageModelling, "measure", spied)
    assert seconds_of_measured(config, wenet.random_genotypes(2, 1, seed=0), task, data) > 0
    assert set(given_streams) == {(config.bptt + 1, 4)}
    valid, test = (task.windows(task.streams(data, part, 4), config.bptt) for part in ("valid", "test"))
    assert valid > 1 and windows_measured(config, task, data, "valid", "valid", "test") == 2 * valid + test


def test_budgets_that_cannot_be(capsys, tmp_path):
    flags = ["sotu", "--preset", "quick", "--minutes", "3", "--out", tmp_path / "run"]
    assert "--minutes is for --strategy race, not wenet; say --strategy race, or" in fails(capsys, *flags)
    assert "--minutes must be above 0" in fails(capsys, "sotu", "--minutes", "0", "--out", tmp_path / "run")
    for others, named in (({"runs": 2, "contest": False}, "--runs"), ({"audit": 30}, "--audit")):
        with pytest.raises(WenetError, match=f"--minutes is for one race and its contest; leave out {named}, or"):
            wenet.search("sotu", preset="race", minutes=1, out=tmp_path / "run", **others)


def test_calls_and_their_networks_are_told_apart():
    sizes = [3, 12, 40, 20]
    assert seconds_of_a_window(sizes, [0.02 + 0.001 * n for n in sizes]) == pytest.approx((0.02, 0.001))
    assert seconds_of_a_window([6, 6], [0.3, 0.5]) == pytest.approx((0.4, 0.0))
    assert seconds_of_a_window([2, 8], [0.5, 0.3]) == pytest.approx((0.4, 0.0))  # noise, as no network saves time
    assert seconds_of_a_window([2, 8], [0.1, 0.7]) == pytest.approx((0.0, 0.08))  # and no call is for nothing
