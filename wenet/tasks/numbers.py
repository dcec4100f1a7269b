"""Tasks on sequences of numbers: a class or numbers for each sequence, its continuation, or a target at each step."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from wenet.data import Batches, Preparation, Reading, Series, SeriesData, prepare, read_series, series_of
from wenet.nn import LOSSES, SequenceModel, StandaloneSequenceModels
from wenet.tasks.measures import METRICS, OF_CLASSES, OF_FORECASTS, OF_NUMBERS, measure_of
from wenet.tasks.task import Baseline, Measurement
from wenet.words import counted
from wenet_kernels import WenetError, check_choice

BASELINE_ROWS = 256  # in a batch
BATCHES = 4  # at least, of a training part that is smaller than a usual batch


class Numbers:
    """What these tasks share: a sequence is an example, a batch of them a window, and each starts from a zero state.

    Args:
        config: the settings of a run.
    """

    kind: str
    every_step: bool = False
    reads: str = "numbers"
    rivals: tuple[str, ...] = ("lstm", "gru", "rnn")
    unread: tuple[str, ...] = (
        *("level", "max_vocabulary", "bptt", "decoder_bias", "dropout_word", "dropout_embedding", "init_range"),
        *("activation_reg", "temporal_activation_reg", "windows", "carry_embedding", "window", "horizon", "sequence"),
        "sampled_words",
    )

    def __init__(self, config: Any) -> None:
        self.config = config
        self.measured_by = config.metric or self.metrics()[0]
        check_choice("--metric", self.measured_by, self.metrics())
        self.metric = METRICS[self.measured_by]

    @classmethod
    def of(cls, config: Any) -> Self:
        return cls(config)

    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that this task may be measured by, the usual one first."""
        return OF_NUMBERS

    def load(self, config: Any, data_dir: Path | None) -> SeriesData:
        """Read and prepare the file named in the settings.

        Raises:
            WenetError: as in `read_series` and `prepare`.
        """
        reading = Reading(self.kind != "forecast", self.every_step, config.target, config.layout, config.sequence)
        return self.prepared(read_series(Path(config.dataset), reading))

    def take(self, given: Any) -> SeriesData:
        """Prepare arrays or a data set.

        Raises:
            WenetError: as in `series_of` and `prepare`.
        """
        return self.prepared(series_of(given, self.kind != "forecast", self.config.layout, every_step=self.every_step))

    def prepared(self, series: Series) -> SeriesData:
        config = self.config
        common = (self.kind, self.of_classes(), config.shares, config.seed, config.missing, config.constant)
        return prepare(series, Preparation(*common, *self.stretches()))

    def stretches(self) -> tuple[Any, ...]:
        """Of a forecast what it sees, how far it goes, and of which columns it is."""
        return ()

    def of_classes(self) -> bool:
        """Whether classes are predicted, and not numbers."""
        return False

    def loss_kind(self) -> str:
        """The loss that training minimises."""
        fitting = ("ce",) if self.of_classes() else ("mse", "mae")
        wanted = self.config.loss or fitting[0]
        if wanted in LOSSES and wanted not in fitting:
            raise WenetError(f"--loss {wanted} does not fit --task {self.kind}; say {' or '.join(fitting)}")
        return wanted

    def readout(self) -> str:
        return "steps" if self.every_step else self.config.readout

    def baseline(self, data: SeriesData) -> Baseline | None:
        """The metric of the most frequent class, or of the training part's mean, on the validation part."""
        outputs = torch.zeros(data.outputs)
        if self.of_classes():
            outputs[_class_counts(data).argmax()] = 1
        found = self._constant(data, outputs)
        return _baseline("the most frequent class" if self.of_classes() else "the training mean", found)

    def _constant(self, data: SeriesData, outputs: Tensor) -> float:
        """The metric on the validation part of a prediction that is always the same, `[K]`, standardised."""
        measure = measure_of(self.measured_by, data)
        part = Batches(data, data.valid, BASELINE_ROWS)
        for number in range(len(part)):
            inputs, targets = part.batch(number)
            there = _there(inputs, self.every_step)
            measure.add(outputs.expand(1, *there.shape, data.outputs), targets, there)
        return float(measure.value())

    def streams(self, data: SeriesData, part: str, rows: int) -> Batches:
        """A part in batches of `rows` sequences, in training in an order drawn from the seed.

        Raises:
            WenetError: the training part has fewer sequences.
        """
        examples = getattr(data, part)
        if part != "train":
            return Batches(data, examples, rows)
        if len(examples) < rows:
            what = counted(len(examples), "window" if data.window else "sequence")
            raise WenetError(f"the training part has {what}, fewer than the {rows} of a batch")
        return Batches(data, examples, rows, self.config.seed)

    def windows(self, streams: Batches, steps: int) -> int:
        return len(streams)

    def first(self, streams: Batches, windows: int, steps: int) -> Batches:
        return streams.first(windows)

    def batch(self, streams: Batches, number: int, steps: int) -> tuple[Tensor, Tensor]:
        return streams.batch(number)

    def carries_on(self, streams: Batches, number: int, steps: int) -> bool:
        return False

    def window_steps(self, data: SeriesData, config: Any) -> int:
        return int(data.train.lengths.max())

    def positions(self, data: SeriesData, part: str) -> int:
        return int(getattr(data, part).lengths.sum())

    def inputs(self, data: SeriesData, config: Any) -> int:
        return data.scaling.inputs

    def outputs(self, data: SeriesData) -> int:
        return data.outputs

    def probe(self, data: SeriesData, rows: int, steps: int) -> tuple[Tensor, Tensor]:
        """Random inputs `[steps, rows, I]` and their targets, for timing a training step."""
        inputs = torch.randn(steps, rows, data.scaling.inputs)
        inputs[..., -1] = 1
        shape = (steps, rows) if self.every_step else (rows,)
        if self.of_classes():
            return inputs, torch.randint(data.outputs, shape)
        return inputs, torch.randn(*shape, data.outputs)

    def standalone_models(self, layer: Any, config: Any, data: SeriesData) -> StandaloneSequenceModels:
        """A model for each network of a layer with independent coupling."""
        loss = self.loss_kind()
        shape = (self.readout(), self.repeats(data), data.horizon)
        return StandaloneSequenceModels(layer, data.outputs, loss, *shape, config.dropout_output)

    def model(self, layer: Any, config: Any, data: SeriesData) -> SequenceModel:
        """A single model, which reads numbers in their own units."""
        scaling = data.scaling
        numbers = (scaling.shift, scaling.scale, scaling.target_shift, scaling.target_scale)
        return SequenceModel(
            layer,
            data.outputs,
            numbers,
            scaling.marked,
            self.readout(),
            self.repeats(data),
            data.horizon,
            data.classes,
            data.window,
            data.flat,
            scaling.relative,
            data.raw.columns,
        )

    def repeats(self, data: SeriesData) -> tuple[int, ...]:
        """The inputs whose last values a prediction counts from."""
        return ()

    @torch.no_grad()
    def measure(
        self,
        model: StandaloneSequenceModels,
        streams: Batches,
        steps: int,
        between: Callable[[], None] = lambda: None,
        of_networks: bool = False,
    ) -> Measurement:
        """Measure loss and metric of each network; in place of windows stand the losses of each sequence, `[N, n]`."""
        measure, rows = measure_of(self.measured_by, streams.data), []
        model.eval()
        try:
            for number in range(len(streams)):
                inputs, targets = streams.batch(number)
                outputs, losses = model.losses(inputs, targets)
                measure.add(outputs, targets, _there(inputs, self.every_step))
                rows.append(losses.double().cpu().T)  # [M, n]
                between()
        finally:
            model.train()
        each = torch.cat(rows)
        return Measurement(each.mean(0), measure.value(), each)


