"""Algorithm 2 with cells that are programs: the layer that mixes them, and a search to its winner."""

import json
import signal

import pytest
import torch

from wenet import WenetError
from wenet.cells import read_cell
from wenet.cells.gated import random_mixed_programs
from wenet.cli.search import main as search_main
from wenet.data import load_corpus
from wenet.nn import StandaloneCellRNN, WeightedCellRNN
from wenet.searching.mixture import Mixture, build_mixture
from wenet.searching.settings import resolve_config
from wenet.searching.space import draw_pool
from wenet.tasks import LanguageModelling

from .helpers import results

T, M, H = 4, 5, 6
FLAGS = [
    *("--preset", "quick", "--strategy", "wenet", "--space", "gated", "--states", "2", "--blocks", "2-4"),
    *("--pool", "5", "--batch", "3", "--keep", "2", "--hidden", "8", "--epochs-per-round", "0.6", "--no-contest"),
    *("--data-batch", "4", "--eval-batch", "2", "--bptt", "6", "--norm", "batch", "--quiet"),
]


def config_of(**settings):
    given = {"strategy": "wenet", "space": "gated", "states": 1, "data_batch": 4, "hidden": 8, "pool": 4, "batch": 4}
    return resolve_config("quick", {**given, "device": "cpu", "precision": "fp64", **settings})


@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize("states", [1, 2])
def test_each_step_is_a_sum_over_the_cells(states, norm):
    """Of single steps of the same cells side by side, all from the states of the mixture."""
    programs = random_mixed_programs(3, (states,), range(2, 5), seed=2, known=False)
    torch.manual_seed(1)
    layer = WeightedCellRNN(3, H, programs, norm).double()
    cells = [program.normalised() for program in programs] if norm else programs
    apart = StandaloneCellRNN(3, H, cells).double()
    apart.load_state_dict({name: each for name, each in layer.state_dict().items() if name != "mix_logits"})
    with torch.no_grad():
        layer.mix_logits.copy_(torch.randn(3))
    share = layer.mix_logits.softmax(0)[:, None, None]
    x = torch.randn(T, M, 3, dtype=torch.double)
    output, last = layer(x)
    state = torch.zeros(1, M, states * H, dtype=torch.double)
    for t in range(T):
        one, each = apart(x[t : t + 1], state.expand(3, -1, -1).contiguous())
        state = (share * each).sum(0, keepdim=True)
        torch.testing.assert_close(output[t], (share * one[0]).sum(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last, state, rtol=1e-12, atol=1e-12)
    first, middle = layer(x[:2])
    torch.testing.assert_close(torch.cat([first, layer(x[2:], middle)[0]]), output, rtol=1e-12, atol=1e-12)
    output.square().sum().backward()
    assert layer.mix_logits.grad.abs().min() > 0 and layer.weights.grad.any(1).all()


def test_mix_dropout_and_a_single_row():
    layer = WeightedCellRNN(3, H, random_mixed_programs(4, (1,), range(2, 5), seed=2), "batch", mix_dropout=0.5)
    shares = [layer._mix().detach() for _ in range(20)]
    assert any((share == 0).any() for share in shares) and all(share.sum() == pytest.approx(1) for share in shares)
    layer.eval()
    with pytest.raises(WenetError, match="at least two rows"):
        layer(torch.randn(T, 1, 3))
    with pytest.raises(WenetError, match="norm"):
        WeightedCellRNN(3, H, layer.cells.programs, "layer")


@pytest.mark.parametrize("space", ["gated", "both"])
def test_only_the_mixture_is_normalised(space, text):
    data = load_corpus(str(text))
    for norm in ("batch", "none"):
        config = config_of(space=space, norm=norm, nodes="2")
        cells = draw_pool(config)
        model = build_mixture(config, cells, LanguageModelling(), data)
        normalised = [program.normalises for program in model.rnn.cells.programs]
        assert normalised == [norm == "batch"] * len(cells) and not any(cell.normalises for cell in cells)
        assert model.rnn.norm == (norm if norm == "batch" else None)


def stop_in_the_second_round(monkeypatch):
    real = Mixture.step

    def step(self, *operands):
        if self.progress.round == 1 and len(self.progress.losses) == 3:
            self.session.interrupt.requested = signal.SIGTERM
        return real(self, *operands)

    monkeypatch.setattr(Mixture, "step", step)


def test_a_search(text, tmp_path, monkeypatch):
    """Cells with the largest weights are kept, the winner is the plain cell, and a stopped search goes on."""
    run, again = tmp_path / "run", tmp_path / "again"
    assert search_main([str(text), *FLAGS, "--out", str(run)]) == 0
    *records, best = results(run)
    pool = [str(cell) for cell in draw_pool(config_of(pool=5, batch=3, states=2, blocks="2-4"))]
    assert [len(record["networks"]) for record in records] == [3, 4]
    first, last = ([network["genotype"] for network in record["networks"]] for record in records)
    assert set(first) == set(pool[:3]) and set(last) == {*first[:2], *pool[3:]}
    for record in records:
        weights = [network["weight"] for network in record["networks"]]
        assert weights == sorted(weights, reverse=True) and len(set(weights)) > 1
        assert sum(weights) == pytest.approx(1, abs=1e-5)
    assert best["genotype"] == {"program": last[0]} and "batchnorm" not in last[0]
    assert read_cell(best["text"]).states == 2
    stop_in_the_second_round(monkeypatch)
    assert search_main([str(text), *FLAGS, "--out", str(again)]) == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert search_main(["--resume", str(again), "--quiet"]) == 0
    assert results(again) == results(run)
    plain = tmp_path / "plain"
    assert search_main([str(text), *FLAGS, "--norm", "none", "--out", str(plain)]) == 0
    assert results(plain)[0]["train_loss"] != records[0]["train_loss"]
    assert json.loads((plain / "best.json").read_text())["genotype"].keys() == {"program"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"states": "1-2"}, ["--states 1-2", "equally many", "--states 1"]),
        ({"space": "both", "states": 2}, ["--space both needs --states 1"]),
        ({"score": "held-out"}, ["--score held-out", "--space dag"]),
        ({"cell_weights": "shared"}, ["--cell-weights shared", "--space dag"]),
        ({"initial_cells": "tanh0 relu1"}, ["--initial-cells", "--space dag"]),
        ({"norm": "batch", "data_batch": 1}, ["--data-batch must be at least 2"]),
        ({"space": "both", "norm": "batch", "form": "plain"}, ["--form plain needs --norm none"]),
    ],
)
def test_impossible_settings(settings, words):
    with pytest.raises(WenetError) as error:
        config_of(**settings)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_processes_do_not_divide_programs():
    with pytest.raises(WenetError, match="--space gated"):
        Mixture.check(config_of(), processes=2)


def test_memory_is_counted(text):
    data = load_corpus(str(text))
    assert Mixture.memory(config_of(blocks="6"), data, 1) > Mixture.memory(config_of(blocks="2"), data, 1) > 0
