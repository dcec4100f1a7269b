"""Several processes at one run find what one process finds, stop together, and never wait for one that is gone."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from wenet import WenetError, resume_search, resume_train, search, train
from wenet.cells.published import load_genotype
from wenet.nn.dropout import draw_rows
from wenet.nn.rnn import DagRNN
from wenet.parallel.ranks import ALONE, Ranks
from wenet.searching.mixture import Mixture
from wenet.searching.settings import resolve_config
from wenet.searching.work import SearchWork
from wenet.training.settings import resolve_train_config
from wenet.training.work import TrainWork

from .helpers import REGULARISED, results, write_text

COMMANDS = Path(sys.executable).parent
SEARCH = {
    "preset": "quick", "pool": 8, "batch": 4, "keep": 3, "hidden": 6, "nodes": 3, "data_batch": 4, "eval_batch": 2,
    "bptt": 6, "epochs_per_round": 0.4, "precision": "fp64", "mix_dropout": 0.2, **REGULARISED,
}  # fmt: skip
TRAIN = {
    "preset": "quick", "cell": "tanh0 relu1", "hidden": 6, "epochs": 3, "data_batch": 5, "eval_batch": 2,
    "test_batch": 2, "bptt": 12, "lr": 5.0, "dropout_word": 0.1, "temporal_activation_reg": 1e-2, "nonmonotone": 1,
    "precision": "fp64",
}  # fmt: skip


def torchrun(count, *arguments):
    """A job of so many ranks, started."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def command(count, name, *arguments):
    return torchrun(count, "--no-python", COMMANDS / name, *arguments)


def succeeds(job):
    output = job.communicate(timeout=280)[0]
    assert job.returncode == 0, output
    return output


def flags(settings):
    return [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", value)]


JOINS = """
import importlib, os, signal
import torch
from wenet.parallel.ranks import joined
from wenet_kernels import LostRanks
"""
LEAVES = """
with joined() as ranks:
    ranks.sum(torch.ones(1))
    importlib.import_module("torch.distributed.nn.functional")  # as optimizers do
"""
LOSES_THE_OTHER = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it to the rank that is left
try:
    with joined() as ranks:
        ranks.sum(torch.ones(1))
        if not ranks.first:
            os._exit(3)
        ranks.sum(torch.ones(1))
except LostRanks:
    print("lost the other")
"""
SHOWS_THREADS = """
threads = [open(f"/proc/self/task/{thread}/comm").read().strip() for thread in os.listdir("/proc/self/task")]
print(f"threads: {threads}")
"""


def assert_close(found, expected, rel=1e-9):
    """Nested results, numbers up to rounding; a difference in the last digits must change no decision."""
    if isinstance(expected, float):
        assert found == pytest.approx(expected, rel=rel)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_close(found[key], expected[key], rel)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            assert_close(*pair, rel)
    else:
        assert found == expected


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text"), lines=60)


@pytest.fixture(scope="module")
def searched(text, tmp_path_factory):
    """What one process finds."""
    return search(str(text), out=tmp_path_factory.mktemp("one") / "run", **SEARCH).folder


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    return train(str(text), out=tmp_path_factory.mktemp("one") / "run", **TRAIN).folder


def test_divided_layer_is_the_undivided_one():
    output = succeeds(torchrun(2, Path(__file__).parent / "divided_layer.py"))
    assert "rank 0 of 2 agrees" in output and "rank 1 of 2 agrees" in output


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are read from /proc")
@pytest.mark.parametrize(("end", "count"), [(LEAVES, 2), (LOSES_THE_OTHER, 1)], ids=["leaves", "loses the other"])
def test_no_thread_of_a_rank_outlives_its_group(tmp_path, end, count):
    """A thread of gloo's that still ran while Python ended aborted the process now and then, or kept it."""
    (tmp_path / "ends.py").write_text(JOINS + end + SHOWS_THREADS, encoding="utf-8")
    output = torchrun(2, tmp_path / "ends.py").communicate(timeout=280)[0]
    assert output.count("lost the other\n") == (count == 1)
    assert output.count("threads: [") == count and "gloo" not in "".join(re.findall(r"threads: .*", output)), output


def test_two_ranks_search_as_one_process(text, tmp_path, searched):
    run = tmp_path / "run"
    output = succeeds(command(2, "wenet-search", text, *flags(SEARCH), "--out", run))
    assert output.count("round 2/2 done") == 1
    assert "ranks     2, which divide the networks of a round: " in output
    assert_close(results(run), results(searched))
    found, expected = (load_file(sorted((path / "checkpoint").iterdir())[-1]) for path in (run, searched))
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-9, atol=1e-12, msg=name)


