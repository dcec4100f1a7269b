"""The protocol of a task: everything that searching and training must know of what is learned."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Metric:
    """How well a model does, as the field says it.

    Attributes:
        name: in words, such as "perplexity".
        key: in the names of files' keys, such as "valid_perplexity".
        lower_is_better: whether the best value is the lowest.
        places: decimal places that a person wants.
    """

    name: str
    key: str
    lower_is_better: bool = True
    places: int = 1

    @property
    def final_places(self) -> int:
        """Decimal places of what was trained to the end."""
        return max(2, self.places)

    @property
    def worst(self) -> float:
        """Of a model whose training diverged."""
        return math.inf if self.lower_is_better else -math.inf

    def order(self, value: float) -> float:
        """A number that is lower where the value is better."""
        return value if self.lower_is_better else -value

    def beats(self, value: float | None, baseline: float) -> bool:
        """Whether a value is better than a baseline; one that is not finite is not."""
        return value is not None and math.isfinite(value) and self.order(value) < self.order(baseline)


class Baseline(NamedTuple):
    """What the metric is of a prediction without a model, which a model that has learned must beat."""

    name: str  # in words, such as "word frequencies"
    value: float


def failure_to_learn(what: str, value: float | None, metric: Metric, baseline: Baseline | None) -> str | None:
    """What to say where a model does not beat the baseline.

    Args:
        what: the model in words.
        value: the metric that it reached on the validation part; None where that is not finite.
        baseline: None where it is unknown, and nothing is said.
    """
    if baseline is None or metric.beats(value, baseline.value):
        return None
    reached = "not finite" if value is None else f"{value:.{metric.places}f}"
    return (
        f"{what} has not learned: its validation {metric.name} is {reached}, where {baseline.name} alone would give "
        f"{baseline.value:.{metric.places}f}"
    )


class Measurement(NamedTuple):
    """A model's loss and metric on a part of the data; `[n]` for standalone models or networks of a mixture."""

    loss: Tensor  # the mean, in nats where it is a cross-entropy
    metric: Tensor
    windows: Tensor  # the mean loss of each window, `[windows]` or `[windows, n]`


class Data(Protocol):
    """What a task reads: parts for training, validation and test."""

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...  # sha256 over everything that the parts follow from
    def describe(self) -> str: ...  # its size in words


class Task(Protocol):
    """A task: load data, build a model around a recurrent layer, and measure it.

    A model's `loss(inputs, targets, state, ...)` gives what training minimises, the loss within it that is reported,
    and the state that the next window starts from. Those of standalone models are `[n]`, one for each network.

    A text is read in windows that follow one another, and its state is carried on. A task whose examples are separate
    sequences (classification, forecasting) hands out batches as windows and starts each from a state of zero; its
    model reads the last state or every step, and `measure` gives accuracy or an error where a text gives perplexity.
    """

    metric: Metric

    def load(self, config: Any, data_dir: Path | None) -> Any: ...

    def baseline(self, data: Any) -> Baseline | None: ...  # on the validation part; None where there is none

    def in_metric(self, nats: float) -> float: ...  # of a mean loss, for curves of training beside validation

    def streams(self, data: Any, part: str, rows: int) -> Tensor: ...  # examples side by side; refuses too many rows

    def steps_per_pass(self, streams: Tensor) -> int: ...  # one pass over all of the streams

    def positions(self, data: Any, part: str) -> int: ...  # time steps of all examples of a part, for estimates

    def outputs(self, data: Any) -> int: ...  # numbers in one prediction, such as the words of a vocabulary

    def probe(self, data: Any, rows: int, steps: int) -> tuple[Tensor, Tensor]: ...  # made-up inputs and targets

    def window(self, streams: Tensor, start: int, steps: int) -> tuple[Tensor, Tensor]: ...  # inputs and targets

    def model(self, layer: Any, config: Any, data: Any) -> Any: ...  # of one layer, or of a mixture

    def standalone_models(self, layer: Any, config: Any, data: Any) -> Any: ...  # of n networks

    def measure(
        self, model: Any, streams: Tensor, steps: int, between: Callable[[], None], of_networks: bool = False
    ) -> Measurement: ...  # without dropout; `between` is called after every window and may raise
