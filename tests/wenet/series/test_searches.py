"""Searches on sequences of numbers, from arrays and files to a trained model."""

import json
import shutil

import numpy as np
import pytest
import torch

import wenet
from wenet import WenetError
from wenet.cli.cell import main as cell_main
from wenet.cli.search import main as search_main
from wenet.cli.train import main as train_main
from wenet.nn import LAYERS
from wenet.report.run import read_run
from wenet.report.words import command
from wenet.searching import resolve_config
from wenet.tasks import task_of
from wenet_kernels import Program
from wenet_kernels.programs import canonical

from ..helpers import fails, results

TINY = {
    "space": "dag",
    "pool": 4,
    "batch": 4,
    "keep": 2,
    "finalists": 2,
    "rungs": 2,
    "nodes": "1-2",
    "parameters": 300,
    "rates": "0.01,0.03",
}
SHORT = {**TINY, "epochs_per_round": 1.0, "contest_epochs": 16.0, "contest_seeds": 2, "data_batch": 16}


def sums(count=160, seed=1):
    """Whether the first of two features is positive in the mean."""
    x = np.random.default_rng(seed).normal(size=(count, 8, 2))
    return x, np.where(x[:, :, 0].sum(1) > 0, "up", "down")


def waves(length=400, seed=1):
    t = np.arange(length)
    noise = 0.05 * np.random.default_rng(seed).normal(size=(length, 2))
    return np.stack([np.sin(t / 3) + t / 20, np.cos(t / 3)], 1) + noise


@pytest.fixture(scope="module")
def classified(tmp_path_factory):
    return wenet.search(sums(), task="classify", out=tmp_path_factory.mktemp("numbers") / "run", **SHORT)


def test_a_class_for_each_sequence(classified):
    names = {row["name"] for row in classified.contest["contestants"]}
    assert names == {"winner", "runner-up", "lstm", "gru", "rnn"}
    winner = next(row for row in classified.contest["contestants"] if row["name"] == "winner")
    assert winner["mean"] > 0.8 and classified.baseline.name == "the most frequent class"
    x, y = sums(400, seed=2)
    assert (classified.predict(x) == y).mean() > 0.8
    text = str(classified)
    assert "test accuracy of 2 trainings each" in text and "next      wenet-cell export" in text
    table = classified.contestants
    assert [row["name"] for row in table] == [row["name"] for row in classified.contest["contestants"]]
    assert (
        table.columns[:4] == ["name", "test accuracy", "sd", "p against the winner"]
        and "<td>lstm</td>" in classified._repr_html_()
    )


def test_a_batch_that_is_not_given_fits(tmp_path, capsys):
    x, y = sums(40)
    np.savez(tmp_path / "few.npz", x=x, y=y)
    settings = {**TINY, "pool": 2, "batch": 2, "rungs": 1, "contest_epochs": 1.0, "epochs_per_round": 1.0}
    flags = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    begin = [str(tmp_path / "few.npz"), "--task", "classify", *flags, "--quiet"]
    assert search_main([*begin, "--out", str(tmp_path / "run")]) == 0
    assert "batch     7 sequences, as the training part has fewer than the usual 32" in capsys.readouterr().out
    assert read_run(tmp_path / "run").settings["data_batch"] == 7
    assert "fewer than the 32 of a batch; lower --data-batch" in fails(
        capsys, *begin, "--data-batch", "32", "--out", "x"
    )


def test_the_table_names_what_cells_were_ranked_by(classified):
    table = classified.table
    assert table.columns == [
        "rank",
        "rung",
        "windows",
        "validation accuracy",
        "validation loss",
        "rate",
        "kept",
        "cell",
    ]
    records = [json.loads(line) for line in (classified.folder / "search.jsonl").read_text().splitlines()]
    first = records[-1]["networks"][0]
    best = [2, records[-1]["windows"], first["accuracy"], first["held_out_loss"]]
    assert [table[0][name] for name in table.columns[1:5]] == best and table[0]["cell"] == first["genotype"]
    assert len(table) == 4 and table[-1]["rung"] == 1


