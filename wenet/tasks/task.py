"""The protocol of a task: everything that search and training need to know about it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

from torch import Tensor

from wenet.words import figure

# Settings that only sequences of numbers have.
OF_NUMBERS_ALONE = (
    *("target", "sequence", "window", "horizon", "layout", "missing", "constant", "split", "loss", "metric", "readout"),
)


@dataclass(frozen=True)
class Metric:
    """The usual measure of quality for a task.

    Attributes:
        name: its name in words, such as "perplexity".
        key: its name in keys of files, such as "valid_perplexity".
        lower_is_better: whether the lowest value is the best.
        places: decimal places to print.
    """

    name: str
    key: str
    lower_is_better: bool = True
    places: int = 1

    @property
    def final_places(self) -> int:
        """Decimal places to print after a full training."""
        return max(2, self.places)

    @property
    def worst(self) -> float:
        """The value for a model that diverged."""
        return math.inf if self.lower_is_better else -math.inf

    def order(self, value: float) -> float:
        """A number to sort by: the lower, the better the value."""
        return value if self.lower_is_better else -value

    def beats(self, value: float | None, baseline: float) -> bool:
        """Whether a value is better than a baseline; a value that is not finite never is."""
        return value is not None and math.isfinite(value) and self.order(value) < self.order(baseline)


class Baseline(NamedTuple):
    """The metric of a prediction without a model; a model that has learned must beat it."""

    name: str  # in words, such as "word frequencies"
    value: float


def failure_to_learn(what: str, value: float | None, metric: Metric, baseline: Baseline | None) -> str | None:
    """A message if a model does not beat the baseline; else None.

    Args:
        what: the model in words.
        value: its metric on the validation part; None if that is not finite.
        baseline: None if it is unknown, and then there is no message.
    """
    if baseline is None or metric.beats(value, baseline.value):
        return None
    reached = figure(value, metric.places, missing="not finite")
    return (
        f"{what} has not learned: its validation {metric.name} is {reached}, where {baseline.name} alone would give "
        f"{figure(baseline.value, metric.places)}"
    )


class Measurement(NamedTuple):
    """A model's loss and metric on a part of the data; `[n]` for standalone models or networks of a mixture."""

    loss: Tensor  # the mean, in nats where it is a cross-entropy
    metric: Tensor
    windows: Tensor  # the mean loss of each window, `[windows]` or `[windows, n]`


class Data(Protocol):
    """The data of a task: parts for training, validation and test."""

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...  # sha256 over everything that the parts follow from
    def describe(self) -> str: ...  # its size in words


class Task(Protocol):
    """A task: load data, build a model around a recurrent layer, and measure it.

    A model's `loss(inputs, targets, state, ...)` returns the training loss, the part of it that is reported, and the
    state from which the next window starts. Standalone models return `[n]` reported losses and states, one per network.

    A text is read in consecutive windows, and its state is carried on. A task with separate sequences as examples
    (classification, forecasting) has batches of them as windows and starts each from a zero state: its models return
    None as the state, and in place of the windows' losses `measure` has those of the sequences.

    Streams are what `streams` gives, a part of the data side by side; only the task looks into them.
    """

    metric: Metric
    reads: str  # "text" or "numbers", to which presets belong
    rivals: tuple[str, ...]  # names of PyTorch's layers that the winner of a search meets
    unread: tuple[str, ...]  # settings that this task does not read

    @classmethod
    def of(cls, config: Any) -> Self: ...  # for the settings of a run

    def load(self, config: Any, data_dir: Path | None) -> Any: ...

    def baseline(self, data: Any) -> Baseline | None: ...  # on the validation part; None where there is none

    def streams(self, data: Any, part: str, rows: int) -> Any: ...  # examples side by side; refuses too many rows

    def windows(self, streams: Any, steps: int) -> int: ...  # in one pass over all of the streams

    # Inputs and targets of a window, by its number through all passes.
    def batch(self, streams: Any, number: int, steps: int) -> tuple[Tensor, Tensor]: ...

    def carries_on(self, streams: Any, number: int, steps: int) -> bool: ...  # whether it continues the one before

    def first(self, streams: Any, windows: int, steps: int) -> Any: ...  # only the first windows

    def window_steps(self, data: Any, config: Any) -> int: ...  # time steps of a window, for estimates

    def inputs(self, data: Any, config: Any) -> int: ...  # features that a layer reads

    def positions(self, data: Any, part: str) -> int: ...  # time steps of all examples of a part, for estimates

    def outputs(self, data: Any) -> int: ...  # numbers in one prediction, such as the words of a vocabulary

    def probe(self, data: Any, rows: int, steps: int) -> tuple[Tensor, Tensor]: ...  # made-up inputs and targets

    def model(self, layer: Any, config: Any, data: Any) -> Any: ...  # of one layer, or of a mixture

    def standalone_models(self, layer: Any, config: Any, data: Any) -> Any: ...  # of n networks

    def measure(
        self, model: Any, streams: Any, steps: int, between: Callable[[], None], of_networks: bool = False
    ) -> Measurement: ...  # without dropout; `between` is called after every window and may raise


class CarryingTask(Task, Protocol):
    """A task whose data are streams that windows of any length may be cut from, as a mixture and `wenet-train` do."""

    def in_metric(self, nats: float) -> float: ...  # of a mean loss, for curves of training beside validation

    def steps_per_pass(self, streams: Tensor) -> int: ...  # one pass over all of the streams

    def window(self, streams: Tensor, start: int, steps: int) -> tuple[Tensor, Tensor]: ...  # inputs and targets
