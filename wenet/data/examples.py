"""Examples of sequences as a model reads them: divided into parts, standardised, and gathered into batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from wenet.data.series import Array, Series
from wenet.data.sources import SPLITS
from wenet_kernels import WenetError

ROUNDING = 1e-12  # a spread that is no more than this share of the mean counts as none
MOST_CLASS = 2**53  # whole numbers up to it are exact as floating-point numbers
DRIFT = 0.1  # of the validation part's values outside the range of training, from which on a feature counts as drifting
SPREAD_WINDOWS = 2000  # at most, from which the spread of a drifting feature within a window follows
NOTHING = -100  # in place of a class behind the end of a sequence, as `torch.nn.CrossEntropyLoss` has it


@dataclass(frozen=True)
class Examples:
    """The examples of one part: stretches of steps, and what is to be predicted from each.

    Attributes:
        steps: all steps of all sequences, standardised, `[steps of all, I]`. The last feature is 1: the input of a
            bias, and in a batch 0 behind the end of a sequence.
        starts, lengths: the stretch of each example, `[N]`.
        targets: `[N]` classes or `[N, K]` numbers; with `every_step` those of all steps.
        relative: the features of which an example has only the differences from its first step.
        of_targets: of each target of a forecast its feature, `[K]`, so that it is relative where the feature is.
    """

    steps: Tensor
    starts: Tensor
    lengths: Tensor
    targets: Tensor
    every_step: bool = False
    relative: tuple[int, ...] = ()
    of_targets: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.starts)

    def to(self, device: torch.device) -> Examples:
        tensors = {name: getattr(self, name).to(device) for name in ("steps", "starts", "lengths", "targets")}
        return replace(self, **tensors)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs `[T, M, I]` of some examples, zero behind the end of each, and their targets.

        Args:
            rows: their places, `[M]`.
        """
        starts, lengths = self.starts[rows], self.lengths[rows]
        time = torch.arange(int(lengths.max()), device=starts.device).unsqueeze(1)  # [T, 1]
        there = time < lengths  # [T, M]
        places = (starts + time).where(there, 0)
        inputs = self.steps[places] * there.unsqueeze(-1)
        if self.relative:
            first = first_values(inputs[0], self.relative)  # [M, I]
            return inputs - first, self.targets[rows] - first[:, list(self.of_targets)]
        if not self.every_step:
            return inputs, self.targets[rows]
        targets = self.targets[places]  # [T, M] or [T, M, K]
        if targets.dim() == 2:
            return inputs, targets.where(there, NOTHING)
        return inputs, targets * there.unsqueeze(-1)


def first_values(step: Tensor, features: Sequence[int]) -> Tensor:
    """The first step `[M, I]` of some features, and 0 for the others."""
    chosen = torch.zeros(step.shape[-1], dtype=torch.bool, device=step.device)
    chosen[list(features)] = True
    return step.where(chosen, 0)


