"""Cells of both kinds, genotypes and programs: as text, as JSON, by name, and drawn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wenet.cells.genotype import Genotype
from wenet.cells.instances import PROGRAMS, program_of
from wenet.cells.program_source import program_lines
from wenet.cells.published import PUBLISHED, load_genotype
from wenet_kernels import Program, WenetError

Cell = Genotype | Program

SUFFIX = "-program"  # tells a program from a layer or DAG cell of the same name


def read_cell(text: str) -> Cell:
    """Read what `str` of a cell gives.

    Raises:
        WenetError: the text describes no valid cell.
    """
    return Program.from_text(text) if "|" in text else Genotype.from_text(text)


def cell_to_dict(cell: Cell) -> dict[str, Any]:
    """The cell in JSON, as in `best.json`."""
    return cell.to_dict() if isinstance(cell, Genotype) else {"program": str(cell)}


def cell_from_dict(value: object) -> Cell:
    """Read what `cell_to_dict` gives.

    Raises:
        WenetError: as in `Genotype.from_dict` and `Program.from_json`.
    """
    if isinstance(value, dict) and "program" in value:
        return Program.from_json(json.dumps(value))
    return Genotype.from_dict(value)


def load_cell(source: Cell | str | Path, besides: Sequence[str] = ()) -> Cell:
    """Load a cell of either kind: what `load_genotype` takes, or a program by name, as text, in a file or run folder.

    Where a program has the name of a published genotype or of a layer, "-program" behind it means the program.

    Args:
        besides: as in `load_genotype`.

    Raises:
        WenetError: the source does not exist, or holds no valid cell.

    Examples:
        >>> from wenet.cells import load_cell
        >>> print(load_cell("tanh0 relu1"), "and", load_cell("gru-program").states)
        tanh0 relu1 and 1
    """
    if isinstance(source, Genotype | Program):
        return source
    text = str(source)
    if text in PUBLISHED:
        return PUBLISHED[text][0]
    name = text.removesuffix(SUFFIX)
    if name in PROGRAMS:
        return PROGRAMS[name][0]
    if "|" in text:
        return Program.from_text(text)
    return _program_in(Path(text)) or load_genotype(source, tuple(dict.fromkeys((*PROGRAMS, *besides))))


def load_program(source: Cell | str | Path) -> Program:
    """A cell as a program: one that is one, a published one by name, text with "|" in it, a JSON file or run folder.

    A DAG cell, as `wenet.genotypes.load_genotype` takes it, becomes a program in the highway form.

    Raises:
        WenetError: nothing of the kind is there, or it holds no valid cell.

    Examples:
        >>> from wenet.programs import load_program
        >>> print(load_program("rnn-tanh"))
        h | tanh(linear(x, h))
        >>> load_program("darts-v2").parameters(input_size=10, hidden_size=20)
        7600
    """
    if not isinstance(source, Genotype | Program | str | Path):
        raise WenetError(f"a cell must be a function under @wenet.cell, or a name such as 'lstm', not {source!r}")
    cell = PROGRAMS[source][0] if source in PROGRAMS else load_cell(source)  # rather than the genotype of that name
    return program_of(cell) if isinstance(cell, Genotype) else cell


def draw_cell(cell: Cell) -> str:
    """The cell in lines for a terminal: a genotype as a tree, a program line by line."""
    return cell.draw() if isinstance(cell, Genotype) else "\n".join(program_lines(cell))


def _program_in(path: Path) -> Program | None:
    """The program in a JSON file or run folder; None if there is something else, or nothing."""
    try:
        value = json.loads((path / "best.json" if path.is_dir() else path).read_text(encoding="utf-8"))
        value = value.get("genotype", value)
        is_program = "program" in value
    except (OSError, AttributeError, TypeError, ValueError, RecursionError):
        return None
    return Program.from_json(json.dumps(value)) if is_program else None
