"""The report of every kind of run as a file: complete, true to the records, and asking nothing of the network."""

import base64
import csv
import html
import json
import re
import shlex
import threading
import time
import xml.etree.ElementTree as ET

import pytest

from wenet import random_genotypes
from wenet.cli.report import main as report_main
from wenet.cli.search import main as search_main
from wenet.cli.train import main as train_main
from wenet.report.figures import PALETTE
from wenet.report.page import report_page
from wenet.report.run import read_run
from wenet.report.words import caveats, command, summary, title
from wenet.report.write import follow_report, pictures_of, write_report
from wenet.tasks import LanguageModelling

from ..helpers import TINY, results
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

SEARCH_FIGURES = ["cell", "weights", "trajectories", "learning"]


# By a mixture of DAG cells without audit and contest.
UNREAD = (
    *("blocks", "states", "known", "rungs", "falling_rates", "networks_per_cell", "mutate", "rates"),
    *(
        "audit_epochs",
        "standalone_lr",
        "sampled_words",
        "finalists",
        "contest_epochs",
        "contest_seeds",
        "weight_decays",
    ),
)


def page_of(run) -> str:
    write_report(run)
    return (run / "report.html").read_text(encoding="utf-8")


def figures_in(page: str) -> list[str]:
    return re.findall(r'<svg [^>]*aria-labelledby="(\w+)-title', page)


