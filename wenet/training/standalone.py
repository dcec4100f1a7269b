"""Standalone training of many different cells at once, the yardstick for the claims of a search."""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wenet.cells import Genotype
from wenet.nn import StandaloneLSTM, WeightedDagRNN
from wenet.run import DTYPES, Session, peak_memory, wait_until
from wenet.tasks import Metric, Task
from wenet.training.trainer import Progress, Trainer, random_tensors, restore_random, restore_training

RECORDS, RESULT = "train.jsonl", "result.json"
LSTM = "lstm"  # in files, where a cell has its text
CURVE_POINTS = 20  # records of a training, at equal distances
LARGEST_WEIGHT = 1e15  # a network with larger ones is frozen, as the product of two might overflow


@dataclass(frozen=True)
class Outcome:
    """The result of training one network.

    Attributes:
        genotype: its cell; None for an LSTM.
        value: the task's metric on the validation part; infinitely bad if training diverged.
        train_loss: mean over the last twentieth of the training.
        diverged_at: the window in which training diverged.
    """

    genotype: Genotype | None
    value: float
    train_loss: float | None
    diverged_at: int | None

    def to_dict(self, metric: Metric) -> dict[str, Any]:
        """Convert to JSON, with the metric under its own key."""
        return {
            "genotype": genotype_text(self.genotype),
            metric.key: self.value if math.isfinite(self.value) else None,
            "train_loss": self.train_loss,
            "diverged_at": self.diverged_at,
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any], metric: Metric) -> Outcome:
        measured = metric.worst if value[metric.key] is None else value[metric.key]
        genotype = None if value["genotype"] == LSTM else Genotype.from_text(value["genotype"])
        return cls(genotype, measured, value["train_loss"], value["diverged_at"])


@dataclass(frozen=True)
class StandaloneResult:
    """Outcomes of one training in the order of its cells, and its cost."""

    outcomes: list[Outcome]
    network_windows: int  # networks times windows trained on
    seconds: float
    peak_memory: int  # bytes

    def to_dict(self, metric: Metric) -> dict[str, Any]:
        return {**asdict(self), "outcomes": [outcome.to_dict(metric) for outcome in self.outcomes]}

    @classmethod
    def from_dict(cls, value: dict[str, Any], metric: Metric) -> StandaloneResult:
        return cls(**{**value, "outcomes": [Outcome.from_dict(outcome, metric) for outcome in value["outcomes"]]})

    @classmethod
    def of_parts(cls, parts: Sequence[StandaloneResult]) -> StandaloneResult:
        """Concatenate the results of parallel trainings in rank order."""
        return cls(
            [outcome for part in parts for outcome in part.outcomes],
            sum(part.network_windows for part in parts),
            max(part.seconds for part in parts),
            max(part.peak_memory for part in parts),
        )


@dataclass
class StandaloneProgress(Progress):
    """How far a standalone training has come."""

    diverged_at: list[int | None] = field(default_factory=list)  # the window of each network, counted from 0
    loss_sums: list[float] = field(default_factory=list)  # of each network since the last record
    windows: int = 0  # done
    records: int = 0  # written
    seconds: float = 0.0


def train_standalone(
    session: Session[Any], path: Path, genotypes: Sequence[Genotype | None], windows: int, seed: int, label: str
) -> StandaloneResult:
    """Train a standalone model of every cell, all at once. An unfinished training is resumed, a finished one only read.

    Args:
        path: the training's own folder, made if needed. Several processes divide the networks and work independently,
            each in a folder of its own beside this one.
        session, genotypes, windows, seed, label: as in `StandaloneTraining`.

    Raises:
        WenetError: the disk is full, the checkpoint cannot be used, or the folder belongs to another training.
        Stopped: SIGINT or SIGTERM came; a checkpoint was written first.
    """
    ranks, count, metric = session.ranks, len(genotypes), session.task.metric
    if ranks.alone:
        return _train_some(session, path, genotypes, windows, seed, label)
    folders = {}
    for rank in range(ranks.count):
        part = ranks.own(count, rank)
        if part.start < part.stop:
            folders[rank] = path.with_name(f"{path.name}-{part.start + 1}-{part.stop}")
    if ranks.rank in folders:
        own = ranks.own(count)
        _train_some(session, folders[ranks.rank], genotypes[own], windows, seed, label, (count, own))
    results = [folder / RESULT for folder in folders.values()]
    wait_until(lambda: all(result.exists() for result in results), session.interrupt, path)
    read = (json.loads(result.read_text(encoding="utf-8")) for result in results)
    return StandaloneResult.of_parts([StandaloneResult.from_dict(result, metric) for result in read])