def stop_at(monkeypatch, kind, method, count):
    """Ask a run to stop at the n-th call of a method."""
    real, calls = getattr(kind, method), []

    def called(self, *operands):
        calls.append(1)
        if len(calls) == count:
            self.session.interrupt.requested = signal.SIGTERM
        return real(self, *operands)

    monkeypatch.setattr(kind, method, called)


def stopped_by_signal(job, records):
    """Let a job record something, ask it to stop, and see it stop in order."""
    until(job, lambda: records.exists() and records.read_text().count("\n") > 0)
    job.send_signal(signal.SIGTERM)
    output = job.communicate(timeout=250)[0]
    assert output.count("stopped; continue with: wenet-") == 1, output


def until(job, happened):
    while not happened():
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.01)


def test_search_goes_on_with_another_number_of_ranks(text, tmp_path, searched, monkeypatch):
    """One process begins, three go on, and one ends."""

    from wenet.run.interrupt import Stopped

    run = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(patch, Mixture, "step", 5)
        search(str(text), out=run, **SEARCH)
    stopped_by_signal(command(3, "wenet-search", "--resume", run), run / "search.jsonl")
    assert len(results_so_far(run)) == 1
    resume_search(run)
    assert_close(results(run), results(searched))


def results_so_far(run):
    return [json.loads(line) for line in (run / "search.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_ends_the_job(text, tmp_path, searched, victim):
    run = tmp_path / "run"
    settings = {**SEARCH, "epochs_per_round": 50}
    job = command(2, "wenet-search", text, *flags(settings), "--out", run, "--checkpoint-every", "0")
    until(job, lambda: list(run.glob("checkpoint/0*")))
    os.kill(process_of_rank(job, victim), signal.SIGKILL)
    killed = time.monotonic()
    output = job.communicate(timeout=250)[0]
    assert time.monotonic() - killed < 30, output
    assert job.returncode != 0
    assert f"(rank: {victim})" in output or f"rank      : {victim}" in output
    assert f"wenet-search (rank {1 - victim}): lost the other ranks" in output
    assert "go on from the last checkpoint with --resume" in output
    assert list(run.glob("checkpoint/0*"))


def process_of_rank(job, rank):
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    found = [child for child in children if f"RANK={rank}".encode() in environment_of(child)]
    assert len(found) == 1
    return int(found[0])


def environment_of(process):
    return Path(f"/proc/{process}/environ").read_bytes().split(b"\0")


def test_two_ranks_train_as_one_process(text, tmp_path, trained):
    """Five rows are three and two; the test at the end and averaged weights included."""
    run = tmp_path / "run"
    succeeds(command(2, "wenet-train", text, *flags(TRAIN), "--out", run))
    assert_close(results(run, "train.jsonl"), results(trained, "train.jsonl"), rel=1e-6)


def test_training_goes_on_with_another_number_of_ranks(text, tmp_path, trained, monkeypatch):
    from wenet.run.interrupt import Stopped
    from wenet.training.nt_asgd import EvaluationTraining

    run = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(patch, EvaluationTraining, "step", 5)
        train(str(text), out=run, **TRAIN)
    stopped_by_signal(command(2, "wenet-train", "--resume", run), run / "train.jsonl")
    resume_train(run)
    assert_close(results(run, "train.jsonl"), results(trained, "train.jsonl"), rel=1e-6)


RUNS = {**SEARCH, "pool": 4, "runs": 3, "audit": 5, "audit_epochs": 0.5, "pool_seed": 9}


def test_two_ranks_divide_runs_and_standalone_trainings(text, tmp_path):
    """Each run is on one rank, so it is the same to the last bit; so is a cell that is trained standalone."""
    search(str(text), out=tmp_path / "one", **RUNS)
    succeeds(command(2, "wenet-search", text, *flags(RUNS), "--out", tmp_path / "two"))
    for number in (1, 2, 3):
        parts = [tmp_path / ranks / f"run-{number}" for ranks in ("one", "two")]
        assert results(parts[0]) == results(parts[1])
    found, expected = (without_costs(tmp_path / ranks / "best.json") for ranks in ("two", "one"))
    assert found == expected
    audit = {**SEARCH, "audit": 5, "audit_epochs": 0.5}
    search(str(text), out=tmp_path / "audited", **audit)
    succeeds(command(2, "wenet-search", text, *flags(audit), "--out", tmp_path / "audited-by-two"))
    found, expected = (without_costs(tmp_path / run / "audit.json") for run in ("audited-by-two", "audited"))
    assert_close(found, expected)


RACE = {
    "preset": "race", "pool": 6, "batch": 6, "rungs": 2, "parameters": 700, "epochs_per_round": 0.3, "data_batch": 4,
    "eval_batch": 2, "bptt": 6, "contest_epochs": 0.3, "contest_seeds": 2, "rates": "0.01,0.02", "precision": "fp64",
}  # fmt: skip


@pytest.mark.parametrize("space", [{"nodes": "1-2"}, {"space": "gated", "blocks": "2-3", "known": False}])
def test_two_ranks_race_as_one_process(text, tmp_path, space):
    """Networks go on from where any rank left them; race, contest and the trained model are the same."""
    settings = {**RACE, **space}
    search(str(text), out=tmp_path / "one", **settings)
    given = dict(settings)
    known = ["--no-known"] if given.pop("known", None) is False else []
    output = succeeds(command(2, "wenet-search", text, *flags(given), *known, "--out", tmp_path / "two"))
    assert "ranks     2, which divide the networks of a rung: " in output and "contest   test" in output
    for name in ("best.json", "contest.json"):
        found, expected = (without_costs(tmp_path / ranks / name) for ranks in ("two", "one"))
        assert_close(without_times(found), without_times(expected), rel=1e-7)
    found, expected = (load_file(tmp_path / ranks / "winner.safetensors") for ranks in ("two", "one"))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    assert any(tensor.abs().sum() > 0 for tensor in expected.values())


def without_times(result):
    rows = result.get("contestants", [])
    return {**result, "contestants": [{k: v for k, v in row.items() if k != "microseconds"} for row in rows]}


def without_costs(path):
    values = json.loads(path.read_text())
    return {name: value for name, value in values.items() if "seconds" not in name and "memory" not in name}


def test_a_mistake_is_told_by_every_rank_and_nothing_waits(text, searched):
    job = command(2, "wenet-search", text, *flags(SEARCH), "--out", searched)
    output = job.communicate(timeout=250)[0]
    assert job.returncode != 0
    assert "wenet-search (rank 0): " in output and "holds a run already" in output
    assert "Traceback" not in output.split("wenet-search (rank")[0]


def test_parts_cover_everything_once():
    for total in range(1, 20):
        for count in range(1, total + 1):
            parts = [range(total)[Ranks(rank, count).own(total)] for rank in range(count)]
            assert [thing for part in parts for thing in part] == list(range(total))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
            assert min(map(len, parts)) >= 1


def test_rows_drawn_are_those_of_the_whole_batch():
    x = torch.randn(3, 5, 4)
    cell = DagRNN(4, 4, load_genotype("tanh0"), dropout_x=0.5, dropout_h=0.5, backend="reference")
    torch.manual_seed(1)
    whole, _ = cell(x)
    torch.manual_seed(1)
    draw_rows(cell, 5, slice(2, 4))
    part, _ = cell(x[:, 2:4])
    torch.testing.assert_close(part, whole[:, 2:4])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool": 9, "batch": 8, "keep": 2}, "a round of 3 networks cannot be divided over 4 ranks"),
        ({"device": "cuda:1"}, "names one GPU for all ranks"),
        ({"score": "held-out"}, "cannot be divided over ranks with --score held-out"),
        ({"cell_weights": "shared"}, "cannot be divided over ranks with --cell-weights shared"),
    ],
)
def test_what_ranks_cannot_do(settings, message):
    config = resolve_config("quick", {"device": "cpu", **settings})
    with pytest.raises(WenetError, match=message):
        SearchWork().check_ranks(config, Ranks(0, 4, 4))
    SearchWork().check_ranks(config, ALONE)


def test_more_ranks_than_rows():
    with pytest.raises(WenetError, match="--data-batch 2 cannot be divided over 3 ranks"):
        TrainWork().check_ranks(resolve_train_config("quick", {"data_batch": 2, "device": "cpu"}), Ranks(0, 3))


def test_fewest_networks_of_a_round():
    for pool, batch, seeds in [(9, 8, 2), (8, 8, 4), (16, 4, 2), (5, 2, 6), (3, 8, 2)]:
        config = resolve_config("quick", {"pool": pool, "batch": batch, "keep": seeds})
        sizes, kept = [], 0
        for first in range(0, pool, batch):
            sizes.append(len(range(first, min(pool, first + batch))) + kept)
            kept = min(seeds, sizes[-1])
        assert config.fewest_networks == min(sizes)
