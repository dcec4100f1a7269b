"""Sequences of numbers with their targets, and how a run keeps them."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from wenet.data.sources import SPLITS
from wenet.files import written_whole
from wenet.words import quoted
from wenet_kernels import WenetError

Array = NDArray[Any]
KEPT = "data.safetensors"  # in a run's folder, where its data came as arrays


@dataclass(frozen=True)
class Series:
    """Sequences of different length, one after the other.

    Attributes:
        values: `[steps of all, F]` float64, NaN where a value is missing.
        lengths: steps of each sequence, `[N]`.
        targets: `[N]` or `[N, K]` for a target each, `[steps of all]` or `[steps of all, K]` for one a step; text or
            numbers. None where the sequences themselves are to be continued.
        parts: of each sequence its place in `SPLITS`, `[N]`; None where the parts are still to be drawn.
        columns: names of the features, where they have any.
    """

    name: str
    values: Array
    lengths: Array
    targets: Array | None = None
    parts: Array | None = None
    columns: tuple[str, ...] = ()

    @property
    def features(self) -> int:
        return int(self.values.shape[1])

    @property
    def starts(self) -> Array:
        """The first step of each sequence among those of all, `[N]`."""
        return np.cumsum(self.lengths) - self.lengths

    def feature(self, place: int) -> str:
        """A feature in words, for messages."""
        return f"feature {self.columns[place]!r}" if self.columns else f"feature {place + 1}"

    def place(self, step: int) -> str:
        """The sequence and its step of a step among those of all, counted from 1 as in a table."""
        number = int(np.searchsorted(np.cumsum(self.lengths), step, side="right"))
        return f"sequence {number + 1}, step {step - int(self.starts[number]) + 1}"

    def fingerprint(self) -> str:
        """sha256 of all numbers and labels."""
        digest = hashlib.sha256()
        for array in (self.values, self.lengths, self.targets, self.parts):
            if array is not None:
                text = array.dtype.kind in "UO"
                array = array.astype(np.int64) if array.dtype.kind == "b" else array  # as earlier versions had them
                digest.update(json.dumps(array.tolist()).encode() if text else np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write a file that `load_series` reads."""
        arrays = {"values": self.values, "lengths": self.lengths, "parts": self.parts}
        texts: dict[str, str] = {"name": self.name, "columns": json.dumps(self.columns)}
        if self.targets is not None and self.targets.dtype.kind == "U":
            texts["targets"] = json.dumps(self.targets.tolist())
        else:
            arrays["targets"] = self.targets
        kept = {name: np.ascontiguousarray(array) for name, array in arrays.items() if array is not None}
        try:
            with written_whole(path) as partial:
                partial.touch()
                mode = partial.stat().st_mode  # by the umask; the library itself lets only the owner read it
                save_file(kept, partial, texts)
                partial.chmod(mode)
        except (OSError, SafetensorError) as error:
            raise WenetError(f"cannot write {path}: {error}; make room for the arrays of this run") from None


def load_series(path: Path) -> Series:
    """Read what `Series.save` wrote.

    Raises:
        WenetError: the file is gone or damaged.
    """
    try:
        with safe_open(path, "np") as file:
            texts = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        targets = arrays.get("targets")
        if "targets" in texts:
            targets = np.array(json.loads(texts["targets"]))
        columns = tuple(json.loads(texts["columns"]))
        return Series(texts["name"], arrays["values"], arrays["lengths"], targets, arrays.get("parts"), columns)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise WenetError(f"{path} cannot be read ({error}); begin a new run with the arrays") from None


def joined_parts(parts: Mapping[str, Series], name: str) -> Series:
    """One `Series` from the parts of a given split.

    Raises:
        WenetError: parts differ in their features or in the shape of their targets.
    """
    named = [(SPLITS.index(part), series) for part, series in parts.items()]
    shapes = {
        (each.features, None if each.targets is None else (each.targets.shape[1:], each.targets.dtype.kind in "UO"))
        for _, each in named
    }
    if len(shapes) > 1:
        sizes = ", ".join(f"{part} {each.features}" for part, each in parts.items())
        raise WenetError(f"{name}: the parts differ in their number of features ({sizes}) or in their targets")
    first = named[0][1]
    columns = next((each.columns for each in parts.values() if each.columns), ())
    for part, each in parts.items():
        check_columns(each.columns, columns, f"{name}, {part}", "the first part that has names")
    return replace(
        first,
        name=name,
        columns=columns,
        values=np.concatenate([each.values for _, each in named]),
        lengths=np.concatenate([each.lengths for _, each in named]),
        targets=None if first.targets is None else np.concatenate([each.targets for _, each in named]),
        parts=np.concatenate([np.full(len(each.lengths), place, np.int64) for place, each in named]),
    )


def check_columns(found: tuple[str, ...], wanted: tuple[str, ...], name: str, where: str) -> None:
    """Refuse features whose names, if they have any, are others or in another order than `where`.

    Raises:
        WenetError: a name differs.
    """
    if any(are_counted(names, first) for names in (found, wanted) for first in (0, 1)):
        return  # as in a data frame, or a table, without names
    for number, (one, other) in enumerate(zip(found, wanted, strict=False), start=1):
        if one != other:
            raise WenetError(f"{name}: column {number} is {one!r}, and {other!r} in {where}; put columns in that order")


def place_of(column: str, names: Sequence[str], name: str, setting: str) -> int:
    """The place of a column among its table's.

    Raises:
        WenetError: there is none of this name, or several.
    """
    if column not in names:
        some = names if len(names) <= 8 else [*names[:7], f"... {names[-1]}"]
        raise WenetError(f"{name} has no column {column!r}; {setting} must be among {', '.join(some)}")
    if list(names).count(column) > 1:
        raise WenetError(f"{name}: {setting} names {column!r}, and several columns have that name; rename one")
    return names.index(column)


def target_places(target: str, names: Sequence[str], name: str) -> list[int]:
    """The places of the columns that a target names, with commas between them.

    A name that has a comma itself stands in quotes, as in a table, but where it is the only one.

    Raises:
        WenetError: as in `place_of`; a column is named twice.
    """
    try:
        wanted = [target] if target in names else next(csv.reader([target], skipinitialspace=True), []) or [""]
    except csv.Error:
        raise WenetError(f"--target {quoted(target)} names no columns; write names with commas between them") from None
    places = [place_of(column.strip(), names, name, "--target") for column in wanted]
    if len(set(places)) < len(places):
        raise WenetError(f"{name}: --target {target} names a column twice")
    return places


def are_counted(names: Sequence[str], first: int = 0) -> bool:
    """Whether these are the numbers from the first on."""
    return [name.strip() for name in names] == [str(first + place) for place in range(len(names))]
