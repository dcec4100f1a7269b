"""A picture of a cell that is a program: its instructions as a graph, downwards to the new states."""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Iterable

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from wenet.report.figures import BLUE, GREEN, GREY, INK, MUTED, ORANGE, PAPER, PURPLE, Picture, new_drawing, styled
from wenet_kernels import Program
from wenet_kernels.programs import ACTIVATIONS, LEARNED, NORMALISATIONS, PRODUCTS, STATES, Instruction, X

COLOURS = {"sigmoid": GREEN, "tanh": BLUE, "relu": ORANGE}
SIGNS = {"add": "+", "sub": "-", "mul": "*", "from": "-", "plus": "+", "times": "*"}
# Inches: a row, a box and the space beside it, a line that passes between boxes, the title, the margin.
ROW, BOX_WIDTH, BOX_HEIGHT, SPACE, LINE, TITLE, MARGIN = 0.52, 1.05, 0.28, 0.14, 0.22, 0.36, 0.14
SWEEPS = 8  # over the rows, after which hardly anything moves


def program_picture(program: Program, title: str, name: str = "cell") -> Picture:
    """A picture of a program. A product names x and the states that it reads; everything else is joined by lines."""
    graph = _Graph(program)
    width, height = max(4.0, 2 * MARGIN + graph.width), TITLE + ROW * graph.rows + MARGIN
    with styled():
        drawing = new_drawing(height, width)
        drawing.set_layout_engine("none")
        axes = drawing.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0))  # inches, downwards
        axes.axis("off")
        axes.text(MARGIN, 0.2, title, weight="bold", va="center", fontsize=10, parse_math=False)
        _Painter(axes, graph).paint()
    return Picture(name, title, f"{title}: {program}", drawing, _table(program))


