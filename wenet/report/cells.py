"""Pictures of one cell (the paper's Figure 5), or of two with their common part marked (section 4.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from wenet.cells import Cell, Genotype, common_structure
from wenet.report.figures import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    Picture,
    new_drawing,
    replace_file,
    styled,
)
from wenet.report.programs import program_picture
from wenet_kernels import WenetError

COLOURS = {"tanh": BLUE, "relu": ORANGE, "sigmoid": GREEN, "identity": GREY}
# Inches: height of a row, indentation of a reader, size of a box, space to the right of the boxes.
ROW, SHIFT, BOX_HEIGHT, OUTPUT = 0.42, 0.36, 0.30, 1.0
BOX_WIDTH, BOX_WIDTH_COMPARED = 1.16, 1.55
TITLE, NOTE, MARGIN, GAP = 0.3, 0.35, 0.12, 0.4
CHARACTER = 0.1  # width of a character in a title or a box


@dataclass(frozen=True)
class Layout:
    """Positions of the nodes: one row each in depth-first order, deeper nodes further to the right.

    Every node has its own row and reads only one other node. So no line crosses a box, and lines to the output cross no
    other line.
    """

    row: dict[int, int]
    depth: dict[int, int]

    @classmethod
    def of(cls, genotype: Genotype) -> Layout:
        row, depth = {0: 0}, {0: 0}

        def place(node: int) -> None:
            for child in genotype.children(node):
                row[child], depth[child] = len(row), depth[node] + 1
                place(child)

        place(0)
        return cls(row, depth)

    def width(self, box: float) -> float:
        """Width in inches with boxes of this width, output included."""
        return SHIFT * max(self.depth.values()) + box + OUTPUT

    @property
    def height(self) -> float:
        """Height in inches, inputs above the init node included."""
        return ROW * (len(self.row) + 1)


def cell_picture(cell: Cell, title: str, name: str = "cell") -> Picture:
    """A picture of one cell."""
    if not isinstance(cell, Genotype):
        return program_picture(cell, title, name)
    return _picture(name, title, [(title, cell, {})])


def comparison_picture(first: str, a: Genotype, second: str, b: Genotype) -> Picture:
    """A picture of two cells; bold boxes mark their largest common tree and name the matching nodes."""
    common = common_structure(a, b)
    sides = [(first, a, dict(common)), (second, b, {j: i for i, j in common.items()})]
    return _picture("comparison", f"{first} and {second}", sides)


def save_picture(picture: Picture, path: Path) -> None:
    """Save a picture as SVG or PNG, depending on the file's name.

    Raises:
        WenetError: the name has another ending, or the file cannot be written.
    """
    kinds = {".svg": picture.svg_file, ".png": picture.png_file}
    if path.suffix.lower() not in kinds:
        raise WenetError(f"cannot draw to {path}: name a file that ends in .svg or .png")
    replace_file(path, kinds[path.suffix.lower()]())


Side = tuple[str, Genotype, Mapping[int, int]]  # title, cell, and the partner of each common node


def _picture(name: str, title: str, sides: Sequence[Side]) -> Picture:
    compared = len(sides) > 1
    longest = max(len(name) for _, genotype, _ in sides for name in genotype.activations)
    box = (BOX_WIDTH_COMPARED if compared else BOX_WIDTH) + CHARACTER * max(0, longest - len("identity"))
    layouts = [Layout.of(genotype) for _, genotype, _ in sides]
    height = TITLE + max(layout.height for layout in layouts) + (NOTE if compared else MARGIN)
    width = sum(layout.width(box) for layout in layouts) + GAP * (len(sides) - 1) + 2 * MARGIN
    with styled():
        drawing = new_drawing(height, width)
        drawing.set_layout_engine("none")
        axes = drawing.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0))  # inches, downwards
        axes.axis("off")
        left = MARGIN
        for (side_title, genotype, common), layout in zip(sides, layouts, strict=True):
            heading = shorten(side_title, layout.width(box))
            axes.text(left, 0.2, heading, weight="bold", va="center", fontsize=10, parse_math=False)
            _CellPainter(axes, genotype, layout, common, left, box).paint()
            left += layout.width(box) + GAP
        if compared:
            note = "bold: the part in common; = N: node N of the other cell"
            axes.text(MARGIN, height - NOTE / 2, note, va="center", fontsize=8.5, color=MUTED)
    return Picture(name, title, _describe(sides), drawing, _table(sides))


def shorten(title: str, width: float) -> str:
    """Cut a title to a width in inches."""
    most = int(width / CHARACTER)
    return title if len(title) <= most else title[: most - 1] + "…"


class _CellPainter:
    """Draws one cell, starting at a left edge."""

    def __init__(
        self, axes: Axes, genotype: Genotype, layout: Layout, common: Mapping[int, int], left: float, box: float
    ) -> None:
        self.axes, self.genotype, self.layout, self.common = axes, genotype, layout, common
        self.left, self.box = left, box
        self.mean = left + layout.width(box) - OUTPUT + 0.2  # position of the line where states are averaged

    def paint(self) -> None:
        self._inputs()
        self._output()
        self._box(0, "0  init", INK)
        for node, (activation, ancestor) in enumerate(self.genotype.recurrent, start=1):
            self._edge(ancestor, node)
            self._box(node, f"{node}  {activation}", COLOURS.get(activation, INK))

    def _x(self, node: int) -> float:
        return self.left + SHIFT * self.layout.depth[node]

    def _y(self, node: int) -> float:
        return TITLE + ROW * (self.layout.row[node] + 1.5)

    def _inputs(self) -> None:
        y = self._y(0) - ROW
        for x, label in ((0.25, "$x_t$"), (0.85, "$h_{t-1}$")):
            self.axes.text(self.left + x, y, label, ha="center", va="center", fontsize=10)
            self._arrow((self.left + x, y + 0.12), (self.left + x, self._y(0) - BOX_HEIGHT / 2), MUTED)

    def _box(self, node: int, label: str, colour: str) -> None:
        marked = node in self.common
        box = FancyBboxPatch(
            (self._x(node), self._y(node) - BOX_HEIGHT / 2),
            self.box,
            BOX_HEIGHT,
            boxstyle="round,pad=0,rounding_size=0.07",
            facecolor=PAPER,
            edgecolor=colour,
            linewidth=3.2 if marked else 1.4,
            zorder=3,
        )
        self.axes.add_patch(box)
        if marked and node:
            label += f" = {self.common[node]}"
        self.axes.text(
            self._x(node) + 0.1, self._y(node), label, va="center", zorder=4, weight="bold" if marked else "normal"
        )

    def _edge(self, ancestor: int, node: int) -> None:
        """Draw a line down from the ancestor, then right to its reader."""
        x = self._x(ancestor) + SHIFT / 2
        common = ancestor in self.common and node in self.common
        width = 2.6 if common else 1.2
        self.axes.plot([x, x], [self._y(ancestor), self._y(node)], color=INK, linewidth=width, zorder=2)
        self._arrow((x, self._y(node)), (self._x(node), self._y(node)), INK, width)

    def _output(self) -> None:
        """Draw lines from the averaged states into one line, which leads to the output."""
        rows = [self._y(node) for node in self.genotype.concat]
        for node in self.genotype.concat:
            self.axes.plot(
                [self._x(node) + self.box, self.mean], [self._y(node)] * 2, color=MUTED, linewidth=0.9, zorder=1
            )
        middle = (min(rows) + max(rows)) / 2
        self.axes.plot([self.mean, self.mean], [min(rows), max(rows)], color=MUTED, linewidth=2.4, zorder=1)
        self._arrow((self.mean, middle), (self.mean + 0.3, middle), MUTED)
        self.axes.text(self.mean + 0.34, middle, "$h_t$", va="center", fontsize=10)
        self.axes.text(self.mean + 0.08, max(rows) + 0.01, "mean", va="center", fontsize=8.5, color=MUTED)

    def _arrow(self, start: tuple[float, float], end: tuple[float, float], colour: str, width: float = 1.2) -> None:
        style = {"arrowstyle": "-|>", "color": colour, "linewidth": width, "shrinkA": 0, "shrinkB": 0}
        self.axes.annotate("", end, start, arrowprops=style, zorder=2)


def _describe(sides: Sequence[Side]) -> str:
    """Describe the cells in words; for two cells with the matching nodes."""
    sentences = []
    for title, genotype, common in sides:
        nodes = [
            f"node {node}, {activation} of {ancestor or 'the init node'}"
            + (f", common: {common[node]} in the other cell" if node in common else "")
            for node, (activation, ancestor) in enumerate(genotype.recurrent, start=1)
        ]
        averaged = "all" if len(genotype.concat) == genotype.nodes else ", ".join(map(str, genotype.concat))
        sentences.append(f"{title}: {'; '.join(nodes)}. Averaged into the output: {averaged}.")
    return " ".join(sentences)


def _table(sides: Sequence[Side]) -> list[list[object]]:
    header: list[object] = ["cell", "node", "activation", "ancestor", "averaged", "node of the other cell"]
    rows: list[list[object]] = [
        [title, node, activation, ancestor, int(node in genotype.concat), common.get(node, "")]
        for title, genotype, common in sides
        for node, (activation, ancestor) in enumerate(genotype.recurrent, start=1)
    ]
    return [header, *rows]
