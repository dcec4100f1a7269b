"""What a run will take, before it starts: time from a short measurement, memory by counting."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from wenet.config import DTYPES, SearchConfig, TrainConfig
from wenet.data import Corpus
from wenet.genotype import Genotype, random_genotypes
from wenet.loss import CHUNK
from wenet.nn import MIXTURE_ROWS
from wenet.search import build_model, build_optimizer
from wenet.train import build_model as build_trained_model
from wenet.training import LONGER_AT_MOST

INTERPRETER = 400_000_000  # bytes, with torch
STANDALONE_OUTPUTS = 8  # tensors as large as a network's output that its loss, embedding and decoder keep
TRAIN_PROBE_STEPS = (2, 10)
PROBE_STEPS, PROBE_ROWS = 4, 20
PROBE_WEIGHTS = 5_000_000  # in the networks of the probe: enough to be typical, little enough to take a moment


@dataclass(frozen=True)
class Estimate:
    """Seconds of a whole run and bytes at its peak, both rough."""

    seconds: float
    memory: int


def estimate(config: SearchConfig, corpus: Corpus) -> Estimate:
    """Estimate a search on the device and backend that its settings name."""
    return Estimate(_seconds(config, corpus), estimate_memory(config, len(corpus.vocabulary)))


def estimate_memory(config: SearchConfig, vocabulary_size: int, ranks: int = 1) -> int:
    """Bytes of a rank at the peak: of a step of the search, or of the standalone trainings that are part of it."""
    searching = 0 if config.strategy == "random" else _search_memory(config, vocabulary_size, ranks)
    return INTERPRETER + max(searching, _standalone_memory(config, vocabulary_size, ranks))


def _search_memory(config: SearchConfig, vocabulary_size: int, ranks: int) -> int:
    """Parameters with their gradients and Adam's two moments, and what backward needs."""
    longest = config.bptt + (LONGER_AT_MOST if config.windows == "merity" else 0)
    positions = longest * config.data_batch
    networks = -(-config.networks // ranks)
    parameters = networks * _network_weights(config) + vocabulary_size * (config.hidden + 1)
    logits = 3 * positions * vocabulary_size
    recurrence = networks * positions * _recurrence_bytes(config, config.nodes)
    return DTYPES[config.precision].itemsize * (4 * parameters + logits) + recurrence


def _standalone_memory(config: SearchConfig, vocabulary_size: int, ranks: int) -> int:
    """The same of as many standalone models as train at once; each has an embedding, with two copies of its gradient,
    as decoder and as input both add to it."""
    positions = config.bptt * config.data_batch
    words = vocabulary_size * (config.hidden + 1)
    outputs = STANDALONE_OUTPUTS * positions * config.hidden
    network = DTYPES[config.precision].itemsize * (4 * _network_weights(config) + 6 * words + outputs)
    return -(-config.standalone_networks // ranks) * (network + positions * _recurrence_bytes(config, config.nodes))


def estimate_training(config: TrainConfig, genotype: Genotype | None, corpus: Corpus) -> Estimate:
    """Estimate the training of one cell on the device and backend that its settings name."""
    per_epoch = _seconds_per_epoch(config, genotype, corpus)
    return Estimate(config.epochs * per_epoch, estimate_training_memory(config, genotype, len(corpus.vocabulary)))


def estimate_training_memory(config: TrainConfig, genotype: Genotype | None, vocabulary_size: int) -> int:
    """Bytes of a training step of the longest window: weights, their gradients and average, and what backward needs."""
    positions = (config.bptt + LONGER_AT_MOST) * config.data_batch
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build_trained_model(config, genotype, vocabulary_size).parameters())
    number = DTYPES[config.precision].itemsize
    if genotype is None:
        recurrence = positions * number * config.layers * 8 * config.hidden  # four gates, forward and backward
    else:
        recurrence = positions * _recurrence_bytes(config, genotype.nodes)
    words = vocabulary_size * (config.embedding or config.hidden)
    logits = 2 * max(CHUNK, vocabulary_size) + 2 * words  # and the decoder's share of the embedding's gradient
    if config.softmax == "mos":
        logits = 3 * MIXTURE_ROWS * vocabulary_size
    return INTERPRETER + number * (3 * parameters + logits) + recurrence


def _recurrence_bytes(config: SearchConfig | TrainConfig, nodes: int) -> int:
    """Of one network at one position of the text.

    The projected input and its derivative; of every product what forward keeps, and both factors of the weight
    gradient, which have the type of the products.
    """
    width = 2 * config.hidden if config.form == "highway" else config.hidden
    number = DTYPES[config.precision].itemsize
    factor = torch.bfloat16.itemsize if config.precision == "bf16" else number
    return number * 2 * width + (nodes + 1) * (number * width + factor * (width + config.hidden))


def _seconds_per_epoch(config: TrainConfig, genotype: Genotype | None, corpus: Corpus) -> float:
    """From windows of two lengths, as one part of a step's cost grows with the window and another does not."""
    vocabulary_size = len(corpus.vocabulary)
    with torch.random.fork_rng():  # the probe must not change what the training draws
        torch.manual_seed(config.seed)
        model = build_trained_model(config, genotype, vocabulary_size).to(config.device)
        optimizer = torch.optim.SGD(model.parameters(), 1e-6, weight_decay=config.weight_decay, fused=True)
        short, long = (
            min(timed_step(model, optimizer, tokens) for _ in range(2))
            for tokens in (
                torch.randint(vocabulary_size, (steps + 1, config.data_batch), device=config.device)
                for steps in TRAIN_PROBE_STEPS
            )
        )
    per_step = max(0.0, long - short) / (TRAIN_PROBE_STEPS[1] - TRAIN_PROBE_STEPS[0])
    per_window = max(0.0, short - TRAIN_PROBE_STEPS[0] * per_step)
    steps = len(corpus.train) / config.data_batch
    validated = len(corpus.valid) / 3 / config.data_batch  # validation costs a third, for want of backward
    return steps / config.bptt * per_window + (steps + validated) * per_step


def _network_weights(config: SearchConfig) -> int:
    width = 2 * config.hidden if config.form == "highway" else config.hidden
    return (config.nodes + 2) * config.hidden * width


def _seconds(config: SearchConfig, corpus: Corpus) -> float:
    """Training on every token at the measured rate; validation costs a third of that a token, for want of backward."""
    per_token = _seconds_per_token(config, len(corpus.vocabulary))
    trained = config.epochs_per_round * len(corpus.train)
    return config.rounds * per_token * (trained + len(corpus.valid) / 3)


def _seconds_per_token(config: SearchConfig, vocabulary_size: int) -> float:
    """The rate of a smaller training step, taken as the same a network and token."""
    networks = max(1, min(config.networks, PROBE_WEIGHTS // _network_weights(config)))
    steps, rows = min(PROBE_STEPS, config.bptt), min(PROBE_ROWS, config.data_batch)
    with torch.random.fork_rng():  # the probe must not change what the search draws
        torch.manual_seed(config.seed)
        model = build_model(config, random_genotypes(networks, config.nodes, seed=0), vocabulary_size).to(config.device)
        optimizer = build_optimizer(replace(config, lr=1e-6), model)  # whatever the rate asked for, it must not diverge
        tokens = torch.randint(vocabulary_size, (steps + 1, rows), device=config.device)
        best = min(timed_step(model, optimizer, tokens) for _ in range(3))
    return best / (steps * rows) * config.networks / networks


def timed_step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    tokens: torch.Tensor,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds of one training step on tokens `[T + 1, M]`, by a clock."""
    started = clock()
    loss, _, _ = model.loss(tokens[:-1], tokens[1:])  # type: ignore[operator]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if tokens.is_cuda:
        torch.cuda.synchronize(tokens.device)
    return clock() - started
