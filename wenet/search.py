"""Algorithm 2: train batches of different networks together, and keep those that the mixture leans on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from wenet.checkpoint import RunFolder
from wenet.config import DTYPES, PRECISIONS, SearchConfig
from wenet.console import duration
from wenet.curves import Curves
from wenet.data import batchify
from wenet.distributed import ALONE, Ranks, clip_gradients
from wenet.divided import DividedDagRNN
from wenet.genotype import Genotype, random_genotypes
from wenet.memory import peak_memory
from wenet.nn import LanguageModel, WeightedDagRNN
from wenet.resumable import ModelRun, Workplace
from wenet.training import (
    mean_cross_entropy,
    mean_window,
    perplexity,
    restore_random,
    restore_training,
    training_tensors,
    window_at,
    window_length,
    windows_per_epoch,
)

RECORDS = "search.jsonl"
CURVE_POINTS = 20  # of the training loss, in the record of a round


@dataclass(frozen=True)
class Candidate:
    """A network of a round, and after the round its share of the mixture.

    Attributes:
        rounds_kept: how often it has been a seed.
        held_out_loss: of its own output on the validation text, nats per token, where networks are ranked by that.
    """

    genotype: Genotype
    rounds_kept: int = 0
    weight: float = math.nan
    held_out_loss: float | None = None

    @property
    def score(self) -> float:
        """Networks of a round are ranked by it, the highest first."""
        return self.weight if self.held_out_loss is None else -self.held_out_loss

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "genotype": str(self.genotype)}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Candidate:
        return cls(**{**value, "genotype": Genotype.from_text(value["genotype"])})


@dataclass
class SearchState:
    """Where a search stands between two windows, apart from the model in training."""

    round: int = 0  # rounds finished
    step: int = 0  # of the text, where the next window begins; a round of part of an epoch goes on from the last one
    losses: list[float] = field(default_factory=list)  # cross-entropy of each window of this round, nats per token
    tokens: int = 0  # trained on in this round
    seeds: list[Candidate] = field(default_factory=list)  # best first
    seconds: float = 0.0  # spent on the run so far, by all processes that worked on it

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "seeds": [seed.to_dict() for seed in self.seeds]}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> SearchState:
        return cls(**{**value, "seeds": [Candidate.from_dict(seed) for seed in value["seeds"]]})


class Search(ModelRun):
    """One search over one corpus, recorded in one run folder.

    Args:
        work: the test part of its text is not touched; its ranks divide the networks of every round among them.
        run: takes records and checkpoints, of which one more is written at the end of each round.
    """

    def __init__(self, work: Workplace[SearchConfig], run: RunFolder) -> None:
        super().__init__(work, run)
        config = work.config
        self.config: SearchConfig = config
        self.train_stream = batchify(work.corpus.train, config.data_batch).to(self.device)  # [steps, M]
        self.valid_stream = batchify(work.corpus.valid, config.valid_rows).to(self.device)
        windows = windows_per_epoch(self.train_stream, mean_window(config.bptt, config.windows))
        self.windows_per_round = max(1, round(config.epochs_per_round * windows))
        self.state: SearchState = SearchState(seeds=[Candidate(cell) for cell in config.initial_cells])
        self.tensors: dict[str, Tensor] = {}  # of the checkpoint that the run goes on from

    def run(self) -> dict[str, Any]:
        """Algorithm 2, from the last checkpoint where there is one; returns what `best.json` holds.

        Raises:
            WenetError: training diverged, the disk is full, or the checkpoint cannot be used.
            Stopped: SIGINT or SIGTERM came; a checkpoint was written first.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.config.seed)
            pool = draw_pool(self.config)
            self._restore()
            self.console.start(self.config.rounds * self.windows_per_round, self._windows_done())
            with closing(Curves(self.curves_folder, self._windows_done())) as self.curves:
                while self.state.round < self.config.rounds:
                    first = self.state.round * self.config.batch
                    new = [Candidate(genotype) for genotype in pool[first : first + self.config.batch]]
                    candidates = new + self.state.seeds
                    self._start_round(candidates)
                    self._train()
                    self._end_round(candidates)
            self.console.stop()
        return self._best()

    def _start_round(self, candidates: Sequence[Candidate]) -> None:
        """A new model of the candidates; where a checkpoint was written in this round, as it was then."""
        genotypes = [candidate.genotype for candidate in candidates]
        self.model = build_model(self.config, genotypes, len(self.corpus.vocabulary), self.ranks)
        self.model.to(self.device)
        self.optimizer = build_optimizer(self.config, self.model)
        self.h = None
        if self.state.losses:
            restore_training(self.model, self.optimizer, self.tensors)
            restore_random(self.tensors, self.device)  # again: building the model drew from the generators
            self.h = self.tensors["h"].to(self.device)

    def _train(self) -> None:
        """Line 8: train parameters and mixing weights together on the training text."""
        while len(self.state.losses) < self.windows_per_round:
            length = window_length(self.config.bptt, self.config.windows)
            tokens, targets = window_at(self.train_stream, self.state.step, length)
            if self.state.step == 0:
                self.h = None  # each pass over the text starts from a hidden state of zero
            cross_entropy = self._step(tokens, targets)
            self.state.losses.append(cross_entropy)
            self.state.tokens += tokens.numel()
            self.state.step = (self.state.step + len(tokens)) % (len(self.train_stream) - 1)
            self._show_window(tokens.numel())
            self._checkpoint_if_due()

    def _step(self, tokens: Tensor, targets: Tensor) -> float:
        """One window: clipped gradients, and an update of parameters and mixing weights.

        Where windows are drawn their rates are in proportion to their length, as in the bases.
        """
        cross_entropy = self._differentiate(tokens, targets)
        if self.config.windows != "fixed":
            for group, rate in zip(self.optimizer.param_groups, (self.config.lr, self.config.mix_lr), strict=True):
                group["lr"] = rate * len(tokens) / self.config.bptt
        self.optimizer.step()
        return cross_entropy

    def _clip_gradients(self) -> Tensor:
        if not isinstance(self.model.rnn, DividedDagRNN):
            return super()._clip_gradients()
        divided = self.model.rnn.divided_parameters()
        shared = [p for p in self.model.parameters() if all(p is not own for own in divided)]
        return clip_gradients(shared, divided, self.config.clip, self.ranks)

    def _position(self) -> str:
        window = min(len(self.state.losses) + 1, self.windows_per_round)
        return f"round {self.state.round + 1}, window {window}"

    def _end_round(self, candidates: Sequence[Candidate]) -> None:
        """Line 9: keep the K networks of the largest weights, or of another score; record them all."""
        weights = mixing_weights(self.model)
        self._check_finite("sum of the mixing weights", torch.tensor(sum(weights)))
        valid = self._validate()
        held_out = self._held_out_losses(len(candidates))
        measured = [
            replace(candidate, weight=weight, held_out_loss=loss)
            for candidate, weight, loss in zip(candidates, weights, held_out, strict=True)
        ]
        # A stable order: of two equal scores the earlier candidate comes first, in every run.
        ranked = sorted(measured, key=lambda candidate: -candidate.score)
        seconds = self._lap()
        record = self._record(ranked, valid)
        self.folder.append_record(RECORDS, record)
        self._say_round(record)
        self._plot_round(record)
        seeds = [replace(c, rounds_kept=c.rounds_kept + 1) for c in ranked[: self.config.seeds]]
        self.state = SearchState(self.state.round + 1, self.state.step, seeds=seeds, seconds=seconds)
        self.tensors = {}
        self.folder.write_json("best.json", self._best())
        self._save({})

    def _validate(self) -> float | None:
        """Validation perplexity of the mixture; None where it is not finite, which the ranking need not mind."""
        valid = perplexity(self.model, self.valid_stream, self.config.bptt, between=self._stop_if_asked)
        if math.isfinite(valid):
            return valid
        self.console.say(f"round {self.state.round + 1}: validation perplexity of the mixture is not finite; going on")
        return None

    def _held_out_losses(self, networks: int) -> Sequence[float | None]:
        """Of every network by its own output; None where the weights rank, as they do where a loss is not finite."""
        if self.config.score == "weight":
            return [None] * networks
        losses = mean_cross_entropy(
            self.model, self.valid_stream, self.config.bptt, self._stop_if_asked, of_networks=True
        )
        if not bool(losses.isfinite().all()):
            self.console.say(f"round {self.state.round + 1}: held-out losses are not all finite; the weights rank")
            return [None] * networks
        found: list[float] = losses.tolist()
        return found

    def _record(self, ranked: Sequence[Candidate], valid: float | None) -> dict[str, Any]:
        losses = self.state.losses
        return {
            "round": self.state.round + 1,
            "windows": len(losses),
            "tokens": self.state.tokens,
            "train_loss": sum(losses) / len(losses),
            "train_loss_curve": _means(losses, CURVE_POINTS),
            "valid_perplexity": valid,
            "uniform_weight": 1 / len(ranked),
            "seconds_so_far": round(self.state.seconds, 3),
            "peak_memory_bytes": peak_memory(self.device),
            "networks": [candidate.to_dict() for candidate in ranked],
        }

    def _best(self) -> dict[str, Any]:
        """The winner so far, and how it was found."""
        records = self.folder.records(RECORDS)
        winner, last = self.state.seeds[0], records[-1]
        return {
            "genotype": winner.genotype.to_dict(),
            "text": str(winner.genotype),
            "weight": winner.weight,
            "uniform_weight": last["uniform_weight"],
            "held_out_loss": winner.held_out_loss,
            "rounds_kept": winner.rounds_kept,
            "rounds": self.state.round,
            "rounds_planned": self.config.rounds,
            "networks_searched": min(self.state.round * self.config.batch, self.config.pool),
            "network_windows": sum(record["windows"] * len(record["networks"]) for record in records),
            "mixture_valid_perplexity": last["valid_perplexity"],
            "seconds": last["seconds_so_far"],
            "peak_memory_bytes": max(record["peak_memory_bytes"] for record in records),
        }

    def _restore(self) -> None:
        """Take up the newest checkpoint, or begin."""
        checkpoint = self.folder.load_checkpoint()
        if checkpoint is not None:
            progress, self.tensors = checkpoint
            if "cursor" in progress:  # the number of the window, in checkpoints of older runs
                progress = {**progress, "step": progress["cursor"] * self.config.bptt}
                del progress["cursor"]
            self.state = SearchState.from_dict(progress)
            restore_random(self.tensors, self.device)
        self.folder.truncate_records(RECORDS, self.state.round)

    def _save_between_windows(self) -> None:
        h = {} if self.h is None else {"h": self.h}
        self._save({**training_tensors(self.model, self.optimizer), **h})

    def _windows_done(self) -> int:
        return self.state.round * self.windows_per_round + len(self.state.losses)

    def _show_window(self, tokens: int) -> None:
        recent = self.state.losses[-20:]
        self.console.advance(
            f"round {self.state.round + 1}/{self.config.rounds}", tokens, f"loss {sum(recent) / len(recent):.3f}"
        )
        self.curves.window(self._windows_done(), self.state.losses[-1], tokens, self._largest_weight)

    def _largest_weight(self) -> dict[str, float]:
        weights = mixing_weights(self.model)
        return {"weights/largest over equal share": max(weights) * len(weights)}

    def _plot_round(self, record: dict[str, Any]) -> None:
        shares = [network["weight"] / record["uniform_weight"] for network in record["networks"]]
        curves = {
            "weights/largest over equal share": max(shares),
            "weights/smallest kept over equal share": min(shares[: self.config.seeds]),
        }
        if record["valid_perplexity"] is not None:
            curves["validation/perplexity of the mixture"] = record["valid_perplexity"]
        self.curves.values(self._windows_done(), curves)
        self.curves.histogram(self._windows_done(), "weights/over equal share", shares)

    def _say_round(self, record: dict[str, Any]) -> None:
        best, valid = record["networks"][0], record["valid_perplexity"]
        self.console.say(
            f"round {record['round']}/{self.config.rounds} done after {duration(record['seconds_so_far'])}: "
            f"training loss {record['train_loss']:.3f}, validation perplexity of the mixture "
            f"{'not finite' if valid is None else format(valid, '.1f')}, best weight {best['weight']:.4f} (uniform "
            f"{record['uniform_weight']:.4f}): {best['genotype']}"
        )


