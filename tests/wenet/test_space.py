"""The search space as data: activations by flag and by function, and known cells to start from."""

import json
from dataclasses import replace

import pytest
import torch

from wenet import (
    Genotype,
    WenetError,
    evaluate,
    export,
    random_genotypes,
    register_activation,
    resume_search,
    search,
    train,
)
from wenet.cells import random_mixed_genotypes
from wenet.cells.published import load_genotypes
from wenet.cli.cell import main as cell_main
from wenet.cli.search import main as search_main
from wenet.run.console import Console
from wenet.run.interrupt import Stopped
from wenet.searching.mixture import Mixture
from wenet.searching.settings import resolve_config
from wenet.searching.space import draw_pool, identity
from wenet_kernels.activations import REGISTERED

from .helpers import REGULARISED, TINY, results, without
from .test_resume import fails

SMALL = {
    "preset": "quick", "pool": 4, "batch": 2, "keep": 2, "hidden": 6, "nodes": 2, "data_batch": 4, "eval_batch": 2,
    "bptt": 6, "epochs_per_round": 0.3, **REGULARISED,
}  # fmt: skip


@pytest.fixture
def sine(monkeypatch):
    """A registered activation, and a way to have it no more."""
    register_activation("sine", torch.sin, torch.cos)
    yield lambda: REGISTERED.pop("sine")
    REGISTERED.clear()


def networks(run):
    """The cells of every round."""
    lines = (run / "search.jsonl").read_text().splitlines()
    return [{network["genotype"] for network in json.loads(line)["networks"]} for line in lines]


def test_a_registered_activation_is_for_dag_cells(text, tmp_path, sine, capsys):
    with pytest.raises(WenetError, match="lack sine, registered in Python; say --space dag"):
        search(str(text), level="words", preset="words", activations="sine,relu", out=tmp_path / "run")
    search(str(text), **SMALL, activations="sine,relu", console=Console(), out=tmp_path / "run")
    said = capsys.readouterr().out
    assert "quick     4 networks" in said and "words     " not in said  # which cannot run with it


def test_random_cells_of_some_activations(capsys):
    cells = random_genotypes(24, 2, 1, ("relu", "tanh"))
    assert {name for cell in cells[:8] for name in cell.activations} == {"relu", "tanh"}
    assert len(set(cells)) == 8  # all there are, three times over
    assert random_genotypes(5, 3, 1) == random_genotypes(5, 3, 1, ("tanh", "relu", "sigmoid", "identity"))
    assert cell_main(["random", "--count", "3", "--nodes", "4", "--activations", "relu"]) == 0
    assert set(capsys.readouterr().out.split()) <= {f"relu{ancestor}" for ancestor in range(4)}


def test_a_search_draws_from_the_activations_named(text, tmp_path):
    run = tmp_path / "run"
    assert search_main([str(text), *TINY, "--activations", "relu,identity", "--out", str(run)]) == 0
    names = {name for cells in networks(run) for cell in cells for name in Genotype.from_text(cell).activations}
    assert names == {"relu", "identity"}
    assert json.loads((run / "config.json").read_text())["settings"]["activations"] == "relu,identity"


@pytest.mark.parametrize("nodes", ["2", "1-3"])
def test_the_cells_of_a_pool_are_different(nodes):
    """Not only in how nodes are numbered: `tanh0 relu0` is `relu0 tanh0`. A larger pool goes on from a smaller."""
    config = resolve_config("race", {"nodes": nodes, "activations": "tanh,relu", "pool": 7, "batch": 7})
    pool = draw_pool(config)
    drawn = random_mixed_genotypes(60, config.node_counts, config.seed, ["tanh", "relu"])
    assert len({identity(cell) for cell in pool}) == 7 <= len({identity(cell) for cell in drawn}) < len(set(drawn))
    places = [drawn.index(cell) for cell in pool]
    assert places == sorted(places) and draw_pool(replace(config, pool=5, batch=5)) == pool[:5]
    assert all(identity(cell) in map(identity, pool) for cell in drawn[: places[-1]])


def test_a_pool_is_no_larger_than_the_space(text, tmp_path, capsys):
    settings = {"nodes": "2", "activations": "tanh,relu", "pool": 7, "batch": 7}  # chains of 2, or 2 side by side
    assert len(draw_pool(resolve_config("race", settings))) == 7
    message = fails(capsys, text, *without(TINY, "--nodes", "--pool"), "--nodes", "1", "--pool", "5", "--out", tmp_path)
    assert "--pool must be at most 4, not 5: there are no more different cells of 1 node" in message
    both = resolve_config("race", {"space": "both", "nodes": "1", "pool": 20, "batch": 10})
    assert len({identity(cell) for cell in draw_pool(both)}) == 20


def test_initial_cells_compete_in_the_first_round(text, tmp_path):
    file = tmp_path / "cells.json"
    file.write_text('["tanh0 relu1 relu1", {"recurrent": [["relu", 0], ["relu", 1], ["relu", 2]]}]')
    run = tmp_path / "run"
    assert search_main([str(text), *TINY, "--initial-cells", str(file), "--out", str(run)]) == 0
    known, rounds = {"tanh0 relu1 relu1", "relu0 relu1 relu2"}, networks(run)
    assert known <= rounds[0]
    assert len(rounds[0]) == 5  # three new ones and these
    without = tmp_path / "without"
    assert search_main([str(text), *TINY, "--out", str(without)]) == 0
    assert rounds[0] - known == networks(without)[0]