def fitting_batch(sequences: int, usual: int) -> int:
    """Sequences of a training batch: as usual, or where the training part has fewer, so many that it has some
    batches."""
    return usual if sequences >= usual else max(1, sequences // BATCHES)


def _baseline(name: str, value: float) -> Baseline | None:
    """None where the metric is beyond all numbers."""
    return Baseline(name, float(f"{value:.7g}")) if math.isfinite(value) else None


def _class_counts(data: SeriesData) -> Tensor:
    """How often the training part has each class, `[K]`; with a target a step its tensor has those of all parts."""
    part = Batches(data, data.train, BASELINE_ROWS)
    targets = torch.cat([part.batch(number)[1].flatten() for number in range(len(part))])
    return targets[targets >= 0].bincount(minlength=data.outputs)  # below stands what is behind an end


def _there(inputs: Tensor, every_step: bool) -> Tensor:
    """Where there is a target: at each step of a sequence, or in each row."""
    return inputs[..., -1] if every_step else torch.ones_like(inputs[0, :, -1])


class Classification(Numbers):
    """A class for each sequence."""

    kind = "classify"

    def of_classes(self) -> bool:
        return True

    def metrics(self) -> tuple[str, ...]:
        return OF_CLASSES


class Regression(Numbers):
    """Numbers for each sequence."""

    kind = "regress"


class Forecasting(Numbers):
    """The steps that follow. A forecast is counted from the last values seen, so that a drift need not be learned."""

    kind = "forecast"
    unread = tuple(name for name in Numbers.unread if name not in ("window", "horizon", "sequence"))

    def metrics(self) -> tuple[str, ...]:
        return OF_FORECASTS

    def stretches(self) -> tuple[Any, ...]:
        return self.config.window, self.config.horizon, self.config.target

    def repeats(self, data: SeriesData) -> tuple[int, ...]:
        return data.columns

    def baseline(self, data: SeriesData) -> Baseline | None:
        """The metric of repeating the last values seen, on the validation part."""
        measure = measure_of(self.measured_by, data)
        part = Batches(data, data.valid, BASELINE_ROWS)
        for number in range(len(part)):
            inputs, targets = part.batch(number)
            last = inputs[-1][:, list(data.columns)].repeat(1, data.horizon)
            measure.add(last.unsqueeze(0), targets, _there(inputs, False))
        return _baseline("repeating the last value", float(measure.value()))


class Labelling(Numbers):
    """A target at each step: a class, or with a loss or metric of numbers a number."""

    kind = "label"
    every_step = True
    unread = (*(name for name in Numbers.unread if name != "sequence"), "readout")

    def of_classes(self) -> bool:
        return self.config.loss not in ("mse", "mae") and self.config.metric not in OF_NUMBERS

    def metrics(self) -> tuple[str, ...]:
        return OF_CLASSES if self.of_classes() else OF_NUMBERS
