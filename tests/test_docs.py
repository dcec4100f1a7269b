"""Every command and every piece of Python in README and docs runs, on a small text and with small presets."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from wenet.report.figures import PALETTE

from .wenet.helpers import write_text

ROOT = Path(__file__).parent.parent
FIGURES = sorted((ROOT / "docs").rglob("*.svg"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# What is marked `ci` is run by .ci/run, what is marked `long` by hand: installing, and measurements of an hour.
BLOCK = re.compile(r"(?:<!-- (?P<mark>ci|long) -->\n)?^```(?P<language>bash|python)\n(?P<code>.*?)^```$", re.M | re.S)

# Before each command and each piece of Python: every text is the small one, and the presets are small.
PRELUDE = """
from wenet.data import corpus
from wenet.run import budget
from wenet.searching import settings as searching
from wenet.training import settings as training

small = {{"hidden": 6, "data_batch": 4, "eval_batch": 4, "bptt": 8}}
for preset in searching.PRESETS.values():
    preset.update(small, pool=4, batch=2, keep=1, epochs_per_round=0.1)
for preset in ("race", "words"):
    searching.PRESETS[preset].update(batch=4, parameters=900, rungs=2, contest_epochs=0.1, contest_seeds=2)
searching.PRESETS["numbers"].update(batch=4, parameters=900, rungs=2, contest_epochs=1.0, contest_seeds=2)
whole = budget.Budget.__init__
budget.Budget.__init__ = lambda self, folder, minutes, started: whole(self, folder, min(minutes, 0.1), started)
training.TRAIN_PRESETS["quick"].update(small, test_batch=4, epochs=2)
training._paper_settings = lambda given: training.TRAIN_PRESETS["quick"]
read_texts = corpus.read_texts
corpus.read_texts = lambda name, folder: read_texts(name if name.endswith("my-text") else {text!r}, folder)
"""
COMMANDS = {  # and the module of each
    "search": "search",
    "train": "train",
    "eval": "evaluate",
    "rank": "rank",
    "cell": "cell",
    "report": "report",
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Commands that begin with the prelude, found before the installed ones."""
    folder = tmp_path_factory.mktemp("bin")
    prelude = PRELUDE.format(text=str(write_text(tmp_path_factory.mktemp("text"))))
    (folder / "prelude.py").write_text(prelude)
    for name, module in COMMANDS.items():
        command = folder / f"wenet-{name}"
        command.write_text(
            f"#!{sys.executable}\nimport prelude, sys\nfrom wenet.cli.{module} import main\nsys.exit(main())\n"
        )
        command.chmod(0o755)
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    modules = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return {**os.environ, "PATH": path, "PYTHONPATH": modules}


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and code of what a page tells its reader to run."""
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [(block["language"], block["code"]) for block in found if block["mark"] is None]


@pytest.mark.timeout(900)  # a page has some twenty commands, each of which imports torch
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_says_works(page, environment, tmp_path):
    for language, code in blocks(page):
        command = (
            ["bash", "-euo", "pipefail", "-c", code]
            if language == "bash"
            else ["python", "-c", f"import prelude\n{code}"]
        )
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"


def test_a_command_that_fails_is_noticed(environment, tmp_path):
    with pytest.raises(AssertionError, match="unknown flag '--xyzzy'; see wenet-search --help"):
        page = tmp_path / "page.md"
        page.write_text("```bash\nwenet-search --xyzzy\n```\n")
        test_what_a_page_says_works(page, environment, tmp_path)


@pytest.mark.parametrize(
    ("example", "flags"),
    [
        ("own_text.py", ["{text}", "--pool", "2", "--hidden", "4", "--epochs", "1"]),
        ("time_series.py", ["--steps", "2"]),
        ("sensors.py", ["--sequences", "200"]),
        ("forecast.py", ["--horizon", "2"]),
    ],
)
def test_examples(example, flags, environment, tmp_path):
    if example == "sensors.py":
        pytest.importorskip("sklearn")
    text = write_text(tmp_path / "my-text")
    script = str(ROOT / "examples" / example)
    arguments = [script, *(flag.format(text=text.name) for flag in flags)]
    code = f"import prelude, runpy, sys; sys.argv = {arguments}; runpy.run_path({script!r}, run_name='__main__')"
    done = subprocess.run(["python", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_site_builds_without_warnings(tmp_path):
    if not all(importlib.util.find_spec(name) for name in ("mkdocs", "mkdocstrings")):
        pytest.skip('needs mkdocs-material and mkdocstrings: pip install -e ".[docs]"')
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.name)
def test_figures_follow_the_reader_into_the_dark(path):
    """Their colours are those of the report, each with another in a dark theme."""
    svg = path.read_text(encoding="utf-8")
    theme = svg[svg.index("@media (prefers-color-scheme: dark)") : svg.index("</style>")]
    light = {colours[0] for colours in PALETTE.values()}
    assert set(re.findall(r"#[0-9a-f]{6}\b", svg.replace(theme, ""))) <= light
    texts = re.findall(r'<g id="[^"]*text_\d+".*?</g>', svg, re.S)
    assert texts and all("fill: #" in text for text in texts)  # which are black by default
    used = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", svg.replace(theme, "")))
    assert all(f"fill: {colour}" in theme and f"stroke: {colour}" in theme for colour in used)