def draw_pool(config: SearchConfig) -> list[Genotype]:
    """The random cells that a search goes through, in order."""
    seed = config.seed if config.pool_seed is None else config.pool_seed
    return random_genotypes(config.pool, config.nodes, seed, config.activations.split(","))


def build_model(
    config: SearchConfig, genotypes: Sequence[Genotype], vocabulary_size: int, ranks: Ranks = ALONE
) -> LanguageModel:
    """The weighted networks within a language model (Figure 3); of several ranks each has some of the networks."""
    options: dict[str, Any] = {
        "form": config.form,
        "norm": None if config.norm == "none" else config.norm,
        "dropout_x": config.dropout_x,
        "dropout_h": config.dropout_h,
        "backend": config.backend,
        "precision": PRECISIONS[config.precision],
        "mix_dropout": config.mix_dropout,
        "shared_weights": config.cell_weights == "shared",
    }
    if ranks.alone:
        rnn = WeightedDagRNN(config.hidden, config.hidden, genotypes, **options)
    else:
        rnn = DividedDagRNN(config.hidden, config.hidden, genotypes, ranks, **options)
    model = LanguageModel(
        vocabulary_size,
        rnn,
        config.dropout_embedding,
        config.dropout_output,
        config.init_range,
        config.dropout_word,
    )
    return model.to(DTYPES[config.precision])