class _Graph:
    """What is drawn, and where: values by number, results, and the points at which a line passes a row."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.operands: dict[int, list[int]] = {}  # of each value those that a line joins it to
        for value, (name, operands, _) in enumerate(program.instructions, start=program.states):
            self.operands[value] = [
                operand for operand in operands if operand >= program.states or name not in PRODUCTS
            ]
        joined = {operand for operands in self.operands.values() for operand in operands}
        self.operands |= {state: [] for state in range(program.states) if state in joined | {*program.results}}
        self.row = self._rows()
        self.rows = 2 + max(self.row.values())  # with that of the results
        self.results = self._results()
        self.above: dict[Hashable, list[Hashable]] = {}  # joined in the row above
        self.layers: list[list[Hashable]] = [[] for _ in range(self.rows)]
        self._lay_out()
        self.x = self._columns()
        self.width = max(self.x[each] + self.wide(each) / 2 for each in self.x)

    def _rows(self) -> dict[int, int]:
        """The row of every value, as far down as those that read it allow."""
        row: dict[int, int] = {}
        for value in sorted(self.operands):
            row[value] = max((1 + row[operand] for operand in self.operands[value]), default=0)
        for value in sorted(self.operands, reverse=True):
            readers = [row[each] for each, operands in self.operands.items() if value in operands]
            if readers and value not in self.program.results:
                row[value] = min(readers) - 1
        return row

    def _results(self) -> dict[int, str]:
        """What values become, by value."""
        names: dict[int, list[str]] = {}
        for state, result in enumerate(self.program.results):
            names.setdefault(result, []).append(f"new {STATES[state]}")
        if self.program.output != self.program.results[0]:
            names.setdefault(self.program.output, []).append("output")
        return {value: ", ".join(each) for value, each in names.items()}

    def _lay_out(self) -> None:
        """All that stands in each row, and what it is joined to in the row above."""
        for value, row in self.row.items():
            self._put(value, row, [])
        for value, operands in sorted(self.operands.items()):
            self.above[value] = [self._end(operand, self.row[value]) for operand in operands]
        for value, text in self.results.items():
            self._put(text, self.rows - 1, [self._end(value, self.rows - 1)])

    def _put(self, item: Hashable, row: int, above: Iterable[Hashable]) -> None:
        self.layers[row].append(item)
        self.above[item] = list(above)

    def _end(self, value: int, row: int) -> Hashable:
        """Where the line from a value stands in the row above this one; one line leads to all that read the value."""
        end: Hashable = value
        for passed in range(self.row[value] + 1, row):
            point = (value, passed)
            if point not in self.above:
                self._put(point, passed, [end])
            end = point
        return end

    def wide(self, item: Hashable) -> float:
        return LINE if isinstance(item, tuple) else BOX_WIDTH + SPACE

    def _columns(self) -> dict[Hashable, float]:
        """The middle of every item, near those that it is joined to."""
        beside: dict[Hashable, list[Hashable]] = {item: list(above) for item, above in self.above.items()}
        for item, above in self.above.items():
            for each in above:
                beside[each].append(item)
        x: dict[Hashable, float] = {}
        for layer in self.layers:
            self._place(layer, x, {item: [x[each] for each in self.above[item]] for item in layer})
        for sweep in range(SWEEPS):
            for layer in self.layers[:: 1 if sweep % 2 else -1]:
                self._place(layer, x, {item: [x[each] for each in beside[item]] for item in layer})
        left = min(x[item] - self.wide(item) / 2 for item in x)
        return {item: middle - left for item, middle in x.items()}

    def _place(self, layer: list[Hashable], x: dict[Hashable, float], near: dict[Hashable, list[float]]) -> None:
        """Stand the items of a row side by side, in the order of where they would be."""
        wanted = {item: statistics.fmean(near[item]) if near[item] else x.get(item, 0.0) for item in layer}
        end = -float("inf")
        for item in sorted(layer, key=wanted.__getitem__):
            x[item] = max(wanted[item], end + self.wide(item) / 2)
            end = x[item] + self.wide(item) / 2
        shift = statistics.fmean(x[item] - wanted[item] for item in layer) if layer else 0.0
        for item in layer:
            x[item] -= shift


class _Painter:
    """Draws a graph."""

    def __init__(self, axes: Axes, graph: _Graph) -> None:
        self.axes, self.graph, self.program = axes, graph, graph.program

    def paint(self) -> None:
        for row, layer in enumerate(self.graph.layers):
            for item in layer:
                self._draw(item, row)
                for above in self.graph.above[item]:
                    self._line(above, item, row)

    def _draw(self, item: Hashable, row: int) -> None:
        x, y = self._at(item, row)
        if isinstance(item, str):
            self.axes.text(x, y, item, ha="center", va="center", weight="bold")
        elif isinstance(item, int):
            state = item < self.program.states
            instruction = None if state else self.program.instructions[item - self.program.states]
            self._box(x, y, STATES[item] if instruction is None else self._label(instruction), _colour(instruction))

    def _label(self, instruction: Instruction) -> str:
        name, operands, number = instruction
        if name in PRODUCTS:
            leaves = ["x" if each == X else STATES[each] for each in operands if each < self.program.states]
            return " ".join([name, ", ".join(leaves)]) if leaves else name
        sign = SIGNS.get(name, name)
        return sign if number is None or name in LEARNED else f"{number:g} {sign}"

    def _at(self, item: Hashable, row: int) -> tuple[float, float]:
        return MARGIN + self.graph.x[item], TITLE + ROW * (row + 0.5)

    def _line(self, above: Hashable, item: Hashable, row: int) -> None:
        """From the row above; it ends in an arrow unless it goes on."""
        (x, y), (end, bottom) = self._at(above, row - 1), self._at(item, row)
        y += 0 if isinstance(above, tuple) else BOX_HEIGHT / 2
        bottom -= 0 if isinstance(item, tuple) else BOX_HEIGHT / 2
        arrow = FancyArrowPatch(
            (x, y),
            (end, bottom),
            arrowstyle="-" if isinstance(item, tuple) else "-|>",
            mutation_scale=7,
            shrinkA=0,
            shrinkB=0,
            color=MUTED,
            linewidth=0.9,
            zorder=2,
        )
        self.axes.add_patch(arrow)

    def _box(self, x: float, y: float, label: str, colour: str) -> None:
        box = FancyBboxPatch(
            (x - BOX_WIDTH / 2, y - BOX_HEIGHT / 2),
            BOX_WIDTH,
            BOX_HEIGHT,
            boxstyle="round,pad=0,rounding_size=0.07",
            facecolor=PAPER,
            edgecolor=colour,
            linewidth=1.4,
            zorder=3,
        )
        self.axes.add_patch(box)
        self.axes.text(x, y, label, ha="center", va="center", zorder=4, parse_math=False)


def _colour(instruction: Instruction | None) -> str:
    if instruction is None:
        return INK
    if instruction.name in PRODUCTS:
        return PURPLE
    return COLOURS.get(instruction.name, GREY if instruction.name in ACTIVATIONS + NORMALISATIONS else MUTED)


def _table(program: Program) -> list[list[object]]:
    names = {X: "x", **dict(enumerate(STATES[: program.states]))}
    rows: list[list[object]] = [["value", "operation", "constant", "reads"]]
    for value, (name, operands, number) in enumerate(program.instructions, start=program.states):
        names[value] = f"v{value - program.states + 1}"
        rows.append([names[value], name, "" if number is None else number, " ".join(names[each] for each in operands)])
    rows += [[f"new {STATES[state]}", "", "", names[result]] for state, result in enumerate(program.results)]
    return rows
