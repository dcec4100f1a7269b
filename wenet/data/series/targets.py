"""Examples of sequences that have a target each, or one at each step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from wenet.data.series.examples import Examples, SeriesData, some_of
from wenet.data.series.preparation import Preparation
from wenet.data.series.scaling import Scaling, mean_and_spread, scaling_of
from wenet.data.series.series import Array, Series
from wenet.data.sources import PART_WORDS, SPLITS
from wenet_kernels import WenetError

MOST_CLASS = 2**53  # whole numbers up to it are exact as floating-point numbers


def targeted(series: Series, how: Preparation) -> SeriesData:
    """A target for each sequence or each step."""
    assert series.targets is not None
    every_step = how.kind == "label"
    series = _with_fitting_targets(series, how)
    parts = _drawn_parts(series, how, stratified=how.kind == "classify")
    scaling = scaling_of(series, np.repeat(parts == 0, series.lengths), how)
    targets, classes, scaling = _prepared_targets(series, parts, every_step, how.classes, scaling)
    steps = scaling.steps(torch.from_numpy(series.values)).float()
    starts, lengths = torch.from_numpy(series.starts), torch.from_numpy(series.lengths)
    whole = Examples(steps, starts, lengths, targets, every_step)
    train, valid, test = (some_of(whole, np.flatnonzero(parts == part), how.seed, part) for part in range(len(SPLITS)))
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
        fingerprint=how.fingerprint(series),
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
    if targets.dtype.kind in "Ub":
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
    shift, scale, constant = mean_and_spread(rows[of_train], lambda place: f"{series.name}: target {place + 1}")
    if constant.any():
        raise WenetError(f"{series.name}: target {int(constant.argmax()) + 1} is constant in the training part")
    scaling = replace(scaling, target_shift=torch.from_numpy(shift), target_scale=torch.from_numpy(scale))
    return torch.from_numpy((rows - shift) / scale).float(), (), scaling


def _check_classes(series: Series, labels: list[str], numbers: Array, parts: Array, every_step: bool) -> None:
    if len(labels) < 2:
        raise WenetError(f"{series.name}: all targets are {labels[0]!r}; a classification needs two classes at least")
    of_part = np.repeat(parts, series.lengths) if every_step else parts
    for part, name in enumerate(SPLITS[1:], start=1):
        unseen = np.setdiff1d(numbers[of_part == part], numbers[of_part == 0])
        if len(unseen):
            label = labels[int(unseen[0])]
            raise WenetError(
                f"{series.name}: the {PART_WORDS[name]} part has the label {label!r}, which the training part lacks"
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
