"""Sequences of numbers with their targets: what arrays, data sets and files become, and how a run keeps them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from wenet.data.sources import SPLITS
from wenet.files import written_whole
from wenet_kernels import WenetError

Array = NDArray[Any]
LAYOUTS = ("ntf", "nft")  # of an array of sequences: time before features, or behind them as aeon has it
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


def series_of(
    given: Any, targeted: bool, layout: str = "ntf", name: str = "arrays", every_step: bool = False
) -> Series:
    """Sequences from Python objects.

    Args:
        given: `(x, y)`; a dictionary of such pairs by "train", "test" and perhaps "valid"; a `torch.utils.data`
            Dataset of pairs, or a DataLoader of one; or, of sequences that are to be continued, x alone. x is an array
            or tensor `[N, T, F]` or `[N, T]`, or a list of arrays `[T, F]` or `[T]` of different length. Without
            targets, `[T]` and `[T, F]` are one sequence.
        targeted: whether there are targets.
        layout: "ntf", or "nft" for arrays `[N, F, T]` and lists of `[F, T]`.
        every_step: whether there is a target for each step, and not for each sequence.

    Raises:
        WenetError: shapes disagree, something is no number, or a sequence is empty.
    """
    if isinstance(given, Series):
        return given
    if isinstance(given, Mapping):
        return _of_parts(given, targeted, layout, name, every_step)
    if _is_dataset(given):
        given = _of_dataset(given)
    if not targeted:
        if isinstance(given, tuple) and len(given) == 2 and given[1] is None:
            given = given[0]
        if _is_pair(given):
            raise WenetError(f"{name}: a forecast takes sequences alone, x and not (x, y)")
        return _untargeted(given, layout, name)
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise WenetError(f"{name}: give sequences and targets as a pair (x, y), not {type(given).__name__} alone")
    values, lengths, columns = _sequences(given[0], layout, name)
    targets = _step_targets(given[1], lengths, name) if every_step else _targets(given[1], lengths, name)
    return Series(name, values, lengths, targets, columns=columns)


def inputs_of(given: Any, layout: str = "ntf", name: str = "x") -> Series:
    """Sequences alone, in the forms that x has in a pair (x, y).

    Raises:
        WenetError: as in `series_of`.
    """
    values, lengths, columns = _sequences(given, layout, name)
    return Series(name, values, lengths, columns=columns)


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


def _of_parts(given: Mapping[str, Any], targeted: bool, layout: str, name: str, every_step: bool) -> Series:
    if not {"train", "test"} <= set(given) <= set(SPLITS):
        found = ", ".join(map(str, given)) or "nothing"
        raise WenetError(f"{name}: parts are named train, test and perhaps valid; here are {found}")
    return joined_parts(
        {
            part: series_of(given[part], targeted, layout, f"{name}, {part}", every_step)
            for part in SPLITS
            if part in given
        },
        name,
    )


def _is_dataset(given: Any) -> bool:
    dataset = getattr(given, "dataset", given)
    return isinstance(dataset, torch.utils.data.Dataset)


def _of_dataset(given: Any) -> tuple[list[Any], list[Any]]:
    """The pairs of a data set; a loader's batches and order do not matter, as ours are drawn from the seed."""
    dataset = getattr(given, "dataset", given)
    try:
        pairs = [dataset[number] for number in range(len(dataset))]
        return [x for x, _ in pairs], [y for _, y in pairs]
    except (TypeError, ValueError):
        raise WenetError("a data set must have a length, and give pairs (x, y)") from None


def _is_pair(given: Any) -> bool:
    """Whether these are sequences and their targets, and not two sequences."""
    if not isinstance(given, tuple) or len(given) != 2:
        return False
    first, second = map(_dimensions, given)
    return first == 3 or first != second


def _dimensions(given: Any) -> int:
    """1 for a list of numbers, 2 for a list of sequences of different length."""
    is_list = isinstance(given, list | tuple)
    return 1 + any(isinstance(one, list | tuple) or np.ndim(one) > 0 for one in given) if is_list else np.ndim(given)


