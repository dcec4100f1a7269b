"""Arguments of the functions that programs call: their names and defaults, and the text that a run's cell brings."""

import inspect
import json

import pytest

import wenet
from wenet import WenetError, resume_search, search, train
from wenet.cli.train import main as train_main
from wenet.searching.settings import PRESETS, SearchConfig, resolve_config
from wenet.training.settings import TrainConfig, resolve_train_config

from .helpers import write_text

TINY_SEARCH = {"preset": "quick", "pool": 2, "batch": 2, "keep": 1, "hidden": 4, "nodes": 2, "epochs_per_round": 0.01}
TINY_TRAINING = ["--preset", "quick", "--hidden", "4", "--epochs", "1", "--data-batch", "4", "--eval-batch", "4"]


@pytest.mark.parametrize(("function", "config"), [(search, SearchConfig), (train, TrainConfig)])
def test_every_setting_is_a_named_argument(function, config):
    parameters = inspect.signature(function).parameters
    assert set(config.__dataclass_fields__) <= set(parameters)
    assert {"out", "data_dir", "checkpoint_every", "tensorboard"} <= set(parameters)
    assert not [p for p in parameters.values() if p.kind is inspect.Parameter.VAR_KEYWORD]


def test_defaults_shown_are_those_in_force():
    shown = {name: parameter.default for name, parameter in inspect.signature(search).parameters.items()}
    for preset in PRESETS:
        in_force = resolve_config(preset).to_dict()
        for name in set(in_force) - {"dataset", "preset"}:
            assert shown[name] == in_force[name] or repr(shown[name]) == "<by preset>", name
    assert shown["form"] == "highway" and repr(shown["pool"]) == "<by preset>" and shown["checkpoint_every"] == 5.0
    training = inspect.signature(train).parameters
    for cell in ("lstm", "darts-v2"):
        in_force = resolve_train_config("paper", {"cell": cell}).to_dict()
        for name in set(in_force) - {"dataset", "preset", "cell"}:
            assert training[name].default == in_force[name] or repr(training[name].default) == "<by preset>", name


def test_a_run_that_goes_on_has_no_settings():
    assert "audit" in inspect.signature(resume_search).parameters
    assert "pool" not in inspect.signature(resume_search).parameters
    with pytest.raises(WenetError, match="unknown argument 'pool'"):
        resume_search("runs/none", pool=3)


def test_the_completer_of_ipython_knows_the_settings():
    completer = pytest.importorskip("IPython.core.completer")
    shell = completer.IPCompleter(namespace={"wenet": wenet}, use_jedi=False)
    for text, name in (
        ("wenet.search(po", "pool="),
        ("wenet.train(epo", "epochs="),
        ("wenet.evaluate(r, dev", "device="),
    ):
        with completer.provisionalcompleter():
            assert name in [found.text for found in shell.completions(text, len(text))]


def test_a_cell_of_a_run_brings_the_text_of_the_run(tmp_path, capsys):
    text = write_text(tmp_path / "text")
    search(str(text), out=tmp_path / "found", max_vocabulary=12, **TINY_SEARCH)
    run = tmp_path / "trained"
    assert train_main([*TINY_TRAINING, "--cell", str(tmp_path / "found"), "--out", str(run)]) == 0
    assert f"no text named: {text}, that of {tmp_path / 'found'}" in capsys.readouterr().out
    found, trained = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "found", run))
    assert trained["settings"]["dataset"] == str(text) and trained["settings"]["max_vocabulary"] == 12
    assert trained["corpus"] == found["corpus"]


def test_a_text_that_is_named_is_the_text(tmp_path, capsys):
    text, other = write_text(tmp_path / "text"), write_text(tmp_path / "other", lines=160)
    search(str(text), out=tmp_path / "found", **TINY_SEARCH)
    run = tmp_path / "trained"
    assert train_main([str(other), *TINY_TRAINING, "--cell", str(tmp_path / "found"), "--out", str(run)]) == 0
    assert "no text named" not in capsys.readouterr().out
    assert json.loads((run / "config.json").read_text())["settings"]["dataset"] == str(other)