@pytest.mark.parametrize("after", [1, 8])
def test_a_search_from_known_cells_goes_on_without_their_file(text, tmp_path, monkeypatch, after):
    """To the same result, whether it stopped in its first round or later."""
    file = tmp_path / "cells.txt"
    file.write_text("tanh0 relu1\n\nrelu0 relu1\n")
    settings = {**SMALL, "initial_cells": str(file), "activations": "sigmoid,relu", "backend": "reference"}
    search(str(text), out=tmp_path / "whole", **settings)
    calls, real = [], Mixture.step

    def step(self, tokens, targets):
        calls.append(1)
        if len(calls) == after:
            self.session.interrupt.requested = 15
        return real(self, tokens, targets)

    with monkeypatch.context() as patch:
        patch.setattr(Mixture, "step", step)
        with pytest.raises(Stopped):
            search(str(text), out=tmp_path / "run", **settings)
    file.unlink()
    resume_search(tmp_path / "run")
    assert results(tmp_path / "run") == results(tmp_path / "whole")


def test_files_of_cells(tmp_path):
    cells = random_genotypes(2, 3, 1)
    file = tmp_path / "cells"
    for content in (
        "\n".join(map(str, cells)),
        "\n".join(cell.to_json() for cell in cells) + "\n",
        json.dumps([cell.to_dict() for cell in cells]),
        json.dumps(list(map(str, cells))),
        f"{cells[0]}\n{cells[1].to_json()}\n",
    ):
        file.write_text(content)
        assert load_genotypes(str(file)) == cells
    assert load_genotypes("; ".join(map(str, cells))) == cells
    file.write_text("darts-v2\nrandom:3\n")
    assert [cell.nodes for cell in load_genotypes(str(file))] == [8, 8]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no cells"),
        ("[]", "holds no cells"),
        ("[3]", "cell 1: a cell in JSON looks like"),
        ('["tanh0 relu1 relu1", "tanh0 relu1 cube1"]', "cell 2: node 3: unknown activation 'cube'"),
        ("tanh0 relu1 relu5\n", "cell 1: node 3: ancestor 5 is out of range"),
        ("tanh0 relu1\n", "cell 1: 2 nodes, but --nodes is 3"),
        ("tanh0 relu1 relu1\ntanh0 relu1 relu1\n", "cell 2: tanh0 relu1 relu1 comes twice"),
        ("tanh0 relu1 relu1\ntanh0 relu1 relu2\ntanh0 relu1 relu0\n", "3 cells, more than the 2 that --keep allows"),
        ("darts-v9\n", "cell 1: no cell 'darts-v9'"),
        ('[{"recurrent"', "holds no cells"),
        ("\xff", "cell 1"),
    ],
)
def test_bad_files_of_cells(text, tmp_path, capsys, content, message):
    (tmp_path / "cells").write_text(content)
    assert message in fails(capsys, text, *TINY, "--initial-cells", tmp_path / "cells", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--initial-cells", "no-such-file.json"], "no file of cells 'no-such-file.json'"),
        (["--activations", "tanh,cube"], "unknown activation 'cube'; choose from tanh, relu, sigmoid, identity"),
        (["--activations", "tanh,tanh"], "each named once"),
        (["--activations", ""], "unknown activation ''"),
    ],
)
def test_bad_flags(text, tmp_path, capsys, flags, message):
    assert message in fails(capsys, text, *TINY, *flags, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_preset_that_the_cells_do_not_fit_is_not_offered(text, tmp_path, capsys):
    """More known cells than `quick` keeps, in a search that keeps them."""
    file = tmp_path / "cells"
    file.write_text("\n".join(map(str, random_genotypes(5, 8, 1))))
    settings = {**SMALL, "preset": "paper", "nodes": 8, "initial_cells": str(file)}
    del settings["keep"]  # 20 in this preset, 4 in the other
    search(str(text), out=tmp_path / "run", console=Console(), **settings)
    output = capsys.readouterr().out
    assert "paper     4 networks" in output
    assert "quick " not in output


def test_a_registered_activation_from_search_to_training(text, tmp_path, sine, capsys):
    found = search(str(text), out=tmp_path / "run", console=Console(), activations="sine,relu", **SMALL)
    output = capsys.readouterr().out
    assert "backend reference" in output
    assert "cpu: it lacks sine, registered in Python, which only reference has" in output
    assert "sine" in {name for cells in networks(tmp_path / "run") for cell in cells for name in cell_names(cell)}
    trained = train(
        str(text), cell="sine0 relu1", preset="quick", hidden=6, epochs=1, data_batch=4, eval_batch=2, bptt=6,
        out=tmp_path / "trained", console=Console(),
    )  # fmt: skip
    assert "cpu: it lacks sine" in capsys.readouterr().out
    assert evaluate(tmp_path / "trained")["test"]["perplexity"] == trained.test
    with pytest.raises(WenetError, match="'sine' is a registered function, which has no source"):
        export(tmp_path / "trained", out=tmp_path / "model.py")
    with pytest.raises(WenetError, match="backend 'cpu' cannot run: it lacks sine"):
        search(str(text), out=tmp_path / "other", activations="sine", backend="cpu", **SMALL)
    assert not (tmp_path / "other").exists()
    resume_search(found.folder)
    sine()
    with pytest.raises(WenetError, match="unknown activation 'sine'"):
        resume_search(found.folder)


def cell_names(cell):
    return Genotype.from_text(cell).activations


def test_a_known_cell_with_a_registered_activation_decides_the_backend(text, tmp_path, sine):
    run = search(str(text), out=tmp_path / "run", initial_cells="sine0 relu1", **SMALL).folder
    assert json.loads((run / "config.json").read_text())["settings"]["backend"] == "reference"
