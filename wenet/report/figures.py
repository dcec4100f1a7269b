"""Pictures as SVG that follows the reader's light or dark theme, as PNG, and their numbers as CSV."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.ticker import MaxNLocator

from wenet.files import written_whole
from wenet_kernels import WenetError

# Distinct for any colour vision (after Okabe and Ito) on the background of either theme: light, dark.
PALETTE = {
    "paper": ("#fdfdfc", "#16191d"),
    "ink": ("#1c2024", "#e6e8ea"),
    "muted": ("#5a646e", "#a3adb7"),
    "grid": ("#d9dee3", "#343b43"),
    "blue": ("#0a6aa8", "#62b6ef"),
    "orange": ("#c4510a", "#f2a33c"),
    "green": ("#0b7a5b", "#3cc99f"),
    "grey": ("#7b8590", "#8a949f"),
    "purple": ("#94467f", "#d993c4"),
    "brown": ("#7a5a1e", "#c9a86a"),
}
PAPER, INK, MUTED, GRID, BLUE, ORANGE, GREEN, GREY, PURPLE, BROWN = (light for light, _ in PALETTE.values())
SERIES = (BLUE, ORANGE, GREEN, PURPLE, BROWN, GREY, INK, MUTED)  # in the order of lines

STYLE = {
    "axes.prop_cycle": cycler(color=SERIES),
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "none",  # text stays text, for screen readers and search
    "svg.hashsalt": "wenet",  # the same figure gives the same file
}
WIDTH = 4.6  # inches: at 400 pixels the page shows a figure at about its own size
DOTS_PER_INCH = 160
NO_METADATA = dict.fromkeys(["Date", "Creator", "Format", "Type"])


class Drawing(Figure):
    """A figure that notebooks show even if pyplot was never imported."""

    def _repr_png_(self) -> bytes:
        stream = io.BytesIO()
        with styled():
            self.savefig(stream, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
        return stream.getvalue()


@dataclass(frozen=True)
class Picture:
    """A figure of a report.

    Attributes:
        name: the name of its files.
        description: a description for readers who cannot see it.
        table: its numbers, a header and then rows.
    """

    name: str
    title: str
    description: str
    drawing: Drawing
    table: Sequence[Sequence[Any]]

    @cached_property
    def svg(self) -> str:
        """An SVG element with a text alternative; all ids begin with the name of the figure."""
        stream = io.StringIO()
        with styled():
            self.drawing.savefig(stream, format="svg", metadata=NO_METADATA)
        svg = stream.getvalue()
        svg = svg[svg.index("<svg") :]
        svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
        svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{self.name}-", svg)
        labels = f'role="img" aria-labelledby="{self.name}-title {self.name}-desc"'
        title = f'<title id="{self.name}-title">{html.escape(self.title)}</title>'
        description = f'<desc id="{self.name}-desc">{html.escape(self.description)}</desc>'
        head, body = svg.split(">", 1)
        return f"{head} {labels}>{title}{description}{body}"

    def svg_file(self) -> bytes:
        """The SVG as a file, with the rules for a dark theme that a page would provide."""
        head, body = self.svg.split("<desc", 1)
        return f"{head}<style>{dark_theme()}</style><desc{body}".encode()

    def png_file(self) -> bytes:
        return self.drawing._repr_png_()

    @cached_property
    def files(self) -> dict[str, bytes]:
        """The picture in every format, by file suffix."""
        return {"svg": self.svg_file(), "png": self.png_file(), "csv": self.csv_file()}

    def csv_file(self) -> bytes:
        stream = io.StringIO(newline="")
        csv.writer(stream).writerows(self.table)
        return stream.getvalue().encode()


@contextmanager
def styled() -> Iterator[None]:
    """A context with the style of our figures; the user's settings of matplotlib stay as they are."""
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        yield


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file at once; readers see the old one or the new one.

    Raises:
        WenetError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as partial:
            partial.write_bytes(content)
    except OSError as error:
        raise WenetError(f"cannot write {path}: {error.strerror or error}") from None


def dark_theme() -> str:
    """CSS rules that switch a figure's colours to the dark palette in dark mode."""
    rules = []
    for light, dark in PALETTE.values():
        rules.append(f'[style*="fill: {light}"]{{fill:{dark}!important}}')
        rules.append(f'[style*="stroke: {light}"]{{stroke:{dark}!important}}')
    return "@media (prefers-color-scheme: dark){" + "".join(rules) + "}"


def new_drawing(height: float, width: float = WIDTH) -> Drawing:
    """An empty figure of this size in inches, to be filled within `styled`."""
    return Drawing(figsize=(width, height), layout="constrained")


def mark_whole_numbers(axes: Axes) -> None:
    """Put ticks of the horizontal axis at whole numbers."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
