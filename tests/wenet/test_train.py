"""Training by NT-ASGD, against traces worked out by hand and texts of known entropy."""

import json
import math
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file

from wenet import WenetError, evaluate, resume_train, search, train
from wenet.cells.published import DARTS_V2, load_genotype
from wenet.cli.evaluate import main as eval_main
from wenet.cli.search import main as search_main
from wenet.cli.train import main as train_main
from wenet.data import window_length
from wenet.nn.language import LanguageModel
from wenet.nn.rnn import DagRNN
from wenet.tasks import LanguageModelling
from wenet.tasks.language import perplexity
from wenet.training import nt_asgd as module
from wenet.training.nt_asgd import EvaluationTraining, build_model, stopped_improving
from wenet.training.settings import resolve_train_config

from .helpers import results, words, write_text

TINY = {
    "preset": "quick", "cell": "tanh0 relu1", "hidden": 8, "epochs": 4, "data_batch": 4, "eval_batch": 2,
    "test_batch": 1, "bptt": 12, "lr": 5.0,
}  # fmt: skip
AVERAGE = {"rtol": 1e-7, "atol": 1e-8}  # torch forms a mean with a weight in fp32, whatever the parameters' precision
NO_DROPOUT = {f"dropout_{name}": 0.0 for name in ("word", "embedding", "x", "h", "output")}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text"), lines=60)


def test_windows_of_darts_are_the_usual_or_half_as_long():
    """As in its train_search.py, which has the normal distribution commented out."""
    torch.manual_seed(0)
    drawn = Counter(window_length(35, "darts") for _ in range(4000))
    assert set(drawn) == {35, 17}
    assert drawn[17] / 4000 == pytest.approx(0.05, abs=0.015)
    assert window_length(35, "fixed") == 35


def test_window_lengths_follow_their_distribution():
    torch.manual_seed(0)
    count = 40_000
    drawn = Counter(window_length(35) for _ in range(count))
    assert min(drawn) == 5
    assert max(drawn) == 55

    def below(length: float) -> float:
        """Probability of a window shorter than this: a mixture of two normal distributions, cut to whole steps."""
        normal = [0.5 * (1 + math.erf((length - mean) / 5 / math.sqrt(2))) for mean in (35, 17.5)]
        return 0.95 * normal[0] + 0.05 * normal[1]

    for length in (6, 10, 20, 25, 30, 35, 40, 50, 55):
        expected = below(length)
        deviation = math.sqrt(expected * (1 - expected) / count)
        assert sum(n for drawn_length, n in drawn.items() if drawn_length < length) / count == pytest.approx(
            expected, abs=4 * deviation + 1e-4
        )


@pytest.mark.parametrize(
    ("history", "newest", "expected"),
    [
        ([5, 4, 3, 2, 1], 9, False),  # five validations are not more than five
        ([5, 4, 3, 2, 1, 1], 5.1, True),  # the best of all but the last five is 5
        ([5, 4, 3, 2, 1, 1], 5.0, False),
        ([5, 4, 3, 2, 1, 1, 9], 4.5, True),
        ([5, 4, 3, 2, 1, 1, 9], 3.5, False),
    ],
)
def test_averaging_begins_when_validation_stops_improving(history, newest, expected):
    assert stopped_improving(history, newest, 5) is expected


@pytest.fixture
def traced(text, tmp_path, monkeypatch):
    """Training whose validation gets worse in the second epoch; what each update was given, and the first weights."""
    updates, first = [], {}
    real = EvaluationTraining.step

    def update(self, tokens, targets):
        first.setdefault("weights", [parameter.detach().clone() for parameter in self.model.parameters()])
        updates.append((tokens, targets, self.h, self.averaged is not None))
        return real(self, tokens, targets)

    validations = iter([9.0, 10.0, 11.0, 8.0, 7.0])  # the last is the test
    monkeypatch.setattr(EvaluationTraining, "step", update)
    monkeypatch.setattr(EvaluationTraining, "_measure", lambda *_: next(validations))
    settings = {**TINY, **NO_DROPOUT, "nonmonotone": 1, "precision": "fp64", "weight_decay": 0.01, "bptt": 35}
    train(str(text), out=tmp_path / "run", **settings)
    tensors = load_file(tmp_path / "run" / "checkpoint" / "best.safetensors")
    given = {"precision": "fp32", **{k: v for k, v in settings.items() if k != "preset"}}
    config = resolve_train_config("quick", given)
    return config, updates, first["weights"], tensors


