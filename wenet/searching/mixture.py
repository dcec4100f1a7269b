"""Algorithm 2: train batches of different networks together, and keep those with the largest weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from wenet.cells import Cell, Genotype, read_cell
from wenet.data import LONGER_AT_MOST, mean_window, window_length
from wenet.nn import DividedDagRNN, LanguageModel, Mixing, WeightedCellRNN, WeightedDagRNN
from wenet.parallel import ALONE, Ranks, clip_gradients
from wenet.run import DTYPES, Session, peak_memory
from wenet.searching.settings import SearchConfig
from wenet.searching.space import draw_pool, space_of
from wenet.searching.strategy import (
    OF_RACES,
    RECORDS,
    Best,
    Final,
    Record,
    Strategy,
    final_in_sentences,
    final_in_words,
    final_value,
)
from wenet.tasks import Metric, Task, task_of
from wenet.training import ModelTrainer, Progress, network_weights, recurrence_bytes, restore_random, restore_training
from wenet.words import counted, duration, figure
from wenet_kernels import Program, WenetError

CURVE_POINTS = 20  # points of the training loss in a round's record
CARRIED = ("embedding.weight", "decoder_bias")  # parameters carried from round to round on request


@dataclass(frozen=True)
class Candidate:
    """A network of a round, with its share of the mixture after the round.

    Attributes:
        rounds_kept: number of rounds after which it was kept.
        held_out_loss: validation loss of its own output, if networks are ranked by it.
    """

    genotype: Cell
    rounds_kept: int = 0
    weight: float = math.nan
    held_out_loss: float | None = None

    @property
    def score(self) -> float:
        """The number that ranks the networks of a round, the highest first."""
        return self.weight if self.held_out_loss is None else -self.held_out_loss

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "genotype": str(self.genotype)}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Candidate:
        return cls(**{**value, "genotype": read_cell(value["genotype"])})


@dataclass
class SearchProgress(Progress):
    """The progress of a search."""

    round: int = 0  # rounds finished
    step: int = 0  # of the text, where the next window begins; a round starts where the last one ended
    losses: list[float] = field(default_factory=list)  # one per window of this round
    tokens: int = 0  # read in this round
    kept: list[Candidate] = field(default_factory=list)  # from the last round, best first
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "kept": [candidate.to_dict() for candidate in self.kept]}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> SearchProgress:
        given = dict(value)
        kept = given.pop("seeds", None) or given.pop("kept", [])  # "seeds" in old checkpoints
        given.pop("kept", None)
        return cls(**given, kept=[Candidate.from_dict(candidate) for candidate in kept])


@dataclass(frozen=True)
class MixtureBest(Best):
    """The network with the largest weight in the last mixture, or with the lowest loss of its own output; or the best
    of several in a contest.

    Attributes:
        weight, uniform_weight: its share of the last mixture, and an equal share.
        held_out_loss: the loss that ranked it, if not ranked by weight.
        mixture_value: validation metric of the last mixture as a whole; None if it is not finite.
        finalists, preferred, diverged: as in `StandaloneBest`.
        final_value, final_windows: the mean metric of its trainings there, None if all diverged, and their length.
        initial: how many of the cells were given to the search; the others were drawn at random.
    """

    weight: float
    uniform_weight: float
    held_out_loss: float | None
    mixture_value: float | None
    finalists: int = field(default=0, kw_only=True)
    preferred: bool = field(default=False, kw_only=True)
    final_value: float | None = field(default=None, kw_only=True)
    final_windows: int = field(default=0, kw_only=True)
    diverged: int = field(default=0, kw_only=True)
    initial: int = field(default=0, kw_only=True)

    def after_final(self, final: Final) -> Self:
        network, names = final.network, ("weight", "uniform_weight", "held_out_loss")
        return replace(
            self,
            genotype=final.cell,
            finalists=final.finalists,
            preferred=final.preferred,
            final_value=final.value,
            final_windows=final.windows,
            diverged=final.diverged,
            rounds_kept=network.get("rounds_kept", 0) + 1,
            **{name: network[name] for name in names if name in network},
        )

    @classmethod
    def _in_file(cls, values: dict[str, Any], metric: Metric) -> dict[str, Any]:
        values[f"mixture_valid_{metric.key}"] = values.pop("mixture_value")
        return values

    @classmethod
    def _from_file(cls, values: dict[str, Any], metric: Metric) -> dict[str, Any]:
        return {**values, "mixture_value": values.get(f"mixture_valid_{metric.key}")}

    def how_it_won(self, metric: Metric) -> str:
        networks = counted(self.networks_searched, "network")
        searched = f"best of {networks}"
        if self.finalists:
            value = final_value(self.final_value, self.diverged, metric)
            final = final_in_words(self.finalists, self.preferred, networks, value, self.final_windows, metric)
            return f"{final}; weight {self.weight:.4f}, where equal weights would be {self.uniform_weight:.4f}"
        if self.held_out_loss is not None:
            searched += f": validation loss {self.held_out_loss:.3f} of its own output"
        return (
            f"{searched}: weight {self.weight:.4f} in the last mixture, where equal weights would be "
            f"{self.uniform_weight:.4f}; {self._how_long_kept()}"
        )

    def _how_long_kept(self) -> str:
        earlier = self.rounds_kept - 1
        if self.rounds == 1:
            return "there was one round"
        return f"kept from {counted(earlier, 'earlier round')}" if earlier else "new in the last round"

    def reached(self) -> tuple[str, float | None]:
        return "the mixture of the last round", self.mixture_value

    def lines(self, metric: Metric) -> list[str]:
        value = figure(self.mixture_value, metric.places, "not finite")
        return [f"mixture   validation {metric.name} {value}, of all networks of the last round together"]

    def sentences(self, metric: Metric) -> Iterator[str]:
        cells = counted(self.networks_searched - self.initial, "random cell")
        if self.initial:
            cells += f" and {self.initial} of --initial-cells"
        share = f"{self.weight / self.uniform_weight:.2f} times an equal share of {self.uniform_weight:.4f}"
        if self.held_out_loss is None:
            how = f"has the largest weight in the last mixture, {self.weight:.4f}: {share}"
        else:
            loss = f"{self.held_out_loss:.3f} nats per token"
            weight = f"its weight in the last mixture is {share}"
            how = f"has the lowest loss by its own output on held-out text, {loss}; {weight}"
        if self.finalists:
            value = final_value(self.final_value, self.diverged, metric)
            final = final_in_sentences(self.finalists, self.preferred, value, self.final_windows, metric)
            yield f"{cells} trained as a mixture. {final} Its weight in the mixture was {share}."
        else:
            yield f"Of {cells} this one {how}. {self._how_long_kept_in_a_sentence()}"
        reached = f"has no finite validation {metric.name}"
        if self.mixture_value is not None:
            reached = f"reaches a validation {metric.name} of {figure(self.mixture_value, metric.places)}"
        yield f"The mixture of the last round {reached}. That is of all its networks together, not of the cell."

    def _how_long_kept_in_a_sentence(self) -> str:
        if self.rounds == 1:
            return "There was one round."
        earlier = self.rounds_kept - 1
        if earlier == 0:
            return "It was new in the last round."
        return f"It was kept from {counted(earlier, 'earlier round')}."


class Mixture(Strategy, ModelTrainer):
    """One search by Algorithm 2; a stage of training is a round.

    The test part of the data is not used. Several processes divide the networks of every round.
    """

    best_type = MixtureBest
    keeps_cells = True
    unread = OF_RACES
    figures = ("weights", "trajectories", "learning")
    records = RECORDS
    config: SearchConfig
    progress: SearchProgress

    def __init__(self, session: Session[SearchConfig]) -> None:
        ModelTrainer.__init__(self, session)
        config = self.config
        self.train_streams = self.task.streams(session.data, "train", config.data_batch).to(self.device)  # [steps, M]
        self.valid_streams = self.task.streams(session.data, "valid", config.valid_rows).to(self.device)
        windows = self._windows_per_pass()
        self.windows_per_round = max(1, round(config.epochs_per_round * windows))
        self.progress = SearchProgress(0.0, kept=[Candidate(cell) for cell in config.initial_cells_given])
        self.checkpoint: dict[str, Tensor] = {}  # the tensors that the search resumes from
        self.carried: dict[str, Tensor] = {}  # into the next round, by parameter name
        self.valid_key = f"valid_{self.task.metric.key}"

    def _windows_per_pass(self) -> int:
        mean = mean_window(self.config.bptt, self.config.windows)
        return math.ceil(self.task.steps_per_pass(self.train_streams) / mean)

    def run(self) -> MixtureBest:
        """Run Algorithm 2, from the last checkpoint if there is one."""
        self.train(self.config.seed)
        best = self._best()
        self.folder.write_json("best.json", best.to_dict(self.task.metric))
        return best

    def prepare(self) -> None:
        self.pool = draw_pool(self.config)

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.checkpoint = tensors
        prefix = "carried."
        self.carried = {n.removeprefix(prefix): tensor for n, tensor in tensors.items() if n.startswith(prefix)}

    def read_progress(self, value: dict[str, Any]) -> SearchProgress:
        if "cursor" in value:  # in checkpoints of old runs: the number of the next window
            value = {**value, "step": value["cursor"] * self.config.bptt}
            del value["cursor"]
        return SearchProgress.from_dict(value)

    def finished(self) -> bool:
        return self.progress.round >= self.config.rounds

    def begin_stage(self) -> None:
        """Build a new model of new and kept cells, with parameters carried from the last round; or restore it from a
        checkpoint of this round."""
        first = self.progress.round * self.config.batch
        new = [Candidate(genotype) for genotype in self.pool[first : first + self.config.batch]]
        self.candidates = new + self.progress.kept
        genotypes = [candidate.genotype for candidate in self.candidates]
        self.model = build_mixture(self.config, genotypes, self.task, self.session.data, self.ranks).to(self.device)
        self.model.load_state_dict(self.carried, strict=False)
        self.optimizer = build_optimizer(self.config, self.model)
        self.h = None
        if self.progress.losses:
            restore_training(self.model, self.optimizer, self.checkpoint)
            restore_random(self.checkpoint, self.device)  # again, because building the model used the generators
            self.h = self.checkpoint["h"].to(self.device)

    def stage_done(self) -> bool:
        return len(self.progress.losses) >= self.windows_per_round

    def next_window(self) -> tuple[Tensor, Tensor]:
        length = window_length(self.config.bptt, self.config.windows)
        if self.progress.step == 0:
            self.h = None  # each pass over the text starts from a zero state
        return self.task.window(self.train_streams, self.progress.step, length)

    def step(self, inputs: Tensor, targets: Tensor) -> float:
        """Line 8: train parameters and mixing weights together on the training part.

        With windows of random length, rates are proportional to the length, as in the models the paper builds on.
        """
        loss = self.differentiate(inputs, targets)
        if self.config.windows != "fixed":
            for group, rate in zip(self.optimizer.param_groups, (self.config.lr, self.config.mix_lr), strict=True):
                group["lr"] = rate * len(inputs) / self.config.bptt
        self.optimizer.step()
        return loss

    def count(self, inputs: Tensor, loss: float) -> None:
        progress, tokens = self.progress, inputs.numel()
        progress.losses.append(loss)
        progress.tokens += tokens
        progress.step = (progress.step + len(inputs)) % self.task.steps_per_pass(self.train_streams)
        recent = progress.losses[-20:]
        label = f"round {progress.round + 1}/{self.config.rounds}"
        self.console.advance(label, tokens, f"loss {sum(recent) / len(recent):.3f}")
        self.curves.window(self.units_done(), loss, tokens, self._largest_weight)

    def clip_gradients(self) -> Tensor:
        if not isinstance(self.model.rnn, DividedDagRNN):
            return super().clip_gradients()
        divided = self.model.rnn.divided_parameters()
        shared = [p for p in self.model.parameters() if all(p is not own for own in divided)]
        return clip_gradients(shared, divided, self.config.clip, self.ranks)

    def end_stage(self) -> None:
        """Line 9: keep the K networks with the largest weights or other scores, and record all networks."""
        weights = mixing_weights(self.model)
        self.check_finite("sum of the mixing weights", torch.tensor(sum(weights)))
        valid, losses = self._validate(), self._own_losses()
        measured = [
            replace(candidate, weight=weight, held_out_loss=loss)
            for candidate, weight, loss in zip(self.candidates, weights, losses, strict=True)
        ]
        # The sort is stable: among equal scores the earlier candidate comes first, in every run.
        ranked = sorted(measured, key=lambda candidate: -candidate.score)
        seconds = self.lap()
        record = self._record(ranked, valid)
        self.folder.append_record(RECORDS, record)
        self._say_round(record)
        self._plot_round(record)
        kept = [replace(c, rounds_kept=c.rounds_kept + 1) for c in ranked[: self.config.keep]]
        self.progress = SearchProgress(seconds, self.progress.round + 1, self.progress.step, kept=kept)
        self.folder.write_json("best.json", self._best().to_dict(self.task.metric))
        if self.config.carry_embedding:
            parameters = dict(self.model.named_parameters())
            self.carried = {name: parameters[name].detach().clone() for name in CARRIED}
        self.save({f"carried.{name}": tensor for name, tensor in self.carried.items()})

    def _validate(self) -> float | None:
        """The metric of the mixture; None if it is not finite, which does not affect the ranking."""
        measured = self.task.measure(self.model, self.valid_streams, self.config.bptt, self.stop_if_asked)
        if math.isfinite(measured.metric):
            return float(measured.metric)
        name = self.task.metric.name
        self.console.say(
            f"round {self.progress.round + 1}: validation {name} of the mixture is not finite; going on (may help: "
            f"{self.mend()})"
        )
        return None

    def mend(self) -> str:
        if self.config.norm == "none":
            return super().mend()
        rows = self.config.data_batch
        return f"{super().mend()}, or do without the batch statistics over {rows} rows by --norm none"

    def _own_losses(self) -> Sequence[float | None]:
        """Validation losses of the networks' own outputs; None if weights rank, or if a loss is not finite."""
        unranked = [None] * len(self.candidates)
        if self.config.score == "weight":
            return unranked
        losses = self.task.measure(self.model, self.valid_streams, self.config.bptt, self.stop_if_asked, True).loss
        if bool(losses.isfinite().all()):
            found: list[float] = losses.tolist()
            return found
        self.console.say(f"round {self.progress.round + 1}: held-out losses are not all finite; the weights rank")
        return unranked

    def _record(self, ranked: Sequence[Candidate], valid: float | None) -> Record:
        losses = self.progress.losses
        return {
            "round": self.progress.round + 1,
            "windows": len(losses),
            "tokens": self.progress.tokens,
            "train_loss": sum(losses) / len(losses),
            "train_loss_curve": _means(losses, CURVE_POINTS),
            self.valid_key: valid,
            "uniform_weight": 1 / len(ranked),
            "seconds_so_far": round(self.progress.seconds, 3),
            "peak_memory_bytes": peak_memory(self.device),
            "networks": [candidate.to_dict() for candidate in ranked],
        }

    def recorded(self) -> int:
        return self.progress.round

    def _best(self) -> MixtureBest:
        """The winner so far."""
        records = self.folder.records(RECORDS)
        winner, last, initial = self.progress.kept[0], records[-1], len(self.config.initial_cells_given)
        return MixtureBest(
            genotype=winner.genotype,
            weight=winner.weight,
            uniform_weight=last["uniform_weight"],
            held_out_loss=winner.held_out_loss,
            rounds_kept=winner.rounds_kept,
            rounds=self.progress.round,
            rounds_planned=self.config.rounds,
            networks_searched=min(self.progress.round * self.config.batch, self.config.pool) + initial,
            initial=initial,
            network_windows=sum(record["windows"] * len(record["networks"]) for record in records),
            mixture_value=last[self.valid_key],
            seconds=last["seconds_so_far"],
            peak_memory_bytes=max(record["peak_memory_bytes"] for record in records),
        )

    def units_in_all(self) -> int:
        return self.config.rounds * self.windows_per_round

    def units_done(self) -> int:
        return self.progress.round * self.windows_per_round + len(self.progress.losses)

    def position(self) -> str:
        window = min(len(self.progress.losses) + 1, self.windows_per_round)
        return f"round {self.progress.round + 1}, window {window}"

    def _largest_weight(self) -> dict[str, float]:
        weights = mixing_weights(self.model)
        return {"weights/largest over equal share": max(weights) * len(weights)}

    def _plot_round(self, record: Record) -> None:
        shares = [network["weight"] / record["uniform_weight"] for network in record["networks"]]
        curves = {
            "weights/largest over equal share": max(shares),
            "weights/smallest kept over equal share": min(shares[: self.config.keep]),
        }
        if record[self.valid_key] is not None:
            curves[f"validation/{self.task.metric.name} of the mixture"] = record[self.valid_key]
        self.curves.values(self.units_done(), curves)
        self.curves.histogram(self.units_done(), "weights/over equal share", shares)

    def _say_round(self, record: Record) -> None:
        best, metric = record["networks"][0], self.task.metric
        self.console.say(
            f"round {record['round']}/{self.config.rounds} done after {duration(record['seconds_so_far'])}: "
            f"training loss {record['train_loss']:.3f}, validation {metric.name} of the mixture "
            f"{figure(record[self.valid_key], metric.places, 'not finite')}, best weight {best['weight']:.4f} (uniform "
            f"{record['uniform_weight']:.4f}): {best['genotype']}"
        )

    @classmethod
    def check(cls, config: SearchConfig, processes: int = 1) -> None:
        if processes == 1:
            return
        for flag, given in (
            ("--score held-out", config.score == "held-out"),
            ("--cell-weights shared", config.cell_weights == "shared"),
            (f"--space {config.space}", config.has_programs),
        ):
            if given:
                raise WenetError(f"networks cannot be divided over ranks with {flag}; leave it out, or torchrun")
        if config.fewest_networks < processes:
            raise WenetError(
                f"a round of {counted(config.fewest_networks, 'network')} cannot be divided over {processes} ranks; "
                "start fewer"
            )

    @classmethod
    def memory(cls, config: SearchConfig, data: Any, processes: int) -> int:
        """Parameters, gradients, Adam's two moments, and tensors kept for backward."""
        longest = config.bptt + (LONGER_AT_MOST if config.windows == "merity" else 0)
        positions, vocabulary = longest * config.data_batch, task_of(config).outputs(data)
        networks = -(-config.networks // processes)
        cell = space_of(config).largest(config)
        parameters = networks * network_weights(config, cell) + vocabulary * (config.hidden + 1)
        logits = 3 * positions * vocabulary
        recurrence = networks * positions * recurrence_bytes(config, cell)
        return DTYPES[config.precision].itemsize * (4 * parameters + logits) + recurrence

    @classmethod
    def stages(cls, config: SearchConfig) -> int:
        return config.rounds

    @classmethod
    def score(cls, record: Record, place: int) -> float:
        """The weight in units of an equal share, so that rounds of different sizes compare. If networks were ranked by
        validation loss, its distance below the mean of the round."""
        networks = record["networks"]
        loss = networks[place].get("held_out_loss")
        if loss is None:
            return float(networks[place]["weight"] / record["uniform_weight"])
        return float(sum(network["held_out_loss"] for network in networks) / len(networks) - loss)

    @classmethod
    def merits(cls, record: Record, place: int, metric: Metric) -> dict[str, Any]:
        ranked_by_loss = record["networks"][place].get("held_out_loss") is not None
        name = "loss below the mean of the round" if ranked_by_loss else "weight in equal shares"
        kept = record["networks"][place]["rounds_kept"]
        return {cls.stage: record["round"], "rounds kept": kept, name: cls.score(record, place)}

    @classmethod
    def columns(cls, record: Record, network: Record) -> dict[str, str]:
        weight = network["weight"]
        return {"weight": f"{weight:.4f}", "equal shares": f"{weight / record['uniform_weight']:.2f}"}


def build_mixture(
    config: SearchConfig, cells: Sequence[Cell], task: Task, data: Any, ranks: Ranks = ALONE
) -> LanguageModel:
    """Build the task's model around weighted networks (Figure 3); several processes divide the networks."""
    options: dict[str, Any] = {
        "norm": None if config.norm == "none" else config.norm,
        "dropout_x": config.dropout_x,
        "dropout_h": config.dropout_h,
        "backend": config.backend,
        "precision": config.precision,
        "mix_dropout": config.mix_dropout,
    }
    layer: WeightedDagRNN | WeightedCellRNN
    genotypes = [cell for cell in cells if isinstance(cell, Genotype)]
    of_dag: dict[str, Any] = {"form": config.form, "shared_weights": config.cell_weights == "shared"}
    if config.has_programs:
        programs = [cell for cell in cells if isinstance(cell, Program)]
        layer = WeightedCellRNN(config.hidden, config.hidden, programs, **options)
    elif ranks.alone:
        layer = WeightedDagRNN(config.hidden, config.hidden, genotypes, **options, **of_dag)
    else:
        layer = DividedDagRNN(config.hidden, config.hidden, genotypes, ranks, **options, **of_dag)
    model = task.model(layer, config, data)
    assert isinstance(model, LanguageModel)
    return model.to(DTYPES[config.precision])


def build_optimizer(config: SearchConfig, model: LanguageModel) -> torch.optim.Adam:
    """Adam for parameters and mixing weights, each with its own rate."""
    mixing = [parameter for name, parameter in model.named_parameters() if name == "rnn.mix_logits"]
    others = [parameter for name, parameter in model.named_parameters() if name != "rnn.mix_logits"]
    groups = [
        {"params": others, "lr": config.lr, "weight_decay": config.weight_decay},
        {"params": mixing, "lr": config.mix_lr, "weight_decay": 0.0},
    ]
    return torch.optim.Adam(groups, fused=True)


def mixing_weights(model: LanguageModel) -> list[float]:
    """Every network's share of the mixture."""
    assert isinstance(model.rnn, Mixing)
    weights = model.rnn.mixing_weights()
    assert weights is not None
    return weights.tolist()


def _means(values: Sequence[float], points: int) -> list[float]:
    """Average values over stretches of equal length, to at most `points` values."""
    stretch = math.ceil(len(values) / points)
    return [sum(part) / len(part) for part in (values[i : i + stretch] for i in range(0, len(values), stretch))]