def _untargeted(given: Any, layout: str, name: str) -> Series:
    """Sequences to continue: one of them as `[T]` or `[T, F]`, several as `[N, T, F]` or as a list."""
    columns = _feature_names(given, layout)
    if not _is_list(given):
        array = _numbers(given, name)
        if array.ndim in (1, 2):
            given = array[None, :, None] if array.ndim == 1 else array[None]
    elif all(np.isscalar(each) for each in given):
        given = _numbers(given, name)[None, :, None]
    values, lengths, of_each = _sequences(given, layout, name)
    return Series(name, values, lengths, columns=columns or of_each)


def _sequences(given: Any, layout: str, name: str) -> tuple[Array, Array, tuple[str, ...]]:
    """All steps `[steps of all, F]`, the lengths `[N]`, and names of the features."""
    if not _is_list(given):
        array = _numbers(given, name)
        if array.ndim not in (2, 3):
            raise WenetError(f"{name}: x must have the shape [N, T, F] or [N, T], not {list(array.shape)}")
        array = array[..., None] if array.ndim == 2 else array.swapaxes(1, 2) if layout == "nft" else array
        count, steps, features = array.shape
        if not array.size:
            raise WenetError(f"{name}: x has the shape {list(array.shape)}, and so no values")
        return array.reshape(count * steps, features), np.full(count, steps, np.int64), ()
    if not len(given):
        raise WenetError(f"{name}: there are no sequences")
    each = [_sequence(one, layout, f"{name}, sequence {number}") for number, one in enumerate(given, start=1)]
    features = each[0].shape[1]
    names = [_feature_names(frame, layout) for frame in given]
    columns = next(filter(None, names), ())
    for number, (one, own) in enumerate(zip(each, names, strict=True), start=1):
        if one.shape[1] != features:
            found = f"sequence {number} has {one.shape[1]} features, sequence 1 has {features}"
            raise WenetError(f"{name}: {found}; all must have the same, in the layout {layout}")
        check_columns(own, columns, f"{name}, sequence {number}", "the first that has names")
    return np.concatenate(each), np.array([len(one) for one in each], np.int64), columns


def _sequence(given: Any, layout: str, name: str) -> Array:
    array = _numbers(given, name)
    if array.ndim not in (1, 2):
        raise WenetError(f"{name} must have the shape [T, F] or [T], not {list(array.shape)}")
    array = array[:, None] if array.ndim == 1 else array.T if layout == "nft" else array
    if not array.size:
        raise WenetError(f"{name} is empty; leave it out")
    return array


def _targets(given: Any, lengths: Array, name: str) -> Array:
    """A target of each sequence, `[N]` or `[N, K]`."""
    array = _one_for_each(_plain(given), lengths, name)
    if array.ndim > 2:
        raise WenetError(f"{name}: targets must have the shape [N] or [N, K], not {list(array.shape)}")
    return _checked_targets(array, name)


def _step_targets(given: Any, lengths: Array, name: str) -> Array:
    """Targets of all steps, `[steps of all]` or `[steps of all, K]`."""
    each = [_plain(one) for one in _one_for_each(given, lengths, name)]
    for number, (one, length) in enumerate(zip(each, lengths, strict=True), start=1):
        if one.ndim not in (1, 2) or len(one) != length:
            shape = list(one.shape)
            raise WenetError(f"{name}, sequence {number}: {length} steps, but targets of the shape {shape}")
    if len({one.shape[1:] for one in each}) > 1:
        raise WenetError(f"{name}: targets of some sequences have other columns than those of others")
    return _checked_targets(np.concatenate(each), name)


def _one_for_each(given: Any, lengths: Array, name: str) -> Any:
    if not _is_list(given) and np.ndim(given) == 0:
        what = given.item() if isinstance(given, np.ndarray) else given
        raise WenetError(f"{name}: there are no targets, only {what!r}")
    check_counts(len(lengths), len(given), name)
    return given


def check_counts(sequences: int, targets: int, name: str) -> None:
    """Refuse another number of targets than of sequences.

    Raises:
        WenetError: the numbers differ.
    """
    if targets != sequences:
        raise WenetError(f"{name}: {sequences:,} sequences but {targets:,} targets; there must be one for each")


