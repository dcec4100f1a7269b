"""`report.html`: everything about a run in one file that loads nothing from the network."""

from __future__ import annotations

import json
import re
import shlex
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from wenet.report import words
from wenet.report.figures import PALETTE, Picture, dark_theme
from wenet.report.plots import shown_rounds
from wenet.report.run import Run
from wenet.words import counted

FIGURES = "figures"  # the folder of figures beside the page
MEDIA_TYPES = {"svg": "image/svg+xml", "png": "image/png", "csv": "text/csv"}
LONG = 40  # characters of a field of a table from which on it has a width of its own
MOST_EMBEDDED = 120_000  # characters of a file embedded in the page
RELOAD_SECONDS = 15
Section = tuple[str, str, str]  # id, title, HTML
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def report_page(run: Run, pictures: Sequence[Picture], live: bool = False) -> str:
    """The page as HTML.

    Args:
        live: whether the page is rewritten while the run goes on, and should reload itself.
    """
    sections = [
        ("summary", "Summary", _summary(run, live)),
        *((picture.name, picture.title, _figure(picture, run)) for picture in pictures),
        *_tables(run),
        ("again", "How to run it again", _how_to_run_again(run)),
    ]
    contents = "".join(f'<li><a href="#{name}">{escape(title)}</a></li>' for name, title, _ in sections)
    body = "".join(
        f'<section id="{name}" aria-labelledby="{name}-heading"><h2 id="{name}-heading">{escape(title)}</h2>'
        f"{content}</section>"
        for name, title, content in sections
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(words.title(run))} · WeNet</title><style>{_style()}</style></head><body>"
        f'<a class="skip" href="#summary">Skip to the summary</a><header><p class="kind">WeNet report</p>'
        f'<h1>{escape(words.title(run))}</h1><p class="status">{escape(run.path.name)} · {words.status(run)}</p>'
        f'<nav aria-label="Contents"><ul>{contents}</ul></nav></header><main>{body}</main>'
        f"<script>{_resource('page.js')}</script></body></html>\n"
    )


def _style() -> str:
    """The style sheet: colours of page and figures in light and dark, then the rest."""
    light = "".join(f"--{name}:{colours[0]};" for name, colours in PALETTE.items())
    dark = "".join(f"--{name}:{colours[1]};" for name, colours in PALETTE.items())
    themes = f":root{{{light}}}@media (prefers-color-scheme: dark){{:root{{{dark}}}}}"
    return themes + dark_theme() + _resource("page.css")


def _resource(name: str) -> str:
    return (files("wenet.report") / name).read_text(encoding="utf-8")


def _summary(run: Run, live: bool) -> str:
    paragraphs = "".join(f"<p>{escape(text)}</p>" for text in words.summary(run))
    cautions = "".join(f"<li>{_with_commands(text)}</li>" for text in words.caveats(run))
    cell = "" if run.genotype is None else f'<p class="cell"><code>{escape(str(run.genotype))}</code></p>'
    reload = (
        f'<p><label><input type="checkbox" id="reload" checked data-seconds="{RELOAD_SECONDS}"> '
        f"read this page again every {RELOAD_SECONDS} seconds</label></p>"
    )
    return f'{reload if live else ""}{paragraphs}{cell}<h3>Caveats</h3><ul class="caveats">{cautions}</ul>'


def _with_commands(text: str) -> str:
    """A sentence as HTML, with text in backticks as commands."""
    return re.sub("`([^`]+)`", r'<code class="command">\1</code>', escape(text))


def _figure(picture: Picture, run: Run) -> str:
    controls = _round_control(run) if picture.name == "weights" else ""
    return (
        f"{controls}<figure>{picture.svg}<figcaption>{escape(picture.description)} "
        f'<span class="files">{_downloads(picture)}</span></figcaption></figure>'
    )


