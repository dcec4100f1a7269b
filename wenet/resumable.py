"""Work in a run folder that can stop between any two windows and go on bit-exactly."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from wenet.checkpoint import RunFolder
from wenet.config import SearchConfig, TrainConfig
from wenet.console import Console
from wenet.curves import FOLDER, Curves
from wenet.interrupt import Interrupt, Stopped
from wenet.nn import LanguageModel
from wenet.training import random_tensors
from wenet_kernels import WenetError


class Diverged(WenetError):
    """Training met a value that is not finite."""


class State(Protocol):
    """Where the work stands, apart from tensors."""

    seconds: float  # spent on the run so far, by all processes that worked on it

    def to_dict(self) -> dict[str, Any]: ...


class ResumableRun(ABC):
    """What all long work has in common: checkpoints, requests to stop, the clock.

    Args:
        run: takes records and checkpoints.
        checkpoint_every: minutes between checkpoints.
        interrupt: tells when someone asks the run to stop.
    """

    state: State

    def __init__(
        self, device: str, run: RunFolder, console: Console, checkpoint_every: float, interrupt: Interrupt
    ) -> None:
        self.device = torch.device(device)
        self.folder, self.console, self.interrupt = run, console, interrupt
        self.checkpoint_seconds = 60 * checkpoint_every
        self._lap_started = self._saved = time.monotonic()

    @abstractmethod
    def _save_between_windows(self) -> None:
        """Write a checkpoint in the middle of training."""

    def _checkpoint_if_due(self) -> None:
        self._stop_if_asked()
        if time.monotonic() - self._saved >= self.checkpoint_seconds:
            self._save_between_windows()

    def _stop_if_asked(self) -> None:
        if self.interrupt.requested is not None:
            self._save_between_windows()
            self.console.stop()
            raise Stopped(self.interrupt.requested, self.folder.path)

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
        device, run, console, checkpoint_every, interrupt: as in `ResumableRun`.
        tensorboard: whether to write curves for TensorBoard into the run folder.
    """

    config: SearchConfig | TrainConfig
    model: LanguageModel
    optimizer: torch.optim.Optimizer
    h: Tensor | None = None  # [1, M, H]
    curves: Curves

    def __init__(
        self,
        device: str,
        run: RunFolder,
        console: Console,
        checkpoint_every: float,
        interrupt: Interrupt,
        tensorboard: bool,
    ) -> None:
        super().__init__(device, run, console, checkpoint_every, interrupt)
        self.curves_folder = run.path / FOLDER if tensorboard else None

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
        self._check_finite("loss", loss)
        self.optimizer.zero_grad()
        loss.backward()
        self._check_finite("gradient", nn.utils.clip_grad_norm_(self.model.parameters(), config.clip))
        self.h = h.detach()
        return float(cross_entropy)

    def _check_finite(self, name: str, value: Tensor) -> None:
        if not bool(torch.isfinite(value)):
            raise self._divergence(f"the {name} is {value.item()}")

    @contextmanager
    def _naming_divergence(self) -> Iterator[None]:
        """The settings are checked by now, so all that the model can still refuse is NaN."""
        try:
            yield
        except WenetError as error:
            raise self._divergence(str(error).split(";")[0]) from None

    def _divergence(self, what: str) -> Diverged:
        return Diverged(f"training diverged: {what} in {self._position()}; lower --lr or --init-range")
