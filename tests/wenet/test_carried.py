"""Embedding and decoder that go on from round to round."""

from __future__ import annotations

import json
import signal
from itertools import pairwise

import pytest
import torch

import wenet
from wenet import WenetError
from wenet.cli.search import main as search_main
from wenet.report.run import read_run
from wenet.report.words import command
from wenet.run import Stopped
from wenet.searching.mixture import CARRIED, Mixture
from wenet.searching.settings import PRESETS, SearchConfig, resolve_config

from .helpers import REGULARISED, TINY, fails, results, write_text

OPTIONS = {
    **{"preset": "quick", "pool": 6, "batch": 2, "keep": 1, "hidden": 8, "nodes": 2, "epochs_per_round": 0.3},
    **{"data_batch": 4, "eval_batch": 2, "bptt": 6, "backend": "reference", "carry_embedding": True},
    **REGULARISED,
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return str(write_text(tmp_path_factory.mktemp("text")))


@pytest.fixture
def rounds(monkeypatch):
    """The parameters at the beginning and the end of every round."""
    seen: list[tuple[dict, dict]] = []
    begin, end = Mixture.begin_stage, Mixture.end_stage

    def weights(trainer):
        return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}

    def begin_stage(self):
        begin(self)
        seen.append((weights(self), {}))

    def end_stage(self):
        seen[-1][1].update(weights(self))
        end(self)

    monkeypatch.setattr(Mixture, "begin_stage", begin_stage)
    monkeypatch.setattr(Mixture, "end_stage", end_stage)
    return seen


@pytest.mark.parametrize("carried", [True, False])
def test_what_a_round_starts_from(text, tmp_path, rounds, carried):
    wenet.search(text, out=tmp_path / "run", **{**OPTIONS, "carry_embedding": carried})
    assert len(rounds) == 3
    for (_, before), (start, end) in pairwise(rounds):
        for name in CARRIED:
            assert torch.equal(start[name], before[name]) is carried
            assert not torch.equal(start[name], end[name])  # and is trained on
        cells = [name for name in start if name.startswith("rnn.weight")]
        assert cells and all(float(start[name].abs().max()) <= 0.1 for name in cells)  # drawn anew
        assert float(start["rnn.mix_logits"].abs().max()) == 0


@pytest.mark.parametrize("moment", ["in a round", "between rounds"])
def test_a_stopped_search_goes_on_to_the_same_end(text, tmp_path, monkeypatch, moment):
    wenet.search(text, out=tmp_path / "whole", **OPTIONS)
    run, step = tmp_path / "run", Mixture.step

    def stopping_step(self, inputs, targets):
        if moment == "in a round" and self.progress.round == 1 and len(self.progress.losses) == 3:
            self.session.interrupt.requested = signal.SIGTERM
        elif moment == "between rounds" and self.progress.round == 1 and not self.progress.losses:
            raise KeyboardInterrupt  # a kill: what there is, is the checkpoint at the end of the last round
        return step(self, inputs, targets)

    with monkeypatch.context() as patch:
        patch.setattr(Mixture, "step", stopping_step)
        with pytest.raises((Stopped, KeyboardInterrupt)):
            wenet.search(text, out=run, **OPTIONS)
    wenet.resume_search(run)
    assert results(run) == results(tmp_path / "whole")


def test_the_flag(text, tmp_path, capsys):
    assert not resolve_config("paper").carry_embedding
    run = tmp_path / "run"
    assert search_main([text, *TINY, "--carry-embedding", "--out", str(run)]) == 0
    assert json.loads((run / "config.json").read_text())["settings"]["carry_embedding"] is True
    assert "--carry-embedding" in command(read_run(run))
    assert "--carry-embedding" in fails(capsys, text, *TINY, "--carry-embeding", "--out", tmp_path / "b")
    assert "leave out --no-carry-embedding" in fails(capsys, "--resume", run, "--no-carry-embedding")
    assert f"leave out '{run.name}'" in fails(capsys, "--resume", run, run.name)
    file = tmp_path / "settings.toml"
    file.write_text("carry-embedding = 1\n")
    refused = fails(capsys, text, *TINY, "--config", file, "--out", tmp_path / "c")
    assert "--carry-embedding must be true or false, not 1" in refused
    with pytest.raises(WenetError, match="--pool must be a whole number, not True"):
        resolve_config("quick", {"pool": True})
    assert PRESETS["paper"] == {} and SearchConfig().carry_embedding is False
