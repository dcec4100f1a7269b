"""Language modelling: predict the next word of a text (metric: perplexity) or the next character (metric: bits)."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from wenet.data import Corpus, batchify, load_corpus, window, window_at, windows_per_pass
from wenet.nn import DagRNN, LanguageModel, MixtureOfSoftmaxes, StackedLSTM, StandaloneLanguageModels, WeightedDagRNN
from wenet.tasks.task import OF_NUMBERS_ALONE, Baseline, Measurement, Metric
from wenet_kernels import LostRanks, WenetError

Predictor = LanguageModel | StandaloneLanguageModels


class LanguageModelling:
    """The task of the paper: words in streams side by side, a tied embedding and decoder, cross-entropy."""

    metric = Metric("perplexity", "perplexity")
    unit = "word"
    reads = "text"
    rivals: tuple[str, ...] = ("darts-v2", "lstm", "gru")
    unread: tuple[str, ...] = OF_NUMBERS_ALONE
    window = staticmethod(window_at)

    @classmethod
    def of(cls, config: Any) -> Self:
        return cls()

    def load(self, config: Any, data_dir: Path | None) -> Corpus:
        """Load the text named in the settings.

        Raises:
            WenetError: as in `load_corpus`.
        """
        return load_corpus(config.dataset, data_dir, config.max_vocabulary, config.level)

    def baseline(self, data: Corpus) -> Baseline:
        """The metric of predicting by word frequencies alone."""
        return Baseline(f"{self.unit} frequencies", round(self.in_metric(unigram_cross_entropy(data)), 3))

    def in_metric(self, nats: float) -> float:
        """Convert a mean cross-entropy into the metric; infinite if a float overflows."""
        return exponential(nats)

    def streams(self, data: Corpus, part: str, rows: int) -> Tensor:
        """A part of the text as `rows` streams side by side, `[steps, rows]`."""
        return batchify(getattr(data, part), rows, part)

    def steps_per_pass(self, streams: Tensor) -> int:
        """The number of predicted tokens in each stream: all but the first."""
        return len(streams) - 1

    def windows(self, streams: Tensor, steps: int) -> int:
        """The number of windows in a pass."""
        return windows_per_pass(streams, steps)

    def batch(self, streams: Tensor, number: int, steps: int) -> tuple[Tensor, Tensor]:
        """The window of this number, counted through all passes."""
        return window(streams, steps, number % windows_per_pass(streams, steps))

    def carries_on(self, streams: Tensor, number: int, steps: int) -> bool:
        """Whether a window goes on where the last one ended; the first of a pass starts from a zero state."""
        return number % windows_per_pass(streams, steps) != 0

    def first(self, streams: Tensor, windows: int, steps: int) -> Tensor:
        """Only the first windows."""
        return streams[: windows * steps + 1]

    def window_steps(self, data: Corpus, config: Any) -> int:
        """Time steps of a window."""
        return config.bptt

    def inputs(self, data: Corpus, config: Any) -> int:
        """The size of an embedded word, which is tied to the hidden state's."""
        return config.hidden

    def positions(self, data: Corpus, part: str) -> int:
        """The number of tokens in a part of the text."""
        return len(getattr(data, part))

    def outputs(self, data: Corpus) -> int:
        """The size of the vocabulary."""
        return len(data.vocabulary)

    def probe(self, data: Corpus, rows: int, steps: int) -> tuple[Tensor, Tensor]:
        """Random inputs and targets `[steps, rows]`, for timing a training step."""
        tokens = torch.randint(self.outputs(data), (steps + 1, rows))
        return tokens[:-1], tokens[1:]

    def model(self, layer: DagRNN | WeightedDagRNN | StackedLSTM, config: Any, data: Corpus) -> LanguageModel:
        """A language model around a layer, with the dropouts and initial values of the settings."""
        mixture = None
        if getattr(config, "softmax", "tied") == "mos":
            mixture = MixtureOfSoftmaxes(layer.hidden_size, layer.input_size, config.experts, config.dropout_latent)
        return LanguageModel(
            len(data.vocabulary),
            layer,
            dropout_embedding=config.dropout_embedding,
            dropout_output=config.dropout_output,
            init_range=config.init_range,
            dropout_word=config.dropout_word,
            mixture=mixture,
            decoder_bias=self._first_bias(config, data),
        )

    def standalone_models(self, layer: WeightedDagRNN, config: Any, data: Corpus) -> StandaloneLanguageModels:
        """A language model for each network of a layer with independent coupling."""
        return StandaloneLanguageModels(
            len(data.vocabulary),
            layer,
            config.dropout_embedding,
            config.dropout_output,
            config.init_range,
            config.dropout_word,
            self._first_bias(config, data),
            config.sampled_words,
        )

    def _first_bias(self, config: Any, data: Corpus) -> Tensor | None:
        return log_frequencies(data) if config.decoder_bias == "frequencies" else None

    def measure(
        self,
        model: Predictor,
        streams: Tensor,
        steps: int,
        between: Callable[[], None] = lambda: None,
        of_networks: bool = False,
    ) -> Measurement:
        """Measure cross-entropy and metric on streams `[steps, M]`."""
        nats, windows = cross_entropies(model, streams, steps, between, of_networks)
        values = [self.in_metric(value) for value in nats.flatten().tolist()]
        return Measurement(nats, torch.tensor(values, dtype=torch.float64).view(nats.shape), windows)