def read_csv(path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_search_leaves_its_report(searched):
    page = (searched / "report.html").read_text(encoding="utf-8")
    best = json.loads((searched / "best.json").read_text())
    assert figures_in(page) == SEARCH_FIGURES
    assert f"{best['weight']:.4f}" in page and best["text"] in page
    for name in SEARCH_FIGURES:
        ET.parse(searched / "figures" / f"{name}.svg")
        assert (searched / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert len(read_csv(searched / "figures" / f"{name}.csv")) > 1
    assert not list(searched.rglob("*.partial"))
    for name in json.loads((searched / "config.json").read_text())["settings"]:
        shown = f"--{name.replace('_', '-')}<" in page
        assert shown == (name not in ("dataset", *LanguageModelling.unread, *UNREAD)), name


def test_training_leaves_its_report(trained):
    page = (trained / "report.html").read_text(encoding="utf-8")
    best = json.loads((trained / "best.json").read_text())
    assert figures_in(page) == ["cell", "learning"]
    assert f"{best['test_perplexity']:.2f} on the test text" in page
    rows = read_csv(trained / "figures" / "learning.csv")
    found = [record["valid_perplexity"] for record in read_records(trained, "train.jsonl")]
    assert [float(row["valid_perplexity"]) for row in rows] == found


def test_a_page_asks_nothing_of_the_network(searched, trained):
    for run in (searched, trained):
        page = (run / "report.html").read_text(encoding="utf-8")
        assert set(re.findall(r"https?://[^\"' )]*", page)) <= {
            "http://www.w3.org/2000/svg",
            "http://www.w3.org/1999/xlink",
        }
        assert "default-src 'none'" in page
        assert not re.search(r"<(link|script|img)[^>]+(src|href)=\"(?!data:)", page)
        ids = re.findall(r'\bid="([^"]*)"', page)
        assert len(ids) == len(set(ids))
        assert {link.removeprefix("#") for link in re.findall(r'href="(#[^"]+)"', page)} <= set(ids)


def test_a_page_holds_its_downloads(searched, tmp_path):
    """Mailed by itself it must still have all that it links to."""
    page = (searched / "report.html").read_text(encoding="utf-8")
    links = re.findall(r'<a download="([^"]+)" href="data:[\w/+]+;base64,([^"]+)"', page)
    assert {name for name, _ in links} == {path.name for path in (searched / "figures").iterdir()}
    for name, content in links:
        assert base64.b64decode(content) == (searched / "figures" / name).read_bytes()
    several = copy_run(searched, tmp_path / "several")
    make_several(several, searched)
    for text in (page, page_of(several)):
        assert all(link.startswith(("#", "data:")) for link in re.findall(r'href="([^"]*)"', text))


def test_a_file_too_large_for_the_page_is_named(searched, monkeypatch):
    run = read_run(searched)
    monkeypatch.setattr("wenet.report.page.MOST_EMBEDDED", 1_000)
    page = report_page(run, pictures_of(run))
    assert 'download="cell.csv"' in page and 'download="weights.png"' not in page
    assert re.search(r"In the run's folder figures: [^<]*weights\.png", page)


def test_word_frequencies_are_on_the_plot(searched, trained, tmp_path):
    for run in (searched, trained):
        baseline = json.loads((run / "config.json").read_text())["baseline"]
        assert baseline["name"] == "word frequencies"
        learning = next(picture for picture in pictures_of(read_run(run)) if picture.name == "learning")
        lines = [line.get_ydata() for axes in learning.drawing.axes for line in axes.lines]
        assert [baseline["value"]] * 2 in [list(line) for line in lines]
        assert f"Word frequencies alone give {baseline['value']:.1f}." in learning.description
        assert "word frequencies" in learning.svg
        old = copy_run(run, tmp_path / run.name)  # of a version that did not record it
        config = json.loads((old / "config.json").read_text())
        del config["baseline"]
        (old / "config.json").write_text(json.dumps(config))
        assert "word frequencies" not in page_of(old).lower()


def test_a_mixture_that_has_not_learned_is_told(searched, tmp_path):
    run = copy_run(searched, tmp_path / "run")
    for mixture, told in ((5.0, False), (4148.0, True), (None, True)):
        edit_json(run / "best.json", mixture_valid_perplexity=mixture)
        assert any("has not learned" in text for text in caveats(read_run(run))) is told
    assert "its validation perplexity is not finite, where word frequencies alone would give" in page_of(run)


def test_a_title_has_no_path(trained, tmp_path):
    run = copy_run(trained, tmp_path / "run")
    for cell, shown in (("/home/someone/runs/found", "found"), ("tanh0 relu1", "tanh0 relu1"), ("lstm", "lstm")):
        edit_settings(run, cell=cell, dataset="/home/someone/poems")
        assert title(read_run(run)) == f"Training of {shown} on poems"


def test_commands_are_marked_for_copying(searched):
    page = (searched / "report.html").read_text(encoding="utf-8")
    commands = [html.unescape(text) for text in re.findall(r'<code class="command">([^<]*)</code>', page)]
    first_words = [shlex.split(text)[0] for text in commands]
    assert first_words == ["wenet-search", "wenet-search", "wenet-report"]
    assert shlex.split(commands[0])[1:] == ["--resume", str(searched), "--audit", "24"]
    assert "`" not in page.split("<main>")[1].split("<script>")[0]


def test_weights_of_every_round_are_in_the_file(searched):
    rows = read_csv(searched / "figures" / "weights.csv")
    records = read_records(searched)
    assert [float(row["weight"]) for row in rows] == [n["weight"] for r in records for n in r["networks"]]
    svg = (searched / "report.html").read_text()
    for record in records:
        assert f'id="weights-round-{record["round"]}-kept"' in svg


def test_the_report_is_the_same_when_written_again(searched, capsys):
    before = {path: path.read_bytes() for path in searched.rglob("*") if path.is_file()}
    assert report_main([str(searched)]) == 0
    assert capsys.readouterr().out == f"{searched / 'report.html'}\n"
    assert {path: path.read_bytes() for path in searched.rglob("*") if path.is_file()} == before


def test_the_command_gives_the_run_again(searched, trained, tmp_path):
    for run, main, records in ((searched, search_main, "search.jsonl"), (trained, train_main, "train.jsonl")):
        words = shlex.split(" ".join(command(read_run(run))))
        assert words[0] == f"wenet-{read_run(run).kind}"
        again = tmp_path / words[0]
        assert main([*words[1:], "--out", str(again)]) == 0
        first, second = results(run, records), results(again, records)
        assert first == second
        assert json.loads((run / "config.json").read_text()) == json.loads((again / "config.json").read_text())


def test_an_audit_is_shown(searched, tmp_path):
    run = copy_run(searched, tmp_path / "run")
    assert any("was not measured" in text for text in caveats(read_run(run)))
    add_audit(run)
    page = page_of(run)
    assert figures_in(page) == [*SEARCH_FIGURES, "audit"]
    assert "0.40 (95% interval -0.20 to 0.80, p = 0.100)" in page
    assert "was not shown: the interval holds 0" in page
    assert not any("was not measured" in text for text in caveats(read_run(run)))
    add_audit(run, low=0.1)
    assert any("better than chance." in text for text in summary(read_run(run)))
    rows = read_csv(run / "figures" / "audit.csv")
    assert [row["perplexity"] for row in rows] == ["200.0", "205.0", "210.0", "215.0", ""]


def test_the_baseline_has_rungs_instead_of_weights(searched, tmp_path):
    run = copy_run(searched, tmp_path / "run")
    make_baseline(run)
    page = page_of(run)
    assert figures_in(page) == ["cell", "rungs"]
    assert "successive halving" in page


def test_several_runs_have_a_report_each_and_one_together(searched, tmp_path):
    run = copy_run(searched, tmp_path / "run")
    make_several(run, searched)
    page = page_of(run)
    assert figures_in(page) == ["cell"]
    assert "searched in 2 runs" in page and "run-1/report.html" in page
    assert figures_in((run / "run-2" / "report.html").read_text()) == SEARCH_FIGURES


def test_a_run_that_goes_on(searched, trained, tmp_path):
    run = copy_run(searched, tmp_path / "search")
    records = read_records(run)
    write_records(run, records[:1])
    (run / "best.json").unlink()
    assert "not finished: 1 of 3 rounds done" in page_of(run)
    (run / "search.jsonl").unlink()
    assert "There is no result yet: 0 of 3 rounds done." in page_of(run)
    edit_settings(run, strategy="random")
    assert "There is no result yet: 0 of 3 rungs done." in page_of(run)
    run = copy_run(trained, tmp_path / "train")
    edit_json(run / "best.json", test_perplexity=None)
    assert "So far the perplexity is" in page_of(run)


def test_follow_ends_with_the_run(searched, tmp_path):
    run = copy_run(searched, tmp_path / "run")
    whole = (run / "best.json").read_text()
    edit_json(run / "best.json", rounds=1)
    following = threading.Thread(target=follow_report, args=(run, Silent()))
    following.start()
    wait_for(lambda: 'id="reload"' in (run / "report.html").read_text())
    (run / "best.json").write_text(whole)
    following.join(timeout=60)
    assert not following.is_alive()
    assert 'id="reload"' not in (run / "report.html").read_text()


def test_a_damaged_record_is_named(searched, tmp_path):
    run = copy_run(searched, tmp_path / "run")
    lines = (run / "search.jsonl").read_text().splitlines(keepends=True)
    (run / "search.jsonl").write_text(lines[0] + lines[1][:100])
    assert "Line 2 of search.jsonl is damaged" in page_of(run)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "config.json").unlink(), "has no config.json"),
        (lambda run: (run / "config.json").write_text("{}"), "not of a search or a training"),
        (lambda run: (run / "best.json").write_text("{"), "is damaged"),
        (lambda run: (run / "report.html").mkdir(), "cannot write"),
    ],
)
def test_what_cannot_be_reported(searched, tmp_path, capsys, spoil, message):
    run = copy_run(searched, tmp_path / "run")
    spoil(run)
    assert report_main([str(run)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_run_ends_well_without_its_report(text, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    assert search_main([str(text), *TINY, "--pool", "2", "--out", str(tmp_path / "run")]) == 0
    assert "no report: cannot write" in capsys.readouterr().out


def test_text_of_the_user_stays_text(searched, tmp_path):
    run = copy_run(searched, tmp_path / "run")
    settings = json.loads((run / "config.json").read_text())["settings"]
    edit_json(run / "config.json", settings={**settings, "dataset": "/x/<script>alert(1)</script>"})
    assert "<script>alert" not in page_of(run)


def test_every_colour_of_a_figure_has_one_for_the_dark(searched):
    light = {colours[0] for colours in PALETTE.values()}
    for picture in pictures_of(read_run(searched)):
        assert set(re.findall(r"#[0-9a-f]{6}\b", picture.svg)) <= light


def test_a_search_as_long_as_the_papers_is_a_page_of_some_megabytes(searched, tmp_path):
    run = copy_run(searched, tmp_path / "run")
    last, cells = read_records(run)[-1], [str(cell) for cell in random_genotypes(10_000, 8, seed=1)]
    rounds, kept = [], []
    for number in range(100):
        candidates = kept + cells[100 * number : 100 * number + 100]
        networks = [
            {"genotype": cell, "weight": 0.02 - 1e-4 * i, "rounds_kept": 0} for i, cell in enumerate(candidates)
        ]
        rounds.append({**last, "round": number + 1, "uniform_weight": 0.01, "networks": networks})
        kept = candidates[10:30]
    write_records(run, rounds)
    run_read = read_run(run)
    page = report_page(run_read, pictures_of(run_read))
    assert len(page) < 3e6
    assert page.count("&quot;round&quot;") == 100


class Silent:
    def say(self, text: str) -> None: ...


def wait_for(condition) -> None:
    """Until it holds; files may not be there yet."""
    for _ in range(300):
        try:
            if condition():
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError("waited for 30 seconds")
