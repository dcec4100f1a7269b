"""Files of sequences: .npy and .npz, tables as .csv and .tsv, and .ts as the UCR and UEA archives have it."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wenet.data.series.arrays import series_of
from wenet.data.series.series import (
    KEPT,
    Array,
    Series,
    are_counted,
    joined_parts,
    load_series,
    place_of,
    target_places,
)
from wenet_kernels import WenetError

DIVIDERS = {"\t": "tabs", ";": "';'", "|": "'|'", ",": "','", " ": "spaces"}  # of tables that others write
BESIDE_NUMBERS = ",'%$€£¥"  # what stands in numbers as people write them
LARGEST_WHOLE = 2.0**53  # up to which a float holds every whole number
SEEN_ROWS = 20  # of a table, from which its divider is told
UNKNOWN_CELLS = ("", "?")  # in place of a label
MISSING = ("", "?", "nan", "na", "n/a", "null", "none")  # in lower case, how tables write a value that is missing


@dataclass(frozen=True)
class Reading:
    """How a file is to be read.

    Attributes:
        targeted: whether the task has targets beside the sequences.
        every_step: whether they are one for each step.
        target: the column of the label; or, of a table with a row a step, the columns of what is to be predicted, with
            commas between them.
        layout: of arrays, as in `series_of`.
        sequence: of a table with a row a step, the column that tells sequences apart.
    """

    targeted: bool
    every_step: bool = False
    target: str | None = None
    layout: str = "ntf"
    sequence: str | None = None


def read_series(path: Path, reading: Reading) -> Series:
    """Read a file of sequences; beside one that ends in `_TRAIN` also the test part, in a file that ends in `_TEST`.

    Raises:
        WenetError: there is no such file, its kind is not known, or its content does not fit the task.
    """
    if path.name == KEPT:
        return load_series(path)
    if ending_of(path) not in READERS:
        raise WenetError(f"no sequences {str(path)!r}: name a file that ends in {', '.join(READERS)}")
    if not os.path.isfile(path):  # `Path.is_file` raises an error for a name that is too long
        raise WenetError(f"no file {path}; name one that is there")
    read = READERS[ending_of(path)]
    if path.stem.endswith("_TRAIN"):
        test = path.with_name(path.name.replace("_TRAIN", "_TEST"))
        if test.is_file():
            name = path.stem.removesuffix("_TRAIN")
            return joined_parts({"train": _reported(read, path, reading), "test": _reported(read, test, reading)}, name)
    return _reported(read, path, reading)


def _reported(read: Callable[[Path, Reading], Series], path: Path, reading: Reading) -> Series:
    try:
        return read(path, reading)
    except UnicodeDecodeError:
        raise WenetError(f"{path} is not UTF-8; convert it first") from None
    except OSError as error:
        raise WenetError(f"cannot read {path}: {error.strerror or error}") from None


def _npy(path: Path, reading: Reading) -> Series:
    array = _loaded(path)
    if reading.targeted:
        raise WenetError(f"{path} has one array, and no targets; save x and y together with numpy.savez, as .npz")
    return series_of(array, False, reading.layout, path.stem)


def _npz(path: Path, reading: Reading) -> Series:
    """Arrays x and y; or x_train, y_train, x_test, y_test and perhaps x_valid, y_valid."""
    arrays = {name.lower(): array for name, array in _loaded(path).items()}
    parts = {part: arrays for part in ("train", "valid", "test") if f"x_{part}" in arrays}
    if parts and "x" in arrays:
        raise WenetError(f"{path} has both x and x_{next(iter(parts))}; keep the parts, or all in one")
    wanted = ["x", "y"] if reading.targeted else ["x"]
    if parts:
        given: Any = {part: tuple(arrays.get(f"{name}_{part}") for name in wanted) for part in parts}
        if any(array is None for pair in given.values() for array in pair):
            raise WenetError(f"{path}: each of {', '.join(parts)} needs {' and '.join(f'{n}_PART' for n in wanted)}")
        given = given if reading.targeted else {part: pair[0] for part, pair in given.items()}
        return series_of(given, reading.targeted, reading.layout, path.stem, reading.every_step)
    if not set(wanted) <= set(arrays):
        found = ", ".join(arrays) or "nothing"
        raise WenetError(f"{path} has {found}; it needs arrays named {' and '.join(wanted)}")
    given = (arrays["x"], arrays["y"]) if reading.targeted else arrays["x"]
    return series_of(given, reading.targeted, reading.layout, path.stem, reading.every_step)


def _loaded(path: Path) -> Any:
    try:
        loaded = np.load(path, allow_pickle=False)
        return dict(loaded) if ending_of(path) == ".npz" else loaded
    except (ValueError, EOFError, KeyError) as error:
        reason = "it is not a NumPy file, or holds pickled objects" if "pickle" in str(error).lower() else str(error)
        raise WenetError(
            f"{path} cannot be read ({reason}); save plain arrays with numpy.save or numpy.savez"
        ) from None
    except Exception as error:  # a damaged zip raises errors of zipfile and zlib
        raise WenetError(f"{path} is damaged: {error}") from None


def _table(path: Path, reading: Reading) -> Series:
    """A row for a sequence and a column with its target; or a row for a step and a column for a feature, where there is
    no target or one for each step.

    A first row without numbers names the columns, and so may one whose numbers count on, as pandas writes it. A first
    column without a name that numbers the rows is left out. The target is in the column of that name or number;
    if none is named in the first, as in the UCR archive, in a table without names, and else in the last.
    """
    rows = _rows(path)
    first = rows[0].cells
    numbered = not first[0].strip() and _are_row_numbers([row.cells[0] for row in rows[1:]], first[1:])
    rows = [Row(row.line, row.cells[1:]) for row in rows] if numbered else rows
    first = rows[0].cells
    if not first:
        raise WenetError(f"{path} has no columns but the numbers of its rows")
    named = _are_names(*(row.cells for row in rows), numbered=numbered)
    names = [cell.strip() for cell in first] if named else [str(number + 1) for number in range(len(first))]
    rows = rows[1:] if named else rows
    for row in rows:
        if len(row.cells) > len(names):
            raise WenetError(f"{path} line {row.line}: {len(row.cells)} columns, where the first line has {len(names)}")
    if len(names) > 1 and not names[-1] and all(_is_missing(row.cell(len(names) - 1)) for row in rows):
        names.pop()  # nothing but a comma at the end of each line
        rows = [Row(row.line, row.cells[: len(names)]) for row in rows]
    if reading.every_step or not reading.targeted:
        return _row_a_step(path, names, rows, named, reading)
    usual = names[-1] if named else names[0]
    return _row_a_sequence(path, names, rows, reading.target or usual)


class Row(NamedTuple):
    """A row of a table, and the line of the file that it ends in, counted from 1."""

    line: int
    cells: list[str]

    def cell(self, column: int) -> str:
        """Empty where the row is too short."""
        return self.cells[column].strip() if column < len(self.cells) else ""


def _rows(path: Path) -> list[Row]:
    """All rows of a table but blank lines, two at least."""
    divided = "\t" if ending_of(path) == ".tsv" else ","
    reader = csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig")), delimiter=divided)
    try:
        rows = [Row(reader.line_num, cells) for cells in reader if not _is_blank(cells)]
    except csv.Error as error:
        raise WenetError(f"{path} is no table: {error}; is a quotation mark left open?") from None
    if len(rows) < 2:
        raise WenetError(f"{path} has {len(rows)} row{'s' * (len(rows) != 1)}; a table of sequences has more")
    _check_divider(path, rows[:SEEN_ROWS], divided)
    return rows


def _check_divider(path: Path, rows: list[Row], divided: str) -> None:
    """Refuse a table that another character divides; commas and spaces may also stand within cells."""
    alone = all(len(row.cells) == 1 for row in rows)
    for other, word in DIVIDERS.items():
        if other == divided or (other in ", " and not alone):
            continue
        if all(other in divided.join(row.cells).strip() for row in rows):
            between = DIVIDERS[divided]
            raise WenetError(
                f"{path} is divided by {word}; write it with {between} between columns, and '.' in numbers"
            )


def _is_blank(cells: list[str]) -> bool:
    """Whether a line has nothing, not even an empty text in quotation marks, as a table of one column has for a gap."""
    return not cells or (len(cells) == 1 and cells[0].isspace())


def _row_a_step(path: Path, names: list[str], rows: list[Row], named: bool, reading: Reading) -> Series:
    """Sequences of many features, one after the other or in turns, and a column that tells them apart; by default one
    sequence. The steps of each are in the order of the rows."""
    if reading.every_step and reading.sequence is None:
        raise WenetError(
            f"{path}: a target a step needs several sequences; name the column that tells them apart with --sequence"
        )
    sequence = [] if reading.sequence is None else [place_of(reading.sequence, names, str(path), "--sequence")]
    labels = _label_columns(path, names, reading) if reading.every_step else []
    if set(sequence) & set(labels):
        raise WenetError(f"{path}: column {reading.sequence!r} cannot be both --sequence and --target; name another")
    kept = [place for place in range(len(names)) if place not in (*sequence, *labels)]
    time = kept.pop(0) if named and len(kept) > 1 and _is_time(row.cell(kept[0]) for row in rows) else None
    if time is not None:
        _check_time(path, rows, names, time, reading)
    if not kept:
        raise WenetError(f"{path} has no column of a feature beside {', '.join(names[place] for place in labels)}")
    of_rows = [row.cell(sequence[0]) if sequence else "" for row in rows]
    for row, name in zip(rows, of_rows, strict=True):
        if sequence and not name:
            raise _empty(path, row, names[sequence[0]], "each step needs its sequence")
    if time is not None:
        _check_order(path, rows, names, time, of_rows)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(of_rows))}
    order = np.argsort([numbers[name] for name in of_rows], kind="stable")
    rows = [rows[place] for place in order]
    mend = "" if sequence else "; if this column tells sequences apart, name it with --sequence"
    values = np.array([[_value(path, row, column, names, mend) for column in kept] for row in rows])
    lengths = np.bincount([numbers[name] for name in of_rows])
    targets = _step_targets(path, names, rows, labels) if labels else None
    return Series(path.stem, values, lengths, targets, columns=tuple(names[column] for column in kept))


def _is_time(cells: Iterator[str]) -> bool:
    """Whether a first column has dates, or names of rows, and so no feature."""
    return not any(_is_number(cell) or _is_missing(cell) for cell in cells)


def _check_time(path: Path, rows: list[Row], names: list[str], column: int, reading: Reading) -> None:
    """Refuse a first column that more likely tells sequences apart, which would be read as one, or has numbers."""
    for row in rows:
        if _is_as_people_write(row.cell(column)):
            raise _no_number(path, row, column, names)
    if reading.sequence is None and len({row.cell(column) for row in rows}) < len(rows):
        raise WenetError(
            f"{path}: texts in column {names[column]!r} repeat; if they tell sequences apart, name it with --sequence, "
            "else leave it out"
        )


def _check_order(path: Path, rows: list[Row], names: list[str], column: int, of_rows: list[str]) -> None:
    """Refuse rows of a sequence that go back in time, as far as its dates can be read."""
    last: dict[str, datetime] = {}
    try:
        for row, name in zip(rows, of_rows, strict=True):
            date = datetime.fromisoformat(row.cell(column))
            if date < last.get(name, date):
                raise WenetError(
                    f"{path} line {row.line}: column {names[column]!r} goes back in time; sort rows, "
                    "oldest first, or leave the column out if clocks went back"
                )
            last[name] = date
    except (ValueError, TypeError):  # dates of another form, or some with time zones
        return


def _label_columns(path: Path, names: list[str], reading: Reading) -> list[int]:
    """Columns of the targets of each step: those named, or the last."""
    return [len(names) - 1] if reading.target is None else target_places(reading.target, names, str(path))


def _step_targets(path: Path, names: list[str], rows: list[Row], columns: list[int]) -> Array:
    """Targets of all steps, `[steps of all]` or of several columns `[steps of all, K]`."""
    for column in columns:
        _check_targets(path, rows, column, names[column], "each step needs its target")
    cells = [[row.cell(column) for column in columns] for row in rows]
    return _targets_of([row[0] for row in cells] if len(columns) == 1 else cells)


def _targets_of(cells: Any) -> Array:
    """Labels as text, or as numbers where all are; a code such as 007 is text, and other than 7."""
    array = np.array(cells)
    each = array.ravel().tolist()
    numbers = all(map(_is_number, each)) and not any(re.fullmatch(r"[+-]?0\d+", cell) for cell in each)
    return _as_whole(array.astype(np.float64)) if numbers else array


def _check_targets(path: Path, rows: Sequence[Row], column: int, name: str, needs: str) -> None:
    """Refuse empty cells, and among numbers words for a missing value; among text, such as countries, NA is a label."""
    cells = [row.cell(column) for row in rows]
    of_numbers = all(_is_number(cell) or _is_missing(cell) for cell in cells)
    for row, cell in zip(rows, cells, strict=True):
        if cell in UNKNOWN_CELLS or (of_numbers and _is_missing(cell)):
            raise _empty(path, row, name, needs, cell)


def _row_a_sequence(path: Path, names: list[str], rows: list[Row], target: str) -> Series:
    """Sequences of one feature; cells that are missing at the end of a row are behind the sequence's end."""
    place = place_of(target, names, str(path), "--target")
    sequences, labels = [], []
    for row in rows:
        line, cells = row
        if place >= len(cells):
            raise WenetError(f"{path} line {line} has no column {target!r}; it needs {place + 1}, not {len(cells)}")
        labels.append(row.cell(place))
        columns = [column for column in range(len(cells)) if column != place]
        while columns and _is_missing(cells[columns[-1]]):
            columns.pop()
        sequences.append(np.array([_value(path, row, column, names) for column in columns]))
    _check_targets(path, rows, place, target, "each sequence needs its target")
    return series_of((sequences, _targets_of(labels)), True, name=path.stem)


