"""Work in a run folder that can stop between any two windows and go on bit-exactly."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol

import torch
from torch import Tensor, nn

from wenet.checkpoint import RunFolder
from wenet.config import AnyConfig, SearchConfig, TrainConfig
from wenet.console import Console
from wenet.curves import FOLDER, Curves
from wenet.data import Corpus
from wenet.distributed import ALONE, Ranks
from wenet.interrupt import Interrupt, Stopped
from wenet.nn import LanguageModel
from wenet.training import random_tensors
from wenet_kernels import LostRanks, WenetError


class Diverged(WenetError):
    """Training met a value that is not finite."""


@dataclass(frozen=True)
class Workplace(Generic[AnyConfig]):
    """What everything within a run works with.

    Attributes:
        config: with backend and device resolved.
        checkpoint_every: minutes between checkpoints.
        interrupt: tells when someone asks the run to stop.
        tensorboard: whether to write curves for TensorBoard into run folders.
        ranks: work on the run together.
    """

    config: AnyConfig
    corpus: Corpus
    console: Console
    checkpoint_every: float
    interrupt: Interrupt
    tensorboard: bool = False
    ranks: Ranks = ALONE


class State(Protocol):
    """Where the work stands, apart from tensors."""

    seconds: float  # spent on the run so far, by all processes that worked on it

    def to_dict(self) -> dict[str, Any]: ...


class ResumableRun(ABC):
    """What all long work has in common: checkpoints, requests to stop, the clock.

    Args:
        work: what it is done with.
        run: takes records and checkpoints.
    """

    state: State

    def __init__(self, work: Workplace[Any], run: RunFolder) -> None:
        self.device = torch.device(work.config.device)
        self.corpus, self.console, self.interrupt, self.ranks = work.corpus, work.console, work.interrupt, work.ranks
        self.folder = run
        self.checkpoint_seconds = 60 * work.checkpoint_every
        self._lap_started = self._saved = time.monotonic()

    @abstractmethod
    def _save_between_windows(self) -> None:
        """Write a checkpoint in the middle of training."""

    def _checkpoint_if_due(self) -> None:
        self._stop_if_asked()
        due = time.monotonic() - self._saved >= self.checkpoint_seconds
        if self.ranks.largest(due):  # all ranks write it together
            self._save_between_windows()

    def _stop_if_asked(self) -> None:
        requested = self.ranks.largest(self.interrupt.requested or 0)
        if requested:
            self._save_between_windows()
            self.console.stop()
            raise Stopped(requested, self.folder.path)

    def _save(self, tensors: dict[str, Tensor]) -> None:
        self._lap()
        self.folder.save_checkpoint(self.state.to_dict(), {**tensors, **random_tensors(self.device)})
        self._saved = time.monotonic()

    def _lap(self) -> float:
        """Add the time since the last call to what the run has cost."""
        now = time.monotonic()
        self.state.seconds += now - self._lap_started
        self._lap_started = now
        return self.state.seconds


class ModelRun(ResumableRun):
    """What searching and evaluating have in common besides: the gradients of one model, with which it all diverges.

    Args:
        work, run: as in `ResumableRun`.
    """

    config: SearchConfig | TrainConfig
    model: LanguageModel
    optimizer: torch.optim.Optimizer
    h: Tensor | None = None  # [1, M, H]
    curves: Curves

    def __init__(self, work: Workplace[Any], run: RunFolder) -> None:
        super().__init__(work, run)
        self.curves_folder = run.path / FOLDER if work.tensorboard and work.ranks.first else None

    @abstractmethod
    def _position(self) -> str:
        """Where training is, in words."""

    def _differentiate(self, tokens: Tensor, targets: Tensor) -> float:
        """Clipped gradients of one window's loss; returns the cross-entropy within it, nats per token.

        The hidden state goes on without its history.
        """
        config = self.config
        with self._naming_divergence():
            loss, cross_entropy, h = self.model.loss(
                tokens, targets, self.h, config.activation_reg, config.temporal_activation_reg
            )
        self._check_finite("loss", self._mean_over_rows(loss.detach()))
        self.optimizer.zero_grad()
        loss.backward()
        self._check_finite("gradient", self._clip_gradients())
        self.h = h.detach()
        return float(self._mean_over_rows(cross_entropy))

    def _mean_over_rows(self, value: Tensor) -> Tensor:
        """The mean over all rows of the data batch of what is one over this rank's."""
        return value

    def _clip_gradients(self) -> Tensor:
        """Scale the gradients down to a global norm of `config.clip`; returns what it was."""
        return nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)

    def _check_finite(self, name: str, value: Tensor) -> None:
        if not bool(torch.isfinite(value)):
            raise self._divergence(f"the {name} is {value.item()}")

    @contextmanager
    def _naming_divergence(self) -> Iterator[None]:
        """The settings are checked by now, so all that the model can still refuse is NaN."""
        try:
            yield
        except LostRanks:
            raise
        except WenetError as error:
            raise self._divergence(str(error).split(";")[0]) from None

    def _divergence(self, what: str, where: str | None = None) -> Diverged:
        return Diverged(f"training diverged: {what} in {where or self._position()}; lower --lr or --init-range")
