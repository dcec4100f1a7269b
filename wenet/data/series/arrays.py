"""Sequences of numbers from arrays, tensors, data frames and data sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
import torch

from wenet.data.series.series import Array, Series, check_columns, joined_parts
from wenet.data.sources import SPLITS
from wenet_kernels import WenetError

LAYOUTS = ("ntf", "nft")  # of an array of sequences: time before features, or behind them as aeon has it


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
    if not targeted:
        given = sequences_alone(given, name)
        if _is_pair(given):
            raise WenetError(f"{name}: a forecast takes sequences alone, x and not (x, y)")
        return _untargeted(given, layout, name)
    given = _of_dataset(given, targeted) if _is_dataset(given) else given
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise WenetError(f"{name}: give sequences and targets as a pair (x, y), not {type(given).__name__} alone")
    x, y = (sequences_alone(each, name) for each in given)
    values, lengths, columns = _sequences(x, layout, name)
    targets = _step_targets(y, lengths, name) if every_step else _targets(y, lengths, name)
    return Series(name, values, lengths, targets, columns=columns)


def inputs_of(given: Any, layout: str = "ntf", name: str = "x") -> Series:
    """Sequences alone, in the forms that x has in a pair (x, y), or a data set of them.

    Raises:
        WenetError: as in `series_of`.
    """
    values, lengths, columns = _sequences(sequences_alone(given, name), layout, name)
    return Series(name, values, lengths, columns=columns)


def sequences_alone(given: Any, name: str = "x") -> Any:
    """What is given as an array or a list: a data set as the list of its sequences, and x of a pair (x, None).

    Raises:
        WenetError: it is a dictionary, or a data set of pairs or without a length.
    """
    if isinstance(given, Mapping):
        raise WenetError(f"{name} is a dictionary; give the sequences of one part, such as data['test']")
    if isinstance(given, tuple) and len(given) == 2 and given[1] is None:
        given = given[0]
    if type(given) in (list, tuple):
        return type(given)(_of_dataset(each, False) if _is_dataset(each) else each for each in given)
    return _of_dataset(given, False) if _is_dataset(given) else given


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
    """Whether these are sequences by number, which end at their length and perhaps with no IndexError.

    NumPy reads such an object until it raises one.
    """
    if isinstance(given, torch.utils.data.Dataset | torch.utils.data.DataLoader):
        return True
    kind = type(given)
    return hasattr(kind, "__getitem__") and not (hasattr(kind, "__iter__") or hasattr(kind, "__array__"))


def _of_dataset(given: Any, targeted: bool) -> Any:
    """The pairs of a data set, or its sequences where these have no targets.

    A loader's batches and order do not matter, as ours are drawn from the seed; but what it leaves out or changes does.
    """
    dataset = _loaded_by(given) if isinstance(given, torch.utils.data.DataLoader) else given
    if not hasattr(dataset, "__len__") or isinstance(dataset, torch.utils.data.IterableDataset):
        raise WenetError("a data set must have a length and give its sequences by number; put them in a list")
    items = [dataset[number] for number in range(len(dataset))]
    if targeted:
        if not all(isinstance(item, tuple | list) and len(item) == 2 for item in items):
            raise WenetError("a data set must give pairs (x, y)")
        return [x for x, _ in items], [y for _, y in items]
    if any(isinstance(item, tuple) and len(item) > 1 for item in items):
        raise WenetError("give a data set of sequences alone, x and not (x, y)")
    return [item[0] if isinstance(item, tuple) else item for item in items]  # a TensorDataset gives (x,)


def _loaded_by(loader: torch.utils.data.DataLoader[Any]) -> torch.utils.data.Dataset[Any]:
    """The data set of a loader that gives all of it as it is."""
    dataset, batches = loader.dataset, loader.batch_sampler
    if isinstance(dataset, torch.utils.data.IterableDataset):
        return dataset
    sampler = getattr(batches, "sampler", None) if batches is not None else loader.sampler
    usual_order = isinstance(sampler, torch.utils.data.SequentialSampler | torch.utils.data.RandomSampler)
    if not usual_order or getattr(sampler, "replacement", False) or len(sampler) != len(dataset):  # type: ignore[arg-type]
        raise WenetError("a loader's own sampler is not used; give a data set of what it draws, such as a Subset")
    if loader.collate_fn not in (torch.utils.data.default_collate, torch.utils.data.default_convert):
        raise WenetError("a loader's collate_fn is not used; give loader.dataset, if its pairs are what is meant")
    return dataset


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
    if not is_list(given):
        array = _numbers(given, name)
        given = _one_sequence(array, layout) if array.ndim in (1, 2) else given
    elif all(np.isscalar(each) for each in given):
        given = _one_sequence(_numbers(given, name), layout)
    values, lengths, of_each = _sequences(given, layout, name)
    return Series(name, values, lengths, columns=columns or of_each)


def _one_sequence(array: Array, layout: str) -> Array:
    """A single sequence `[T]`, `[T, F]` or in the layout nft `[F, T]` as several."""
    if array.ndim == 1:
        array = array[None] if layout == "nft" else array[:, None]
    return array[None]


def _sequences(given: Any, layout: str, name: str) -> tuple[Array, Array, tuple[str, ...]]:
    """All steps `[steps of all, F]`, the lengths `[N]`, and names of the features."""
    if isinstance(given, torch.nn.utils.rnn.PackedSequence):
        raise WenetError("a PackedSequence has its steps in turns; give the sequences as a list")
    if not is_list(given):
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
    if not is_list(given) and np.ndim(given) == 0:
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
    if array.dtype == object and array.size:
        each = array.ravel().tolist()
        if all(isinstance(one, bool | np.bool_) for one in each):
            array = array.astype(bool)
        elif all(map(_is_number, each)):
            array = array.astype(np.float64)
    if array.dtype.kind in "fiub":
        if array.dtype.kind != "f" and array.size and int(array.max()) > np.iinfo(np.int64).max:
            raise WenetError(f"{name}: a target of {int(array.max())} is too large for a whole number")
        array = array if array.dtype.kind == "b" else array.astype(np.float64 if array.dtype.kind == "f" else np.int64)
        bad = ~np.isfinite(array.reshape(len(array), -1)).all(1)
        if bad.any():
            raise WenetError(f"{name}: target {int(bad.argmax()) + 1} is missing or not finite; leave its sequence out")
        return array
    if array.dtype.kind == "c":
        raise WenetError(f"{name}: targets are complex numbers; give their parts as columns")
    if any(is_missing(one) for one in array.ravel().tolist()):
        raise WenetError(f"{name}: a label is missing; leave its sequence out")
    try:
        return array.astype(str)
    except UnicodeDecodeError:
        raise WenetError(f"{name}: labels are bytes that are no ASCII; decode them first") from None


def _is_number(one: Any) -> bool:
    return isinstance(one, Real | Decimal) and not isinstance(one, bool)


def is_missing(label: Any) -> bool:
    """Whether a label is None, or not equal to itself, as NaN and pandas' NA."""
    return label is None or type(label).__name__ in ("NAType", "NaTType") or bool(label != label)


