"""Write the report of a run, once or repeatedly while the run goes on."""

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
LOOK_SECONDS = 2.0  # between two looks at the files of a run


def write_report(folder: Path, live: bool = False) -> Run:
    """Write `report.html` and the figures into a run folder, and into the folders of its single runs.

    Args:
        live: whether the page reloads itself while the run goes on.

    Raises:
        WenetError: the folder holds no run, its files cannot be read, or the report cannot be written.
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
    """Rewrite the report whenever the run has new results, until it is finished.

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
    """All figures for which the run has data."""
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
    if run.contest is not None:
        pictures.insert(1, plots.contest_picture(run.contest, run.metric))
    return pictures