def gradients(model, window):
    """Of the loss with its penalty on the output's change, scaled to a norm of 0.25 where it is larger."""
    tokens, targets, h, _ = window
    loss, _, _ = model.loss(tokens, targets, h, 0.0, 1e-3)
    found = torch.autograd.grad(loss, list(model.parameters()))
    norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in found))
    return [gradient * min(1.0, 0.25 / (norm + 1e-6)) for gradient in found]


def replica(config, weights):
    model = build_model(config, load_genotype(config.cell), LanguageModelling(), words(21))
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), weights, strict=True):
            parameter.copy_(value)
    return model


def test_updates_follow_a_trace_worked_out_by_hand(traced):
    config, updates, weights, tensors = traced
    model, total, averaged = replica(config, weights), None, 0
    for window in updates:
        rate = 5.0 * len(window[0]) / 35
        found = gradients(model, window)
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), found, strict=True):
                parameter -= rate * (gradient + 0.01 * parameter)
        if window[3]:
            values = [parameter.detach().clone() for parameter in model.parameters()]
            total = values if total is None else [a + b for a, b in zip(total, values, strict=True)]
            averaged += 1
    assert 0 < averaged < len(updates)
    assert int(tensors["averaged.n_averaged"]) == averaged
    for (name, parameter), summed in zip(model.named_parameters(), total, strict=True):
        torch.testing.assert_close(tensors[f"model.{name}"], parameter.detach(), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(tensors[f"averaged.module.{name}"], summed / averaged, **AVERAGE)


def test_averages_are_those_of_torch_asgd(traced):
    """ASGD reads a rate stored at the step before, so here it is told of each; it leaves the first update out."""
    config, updates, weights, tensors = traced
    model = replica(config, weights)
    options = {"weight_decay": 0.01}
    optimizer = torch.optim.SGD(model.parameters(), 5.0, **options)
    first, count = None, 0
    for window in updates:
        if window[3] and count == 0:
            optimizer = torch.optim.ASGD(model.parameters(), 5.0, t0=0, lambd=0.0, **options)
        rate = 5.0 * len(window[0]) / 35
        optimizer.param_groups[0]["lr"] = rate
        for state in optimizer.state.values():
            if "eta" in state:
                state["eta"].fill_(rate)
        for parameter, gradient in zip(model.parameters(), gradients(model, window), strict=True):
            parameter.grad = gradient
        optimizer.step()
        if window[3]:
            first = first or [parameter.detach().clone() for parameter in model.parameters()]
            count += 1
    for (name, parameter), after_first in zip(model.named_parameters(), first, strict=True):
        expected = (after_first + (count - 1) * optimizer.state[parameter]["ax"]) / count
        torch.testing.assert_close(tensors[f"averaged.module.{name}"], expected, **AVERAGE)


def test_windows_cover_the_text_from_a_state_of_zero(traced):
    _, updates, _, _ = traced
    epochs = [[]]
    for tokens, targets, h, _ in updates:
        if h is None and epochs[-1]:
            epochs.append([])
        epochs[-1].append((tokens, targets))
    assert len(epochs) == 4
    for epoch in epochs:
        tokens, targets = (torch.cat(parts) for parts in zip(*epoch, strict=True))
        assert torch.equal(tokens[1:], targets[:-1])
        assert torch.equal(tokens, torch.cat([tokens for tokens, _ in epochs[0]]))
    assert len({tuple(len(tokens) for tokens, _ in epoch) for epoch in epochs}) > 1


def test_a_word_dropped_is_dropped_wherever_it_is_read():
    torch.manual_seed(0)
    model = LanguageModel(200, DagRNN(4, 4, load_genotype("tanh0")), dropout_word=0.3)
    tokens = torch.randint(200, (40, 30))
    embedded = model._embed(tokens)
    scale = embedded / model.embedding(tokens)  # [T, M, d]
    assert scale.detach().unique().round(decimals=4).unique().tolist() == [0.0, pytest.approx(1 / 0.7, abs=1e-4)]
    by_word = {word: set(scale[tokens == word].detach().round(decimals=4).flatten().tolist()) for word in range(200)}
    assert all(len(values) == 1 for values in by_word.values())
    dropped = sum(values == {0.0} for values in by_word.values())
    assert 40 < dropped < 80
    model.eval()
    assert torch.equal(model._embed(tokens), model.embedding(tokens))


def test_perplexity_of_a_known_distribution(text):
    """A model whose output is always zero predicts by its bias alone; every token but the first of a row counts."""
    model = build_model(
        resolve_train_config("quick", {"hidden": 4, "precision": "fp64"}), DARTS_V2, LanguageModelling(), words(3)
    )
    probabilities = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    with torch.no_grad():
        model.embedding.weight.zero_()
        model.decoder_bias.copy_(probabilities.log())
    stream = torch.randint(3, (101, 2))
    expected = torch.exp(-probabilities[stream[1:]].log().mean())
    assert perplexity(model, stream, 35) == pytest.approx(float(expected), rel=1e-6)


def write_markov_text(folder, tokens: int) -> dict[str, float]:
    """A chain over four words and the line end, each mostly followed by one other; its true perplexity a part."""
    generator = random.Random(3)
    words, perplexities = ("a", "b", "c", "d", "\n"), {}
    for split, count in (("train", tokens), ("valid", tokens // 4), ("test", tokens // 4)):
        state, nats, line = 4, 0.0, []
        for _ in range(count):
            likely = (2 * state + 1) % 5
            following = likely if generator.random() < 0.8 else generator.choice([w for w in range(5) if w != likely])
            nats -= math.log(0.8 if following == likely else 0.05)
            line.append(words[following])
            state = following
        (folder / f"{split}.txt").write_text(" ".join(line) + "\n")
        perplexities[split] = math.exp(nats / count)
    return perplexities


def test_a_small_text_is_learned_to_its_entropy(tmp_path):
    (tmp_path / "text").mkdir()
    true = write_markov_text(tmp_path / "text", 6000)
    settings = {
        "hidden": 12,
        "epochs": 8,
        "data_batch": 8,
        "bptt": 35,
        "init_range": 0.3,
        "clip": 0.5,
        "nonmonotone": 1,
    }
    result = train(str(tmp_path / "text"), out=tmp_path / "run", **{**TINY, **NO_DROPOUT, **settings})
    assert result.best["averaging_from"] is not None
    assert result.valid == pytest.approx(true["valid"], rel=0.02)
    assert result.test == pytest.approx(true["test"], rel=0.02)


SWITCHING = {
    **{**TINY, "cell": "darts-v2", "nonmonotone": 1, "epochs": 9, "lr": 60.0, "weight_decay": 1e-3},
    "decoder_bias": "zero",
}


def flags(settings):
    return [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory):
    """A run that nothing disturbed, in which averaging begins in the middle."""
    run = tmp_path_factory.mktemp("whole") / "run"
    result = train(str(text), out=run, **SWITCHING)
    averaged = [record["averaged"] for record in results(run, "train.jsonl")[:-1]]
    assert 2 < averaged.index(True) < 8
    assert result.best["averaging_from"] == averaged.index(True) + 1
    return run


def same_end(run, whole):
    assert results(run, "train.jsonl") == results(whole, "train.jsonl")
    one, other = (load_file(folder / "checkpoint" / "best.safetensors") for folder in (run, whole))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


KILLED = """
import os, signal, sys
from wenet.cli.train import main as train_main
left, really = int(sys.argv.pop(1)), os.fsync
def fsync(file):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    really(file)
os.fsync = fsync
sys.exit(train_main())
"""


def test_kill_while_files_are_written(text, tmp_path, whole):
    """Killed at the moments that matter, before averaging begins and after, a run goes on to the same last bit."""
    run, epochs = tmp_path / "run", []
    for writes in (20, 67, 32, 41):
        begun = (run / "config.json").exists()
        arguments = ["--resume", str(run)] if begun else [str(text), *flags(SWITCHING), "--out", str(run)]
        command = [sys.executable, "-c", KILLED, str(writes), *arguments, "--checkpoint-every", "0"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        epochs.append(len((run / "train.jsonl").read_text().splitlines()))
    resume_train(run)
    same_end(run, whole)
    averaging_from = json.loads((run / "best.json").read_text())["averaging_from"]
    assert epochs[0] < averaging_from < epochs[-1]


@pytest.mark.parametrize("after", [1, 14, 35, 50, 77])
def test_stop_and_resume_across_the_switch(text, tmp_path, whole, monkeypatch, after):
    real, updates = EvaluationTraining.step, []

    def update(self, tokens, targets):
        updates.append(1)
        if len(updates) == after:
            self.session.interrupt.requested = signal.SIGTERM
        return real(self, tokens, targets)

    monkeypatch.setattr(EvaluationTraining, "step", update)
    run = tmp_path / "run"
    assert train_main([str(text), *flags(SWITCHING), "--out", str(run)]) == 128 + signal.SIGTERM
    resume_train(run)
    same_end(run, whole)


def test_stop_within_validation_and_test(text, tmp_path, whole, monkeypatch, capsys):
    real, calls = EvaluationTraining._measure, []

    def interrupted(self, model, streams):
        calls.append(1)
        if len(calls) in (6, 11):  # while averaging, and in the test at the end
            signal.raise_signal(signal.SIGTERM)
        return real(self, model, streams)

    monkeypatch.setattr(EvaluationTraining, "_measure", interrupted)
    run = tmp_path / "run"
    assert train_main([str(text), *flags(SWITCHING), "--out", str(run)]) == 128 + signal.SIGTERM
    assert f"continue with: wenet-train --resume {run}" in capsys.readouterr().err
    assert train_main(["--resume", str(run)]) == 128 + signal.SIGTERM
    assert json.loads((run / "best.json").read_text())["test_perplexity"] is None
    assert train_main(["--resume", str(run)]) == 0
    same_end(run, whole)


def test_a_finished_run_is_not_tested_again(tmp_path, whole, monkeypatch):
    folder = shutil.copytree(whole, tmp_path / "run")
    monkeypatch.setattr(EvaluationTraining, "_measure", lambda *_: pytest.fail("tested again"))
    assert resume_train(folder).best == json.loads((whole / "best.json").read_text())


def test_divergence_names_the_step(text, tmp_path):
    where = r"training diverged: .*(nan|inf|NaN).* in epoch 1, window \d+ \(step \d+\); lower --lr or --init-range"
    nothing = "no epoch is finished yet that --on-nan rollback could go back to"
    for on_nan, message in (("stop", f"{where}$"), ("rollback", f"{where}; {nothing}$")):
        with pytest.raises(WenetError, match=message):
            train(str(text), out=tmp_path / on_nan, **{**TINY, "lr": 1e30, "on_nan": on_nan})


@pytest.fixture
def diverging(monkeypatch):
    """Training whose loss is NaN in the third window of its third epoch."""
    real = EvaluationTraining.check_finite

    def check(self, name, value):
        if self.progress.epoch == 2 and self.progress.windows == 2:
            value = value * math.nan
        real(self, name, value)

    monkeypatch.setattr(EvaluationTraining, "check_finite", check)


def test_divergence_stops_training(text, tmp_path, diverging):
    with pytest.raises(WenetError, match="the loss is nan in epoch 3, window 3"):
        train(str(text), out=tmp_path / "run", **TINY)


def test_rollback_goes_on_from_the_best_epoch(text, tmp_path, diverging, capsys, monkeypatch):
    weights = []
    real = EvaluationTraining.train_stage

    def train_epoch(self):
        weights.append(self.model.rnn.weight_hidden.detach().clone())
        real(self)

    monkeypatch.setattr(EvaluationTraining, "train_stage", train_epoch)
    assert train_main([str(text), *flags(TINY), "--on-nan", "rollback", "--out", str(tmp_path / "run")]) == 0
    *records, best = results(tmp_path / "run", "train.jsonl")
    assert [("diverged" in record) for record in records] == [False, False, True, False]
    assert best["rollbacks"] == 1
    assert records[2]["back_to_epoch"] == min((1, 2), key=lambda epoch: records[epoch - 1]["valid_perplexity"])
    assert torch.equal(weights[3], weights[records[2]["back_to_epoch"]])
    output = capsys.readouterr().out
    assert "training diverged: the loss is nan in epoch 3" in output
    assert "caution     training diverged 1 time" in output


@pytest.mark.parametrize("averages_after", [1, 3])
def test_rollback_restores_what_darts_restores(text, tmp_path, monkeypatch, averages_after):
    """Weights and optimizer as at the end of the best epoch, the second: averages where it had them, none where they
    began later. What DARTS keeps is kept too: validations and random numbers. Not as there, lost epochs count."""
    validations = iter([30.0, 20.0, 25.0, 26.0, 27.0])
    monkeypatch.setattr(EvaluationTraining, "_measure", lambda *_: next(validations))
    monkeypatch.setattr(module, "stopped_improving", lambda history, *_: len(history) + 1 == averages_after)
    monkeypatch.setattr(EvaluationTraining, "finish", lambda self: None)
    check, end, roll_back = EvaluationTraining.check_finite, EvaluationTraining.end_stage, EvaluationTraining._roll_back
    ends, after = [], []

    def snapshot(training):
        return {name: tensor.clone() for name, tensor in training._weights().items()}

    def diverge(self, name, value):
        check(self, name, value * math.nan if (self.progress.epoch, self.progress.windows) == (3, 2) else value)

    def end_epoch(self):
        ends.append(snapshot(self))
        end(self)

    def rolling_back(self, diverged):
        drawn = torch.get_rng_state()
        roll_back(self, diverged)
        assert torch.equal(drawn, torch.get_rng_state())
        after.append((snapshot(self), self.progress.epoch, list(self.progress.history), self.averaged is not None))

    monkeypatch.setattr(EvaluationTraining, "check_finite", diverge)
    monkeypatch.setattr(EvaluationTraining, "end_stage", end_epoch)
    monkeypatch.setattr(EvaluationTraining, "_roll_back", rolling_back)
    train(str(text), out=tmp_path / "run", **{**TINY, "epochs": 5, "on_nan": "rollback"})
    [(tensors, epoch, history, averaged)] = after
    assert (epoch, history, averaged) == (4, [30.0, 20.0, 25.0], averages_after == 1)
    assert tensors.keys() == ends[1].keys()
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in tensors.items())
    assert not torch.equal(ends[2]["model.rnn.weight_hidden"], ends[1]["model.rnn.weight_hidden"])


def test_evaluation_reports_the_perplexities_of_the_run(text, tmp_path, whole, capsys):
    best = json.loads((whole / "best.json").read_text())
    record = evaluate(whole)
    assert record["valid"]["perplexity"] == best["valid_perplexity"]
    assert record["test"]["perplexity"] == best["test_perplexity"]
    lines = (text / "valid.txt").read_text().splitlines()
    tokens = sum(len(line.split()) + 1 for line in lines)
    assert record["valid"]["tokens_predicted"] == (tokens // 2 - 1) * 2
    assert record["test"]["tokens_predicted"] == 15 * 9 - 1
    double = evaluate(whole, str(text), precision="fp64")
    assert double["test"]["perplexity"] == pytest.approx(best["test_perplexity"], rel=1e-5)
    assert json.loads((whole / "eval.jsonl").read_text().splitlines()[-1]) == double
    for flags_of_evaluation in (["--eval-batch", "3"], ["--cache", "50", "--cache-share", "0.2"], ["--dynamic"]):
        assert eval_main([str(whole), *flags_of_evaluation]) == 0
    *_, cached, dynamic = [json.loads(line) for line in (whole / "eval.jsonl").read_text().splitlines()]
    assert cached["cache"] == {"length": 50, "flatness": 0.3, "share": 0.2}
    assert dynamic["dynamic"]["lr"] == 5e-5
    assert dynamic["valid"]["tokens_predicted"] == tokens - 1  # of one stream, not two
    plain, *adapted = (record["test"]["perplexity"] for record in (double, cached, dynamic))
    assert all(value != pytest.approx(plain, rel=1e-6) for value in adapted)
    assert "predicted tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cache", "0"], "--cache"),
        (["--cache", "5", "--dynamic"], "ask for one of them"),
        (["--dynamic-lr", "0.1"], "need --cache"),
        (["--cache", "5", "--cache-share", "1"], "--cache-share"),
    ],
)
def test_bad_flags_of_evaluation(whole, capsys, arguments, message):
    assert message in fails(eval_main, capsys, whole, *arguments)


