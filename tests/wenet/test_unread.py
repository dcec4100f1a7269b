"""A setting that would not be read is refused, whatever leaves it out; and no report lists it."""

import dataclasses

import pytest

from wenet.cells import load_cell
from wenet.cli.train import main as train_main
from wenet.run.unread import check_read, names_of
from wenet.searching.settings import PRESETS, SearchConfig, resolve_config
from wenet.searching.strategy import strategy_of
from wenet.searching.unread import unread_by_search
from wenet.training import TRAIN, TrainConfig, unread_by_training

from .helpers import fails, write_text

DAG = ["--preset", "race", "--space", "dag"]
GATED = ["--preset", "race", "--space", "gated"]
MIXTURE = ["--preset", "quick"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([*DAG, "--blocks", "3"], "--blocks has no meaning for --space dag; leave it out, or say --space gated"),
        ([*DAG, "--blocks", "2-6"], "--blocks has no meaning"),  # the usual value, and still in vain
        ([*DAG, "--states", "1"], "--states has no meaning for --space dag"),
        ([*DAG, "--no-known"], "--no-known has no meaning for --space dag"),
        ([*GATED, "--nodes", "3"], "--nodes has no meaning for --space gated"),
        ([*GATED, "--activations", "tanh"], "--activations has no meaning for --space gated"),
        ([*GATED, "--no-contest", "--form", "plain"], "--form has no meaning for --space gated"),
        ([*DAG, "--mix-lr", "0.1"], "--mix-lr has no meaning for --strategy race; leave it out, or say --strategy"),
        (
            [*MIXTURE, "--strategy", "random", "--nodes", "1", "--initial-cells", "tanh0"],
            "--initial-cells has no meaning for",
        ),
        ([*DAG, "--norm", "batch"], "--norm has no meaning for --strategy race"),
        ([*DAG, "--lr", "0.003"], "--lr has no meaning for --strategy race, which chooses among --rates; say --rates"),
        ([*DAG, "--hidden", "8", "--parameters", "900"], "--hidden has no meaning with --parameters"),
        ([*DAG, "--minutes", "1", "--contest-epochs", "1"], "--contest-epochs has no meaning with --minutes"),
        ([*MIXTURE, "--rungs", "3"], "--rungs has no meaning for --strategy wenet; leave it out, or say --strategy"),
        (
            [*MIXTURE, "--no-contest", "--contest-epochs", "3"],
            "--contest-epochs is for --contest; leave out that, or --no-c",
        ),
        (
            [*MIXTURE, "--audit", "0", "--audit-epochs", "3"],
            "--audit-epochs is for --audit or --runs; leave out that, or --audit 0",
        ),
        ([*MIXTURE, "--pool", "4", "--keep", "9"], "--keep is above the 4 cells of --pool; lower it"),
        ([*DAG, "--pool", "4", "--mutate"], "--mutate has no meaning where all cells race at once"),
        ([*DAG, "--rates", "0.01,0.01"], "--rates has a number twice; name each once"),
        ([*DAG, "--data-dir", "/nonexistent"], "--data-dir /nonexistent is no folder that can be read; name another"),
        ([*MIXTURE, "--horizon", "1"], "--horizon has no meaning for --task language; leave it out, or say"),
    ],
)
def test_a_search_refuses_what_it_would_not_read(tmp_path, capsys, flags, said):
    message = fails(capsys, str(write_text(tmp_path / "text")), *flags, "--out", str(tmp_path / "run"))
    assert said in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--layers", "2"], "--layers has no meaning for --cell darts-v2; leave it out, or say --cell lstm"),
        (["--cell", "lstm", "--form", "plain"], "--form has no meaning for --cell lstm"),
        (["--cell", "gru-program", "--form", "plain"], "--form has no meaning for --cell gru-program"),
        (["--experts", "3"], "--experts has no meaning for --softmax tied; leave it out, or say --softmax mos"),
    ],
)
def test_a_training_refuses_what_it_would_not_read(tmp_path, capsys, flags, said):
    text = str(write_text(tmp_path / "text"))
    assert train_main([text, "--preset", "quick", *flags, "--out", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1


def test_a_contest_that_may_be_added_later_has_its_settings():
    given = {"contest_epochs": 3.0, "sampled_words": 5, "audit": 0}
    check_read(given, unread_by_search(resolve_config("quick", given)))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("strategy", ["wenet", "race", "random"])
def test_a_search_reads_what_decides_the_rest(preset, strategy):
    given = {"task": PRESETS[preset].get("task", "language"), "strategy": strategy, "space": "dag"}
    if (preset, strategy) == ("numbers", "wenet"):
        given["task"], preset = "language", "paper"
    config = resolve_config(preset, {**given, "nodes": "2"})
    unread = names_of(unread_by_search(config))
    assert not unread & {"task", "preset", "strategy", "space", "parameters", "pool", "seed", "data_batch", "backend"}
    assert ("hidden" in unread) is (config.parameters is not None)
    assert ("mix_lr" in unread) is (strategy != "wenet") and ("rungs" in unread) is (strategy != "race")
    assert {"blocks", "states", "known"} <= unread <= {field.name for field in dataclasses.fields(SearchConfig)}


def test_several_runs_train_their_winners_standalone():
    """At the rate of all standalone trainings, whatever the rates of a race."""
    alone = {"runs": 2, "contest": False, "audit": 0}
    for given in ({"lr": 0.02}, {"standalone_lr": 0.02}, {"audit_epochs": 0.5}):
        check_read({**alone, **given}, unread_by_search(resolve_config("race", {**alone, **given})))
    given = {**alone, "lr": 0.02, "standalone_lr": 0.01}
    assert "lr" in names_of(unread_by_search(resolve_config("race", given)))


@pytest.mark.parametrize("runs", [1, 2])
@pytest.mark.parametrize("strategy", ["wenet", "race", "random"])
def test_a_search_that_has_not_learned_names_settings_that_it_reads(strategy, runs):
    config = resolve_config("quick", {"strategy": strategy, "runs": runs, "contest": False})
    best = strategy_of(config).best_type
    unread = {f"--{name.replace('_', '-')}" for name in names_of(unread_by_search(config))}
    assert not {best.more_training, best.rate} & unread


def test_a_training_reads_what_its_cell_has():
    config = TRAIN.resolve("quick")
    of_cell, of_lstm = (names_of(unread_by_training(config, cell)) for cell in (load_cell("darts-v2"), None))
    assert of_cell == {"layers", "last_hidden", "experts", "dropout_latent"}
    assert of_lstm == {"form", "experts", "dropout_latent"}
    assert of_cell | of_lstm <= {field.name for field in dataclasses.fields(TrainConfig)}
