"""The paper's evaluation (section 4.2): one cell trained as a language model by NT-ASGD (Merity et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_swa_multi_avg_fn

from wenet.cells import Cell, Genotype, cell_to_dict
from wenet.data import window_length
from wenet.nn import CellRNN, DagRNN, LanguageModel, StackedLSTM, draw_rows
from wenet.run import DTYPES, Session, peak_memory
from wenet.tasks import Task
from wenet.training.settings import TrainConfig
from wenet.training.trainer import (
    Diverged,
    ModelTrainer,
    Progress,
    restore_training,
    training_tensors,
)
from wenet.words import duration

RECORDS = "train.jsonl"


@dataclass
class TrainProgress(Progress):
    """How far the training of one cell has come."""

    epoch: int = 0  # epochs finished
    step: int = 0  # time steps done in this epoch
    loss: float = 0.0  # sum of their cross-entropies, in nats
    windows: int = 0  # in this epoch
    history: list[float] = field(default_factory=list)  # validation metric of each epoch that did not diverge
    best_epoch: int = 0
    averaging_from: int | None = None  # the first epoch whose weights are averaged
    rollbacks: int = 0
    seconds: float = 0.0


class EvaluationTraining(ModelTrainer):
    """Trains one cell; a stage is an epoch.

    The test part of the data is read once, at the end. Several processes divide the rows of each data batch and average
    their gradients; validation and test are done in full by every process.
    """

    records = RECORDS
    unit = "step"
    config: TrainConfig
    progress: TrainProgress

    def __init__(self, session: Session[TrainConfig]) -> None:
        super().__init__(session)
        config, data = session.config, session.data
        self.genotype = session.cell  # None if `config.cell` names an LSTM
        self.own_rows = self.ranks.own(config.data_batch)
        train = self.task.streams(data, "train", config.data_batch)
        self.train_streams = train[:, self.own_rows].to(self.device)  # [steps, M]
        self.valid_streams = self.task.streams(data, "valid", config.eval_batch).to(self.device)
        self.steps = self.task.steps_per_pass(self.train_streams)  # of an epoch
        self.progress = TrainProgress()
        self.averaged: AveragedModel | None = None  # mean of the weights since the switch
        self.valid_key, self.test_key = f"valid_{self.task.metric.key}", f"test_{self.task.metric.key}"

    def run(self) -> dict[str, Any]:
        """Train, then test once; returns the contents of `best.json`.

        Raises:
            WenetError, Stopped: as in `Trainer.train`.
        """
        self.train(self.config.seed)
        return self.folder.read_json("best.json")

    def prepare(self) -> None:
        self.model = build_model(self.config, self.genotype, self.task, self.session.data).to(self.device)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), self.config.lr, weight_decay=self.config.weight_decay, fused=True
        )
        draw_rows(self.model, self.config.data_batch, self.own_rows)

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self._load(tensors)
        self.h = tensors["h"].to(self.device) if "h" in tensors else None

    def finished(self) -> bool:
        return self.progress.epoch >= self.config.epochs

    def train_stage(self) -> None:
        try:
            super().train_stage()
        except Diverged as diverged:
            self._roll_back(diverged)

    def stage_done(self) -> bool:
        return self.progress.step >= self.steps

    def next_window(self) -> tuple[Tensor, Tensor]:
        """A window of random length; every epoch starts from a zero state."""
        if self.progress.step == 0:
            self.h = None
        return self.task.window(self.train_streams, self.progress.step, window_length(self.config.bptt))

    def step(self, inputs: Tensor, targets: Tensor) -> float:
        """Clip the gradients, take a step in proportion to the window's length, and update the average."""
        loss = self.differentiate(inputs, targets)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * len(inputs) / self.config.bptt
        self.optimizer.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        return loss

    def count(self, inputs: Tensor, loss: float) -> None:
        progress = self.progress
        progress.step += len(inputs)
        progress.loss += loss * len(inputs)
        progress.windows += 1
        read = len(inputs) * self.config.data_batch  # by all processes
        label = f"epoch {progress.epoch + 1}/{self.config.epochs}"
        self.console.advance(label, read, f"loss {loss:.3f}", count=len(inputs))
        self.curves.window(self.units_done(), loss, read)

    def mean_over_rows(self, value: Tensor) -> Tensor:
        if self.ranks.alone:
            return value
        return self.ranks.sum(value * (self.train_streams.shape[1] / self.config.data_batch))

    def clip_gradients(self) -> Tensor:
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad = self.mean_over_rows(parameter.grad)
        return super().clip_gradients()

    def end_stage(self) -> None:
        """Validate, save the best, and begin to average once validation stops improving."""
        valid, progress, order = self._validate(), self.progress, self.task.metric.order
        before = [order(value) for value in progress.history]  # lower is better
        is_best = order(valid) < min(before, default=math.inf)
        if is_best:
            progress.best_epoch = progress.epoch + 1
        averages_next = self.averaged is None and stopped_improving(before, order(valid), self.config.nonmonotone)
        progress.history.append(valid)
        self._record(**{self.valid_key: valid}, averaged=self.averaged is not None)
        if is_best:
            self.folder.save_best(progress.to_dict(), self._weights())
            self.folder.write_json("best.json", self._best())
        if averages_next:
            self._begin_averaging()
        self._next_epoch()

    def _validate(self) -> float:
        valid = self._measure(self._evaluated(), self.valid_streams)
        valid = self.ranks.from_first(valid)  # all ranks must decide alike
        if not math.isfinite(valid):
            where = f"the validation of epoch {self.progress.epoch + 1}"
            raise self.divergence(f"the {self.task.metric.name} is not finite", where)
        return valid

    def _measure(self, model: LanguageModel, streams: Tensor) -> float:
        return float(self.task.measure(model, streams, self.config.bptt, self.stop_if_asked).metric)

    def _begin_averaging(self) -> None:
        self.progress.averaging_from = self.progress.epoch + 2
        self.averaged = _average_of(self.model)
        self.console.say(f"from epoch {self.progress.averaging_from} on the weights are averaged")

    def _evaluated(self) -> LanguageModel:
        """The model to evaluate: with averaged weights, once there are any."""
        model = self.model if self.averaged is None else self.averaged.module
        assert isinstance(model, LanguageModel)
        return model

    def _roll_back(self, diverged: Diverged) -> None:
        """Start the next epoch from the best one. Random numbers are not set back, or the same would happen again."""
        if self.config.on_nan == "stop":
            raise diverged
        if not self.progress.history:
            raise Diverged(f"{diverged}; no epoch is finished yet that --on-nan rollback could go back to")
        before, tensors = self.folder.load_best()
        self.progress.averaging_from = before["averaging_from"]
        self._load(tensors)
        self.progress.rollbacks += 1
        self.console.say(f"{diverged}; back to the weights of epoch {self.progress.best_epoch}")
        self._record(diverged=str(diverged), back_to_epoch=self.progress.best_epoch)
        self._next_epoch()

    def _next_epoch(self) -> None:
        self.progress.epoch += 1
        self.progress.step, self.progress.loss, self.progress.windows = 0, 0.0, 0
        self.save(self._weights())

    def _record(self, **outcome: Any) -> None:
        progress = self.progress
        record = {
            "epoch": progress.epoch + 1,
            "windows": progress.windows,
            "tokens": progress.step * self.config.data_batch,
            "train_loss": progress.loss / max(1, progress.step),
            **outcome,
            "seconds_so_far": round(self.lap(), 3),
            "peak_memory_bytes": peak_memory(self.device),
        }
        self.folder.append_record(RECORDS, record)
        if self.valid_key in record:
            self._say_epoch(record)
            self.curves.values(self.units_done(), {f"validation/{self.task.metric.name}": record[self.valid_key]})

    def recorded(self) -> int:
        return self.progress.epoch

    def _best(self) -> dict[str, Any]:
        """The best epoch so far and how it was reached; the test result is added at the end."""
        records = self.folder.records(RECORDS)
        cell = {} if self.genotype is None else {"genotype": cell_to_dict(self.genotype), "text": str(self.genotype)}
        return {
            "cell": self.config.cell,
            **cell,
            self.valid_key: min(self.progress.history, key=self.task.metric.order),
            self.test_key: None,
            "epoch": self.progress.best_epoch,
            "epochs": len(records),
            "epochs_planned": self.config.epochs,
            "averaging_from": self.progress.averaging_from,
            "rollbacks": self.progress.rollbacks,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "seconds": records[-1]["seconds_so_far"],
            "peak_memory_bytes": max(record["peak_memory_bytes"] for record in records),
        }

    def finish(self) -> None:
        """Measure the best weights on the test part, once, even if the run is resumed after its end."""
        known = self.folder.read_json("best.json", self.test_key) if self.folder.holds("best.json") else {}
        if known.get(self.test_key) is not None:
            return
        _, tensors = self.folder.load_best()
        streams = self.task.streams(self.session.data, "test", self.config.test_batch).to(self.device)
        best_model = trained_model(self.config, self.genotype, self.task, self.session.data, tensors).to(self.device)
        test = self._measure(best_model, streams)
        if not math.isfinite(test):
            where = f"the test of epoch {self.progress.best_epoch}"
            raise self.divergence(f"the {self.task.metric.name} is not finite", where)
        self.folder.write_json("best.json", {**self._best(), self.test_key: test})

    def tensors(self) -> dict[str, Tensor]:
        return {**self._weights(), **({} if self.h is None else {"h": self.h})}

    def _weights(self) -> dict[str, Tensor]:
        """Tensors of the model, its optimizer, and the average."""
        tensors = training_tensors(self.model, self.optimizer)
        if self.averaged is not None:
            tensors |= {f"averaged.{name}": tensor for name, tensor in self.averaged.state_dict().items()}
        return tensors

    def _load(self, tensors: dict[str, Tensor]) -> None:
        """Restore the tensors that `_weights` returned."""
        restore_training(self.model, self.optimizer, tensors)
        self.averaged = None
        if self.progress.averaging_from is not None:
            self.averaged = _average_of(self.model)
            self.averaged.load_state_dict(_under("averaged.", tensors))

    def units_in_all(self) -> int:
        return self.config.epochs * self.steps

    def units_done(self) -> int:
        return self.progress.epoch * self.steps + self.progress.step

    def position(self) -> str:
        progress = self.progress
        return f"epoch {progress.epoch + 1}, window {progress.windows + 1} (step {progress.step:,})"

    def _say_epoch(self, record: dict[str, Any]) -> None:
        metric = self.task.metric
        reached = f"{metric.name} {record[self.valid_key]:.{metric.final_places}f}"
        self.console.say(
            f"epoch {record['epoch']}/{self.config.epochs} done after {duration(record['seconds_so_far'])}: "
            f"training loss {record['train_loss']:.3f}, validation {reached}"
            + (" of averaged weights" if record["averaged"] else "")
            + (", the best so far" if self.progress.best_epoch == record["epoch"] else "")
        )


