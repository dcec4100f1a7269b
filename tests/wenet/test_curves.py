"""What `--tensorboard` leaves, beside the records of the same run."""

import json
import signal
import sys

import pytest

from wenet import search
from wenet.cli.search import main as search_main
from wenet.cli.train import main as train_main
from wenet.run.curves import Curves

from .helpers import TINY

pytest.importorskip("tensorboard", reason="needs the extra `tensorboard`")


def curves(folder) -> dict[str, list[tuple[int, float]]]:
    """Every curve as TensorBoard reads it: steps and values."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "histograms": 0})
    events.Reload()
    scalars = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
    return scalars | {
        name: [(e.step, e.histogram_value.num) for e in events.Histograms(name)] for name in events.Tags()["histograms"]
    }


def records(folder, name) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def close_to(values):
    return [pytest.approx(value, rel=1e-5) for value in values]


def test_curves_of_a_search(text, tmp_path, monkeypatch):
    monkeypatch.setattr("wenet.run.curves.POINT_SECONDS", 0.0)  # a point for each window
    run = tmp_path / "run"
    assert search_main([str(text), *TINY, "--tensorboard", "--out", str(run)]) == 0
    found, rounds = curves(run), records(run, "search.jsonl")
    ends = [sum(r["windows"] for r in rounds[: i + 1]) for i in range(len(rounds))]
    assert found["validation/perplexity of the mixture"] == list(
        zip(ends, close_to(r["valid_perplexity"] for r in rounds), strict=True)
    )
    assert [step for step, _ in found["training/loss"]] == list(range(1, ends[-1] + 1))
    losses = [value for _, value in found["training/loss"][: ends[0]]]
    assert sum(losses) / len(losses) == pytest.approx(rounds[0]["train_loss"], rel=1e-5)
    assert all(value > 0 for _, value in found["training/tokens per second"])
    largest = dict(found["weights/largest over equal share"])
    for end, record in zip(ends, rounds, strict=True):
        assert largest[end] == pytest.approx(record["networks"][0]["weight"] / record["uniform_weight"], rel=1e-5)
    assert found["weights/over equal share"] == [(end, len(r["networks"])) for end, r in zip(ends, rounds, strict=True)]


def test_curves_of_training(text, tmp_path):
    run = tmp_path / "run"
    flags = ["--preset", "quick", "--cell", "tanh0", "--hidden", "4", "--epochs", "2", "--backend", "reference"]
    assert train_main([str(text), *flags, "--tensorboard", "--out", str(run)]) == 0
    found, epochs = curves(run), records(run, "train.jsonl")
    assert [value for _, value in found["validation/perplexity"]] == close_to(e["valid_perplexity"] for e in epochs)
    assert found["training/loss"][-1][0] == found["validation/perplexity"][-1][0]


def test_a_resumed_run_has_every_step_once(text, tmp_path, monkeypatch):
    monkeypatch.setattr("wenet.run.curves.POINT_SECONDS", 0.0)
    run = tmp_path / "run"
    window = Curves.window

    def stop_later(self, step, *rest):
        window(self, step, *rest)
        if step == 20:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Curves, "window", stop_later)
    assert search_main([str(text), *TINY, "--tensorboard", "--out", str(run)]) == 128 + signal.SIGINT
    monkeypatch.setattr(Curves, "window", window)
    assert search_main(["--resume", str(run), "--tensorboard"]) == 0
    steps = [step for step, _ in curves(run)["training/loss"]]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > 20


def test_curves_change_nothing(text, tmp_path):
    found = [
        search(str(text), preset="quick", pool=2, batch=2, keep=1, hidden=4, out=tmp_path / str(on), tensorboard=on)
        for on in (False, True)
    ]
    assert found[0].best.mixture_value == found[1].best.mixture_value
    assert not (tmp_path / "False" / "tensorboard").exists()


def test_without_tensorboard(text, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert search_main([str(text), *TINY, "--tensorboard", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert 'pip install "wenet-rnn[tensorboard]"' in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()
