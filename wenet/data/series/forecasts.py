"""Examples of forecasts: windows of sequences, and the steps that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from wenet.data.series.examples import Examples, SeriesData, some_of
from wenet.data.series.preparation import Preparation
from wenet.data.series.scaling import Scaling, scaling_of
from wenet.data.series.series import Array, Series, target_places
from wenet.data.sources import PART_WORDS, SPLITS
from wenet_kernels import WenetError

DRIFT = 0.1  # of the validation part's values outside the range of training, from which on a feature counts as drifting
SPREAD_WINDOWS = 2000  # at most, from which the spread of a drifting feature within a window follows


def forecasts(series: Series, how: Preparation) -> SeriesData:
    """All windows of the sequences, each with the steps that follow it.

    A sequence is divided in time. What a window of validation or test is to predict lies wholly in its part; what it
    sees may begin before. Features that drift are read relative to the first step of a window. Where a value from which
    a forecast counts is missing, there is no window.
    """
    divided = _Divided(series, how, _columns(series, how), _ends_in_time(series, how))
    columns = list(divided.columns)
    if not len(divided.window_starts(0)):
        raise _no_window(series, how, SPLITS[0])
    of_train = zip(series.lengths, divided.ends[:, 0], strict=True)
    in_train = np.concatenate([np.arange(length) < end for length, end in of_train])
    scaling = _for_drift(scaling_of(series, in_train, how), divided)
    repeated = scaling.shift[columns].repeat(how.horizon), scaling.scale[columns].repeat(how.horizon)
    scaling = replace(scaling, target_shift=repeated[0], target_scale=repeated[1])
    steps = scaling.steps(torch.from_numpy(series.values)).float()
    train, valid, test = (_windows(divided, scaling, steps, part) for part in range(len(SPLITS)))
    within = in_train[1:] & in_train[:-1] & ~_begins(series)[1:]
    changes = np.abs(np.diff(series.values[:, columns], axis=0))[within]
    return SeriesData(
        series.name,
        train=train,
        valid=valid,
        test=test,
        scaling=scaling,
        classes=(),
        columns=divided.columns,
        window=how.window,
        horizon=how.horizon,
        flat=False,
        naive=torch.from_numpy(np.nanmean(changes, 0)),
        fingerprint=how.fingerprint(series),
        raw=series,
    )


@dataclass(frozen=True)
class _Divided:
    """Sequences with the features that are predicted, and the steps at which the parts of each end, `[N, 3]`."""

    series: Series
    how: Preparation
    columns: tuple[int, ...]
    ends: Array

    def window_starts(self, part: int) -> Array:
        """First steps of a part's windows among the steps of all sequences."""
        found = []
        for number, start in enumerate(self.series.starts):
            begins = 0 if part == 0 else int(self.ends[number, part - 1])
            first = max(0, begins - self.how.window)
            last = int(self.ends[number, part]) - self.how.window - self.how.horizon
            if self.ends[number, part] > begins:
                found.append(start + np.arange(first, last + 1))
        return np.concatenate(found) if found else np.empty(0, np.int64)


def _windows(divided: _Divided, scaling: Scaling, steps: Tensor, part: int) -> Examples:
    """All windows of a part from whose known values a forecast counts; `steps` as a model reads them."""
    series, how, columns = divided.series, divided.how, list(divided.columns)
    starts = divided.window_starts(part)
    following = starts[:, None] + how.window + np.arange(how.horizon)  # [N, h]
    ahead = series.values[:, columns][following].reshape(len(starts), how.horizon * len(columns))
    known = ~np.isnan(ahead).any(1) & _counted_from(divided, scaling.relative, starts)
    if not known.any():
        raise _no_window(series, how, SPLITS[part])
    targets = (ahead[known] - scaling.target_shift.numpy()) / scaling.target_scale.numpy()
    lengths = torch.full((len(targets),), how.window)
    own = Examples(
        steps,
        torch.from_numpy(starts[known]),
        lengths,
        torch.from_numpy(targets).float(),
        relative=scaling.relative,
        of_targets=divided.columns * how.horizon,
    )
    return some_of(own, np.arange(len(own)), how.seed, part)


def _counted_from(divided: _Divided, relative: Sequence[int], starts: Array) -> Array:
    """Whether the values are known from which a forecast counts, `[N]`.

    These are what it predicts in the last step of a window, and features that drift in the first.
    """
    values = divided.series.values
    last = values[starts + divided.how.window - 1][:, list(divided.columns)]
    first = values[starts][:, list(relative)]
    return ~(np.isnan(last).any(1) | np.isnan(first).any(1))


def _for_drift(scaling: Scaling, divided: _Divided) -> Scaling:
    """With the features that leave their range of training in the validation part, and their spread in a window."""
    series, how, ends = divided.series, divided.how, divided.ends
    known = series.values[_steps_between(series, 0 * ends[:, 0], ends[:, 0])]
    later = series.values[_steps_between(series, ends[:, 0], ends[:, 1])]
    if not len(later):
        return scaling
    outside = (later < np.nanmin(known, 0)) | (later > np.nanmax(known, 0))
    relative = tuple(np.flatnonzero(outside.mean(0) > DRIFT).tolist())
    starts = divided.window_starts(0)
    if not relative or not len(starts):
        return scaling
    some = starts[:: -(-len(starts) // SPREAD_WINDOWS)]
    windows = series.values[some[:, None] + np.arange(how.window + how.horizon)][..., list(relative)]  # [N, W + h, R]
    spread = np.nanstd(windows - windows[:, :1], axis=(0, 1))
    scale = scaling.scale.clone()
    scale[list(relative)] = torch.from_numpy(np.where(spread > 0, spread, scale[list(relative)].numpy()))
    return replace(scaling, scale=scale, relative=relative)


def _no_window(series: Series, how: Preparation, part: str) -> WenetError:
    some = " without missing values where a forecast counts from" if np.isnan(series.values).any() else ""
    return WenetError(
        f"{series.name}: no window of {how.window} + {how.horizon} steps{some} in the {PART_WORDS[part]} part; lower "
        "--window or --horizon, or bring longer series"
    )


def _steps_between(series: Series, low: Array, high: Array) -> Array:
    """Steps of all sequences from `low` of each, `[N]`, to before `high`."""
    ranges = zip(series.starts, low, high, strict=True)
    return np.concatenate([np.arange(start + first, start + end) for start, first, end in ranges])


def _columns(series: Series, how: Preparation) -> tuple[int, ...]:
    if how.target is None:
        return tuple(range(series.features))
    names = series.columns or tuple(str(place + 1) for place in range(series.features))
    return tuple(target_places(how.target, names, series.name))


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


def _begins(series: Series) -> Array:
    """Whether a step is the first of a sequence, `[steps of all]`."""
    first = np.zeros(len(series.values), bool)
    first[series.starts] = True
    return first
