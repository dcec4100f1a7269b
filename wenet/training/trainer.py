"""The training loop: window after window, with a checkpoint between any two of them, until the work is done."""

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
    """Training met a value that is not finite."""


@dataclass
class Progress:
    """How far a training has come between two windows, apart from its tensors; a checkpoint holds it as JSON.

    Attributes:
        seconds: spent so far, by all processes that have worked on it.
    """

    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Self:
        return cls(**value)


class Trainer(ABC):
    """Trains a model in stages: rounds of a search, epochs of a training, or a single one.

    Search, evaluation training and standalone training fill in how a stage begins, what a step is, and what is done
    when a stage ends.

    Args:
        session: what it works with. Its folder takes records and checkpoints.
    """

    records: ClassVar[str]  # the file with a record for each stage
    unit: ClassVar[str] = "window"  # of progress
    progress: Any  # a `Progress` of the trainer's own
    model: Any
    optimizer: torch.optim.Optimizer
    h: Tensor | None = None  # the state that the next window starts from

    def __init__(self, session: Session[Any]) -> None:
        self.session, self.config, self.task = session, session.config, session.task
        self.folder, self.console, self.ranks = session.folder, session.console, session.ranks
        self.device = session.device
        self.curves = Curves(None, 0)
        self._lap_started = self._saved = time.monotonic()

    def train(self, seed: int) -> None:
        """Train from the last checkpoint, or from the start where there is none.

        Args:
            seed: of initial weights and dropouts; the generators are left as they were.

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
        """Windows until the stage is done."""
        self.begin_stage()
        while not self.stage_done():
            inputs, targets = self.next_window()
            loss = self.step(inputs, targets)
            self.count(inputs, loss)
            self._checkpoint_if_due()
        self.end_stage()

    @abstractmethod
    def prepare(self) -> None:
        """Whatever must be there before a checkpoint is put back."""

    @abstractmethod
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put back the tensors of a checkpoint; `progress` is back already."""

    @abstractmethod
    def finished(self) -> bool:
        """Whether all stages are done."""

    def begin_stage(self) -> None:
        """Get ready for the windows of a stage, or for those that are left of it."""

    @abstractmethod
    def stage_done(self) -> bool:
        """Whether all windows of the stage are done."""

    @abstractmethod
    def next_window(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets."""

    @abstractmethod
    def step(self, inputs: Tensor, targets: Tensor) -> Any:
        """Learn from one window; returns its loss, of each network where there are several."""

    @abstractmethod
    def count(self, inputs: Tensor, loss: Any) -> None:
        """Move on by one window, and show it."""

    def end_stage(self) -> None:
        """Measure, record, and write a checkpoint."""

    def finish(self) -> None:
        """Measure what all of the training came to."""

    @abstractmethod
    def units_in_all(self) -> int:
        """How much there is to do, in the unit of progress."""

    @abstractmethod
    def units_done(self) -> int:
        """How much of it is done."""

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint between two windows holds besides the random generators."""
        h = {} if self.h is None else {"h": self.h}
        return {**training_tensors(self.model, self.optimizer), **h}

    def save(self, tensors: dict[str, Tensor]) -> None:
        """Write a checkpoint."""
        self.lap()
        self.folder.save_checkpoint(self.progress.to_dict(), {**tensors, **random_tensors(self.device)})
        self._saved = time.monotonic()

    def lap(self) -> float:
        """Add the time since the last call to what the training has cost."""
        now = time.monotonic()
        self.progress.seconds += now - self._lap_started
        self._lap_started = now
        seconds: float = self.progress.seconds
        return seconds

    def stop_if_asked(self) -> None:
        """Write a checkpoint and leave, where a signal has come to this process or another."""
        requested = self.ranks.largest(self.session.interrupt.requested or 0)
        if requested:
            self.save(self.tensors())
            self.console.stop()
            raise Stopped(requested, self.folder.path)

    def read_progress(self, value: dict[str, Any]) -> Any:
        """The progress that a checkpoint holds."""
        return type(self.progress).from_dict(value)

    def recorded(self) -> int:
        """How many records the progress knows of."""
        raise NotImplementedError

    def _checkpoint_if_due(self) -> None:
        self.stop_if_asked()
        due = time.monotonic() - self._saved >= 60 * self.session.surroundings.checkpoint_every
        if self.ranks.largest(due):  # all processes write it together
            self.save(self.tensors())

    def _restore(self) -> None:
        """Take up the newest checkpoint where there is one."""
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
    """A trainer of one model, which fails as a whole where training diverges."""

    @abstractmethod
    def position(self) -> str:
        """Where training is, in words."""

    def differentiate(self, inputs: Tensor, targets: Tensor) -> float:
        """Clipped gradients of one window's loss; returns the loss that is reported, the mean over all processes.

        The state goes on without its history.
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
        """The mean over all rows of the data batch of what is a mean over this process's rows."""
        return value

    def clip_gradients(self) -> Tensor:
        """Scale the gradients down to a global norm of `config.clip`; returns what it was."""
        return nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)

    @contextmanager
    def naming_divergence(self) -> Iterator[None]:
        """The settings are checked by now, so all that the model can still refuse is NaN."""
        try:
            yield
        except LostRanks:
            raise
        except WenetError as error:
            raise self.divergence(str(error).split(";")[0]) from None

    def divergence(self, what: str, where: str | None = None) -> Diverged:
        return Diverged(f"training diverged: {what} in {where or self.position()}; lower --lr or --init-range")

    def check_finite(self, name: str, value: Tensor) -> None:
        if not bool(torch.isfinite(value)):
            raise self.divergence(f"the {name} is {value.item()}")


def training_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Parameters, buffers and the optimizer's state under flat names, for a checkpoint."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
    return tensors


def restore_training(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `training_tensors` took."""
    model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def random_tensors(device: torch.device) -> dict[str, Tensor]:
    """The states of the random generators that training on a device draws from."""
    tensors = {"random.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    return tensors


def restore_random(tensors: dict[str, Tensor], device: torch.device) -> None:
    """Put back what `random_tensors` took."""
    torch.set_rng_state(tensors["random.cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random.cuda"], device)