def test_evaluation_on_another_text(text, tmp_path, whole, capsys):
    other = tmp_path / "other"
    other.mkdir()
    for split in ("train", "valid", "test"):
        (other / f"{split}.txt").write_text("w1 w2 w3\nw4 w5 w6\n")
    assert evaluate(whole, str(other), test_batch=1)["test"]["tokens_predicted"] == 7
    (other / "test.txt").write_text("w1 w99\n")
    assert eval_main([str(whole), str(other)]) == 2
    assert "'w99' does not occur" in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings",
    [
        {"cell": "lstm", "layers": 2},
        {"cell": "lstm-skip", "layers": 2},
        {"cell": "lstm", "softmax": "mos", "experts": 2, "embedding": 6, "last_hidden": 5},
        {"cell": "rhn", "softmax": "mos", "experts": 2},
        {"cell": "random:2"},
    ],
)
def test_architectures_train_stop_and_resume(text, tmp_path, monkeypatch, settings):
    settings = {**TINY, "epochs": 2, "bptt": 20, **settings}
    train(str(text), out=tmp_path / "whole", **settings)
    real = EvaluationTraining.step

    def update(self, tokens, targets):
        if self.progress.epoch == 1 and self.progress.windows == 2:
            self.session.interrupt.requested = signal.SIGTERM
        return real(self, tokens, targets)

    with monkeypatch.context() as patch:
        patch.setattr(EvaluationTraining, "step", update)
        assert train_main([str(text), *flags(settings), "--out", str(tmp_path / "run")]) == 128 + signal.SIGTERM
    result = resume_train(tmp_path / "run")
    same_end(tmp_path / "run", tmp_path / "whole")
    assert evaluate(tmp_path / "run")["test"]["perplexity"] == result.test < 60


