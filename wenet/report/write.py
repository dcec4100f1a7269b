"""Writes the report of a run: once, or again and again while the run goes on."""

from __future__ import annotations

import time
from pathlib import Path

from wenet.report import plots
from wenet.report.cells import cell_picture
from wenet.report.figures import Picture, replace_file
from wenet.report.page import FIGURES, report_page
from wenet.report.run import FILES, Run, read_run
from wenet.report.words import status
from wenet.run.console import Console

PAGE = "report.html"
WATCHED = [*FILES, *(f"run-*/{name}" for name in FILES)]
LOOK_SECONDS = 2.0  # between two looks at the files of a run that goes on


def write_report(folder: Path, live: bool = False) -> Run:
    """Write `report.html` and the figures as files into a run folder, and into those of the runs that it is made of.

    Args:
        live: whether the page is to read itself again while the run goes on.

    Raises:
        WenetError: it is no run folder, its files cannot be read, or the report cannot be written.
    """
    for part in sorted(folder.glob("run-*/config.json")):
        write_report(part.parent, live)
    run = read_run(folder)
    pictures = pictures_of(run)
    for picture in pictures:
        for kind, content in picture.files.items():
            replace_file(folder / FIGURES / f"{picture.name}.{kind}", content)
    replace_file(folder / PAGE, report_page(run, pictures, live and not run.finished).encode())
    return run


def follow_report(folder: Path, console: Console) -> None:
    """Write the report whenever a run has something new, until it has finished.

    Raises:
        WenetError: as in `write_report`.
    """
    seen = None
    while True:
        found = [path.stat().st_mtime_ns for name in WATCHED for path in sorted(folder.glob(name))]
        if found != seen:
            seen = found
            run = write_report(folder, live=True)
            console.say(f"{folder / PAGE}: {status(run)}")
            if run.finished:
                return
        time.sleep(LOOK_SECONDS)


def pictures_of(run: Run) -> list[Picture]:
    """All figures that the run has data for."""
    pictures = []
    if run.genotype is not None:
        title = "The cell found" if run.kind == "search" else "The cell"
        pictures.append(cell_picture(run.genotype, title))
    if not run.records:
        return pictures
    if run.kind == "train":
        pictures.append(plots.training_curves_picture(run))
    else:
        pictures += [plots.SEARCH_FIGURES[name](run) for name in run.strategy.figures]
    if run.audit is not None:
        pictures.append(plots.audit_picture(run.audit, run.metric))
    return pictures
