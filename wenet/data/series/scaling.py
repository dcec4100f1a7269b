"""Standardisation of features by the training part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wenet.data.series.preparation import Preparation
from wenet.data.series.series import Array, Series
from wenet_kernels import WenetError

ROUNDING = 1e-14  # a range that is no more than this share of the largest value counts as none


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


def scaling_of(series: Series, in_train: Array, how: Preparation) -> Scaling:
    """Mean and standard deviation of the features in the training part."""
    own = series.values[in_train]
    if not len(own):
        raise WenetError(f"{series.name}: the training part is empty; bring more sequences, or change --split")
    empty = np.isnan(own).all(0)
    if empty.any():
        where = series.feature(int(empty.argmax()))
        raise WenetError(f"{series.name}: {where} is missing in the whole training part; leave it out")
    shift, scale, constant = mean_and_spread(own, lambda place: f"{series.name}: {series.feature(place)}")
    if constant.any() and (how.constant == "error" or constant.all()):
        mend = "leave it out, or say --constant keep" if not constant.all() else "there is nothing to learn from"
        where = series.feature(int(constant.argmax()))
        raise WenetError(f"{series.name}: {where} is constant in the training part; {mend}")
    scale = np.where(constant, 1.0, scale)
    none = torch.empty(0, dtype=torch.float64)
    return Scaling(torch.from_numpy(shift), torch.from_numpy(scale), none, none, how.missing == "mask")


def mean_and_spread(values: Array, in_words: Callable[[int], str]) -> tuple[Array, Array, Array]:
    """Mean and standard deviation of each column, and whether it has one value alone, but for rounding.

    Args:
        values: `[N, K]`; NaN does not count.
        in_words: names a column by its place.

    Raises:
        WenetError: a standard deviation overflows, or is 0 although values differ.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        shift, scale = np.nanmean(values, 0), np.nanstd(values, 0)
        constant = np.nanmax(values, 0) - np.nanmin(values, 0) <= ROUNDING * np.nanmax(np.abs(values), 0)
    for bad, size, mend in (
        (~np.isfinite(scale), "large", "divide"),
        ((scale == 0) & ~constant, "small", "multiply"),
    ):
        if bad.any():
            raise WenetError(
                f"{in_words(int(bad.argmax()))} has values too {size} for a standard deviation; {mend} them first"
            )
    return shift, scale, constant


def check_values(series: Series, how: Preparation) -> None:
    """Refuse infinite values, and missing ones where they are not to be marked."""
    for bad, word in ((np.isinf(series.values), "infinite"), (np.isnan(series.values), "missing")):
        if bad.any() and not (word == "missing" and how.missing == "mask"):
            step, feature = np.argwhere(bad)[0]
            mend = "; --missing mask marks such values" if word == "missing" else ""
            raise WenetError(f"{series.name}, {series.place(step)}: {series.feature(feature)} is {word}{mend}")
