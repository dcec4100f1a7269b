"""The paper's evaluation (section 4.2): one cell trained as a language model by NT-ASGD (Merity et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_swa_multi_avg_fn

from wenet.checkpoint import RunFolder
from wenet.config import DTYPES, PRECISIONS, TrainConfig
from wenet.console import duration
from wenet.curves import Curves
from wenet.data import batchify
from wenet.genotype import Genotype
from wenet.memory import peak_memory
from wenet.nn import DagRNN, LanguageModel, MixtureOfSoftmaxes, StackedLSTM, draw_rows
from wenet.resumable import Diverged, ModelRun, Workplace
from wenet.training import perplexity, restore_random, restore_training, training_tensors, window_at, window_length

RECORDS = "train.jsonl"


@dataclass
class TrainState:
    """Where training stands between two windows, apart from the tensors."""

    epoch: int = 0  # epochs finished
    step: int = 0  # time steps of this epoch behind us
    loss: float = 0.0  # cross-entropy summed over them, nats
    windows: int = 0  # in this epoch
    history: list[float] = field(default_factory=list)  # validation perplexity of each epoch that did not diverge
    best_epoch: int = 0
    averaging_from: int | None = None  # the first epoch whose weights are averaged
    rollbacks: int = 0
    seconds: float = 0.0  # spent on the run so far, by all processes that worked on it

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Training(ModelRun):
    """One cell trained on one corpus, recorded in one run folder.

    Args:
        work: the test part of its text is read once, at the end. Its ranks divide the rows of every data batch among
            them, and average their gradients; validation and test are the same work on every rank.
        genotype: the cell that `config.cell` names; None where that is an LSTM.
        run: takes records and checkpoints, of which one more is written after each epoch.
    """

    def __init__(self, work: Workplace[TrainConfig], genotype: Genotype | None, run: RunFolder) -> None:
        super().__init__(work, run)
        config, train = work.config, work.corpus.train
        self.config: TrainConfig = config
        self.genotype = genotype
        self.own_rows = self.ranks.own(config.data_batch)
        self.train_stream = batchify(train, config.data_batch)[:, self.own_rows].to(self.device)  # [steps, M]
        self.valid_stream = batchify(work.corpus.valid, config.eval_batch).to(self.device)
        self.steps = len(self.train_stream) - 1  # of an epoch
        self.state: TrainState = TrainState()
        self.averaged: AveragedModel | None = None  # the mean of the weights after every update since the switch

    def run(self) -> dict[str, Any]:
        """Train, from the last checkpoint where there is one, then test once; returns what `best.json` holds.

        Raises:
            WenetError: training diverged, the disk is full, or the checkpoint cannot be used.
            Stopped: SIGINT or SIGTERM came; a checkpoint was written first.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.config.seed)
            self.model = build_model(self.config, self.genotype, len(self.corpus.vocabulary)).to(self.device)
            self.optimizer = torch.optim.SGD(
                self.model.parameters(), self.config.lr, weight_decay=self.config.weight_decay, fused=True
            )
            draw_rows(self.model, self.config.data_batch, self.own_rows)
            self._restore()
            self.console.start(self.config.epochs * self.steps, self._steps_done(), unit="step")
            with closing(Curves(self.curves_folder, self._steps_done())) as self.curves:
                while self.state.epoch < self.config.epochs:
                    try:
                        self._train_epoch()
                        self._end_epoch()
                    except Diverged as diverged:
                        self._roll_back(diverged)
            self.console.stop()
            return self._test()

    def _train_epoch(self) -> None:
        """One pass over the text in windows of random length, from a hidden state of zero."""
        while self.state.step < self.steps:
            if self.state.step == 0:
                self.h = None
            tokens, targets = window_at(self.train_stream, self.state.step, window_length(self.config.bptt))
            cross_entropy = self._update(tokens, targets)
            self.state.step += len(tokens)
            self.state.loss += cross_entropy * len(tokens)
            self.state.windows += 1
            self._show_window(tokens, cross_entropy)
            self._checkpoint_if_due()

    def _update(self, tokens: Tensor, targets: Tensor) -> float:
        """One window: clipped gradients, a step in proportion to the window's length, the running average."""
        cross_entropy = self._differentiate(tokens, targets)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * len(tokens) / self.config.bptt
        self.optimizer.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        return cross_entropy

    def _mean_over_rows(self, value: Tensor) -> Tensor:
        if self.ranks.alone:
            return value
        return self.ranks.sum(value * (self.train_stream.shape[1] / self.config.data_batch))

    def _clip_gradients(self) -> Tensor:
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad = self._mean_over_rows(parameter.grad)
        return super()._clip_gradients()

    def _end_epoch(self) -> None:
        """Validate, keep the best, and begin to average when validation has stopped improving."""
        valid = self._validate()
        is_best = valid < min(self.state.history, default=math.inf)
        if is_best:
            self.state.best_epoch = self.state.epoch + 1
        averages_next = self.averaged is None and stopped_improving(self.state.history, valid, self.config.nonmonotone)
        self.state.history.append(valid)
        self._record(valid_perplexity=valid, averaged=self.averaged is not None)
        if is_best:
            self.folder.save_best(self.state.to_dict(), self._tensors())
            self.folder.write_json("best.json", self._best())
        if averages_next:
            self._begin_averaging()
        self._next_epoch()

    def _validate(self) -> float:
        valid = perplexity(self._evaluated(), self.valid_stream, self.config.bptt, between=self._stop_if_asked)
        valid = self.ranks.from_first(valid)  # all have to draw the same conclusions from it
        if not math.isfinite(valid):
            raise self._divergence("the perplexity is not finite", f"the validation of epoch {self.state.epoch + 1}")
        return valid

    def _begin_averaging(self) -> None:
        self.state.averaging_from = self.state.epoch + 2
        self.averaged = _average_of(self.model)
        self.console.say(f"from epoch {self.state.averaging_from} on the weights are averaged")

    def _evaluated(self) -> LanguageModel:
        """The model that counts: with averaged weights once there are any."""
        model = self.model if self.averaged is None else self.averaged.module
        assert isinstance(model, LanguageModel)
        return model

    def _roll_back(self, diverged: Diverged) -> None:
        """Go on from the best epoch with the next one; the random numbers go on, or the same would happen again."""
        if self.config.on_nan == "stop":
            raise diverged
        if not self.state.history:
            raise Diverged(f"{diverged}, for there is no epoch yet that --on-nan rollback could go back to")
        before, tensors = self.folder.load_best()
        self.state.averaging_from = before["averaging_from"]
        self._load(tensors)
        self.state.rollbacks += 1
        self.console.say(f"{diverged}; back to the weights of epoch {self.state.best_epoch}")
        self._record(diverged=str(diverged), back_to_epoch=self.state.best_epoch)
        self._next_epoch()

    def _next_epoch(self) -> None:
        self.state.epoch += 1
        self.state.step, self.state.loss, self.state.windows = 0, 0.0, 0
        self._save(self._tensors())

    def _record(self, **outcome: Any) -> None:
        record = {
            "epoch": self.state.epoch + 1,
            "windows": self.state.windows,
            "tokens": self.state.step * self.config.data_batch,
            "train_loss": self.state.loss / max(1, self.state.step),
            **outcome,
            "seconds_so_far": round(self._lap(), 3),
            "peak_memory_bytes": peak_memory(self.device),
        }
        self.folder.append_record(RECORDS, record)
        if "valid_perplexity" in record:
            self._say_epoch(record)
            self.curves.values(self._steps_done(), {"validation/perplexity": record["valid_perplexity"]})

    def _best(self) -> dict[str, Any]:
        """The best epoch so far, and how it was come by; the test comes in at the end."""
        records = self.folder.records(RECORDS)
        cell = {} if self.genotype is None else {"genotype": self.genotype.to_dict(), "text": str(self.genotype)}
        return {
            "cell": self.config.cell,
            **cell,
            "valid_perplexity": min(self.state.history),
            "test_perplexity": None,
            "epoch": self.state.best_epoch,
            "epochs": len(records),
            "epochs_planned": self.config.epochs,
            "averaging_from": self.state.averaging_from,
            "rollbacks": self.state.rollbacks,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "seconds": records[-1]["seconds_so_far"],
            "peak_memory_bytes": max(record["peak_memory_bytes"] for record in records),
        }

    def _test(self) -> dict[str, Any]:
        """The best weights on the test part, which nothing before has looked at; once, however often it is resumed."""
        stored = self.folder.read_json("best.json")
        if stored["test_perplexity"] is not None:
            return stored
        _, tensors = self.folder.load_best()
        stream = batchify(self.corpus.test, self.config.test_batch).to(self.device)
        best_model = trained_model(self.config, self.genotype, len(self.corpus.vocabulary), tensors).to(self.device)
        test = perplexity(best_model, stream, self.config.bptt, between=self._stop_if_asked)
        if not math.isfinite(test):
            raise self._divergence("the perplexity is not finite", f"the test of epoch {self.state.best_epoch}")
        best = {**self._best(), "test_perplexity": test}
        self.folder.write_json("best.json", best)
        return best

    def _tensors(self) -> dict[str, Tensor]:
        tensors = training_tensors(self.model, self.optimizer)
        if self.averaged is not None:
            tensors |= {f"averaged.{name}": tensor for name, tensor in self.averaged.state_dict().items()}
        return tensors

    def _load(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `_tensors` took."""
        restore_training(self.model, self.optimizer, tensors)
        self.averaged = None
        if self.state.averaging_from is not None:
            self.averaged = _average_of(self.model)
            self.averaged.load_state_dict(_under("averaged.", tensors))

    def _restore(self) -> None:
        """Take up the newest checkpoint, or begin."""
        checkpoint = self.folder.load_checkpoint()
        if checkpoint is not None:
            progress, tensors = checkpoint
            self.state = TrainState(**progress)
            self._load(tensors)
            self.h = tensors["h"].to(self.device) if "h" in tensors else None
            restore_random(tensors, self.device)
        self.folder.truncate_records(RECORDS, self.state.epoch)

    def _save_between_windows(self) -> None:
        h = {} if self.h is None else {"h": self.h}
        self._save({**self._tensors(), **h})

    def _steps_done(self) -> int:
        return self.state.epoch * self.steps + self.state.step

    def _position(self) -> str:
        return f"epoch {self.state.epoch + 1}, window {self.state.windows + 1} (step {self.state.step:,})"

    def _show_window(self, tokens: Tensor, cross_entropy: float) -> None:
        read = len(tokens) * self.config.data_batch  # by all ranks
        self.console.advance(
            f"epoch {self.state.epoch + 1}/{self.config.epochs}", read, f"loss {cross_entropy:.3f}", count=len(tokens)
        )
        self.curves.window(self._steps_done(), cross_entropy, read)

    def _say_epoch(self, record: dict[str, Any]) -> None:
        self.console.say(
            f"epoch {record['epoch']}/{self.config.epochs} done after {duration(record['seconds_so_far'])}: "
            f"training loss {record['train_loss']:.3f}, validation perplexity {record['valid_perplexity']:.2f}"
            + (" of averaged weights" if record["averaged"] else "")
            + (", the best so far" if self.state.best_epoch == record["epoch"] else "")
        )


def stopped_improving(history: Sequence[float], newest: float, nonmonotone: int) -> bool:
    """Whether a validation is worse than the best of all before it but the last `nonmonotone` (NT-ASGD)."""
    return len(history) > nonmonotone and newest > min(history[:-nonmonotone])


def build_model(config: TrainConfig, genotype: Genotype | None, vocabulary_size: int) -> LanguageModel:
    """A cell within a language model, or the LSTM that `config.cell` names."""
    embedding = config.embedding or config.hidden
    rnn = build_lstm(config, embedding) if genotype is None else build_cell(config, genotype, embedding)
    mixture = None
    if config.softmax == "mos":
        mixture = MixtureOfSoftmaxes(rnn.hidden_size, embedding, config.experts, config.dropout_latent)
    model = LanguageModel(
        vocabulary_size,
        rnn,
        dropout_embedding=config.dropout_embedding,
        dropout_output=config.dropout_output,
        init_range=config.init_range,
        dropout_word=config.dropout_word,
        mixture=mixture,
    )
    return model.to(DTYPES[config.precision])


def build_cell(config: TrainConfig, genotype: Genotype, embedding: int) -> DagRNN:
    return DagRNN(
        embedding,
        config.hidden,
        genotype,
        form=config.form,
        dropout_x=config.dropout_x,
        dropout_h=config.dropout_h,
        backend=config.backend,
        precision=PRECISIONS[config.precision],
    )


def build_lstm(config: TrainConfig, embedding: int) -> StackedLSTM:
    sizes = [*[config.hidden] * (config.layers - 1), config.last_hidden or embedding]
    return StackedLSTM(embedding, sizes, config.cell == "lstm-skip", config.dropout_x, config.dropout_h)


def trained_model(
    config: TrainConfig, genotype: Genotype | None, vocabulary_size: int, tensors: dict[str, Tensor]
) -> LanguageModel:
    """The model that `RunFolder.load_best` holds, with averaged weights where there are any."""
    model = build_model(config, genotype, vocabulary_size)
    averaged = _under("averaged.module.", tensors)
    model.load_state_dict(averaged or _under("model.", tensors))
    return model


def divided_dimension(name: str, dimensions: int) -> int | None:
    """Of a training's checkpoints, what is divided over ranks: the rows of the hidden state `[1, M, H]`."""
    return 1 if name == "h" else None


def _average_of(model: LanguageModel) -> AveragedModel:
    """Takes the mean of a model's weights over updates. `torch.optim.ASGD` would leave out the first of them, and use
    a learning rate that changes from one window to the next a window late."""
    return AveragedModel(model, multi_avg_fn=get_swa_multi_avg_fn())


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