def _train_some(
    session: Session[Any],
    path: Path,
    genotypes: Sequence[Genotype | None],
    windows: int,
    seed: int,
    label: str,
    among: tuple[int, slice] | None = None,
) -> StandaloneResult:
    """Train the networks of one process."""
    stored = {
        "kind": "standalone training",
        "settings": session.config.to_dict(),
        "corpus": session.data.fingerprint,
        "genotypes": [genotype_text(genotype) for genotype in genotypes],
        "windows": windows,
        "seed": seed,
    }
    if among is not None:
        stored["among"] = [among[0], among[1].start, among[1].stop]
    metric = session.task.metric
    with session.part(path, stored) as own:
        if (path / RESULT).exists():
            return StandaloneResult.from_dict(own.folder.read_json(RESULT), metric)
        result = StandaloneTraining(own, genotypes, windows, seed, label, among).run()
        own.folder.write_json(RESULT, result.to_dict(metric))
        own.folder.remove_checkpoints()
        return result


class StandaloneTraining(Trainer):
    """Trains n standalone models at once on the same windows in the same order, in a single stage.

    A network is frozen if its loss or gradient is no longer finite, or a weight exceeds `LARGEST_WEIGHT`: its weights
    become zero and stay zero. The other networks do not change by a bit.

    Args:
        session: its settings decide sizes, rates, dropouts and batches. Nothing is normalised, as in the paper's
            evaluation (section 4.2).
        genotypes: the cells, one network each; or a single None, for an LSTM.
        windows: number of windows to train on; at its end the text starts over.
        seed: seed of initial weights and dropouts.
        label: the training's name on the console.
        among: `(total, slice)`: initialise as if all `total` networks had been drawn, so processes agree.
    """

    records = RECORDS
    progress: StandaloneProgress

    def __init__(
        self,
        session: Session[Any],
        genotypes: Sequence[Genotype | None],
        windows: int,
        seed: int,
        label: str,
        among: tuple[int, slice] | None = None,
    ) -> None:
        super().__init__(session)
        self.genotypes, self.windows, self.seed, self.label = list(genotypes), windows, seed, label
        self.among = among
        self.record_every = max(1, windows // CURVE_POINTS)
        self.progress = StandaloneProgress(0.0, [None] * len(genotypes), [0.0] * len(genotypes))

    def run(self) -> StandaloneResult:
        """Train, then validate.

        Raises:
            WenetError, Stopped: as in `Trainer.train`.
        """
        self.train(self.seed)
        return self.result

    def prepare(self) -> None:
        config, data = self.config, self.session.data
        self.train_streams = self.task.streams(data, "train", config.data_batch).to(self.device)  # [steps, M]
        self.valid_streams = self.task.streams(data, "valid", config.eval_batch).to(self.device)
        self.model = build_standalone(config, self.genotypes, self.task, data, self.among).to(self.device)
        rate = config.lr if config.standalone_lr is None else config.standalone_lr
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=rate, weight_decay=config.weight_decay, fused=True
        )
        self._count_from(self.progress)

    def restore(self, tensors: dict[str, Tensor]) -> None:
        restore_training(self.model, self.optimizer, tensors)
        self.h = tensors["h"].to(self.device) if "h" in tensors else None
        self._count_from(self.progress)

    def _count_from(self, progress: StandaloneProgress) -> None:
        self.alive = torch.tensor([window is None for window in progress.diverged_at], device=self.device)  # [n]
        self.loss_sum = torch.tensor(progress.loss_sums, dtype=torch.float64, device=self.device)  # [n]

    def finished(self) -> bool:
        return self.stage_done()

    def stage_done(self) -> bool:
        return self.progress.windows >= self.windows

    def next_window(self) -> tuple[Tensor, Tensor]:
        steps = self.config.bptt
        per_pass = -(-self.task.steps_per_pass(self.train_streams) // steps)
        start = self.progress.windows % per_pass * steps
        if start == 0:
            self.h = None  # each pass over the text starts from a zero state
        return self.task.window(self.train_streams, start, steps)

    def step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Take a step and return each network's loss. If a network diverges, the step is repeated without it."""
        before = random_tensors(self.device)
        losses, norms, h = self._differentiate(inputs, targets)
        while bool((failed := self.alive & ~(losses.isfinite() & norms.isfinite())).any()):
            self._freeze(failed)
            restore_random(before, self.device)
            losses, norms, h = self._differentiate(inputs, targets)
        self._clip(norms)
        self.optimizer.step()
        self.h = h
        if bool((failed := self.alive & ~(self.model.largest_weights() < LARGEST_WEIGHT)).any()):
            self._freeze(failed)
        return losses

    def count(self, inputs: Tensor, loss: Tensor) -> None:
        self.loss_sum += torch.where(self.alive, loss, 0)
        self.progress.windows += 1
        if self.progress.windows % self.record_every == 0 or self.progress.windows == self.windows:
            self._record()
        self.console.advance(self.label, inputs.numel(), f"mean loss {float(loss[self.alive].mean()):.3f}")

    def _differentiate(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute gradients; returns each network's loss and gradient norm, `[n]`, and the last states `[n, M, H]`."""
        config = self.config
        loss, losses, h = self.model.loss(
            inputs, targets, self.h, config.activation_reg, config.temporal_activation_reg
        )
        self.optimizer.zero_grad()
        loss.backward()
        norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in self._gradients()]).norm(dim=0)
        return losses, norms, h.detach()

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.model.parameters() if p.grad is not None]

    def _clip(self, norms: Tensor) -> None:
        """Clip each network's gradient by its own norm; gradients of frozen networks become zero."""
        scale = torch.where(self.alive, (self.config.clip / (norms + 1e-6)).clamp(max=1), 0)  # [n]
        for gradient in self._gradients():
            gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)))

    @torch.no_grad()
    def _freeze(self, failed: Tensor) -> None:
        """Set weights, moments and state of failed networks to zero, so that all their later updates are zero too."""
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
            self.progress.diverged_at[network] = self.progress.windows
            self.console.say(
                f"{self.label}: network {first + network + 1} of {total} diverged in window "
                f"{self.progress.windows + 1} and is frozen, the others go on: {genotype_text(self.genotypes[network])}"
            )

    def _record(self) -> None:
        """Record each network's mean loss since the last record."""
        since = self.progress.windows - self.progress.records * self.record_every
        losses = (self.loss_sum / since).tolist()
        record = {
            "windows": self.progress.windows,
            "train_loss": [loss if alive else None for loss, alive in zip(losses, self.alive.tolist(), strict=True)],
            "seconds_so_far": round(self.lap(), 3),
        }
        self.folder.append_record(RECORDS, record)
        self.progress.records += 1
        self.loss_sum.zero_()

    def recorded(self) -> int:
        return self.progress.records

    def finish(self) -> None:
        """Validate all networks."""
        measured = self.task.measure(self.model, self.valid_streams, self.config.bptt, self.stop_if_asked).metric
        last = self.folder.records(RECORDS)[-1]["train_loss"]
        outcomes = [
            Outcome(genotype, value if window is None else self.task.metric.worst, loss, window)
            for genotype, value, loss, window in zip(
                self.genotypes, measured.tolist(), last, self.progress.diverged_at, strict=True
            )
        ]
        count = len(self.genotypes) * self.windows
        self.result = StandaloneResult(outcomes, count, round(self.lap(), 3), peak_memory(self.device))

    def tensors(self) -> dict[str, Tensor]:
        self.progress.loss_sums = self.loss_sum.tolist()
        return super().tensors()

    def units_in_all(self) -> int:
        return self.windows

    def units_done(self) -> int:
        return self.progress.windows


