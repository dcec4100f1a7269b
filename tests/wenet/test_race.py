"""Races and contests on a small text: who leaves, who comes back after a stop, and what may be claimed."""

import csv
import json
import math
import random
import re
import shutil
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import wenet
from wenet import Genotype, WenetError, random_genotypes
from wenet.cells import load_genotype, mutated, random_mixed_genotypes, read_cell
from wenet.cli.rank import main as rank_main
from wenet.cli.search import main as search_main
from wenet.data import load_corpus
from wenet.programs import load_program
from wenet.report.words import caveats, command, summary
from wenet.report.write import write_report
from wenet.run import Session, Surroundings
from wenet.searching.audit import final_ranking, welch
from wenet.searching.contest import describe_contest, hold, reached, verdict
from wenet.searching.contest.contestants import Contestant, contestants_of
from wenet.searching.contest.trainings import Trained, named_by_rank
from wenet.searching.contest.trials import where_others
from wenet.searching.halving import HalvingBest
from wenet.searching.paired import are_larger
from wenet.searching.race import Race, RaceBest, estimate
from wenet.searching.race.course import Course, Runner
from wenet.searching.race.fitting import fitting_sizes
from wenet.searching.race.losses import extrapolated, losses_of
from wenet.searching.race.race import OVER
from wenet.searching.race.rungs import extrapolates, networks_of_entrant, shares_left
from wenet.searching.settings import resolve_config
from wenet.searching.shapes import config_for
from wenet.searching.space import draw_pool, identity
from wenet.searching.strategy import Final, last_ranking
from wenet.tasks import Baseline, LanguageModelling, task_of
from wenet.tasks.measures import METRICS
from wenet.training import Outcome, StandaloneResult, hidden_for, parameter_count, training_windows

from .helpers import TINY, fails, results, without

RACE = [
    *("--preset", "race", "--level", "words", "--parameters", "900", "--nodes", "1-2", "--pool", "8", "--batch", "8"),
    *("--keep", "2", "--rungs", "3", "--epochs-per-round", "0.4", "--data-batch", "4", "--eval-batch", "2"),
    *("--bptt", "6", "--rates", "0.01,0.03", "--networks-per-cell", "2"),
    *("--contest-epochs", "1", "--contest-seeds", "2", "--quiet"),
]
ALONE = [*without(RACE, "--contest-epochs", "--contest-seeds"), "--no-contest"]


@pytest.fixture(scope="module")
def raced(text, tmp_path_factory):
    """The folder of a finished race with its contest."""
    folder = tmp_path_factory.mktemp("race") / "run"
    assert search_main([str(text), *RACE, "--out", str(folder)]) == 0
    return folder


