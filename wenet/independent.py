"""Standalone training of many different cells at once: what the claims of a search are measured against."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wenet.checkpoint import RunFolder
from wenet.config import DTYPES, PRECISIONS, SearchConfig
from wenet.data import batchify
from wenet.distributed import ALONE
from wenet.genotype import Genotype
from wenet.interrupt import wait_until
from wenet.memory import peak_memory
from wenet.nn import IndependentLanguageModels, WeightedDagRNN
from wenet.resumable import ResumableRun, Workplace
from wenet.training import (
    exponential,
    mean_cross_entropy,
    random_tensors,
    restore_random,
    restore_training,
    training_tensors,
    window,
    windows_per_epoch,
)

RECORDS, RESULT = "train.jsonl", "result.json"
CURVE_POINTS = 20  # records of a training, at equal distances
LARGEST_WEIGHT = 1e15  # of a network that still trains: the product of two beyond it may overflow


@dataclass(frozen=True)
class Outcome:
    """What the training of one network came to."""

    genotype: Genotype
    perplexity: float  # on the validation text; infinite where training diverged
    train_loss: float | None  # cross-entropy over the last twentieth of the training, nats per token
    diverged_at: int | None  # window in which training diverged

    def to_dict(self) -> dict[str, Any]:
        finite = math.isfinite(self.perplexity)
        return {
            "genotype": str(self.genotype),
            "perplexity": self.perplexity if finite else None,
            "train_loss": self.train_loss,
            "diverged_at": self.diverged_at,
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Outcome:
        perplexity = math.inf if value["perplexity"] is None else value["perplexity"]
        genotype = Genotype.from_text(value["genotype"])
        return cls(genotype, perplexity, value["train_loss"], value["diverged_at"])


@dataclass(frozen=True)
class TrainingResult:
    """Of all networks of one training, in the order they were given in, and its cost."""

    outcomes: list[Outcome]
    network_windows: int  # networks times windows trained on
    seconds: float
    peak_memory: int  # bytes

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "outcomes": [outcome.to_dict() for outcome in self.outcomes]}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> TrainingResult:
        return cls(**{**value, "outcomes": [Outcome.from_dict(outcome) for outcome in value["outcomes"]]})

    @classmethod
    def of_parts(cls, values: Sequence[dict[str, Any]]) -> TrainingResult:
        """Of trainings that ran side by side, the networks of one after those of the other."""
        parts = [cls.from_dict(value) for value in values]
        return cls(
            [outcome for part in parts for outcome in part.outcomes],
            sum(part.network_windows for part in parts),
            max(part.seconds for part in parts),
            max(part.peak_memory for part in parts),
        )


@dataclass
class TrainingState:
    """Where a training stands between two windows, apart from the tensors."""

    diverged_at: list[int | None]  # of every network: the window, counted from 0, in which it diverged
    loss_sums: list[float]  # of every network since the last record
    windows: int = 0  # done
    records: int = 0  # written
    seconds: float = 0.0  # spent on the training so far, by all processes that worked on it

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def train_independently(
    work: Workplace[SearchConfig],
    path: Path,
    genotypes: Sequence[Genotype],
    windows: int,
    seed: int,
    label: str,
) -> TrainingResult:
    """Train a standalone language model of every cell, all at once; what was begun goes on, what is finished is read.

    Args:
        work, genotypes, windows, seed, label: as in `IndependentTraining`.
        path: of the training's own folder, made at need. Of several ranks each trains some of the networks in a folder
            of its own beside it, without a word to the others.

    Raises:
        WenetError: the disk is full, the checkpoint cannot be used, or the folder is of another training.
        Stopped: SIGINT or SIGTERM came; a checkpoint was written first.
    """
    ranks, count = work.ranks, len(genotypes)
    if ranks.alone:
        return _train_some(work, path, genotypes, windows, seed, label)
    folders = {}
    for rank in range(ranks.count):
        part = ranks.own(count, rank)
        if part.start < part.stop:
            folders[rank] = path.with_name(f"{path.name}-{part.start + 1}-{part.stop}")
    if ranks.rank in folders:
        own = ranks.own(count)
        alone = replace(work, ranks=ALONE)
        _train_some(alone, folders[ranks.rank], genotypes[own], windows, seed, label, among=(count, own))
    results = [folder / RESULT for folder in folders.values()]
    wait_until(lambda: all(result.exists() for result in results), work.interrupt, path)
    return TrainingResult.of_parts([json.loads(result.read_text(encoding="utf-8")) for result in results])


def _train_some(
    work: Workplace[SearchConfig],
    path: Path,
    genotypes: Sequence[Genotype],
    windows: int,
    seed: int,
    label: str,
    among: tuple[int, slice] | None = None,
) -> TrainingResult:
    """Those networks that one process trains."""
    settings = {
        "kind": "independent training",
        "settings": work.config.to_dict(),
        "corpus": work.corpus.fingerprint,
        "genotypes": [str(genotype) for genotype in genotypes],
        "windows": windows,
        "seed": seed,
    }
    if among is not None:
        settings["among"] = [among[0], among[1].start, among[1].stop]
    with closing(RunFolder.open_or_create(path, settings)) as run:
        if (path / RESULT).exists():
            return TrainingResult.from_dict(run.read_json(RESULT))
        result = IndependentTraining(work, run, genotypes, windows, seed, label, among).run()
        run.write_json(RESULT, result.to_dict())
        run.remove_checkpoints()
        return result


class IndependentTraining(ResumableRun):
    """Trains n standalone language models for so many windows of text, all at once and in the same order.

    A network whose loss or gradient is no longer finite, or a weight of which passes `LARGEST_WEIGHT`, is frozen: its
    weights are set to zero and stay there. What the others compute does not change by a bit.

    Args:
        work: the settings decide sizes, rates, dropouts and batches. Nothing is normalised, as in the paper's
            evaluation (section 4.2).
        run: takes records and checkpoints.
        genotypes: one network for each.
        windows: to train on; the text starts again where it ends.
        seed: of the initial weights and the dropouts.
        label: names the training on the console.
        among: as in `WeightedDagRNN`.
    """

    def __init__(
        self,
        work: Workplace[SearchConfig],
        run: RunFolder,
        genotypes: Sequence[Genotype],
        windows: int,
        seed: int,
        label: str,
        among: tuple[int, slice] | None = None,
    ) -> None:
        super().__init__(work, run)
        self.config = work.config
        self.genotypes, self.windows, self.seed, self.label = list(genotypes), windows, seed, label
        self.among = among
        self.record_every = max(1, windows // CURVE_POINTS)
        self.state: TrainingState = TrainingState([None] * len(genotypes), [0.0] * len(genotypes))
        self.h: Tensor | None = None  # [n, M, H]

    def run(self) -> TrainingResult:
        """Train, from the last checkpoint where there is one, then validate."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.seed)
            self._begin()
            self.console.start(self.windows, self.state.windows)
            self._train()
            result = self._result()
            self.console.stop()
        return result

    def _begin(self) -> None:
        """Text, model and optimizer, as they were at the last checkpoint where there is one."""
        config, corpus = self.config, self.corpus
        self.train_stream = batchify(corpus.train, config.data_batch).to(self.device)  # [steps, M]
        self.valid_stream = batchify(corpus.valid, config.eval_batch).to(self.device)
        self.model = build_independent(config, self.genotypes, len(corpus.vocabulary), self.among)
        self.model.to(self.device)
        rate = config.lr if config.standalone_lr is None else config.standalone_lr
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=rate, weight_decay=config.weight_decay, fused=True
        )
        checkpoint = self.folder.load_checkpoint()
        if checkpoint is not None:
            progress, tensors = checkpoint
            self.state = TrainingState(**progress)
            restore_training(self.model, self.optimizer, tensors)
            restore_random(tensors, self.device)
            self.h = tensors["h"].to(self.device) if "h" in tensors else None
        self.alive = torch.tensor([window is None for window in self.state.diverged_at], device=self.device)  # [n]
        self.loss_sum = torch.tensor(self.state.loss_sums, dtype=torch.float64, device=self.device)  # [n]
        self.folder.truncate_records(RECORDS, self.state.records)

    def _train(self) -> None:
        windows = windows_per_epoch(self.train_stream, self.config.bptt)
        while self.state.windows < self.windows:
            cursor = self.state.windows % windows
            if cursor == 0:
                self.h = None  # each pass over the text starts from a hidden state of zero
            tokens, targets = window(self.train_stream, self.config.bptt, cursor)
            cross_entropy = self._step(tokens, targets)
            self.loss_sum += torch.where(self.alive, cross_entropy, 0)
            self.state.windows += 1
            if self.state.windows % self.record_every == 0 or self.state.windows == self.windows:
                self._record()
            self._show_window(tokens.numel(), cross_entropy)
            self._checkpoint_if_due()

    def _step(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """One window; returns every network's cross-entropy. Where a network diverges, the step is repeated without."""
        before = random_tensors(self.device)
        cross_entropy, norms, h = self._differentiate(tokens, targets)
        while bool((failed := self.alive & ~(cross_entropy.isfinite() & norms.isfinite())).any()):
            self._freeze(failed)
            restore_random(before, self.device)
            cross_entropy, norms, h = self._differentiate(tokens, targets)
        self._clip(norms)
        self.optimizer.step()
        self.h = h
        if bool((failed := self.alive & ~(self.model.largest_weights() < LARGEST_WEIGHT)).any()):
            self._freeze(failed)
        return cross_entropy

    def _differentiate(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of a window, with every network's cross-entropy and norm of the gradient, `[n]`, and the last
        states `[n, M, H]`."""
        config = self.config
        loss, cross_entropy, h = self.model.loss(
            tokens, targets, self.h, config.activation_reg, config.temporal_activation_reg
        )
        self.optimizer.zero_grad()
        loss.backward()
        norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in self._gradients()]).norm(dim=0)
        return cross_entropy, norms, h.detach()

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.model.parameters() if p.grad is not None]

    def _clip(self, norms: Tensor) -> None:
        """Each network's gradient by its own norm, those of frozen networks to nothing."""
        scale = torch.where(self.alive, (self.config.clip / (norms + 1e-6)).clamp(max=1), 0)  # [n]
        for gradient in self._gradients():
            gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)))

    @torch.no_grad()
    def _freeze(self, failed: Tensor) -> None:
        """Zero weights, moments and state make every later product of a network zero, and its updates with them."""
        for parameter in self.model.parameters():
            moments = [m for m in self.optimizer.state[parameter].values() if m.shape == parameter.shape]
            for tensor in (parameter, *moments):
                tensor[failed] = 0
        if self.h is not None:
            self.h[failed] = 0
        self.loss_sum[failed] = 0
        self.alive = self.alive & ~failed
        total, first = (self.among[0], self.among[1].start) if self.among else (len(self.genotypes), 0)
        for network in failed.nonzero().flatten().tolist():
            self.state.diverged_at[network] = self.state.windows
            self.console.say(
                f"{self.label}: network {first + network + 1} of {total} diverged in window "
                f"{self.state.windows + 1} and is frozen, the others go on: {self.genotypes[network]}"
            )

    def _record(self) -> None:
        """Every network's mean loss since the last record."""
        since = self.state.windows - self.state.records * self.record_every
        losses = (self.loss_sum / since).tolist()
        record = {
            "windows": self.state.windows,
            "train_loss": [loss if alive else None for loss, alive in zip(losses, self.alive.tolist(), strict=True)],
            "seconds_so_far": round(self._lap(), 3),
        }
        self.folder.append_record(RECORDS, record)
        self.state.records += 1
        self.loss_sum.zero_()

    def _result(self) -> TrainingResult:
        mean = mean_cross_entropy(self.model, self.valid_stream, self.config.bptt, between=self._stop_if_asked)
        last = self.folder.records(RECORDS)[-1]["train_loss"]
        outcomes = [
            Outcome(genotype, exponential(nats) if window is None else math.inf, loss, window)
            for genotype, nats, loss, window in zip(
                self.genotypes, mean.tolist(), last, self.state.diverged_at, strict=True
            )
        ]
        count = len(self.genotypes) * self.windows
        return TrainingResult(outcomes, count, round(self._lap(), 3), peak_memory(self.device))

    def _save_between_windows(self) -> None:
        self.state.loss_sums = self.loss_sum.tolist()
        h = {} if self.h is None else {"h": self.h}
        self._save({**training_tensors(self.model, self.optimizer), **h})

    def _show_window(self, tokens: int, cross_entropy: Tensor) -> None:
        self.console.advance(self.label, tokens, f"mean loss {float(cross_entropy[self.alive].mean()):.3f}")


def build_independent(
    config: SearchConfig,
    genotypes: Sequence[Genotype],
    vocabulary_size: int,
    among: tuple[int, slice] | None = None,
) -> IndependentLanguageModels:
    """Standalone language models of the settings' sizes, without normalisation."""
    rnn = WeightedDagRNN(
        config.hidden,
        config.hidden,
        genotypes,
        form=config.form,
        coupling="independent",
        dropout_x=config.dropout_x,
        dropout_h=config.dropout_h,
        backend=config.backend,
        precision=PRECISIONS[config.precision],
        among=among,
    )
    model = IndependentLanguageModels(
        vocabulary_size,
        rnn,
        config.dropout_embedding,
        config.dropout_output,
        config.init_range,
        config.dropout_word,
    )
    return model.to(DTYPES[config.precision])
