"""Searches and training with `--precision bf16` on a processor, and what is said where it cannot."""

import copy
import json

import pytest
import torch

from wenet import search, train
from wenet.cells.published import DARTS_V2
from wenet.cli.search import main as search_main
from wenet.cli.train import main as train_main
from wenet.nn import CellRNN, StandaloneCellRNN, WeightedCellRNN
from wenet.programs import load_program
from wenet.searching.estimate import estimate_search_memory
from wenet.searching.settings import resolve_config
from wenet.tasks import LanguageModelling
from wenet.training.estimate import estimate_training_memory
from wenet.training.memory import recurrence_bytes
from wenet.training.settings import resolve_train_config
from wenet_kernels import cpu

from ..needs import needs_bf16, needs_native
from .helpers import results, words

SMALL = {"preset": "quick", "hidden": 8, "data_batch": 4, "eval_batch": 2, "bptt": 6, "device": "cpu", "backend": "cpu"}
SEARCH = {**SMALL, "pool": 3, "batch": 3, "keep": 2, "nodes": 3, "epochs_per_round": 0.6}
MIXTURE = {**SMALL, "space": "gated", "states": "1", "pool": 3, "batch": 3, "keep": 2, "epochs_per_round": 0.6}
TRAIN = {**SMALL, "cell": "tanh0 relu1", "test_batch": 1, "epochs": 2, "lr": 1.0}
RACE = {
    **{name: value for name, value in SMALL.items() if name not in ("preset", "hidden")},
    **{"preset": "race", "level": "words", "parameters": 900, "pool": 6, "batch": 6, "keep": 2, "rungs": 2},
    **{"blocks": "2-4", "epochs_per_round": 0.4, "rates": "0.01,0.03", "known": False},
    **{"contest_epochs": 0.5, "contest_seeds": 2},
}


def flags(settings):
    return [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]


@needs_bf16
@pytest.mark.parametrize(
    ("run", "settings", "records"),
    [(search, SEARCH, "search"), (search, MIXTURE, "search"), (train, TRAIN, "train")],
)
def test_bf16_products_train_as_well(run, settings, records, text, tmp_path):
    losses = {}
    for precision in ("fp32", "bf16"):
        run(str(text), out=tmp_path / precision, precision=precision, **settings)
        losses[precision] = results(tmp_path / precision, f"{records}.jsonl")[0]["train_loss"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.01)
    assert losses["bf16"] != losses["fp32"]


@needs_bf16
def test_a_program_trains_as_well(text, tmp_path):
    losses = {}
    for precision in ("fp32", "bf16"):
        train(str(text), out=tmp_path / precision, **{**TRAIN, "cell": "gru", "precision": precision})
        losses[precision] = results(tmp_path / precision, "train.jsonl")[0]["train_loss"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.01)
    assert losses["bf16"] != losses["fp32"]


@needs_bf16
@pytest.mark.parametrize(
    "layer",
    [
        CellRNN(5, 9, "lstm", dropout_h=0.3, precision="bf16"),
        CellRNN(5, 9, "gru", num_layers=2, bidirectional=True, precision="bf16"),
        StandaloneCellRNN(5, 9, [load_program("gru"), load_program("mgu")], precision="bf16"),
        WeightedCellRNN(5, 9, [load_program("gru"), load_program("mgu")], precision="bf16"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_of_programs_round_and_nothing_more(layer):
    full = copy.deepcopy(layer)
    full.precision = "full"
    x = torch.randn(4, 3, 5)
    for given in (x, x.expand(2, -1, -1, -1)) if type(layer) is StandaloneCellRNN else (x,):
        outputs = []
        for each in (layer, full):
            torch.manual_seed(1)
            outputs.append(each(given)[0])
        assert not torch.equal(*outputs)
        torch.testing.assert_close(*outputs, rtol=0, atol=0.02)


@needs_bf16
@pytest.mark.parametrize("space", ["gated", "both"])
def test_races_of_programs_and_their_contests(space, text, tmp_path):
    found = {}
    for precision in ("fp32", "bf16"):
        folder = tmp_path / precision
        search(str(text), out=folder, **{**RACE, "space": space, "precision": precision})
        rows = json.loads((folder / "contest.json").read_text())["contestants"]
        found[precision] = {row["name"]: row["valid"] for row in rows}
    assert found["bf16"] != found["fp32"]
    for name in ("lstm", "gru"):  # programs too
        assert found["bf16"][name] == pytest.approx(found["fp32"][name], rel=0.01)
        assert found["bf16"][name] != found["fp32"][name]


@needs_bf16
@pytest.mark.parametrize(("command", "settings"), [(search_main, SEARCH), (train_main, TRAIN)])
def test_the_header_says_the_precision_and_auto_is_fp32(command, settings, text, tmp_path, capsys):
    for asked, named in (("bf16", "bf16"), ("auto", "fp32")):
        run = tmp_path / asked
        assert command([str(text), *flags(settings), "--precision", asked, "--out", str(run)]) == 0
        assert f"backend cpu, {named}" in capsys.readouterr().out
        assert json.loads((run / "config.json").read_text())["settings"]["precision"] == named


@needs_native
@pytest.mark.parametrize("backend", ["cpu", "auto"])
@pytest.mark.parametrize(("command", "settings"), [(search_main, SEARCH), (train_main, TRAIN)])
@pytest.mark.parametrize(
    ("sets", "instruction_set", "message"),
    [
        ((), "auto", "this processor multiplies no bf16, only fp32 and fp64"),
        (("avx512",), "portable", "WENET_INSTRUCTION_SET=portable does not multiply bf16, but avx512 does"),
    ],
)
def test_a_processor_that_cannot_says_why(
    sets, instruction_set, message, command, settings, backend, text, tmp_path, capsys, monkeypatch
):
    monkeypatch.delenv("WENET_BACKEND", raising=False)
    monkeypatch.setenv("WENET_INSTRUCTION_SET", instruction_set)
    monkeypatch.setattr(cpu, "BF16_KERNEL_SETS", sets)
    asked = {**settings, "precision": "bf16", "backend": backend, "out": tmp_path / "run"}
    assert command([str(text), *flags(asked)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_factors_of_weight_gradients_are_counted_as_half():
    rows, hidden = 35 * 20, 200
    saved = 2 * rows * 9 * 3 * hidden  # bytes a network; 8 nodes and the init node have H inputs and 2H derivatives
    settings = {"hidden": hidden, "data_batch": 20}
    full, half = (resolve_config("quick", {**settings, "bptt": 35, "precision": p}) for p in ("fp32", "bf16"))
    assert (
        estimate_search_memory(full, words(1000)) - estimate_search_memory(half, words(1000)) == full.networks * saved
    )
    full, half = (resolve_train_config("quick", {**settings, "bptt": 15, "precision": p}) for p in ("fp32", "bf16"))
    full, half = (
        estimate_training_memory(config, DARTS_V2, LanguageModelling(), words(1000)) for config in (full, half)
    )
    assert full - half == saved


def test_factors_of_programs_are_counted_as_half():
    full, half = (resolve_train_config("quick", {"hidden": 200, "precision": p}) for p in ("fp32", "bf16"))
    gru = load_program("gru")
    assert recurrence_bytes(full, gru) - recurrence_bytes(half, gru) == 2 * 2 * 3 * 200  # 3 inputs, 3 derivatives
