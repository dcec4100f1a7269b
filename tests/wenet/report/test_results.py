"""Results for programs and notebooks: summary, table, figures, layer and model, of a run just made or opened later."""

import json
import os
import re

import pytest
import torch
from matplotlib.figure import Figure

import wenet
from wenet import Genotype, WenetError
from wenet.cli.search import main as search_main
from wenet.cli.train import main as train_main
from wenet.report import words
from wenet.results import Table

from .runs import (
    add_audit,
    copy_run,
    edit_json,
    edit_settings,
    make_baseline,
    make_several,
    read_records,
    write_records,
)


def contents(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def said_at_the_end(capsys, main, folder):
    """What a command prints below the last empty line before its summary."""
    capsys.readouterr()
    assert main(["--resume", str(folder)]) == 0
    return capsys.readouterr().out.split("\n\n", 1)[1]


@pytest.mark.parametrize(("kind", "main"), [("searched", search_main), ("trained", train_main)])
def test_a_result_prints_what_the_command_prints(kind, main, request, tmp_path, capsys):
    run = copy_run(request.getfixturevalue(kind), tmp_path / "run")
    before = contents(run)
    result = wenet.load(run)
    assert result.finished and str(result) and repr(result).count("\n") == 0
    assert contents(run) == before
    said = re.sub("   # about .*", "", said_at_the_end(capsys, main, run))  # the command estimates its next steps
    assert said.strip() == str(result).strip()


def test_search_and_load_give_the_same(text, tmp_path):
    settings = {"pool": 4, "batch": 2, "keep": 1, "hidden": 8, "nodes": 3, "data_batch": 4, "eval_batch": 2, "bptt": 6}
    found = wenet.search(str(text), preset="quick", backend="reference", out=tmp_path / "run", **settings)
    loaded = wenet.load(tmp_path / "run")
    assert type(found) is type(loaded) is wenet.SearchResult
    assert str(found) == str(loaded) and found.table == loaded.table and found.best == loaded.best
    assert isinstance(wenet.resume_search(tmp_path / "run"), wenet.SearchResult)


def test_the_table_of_a_search_ranks_every_cell(searched, tmp_path):
    run = copy_run(searched, tmp_path / "run")
    found = wenet.load(run)
    rows = found.table
    assert len(rows) == 7 and [row["rank"] for row in rows] == list(range(1, 8))
    assert rows[0]["cell"] == str(found.genotype)
    scores = [row["weight in equal shares"] for row in rows]
    assert scores == sorted(scores, reverse=True) and scores[0] > scores[-1]
    assert sum(row["kept"] for row in rows) == 2 and "standalone perplexity" not in rows[0]
    add_audit(run)
    audited = [row["standalone perplexity"] for row in wenet.load(run).table]
    audited = [value for value in audited if value is not None]
    assert audited and set(audited) <= {200.0 + 5 * place for place in range(5)}


def test_the_table_of_several_runs_has_their_winners(searched, tmp_path):
    run = copy_run(searched, tmp_path / "run")
    make_several(run, searched)
    assert [row["run"] for row in wenet.load(run).table] == [2, 1]


def test_the_table_of_a_training_has_its_epochs(trained):
    result = wenet.load(trained)
    assert [row["epoch"] for row in result.table] == [1, 2, 3]
    assert result.valid == min(row["valid_perplexity"] for row in result.table)


def test_a_table_shows_itself():
    table = Table({"rank": rank, "cell": "<tanh0>", "value": None if rank == 2 else rank / 3} for rank in range(1, 13))
    lines = repr(table).splitlines()
    assert lines[0].split() == ["rank", "cell", "value"] and lines[1].split() == ["1", "<tanh0>", "0.3333"]
    assert len(lines) == 12 and lines[-1] == "... 2 more"
    assert table._repr_html_().count("<tr>") == 11 and "<td>&lt;tanh0&gt;</td>" in table._repr_html_()


def test_figures_are_those_of_the_report(searched, trained, tmp_path):
    run = copy_run(searched, tmp_path / "run")
    add_audit(run)
    found = wenet.load(run)
    for plot in (found.plot_weights, found.plot_trajectories, found.plot_learning, found.plot_audit, found.plot_cell):
        assert isinstance(plot(), Figure)
        assert plot()._repr_png_().startswith(b"\x89PNG")
    assert found.plot_weights().axes[0].get_xlabel() == "network, by rank"
    assert wenet.load(trained).plot_learning().axes[0].get_xlabel() == "epoch"
    with pytest.raises(WenetError, match="no figure 'rungs'; it has cell, weights, trajectories, learning, audit"):
        found.plot_rungs()
    make_baseline(run)
    assert isinstance(wenet.load(run).plot_rungs(), Figure)


def test_a_layer_of_the_winner(searched, trained):
    found, result = wenet.load(searched), wenet.load(trained)
    layer = found.layer(5, 6, bidirectional=True)
    assert layer.genotype == found.genotype and layer.form == "highway"
    output, _ = layer(torch.randn(3, 2, 5))
    assert output.shape == (3, 2, 12) and output.count_nonzero() > 0
    assert str(result.layer(5, 6, form="plain").genotype) == "tanh0 relu1"


def test_the_trained_model(trained, tmp_path):
    result = wenet.load(copy_run(trained, tmp_path / "run"))
    model = result.model
    assert not model.training and next(model.parameters()).device.type in ("cpu", "cuda")
    tokens = torch.arange(12).view(6, 2).to(next(model.parameters()).device)
    scores, _ = model(tokens)
    assert scores.shape == (6, 2, len(model.decoder_bias))
    assert wenet.evaluate(result.folder)["test"]["perplexity"] == pytest.approx(result.test)
    saved = torch.cat([p.flatten() for p in model.parameters()])
    assert torch.equal(saved, torch.cat([p.flatten() for p in result.model.parameters()]))


def test_an_lstm_has_no_cell(trained, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    edit_json(run / "config.json", genotype=None, settings={**config["settings"], "cell": "lstm"})
    with pytest.raises(WenetError, match="trained an lstm, which has no cell; use torch.nn.LSTM"):
        wenet.load(run).layer(5, 6)
    assert "lstm" in wenet.load(run)._repr_html_()


def test_results_show_themselves_in_a_notebook(searched, trained):
    for result in (wenet.load(searched), wenet.load(trained)):
        page = result._repr_html_()
        assert "(finished)" in page and page.count("<table>") == 1 and 'src="data:image/svg+xml;base64,' in page
        assert len(re.findall(r"<div>", page)) == len(re.findall(r"</div>", page))
    assert str(wenet.load(searched).genotype) in wenet.load(searched)._repr_html_()
    cell = Genotype.from_text("tanh0 relu1 relu1 mean 2")._repr_html_()
    assert cell.startswith("<pre>0 init (x, h)") and "├─ 2 relu" in cell and "tanh0 relu1 relu1 mean 2" in cell


def test_an_unfinished_run_says_how_far_it_is(searched, trained, tmp_path):
    run, training = copy_run(searched, tmp_path / "search"), copy_run(trained, tmp_path / "train")
    for part, settings in (("audit", {"audit": 5, "contest": True}), ("contest", {"audit": 0, "contest": True})):
        edit_settings(run, **settings)
        found = wenet.load(run)
        assert not found.finished and str(found).startswith(f"not finished: the {part} has not ended")
        assert f"(not finished: the {part} has not ended)" in found._repr_html_()
        assert f"The {part} has not ended." in words.caveats(found.run)
    edit_settings(run, contest=False)
    write_records(run, read_records(run)[:1])
    edit_json(run / "best.json", rounds=1)
    found = wenet.load(run)
    assert not found.finished and str(found).startswith("not finished: 1 of 3 rounds done")
    assert "not finished" in found._repr_html_()
    edit_json(training / "best.json", test_perplexity=None)
    result = wenet.load(training)
    assert not result.finished and result.test is None and "test not yet measured" in str(result)
    assert len(result.table) == 3 and result.plot_learning()
    (run / "best.json").unlink()
    (run / "search.jsonl").unlink()
    with pytest.raises(WenetError, match="has no result yet: not finished: 0 of 3 rounds done"):
        wenet.load(run)
    with pytest.raises(WenetError, match="no run folder"):
        wenet.load(tmp_path / "nothing")


def test_a_run_that_cannot_be_written_is_loaded(searched, tmp_path):
    run = copy_run(searched, tmp_path / "run")
    for folder, _, files in os.walk(run):
        for name in files:
            os.chmod(os.path.join(folder, name), 0o444)
    before = contents(run)
    found = wenet.load(run)
    assert found.table and found._repr_html_() and found.plot_weights()
    assert contents(run) == before