def test_the_model_gives_the_figure_of_the_contest(classified):
    """On the test part, which the run's own split has."""
    winner = next(row for row in classified.contest["contestants"] if row["name"] == "winner")
    again = wenet.load(classified.folder)
    run = json.loads((classified.folder / "config.json").read_text())
    stored = dict(run["settings"])
    data = task_of(resolve_config(stored.pop("preset"), stored)).take(sums())
    assert data.fingerprint == run["corpus"]
    x, y = sums()
    rows = data.test.starts.numpy() // 8
    reached = float((again.predict(x[rows]) == y[rows]).mean())
    assert any(reached == pytest.approx(value) for value in winner["test"])


def test_the_model_can_be_converted(classified):
    x = torch.randn(4, 7, 2)
    with torch.no_grad():
        torch.testing.assert_close(classified.model.double()(x), classified.model(x).double(), rtol=1e-4, atol=1e-5)


def test_a_moved_run_has_its_data(classified, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(classified.folder, moved)
    assert wenet.load(moved).predict(sums()[0]).shape == (160,)


@pytest.mark.parametrize("moment", [9, 60])
def test_a_stopped_search_goes_on(classified, tmp_path, stop_at, moment, monkeypatch):
    from wenet.run import Stopped

    again = tmp_path / "again"
    stop_at(moment)
    with pytest.raises(Stopped):
        wenet.search(sums(), task="classify", out=again, **SHORT)
    monkeypatch.undo()
    resumed = wenet.resume_search(again)
    assert results(again) == results(classified.folder)
    measured = ("name", "rate", "valid", "test")
    ours, theirs = (
        [[row[key] for key in measured] for row in found.contest["contestants"]] for found in (resumed, classified)
    )
    assert ours == theirs


def test_a_forecast(tmp_path):
    settings = {"window": 12, "horizon": 3, "metric": "mase", "seed": 2}
    found = wenet.search(waves(), task="forecast", out=tmp_path / "run", **SHORT, **settings)
    winner = next(row for row in found.contest["contestants"] if row["name"] == "winner")
    assert found.metric.name == "MASE" and found.baseline.name == "repeating the last value"
    assert winner["mean"] < 0.7 * found.baseline.value
    values = waves()
    ahead = found.predict(values[:380])
    assert ahead.shape == (3, 2) and np.abs(ahead - values[380:383]).mean() < 0.7
    assert np.array_equal(ahead, found.predict(values[368:380]))
    assert found.predict([values[:380], values[:300]]).shape == (2, 3, 2)


def test_numbers_for_each_sequence(tmp_path):
    x, _ = sums(200)
    y = 100 + 20 * x[:, :, 0].sum(1)
    lists = [one[: 5 + number % 4] for number, one in enumerate(x)]
    y = np.array([100 + 20 * one[:, 0].sum() for one in lists])
    found = wenet.search((lists, y), task="regress", out=tmp_path / "run", **{**SHORT, "contest_epochs": 24.0})
    winner = next(row for row in found.contest["contestants"] if row["name"] == "winner")
    assert winner["mean"] < 0.6 * found.baseline.value < 0.6 * 80
    assert found.predict(lists).shape == (200,)
    assert np.corrcoef(found.predict(lists), y)[0, 1] > 0.7


def test_a_label_for_each_step(tmp_path):
    x, _ = sums(120)
    y = (x[:, :, 0].cumsum(1) > 0).astype(int)
    found = wenet.search((x, y), task="label", out=tmp_path / "run", **SHORT)
    assert found.predict(x).shape == y.shape and (found.predict(x) == y).mean() > 0.75
    with pytest.raises(WenetError, match="--metric"):
        wenet.search((x, y), task="label", metric="mase", out=tmp_path / "other", **SHORT)


def test_the_baseline_counts_labels_of_the_training_part_alone():
    """Also where a sequence's end leaves places without a label in a batch."""
    rng = np.random.default_rng(1)
    x = {part: [rng.normal(size=(steps, 1)) for steps in (2, 4, 3)] for part in ("train", "valid", "test")}
    ones = {
        "train": 1,
        "valid": 2,
        "test": 4,
    }  # labels 1 in each sequence, from its end; in the training part the fewer
    given = {
        part: (x[part], [(np.arange(len(one)) >= len(one) - ones[part]).astype(int) for one in x[part]]) for part in x
    }
    task = task_of(resolve_config("numbers", {"task": "label"}))
    data = task.take(given)
    assert data.train.targets.bincount().argmax() == 1 and data.train.lengths.sum() == 9
    assert task.baseline(data) == ("the most frequent class", pytest.approx(3 / 9))


def test_a_table_with_a_label_for_each_step(tmp_path, capsys):
    x, _ = sums(60)
    rows = [f"{n},{a},{b},{'up' if a > 0 else 'down'}" for n, one in enumerate(x) for a, b in one]
    (tmp_path / "steps.csv").write_text("\n".join(["who,a,b,way", *rows]) + "\n")
    path, short = str(tmp_path / "steps.csv"), {**SHORT, "data_batch": 8}
    found = wenet.search(path, task="label", sequence="who", out=tmp_path / "run", **short)
    assert found.finished and found.predict(x).shape == (60, 8)
    assert (found.predict(x) == np.where(x[..., 0] > 0, "up", "down")).mean() > 0.75
    assert "name the column" in fails(capsys, path, "--task", "label", "--out", tmp_path / "other")
    assert "--sequence has no meaning for --task classify" in fails(
        capsys, path, "--task", "classify", "--sequence", "a"
    )


def test_a_table_has_no_order_of_axes(tmp_path, capsys):
    (tmp_path / "rows.csv").write_text("a,b,kind\n1,2,up\n3,4,down\n")
    said = fails(capsys, tmp_path / "rows.csv", "--task", "classify", "--layout", "nft", "--out", tmp_path / "run")
    assert "--layout is for arrays, .npy and .npz; leave it out" in said


def test_what_reads_text_alone_says_so_at_once(tmp_path, capsys):
    x, y = sums()
    np.savez(tmp_path / "data.npz", x=x, y=y)
    said = fails(capsys, tmp_path / "data.npz", "--task", "classify", "--strategy", "wenet", "--out", tmp_path / "run")
    assert "--task classify needs --strategy race or random: a mixture reads text alone" in said
    said = fails(capsys, tmp_path / "data.npz", "--cell", "lstm", "--out", tmp_path / "run", main=train_main)
    assert "is a file of sequences, and wenet-train reads text; the contest of wenet-search trains" in said


def test_rates_may_be_numbers():
    config = resolve_config("numbers", {"rates": [0.02, 0.01], "weight_decays": 0})
    assert (config.rates, config.rate_grid, config.decay_grid) == ("0.02,0.01", [0.01, 0.02], [0.0])
    assert resolve_config("numbers", {"rates": 0.01}).rate_grid == [0.01]
    with pytest.raises(WenetError, match="--rates must be numbers above 0"):
        resolve_config("numbers", {"rates": [0.01, "x"]})


def test_infinite_values_are_not_predicted_from(classified):
    x, _ = sums(3, seed=2)
    x[1, 4, 0] = np.inf
    with pytest.raises(WenetError, match="x, sequence 2, step 5: a value is infinite"):
        classified.predict(x)


def test_a_winner_that_is_gone_is_told(classified, tmp_path, capsys):
    shutil.copytree(classified.folder, tmp_path / "run")
    (tmp_path / "run" / "winner.safetensors").unlink()
    with pytest.raises(WenetError, match=r"winner.safetensors is gone; delete .*contest, and"):
        wenet.load(tmp_path / "run").predict(sums()[0])
    assert "is gone; delete" in fails(capsys, "export", tmp_path / "run", main=cell_main)
    with pytest.raises(WenetError, match=r"winner.safetensors is gone; delete .*contest, and"):
        wenet.resume_search(tmp_path / "run")
    assert wenet.load(tmp_path / "run").contest == classified.contest
    shutil.rmtree(tmp_path / "run" / "contest")
    found = wenet.resume_search(tmp_path / "run")
    x, _ = sums()
    assert (found.predict(x) == classified.predict(x)).all()


def test_a_winner_that_is_cut_is_told(classified, tmp_path):
    shutil.copytree(classified.folder, tmp_path / "run")
    model = tmp_path / "run" / "winner.safetensors"
    model.write_bytes(model.read_bytes()[:-1])
    with pytest.raises(WenetError, match=r"winner.safetensors is damaged.*--resume holds the contest again"):
        wenet.resume_search(tmp_path / "run")
    assert wenet.load(tmp_path / "run").contest == classified.contest


def test_a_file_from_the_command(tmp_path, capsys):
    x, y = sums()
    np.savez(tmp_path / "data.npz", x=x, y=y)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SHORT.items()]
    out = tmp_path / "run"
    assert search_main([str(tmp_path / "data.npz"), "--task", "classify", *flags, "--out", str(out), "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "numbers   data: 112 training, 24 validation, 24 test sequences of 8 steps, 2 features; 2 classes" in said
    assert "the winner" in said
    assert search_main(["--resume", str(out), "--quiet"]) == 0
    np.savez(tmp_path / "data.npz", x=x + 1, y=y)
    assert "has changed since" in fails(capsys, "--resume", out)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "data.npz is a file of sequences; say --task classify, regress, forecast, label"),
        (["--task", "classify", "--preset", "race"], "--preset race does not fit --task classify, which reads numbers"),
        (["--task", "classify", "--bptt", "9"], "--bptt has no meaning for --task classify; leave it out"),
        (["--task", "classify", "--horizon", "9"], "for --task classify; leave it out, or say --task forecast"),
        (["--task", "classify", "--target", "kind"], "--target is for tables, .csv and .tsv; leave it out"),
        (["--task", "forecast", "--sequence", "who"], "--sequence is for tables"),
        (["--task", "classify", "--data-batch", "300"], "the training part has 112 sequences, fewer than the 300"),
        (["--task", "classify", "--metric", "rmse"], "unknown --metric 'rmse'"),
        (["--task", "classify", "--loss", "mse"], "--loss mse does not fit --task classify; say ce"),
        (
            ["--task", "classify", "--strategy", "wenet", "--space", "dag", "--nodes", "8"],
            "--task classify needs --strategy race or random",
        ),
        (["--task", "regress"], "the targets are text such as"),
        (["--task", "classify", "--loss", "own:corr"], "unknown --loss 'own:corr'"),
        (["--task", "classify", "--split", "70,30"], "--split must be three numbers above 0"),
        (["--task", "classify", "--split", "0,0,0"], "--split must be three numbers above 0"),
    ],
)
def test_impossible_searches_are_refused(tmp_path, capsys, flags, message):
    x, y = sums()
    np.savez(tmp_path / "data.npz", x=x, y=y)
    assert message in fails(capsys, tmp_path / "data.npz", *flags, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_split_beside_given_parts_is_refused(tmp_path):
    x, y = sums()
    parts = {"train": (x[:100], y[:100]), "valid": (x[100:130], y[100:130]), "test": (x[130:], y[130:])}
    with pytest.raises(WenetError, match="comes in parts for training, validation and test; leave out --split"):
        wenet.search(parts, task="classify", split="10,80,10", out=tmp_path / "run")


def test_text_and_numbers_are_told_apart(tmp_path, capsys):
    assert "--horizon has no meaning for --task language" in fails(capsys, "sotu", "--horizon", "3")
    with pytest.raises(
        WenetError, match="--task language reads a text, which is given by its name or folder, .*; arrays need task="
    ):
        wenet.search(sums(), out=tmp_path / "run")
    with pytest.raises(WenetError, match="wenet-train reads text"):
        wenet.train("sotu", task="classify", out=tmp_path / "run")


def test_trainings_end_with_their_best_weights(tmp_path):
    """Labels drawn by lot: the loss on the validation part is best at once, and the rest is learning by heart."""
    x, _ = sums(80)
    y = np.random.default_rng(5).integers(2, size=80)
    settings = {**SHORT, "rates": "0.05", "contest_epochs": 40.0, "pool": 2, "batch": 2, "rungs": 1}
    found = wenet.search((x, y), task="classify", out=tmp_path / "run", **settings)
    training = json.loads(next((tmp_path / "run" / "contest").glob("training-*/result.json")).read_text())
    assert all(outcome["valid_loss"] < 1.5 for outcome in training["outcomes"])
    assert any(outcome["train_loss"] < 0.35 for outcome in training["outcomes"])
    assert isinstance(found.model, torch.nn.Module)


def test_values_beyond_any_prediction_are_refused(classified):
    x, _ = sums(4)
    x[2, 3, 0] = 1e39
    with pytest.raises(WenetError, match="x, sequence 3: values are too far from those of training"):
        classified.predict(x)


def test_a_forecast_refuses_gaps_where_it_counts_from(tmp_path):
    gaps = waves()
    gaps[50:350:7] = np.nan
    settings = {**SHORT, "window": 12, "horizon": 2, "missing": "mask", "pool": 2, "batch": 2, "rungs": 1}
    found = wenet.search(gaps, task="forecast", out=tmp_path / "run", **settings)
    known = waves()
    inside = known.copy()
    inside[-3] = np.nan
    assert np.abs(found.predict(inside) - found.predict(known)).max() < 2.0
    for step, which in ((-1, "last"), (-12, "first")):
        cut = known.copy()
        cut[step, 0] = np.nan
        where = rf"x, sequence 1, step {400 + step + 1}: feature 1 is missing, the {which} value that the forecast"
        with pytest.raises(WenetError, match=where):
            found.predict(cut)


def test_the_best_finalist_wins(classified, tmp_path):
    """The first of the race need not be. LSTM and GRU are finalists that train in full, beside the three best of the
    others, and take part once."""
    shared = {name: value for name, value in SHORT.items() if name != "nodes"}
    settings = {**shared, "space": "gated", "pool": 6, "batch": 6, "parameters": 400, "blocks": "2-3"}
    found = wenet.search(sums(), task="classify", out=tmp_path / "run", **{**settings, "finalists": 5})
    rows = {row["name"]: row for row in found.contest["contestants"]}
    trials = {trial["genotype"]: trial for trial in found.contest["trials"]}
    cells = {Program.from_text(text): trial for text, trial in trials.items() if text.startswith("h")}
    assert len(cells) == 4 and not {canonical(LAYERS[name]) for name in ("lstm", "gru")} & set(map(canonical, cells))
    assert all(trials[name]["trained"] for name in ("lstm", "gru", "rnn"))
    left = [trial["accuracy"] for trial in cells.values() if not trial["trained"]]
    trained = [trial["accuracy"] for trial in cells.values() if trial["trained"]]
    assert len(left) == 1 and len(trained) == 3 and left[0] <= min(trained)
    assert (
        {trial["weight_decay"] for trial in found.contest["trials"]}
        <= {0.0, 0.001}
        == set(found.contest["weight_decays"])
    )
    valid = {name: np.mean(row["valid"]) for name, row in rows.items() if name not in ("rnn", "median cell")}
    assert found.best.preferred == (valid["winner"] < max(valid.values()))
    if found.best.preferred:
        assert valid["winner"] == max(valid["lstm"], valid["gru"])
    assert str(found.genotype) == rows["winner"]["genotype"] == str(wenet.load(tmp_path / "run").genotype)
    assert found.best.value == pytest.approx(valid["winner"]) and found.best.finalists == 5
    assert "finalists from a race of 6 cells" in str(found)
    x, _ = sums()
    assert found.predict(x).shape == (160,)


def test_a_layer_of_pytorch_may_be_the_winner(tmp_path):
    """It stands there under both names then, with the same trainings, and is not compared with itself."""
    shared = {name: value for name, value in SHORT.items() if name != "nodes"}
    settings = {**shared, "space": "gated", "pool": 2, "batch": 2, "keep": 2, "parameters": 400}
    found = wenet.search(sums(), task="classify", out=tmp_path / "run", **settings)
    rows = {row["name"]: row for row in found.contest["contestants"]}
    assert set(rows) == {"winner", "lstm", "gru", "rnn"} and len(found.contest["trials"]) == 3
    name = min(("lstm", "gru"), key=lambda name: -np.mean(rows[name]["valid"]))
    assert rows["winner"]["test"] == rows[name]["test"] and canonical(found.genotype) == canonical(LAYERS[name])
    assert (
        all(row["parameters"] >= 400 for row in rows.values()) and found.model.rnn.hidden_size == rows[name]["hidden"]
    )
    assert f"winner ({name})" in str(found) and f"the published cell {name}" in str(found)
    x, labels = sums()
    assert np.mean(found.predict(x) == labels) > 0.4
    again = wenet.resume_search(tmp_path / "run")
    assert again.genotype == found.genotype and again.best == found.best


def test_a_weight_decay_that_is_asked_for_is_the_only_one(tmp_path):
    """Also where it is the usual one, and in the command that repeats the run."""
    settings = {**SHORT, "pool": 2, "batch": 2, "rungs": 1, "weight_decay": 0.0}
    found = wenet.search(sums(), task="classify", out=tmp_path / "run", **settings)
    assert found.contest["weight_decays"] == [0.0]
    assert "--weight-decay 0.0" in command(read_run(tmp_path / "run"))