def _as_whole(targets: Array) -> Array:
    """Labels such as 1.0 as whole numbers, where all are, and are so small that none is rounded."""
    if targets.dtype.kind == "f" and (np.abs(targets) <= LARGEST_WHOLE).all() and (targets == np.round(targets)).all():
        return targets.astype(np.int64)
    return targets


def _value(path: Path, row: Row, column: int, names: list[str], mend: str = "") -> float:
    """The number in a cell; `mend` ends the error if there is something else."""
    cell = row.cell(column)
    if _is_missing(cell):
        return float("nan")
    try:
        return _as_number(cell)
    except ValueError:
        raise _no_number(path, row, column, names, mend) from None


def _no_number(path: Path, row: Row, column: int, names: list[str], mend: str = "") -> WenetError:
    cell = row.cell(column)
    mend = "; write digits and '.' alone" if _is_as_people_write(cell) else mend
    return WenetError(f"{path} line {row.line}, column {names[column]!r}: {cell!r} is no number{mend}")


def _empty(path: Path, row: Row, name: str, needs: str, cell: str = "") -> WenetError:
    what = f"has {cell!r} for a missing value" if cell else "is empty"
    return WenetError(f"{path} line {row.line}: column {name!r} {what}; {needs}")


def _is_missing(cell: str) -> bool:
    return cell.strip().lower() in MISSING


