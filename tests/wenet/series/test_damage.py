"""Files of a run folder that are cut short, or hold something else: a line that names the file and the mend."""

import errno
import shutil

import numpy as np
import pytest

import wenet
from wenet import WenetError
from wenet.cli.cell import main as cell_main
from wenet.cli.search import main as search_main
from wenet.report.run import read_run

from ..helpers import fails, results
from .test_searches import SHORT, sums

QUICK = {**SHORT, "contest_epochs": 2.0, "pool": 2, "batch": 2, "rungs": 1, "rates": "0.03"}
RESUMED, EXPORTED, SHOWN = (search_main, "--resume"), (cell_main, "export"), (cell_main, "show")
REPORTED = None  # as reports and `wenet.load` read a run
READERS = {
    "config.json": (RESUMED, REPORTED, EXPORTED),
    "best.json": (REPORTED, EXPORTED, SHOWN),
    "contest.json": (REPORTED,),
    "winner.safetensors": (EXPORTED,),
    "rungs/1-1-*/result.json": (RESUMED,),
    "rungs/1-1-*/config.json": (RESUMED,),
    "contest/trials-gru-*/result.json": (RESUMED,),
    "contest/training-gru-*/result.json": (RESUMED,),
    "contest/training-gru-*/config.json": (RESUMED,),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("damage") / "run"
    return wenet.search(sums(60), task="classify", out=out, **QUICK).folder


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other(path):
    path.write_bytes(b"\xff\xfe no such thing\n")


def a_list(path):
    path.write_text("[]\n")


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("spoil", [cut, other, a_list])
def test_a_damaged_file_is_named_with_its_mend(finished, tmp_path, capsys, name, spoil):
    run = shutil.copytree(finished, tmp_path / "run")
    path = min(run.glob(name))
    spoil(path)
    for reader in READERS[name]:
        if reader is REPORTED:
            with pytest.raises(WenetError) as refused:
                read_run(run)
            message = str(refused.value)
        else:
            message = fails(capsys, *reader[1:], run, main=reader[0])
        assert str(path) in message and ("delete " in message or "start a new run" in message)


@pytest.mark.parametrize("name", [name for name in READERS if name != "config.json"])
def test_the_mend_mends(finished, tmp_path, name):
    run = shutil.copytree(finished, tmp_path / "run")
    path = min(run.glob(name))
    if name == "winner.safetensors":
        shutil.rmtree(run / "contest")
    shutil.rmtree(path.parent) if path.name == "config.json" else path.unlink()
    assert search_main(["--resume", str(run)]) == 0
    assert results(run) == results(finished)
    assert (run / "winner.safetensors").read_bytes() == (finished / "winner.safetensors").read_bytes()


def test_a_part_without_settings(finished, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    [path] = run.glob("contest/training-gru-*/config.json")
    path.unlink()
    assert f"lost its config.json; delete {path.parent}, then" in fails(capsys, "--resume", run)


def test_records_that_are_no_text(finished, tmp_path):
    """A race writes its records anew from its trainings."""
    run = shutil.copytree(finished, tmp_path / "run")
    other(run / "search.jsonl")
    assert search_main(["--resume", str(run)]) == 0
    assert results(run) == results(finished)


def test_a_damaged_budget(tmp_path, capsys):
    settings = {name: value for name, value in QUICK.items() if "epochs" not in name}
    found = wenet.search(sums(60), task="classify", out=tmp_path / "run", minutes=0.2, **settings)
    cut(found.folder / "budget.json")
    assert "delete it, and --minutes counts from now on" in fails(capsys, "--resume", found.folder)


def test_a_folder_in_which_nothing_can_be_written(finished, tmp_path, monkeypatch, capsys):
    """As on a disk that is mounted to be read; permissions do not bind all users."""

    def refuse(self, *arguments, **settings):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    assert wenet.load(finished).predict(np.zeros((1, 8, 2))).shape == (1,)
    assert cell_main(["export", str(finished), "--out", str(tmp_path / "taken.py")]) == 0
    assert "cannot write in" in fails(capsys, "--resume", finished)


def test_results_in_python(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    cut(run / "winner.safetensors")
    found = wenet.load(run)
    with pytest.raises(WenetError, match="winner.safetensors is damaged"):
        found.predict(np.zeros((1, 8, 2)))
    cut(run / "best.json")
    with pytest.raises(WenetError, match="best.json is damaged"):
        wenet.load(run)
