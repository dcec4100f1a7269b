"""The training loop: one window after another until the work is done, with checkpoints in between."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from wenet.run import Session, Stopped
from wenet.run.curves import FOLDER, Curves
from wenet_kernels import LostRanks, WenetError


class Diverged(WenetError):
    """Training produced a value that is not finite."""


@dataclass
class Progress:
    """The state of a training between two windows, apart from tensors; checkpoints hold it as JSON.

    Attributes:
        seconds: time spent so far, in all sessions that worked on it.
    """

    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Self:
        return cls(**value)


class Trainer(ABC):
    """Trains a model in stages: the rounds of a search, the epochs of a training, or a single stage.

    Search, evaluation training and standalone training define how a stage begins, what a step does, and what happens
    when a stage ends.

    Args:
        session: everything the trainer works with; records and checkpoints go into its folder.
    """

    records: ClassVar[str]  # the file with a record for each stage
    unit: ClassVar[str] = "window"  # the unit of progress
    progress: Any  # the trainer's own subclass of `Progress`
    task: Any  # a `Task`; trainers that carry a state through windows of any length need a `CarryingTask`
    model: Any
    optimizer: torch.optim.Optimizer
    h: Tensor | None = None  # the state from which the next window starts

    def __init__(self, session: Session[Any]) -> None:
        self.session, self.config, self.task = session, session.config, session.task
        self.folder, self.console, self.ranks = session.folder, session.console, session.ranks
        self.device = session.device
        self.curves = Curves(None, 0)
        self._lap_started = self._saved = time.monotonic()

    def train(self, seed: int) -> None:
        """Train from the last checkpoint, or from the start if there is none.

        Args:
            seed: seed of initial weights and dropouts; the global generators keep their state.

        Raises:
            WenetError: training diverged, the disk is full, or the checkpoint cannot be used.
            Stopped: SIGINT or SIGTERM came; a checkpoint was written first.
        """
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            self.prepare()
            self._restore()
            self.console.start(self.units_in_all(), self.units_done(), self.unit)
            with closing(Curves(self._curves_folder(), self.units_done())) as self.curves:
                while not self.finished():
                    self.train_stage()
            self.finish()
            self.console.stop()

    def train_stage(self) -> None:
        """Train on windows until the stage is done."""
        self.begin_stage()
        while not self.stage_done():
            inputs, targets = self.next_window()
            loss = self.step(inputs, targets)
            self.count(inputs, loss)
            self._checkpoint_if_due()
        self.end_stage()

    @abstractmethod
    def prepare(self) -> None:
        """Build everything that must exist before a checkpoint is restored."""

    @abstractmethod
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Restore the tensors of a checkpoint; `progress` is restored already."""

    @abstractmethod
    def finished(self) -> bool:
        """Whether all stages are done."""

    def begin_stage(self) -> None:
        """Prepare for the windows of a stage, or for the rest of them."""

    @abstractmethod
    def stage_done(self) -> bool:
        """Whether all windows of the stage are done."""

    @abstractmethod
    def next_window(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the next window."""

    @abstractmethod
    def step(self, inputs: Tensor, targets: Tensor) -> Any:
        """Learn from one window; returns its loss, or the losses of several networks."""

    @abstractmethod
    def count(self, inputs: Tensor, loss: Any) -> None:
        """Advance the progress by one window and show it."""

    def end_stage(self) -> None:
        """Measure, record, and write a checkpoint."""

    def finish(self) -> None:
        """Measure the result of the whole training."""

    @abstractmethod
    def units_in_all(self) -> int:
        """The amount of work in all, in the unit of progress."""

    @abstractmethod
    def units_done(self) -> int:
        """The amount of work done."""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint between two windows, except for the random generators."""
        h = {} if self.h is None else {"h": self.h}
        return {**training_tensors(self.model, self.optimizer), **h}

    def save(self, tensors: dict[str, Tensor]) -> None:
        """Write a checkpoint."""
        self.lap()
        self.folder.save_checkpoint(self.progress.to_dict(), {**tensors, **random_tensors(self.device)})
        if self.session.budget is not None:
            self.session.budget.keep()
        self._saved = time.monotonic()

    def lap(self) -> float:
        """Add the time since the last call to the training's seconds; returns their sum."""
        now = time.monotonic()
        self.progress.seconds += now - self._lap_started
        self._lap_started = now
        seconds: float = self.progress.seconds
        return seconds

    def stop_if_asked(self) -> None:
        """Write a checkpoint and raise `Stopped` if a signal came to this process or another."""
        requested = self.ranks.largest(self.session.interrupt.requested or 0)
        if requested:
            self.save(self.tensors())
            self.console.stop()
            raise Stopped(requested, self.folder.path)

    def read_progress(self, value: dict[str, Any]) -> Any:
        """Read the progress in a checkpoint."""
        return type(self.progress).from_dict(value)

    def recorded(self) -> int:
        """The number of records that belong to the progress so far."""
        raise NotImplementedError

    def _checkpoint_if_due(self) -> None:
        self.stop_if_asked()
        due = time.monotonic() - self._saved >= 60 * self.session.surroundings.checkpoint_every
        if self.ranks.largest(due):  # all processes write it together
            self.save(self.tensors())

    def _restore(self) -> None:
        """Continue from the newest checkpoint, if there is one."""
        checkpoint = self.folder.load_checkpoint()
        if checkpoint is not None:
            progress, tensors = checkpoint
            self.progress = self.read_progress(progress)
            self.restore(tensors)
            restore_random(tensors, self.device)
        self.folder.truncate_records(self.records, self.recorded())

    def _curves_folder(self) -> Any:
        wanted = self.session.surroundings.tensorboard and self.ranks.first
        return self.folder.path / FOLDER if wanted else None


class ModelTrainer(Trainer):
    """A trainer of one model; if the model diverges, the training fails."""

    @abstractmethod
    def position(self) -> str:
        """The place of the training, in words."""

    def differentiate(self, inputs: Tensor, targets: Tensor) -> float:
        """Compute the clipped gradients of one window; returns the reported loss, the mean over all processes.

        The state is carried on, detached from its history.
        """
        config = self.config
        with self.naming_divergence():
            loss, reported, h = self.model.loss(
                inputs, targets, self.h, config.activation_reg, config.temporal_activation_reg
            )
        self.check_finite("loss", self.mean_over_rows(loss.detach()))
        self.optimizer.zero_grad()
        loss.backward()
        self.check_finite("gradient", self.clip_gradients())
        self.h = h.detach()
        return float(self.mean_over_rows(reported))

    def mean_over_rows(self, value: Tensor) -> Tensor:
        """Turn a mean over this process's rows into the mean over all rows of the data batch."""
        return value

    def clip_gradients(self) -> Tensor:
        """Scale gradients down to a global norm of `config.clip`; returns the norm before."""
        return nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)

    @contextmanager
    def naming_divergence(self) -> Iterator[None]:
        """Report errors of the model as divergence: settings are checked, so it can only refuse NaN."""
        try:
            yield
        except LostRanks:
            raise
        except WenetError as error:
            raise self.divergence(str(error).split(";")[0]) from None

    def divergence(self, what: str, where: str | None = None) -> Diverged:
        return Diverged(f"training diverged: {what} in {where or self.position()}; {self.mend()}")

    def mend(self) -> str:
        """What may help where a value is not finite."""
        return "lower --lr or --init-range"

    def check_finite(self, name: str, value: Tensor) -> None:
        if not bool(torch.isfinite(value)):
            raise self.divergence(f"the {name} is {value.item()}")


def training_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Parameters, buffers and optimizer state under flat names, for a checkpoint."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
    return tensors


def restore_training(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restore the tensors that `training_tensors` returned."""
    model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def random_tensors(device: torch.device) -> dict[str, Tensor]:
    """States of the random generators that training on a device uses."""
    tensors = {"random.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    return tensors


def restore_random(tensors: dict[str, Tensor], device: torch.device) -> None:
    """Restore the states that `random_tensors` returned."""
    torch.set_rng_state(tensors["random.cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random.cuda"], device)