@dataclass(frozen=True)
class Batches:
    """A part of the data in batches of `rows` examples; in training in another order in each pass."""

    data: SeriesData
    examples: Examples
    rows: int
    seed: int | None = None  # of the order; None where the order stays

    def __len__(self) -> int:
        """Batches in a pass. One of training is full, so the examples that are left over differ from pass to pass."""
        count = len(self.examples)
        return -(-count // self.rows) if self.seed is None else count // self.rows

    def to(self, device: torch.device) -> Batches:
        return replace(self, examples=self.examples.to(device))

    def first(self, count: int) -> Batches:
        """Only the first batches, of data whose order stays."""
        examples, end = self.examples, count * self.rows
        targets = examples.targets if examples.every_step else examples.targets[:end]
        some = replace(examples, starts=examples.starts[:end], lengths=examples.lengths[:end], targets=targets)
        return replace(self, examples=some)

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a batch, counted through all passes."""
        in_pass, place = divmod(number, len(self))
        rows = torch.arange(len(self.examples))
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + in_pass)
            rows = torch.randperm(len(self.examples), generator=generator)
        own = rows[place * self.rows : (place + 1) * self.rows]
        return self.examples.batch(own.to(self.examples.starts.device))


@dataclass(frozen=True)
class Scaling:
    """Standardisation by mean and standard deviation of the training part, in double precision.

    Attributes:
        shift, scale: of the features, `[F]`.
        target_shift, target_scale: of the targets, `[K]`; empty for classes.
        marked: whether a feature for each says where a value is missing, and zero stands in its place.
        relative: features that drift, of which a forecast reads the differences from the first step that it sees.
    """

    shift: Tensor
    scale: Tensor
    target_shift: Tensor
    target_scale: Tensor
    marked: bool = False
    relative: tuple[int, ...] = ()

    @property
    def inputs(self) -> int:
        """Features of a step as a model reads it, with the one that is 1."""
        return len(self.shift) * (2 if self.marked else 1) + 1

    def steps(self, values: Tensor) -> Tensor:
        """Values `[..., F]` as a model reads them, `[..., I]`, but for rounding."""
        scaled = (values - self.shift) / self.scale
        parts = [scaled, scaled.new_ones(*scaled.shape[:-1], 1)]
        if self.marked:
            missing = values.isnan()
            parts = [scaled.where(~missing, 0), missing.to(scaled), parts[1]]
        return torch.cat(parts, -1)


@dataclass(frozen=True)
class SeriesData:
    """Sequences with targets in three parts, standardised.

    Attributes:
        classes: the labels, sorted; empty where numbers are predicted.
        columns: of forecasts, the places of the features that are predicted.
        window, horizon: steps that a forecast sees, and steps that it predicts; 0 without.
        flat: whether a target is a single number, and not a row of them.
        naive: of forecasts, the mean absolute change of each predicted column from step to step in training, `[C]`.
        fingerprint: sha256 over everything that the parts follow from.
        raw: the sequences as they came.
    """

    name: str
    train: Examples
    valid: Examples
    test: Examples
    scaling: Scaling
    classes: tuple[str | int, ...]
    columns: tuple[int, ...]
    window: int
    horizon: int
    flat: bool
    naive: Tensor
    fingerprint: str
    raw: Series

    @property
    def features(self) -> int:
        return self.raw.features

    @property
    def outputs(self) -> int:
        """Numbers in one prediction."""
        return len(self.classes) or len(self.scaling.target_shift)

    def describe(self) -> str:
        """Describe the size in words."""
        counts = ", ".join(f"{len(getattr(self, part)):,} {word}" for part, word in _WORDS.items())
        what = "windows" if self.window else "sequences"
        lengths = self.train.lengths
        shortest, longest = int(lengths.min()), int(lengths.max())
        steps = f"{longest:,}" if shortest == longest else f"{shortest:,} to {longest:,}"
        predicted = (
            f"; {len(self.classes)} classes"
            if self.classes
            else f"; {self.outputs} number{'s' * (self.outputs != 1)} to predict"
        )
        features = f"{self.features} feature{'s' * (self.features != 1)}"
        return f"{counts} {what} of {steps} steps, {features}{predicted}"


_WORDS = {"train": "training", "valid": "validation", "test": "test"}


@dataclass(frozen=True)
class Preparation:
    """How sequences become examples.

    Attributes:
        kind: "classify", "regress", "forecast" or "label".
        classes: whether targets are classes, and not numbers.
        split: shares of the parts, where they are not given.
        seed: of the split.
        missing: "error", or "mask" to mark missing values by a feature more for each.
        constant: "error", or "keep" to allow features that do not vary in training.
        window, horizon, target: of forecasts; the target names columns, with commas between them.
    """

    kind: str
    classes: bool
    split: tuple[float, float, float]
    seed: int
    missing: str = "error"
    constant: str = "error"
    window: int = 0
    horizon: int = 0
    target: str | None = None


def prepare(series: Series, how: Preparation) -> SeriesData:
    """Divide, standardise and check sequences.

    Raises:
        WenetError: values are missing or infinite, there is one class only, a feature is constant, or a part is empty.
    """
    _check_values(series, how)
    return _forecasts(series, how) if how.kind == "forecast" else _targeted(series, how)


def _targeted(series: Series, how: Preparation) -> SeriesData:
    """A target for each sequence or each step."""
    assert series.targets is not None
    every_step = how.kind == "label"
    series = _with_fitting_targets(series, how)
    parts = _drawn_parts(series, how, stratified=how.kind == "classify")
    scaling = _scaling(series, np.repeat(parts == 0, series.lengths), how)
    targets, classes, scaling = _prepared_targets(series, parts, every_step, how.classes, scaling)
    steps = scaling.steps(torch.from_numpy(series.values)).float()
    starts, lengths = torch.from_numpy(series.starts), torch.from_numpy(series.lengths)
    whole = Examples(steps, starts, lengths, targets, every_step)
    train, valid, test = (_some(whole, np.flatnonzero(parts == part), how.seed, part) for part in range(len(SPLITS)))
    return SeriesData(
        series.name,
        train=train,
        valid=valid,
        test=test,
        scaling=scaling,
        classes=classes,
        columns=(),
        window=0,
        horizon=0,
        flat=series.targets is not None and series.targets.ndim == 1,
        naive=torch.empty(0),
        fingerprint=_fingerprint(series, how),
        raw=series,
    )


def _with_fitting_targets(series: Series, how: Preparation) -> Series:
    """Refuse text where numbers are to be predicted, and fractions where classes are; whole numbers are classes."""
    targets, other = series.targets, "--loss mse" if how.kind == "label" else "--task regress"
    assert targets is not None
    if not how.classes and targets.dtype.kind == "U":
        mend = "leave out --loss" if how.kind == "label" else "say --task classify"
        raise WenetError(f"{series.name}: the targets are text such as {str(targets.flat[0])!r}, no numbers; {mend}")
    if not how.classes:
        return series
    if targets.ndim > 1 and targets.shape[1] != 1:
        raise WenetError(f"{series.name}: one label for each is wanted, but targets have {targets.shape[1]} columns")
    targets = targets.reshape(-1)
    series = replace(series, targets=targets)
    if targets.dtype.kind == "U":
        return series
    if np.abs(targets).max() > MOST_CLASS:
        raise WenetError(
            f"{series.name}: a target such as {targets[np.abs(targets).argmax()]:g} is no class; say {other}"
        )
    fraction = targets != targets.round()
    if fraction.any():
        raise WenetError(f"{series.name}: a target such as {targets[fraction][0]} is no class; say {other}")
    return replace(series, targets=targets.astype(np.int64))


def _prepared_targets(
    series: Series, parts: Array, every_step: bool, classified: bool, scaling: Scaling
) -> tuple[Tensor, tuple[str | int, ...], Scaling]:
    assert series.targets is not None
    of_train = np.repeat(parts == 0, series.lengths) if every_step else parts == 0
    if classified:
        labels, numbers = np.unique(series.targets, return_inverse=True)
        _check_classes(series, [str(label) for label in labels], numbers, parts, every_step)
        return torch.from_numpy(numbers.astype(np.int64)), tuple(labels.tolist()), scaling
    rows = series.targets.reshape(len(series.targets), -1).astype(np.float64)  # [N, K]
    with np.errstate(over="ignore", invalid="ignore"):
        shift, scale = rows[of_train].mean(0), rows[of_train].std(0)
    _refuse_too_large(scale, lambda place: f"{series.name}: target {place + 1}")
    constant = scale <= ROUNDING * np.abs(shift)
    if constant.any():
        raise WenetError(f"{series.name}: target {int(constant.argmax()) + 1} is constant in the training part")
    scaling = replace(scaling, target_shift=torch.from_numpy(shift), target_scale=torch.from_numpy(scale))
    return torch.from_numpy((rows - shift) / scale).float(), (), scaling


def _refuse_too_large(scale: Array, in_words: Callable[[int], str]) -> None:
    """Refuse features or targets whose standard deviation overflows, `in_words` by their place."""
    if not np.isfinite(scale).all():
        where = in_words(int((~np.isfinite(scale)).argmax()))
        raise WenetError(f"{where} has values too large for a standard deviation; divide them first")


def _check_classes(series: Series, labels: list[str], numbers: Array, parts: Array, every_step: bool) -> None:
    if len(labels) < 2:
        raise WenetError(f"{series.name}: all targets are {labels[0]!r}; a classification needs two classes at least")
    of_part = np.repeat(parts, series.lengths) if every_step else parts
    for part, name in enumerate(SPLITS[1:], start=1):
        unseen = np.setdiff1d(numbers[of_part == part], numbers[of_part == 0])
        if len(unseen):
            label = labels[int(unseen[0])]
            raise WenetError(
                f"{series.name}: the {_WORDS[name]} part has the label {label!r}, which the training part lacks"
            )


def _drawn_parts(series: Series, how: Preparation, stratified: bool) -> Array:
    """The part of each sequence, `[N]`, drawn from the seed where it is not given."""
    if series.parts is not None and (series.parts == 1).any():
        return series.parts
    count = len(series.lengths)
    free = np.arange(count) if series.parts is None else np.flatnonzero(series.parts == 0)
    parts = np.zeros(count, np.int64) if series.parts is None else series.parts.copy()
    train, valid, test = how.split
    shares = (valid, test) if series.parts is None else (valid / (train + valid), 0.0)
    generator = np.random.default_rng(how.seed)
    labels = series.targets if stratified and series.targets is not None else np.zeros(count)
    for label in np.unique(labels[free]):
        own = generator.permutation(free[labels[free] == label])
        needed = 1 + sum(share > 0 for share in shares)
        if len(own) < needed and stratified:
            raise WenetError(
                f"{series.name}: too few sequences with the label {str(label)!r}, {len(own)}; a split needs at least "
                f"{needed}, one for each part"
            )
        ends = [max(1, round(share * len(own))) if share > 0 else 0 for share in shares]
        parts[own[: ends[0]]] = 1
        parts[own[ends[0] : ends[0] + ends[1]]] = 2
    return parts


def _some(examples: Examples, rows: Array, seed: int, part: int) -> Examples:
    """Examples of a part. Those of validation are shuffled, so that the first of them stand for all."""
    if not len(rows):
        raise WenetError(f"the {_WORDS[SPLITS[part]]} part is empty; bring more sequences, or change --split")
    if part == 1:
        rows = np.random.default_rng(seed).permutation(rows)
    own = torch.from_numpy(rows)
    targets = examples.targets if examples.every_step else examples.targets[own]
    return replace(examples, starts=examples.starts[own], lengths=examples.lengths[own], targets=targets)


def _forecasts(series: Series, how: Preparation) -> SeriesData:
    """All windows of the sequences, each with the steps that follow it.

    A sequence is divided in time. What a window of validation or test is to predict lies wholly in its part; what it
    sees may begin before. Features that drift are read relative to the first step of a window. Where a value from which
    a forecast counts is missing, there is no window.
    """
    if how.window + how.horizon > series.lengths.max():
        raise _no_window(series, how, SPLITS[0])
    columns = _forecast_columns(series, how)
    ends = _ends_in_time(series, how)  # [N, 3]
    in_train = np.concatenate([np.arange(length) < end for length, end in zip(series.lengths, ends[:, 0], strict=True)])
    scaling = _for_drift(_scaling(series, in_train, how), series, ends, how)
    whole = scaling.steps(torch.from_numpy(series.values)).float()
    picked = series.values[:, columns]
    shift, scale = scaling.shift[list(columns)], scaling.scale[list(columns)]
    scaling = replace(scaling, target_shift=shift.repeat(how.horizon), target_scale=scale.repeat(how.horizon))
    ahead = (picked - shift.numpy()) / scale.numpy()  # [steps of all, C]
    train, valid, test = (
        _windows(series, how, whole, ahead, columns, scaling.relative, ends, part) for part in range(len(SPLITS))
    )
    changes = np.abs(np.diff(picked, axis=0))[(in_train[1:] & in_train[:-1]) & ~_begins(series)[1:]]
    return SeriesData(
        series.name,
        train=train,
        valid=valid,
        test=test,
        scaling=scaling,
        classes=(),
        columns=columns,
        window=how.window,
        horizon=how.horizon,
        flat=False,
        naive=torch.from_numpy(np.nanmean(changes, 0)),
        fingerprint=_fingerprint(series, how),
        raw=series,
    )


def _windows(
    series: Series,
    how: Preparation,
    whole: Tensor,
    ahead: Array,
    columns: tuple[int, ...],
    relative: tuple[int, ...],
    ends: Array,
    part: int,
) -> Examples:
    """All windows of a part from whose known values a forecast counts.

    Args:
        whole: all steps as a model reads them, `[steps of all, I]`.
        ahead: of all steps what is predicted, standardised, `[steps of all, C]`.
        columns, relative: as in `SeriesData` and `Scaling`.
        ends: as `_ends_in_time` gives them.
    """
    starts = _window_starts(series, ends, part, how)
    steps = starts[:, None] + how.window + np.arange(how.horizon)  # [N, h]
    targets = ahead[steps].reshape(len(starts), how.horizon * len(columns))
    known = ~np.isnan(targets).any(1) & _counted_from(series.values, starts, how.window, columns, relative)
    if not known.any():
        raise _no_window(series, how, SPLITS[part])
    own = Examples(
        whole,
        torch.from_numpy(starts[known]),
        torch.full((int(known.sum()),), how.window),
        torch.from_numpy(targets[known]).float(),
        relative=relative,
        of_targets=columns * how.horizon,
    )
    return _some(own, np.arange(len(own)), how.seed, part)


def _for_drift(scaling: Scaling, series: Series, ends: Array, how: Preparation) -> Scaling:
    """With the features that leave their range of training in the validation part, and their spread in a window."""
    known = series.values[_steps_between(series, 0 * ends[:, 0], ends[:, 0])]
    later = series.values[_steps_between(series, ends[:, 0], ends[:, 1])]
    if not len(later):
        return scaling
    outside = (later < np.nanmin(known, 0)) | (later > np.nanmax(known, 0))
    relative = tuple(np.flatnonzero(outside.mean(0) > DRIFT).tolist())
    starts = _window_starts(series, ends, 0, how)
    if not relative or not len(starts):
        return scaling
    some = starts[:: -(-len(starts) // SPREAD_WINDOWS)]
    windows = series.values[some[:, None] + np.arange(how.window + how.horizon)][..., list(relative)]  # [N, W + h, R]
    spread = np.nanstd(windows - windows[:, :1], axis=(0, 1))
    scale = scaling.scale.clone()
    scale[list(relative)] = torch.from_numpy(np.where(spread > 0, spread, scale[list(relative)].numpy()))
    return replace(scaling, scale=scale, relative=relative)


def _counted_from(values: Array, starts: Array, window: int, columns: Sequence[int], relative: Sequence[int]) -> Array:
    """Whether the values are known from which a forecast counts, `[N]`: what it predicts in the last step of a window,
    and features that drift in the first."""
    last, first = values[starts + window - 1][:, list(columns)], values[starts][:, list(relative)]
    return ~(np.isnan(last).any(1) | np.isnan(first).any(1))


def _no_window(series: Series, how: Preparation, part: str) -> WenetError:
    some = " without missing values where a forecast counts from" if np.isnan(series.values).any() else ""
    return WenetError(
        f"{series.name}: no window of {how.window} + {how.horizon} steps{some} in the {_WORDS[part]} part; lower "
        "--window or --horizon, or bring longer series"
    )


def _steps_between(series: Series, low: Array, high: Array) -> Array:
    """Steps of all sequences from `low` of each, `[N]`, to before `high`."""
    ranges = zip(series.starts, low, high, strict=True)
    return np.concatenate([np.arange(start + first, start + end) for start, first, end in ranges])


def _forecast_columns(series: Series, how: Preparation) -> tuple[int, ...]:
    if how.target is None:
        return tuple(range(series.features))
    names = series.columns or tuple(str(place + 1) for place in range(series.features))
    wanted = [name.strip() for name in how.target.split(",")]
    for name in wanted:
        if name not in names:
            raise WenetError(f"{series.name} has no column {name!r}; --target must be among {', '.join(names[:8])}")
        if names.count(name) > 1 or wanted.count(name) > 1:
            raise WenetError(f"{series.name}: --target {how.target} names a column twice, {name!r}")
    return tuple(names.index(name) for name in wanted)


def _ends_in_time(series: Series, how: Preparation) -> Array:
    """The steps at which the parts of each sequence end, `[N, 3]`; a part that a sequence has none of is empty."""
    train, valid, _ = how.split
    lengths = series.lengths
    if series.parts is None:
        bounds = [np.round(lengths * train), np.round(lengths * (train + valid)), lengths]
    else:
        given_valid = (series.parts == 1).any()
        share = 1.0 if given_valid else train / (train + valid)
        of_train = np.where(series.parts == 0, np.round(lengths * share), 0)
        of_valid = np.where(series.parts == (1 if given_valid else 0), lengths, 0)
        bounds = [of_train, np.maximum(of_train, of_valid), lengths]
    return np.stack(bounds, 1).astype(np.int64)


def _window_starts(series: Series, ends: Array, part: int, how: Preparation) -> Array:
    """First steps of a part's windows among the steps of all sequences."""
    found = []
    for number, start in enumerate(series.starts):
        begins = 0 if part == 0 else int(ends[number, part - 1])
        first = max(0, begins - how.window)
        last = int(ends[number, part]) - how.window - how.horizon
        if ends[number, part] > begins:
            found.append(start + np.arange(first, last + 1))
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _begins(series: Series) -> Array:
    """Whether a step is the first of a sequence, `[steps of all]`."""
    first = np.zeros(len(series.values), bool)
    first[series.starts] = True
    return first


def _check_values(series: Series, how: Preparation) -> None:
    """Refuse infinite values, and missing ones where they are not to be marked."""
    for bad, word in ((np.isinf(series.values), "infinite"), (np.isnan(series.values), "missing")):
        if bad.any() and not (word == "missing" and how.missing == "mask"):
            step, feature = np.argwhere(bad)[0]
            mend = "; --missing mask marks such values" if word == "missing" else ""
            raise WenetError(f"{series.name}, {series.place(step)}: {series.feature(feature)} is {word}{mend}")


def _scaling(series: Series, in_train: Array, how: Preparation) -> Scaling:
    """Mean and standard deviation of the features in the training part."""
    own = series.values[in_train]
    if not len(own):
        raise WenetError(f"{series.name}: the training part is empty; bring more sequences, or change --split")
    empty = np.isnan(own).all(0)
    if empty.any():
        where = series.feature(int(empty.argmax()))
        raise WenetError(f"{series.name}: {where} is missing in the whole training part; leave it out")
    with np.errstate(over="ignore", invalid="ignore"):
        shift, scale = np.nanmean(own, 0), np.nanstd(own, 0)
    _refuse_too_large(scale, lambda place: f"{series.name}: {series.feature(place)}")
    constant = scale <= ROUNDING * np.abs(shift)
    if constant.any() and (how.constant == "error" or constant.all()):
        mend = "leave it out, or say --constant keep" if not constant.all() else "there is nothing to learn from"
        where = series.feature(int(constant.argmax()))
        raise WenetError(f"{series.name}: {where} is constant in the training part; {mend}")
    scale = np.where(constant, 1.0, scale)
    none = torch.empty(0, dtype=torch.float64)
    return Scaling(torch.from_numpy(shift), torch.from_numpy(scale), none, none, how.missing == "mask")


def _fingerprint(series: Series, how: Preparation) -> str:
    return hashlib.sha256(f"series 1 {series.fingerprint()} {how}".encode()).hexdigest()