def _are_names(first: list[str], *others: list[str], numbered: bool) -> bool:
    """Whether a first row has no numbers; or numbers that count from 0, and the rows are `numbered` too; or that count
    from 0 or 1, and it has a text that is in no other row."""
    numbers = [cell for cell in first if _is_number(cell)]
    if not numbers or (numbered and are_counted(numbers)):
        return True
    texts = {cell for cell in first if not _is_number(cell)} - {cell for row in others for cell in row}
    return len(numbers) > 1 and bool(texts) and (are_counted(numbers) or are_counted(numbers, first=1))


def _are_row_numbers(cells: list[str], names: list[str]) -> bool:
    """Whether a column without a name numbers the rows: from 0; or beside named columns by any whole numbers, each
    once, as of some rows of a larger table."""
    whole = all(cell.strip().isdigit() for cell in cells) and len(set(cells)) == len(cells)
    return are_counted(cells) or (whole and bool(names) and not any(map(_is_number, names)))


def _is_as_people_write(cell: str) -> bool:
    """Whether a text is a number but for commas, currencies and the like."""
    return not _is_number(cell) and _is_number(re.sub(f"[{BESIDE_NUMBERS}]", "", cell))


def _as_number(cell: str) -> float:
    """A number as tables write it; Python's own may have underscores."""
    if "_" in cell:
        raise ValueError
    return float(cell)


