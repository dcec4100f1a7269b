"""Public functions and classes have an example in their docstring, and every example gives what it says."""

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import wenet
import wenet_kernels
from wenet.genotypes import load_genotype

from .wenet.helpers import write_text

ROOT = Path(__file__).parent.parent
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("wenet", "wenet_kernels", "bench")
    for path in sorted((ROOT / package).rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]
PUBLIC = [
    *(getattr(wenet, name) for name in wenet.__all__ if inspect.isfunction(getattr(wenet, name))),
    *(wenet.Genotype, wenet.SearchResult, wenet.TrainResult, load_genotype, wenet.programs.load_program),
    *(wenet.nn.DagRNN, wenet.nn.WeightedDagRNN, wenet.nn.CellRNN, wenet.nn.LanguageModel),
    *(wenet_kernels.dag_rnn, wenet_kernels.CellBatch, wenet_kernels.backends),
    *(wenet_kernels.cell_rnn, wenet_kernels.Program, wenet_kernels.ProgramBatch),
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """What the examples find in their folder: a text, a search and a training."""
    folder = tmp_path_factory.mktemp("examples")
    text = write_text(folder / "my-text")
    small = {"preset": "quick", "hidden": 6, "data_batch": 4, "eval_batch": 4, "bptt": 8}
    wenet.search(str(text), **small, pool=4, batch=2, keep=1, epochs_per_round=0.1, out=folder / "runs" / "found")
    wenet.train(str(text), **small, cell="tanh0 relu1", epochs=1, test_batch=4, out=folder / "runs" / "trained")
    return folder


@pytest.mark.parametrize("module", MODULES)
def test_examples_give_what_they_say(module, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.setattr("wenet.report.write.write_report", lambda folder: None)  # takes longer than the examples
    known = dict(wenet_kernels.activations.REGISTERED)
    try:
        found = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    finally:
        wenet_kernels.activations.REGISTERED.clear()
        wenet_kernels.activations.REGISTERED.update(known)
    assert found.attempted
    assert not found.failed


@pytest.mark.parametrize("public", PUBLIC, ids=lambda public: public.__name__)
def test_there_is_an_example(public):
    assert ">>>" in (public.__doc__ or "")
    assert public.__module__ in MODULES
