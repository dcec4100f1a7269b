"""Standalone training of many different cells at once, the yardstick for the claims of a search."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from wenet.files import WRITTEN_AGAIN, read_json
from wenet.parallel import Ranks
from wenet.run import RunFolder, Session, peak_memory, wait_until
from wenet.run.upgrade import without_the_whole
from wenet.tasks import Measurement
from wenet.training.architectures import build_standalone
from wenet.training.outcome import Outcome, StandaloneResult
from wenet.training.plan import Origin, Plan
from wenet.training.trainer import Progress, Trainer, random_tensors, restore_random, restore_training
from wenet.words import counted
from wenet_kernels import WenetError

RECORDS, RESULT = "train.jsonl", "result.json"
AVERAGE = 0.98  # the part of the moving average that a window keeps
CURVE_POINTS = 20  # records of a training, at equal distances
MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam
READING = 60.0  # seconds in which other ranks have read a checkpoint that this one waits for
LARGEST_WEIGHT = 1e15  # a network with larger ones is frozen, as the product of two might overflow


@dataclass
class StandaloneProgress(Progress):
    """How far a standalone training has come."""

    diverged_at: list[int | None] = field(default_factory=list)  # the window of each network, counted from 0
    loss_sums: list[float] = field(default_factory=list)  # of each network since the last record
    windows: int = 0  # done
    records: int = 0  # written
    seconds: float = 0.0
    best: list[list[float]] = field(default_factory=list)  # what the best weights of each network were sorted by


def train_standalone(session: Session[Any], path: Path, plan: Plan, label: str) -> StandaloneResult:
    """Train a standalone model of every network, all at once. An unfinished training is resumed, a finished one read.

    Args:
        path: the training's own folder, made if needed. Several processes divide the networks and work independently,
            each in a folder of its own beside this one.
        session, plan, label: as in `StandaloneTraining`.

    Raises:
        WenetError: the disk is full, the checkpoint cannot be used, or the folder belongs to another training.
        Stopped: SIGINT or SIGTERM came; a checkpoint was written first.
    """
    ranks, count, metric = session.ranks, len(plan.architectures), session.task.metric
    if ranks.alone:
        return _train_some(session, path, plan, label)
    parts = _parts(ranks, path, count)
    if ranks.rank in parts:
        folder, own = parts[ranks.rank]
        _train_some(session, folder, plan.of(own), label, (count, own))
    results = [folder / RESULT for folder, _ in parts.values()]
    wait_until(lambda: all(result.exists() for result in results), session.interrupt, path)
    read = (read_json(result, WRITTEN_AGAIN, "outcomes") for result in results)
    return StandaloneResult.of_parts([StandaloneResult.from_dict(result, metric) for result in read])


def networks_left(session: Session[Any], path: Path, count: int) -> list[Origin]:
    """Where `train_standalone` with `path` and a plan that leaves its `count` networks has left each of them."""
    return [
        Origin(folder, place)
        for folder, part in _parts(session.ranks, path, count).values()
        for place in range(part.stop - part.start)
    ]


def _parts(ranks: Ranks, path: Path, count: int) -> dict[int, tuple[Path, slice]]:
    """The folder and the networks of every rank that has some."""
    if ranks.alone:
        return {0: (path, slice(0, count))}
    own = {rank: ranks.own(count, rank) for rank in range(ranks.count)}
    return {
        rank: (path.with_name(f"{path.name}-{part.start + 1}-{part.stop}"), part)
        for rank, part in own.items()
        if part.start < part.stop
    }


def _train_some(
    session: Session[Any], path: Path, plan: Plan, label: str, among: tuple[int, slice] | None = None
) -> StandaloneResult:
    """Train the networks of one process."""
    stored = {
        "kind": "standalone training",
        "settings": without_the_whole(session.config.to_dict()),
        "corpus": session.data.fingerprint,
        **plan.stored(),
    }
    if among is not None:
        stored["among"] = [among[0], among[1].start, among[1].stop]
    metric = session.task.metric
    with session.part(path, stored) as own:
        if (path / RESULT).exists():
            return StandaloneResult.from_dict(own.folder.read_json(RESULT, "outcomes"), metric)
        result = StandaloneTraining(own, plan, label, among).run()
        own.folder.write_json(RESULT, result.to_dict(metric))
        if not plan.leave:
            own.folder.remove_checkpoints()
        return result


class StandaloneTraining(Trainer):
    """Trains n standalone models at once on the same windows in the same order, in a single stage.

    A network is frozen if its loss or gradient is no longer finite, or a weight exceeds `LARGEST_WEIGHT`: its weights
    become zero and stay zero. The other networks do not change by a bit.

    Args:
        session: its settings decide sizes, rates, dropouts and batches. Nothing is normalised, as in the paper's
            evaluation (section 4.2).
        plan: the networks, and how to train them.
        label: the training's name on the console.
        among: `(total, slice)`: initialise as if all `total` networks had been drawn, so processes agree.
    """

    records = RECORDS
    progress: StandaloneProgress

    def __init__(
        self,
        session: Session[Any],
        plan: Plan,
        label: str,
        among: tuple[int, slice] | None = None,
    ) -> None:
        super().__init__(session)
        self.plan, self.label, self.among = plan, label, among
        count = len(plan.architectures)
        self.progress = StandaloneProgress(0.0, [None] * count, [0.0] * count)

    def run(self) -> StandaloneResult:
        """Train, then validate.

        Raises:
            WenetError, Stopped: as in `Trainer.train`.
        """
        self.train(self.plan.seed)
        return self.result

    def prepare(self) -> None:
        config, data, plan = self.config, self.session.data, self.plan
        self.train_streams = self.task.streams(data, "train", config.data_batch).to(self.device)
        self.check_every = self._windows_between_checks()
        model = build_standalone(config, plan.architectures, self.task, data, self.among, plan.hidden)
        self.model = model.to(self.device)
        usual = config.lr if config.standalone_lr is None else config.standalone_lr
        rates = torch.tensor(plan.rates or [usual] * len(plan.architectures), dtype=torch.float64)
        self.rate, self.one_rate = float(rates.max()), bool((rates == rates.max()).all())
        self.shares = (rates / rates.max()).to(self.device)  # of the largest rate, [n]
        usual_decay = 0.0 if plan.weight_decays else config.weight_decay
        self.weight_decays = torch.tensor(plan.weight_decays, device=self.device) if any(plan.weight_decays) else None
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=self.rate, weight_decay=usual_decay, fused=True)
        self.average = {name: p.detach().clone() for name, p in self.model.named_parameters()} if plan.average else {}
        self.best = {name: p.detach().clone() for name, p in self.model.named_parameters()} if plan.checks else {}
        self.set_aside: dict[str, Tensor] = {}  # the weights, while the average replaces them
        self._count_from(self.progress)
        if plan.origins:
            self.progress, tensors = taken_over(plan.origins)
            self.restore({**self.tensors(), **self._fitted(tensors)})
        self.begun = self.progress.windows
        self.record_every = max(1, (plan.windows - self.begun) // CURVE_POINTS)

    def restore(self, tensors: dict[str, Tensor]) -> None:
        restore_training(self.model, self.optimizer, tensors)
        self.average = {name: tensors[f"average.{name}"].to(self.device) for name in self.average}
        self.best = {name: tensors[f"best.{name}"].to(self.device) for name in self.best}
        self.h = tensors["h"].to(self.device) if "h" in tensors else None
        self._count_from(self.progress)

    def _fitted(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of parameters with rows as long as in this model; zeros fill those of small cells up.

        They are laid out as the parameters are: Adam's fused step goes by the order in memory.
        """
        found = dict(tensors)
        for index, (name, parameter) in enumerate(self.model.named_parameters()):
            of_parameter = (f"model.{name}", f"average.{name}", *(f"optimizer.{index}.{key}" for key in MOMENTS))
            found |= {key: _with_rows(found[key], parameter.shape[1]) for key in of_parameter if key in found}
        return found

    def _count_from(self, progress: StandaloneProgress) -> None:
        self.alive = torch.tensor([window is None for window in progress.diverged_at], device=self.device)  # [n]
        self.loss_sum = torch.tensor(progress.loss_sums, dtype=torch.float64, device=self.device)  # [n]

    def finished(self) -> bool:
        return self.stage_done()

    def stage_done(self) -> bool:
        """A run whose time is up ends its trainings where they are."""
        budget = self.session.budget
        is_over = budget is not None and budget.is_over and self.progress.windows > self.begun
        return self.progress.windows >= self.plan.windows or is_over

    def next_window(self) -> tuple[Tensor, Tensor]:
        where = (self.train_streams, self.progress.windows, self.config.bptt)
        if self.check_every and self.progress.windows and self.progress.windows % self.check_every == 0:
            self._keep_best()
        if not self.task.carries_on(*where):
            self.h = None
        return self.task.batch(*where)

    def step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Take a step and return each network's loss. If a network diverges, the step is repeated without it."""
        before = random_tensors(self.device)
        losses, norms, h = self._differentiate(inputs, targets)
        while bool((failed := self.alive & ~(losses.isfinite() & norms.isfinite())).any()):
            self._freeze(failed)
            restore_random(before, self.device)
            losses, norms, h = self._differentiate(inputs, targets)
        self._clip(norms)
        self._update()
        self.h = h
        if bool((failed := self.alive & ~(_largest_weights(self.model) < LARGEST_WEIGHT)).any()):
            self._freeze(failed)
        return losses

    def count(self, inputs: Tensor, loss: Tensor) -> None:
        self.loss_sum += torch.where(self.alive, loss, 0)
        self.progress.windows += 1
        done = self.progress.windows - self.begun
        if done % self.record_every == 0 or self.progress.windows == self.plan.windows:
            self._record()
        steps, rows = inputs.shape[:2]
        # One that is about to diverge would decide the mean.
        self.console.advance(self.label, steps * rows, f"median loss {float(loss[self.alive].median()):.3f}")

    def _differentiate(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Compute gradients; returns each network's loss and gradient norm, `[n]`, and the last states `[n, M, H]`, if
        the task carries them on."""
        config = self.config
        loss, losses, h = self.model.loss(
            inputs, targets, self.h, config.activation_reg, config.temporal_activation_reg
        )
        self.optimizer.zero_grad()
        loss.backward()
        norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in self._gradients()]).norm(dim=0)
        return losses, norms, h if h is None else h.detach()

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.model.parameters() if p.grad is not None]

    def _clip(self, norms: Tensor) -> None:
        """Clip each network's gradient by its own norm; gradients of frozen networks become zero."""
        scale = torch.where(self.alive, (self.config.clip / (norms + 1e-6)).clamp(max=1), 0)  # [n]
        for gradient in self._gradients():
            gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)))

    @torch.no_grad()
    def _update(self) -> None:
        """Take Adam's step, scaled for each network, because all share one optimizer with the largest rate."""
        schedule = self.plan.schedule or self.plan.windows
        left = 1 - self.progress.windows / schedule if self.plan.decay else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * left
        if self.weight_decays is not None:
            for parameter in self.model.parameters():
                parameter.grad.add_(parameter * self._for_each(self.weight_decays, parameter))
        before = [] if self.one_rate else [p.clone() for p in self.model.parameters()]
        self.optimizer.step()
        for parameter, old in zip(self.model.parameters(), before, strict=bool(before)):
            parameter.copy_(old.lerp(parameter, self._for_each(self.shares, old)))
        for name, average in self.average.items():
            windows = self.progress.windows + 1
            average.lerp_(self.model.get_parameter(name), 1 - min(AVERAGE, windows / (9 + windows)))

    @staticmethod
    def _for_each(numbers: Tensor, parameter: Tensor) -> Tensor:
        """A number of each network, `[n]`, in the type of a parameter, to be multiplied with it."""
        return numbers.to(parameter.dtype).view(-1, *[1] * (parameter.dim() - 1))

    @torch.no_grad()
    def _freeze(self, failed: Tensor) -> None:
        """Set weights, moments and state of failed networks to zero, so that all their later updates are zero too."""
        for parameter in self.model.parameters():
            moments = [m for m in self.optimizer.state[parameter].values() if m.shape == parameter.shape]
            for tensor in (parameter, *moments):
                tensor[failed] = 0
        for average in self.average.values():
            average[failed] = 0
        if self.h is not None:
            self.h[failed] = 0
        self.loss_sum[failed] = 0
        self.alive = self.alive & ~failed
        total, first = (self.among[0], self.among[1].start) if self.among else (len(self.plan.architectures), 0)
        for network in failed.nonzero().flatten().tolist():
            self.progress.diverged_at[network] = self.progress.windows
            self.console.say(
                f"{self.label}: network {first + network + 1} of {total} diverged in window "
                f"{self.progress.windows + 1} and is frozen, the others go on: {self.plan.architectures[network]}"
            )

    def _since_the_last_record(self) -> int:
        """In windows."""
        last = self.folder.records(RECORDS)[-1]["windows"] if self.progress.records else self.begun
        return self.progress.windows - int(last)

    def _record(self) -> None:
        """Record each network's mean loss since the last record."""
        losses = (self.loss_sum / self._since_the_last_record()).tolist()
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
        if self.progress.windows < self.plan.windows:
            self._cut_short()
        if self.best:
            self._keep_best()
            for name, weights in self.best.items():
                self.model.get_parameter(name).data.copy_(weights)
        if self.plan.leave:
            self.save(self.tensors())
        measured = self.measure("valid", self.plan.held_out)
        worst = self.task.metric.worst
        test = self.measure("test").metric.tolist() if self.plan.test else [None] * len(self.plan.architectures)
        last = self.folder.records(RECORDS)[-1]["train_loss"]
        outcomes = [
            Outcome(architecture, value, loss, window, tested, valid_loss)
            if window is None
            else Outcome(architecture, worst, loss, window, None if tested is None else worst)
            for architecture, value, loss, window, tested, valid_loss in zip(
                self.plan.architectures,
                measured.metric.tolist(),
                last,
                self.progress.diverged_at,
                test,
                measured.loss.tolist(),
                strict=True,
            )
        ]
        trained = len(outcomes) * (self.progress.windows - self.begun)
        held_out = None if self.plan.held_out is None else measured.windows.tolist()
        self.result = StandaloneResult(outcomes, trained, round(self.lap(), 3), peak_memory(self.device), held_out)

    def _cut_short(self) -> None:
        done, planned = self.progress.windows, counted(self.plan.windows, "window")
        if self._since_the_last_record():
            self._record()
        self.console.say(f"caution   {self.label}: the time is up after {done} of {planned}")

    def measure(self, part: str, windows: int | None = None) -> Measurement:
        """Measure all networks on a part of the data, or on its first windows."""
        steps = self.config.bptt
        streams = self.task.streams(self.session.data, part, self.config.eval_batch).to(self.device)
        read = streams if windows is None else self.task.first(streams, windows, steps)
        with self._averaged():
            return self.task.measure(self.model, read, steps, self.stop_if_asked)

    def _windows_between_checks(self) -> int:
        """0 without checks."""
        if not self.plan.checks:
            return 0
        in_pass = self.task.windows(self.train_streams, self.config.bptt)
        return max(in_pass, -(-self.plan.windows // self.plan.checks))

    @torch.no_grad()
    def _keep_best(self) -> None:
        """Measure all networks, and keep the weights of those that are better than ever before."""
        measured, order = self.measure("valid"), self.task.metric.order
        pairs = zip(measured.metric.tolist(), measured.loss.tolist(), strict=True)
        now = [[order(value), loss] for value, loss in pairs]
        earlier = self.progress.best or [[math.inf, math.inf]] * len(now)
        better = [new < old for new, old in zip(now, earlier, strict=True)]
        self.progress.best = [
            new if is_better else old for new, old, is_better in zip(now, earlier, better, strict=True)
        ]
        chosen = torch.tensor(better, device=self.device)
        for name, weights in self.best.items():
            weights[chosen] = self.model.get_parameter(name).detach()[chosen]

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """A context with the average, if there is one, in place of the weights; checkpoints still hold both."""
        self.set_aside = {name: self.model.get_parameter(name).data for name in self.average}
        try:
            for name, average in self.average.items():
                self.model.get_parameter(name).data = average
            yield
        finally:
            for name, weights in self.set_aside.items():
                self.model.get_parameter(name).data = weights
            self.set_aside = {}

    def tensors(self) -> dict[str, Tensor]:
        self.progress.loss_sums = self.loss_sum.tolist()
        trained = {f"model.{name}": weights for name, weights in self.set_aside.items()}
        averages = {f"average.{name}": weights for name, weights in self.average.items()}
        best = {f"best.{name}": weights for name, weights in self.best.items()}
        return {**super().tensors(), **trained, **averages, **best}

    def units_in_all(self) -> int:
        return self.plan.windows

    def units_done(self) -> int:
        return self.progress.windows


def _with_rows(tensor: Tensor, length: int) -> Tensor:
    """`[n, length, ...]` of `[n, rows, ...]`, cut off or filled up with zeros."""
    missing = tensor.new_zeros(len(tensor), max(0, length - tensor.shape[1]), *tensor.shape[2:])
    return torch.cat([tensor[:, :length], missing], 1).contiguous()


def taken_over(origins: Sequence[Origin]) -> tuple[StandaloneProgress, dict[str, Tensor]]:
    """The progress and tensors of networks from the trainings that left them, all at the same window.

    Raises:
        WenetError: a training's last checkpoint is damaged or gone.
    """
    left = {}
    for folder in {origin.folder for origin in origins}:
        with closing(RunFolder.open(folder, READING)) as run:
            checkpoint = run.load_checkpoint()
        if checkpoint is None:
            raise WenetError(f"{folder} has no checkpoint to go on from; delete it to train its networks again")
        left[folder] = checkpoint
    first, tensors = left[origins[0].folder]
    diverged = [left[origin.folder][0]["diverged_at"][origin.place] for origin in origins]
    progress = StandaloneProgress(0.0, diverged, [0.0] * len(origins), first["windows"])
    return progress, {
        name: tensor
        if name.startswith("random.") or tensor.dim() == 0
        else pad_sequence([left[origin.folder][1][name][origin.place] for origin in origins], batch_first=True)
        for name, tensor in tensors.items()
        if not name.endswith("_extra_state")  # the label with the earlier cells
    }


def _largest_weights(model: nn.Module) -> Tensor:
    """The largest absolute value of each network's parameters, `[n]`."""
    rows = [parameter.detach().flatten(1) for parameter in model.parameters()]
    # Twenty times as fast as a norm.
    return torch.stack([torch.maximum(row.amax(1), -row.amin(1)) for row in rows]).amax(0)


def training_windows(session: Session[Any], passes: float) -> int:
    """Number of windows in some passes over the training part."""
    config, task = session.config, session.task
    streams = task.streams(session.data, "train", config.data_batch)
    return max(1, round(passes * task.windows(streams, config.bptt)))