def stopped_improving(history: Sequence[float], newest: float, nonmonotone: int) -> bool:
    """Whether validation is worse than the best before the last `nonmonotone` ones (NT-ASGD)."""
    return len(history) > nonmonotone and newest > min(history[:-nonmonotone])


def build_model(config: TrainConfig, genotype: Cell | None, task: Task, data: Any) -> LanguageModel:
    """Build the task's model around a cell, or around the LSTM that `config.cell` names."""
    embedding = config.embedding or config.hidden
    layer = build_lstm(config, embedding) if genotype is None else build_cell(config, genotype, embedding)
    model = task.model(layer, config, data)
    assert isinstance(model, LanguageModel)
    return model.to(DTYPES[config.precision])


def build_cell(config: Any, cell: Cell, embedding: int) -> DagRNN | CellRNN:
    """Build a layer of a cell with the sizes and dropouts of the settings, of a training or a search."""
    of_weights = config.precision in ("fp32", "fp64")  # a trained model can then be converted, as by `double`
    options = {
        "dropout_x": config.dropout_x,
        "dropout_h": config.dropout_h,
        "backend": config.backend,
        "precision": "full" if of_weights else config.precision,
    }
    if not isinstance(cell, Genotype):
        return CellRNN(embedding, config.hidden, cell, **options)
    return DagRNN(embedding, config.hidden, cell, form=config.form, **options)


def build_lstm(config: TrainConfig, embedding: int) -> StackedLSTM:
    sizes = [*[config.hidden] * (config.layers - 1), config.last_hidden or embedding]
    return StackedLSTM(embedding, sizes, config.cell == "lstm-skip", config.dropout_x, config.dropout_h)


def trained_model(
    config: TrainConfig, genotype: Cell | None, task: Task, data: Any, tensors: dict[str, Tensor]
) -> LanguageModel:
    """Build a model with the weights from `RunFolder.load_best`, averaged if there is an average."""
    model = build_model(config, genotype, task, data)
    averaged = _under("averaged.module.", tensors)
    model.load_state_dict(averaged or _under("model.", tensors))
    return model


def _average_of(model: LanguageModel) -> AveragedModel:
    """A mean of the model's weights over updates. `torch.optim.ASGD` would leave out the first update, and apply each
    window's learning rate one window late."""
    return AveragedModel(model, multi_avg_fn=get_swa_multi_avg_fn())


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