def test_the_worse_leave_rung_by_rung(raced):
    records = [json.loads(line) for line in (raced / "search.jsonl").read_text().splitlines()]
    assert [record["round"] for record in records] == [1, 2, 3]
    cells = [[network["genotype"] for network in record["networks"]] for record in records]
    assert len(cells[0]) == 8 and {len(cell.split()) for cell in cells[0]} == {1, 2}
    for before, after, windows, one_in in zip(cells, cells[1:], records[1:], (3, 2), strict=False):
        assert -(-len(before) // one_in) <= len(after) <= math.ceil(1.5 * len(before) / one_in)
        assert set(before[: -(-len(before) // one_in)]) <= set(after)
        assert windows["windows"] == 2 * records[windows["round"] - 2]["windows"]
    for record, key in zip(records, ("extrapolated_loss", "held_out_loss", "held_out_loss"), strict=True):
        losses = [network[key] for network in record["networks"]]
        assert losses == sorted(losses) and len(set(losses)) > 1
        assert ("extrapolated_loss" in record["networks"][0]) == (key == "extrapolated_loss")
    best = json.loads((raced / "best.json").read_text())
    assert best["text"] in standings(records)[:4] and best["networks_searched"] == 8


def standings(records):
    """The cells of a race, sorted by the rung they reached."""
    return list(dict.fromkeys(network["genotype"] for record in records[::-1] for network in record["networks"]))


@pytest.mark.parametrize(("rates", "better"), [("0.0001,0.03", 0.03), ("0.03,1000", 0.03)])
def test_a_cell_has_the_rate_that_is_best_in_the_end(text, tmp_path, rates, better):
    flags = ["--pool", "4", "--rungs", "2", "--rates", rates, "--no-falling-rates", "--out", str(tmp_path / "run")]
    assert search_main([str(text), *ALONE, *flags]) == 0
    tried, last = (
        {json.loads(path.read_text())["windows"] for path in tmp_path.glob(f"run/rungs/{name}-*/config.json")}
        for name in ("rates", "1-2")
    )
    assert tried == last and len(tried) == 1
    folders = list(tmp_path.glob("run/rungs/1-*"))
    assert folders
    for folder in folders:
        assert set(json.loads((folder / "config.json").read_text())["rates"]) == {better}
    for line in (tmp_path / "run/search.jsonl").read_text().splitlines():
        assert all(network["rate"] == better and network["held_out_loss"] for network in json.loads(line)["networks"])


def test_cells_of_all_numbers_of_nodes_have_one_rate(text, tmp_path, monkeypatch):
    losses = {"1-nodes": {0.01: 1.0, 0.03: 1.3}, "2-nodes": {0.01: 1.2, 0.03: 1.1}}
    monkeypatch.setattr(Race, "_train", with_trials(lambda group, place, rate: losses[group.kind][rate]))
    flags = ["--pool", "4", "--rungs", "1", "--rates", "0.01,0.03", "--out", str(tmp_path / "run")]
    assert search_main([str(text), *ALONE, *flags]) == 0
    folders = list(tmp_path.glob("run/rungs/1-*"))
    assert len(folders) == 2
    for folder in folders:
        assert set(json.loads((folder / "config.json").read_text())["rates"]) == {0.01}


def test_a_cell_that_diverges_at_every_rate_does_not_choose(text, tmp_path, monkeypatch):
    def loss(group, place, rate):
        return math.inf if (group.kind, place) == ("2-nodes", 0) else {0.01: 1.3, 0.03: 1.0}[rate]

    monkeypatch.setattr(Race, "_train", with_trials(loss))
    flags = ["--pool", "4", "--rungs", "1", "--rates", "0.01,0.03", "--out", str(tmp_path / "run")]
    assert search_main([str(text), *ALONE, *flags]) == 0
    for folder in tmp_path.glob("run/rungs/1-*"):
        assert set(json.loads((folder / "config.json").read_text())["rates"]) == {0.03}


def with_trials(loss):
    """`Race._train`, but that rates are judged by `loss(group, place, rate)`."""
    train = Race._train

    def trained(self, group, path, plan, label):
        result = train(self, group, path, plan, label)
        places = range(len(group.architectures))
        measured = [[loss(group, place, rate) for rate in dict.fromkeys(plan.rates) for place in places]]
        return replace(result, held_out=measured) if label == "rates" else result

    return trained


def test_a_single_rate_needs_no_trial(text, tmp_path):
    flags = ["--pool", "4", "--rungs", "1", "--rates", "0.03", "--out", str(tmp_path / "run")]
    assert search_main([str(text), *ALONE, *flags]) == 0
    assert list(tmp_path.glob("run/rungs/1-1-*")) and not list(tmp_path.glob("run/rungs/rates-*"))


def test_networks_that_diverged_have_no_finite_loss():
    diverged = [None, 3, None]
    outcomes = [Outcome("", 1.0, 0.0, window, None, 0.0) for window in diverged]
    result = StandaloneResult(outcomes, 3, 1.0, 1, [[3.0, 1.0, 5.0], [4.0, 2.0, math.nan]])  # [windows, n]
    assert losses_of(result).tolist() == [[3.0, math.inf, math.inf], [4.0, math.inf, math.inf]]


def test_the_networks_of_a_cell_count_together(raced):
    record = json.loads((raced / "search.jsonl").read_text().splitlines()[0])
    of_cell = {network["genotype"]: network for network in record["networks"]}
    folders = list(raced.glob("rungs/1-1-[0-9]*"))
    assert len(folders) == 2
    for folder in folders:
        result = json.loads((folder / "result.json").read_text())
        halfway, losses = (mean_losses(path) for path in (folder.with_name(f"1-1-halfway{folder.name[3:]}"), folder))
        assert len(set(losses)) > 1
        for outcome, before, loss in zip(result["outcomes"][::2], halfway, losses, strict=True):
            network = of_cell[outcome["genotype"]]
            assert network["held_out_loss"] == pytest.approx(loss, rel=1e-12)
            assert network["extrapolated_loss"] == pytest.approx(1.5 * loss - 0.5 * before, rel=1e-12) != loss


def mean_losses(training):
    """The losses of cells with two networks each in the windows on which a training was measured."""
    held_out = json.loads((training / "result.json").read_text())["held_out"]
    return torch.tensor(held_out, dtype=torch.float64).mean(0).view(-1, 2).mean(1).tolist()


def test_losses_are_extrapolated_where_that_makes_sense():
    """Not those of networks that diverged, and by no more than half where one recovered."""
    halfway = [2.0, 1.4, 1e6, 2.0, math.inf, math.inf]
    assert extrapolated(halfway, [1.5, 1.6, 3.0, math.inf, math.inf, 1.7]) == pytest.approx(
        [1.25, 1.7, 1.5, math.inf, math.inf, 1.7]
    )


@pytest.mark.parametrize(
    ("rungs", "shares"), [(1, [1]), (2, [1, 0.6]), (3, [1, 0.4, 0.24]), (4, [1, 0.6, 0.24, 0.144])]
)
def test_losses_are_extrapolated_at_a_quarter_of_a_training(rungs, shares):
    config = resolve_config("race", {"rungs": rungs, "mutate": False})
    assert [rung for rung in range(rungs) if extrapolates(config, rung)] == ([rungs - 3] if rungs > 2 else [])
    assert shares_left(config) == pytest.approx(shares)
    constant = replace(config, falling_rates=False)
    assert not any(extrapolates(constant, rung) for rung in range(rungs))
    assert shares_left(constant) == pytest.approx([0.6**rung for rung in range(rungs)])
    assert shares_left(replace(constant, mutate=True)) == pytest.approx([0.7**rung for rung in range(rungs)])


def test_a_later_rung_is_extrapolated_from_the_one_before(text, tmp_path):
    run = tmp_path / "run"
    assert search_main([str(text), *ALONE, "--rungs", "4", "--epochs-per-round", "0.2", "--out", str(run)]) == 0
    records = [json.loads(line) for line in (run / "search.jsonl").read_text().splitlines()]
    before = {network["genotype"]: network["held_out_loss"] for network in records[0]["networks"]}
    assert ["extrapolated_loss" in record["networks"][0] for record in records] == [False, True, False, False]
    for network in records[1]["networks"]:
        loss = network["held_out_loss"]
        assert network["extrapolated_loss"] == pytest.approx(1.5 * loss - 0.5 * before[network["genotype"]]) != loss
    write_report(run)
    with (run / "figures" / "rungs.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["extrapolated_loss"]]
    assert {row["rung"] for row in rows} == {"2"} and len(rows) == len(records[1]["networks"])
    plans = dict(plans_of(run))
    assert not any("halfway" in name for name in plans)
    assert len({plan["held_out"] for name, plan in plans.items() if name[:4] in ("1-1-", "1-2-")}) == 1


def test_a_loss_that_falls_fast_counts_where_losses_are_extrapolated():
    """Of six cells two go on, and a third that the test cannot tell from the second; not the one that was best."""
    noise = [0.0, 0.01, -0.01, 0.02]

    def runner(cell, loss, fall):
        held_out = [loss + each for each in noise]
        ahead = extrapolated([each + fall for each in held_out], held_out)
        return Runner(read_cell(cell), 0, rate=0.02, held_out=held_out, extrapolated=ahead, value=loss, windows=2)

    alike = replace(runner("relu0", 1.55, 0.5), extrapolated=[1.31, 1.29, 1.30, 1.32])
    others = [runner(f"identity0 {name}0", 1.7, 0.1) for name in ("tanh", "relu")]
    cells = [runner("tanh0", 1.4, 0.1), runner("sigmoid0", 1.5, 0.5), runner("identity0", 1.55, 0.5), alike, *others]
    course = Course([cells, [], []])
    assert [str(going.genotype) for going in course.going_on(0)] == ["sigmoid0", "identity0", "relu0"]


def test_cells_that_the_time_cut_short_are_ranked_behind():
    """Those that diverged are behind these; and scores have the same order."""
    losses = [(2, 1.0), (8, 1.5), (8, math.inf), (7, 0.5), (7, 0.6), (2, math.inf)]
    cells = [Runner(read_cell("tanh0"), 0, held_out=[loss], windows=windows) for windows, loss in losses]
    ordered = sorted(cells, key=lambda runner: runner.order)
    assert [losses[cells.index(runner)] for runner in ordered[:4]] == [(8, 1.5), (7, 0.5), (7, 0.6), (2, 1.0)]
    record = {"windows": 8, "networks": [runner.to_dict(1, METRICS["rmse"]) for runner in ordered]}
    scores = [Race.score(record, place) for place in range(len(cells))]
    assert scores[:4] == sorted(set(scores[:4]), reverse=True)
    assert scores[4:] == [2.0, 2.0] and all(2 < score < 3 for score in scores[:4])


def test_scores_fall_with_the_loss_and_rise_with_the_rung():
    """Whatever its sign."""
    losses = [(2, 0.5), (2, 1e9), (1, -2.0), (1, -0.5), (1, 0.3), (1, 4.0), (1, None)]
    cells = [{"rung": rung, "held_out_loss": 1.0, "extrapolated_loss": loss} for rung, loss in losses]
    scores = [Race.score({"windows": 1, "networks": cells}, place) for place in range(len(cells))]
    assert scores == sorted(set(scores), reverse=True)


def test_rates_fall_until_the_end_of_the_last_rung(raced, text, tmp_path):
    last = json.loads((raced / "search.jsonl").read_text().splitlines()[-1])["windows"]
    plans = dict(plans_of(raced))
    rates = {name for name in plans if name.startswith("rates-")}
    assert rates and all(plans[name]["decay"] for name in plans)
    assert all(plans[name]["schedule"] == last for name in plans.keys() - rates)
    assert all("schedule" not in plans[name] and plans[name]["windows"] == -(-last // 2) for name in rates)
    constant = [*ALONE, "--pool", "4", "--batch", "4", "--no-falling-rates", "--out", str(tmp_path / "run")]
    assert search_main([str(text), *constant]) == 0
    plans = dict(plans_of(tmp_path / "run"))
    assert not any("decay" in plan or "schedule" in plan for plan in plans.values())
    assert {plans[name]["windows"] for name in plans if name.startswith("rates-")} == {last}


def plans_of(run):
    """The names of a race's trainings, and their plans."""
    return [(path.parent.name, json.loads(path.read_text())) for path in run.glob("rungs/*/config.json")]


def test_a_run_that_is_refused_keeps_its_records(text, tmp_path, capsys):
    for name, strategy in (
        ("race", ALONE),
        ("random", [*without(ALONE, "--rungs", "--rates", "--networks-per-cell"), "--strategy", "random"]),
    ):
        out = tmp_path / name
        assert search_main([str(text), *strategy, "--pool", "4", "--batch", "4", "--keep", "2", "--out", str(out)]) == 0
        before = (out / "search.jsonl").read_bytes()
        first = min((out / "rungs").iterdir(), key=lambda folder: folder.stat().st_ctime_ns)
        config = json.loads((first / "config.json").read_text())
        (first / "config.json").write_text(json.dumps({**config, "seed": 77}))  # as of another version
        assert "was begun with other settings" in fails(capsys, "--resume", str(out), "--audit", "4")
        assert (out / "search.jsonl").read_bytes() == before and before.count(b"\n") > 1


def test_losses_fall_as_networks_train_on(raced):
    records = [json.loads(line) for line in (raced / "search.jsonl").read_text().splitlines()]
    first, last = ({n["genotype"]: n["held_out_loss"] for n in record["networks"]} for record in records[::2])
    assert all(last[cell] < first[cell] - 0.2 for cell in last)


def test_the_finalist_that_is_best_in_validation_wins(raced):
    rows = {row["name"]: row for row in json.loads((raced / "contest.json").read_text())["contestants"]}
    finalists = {
        rows[name]["genotype"]: sum(rows[name]["valid"])
        for name in rows
        if name in ("winner", "runner-up") or name.startswith("finalist")
    }
    records = [json.loads(line) for line in (raced / "search.jsonl").read_text().splitlines()]
    assert len(finalists) == 3 and set(finalists) <= set(standings(records)[:4])
    best = json.loads((raced / "best.json").read_text())["text"]
    assert min(finalists, key=finalists.get) == rows["winner"]["genotype"] == best


def test_contestants_have_as_many_parameters(raced, text):
    contest = json.loads((raced / "contest.json").read_text())
    rows = {row["name"]: row for row in contest["contestants"]}
    finalists = {"winner", "runner-up", "finalist 3"}
    assert list(rows) != sorted(rows) and set(rows) == finalists | {"median cell", "darts-v2", "lstm", "gru"}
    for name, row in rows.items():
        assert len(row["test"]) == 2 and row["rate"] in (0.01, 0.03) and row["microseconds"] > 0
        assert row["parameters"] >= 900 if name in ("lstm", "gru") else row["parameters"] <= 900
        assert 0.7 * 900 < row["parameters"] < 1.3 * 900
    means = [row["mean"] for row in contest["contestants"]]
    assert means == sorted(means)
    assert rows["winner"]["p"] is None and all(0 <= row["p"] <= 1 for name, row in rows.items() if name != "winner")


def test_the_trained_winner_is_loaded(raced, text):
    """The best of its trainings on the validation part gives the figure of the contest on the test part."""
    found = wenet.load(raced)
    assert found.finished and found.contest is not None
    row = next(row for row in found.contest["contestants"] if row["name"] == "winner")
    assert found.model.rnn.hidden_size == row["hidden"]
    task, data = LanguageModelling(), load_corpus(str(text))
    streams = task.streams(data, "test", 2)
    reached = float(task.measure(found.model, streams, 6).metric)
    assert reached == pytest.approx(row["test"][row["valid"].index(min(row["valid"]))], rel=1e-4)


def test_a_contest_in_double_precision(text, tmp_path):
    flags = [*RACE, "--pool", "3", "--rungs", "1", "--contest-epochs", "0.2", "--precision", "fp64"]
    assert search_main([str(text), *flags, "--out", str(tmp_path / "run")]) == 0
    model = wenet.load(tmp_path / "run").model
    scores, _ = model(torch.zeros(3, 1, dtype=torch.long))
    assert scores.dtype == torch.float64 and scores.std() > 0


LOSSES = [0.1 * number for number in range(12)]
LOWER = [loss - 0.02 - 0.001 * number for number, loss in enumerate(LOSSES)]
MIXED = [loss + 0.3 * (-1) ** number - 0.02 for number, loss in enumerate(LOSSES)]


@pytest.mark.parametrize(
    ("of_cell", "losses", "of_rival", "rivals", "wins"),
    [
        ([0.9, 1.0], LOWER, [0.8, 0.9], LOSSES, "cell"),
        ([0.9, 1.0], MIXED, [0.8, 0.9], LOSSES, "gru"),  # may be chance
        ([0.9, 1.0], LOWER, [1.0, 0.9], LOSSES, "gru"),  # what counts is the metric
        ([0.7, 0.8], LOSSES, [0.8, 0.9], LOWER, "gru"),
        ([0.7, 0.8], LOSSES, [0.9, -math.inf], [math.inf] * 12, "cell"),
        ([0.7, 0.8], LOSSES, None, [], "cell"),
    ],
)
def test_a_cell_wins_where_it_is_shown_to_beat_the_rivals_that_raced(of_cell, losses, of_rival, rivals, wins):
    def trained(name, values, held_out, rival):
        cell = load_program("gru") if rival else load_program("mgu")
        loss = sum(held_out) / len(held_out)
        outcomes = [Outcome(cell, value, None, None, value, loss) for value in values]
        return Trained(Contestant(name, cell, resolve_config("race"), True, rival), None, outcomes, [], 8, held_out)

    finalists = [trained("finalist 1", of_cell, losses, False)]
    if of_rival is not None:
        finalists.append(trained("gru", of_rival, rivals, True))
    winner, *others = named_by_rank(finalists, METRICS["accuracy"])
    assert winner.entrant.name == "winner" and winner.entrant.rival == (wins == "gru")
    names = [each.entrant.name for each in others]
    assert names == (["runner-up", "gru"] if wins == "gru" else ["gru"] if of_rival else [])


def test_trainings_of_a_contest_that_diverge_are_counted(text, tmp_path, monkeypatch):
    """One of the GRU's three: its mean is of two, as is said wherever it stands, and its figures keep their places."""
    real = hold.train_group

    def diverging(session, group, entrants, *others):
        result = real(session, group, entrants, *others)
        if [each.name for each in entrants] == ["gru"]:
            first = replace(result.outcomes[0], value=math.inf, valid_loss=None, test=math.inf, diverged_at=2)
            return replace(result, outcomes=[first, *result.outcomes[1:]])
        return result

    monkeypatch.setattr(hold, "train_group", diverging)
    flags = [*RACE, "--pool", "3", "--rungs", "1", "--contest-seeds", "3", "--out", str(tmp_path / "run")]
    assert search_main([str(text), *flags]) == 0
    found = wenet.load(tmp_path / "run")
    row = next(row for row in found.contest["contestants"] if row["name"] == "gru")
    assert row["test"][0] is None and row["valid"][0] is None and row["kept"] > 0
    assert row["diverged"] == 1 and row["mean"] == pytest.approx(sum(row["test"][1:]) / 2) and row["p"] is not None
    [line] = [line for line in describe_contest(found.contest, LanguageModelling.metric) if "  gru" in line]
    assert "(1 of 3 diverged)" in line
    write_report(tmp_path / "run")
    assert "(1 of 3 diverged)" in (tmp_path / "run" / "report.html").read_text()
    assert {row["name"]: row["diverged"] for row in found.contestants}["gru"] == 1
    points = (tmp_path / "run" / "figures" / "contest.csv").read_text().splitlines()
    assert sum(point.startswith("gru,") for point in points) == 2
    earlier = {key: value for key, value in row.items() if key != "diverged"}
    assert "(1 of 3 diverged)" in reached({**earlier, "test": row["test"][1:]}, LanguageModelling.metric)


def test_the_report_shows_the_contest(raced):
    page = (raced / "report.html").read_text()
    assert "The contest in figures" in page and "µs a step" in page
    assert (raced / "figures" / "contest.svg").exists() and (raced / "figures" / "rungs.csv").exists()
    assert "The winner" in page or "the winner" in page


@pytest.mark.parametrize("moment", [7, 75, 90, 400])
def test_a_stopped_race_goes_on(raced, text, tmp_path, stop_at, moment, monkeypatch):
    """While rates are tried, halfway in a rung, after that, and in the contest: the same records and the same table, to
    the last bit."""
    again = tmp_path / "again"
    stop_at(moment)
    assert search_main([str(text), *RACE, "--out", str(again)]) == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert search_main(["--resume", str(again), "--quiet"]) == 0
    assert results(again) == results(raced)
    ours, theirs = (json.loads((run / "contest.json").read_text())["contestants"] for run in (again, raced))
    measured = ("name", "rate", "valid", "test")
    assert [[row[key] for key in measured] for row in ours] == [[row[key] for key in measured] for row in theirs]


def test_a_refused_resume_leaves_the_result_as_it_was(raced, tmp_path):
    """As where a trial was begun by a version that trained it for fewer windows."""
    shutil.copytree(raced, tmp_path / "run")
    [trial, *_] = sorted((tmp_path / "run").glob("contest/trials-*/config.json"))
    trial.write_text(re.sub(r'"windows": \d+', '"windows": 1', trial.read_text()))
    before = {name: (tmp_path / "run" / name).read_bytes() for name in ("contest.json", "best.json")}
    with pytest.raises(WenetError, match="begun with other settings"):
        wenet.resume_search(tmp_path / "run")
    assert before == {name: (tmp_path / "run" / name).read_bytes() for name in before}


def test_a_winner_whose_trainings_diverged_in_part_says_how_many():
    cell, windows = read_cell("tanh0"), 8
    one, all_of_them = (Final(cell, {}, values, windows, 4, False) for values in ([1.5, math.inf, 2.5], [math.inf] * 3))
    assert (one.value, one.diverged, all_of_them.value, all_of_them.diverged) == (2.0, 1, None, 3)
    costs = {"rounds_kept": 0, "rounds": 1, "rounds_planned": 1, "networks_searched": 3, "network_windows": 1}
    best = HalvingBest(cell, **costs, seconds=1.0, peak_memory_bytes=1, value=1.0, windows=2).after_final(one)
    for said in (best.how_it_won(METRICS["rmse"]), *best.sentences(METRICS["rmse"])):
        assert "2.0000 (1 training diverged)" in said
    assert best.failure_to_learn(METRICS["rmse"], Baseline("guessing", 3.0), in_minutes=False) is None


def test_one_weight_decay_asked_for_is_that_of_the_contest():
    usual = resolve_config("numbers", {"task": "classify", "dataset": "x.csv", "weight_decays": "0"})
    assert where_others(usual, [0.0]) == [] and where_others(replace(usual, weight_decays="0.001"), [1e-3]) == [1e-3]


def test_cells_of_other_sizes_than_those_given_to_a_search(text):
    """Rivals, and cells that `wenet-rank` compares with."""
    given = {"dataset": str(text), "nodes": "2", "initial_cells": "tanh0 relu1", "precision": "fp32"}
    config = resolve_config("quick", given)
    task = task_of(config)
    assert config_for(load_genotype("darts-v2"), config, task, task.load(config, None)).nodes == "8"


def test_trials_are_as_long_as_trainings(raced):
    contest = json.loads((raced / "contest.json").read_text())
    plans = [json.loads(path.read_text()) for path in raced.glob("contest/*/config.json")]
    assert {plan["windows"] for plan in plans} == {contest["windows"]}


def test_generations_take_the_places(text, tmp_path):
    flags = [*ALONE, "--batch", "4"]
    for name, more in (("pool", ["--no-mutate"]), ("mutations", ["--mutate"])):
        assert search_main([str(text), *flags, *more, "--out", str(tmp_path / name)]) == 0
    found = {}
    for name in ("pool", "mutations"):
        records = [json.loads(line) for line in (tmp_path / name / "search.jsonl").read_text().splitlines()]
        assert {record["generation"] for record in records} == {1, 2}
        first = [r for r in records if r["round"] == 1]
        found[name] = [{network["genotype"] for network in record["networks"]} for record in first]
        assert len(found[name][0] | found[name][1]) == 8
        assert records[-1]["round"] == 3
    assert found["pool"][0] == found["mutations"][0] and found["pool"][1] != found["mutations"][1]
    told = [
        " ".join(wenet.load(tmp_path / name).best.sentences(LanguageModelling.metric)) for name in ("pool", "mutations")
    ]
    assert "8 random cells raced" in told[0] and "4 random cells and 4 mutations of the best raced" in told[1]


def test_a_small_space_runs_out_of_mutations(text, tmp_path, capsys):
    flags = ["--activations", "tanh", "--pool", "3", "--batch", "1", "--out", str(tmp_path / "run")]
    assert search_main([str(text), *without(ALONE, "--pool", "--batch"), *flags]) == 0
    assert "generation 2: 0 cells in place of 1, as the best cells have no other mutations" in capsys.readouterr().out
    best = wenet.load(tmp_path / "run").best
    assert (best.networks_searched, best.mutations) == (1, 0)


def test_the_last_ranking_is_that_of_the_furthest_rung():
    """Of the last generation none may have reached it."""
    records = [
        record_of(1, ["tanh0", "relu0"], 1.0, generation=1),
        record_of(2, ["relu0"], 1.0, generation=1),
        record_of(1, ["sigmoid0"], 1.0, generation=2),
    ]
    assert last_ranking(records) is records[1]
    ranking = final_ranking(records, 1, Race)
    assert str(ranking[0].genotype) == "relu0" and ranking[0].kept
    assert not any(cell.kept for cell in ranking[1:])


def test_the_median_cell_is_that_of_cells_drawn_at_random(text):
    """Mutations would lift it."""
    drawn = ["tanh0", "relu0", "sigmoid0", "identity0", "tanh0 tanh0", "relu0 relu0"]
    mutations = ["tanh0 relu0", "tanh0 sigmoid0", "tanh0 identity0", "relu0 sigmoid0", "relu0 identity0", "relu0 tanh1"]
    records = [record_of(1, drawn, 2.0, generation=1), record_of(1, mutations, 1.0, generation=2)]
    for mutate, median in ((True, drawn[3]), (False, drawn[0])):
        found = contested(text, records, mutate=mutate)
        assert [str(each.architecture) for each in found if each.name == "median cell"] == [median]
        assert [str(each.architecture) for each in found if each.finalist] == mutations[:4]


def test_a_rival_among_the_cells_takes_part_once(text):
    """However its nodes are numbered there."""
    rival = load_genotype("darts-v2")
    cells = [str(cell) for cell in random_genotypes(5, 8, 1)] + [str(rival.canonical())]
    assert rival != rival.canonical()
    found = contested(text, [record_of(1, cells, 1.0, generation=1)], nodes="8", finalists=2)
    cells = [each for each in found if isinstance(each.architecture, Genotype)]
    (same,) = [each for each in cells if identity(each.architecture) == rival.canonical()]
    assert same.name == "darts-v2" and same.finalist


def record_of(rung, cells, loss, generation):
    """A record of a race in which each cell is a little worse than the one before."""
    of_all = {"rung": rung, "rounds_kept": rung - 1, "generation": generation}
    networks = [{**of_all, "genotype": cell, "held_out_loss": loss + 0.01 * n} for n, cell in enumerate(cells)]
    return {"round": rung, "generation": generation, "windows": 10 * rung, "networks": networks}


def contested(text, records, **settings):
    """The contestants after a race with these records."""
    given = {"dataset": str(text), "precision": "fp32", "parameters": 3000, "data_batch": 4, "bptt": 6}
    config = resolve_config("race", {**given, **settings})
    task, folder = task_of(config), SimpleNamespace(records=lambda _: records)
    return contestants_of(Session(config, None, task, task.load(config, None), folder, None, Surroundings()))


@pytest.mark.parametrize(("seconds", "begun", "ended"), [(4.5, 1, 0), (9.0, 1, 1), (30.0, 3, 3)])
def test_a_generation_begins_if_there_is_time_for_all_of_it(text, monkeypatch, seconds, begun, ended):
    """Its two cells take 2, 1 and 2 seconds in the rungs, 4.2 is expected; a race ends where a rung does not fit."""
    given = {"pool": 6, "batch": 2, "data_batch": 4, "bptt": 6, "nodes": "1-2", "epochs_per_round": 1.0}
    config = resolve_config("race", {"dataset": str(text), **given})
    task, folder = task_of(config), SimpleNamespace(write_json=lambda *_: None)
    budget = SimpleNamespace(spent=0.0, is_over=False, planned=lambda name, choose: choose())
    race = Race(Session(config, None, task, task.load(config, None), folder, None, Surroundings(), budget))
    race.until, ran = seconds / OVER, []

    def run_rung(generation, rung, entrants):
        budget.spent += len(entrants) * (1, 1, 2)[rung]
        ran.append(rung + 1)
        lower = [Runner(each.genotype, generation, held_out=[-generation]) for each in entrants]
        return [replace(runner, windows=race.windows[rung]) for runner in lower]

    for name, stand_in in (
        ("_fit_to_budget", lambda: None),
        ("_run_rung", run_rung),
        ("_record", lambda *_: None),
        ("_seconds_per_network_window", lambda: 1 / race.windows[0]),
        ("_best", lambda: SimpleNamespace(to_dict=lambda _: {})),
    ):
        monkeypatch.setattr(race, name, stand_in)
    race.run()
    assert (ran.count(1), ran.count(3)) == (begun, ended)


def test_cells_of_all_sizes_are_ranked_and_audited(raced, tmp_path, capsys):
    """The race's winner has one or two nodes here; a cell of four has a smaller state, and as many parameters."""
    flags = ["--seeds", "2", "--epochs", "0.2", "--out", str(tmp_path / "ranking")]
    assert rank_main([str(raced), "relu0 tanh1 relu1 tanh2", "gru", *flags]) == 0
    found = json.loads((tmp_path / "ranking" / "ranking.json").read_text())["cells"]
    assert {cell["name"] for cell in found} == {str(raced), "relu0 tanh1 relu1 tanh2", "gru"}
    copy = shutil.copytree(raced, tmp_path / "copy")
    capsys.readouterr()
    assert search_main(["--resume", str(copy), "--audit", "6", "--quiet"]) == 0
    assert re.search(r"cost      \d+ \w+ \(search \d.*, audit \d.*, contest \d.*\), peak", capsys.readouterr().out)
    audit = json.loads((copy / "audit.json").read_text())
    assert {len(cell["genotype"].split()) for cell in audit["networks"]} == {1, 2}


def test_halving_takes_cells_of_all_sizes(text, tmp_path):
    of_halving = [*without(ALONE, "--rungs", "--rates", "--networks-per-cell"), "--strategy", "random"]
    assert search_main([str(text), *of_halving, "--out", str(tmp_path / "run")]) == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "search.jsonl").read_text().splitlines()]
    assert [len(record["networks"]) for record in records] == [8, 4, 2]
    assert {len(network["genotype"].split()) for network in records[0]["networks"]} == {1, 2}


def test_one_gene_is_mutated():
    generator = random.Random(3)
    for cell in random_genotypes(40, 4, 1):
        other = mutated(cell, generator)
        changed = [a != b for a, b in zip(cell.recurrent, other.recurrent, strict=True)]
        assert sum(changed) == 1
        (before, after) = next((a, b) for a, b in zip(cell.recurrent, other.recurrent, strict=True) if a != b)
        assert (before[0] == after[0]) is not (before[1] == after[1])


def test_pools_of_several_sizes():
    cells = random_mixed_genotypes(30, range(1, 4), 1, ["tanh", "relu"])
    assert len(set(cells)) == 30 and [cell.nodes for cell in cells].count(1) == 2
    assert random_mixed_genotypes(30, range(1, 4), 1, ["tanh", "relu"]) == cells
    assert len(random_mixed_genotypes(50, range(1, 3), 1, ["tanh"])) == 50


def test_sizes_at_equal_parameters(text):
    data = load_corpus(str(text))
    config = resolve_config("race", {"level": "words", "dataset": str(text), "precision": "fp32", "backend": "auto"})
    task = task_of(config)
    for cell in random_genotypes(1, 1, 1) + random_genotypes(1, 6, 1):
        size = hidden_for(5000, config, cell, task, data)
        here, above = (
            parameter_count(
                resolve_config("race", {"level": "words", "hidden": h, "precision": "fp32"}), cell, task, data
            )
            for h in (size, size + 1)
        )
        assert here <= 5000 < above


def test_a_contest_is_added_to_a_finished_search(text, tmp_path, stop_at, monkeypatch, capsys):
    """Of the paper's kind, whose cells all have two nodes; stopped in the contest, it goes on without being told."""
    run = tmp_path / "run"
    small = [
        *TINY,
        "--nodes",
        "2",
        "--rates",
        "0.01,0.03",
        "--contest-epochs",
        "0.5",
        "--contest-seeds",
        "2",
        "--quiet",
    ]
    assert search_main([str(text), *small, "--out", str(run)]) == 0
    stop_at(10)
    assert search_main(["--resume", str(run), "--contest"]) == 128 + signal.SIGTERM
    with pytest.raises(WenetError, match="has not ended; continue with wenet-search --resume"):
        _ = wenet.load(run).model
    assert not wenet.load(run).run.finished and "--contest" in command(wenet.load(run).run)
    monkeypatch.undo()
    assert search_main(["--resume", str(run)]) == 0
    rows = {row["name"]: row for row in json.loads((run / "contest.json").read_text())["contestants"]}
    assert rows["winner"]["hidden"] == 8 and rows["lstm"]["parameters"] >= rows["winner"]["parameters"]
    assert wenet.load(run).model.rnn.hidden_size == 8
    assert wenet.load(run).run.finished and "--contest" in command(wenet.load(run).run)
    assert not any("was not measured" in each for each in caveats(wenet.load(run).run))
    assert "has chosen its winner; leave out --no-contest" in fails(capsys, "--resume", run, "--no-contest")
    best = json.loads((run / "best.json").read_text())
    other = next(row["genotype"] for row in rows.values() if row["genotype"] not in ("lstm", "gru", best["text"]))
    best |= {"genotype": read_cell(other).to_dict(), "text": other}
    (run / "best.json").write_text(json.dumps(best))
    with pytest.raises(WenetError, match="has the weights of .*, not of .*; delete it and"):
        _ = wenet.load(run).model


def test_the_best_of_several_finalists_of_a_mixture_keeps_its_own_figures(text, tmp_path):
    small = {"preset": "quick", "pool": 6, "batch": 3, "keep": 2, "hidden": 6, "nodes": 2, "data_batch": 4, "bptt": 6}
    contest = {"contest": True, "finalists": 4, "contest_seeds": 2, "contest_epochs": 0.5, "rates": "0.02"}
    out = tmp_path / "run"
    found = wenet.search(str(text), eval_batch=2, epochs_per_round=0.3, seed=3, out=out, **small, **contest)
    own = [
        (record, network)
        for record in found.run.records
        for network in record["networks"]
        if network["genotype"] == str(found.genotype)
    ]
    record, network = own[-1]
    assert network is not record["networks"][0]  # not the mixture's first
    assert (found.best.weight, found.best.uniform_weight) == (network["weight"], record["uniform_weight"])
    assert found.best.rounds_kept == network["rounds_kept"] + 1 and found.best.finalists == 3
    winner = next(row for row in found.contest["contestants"] if row["name"] == "winner")
    assert found.best.final_value == pytest.approx(sum(winner["valid"]) / 2)
    assert "best of 3 finalists from 6 networks: mean validation perplexity" in str(found)
    write_report(out)
    page = (out / "report.html").read_text()
    assert "3 finalists trained from new weights. This one is the best of them" in page
    assert "has the largest weight" not in page


def test_parameters_decide_the_size_of_a_mixture(text, tmp_path, capsys):
    flags = ["--preset", "quick", "--pool", "2", "--batch", "2", "--keep", "1", "--nodes", "2", "--parameters", "900"]
    flags += ["--data-batch", "4", "--eval-batch", "2", "--bptt", "6", "--epochs-per-round", "0.1"]
    assert search_main([str(text), *flags, "--out", str(tmp_path / "run")]) == 0
    config = resolve_config("quick", json.loads((tmp_path / "run" / "config.json").read_text())["settings"])
    data, cell = load_corpus(str(text)), random_genotypes(1, 2, seed=1)[0]
    sizes = [replace(config, hidden=hidden) for hidden in (config.hidden, config.hidden + 1)]
    here, above = (parameter_count(each, cell, task_of(each), data) for each in sizes)
    assert here <= 900 < above and f"hidden {config.hidden}: about" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [["--init-range", "1e6"], ["--dropout-h", "0.999", "--bptt", "40"]])
def test_a_probe_of_the_time_does_not_diverge(flags, text, tmp_path, capsys):
    """Only networks do, which are frozen then."""
    some = [*without(ALONE, "--nodes"), "--nodes", "4", "--activations", "relu,identity", "--parameters", "9000"]
    assert search_main([str(text), *some, *flags, "--out", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize("strategy", ["race", "random"])
def test_the_estimate_describes_what_runs(strategy, text, tmp_path, capsys):
    flags = ["--preset", "race", "--pool", "6", "--batch", "6", "--nodes", "2", "--parameters", "900", "--no-contest"]
    flags += ["--data-batch", "4", "--eval-batch", "2", "--bptt", "6", "--epochs-per-round", "0.2", "--level", "words"]
    named = {"race": "6 cells of 2 nodes and 900 parameters, 2 networks each, 4 rungs: about"}
    named["random"] = "6 cells of 2 nodes and 900 parameters, successive halving in 3 rungs: about"
    for runs in ([], ["--runs", "2"]):
        out = tmp_path / f"{strategy}-{len(runs)}"
        assert search_main([str(text), *flags, *runs, "--strategy", strategy, "--out", str(out)]) == 0
        said = capsys.readouterr().out
        assert named[strategy] in said and "mixture" not in said
        assert not runs or "runs      2, each of them as above" in said


def test_a_hidden_size_asked_for_counts_more_than_the_presets_parameters():
    assert resolve_config("race").parameters == 80_000
    assert resolve_config("race", {"hidden": 32}).parameters is None
    assert resolve_config("race", {"hidden": 32}, {"parameters": 900}).parameters == 900


def test_a_test_tells_worse_from_equal():
    torch.manual_seed(0)
    base = torch.randn(40)
    noise = 0.1 * torch.randn(40)
    assert are_larger((base + 0.2 + noise).tolist(), base.tolist())
    assert not are_larger((base + noise - noise.mean()).tolist(), base.tolist())
    assert not are_larger(base.tolist(), (base + 0.2).tolist())
    assert are_larger([math.inf] * 40, base.tolist()) and not are_larger(base.tolist(), [math.inf] * 40)


def test_trainings_that_end_alike_show_nothing():
    assert welch([1.0, 1.0], [2.0, 2.0]) is None
    assert 0 < welch([1.0, 1.0], [2.0, 2.1]) < 0.05


def test_several_verdicts_are_one_sentence():
    rows = [{"name": "winner", "mean": 50.0, "p": None, "genotype": "tanh0"}]
    known = (("lstm", 60.0, 0.01), ("gru", 60.0, 0.01), ("rnn", 40.0, 0.01))
    rows += [{"name": name, "mean": mean, "p": p, "genotype": name} for name, mean, p in known]
    text = verdict({"contestants": rows}, LanguageModelling.metric)
    assert "the winner is better than lstm and gru, and is worse than rnn (Welch" in text
    rows[2]["p"] = 0.5
    text = verdict({"contestants": rows}, LanguageModelling.metric)
    assert "is better than lstm, is not shown to differ from gru, and is worse than rnn (Welch" in text


def test_no_more_is_claimed_than_was_measured():
    metric = LanguageModelling.metric

    def said(p, mean, other=50.0, cell="tanh0", rivals=("lstm", "gru")):
        rows = [{"name": "winner", "mean": mean, "p": None, "genotype": cell}]
        rows += [{"name": name, "mean": other, "p": p, "genotype": name} for name in rivals]
        return verdict({"contestants": rows}, metric)

    assert "the winner is better than lstm and gru (Welch" in said(0.01, 48.0)
    itself = said(0.01, 48.0, cell=str(load_program("lstm-program")))
    assert "the winner is the published cell lstm and is better than gru (Welch" in itself
    itself = said(0.01, 48.0, cell=str(load_program("lstm-program")), rivals=("lstm", "gru", "rnn"))
    assert "the winner is the published cell lstm, and is better than gru and rnn (Welch" in itself
    assert "is worse than lstm" in said(0.01, 52.0)
    assert "than lstm, gru and rnn (Welch" in said(0.01, 52.0, rivals=("lstm", "gru", "rnn"))
    assert "is not shown to differ from lstm" in said(0.2, 40.0)
    for uncompared in (said(None, 48.0), said(0.01, None)):
        assert uncompared == "the winner cannot be compared with lstm and gru"
    assert said(None, None, None) == "all trainings diverged, so nothing was compared: lower --rates"
    assert said(None, 50.0) == "the winner has the same mean as lstm and gru"


def test_a_race_in_which_all_diverges_says_so(text, tmp_path, capsys):
    flags = ["--pool", "3", "--rungs", "1", "--rates", "1e9", "--out", str(tmp_path / "run")]
    assert search_main([str(text), *RACE, *flags]) == 0
    said = capsys.readouterr().out
    assert "though its trainings diverged" in said or "by chance: all that were left diverged" in said
    assert "The ranking of the cells means nothing yet: lower --rates" in said
    assert "all trainings diverged, so nothing was compared: lower --rates" in said
    report = " ".join(summary(wenet.load(tmp_path / "run").run))
    assert "diverged" in report and "no finite value" not in report + said and "Welch" not in said


@pytest.mark.parametrize("kind", [RaceBest, HalvingBest])
@pytest.mark.parametrize(("finalists", "told"), [(0, "by chance"), (2, "though its trainings diverged")])
def test_a_winner_that_diverged_is_said_to(kind, finalists, told):
    costs = {"rounds_kept": 0, "rounds": 1, "rounds_planned": 1, "networks_searched": 3, "network_windows": 1}
    costs |= {"seconds": 1.0, "peak_memory_bytes": 1, "windows": 1, "value": None, "finalists": finalists}
    best = kind(None, **costs, **({"networks_per_cell": 1} if kind is RaceBest else {}))
    for said in (best.how_it_won(METRICS["rmse"]), *best.sentences(METRICS["rmse"])):
        assert told in said and "diverged" in said and "rmse" not in said
    advice = best.failure_to_learn(METRICS["rmse"], Baseline("guessing", 2.0), in_minutes=False)
    assert advice and ("the best finalist" in advice) is bool(finalists)
    assert advice.endswith("lower --rates" if finalists or kind is RaceBest else "lower --lr")


def test_lines_of_a_contest_name_all_sizes_and_stand_below_each_other():
    shared = {"rate": 0.1, "hidden": 5, "microseconds": 1.5, "sd": 0.125, "valid": [1.0], "test": [1.0], "diverged": 0}
    rows = [{"name": "winner", "mean": 12345678.25, "p": None, "genotype": "tanh0", "parameters": 208, **shared}]
    rows += [{"name": "lstm", "mean": 12.5, "p": 0.5, "genotype": "lstm", "parameters": 1385, **shared}]
    first, *lines, _ = describe_contest({"seeds": 3, "windows": 9, "contestants": rows}, METRICS["rmse"])
    assert "of 3 trainings each, 208 to 1,385 parameters, 9 windows:" in first
    assert "  12345678 ± 0" in lines[0] and lines[0].index("winner") == lines[1].index("lstm")
    rows[0]["parameters"] = 1385
    assert (
        " each, 1,385 parameters,"
        in describe_contest({"seeds": 3, "windows": 9, "contestants": rows}, METRICS["rmse"])[0]
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--nodes", "4-1"], "a range the smaller first"),
        (["--nodes", "0-2"], "a cell has 1 to 64 nodes"),
        (["--nodes", "two"], "a number or a range such as 1-4"),
        (["--strategy", "wenet"], "--nodes 1-2 needs --strategy race"),
        (["--rates", "0.1,x"], "--rates must be numbers above 0"),
        (["--rates", "0"], "--rates must be numbers above 0"),
        (["--runs", "2"], "say --no-contest"),
        (["--contest-seeds", "1"], "--contest-seeds must be at least 2"),
        (["--initial-cells", "tanh0"], "--initial-cells has no meaning for --strategy race; leave it out, or say"),
        (["--parameters", "10"], "--parameters must be at least 50 for these data and cells, not 10"),
    ],
)
def test_impossible_races_are_refused(text, tmp_path, capsys, flags, message):
    assert message in fails(capsys, text, *RACE, *flags, "--out", tmp_path / "run")


def test_a_search_without_contest_has_no_model(text, tmp_path):
    found = wenet.search(str(text), preset="quick", pool=2, batch=2, keep=1, hidden=6, nodes=2, data_batch=4,
                         eval_batch=2, bptt=6, epochs_per_round=0.2, out=tmp_path / "run")  # fmt: skip
    with pytest.raises(WenetError, match="has no trained model; search with --contest"):
        assert found.model


def test_a_race_by_words_has_parameters_for_each_word(text, tmp_path, capsys):
    small = ["--pool", "2", "--batch", "2", "--keep", "1", "--rungs", "1", "--epochs-per-round", "0.1", "--no-contest"]
    small += ["--data-batch", "4", "--eval-batch", "2", "--bptt", "6", "--rates", "0.01"]
    assert search_main([str(text), "--level", "words", *small, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "words     2 cells of 2-6 blocks" in said and "<- this run" in said
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    words = len(load_corpus(str(text)).vocabulary)
    assert settings["preset"] == "words" and settings["parameters"] == 80_000 + 32 * words
    own = ["--parameters", "900", "--out", str(tmp_path / "own")]
    assert search_main([str(text), "--level", "words", *small, *own]) == 0
    assert json.loads((tmp_path / "own" / "config.json").read_text())["settings"]["parameters"] == 900
    capsys.readouterr()
    assert search_main([str(text), *small, "--out", str(tmp_path / "race")]) == 0
    assert "words     " not in capsys.readouterr().out  # nor any other preset that reads words


def test_from_python_and_from_a_file_too(text, tmp_path):
    small = {"pool": 2, "batch": 2, "keep": 1, "rungs": 1, "epochs_per_round": 0.1, "contest": False, "data_batch": 4}
    small |= {"eval_batch": 2, "bptt": 6, "rates": "0.01", "parameters": 900}
    found = wenet.search(str(text), level="words", out=tmp_path / "run", **small)
    assert found.run.settings["preset"] == "words"
    (tmp_path / "settings.toml").write_text('level = "words"\n')
    flags = [
        word
        for name, value in small.items()
        if name != "contest"
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    run = ["--config", str(tmp_path / "settings.toml"), "--no-contest", "--out", str(tmp_path / "file")]
    assert search_main([str(text), *flags, *run]) == 0
    assert wenet.load(tmp_path / "file").run.settings["preset"] == "words"
    with pytest.raises(WenetError, match="--preset words does not fit --level characters; say --preset race"):
        wenet.search(str(text), preset="words", level="characters", out=tmp_path / "none")


def test_the_command_of_a_report_repeats_its_parameters(text, tmp_path):
    flags = ["--pool", "2", "--batch", "2", "--rungs", "1", "--no-contest", "--parameters", "80000", "--preset", "race"]
    small = [
        "--level",
        "words",
        "--keep",
        "1",
        "--data-batch",
        "4",
        "--eval-batch",
        "2",
        "--bptt",
        "6",
        "--rates",
        "0.01",
    ]
    more = ["--epochs-per-round", "0.1", "--out", str(tmp_path / "run")]
    assert search_main([str(text), *flags, *small, *more]) == 0
    assert "--parameters 80000" in " ".join(command(wenet.load(tmp_path / "run").run))


def test_later_generations_have_the_rates_of_the_first(text, tmp_path):
    flags = ["--pool", "6", "--batch", "3", "--rungs", "2", "--mutate", "--out", str(tmp_path / "run")]
    assert search_main([str(text), *ALONE, *flags]) == 0
    assert list(tmp_path.glob("run/rungs/2-1-*"))
    tried = [path.name for path in tmp_path.glob("run/rungs/rates-*")]
    assert len(tried) == 2  # once for each number of nodes
    for folder in tmp_path.glob("run/rungs/[12]-*"):
        assert set(json.loads((folder / "config.json").read_text())["rates"]) == {0.03}


def test_help_shows_the_preset_that_a_level_has(capsys):
    for flags, preset in ((["--level", "words"], "words"), ([], "race"), (["--task", "classify"], "numbers")):
        with pytest.raises(SystemExit):
            search_main([*flags, "--help"])
        assert f"those of --preset {preset};" in " ".join(capsys.readouterr().out.split())


def test_memory_counts_the_networks_that_try_rates(text, monkeypatch):
    few = {
        "dataset": str(text),
        "level": "words",
        "precision": "fp32",
        "pool": 2,
        "batch": 2,
        "nodes": "2",
        "parameters": 900,
        "networks_per_cell": 2,
    }
    configs = [
        resolve_config("race", {**few, "rates": ",".join(map(str, range(1, 1 + count)))}) for count in (1, 2, 20)
    ]
    task = task_of(configs[0])
    data = task.load(configs[0], None)
    one, two, many = (Race.memory(config, data, 1) for config in configs)
    assert one == two < many  # of 2 cells 2 networks race, and 1, 2 and 20 are tried
    mixed = replace(configs[0], pool=24, batch=12, nodes="1-4", mutate=True)
    assert Race.memory(mixed, data, 1) > Race.memory(replace(mixed, mutate=False), data, 1)  # all may be of one kind
    drawn = replace(mixed, mutate=False, pool=12, batch=4)
    small, large = ([cell for cell in draw_pool(replace(drawn, pool=24)) if cell.nodes == nodes] for nodes in (1, 4))
    monkeypatch.setattr(estimate, "draw_pool", lambda _: [*small[:4], *large[:4], *small[:4]])
    later = Race.memory(drawn, data, 1)
    monkeypatch.setattr(estimate, "draw_pool", lambda _: large[:4])
    assert later == Race.memory(replace(drawn, pool=4), data, 1)


def test_with_less_time_fewer_cells_train_for_less_long(text):
    """Where rates fall, a cell is told by a part of a whole training; else cells leave first."""
    config = resolve_config("race", {"dataset": str(text), "data_batch": 4, "bptt": 6, "epochs_per_round": 60.0})
    task = task_of(config)
    session = Session(config, None, task, task.load(config, None), None, None, Surroundings())
    for falling, part in ((True, 0.5), (False, 0.25)):
        own = replace(session, config=replace(config, falling_rates=falling))
        of_entrant = networks_of_entrant(own.config)
        whole = of_entrant * 3 * 18 * training_windows(session, 0.5)
        generations, count, first = fitting_sizes(own, whole / 4, 1.0, 18)
        assert fitting_sizes(own, -1.0, 1.0, 18) == (1, 6, 4)  # the fewest, where no time is left
        assert (generations, count) == (min(3, int(54 * part) // 6), int(54 * part / generations))
        assert first == int(whole / 4 / of_entrant / generations / count)
        assert fitting_sizes(own, 100 * whole, 1.0, 18)[:2] == (3, 18)