# What the commands in the READMEs of awd-lstm-lm and mos and the defaults of their main.py come to, for Penn Treebank
# and WikiText-2. Their dropouti is that of the embedding, dropouth of what a layer hands on, wdrop of hidden weights,
# dropoute of words, dropoutl of the experts' contexts.
AWD_LSTM = {
    "embedding": 400, "hidden": 1150, "layers": 3, "lr": 30, "clip": 0.25, "bptt": 70, "dropout_output": 0.4,
    "dropout_h": 0.5, "dropout_word": 0.1, "activation_reg": 2, "temporal_activation_reg": 1, "weight_decay": 1.2e-6,
    "nonmonotone": 5, "eval_batch": 10, "test_batch": 1,
}  # fmt: skip
AWD_LSTM_PTB = {**AWD_LSTM, "data_batch": 20, "dropout_embedding": 0.4, "dropout_x": 0.25, "epochs": 500}
AWD_LSTM_WT2 = {**AWD_LSTM, "data_batch": 80, "dropout_embedding": 0.65, "dropout_x": 0.2, "epochs": 750}
MOS_PTB = {
    **AWD_LSTM, "embedding": 280, "hidden": 960, "last_hidden": 620, "experts": 15, "dropout_latent": 0.29, "lr": 20,
    "epochs": 1000, "data_batch": 12, "dropout_embedding": 0.4, "dropout_x": 0.225,
}  # fmt: skip
MOS_WT2 = {
    **MOS_PTB, "embedding": 300, "hidden": 1150, "last_hidden": 650, "lr": 15, "data_batch": 15,
    "dropout_embedding": 0.55, "dropout_x": 0.2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("dataset", "softmax", "published"),
    [("ptb", "tied", AWD_LSTM_PTB), ("wikitext-2", "tied", AWD_LSTM_WT2), ("ptb", "mos", MOS_PTB),
     ("wikitext-2", "mos", MOS_WT2)],
)  # fmt: skip
def test_settings_of_an_lstm_are_those_of_its_authors(dataset, softmax, published):
    config = resolve_train_config("paper", {"cell": "lstm", "dataset": dataset, "softmax": softmax})
    assert {name: getattr(config, name) for name in published} == published