def _are_missing(array: Array) -> Array:
    """Where an array of objects has None, or NA of pandas."""
    return np.array([is_missing(one) for one in array.ravel().tolist()], bool).reshape(array.shape)


def is_list(given: Any) -> bool:
    """Whether sequences come one by one: a list, or an array of arrays."""
    if isinstance(given, np.ndarray):
        return bool(given.dtype == object and given.ndim == 1 and len(given) and np.ndim(given[0]))
    return isinstance(given, list | tuple)


def column_names(given: Any) -> tuple[str, ...]:
    """Names of a data frame's columns."""
    columns = getattr(given, "columns", None)
    return () if columns is None else tuple(str(column).strip() for column in columns)


def _feature_names(given: Any, layout: str) -> tuple[str, ...]:
    """Names of the features: a data frame's columns, but where these are steps."""
    return () if layout == "nft" else column_names(given)


def _plain(given: Any) -> Array:
    if isinstance(given, torch.Tensor):
        return _of_tensor(given)
    if isinstance(given, np.ma.MaskedArray) and np.ma.is_masked(given):
        array = np.array(given.data, dtype=object)
        array[np.ma.getmaskarray(given)] = None
        return array
    if isinstance(given, Sequence) and len(given) and isinstance(given[0], torch.Tensor):
        given = [_of_tensor(one) for one in given]
    return np.asarray(given)


def _of_tensor(tensor: torch.Tensor) -> Array:
    """A tensor of any device, layout and type as an array."""
    if tensor.is_meta:
        raise WenetError("a tensor on the device meta has a shape but no values; give one that has")
    if tensor.is_nested:
        raise WenetError("a nested tensor has no shape; give its sequences as a list, as by unbind()")
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
    columns = column_names(given)
    if columns and np.asarray(given).dtype.kind in "mM":
        return f"column {columns[0]!r} has dates"
    for number, column in enumerate(columns):
        values = np.asarray(given)[:, number]
        other = next((each for each in values if not _all_numbers(np.array([each]))), None)
        if other is not None:
            return f"column {column!r} has {'text' if isinstance(other, str) else f'values such as {other}'}"
    flat: Iterable[Any] = np.asarray(given, dtype=object).ravel().tolist() if not columns else ()
    return next((f"{one!r} is no number" for one in flat if isinstance(one, str)), "x is no array of numbers")


def _all_numbers(column: Array) -> bool:
    try:
        column.astype(np.float64)
    except (TypeError, ValueError):
        return False
    return True