def _checked_targets(array: Array, name: str) -> Array:
    """Numbers as float64 or int64, labels as text."""
    if array.dtype == object and array.size and all(map(_is_number, array.ravel().tolist())):
        array = array.astype(np.float64)
    if array.dtype.kind in "fiub":
        if array.dtype.kind != "f" and array.size and int(array.max()) > np.iinfo(np.int64).max:
            raise WenetError(f"{name}: a target of {int(array.max())} is too large for a whole number")
        array = array.astype(np.float64 if array.dtype.kind == "f" else np.int64)
        bad = ~np.isfinite(array.reshape(len(array), -1)).all(1)
        if bad.any():
            raise WenetError(f"{name}: target {int(bad.argmax()) + 1} is missing or not finite; leave its sequence out")
        return array
    if array.dtype.kind == "c":
        raise WenetError(f"{name}: targets are complex numbers; give their parts as columns")
    if any(is_missing(one) for one in array.ravel().tolist()):
        raise WenetError(f"{name}: a label is missing; leave its sequence out")
    return array.astype(str)


def _is_number(one: Any) -> bool:
    return isinstance(one, Real | Decimal) and not isinstance(one, bool)


def is_missing(label: Any) -> bool:
    """Whether a label is None, or not equal to itself, as NaN and pandas' NA."""
    return label is None or type(label).__name__ in ("NAType", "NaTType") or bool(label != label)


def _are_missing(array: Array) -> Array:
    """Where an array of objects has None, or NA of pandas."""
    return np.array([is_missing(one) for one in array.ravel().tolist()], bool).reshape(array.shape)


def _is_list(given: Any) -> bool:
    """Whether sequences come one by one: a list, or an array of arrays."""
    if isinstance(given, np.ndarray):
        return bool(given.dtype == object and given.ndim == 1 and len(given) and np.ndim(given[0]))
    return isinstance(given, list | tuple)


def _column_names(given: Any) -> tuple[str, ...]:
    """Names of a data frame's columns."""
    columns = getattr(given, "columns", None)
    return () if columns is None else tuple(str(column).strip() for column in columns)


def _feature_names(given: Any, layout: str) -> tuple[str, ...]:
    """Names of the features: a data frame's columns, but where these are steps."""
    return () if layout == "nft" else _column_names(given)


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


def are_counted(names: Sequence[str], first: int = 0) -> bool:
    """Whether these are the numbers from the first on."""
    return [name.strip() for name in names] == [str(first + place) for place in range(len(names))]


def _plain(given: Any) -> Array:
    if isinstance(given, torch.Tensor):
        return _of_tensor(given)
    if isinstance(given, Sequence) and len(given) and isinstance(given[0], torch.Tensor):
        given = [_of_tensor(one) for one in given]
    return np.asarray(given)


def _of_tensor(tensor: torch.Tensor) -> Array:
    """A tensor of any device, layout and type as an array."""
    if tensor.is_meta:
        raise WenetError("a tensor on the device meta has a shape but no values; give one that has")
    dense = tensor.detach().cpu().to_dense() if tensor.layout is not torch.strided else tensor.detach().cpu()
    try:
        return np.asarray(dense.numpy())
    except TypeError:  # a type that NumPy lacks, such as bfloat16
        return np.asarray(dense.to(torch.float32).numpy())


def _numbers(given: Any, name: str) -> Array:
    """As float64, which holds times and prices of today without rounding."""
    try:
        array = _plain(given)
        if array.dtype.kind in "USmMc":
            raise ValueError
        if array.dtype == object:  # as of a data frame with columns that may miss values
            array = np.where(_are_missing(array), np.nan, array)
        array = array.astype(np.float64)
    except (TypeError, ValueError):
        raise WenetError(f"{name}: {_not_a_number(given)}; there must be numbers of one shape") from None
    return array


def _not_a_number(given: Any) -> str:
    """What in an array is no number, in words."""
    columns = _column_names(given)
    for number, column in enumerate(columns):
        if np.asarray(given)[:, number].dtype.kind not in "fiub" and not _all_numbers(np.asarray(given)[:, number]):
            return f"column {column!r} has text"
    flat: Iterable[Any] = np.asarray(given, dtype=object).ravel().tolist() if not columns else ()
    return next((f"{one!r} is no number" for one in flat if isinstance(one, str)), "x is no array of numbers")


def _all_numbers(column: Array) -> bool:
    try:
        column.astype(np.float64)
    except (TypeError, ValueError):
        return False
    return True