def training_windows(session: Session[Any], passes: float) -> int:
    """Number of windows in some passes over the training part."""
    config, task = session.config, session.task
    streams = task.streams(session.data, "train", config.data_batch)
    return max(1, round(passes * -(-task.steps_per_pass(streams) // config.bptt)))


def build_standalone(
    config: Any, genotypes: Sequence[Genotype | None], task: Task, data: Any, among: tuple[int, slice] | None = None
) -> Any:
    """Build standalone models with the sizes of the settings, without normalisation."""
    cells = [genotype for genotype in genotypes if genotype is not None]
    layer: WeightedDagRNN | StandaloneLSTM
    if not cells:
        layer = StandaloneLSTM(config.hidden, config.dropout_x, config.dropout_h)
    else:
        layer = WeightedDagRNN(
            config.hidden,
            config.hidden,
            cells,
            form=config.form,
            coupling="independent",
            dropout_x=config.dropout_x,
            dropout_h=config.dropout_h,
            backend=config.backend,
            precision=config.precision,
            among=among,
        )
    return task.standalone_models(layer, config, data).to(DTYPES[config.precision])


def size_of_lstm(config: Any, genotypes: Sequence[Genotype], task: Task, data: Any) -> int:
    """The hidden size that gives an LSTM's model as many parameters as a cell's, or a few more."""

    def parameters(own: Any, genotype: Genotype | None) -> int:
        return sum(p.numel() for p in build_standalone(own, [genotype], task, data).parameters())

    sizes = range(1, 16 * config.hidden)
    with torch.device("meta"):
        wanted = parameters(config, genotypes[0])
        return sizes[bisect_left(sizes, wanted, key=lambda size: parameters(replace(config, hidden=size), None))]


def genotype_text(genotype: Genotype | None) -> str:
    """A cell as text for files and messages; None stands for an LSTM."""
    return LSTM if genotype is None else str(genotype)