def _is_number(cell: str) -> bool:
    try:
        _as_number(cell)
    except ValueError:
        return False
    return not _is_missing(cell)


def _ts(path: Path, reading: Reading) -> Series:
    """A line for a sequence: features with a colon between them, values with commas, the label or target at the end."""
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    if reading.every_step:
        raise WenetError(f"{path}: a .ts file has no targets for each step; save x and y with numpy.savez, as .npz")
    sequences, labels = [], []
    labelled = _header_of_ts(path, lines, reading)
    for number, line in lines:
        if not line.strip():
            continue
        features = line.strip().split(":")
        if labelled:
            labels.append(features.pop().strip())
            if labels[-1] in UNKNOWN_CELLS:
                raise WenetError(f"{path} line {number} has no label; leave its sequence out")
        rows = [[_ts_value(path, number, cell) for cell in feature.split(",")] for feature in features]
        if not rows or len({len(row) for row in rows}) > 1:
            raise WenetError(f"{path} line {number}: features of different length; each step needs all of them")
        sequences.append(np.array(rows).T)  # [T, F]
    if not sequences:
        raise WenetError(f"{path} has no sequences after @data")
    if not reading.targeted:
        return series_of(sequences, False, name=path.stem)
    return replace(series_of((sequences, _targets_of(labels)), True), name=path.stem)