class CharacterModelling(LanguageModelling):
    """Language modelling by characters."""

    metric = Metric("bits per character", "bits_per_character", places=3)
    unit = "character"

    def in_metric(self, nats: float) -> float:
        return nats / math.log(2)


def log_frequencies(data: Corpus) -> Tensor:
    """Log frequencies of all units in the training part, `[V]` float64.

    One is added to each count, because `<unk>` may occur only in the validation part.
    """
    counts = torch.bincount(data.train, minlength=len(data.vocabulary)).double() + 1
    return (counts / counts.sum()).log()


def unigram_cross_entropy(data: Corpus) -> float:
    """Nats per unit of the validation part, predicted by frequencies alone."""
    occurrences = torch.bincount(data.valid, minlength=len(data.vocabulary)).double()
    return -float(occurrences @ log_frequencies(data)) / len(data.valid)


def perplexity(model: LanguageModel, streams: Tensor, steps: int, between: Callable[[], None] = lambda: None) -> float:
    """Perplexity over all predicted tokens of streams `[time, M]`, without dropout; infinite if it or the model
    overflows."""
    return exponential(float(cross_entropies(model, streams, steps, between)[0]))


@torch.no_grad()
def cross_entropies(
    model: Predictor, streams: Tensor, steps: int, between: Callable[[], None], of_networks: bool = False
) -> tuple[Tensor, Tensor]:
    """Nats per predicted token of streams `[time, M]`, without dropout: the mean, and the mean of each window.

    For standalone models, and for the networks of a mixture measured by their own outputs, both also have a dimension
    `[n]`. The mean is over predicted tokens only; a stream has one row more, and dividing by its rows would give a
    slightly lower value. `between` is called after every window and may raise. The result is NaN if the model's state
    overflows, which the operator refuses.
    """
    total, h, windows = torch.zeros((), dtype=torch.float64), None, []
    model.eval()
    try:
        for index in range(windows_per_pass(streams, steps)):
            tokens, targets = window(streams, steps, index)
            try:
                cross_entropy, h = _losses(model, tokens, targets, h, of_networks)
            except LostRanks:
                raise
            except WenetError:  # model and text fit, so only NaN can be refused
                windows.append(total + math.nan)
                return windows[-1], torch.stack(windows)
            windows.append(cross_entropy.double().cpu())
            total = total + windows[-1] * targets.numel()
            between()
    finally:
        model.train()
    return total / streams[1:].numel(), torch.stack(windows)


def _losses(
    model: Predictor, tokens: Tensor, targets: Tensor, h: Tensor | None, of_networks: bool
) -> tuple[Tensor, Tensor]:
    if of_networks:
        assert isinstance(model, LanguageModel)
        return model.network_losses(tokens, targets, h)
    _, cross_entropy, h = model.loss(tokens, targets, h)
    return cross_entropy, h


def exponential(cross_entropy: float) -> float:
    """The perplexity for a mean cross-entropy; infinite if a float overflows."""
    return math.exp(cross_entropy) if cross_entropy < 700 else math.inf
