"""A run killed or stopped at any moment goes on to the same end, to the last bit."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import fields

import pytest
import torch
from filelock import FileLock

from wenet import WenetError, resume_search, search
from wenet.cli.search import main as search_main
from wenet.data import KEPT
from wenet.run import RunFolder
from wenet.run.upgrade import upgraded
from wenet.searching.estimate import Estimate
from wenet.searching.settings import SearchConfig

from .helpers import TINY, fails, results, write_text

COMMAND = [sys.executable, "-c", "import sys; from wenet.cli.search import main; sys.exit(main())"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text"), lines=150)


def start(*arguments) -> subprocess.Popen:
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def first_or_next(run, text, *flags):
    """Start the run, or continue it where it has begun."""
    begun = (run / "config.json").exists()
    return start("--resume", run, *flags) if begun else start(text, *TINY, *SEARCH, "--out", run, *flags)


SEARCH = [
    *("--epochs-per-round", "3", "--mix-dropout", "0.2"),
    *("--score", "held-out"),
]


@pytest.mark.timeout(600)
def test_kill_at_ten_random_moments(text, tmp_path):
    undisturbed = start(text, *TINY, *SEARCH, "--out", tmp_path / "whole")
    assert undisturbed.wait() == 0, undisturbed.stdout.read()
    generator = random.Random(11)
    run, kills = tmp_path / "killed", 0
    while kills < 10:
        process = first_or_next(run, text, "--checkpoint-every", 0.0005)
        process.stdout.readline()  # the first line is out: from here on a run may be anywhere
        time.sleep(generator.uniform(0, 1.2))
        assert process.poll() is None, "the run ended before it was killed ten times; make it longer"
        process.kill()
        process.wait()
        kills += 1
    last = first_or_next(run, text)
    assert last.wait() == 0, last.stdout.read()
    assert results(run) == results(tmp_path / "whole")
    assert len(list((run / "checkpoint").iterdir())) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_on_request(text, tmp_path, number):
    run = tmp_path / "run"
    process = first_or_next(run, text)
    while not (run / "config.json").exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    time.sleep(0.7)
    os.kill(process.pid, number)
    output = process.communicate()[0]
    assert process.returncode == 128 + number
    assert f"stopped; continue with: wenet-search --resume {run}" in output
    assert "Traceback" not in output
    assert (run / "checkpoint" / "000001.safetensors").exists()
    assert search_main(["--resume", str(run)]) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_before_training_begins(text, tmp_path, monkeypatch, capsys, number):
    """A signal that comes once the folder is there, while the header still measures its estimates."""
    run, estimates = tmp_path / "run", []

    def measured(*_):
        if not estimates:
            assert (run / "config.json").exists()
            signal.raise_signal(number)
        estimates.append(Estimate(seconds=1.0, memory=1))
        return estimates[-1]

    monkeypatch.setattr("wenet.searching.work.estimate_search", measured)
    assert search_main([str(text), *TINY, "--out", str(run)]) == 128 + number
    assert f"stopped; continue with: wenet-search --resume {run}" in capsys.readouterr().err
    assert [path.name for path in (run / "checkpoint").iterdir()] == ["000001.safetensors"]
    resume_search(run)
    assert search_main([str(text), *TINY, "--out", str(tmp_path / "whole")]) == 0
    assert results(run) == results(tmp_path / "whole")


@pytest.fixture
def stopped(text, tmp_path, monkeypatch):
    """A run that was stopped within its second round."""
    from wenet.searching.mixture import Mixture

    real, steps = Mixture.step, []

    def step(self, *operands):
        steps.append(1)
        if len(steps) == 40:
            self.session.interrupt.requested = signal.SIGTERM
        return real(self, *operands)

    monkeypatch.setattr(Mixture, "step", step)
    run = tmp_path / "run"
    assert search_main([str(text), *TINY, "--out", str(run), "--checkpoint-every", "0"]) == 128 + signal.SIGTERM
    return run


def test_resume_equals_the_undisturbed_run(stopped, text, tmp_path):
    resume_search(stopped)
    assert search_main([str(text), *TINY, "--out", str(tmp_path / "whole")]) == 0
    assert results(stopped) == results(tmp_path / "whole")


def test_stop_within_validation(text, tmp_path, monkeypatch):
    from wenet.searching.mixture import Mixture

    real = Mixture.end_stage

    def end_stage(self):
        if self.progress.round == 1:
            self.session.interrupt.requested = signal.SIGTERM
        return real(self)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Mixture, "end_stage", end_stage)
        assert search_main([str(text), *TINY, "--out", str(run)]) == 128 + signal.SIGTERM
    resume_search(run)
    assert search_main([str(text), *TINY, "--out", str(tmp_path / "whole")]) == 0
    assert results(run) == results(tmp_path / "whole")


def test_resuming_a_finished_run_says_its_result_again(text, tmp_path, capsys):
    result = search(str(text), out=tmp_path / "run", pool=2, batch=2, hidden=4, epochs_per_round=0.01)
    before = results(tmp_path / "run")
    assert search_main(["--resume", str(tmp_path / "run")]) == 0
    assert str(result.genotype) in capsys.readouterr().out
    assert results(tmp_path / "run") == before


def test_truncated_checkpoint(stopped, capsys):
    newest = sorted((stopped / "checkpoint").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    message = fails(capsys, "--resume", stopped)
    assert f"{newest} is damaged" in message
    assert "delete it to continue from" in message
    newest.unlink()
    assert search_main(["--resume", str(stopped)]) == 0


def test_checkpoint_of_another_config(stopped, capsys):
    settings = json.loads((stopped / "config.json").read_text())
    settings["settings"]["lr"] = 0.5
    (stopped / "config.json").write_text(json.dumps(settings))
    assert "belongs to other settings" in fails(capsys, "--resume", stopped)


def test_two_processes_on_one_folder(stopped, capsys):
    with FileLock(stopped / ".lock"):
        assert "in use by another process" in fails(capsys, "--resume", stopped)


def test_flags_beside_resume(stopped, capsys):
    assert "leave out --lr" in fails(capsys, "--resume", stopped, "--lr", "0.1")


def test_changed_text(stopped, text, capsys):
    train = text / "train.txt"
    original = train.read_text()
    try:
        train.write_text(original + "w1 w2 w3\n")
        assert "has changed since" in fails(capsys, "--resume", stopped)
    finally:
        train.write_text(original)


def test_lost_records(stopped, capsys):
    (stopped / "search.jsonl").write_text("")
    assert "the checkpoint knows of 1" in fails(capsys, "--resume", stopped)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"kind": "search", "format": 1}',
        '{"kind": "search", "format": 1, "settings": "abc"}',
        "[" * 9999,
    ],
)
def test_unreadable_settings(stopped, capsys, content):
    (stopped / "config.json").write_text(content)
    assert "config.json" in fails(capsys, "--resume", stopped)


def test_a_run_of_another_kind(stopped, capsys):
    (stopped / "config.json").write_text('{"kind": "train"}')
    assert "holds a training, not a search; name another folder" in fails(capsys, "--resume", stopped)


def test_no_run_there(tmp_path, capsys):
    assert "no run folder" in fails(capsys, "--resume", tmp_path / "nothing")
    assert "no config.json" in fails(capsys, "--resume", tmp_path)


def test_existing_run_is_not_overwritten(stopped, text, capsys):
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    assert "holds a run already" in fails(capsys, text, *TINY, "--out", stopped)
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before


def test_a_disk_that_is_full(text, tmp_path):
    """A limit on the size of files stands in for it: the write fails, what was written before stays."""
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)); "
    run = tmp_path / "run"
    command = [COMMAND[0], "-c", limited + COMMAND[2], str(text), *TINY, "--out", str(run), "--checkpoint-every", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"wenet-search: cannot write {run / 'checkpoint'}")
    assert "Traceback" not in done.stderr
    assert all(path.suffix == ".safetensors" for path in (run / "checkpoint").iterdir())
    resume_search(run)


def test_checkpoint_is_all_that_is_read(stopped, monkeypatch):
    """Nothing is unpickled."""
    import pickle

    def refuse(*_):
        raise AssertionError("unpickled")

    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    resume_search(stopped)


@pytest.mark.parametrize("content", ["a = " + "9" * 5000, "a = " + "[" * 9999, "\xff"])
def test_settings_in_a_file_that_cannot_be_read(text, tmp_path, capsys, content):
    (tmp_path / "settings.toml").write_text(content, encoding="latin-1")
    assert "settings.toml is not valid TOML" in fails(capsys, text, "--config", tmp_path / "settings.toml")


def test_a_place_that_may_not_be_read_is_said_to_be_so(monkeypatch, capsys):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", "/elsewhere/cell.json")

    monkeypatch.setattr("wenet.cli.search.resume_search", refuse)
    assert "/elsewhere/cell.json: Permission denied" in fails(capsys, "--resume", "run")


def test_parts_go_on_in_another_session(tmp_path):
    """With other threads or a newer PyTorch; not with other settings."""
    settings = {"kind": "search", "settings": {"pool": 3, "audit": 0}, "threads": 2, "versions": {"torch": "1"}}
    RunFolder.open_or_create(tmp_path / "part", settings, is_part=True).close()
    later = {**settings, "threads": 1, "versions": {"torch": "2"}, "settings": {"pool": 3, "audit": 24}}
    RunFolder.open_or_create(tmp_path / "part", later, is_part=True).close()
    with pytest.raises(WenetError, match="was begun with other settings"):
        RunFolder.open_or_create(tmp_path / "part", {**settings, "settings": {"pool": 4}}, is_part=True)
    with pytest.raises(WenetError, match="was begun with other settings"):  # a ranking's epochs are such a setting
        RunFolder.open_or_create(tmp_path / "part", later)


def test_what_a_run_needs_is_there_before_its_settings(tmp_path):
    """After a kill between the two a new run may take the folder over."""

    def killed(path):
        (path / KEPT).write_text("arrays")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RunFolder.create(tmp_path / "run", {"kind": "search"}, killed)
    assert not (tmp_path / "run" / "config.json").exists()
    RunFolder.create(tmp_path / "run", {"kind": "search"}, lambda path: (path / KEPT).write_text("arrays")).close()
    assert (tmp_path / "run" / KEPT).exists()


def test_out_that_cannot_be_written(text, tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(WenetError, match=r"--out"):
            search(str(text), out=out, pool=2)


def test_what_a_killed_write_left_is_in_nobodys_way(stopped, text, tmp_path):
    """Neither of a run that had not yet begun, nor of one that goes on; a report that is being written stays."""
    unborn = tmp_path / "unborn"
    unborn.mkdir()
    (unborn / ".config.json.1.partial").write_text('{"half')
    assert search_main([str(text), *TINY, "--out", str(unborn)]) == 0
    for name in (".best.json.1.partial", ".search.jsonl.1.partial", ".report.html.1.partial"):
        (stopped / name).write_text("half")
    resume_search(stopped)
    assert [path.name for path in stopped.glob("*.partial")] == [".report.html.1.partial"]


# Settings of searches in the first version; what came later must say what it was before it came.
FIRST_SETTINGS = """
    dataset preset max_vocabulary backend device precision hidden form lr clip data_batch eval_batch bptt init_range
    weight_decay dropout_word dropout_embedding dropout_x dropout_h dropout_output activation_reg
    temporal_activation_reg seed pool batch keep epochs_per_round nodes runs audit activations initial_cells pool_seed
    norm mix_lr windows cell_weights score mix_dropout strategy audit_epochs standalone_lr
"""


def test_older_runs_have_every_setting():
    old = {"settings": dict.fromkeys(FIRST_SETTINGS.split())}
    assert set(upgraded(old)["settings"]) == {field.name for field in fields(SearchConfig)}