def _header_of_ts(path: Path, lines: Iterator[tuple[int, str]], reading: Reading) -> bool:
    """Read the lines up to @data; whether the data's lines end in a label or target."""
    labelled = None
    for _, line in lines:
        key, *values = line.lower().split() or [""]
        has_it = values[:1] == ["true"]
        if key == "@timestamps" and has_it:
            raise WenetError(f"{path} has time stamps with each value; write it without them")
        if key in ("@classlabel", "@targetlabel"):
            labelled = labelled or has_it
        if key == "@data":
            break
    if reading.targeted and labelled is False:
        raise WenetError(f"{path} has neither labels nor targets, as its header says; only a forecast can do without")
    return reading.targeted if labelled is None else labelled


def _ts_value(path: Path, line: int, cell: str) -> float:
    if _is_missing(cell):
        return float("nan")
    try:
        return _as_number(cell)
    except ValueError:
        raise WenetError(f"{path} line {line}: {cell.strip()!r} is no number") from None


READERS: dict[str, Callable[[Path, Reading], Series]] = {  # by the ending of a file's name
    ".npy": _npy,
    ".npz": _npz,
    ".csv": _table,
    ".tsv": _table,
    ".ts": _ts,
}


ARRAYS, TABLES = (".npy", ".npz"), (".csv", ".tsv")


def is_file_of_series(dataset: str | None) -> bool:
    """Whether a dataset is named like a file of sequences."""
    return dataset is not None and ending_of(dataset) in READERS


def ending_of(file: str | Path) -> str:
    """The ending of a file's name, which may be in capitals, as `READERS` has it."""
    return Path(file).suffix.lower()
