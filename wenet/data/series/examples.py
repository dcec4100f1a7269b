"""Examples of sequences as a model reads them, gathered into batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from wenet.data.series.scaling import Scaling
from wenet.data.series.series import Array, Series
from wenet.data.sources import PART_WORDS, SPLITS
from wenet.words import counted
from wenet_kernels import WenetError

UNLIKE = 10  # from this ratio of their scales on, targets are very different
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
        counts = ", ".join(f"{len(getattr(self, part)):,} {word}" for part, word in PART_WORDS.items())
        what = "windows" if self.window else "sequences"
        lengths = self.train.lengths
        shortest, longest = int(lengths.min()), int(lengths.max())
        steps = f"{longest:,}" if shortest == longest else f"{shortest:,} to {longest:,}"
        predicted = (
            f"; {len(self.classes)} classes"
            if self.classes
            else f"; {counted(self.outputs, 'number')} to predict{self._of_scales()}"
        )
        features = f"{self.features} feature{'s' * (self.features != 1)}"
        return f"{counts} {what} of {steps} steps, {features}{predicted}{self._of_windows()}"

    def _of_scales(self) -> str:
        """A note where one target decides the errors of all, which are in the targets' own units."""
        least, most = (float(each) for each in self.scaling.target_scale.aminmax())
        if most <= UNLIKE * least:
            return ""
        return f" of standard deviation {least:.4g} to {most:.4g}, so RMSE and MAE are mostly those of the largest"

    def _of_windows(self) -> str:
        """What a forecast leaves out, or reads otherwise."""
        short = int((self.raw.lengths < self.window + self.horizon).sum()) if self.window else 0
        are = "is" if short == 1 else "are"
        left_out = f"; {short} of {len(self.raw.lengths)} series {are} too short for a window" if short else ""
        drifting = ", ".join(map(self.raw.feature, self.scaling.relative))
        return left_out + (f"; relative to a window's first step: {drifting}" if drifting else "")


def some_of(examples: Examples, rows: Array, seed: int, part: int) -> Examples:
    """Examples of a part. Those of validation are shuffled, so that the first of them stand for all."""
    if not len(rows):
        raise WenetError(f"the {PART_WORDS[SPLITS[part]]} part is empty; bring more sequences, or change --split")
    if part == 1:
        rows = np.random.default_rng(seed).permutation(rows)
    own = torch.from_numpy(rows)
    targets = examples.targets if examples.every_step else examples.targets[own]
    return replace(examples, starts=examples.starts[own], lengths=examples.lengths[own], targets=targets)