def build_optimizer(config: SearchConfig, model: LanguageModel) -> torch.optim.Adam:
    """Adam over parameters and mixing weights together, each at its own rate."""
    mixing = [parameter for name, parameter in model.named_parameters() if name == "rnn.mix_logits"]
    others = [parameter for name, parameter in model.named_parameters() if name != "rnn.mix_logits"]
    groups = [
        {"params": others, "lr": config.lr, "weight_decay": config.weight_decay},
        {"params": mixing, "lr": config.mix_lr, "weight_decay": 0.0},
    ]
    return torch.optim.Adam(groups, fused=True)


def mixing_weights(model: LanguageModel) -> list[float]:
    """Every network's share of the mixture."""
    assert isinstance(model.rnn, WeightedDagRNN)
    weights = model.rnn.mixing_weights()
    assert weights is not None
    return weights.tolist()


def divided_dimension(name: str, dimensions: int) -> int | None:
    """Of a search's checkpoints, what is divided over ranks: all that has a leading n but the mixing weights, by
    which it is told from them and from the moments of the embedding: it has three dimensions or more."""
    return 0 if dimensions >= 3 and name.startswith(("model.", "optimizer.")) else None


def _means(values: Sequence[float], points: int) -> list[float]:
    """The values averaged into at most so many stretches of equal length."""
    stretch = math.ceil(len(values) / points)
    return [sum(part) / len(part) for part in (values[i : i + stretch] for i in range(0, len(values), stretch))]