def _downloads(picture: Picture) -> str:
    """Download links that contain the files, because a mailed page has no folder beside it."""
    encoded = {kind: b64encode(content).decode() for kind, content in picture.files.items()}
    links = [
        f'<a download="{picture.name}.{kind}" href="data:{MEDIA_TYPES[kind]};base64,{content}">{kind.upper()}</a>'
        for kind, content in encoded.items()
        if len(content) <= MOST_EMBEDDED
    ]
    large = [f"{picture.name}.{kind}" for kind, content in encoded.items() if len(content) > MOST_EMBEDDED]
    downloads = f"Download: {' '.join(links)}" if links else ""
    return downloads + (f" In the run's folder {FIGURES}: {', '.join(large)}" if large else "")


def _round_control(run: Run) -> str:
    """A slider over the rounds, hidden if its script does not run."""
    rounds = [
        {
            "round": record["round"],
            "text": f"Round {record['round']}: {counted(len(record['networks']), 'network')}, the largest weight "
            f"{max(n['weight'] for n in record['networks']) / record['uniform_weight']:.2f} times an equal share; "
            f"first {record['networks'][0]['genotype']}",
        }
        for record in shown_rounds(run.records)
    ]
    data = escape(json.dumps(rounds), quote=True)
    last = len(rounds) - 1
    return (
        f'<div class="rounds" id="rounds" hidden data-rounds="{data}"><label for="round">Round</label>'
        f'<input type="range" id="round" min="0" max="{last}" value="{last}">'
        '<output for="round" id="round-text"></output></div>'
    )


def _tables(run: Run) -> list[Section]:
    sections = []
    if run.kind == "search" and run.records:
        sections.append(("kept", "Cells kept at the end", _table(*words.kept_table(run))))
    if run.contest is not None:
        figures = _table(*words.contest_table(run.contest, run.metric))
        cells = _table(("contestant", "cell"), words.contestants_cells(run.contest))
        sections.append(("contestants", "The contest in figures", figures + cells))
    if run.best.get("runs"):
        sections.append(("runs", "Winners of the runs", _runs(run)))
    if run.kind == "train" and run.records:
        sections.append(("epochs", "Epochs", _folded(_table(words.epoch_columns(run), words.epoch_rows(run)))))
    course = words.course_rows(run)
    settings = _table(("what", "in this run"), course) if course else ""
    settings += _folded(_table(("setting", "value", "meaning"), words.setting_rows(run)))
    cost = _table(("what", "value"), words.machine_and_cost(run))
    return [*sections, ("settings", "Settings", settings), ("cost", "Machine, versions, cost", cost)]


def _runs(run: Run) -> str:
    """A table of the runs' winners, and where their reports are; links would break when the page is mailed."""
    where = (
        "<p>Every run has a report of its own in the folder of this one, such as <code>run-1/report.html</code>.</p>"
    )
    return _table(words.run_columns(run), words.run_rows(run)) + where


def _how_to_run_again(run: Run) -> str:
    command = escape(" \\\n    ".join(words.command(run)))
    again = _with_commands(f"To write this page anew: `{shlex.join(['wenet-report', str(run.path)])}`")
    if run.settings.get("minutes") is None:
        outcome = (
            f"With the versions above, the same {run.task.reads} and as many threads it gives the same result to the "
            "last bit; elsewhere figures differ in the last digits, and a different cell may win."
        )
    else:
        outcome = "What fits into --minutes depends on the speed of the machine, so a different cell may win."
    loss = words.own_loss(run)
    if loss is not None:
        outcome = (
            f"Its loss was a function, {escape(loss)}; so call <code>wenet.search</code> with it instead. {outcome}"
        )
    return f'<pre tabindex=0><code class="command">{command}</code></pre><p>{outcome}</p><p>{again}</p>'


def _table(columns: Sequence[str], rows: Sequence[words.Row]) -> str:
    """A table that scrolls on its own, also by keyboard, if it is wider than the page."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(map(_field, rest))}</tr>' for first, *rest in rows
    )
    label = escape(f"Table of {columns[0]}, {columns[1]}")
    return (
        f'<div class="table" role="region" tabindex="0" aria-label="{label}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _field(text: str) -> str:
    """A field of a table; a long text has room to wrap in."""
    kind = ' class="long"' if len(text) > LONG else ""
    return f"<td{kind}>{escape(text)}</td>"


def _folded(content: str) -> str:
    return f"<details><summary>Show the table</summary>{content}</details>"