def test_presets():
    paper = resolve_train_config("paper", {"dataset": "ptb"})
    assert (paper.hidden, paper.data_batch, paper.lr, paper.clip, paper.weight_decay) == (850, 64, 20, 0.25, 8e-7)
    assert (paper.bptt, paper.eval_batch, paper.test_batch, paper.nonmonotone, paper.epochs) == (35, 10, 1, 5, 1600)
    dropouts = (paper.dropout_word, paper.dropout_embedding, paper.dropout_x, paper.dropout_h, paper.dropout_output)
    assert dropouts == (0.1, 0.2, 0.75, 0.25, 0.75)
    assert (paper.activation_reg, paper.temporal_activation_reg, paper.init_range) == (0, 1e-3, 0.04)
    wikitext = resolve_train_config("paper", {"dataset": "wikitext-2"})
    assert (wikitext.hidden, wikitext.dropout_h, wikitext.weight_decay) == (700, 0.15, 5e-7)
    assert resolve_train_config("paper", {"dataset": "wikitext-2", "hidden": 9}).hidden == 9


def fails(command, capsys, *arguments):
    capsys.readouterr()
    assert command([str(argument) for argument in arguments]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cell", "lstmm"], "no cell 'lstmm'"),
        (["--cell", "tanh0 relu9"], "ancestor 9 is out of range"),
        (["--lr", "0"], "--lr must be above 0"),
        (["--on-nan", "pray"], "--on-nan"),
        (["--data-batch", "100000"], "is too short for 100,000 streams; lower --data-batch"),
        (["--eval-batch", "100000"], "is too short for 100,000 streams; lower --eval-batch"),
        (["--test-batch", "100000"], "is too short for 100,000 streams; lower --test-batch"),
        (["--hidden", "1000000"], "of memory are needed"),
    ],
)
def test_bad_flags(text, tmp_path, capsys, arguments, message):
    assert message in fails(train_main, capsys, text, *flags(TINY), "--out", tmp_path / "run", *arguments)
    assert not (tmp_path / "run").exists()


def test_runs_of_another_kind(text, tmp_path, whole, capsys):
    assert f"{whole} holds a training, not a search; name" in fails(search_main, capsys, "--resume", whole)
    search(str(text), out=tmp_path / "search", pool=2, batch=2, hidden=4, epochs_per_round=0.01, preset="quick")
    assert "holds a search, not a training; name another folder" in fails(
        train_main, capsys, "--resume", tmp_path / "search"
    )
    assert "holds a search, not a training" in fails(eval_main, capsys, tmp_path / "search")


def test_a_found_cell_is_trained_and_the_run_remembers_it(text, tmp_path):
    found = search(str(text), out=tmp_path / "search", pool=2, batch=2, hidden=4, epochs_per_round=0.01, preset="quick")
    train(str(text), out=tmp_path / "train", **{**TINY, "cell": str(tmp_path / "search"), "epochs": 1})
    assert load_genotype(str(tmp_path / "train")) == found.genotype
    assert load_genotype("random:3") == load_genotype("random:3") != load_genotype("random:4")
