"""The protocol of search strategies, and their result."""

from __future__ import annotations

import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, ClassVar, Self

from wenet.cells import Cell, cell_from_dict, cell_to_dict
from wenet.run import Session
from wenet.searching.settings import STRATEGIES, SearchConfig
from wenet.tasks import Baseline, Metric, Task, failure_to_learn
from wenet.words import counted, figure

RECORDS = "search.jsonl"
# Settings that only some strategies read.
OF_MIXTURES = (
    *("norm", "mix_lr", "windows", "cell_weights", "score", "carry_embedding", "mix_dropout", "initial_cells"),
)
OF_RACES = ("rungs", "falling_rates", "networks_per_cell", "mutate")
Record = dict[str, Any]


@dataclass(frozen=True)
class Final:
    """How a contest chose a cell among several.

    Attributes:
        network: the cell's own in the last record that has it; empty if it took no part in the search.
        values: the metric of its trainings on the validation part.
        windows: number of windows of each.
        preferred: whether it is a rival that others may be better than, which was not shown.
    """

    cell: Cell
    network: Record
    values: Sequence[float]
    windows: int
    finalists: int
    preferred: bool

    @property
    def diverged(self) -> int:
        """The number of its trainings that diverged."""
        return len(self.values) - len(self._finite)

    @property
    def value(self) -> float | None:
        """The mean of the trainings that did not diverge; None if all did."""
        return statistics.fmean(self._finite) if self._finite else None

    @property
    def _finite(self) -> list[float]:
        return [value for value in self.values if math.isfinite(value)]


@dataclass(frozen=True)
class Best:
    """The winner of a search and how it was found, as stored in `best.json`.

    Attributes:
        rounds_kept: number of rounds after which the cell was kept, including the last.
        rounds, rounds_planned: rounds done, and rounds in all.
        networks_searched: number of different cells that took part.
        network_windows: windows trained on, summed over networks.
    """

    genotype: Cell
    rounds_kept: int
    rounds: int
    rounds_planned: int
    networks_searched: int
    network_windows: int
    seconds: float
    peak_memory_bytes: int
    more_training: ClassVar[str] = "--epochs-per-round"  # the flags for it, if the strategy trained what was reached,
    rate: ClassVar[str] = "--lr"  # and for a learning rate

    @property
    def finished(self) -> bool:
        return self.rounds >= self.rounds_planned

    def to_dict(self, metric: Metric) -> dict[str, Any]:
        """Convert for `best.json`, with values of the task's metric under its key."""
        values = {key: value for key, value in vars(self).items() if key != "genotype"}
        return {"genotype": cell_to_dict(self.genotype), "text": str(self.genotype), **self._in_file(values, metric)}

    @classmethod
    def from_dict(cls, value: dict[str, Any], metric: Metric) -> Self:
        """Read the result of `to_dict`."""
        given = cls._from_file(dict(value), metric)
        known = {name: given[name] for name in cls.__dataclass_fields__ if name in given}
        return cls(**{**known, "genotype": cell_from_dict(value["genotype"])})

    @classmethod
    def _in_file(cls, values: dict[str, Any], metric: Metric) -> dict[str, Any]:
        return values

    @classmethod
    def _from_file(cls, values: dict[str, Any], metric: Metric) -> dict[str, Any]:
        return values

    def after_final(self, final: Final) -> Self:
        """What is known once a contest has chosen a cell among several."""
        raise NotImplementedError

    def how_it_won(self, metric: Metric) -> str:
        """The reason why the winner won, for a terminal."""
        return f"best of {counted(self.networks_searched, 'network')}"

    def lines(self, metric: Metric) -> list[str]:
        """Further facts about the winner, for a terminal."""
        return []

    def sentences(self, metric: Metric) -> Iterator[str]:
        """The result in paragraphs, for the report."""
        yield f"Of {counted(self.networks_searched, 'random cell')} this one won."

    def reached(self) -> tuple[str, float | None] | None:
        """The last trained model in words, and its metric, None if not finite; or None if nothing was trained."""
        return None

    def flags_of_training(self) -> tuple[str, str]:
        """For more training, and for a learning rate, of what was reached."""
        return self.more_training, self.rate

    def failure_to_learn(self, metric: Metric, baseline: Baseline | None, in_minutes: bool) -> str | None:
        """A warning if the last trained model does not beat the baseline, and so cannot distinguish cells.

        Args:
            in_minutes: whether `--minutes` decided how long it trained.
        """
        reached = self.reached()
        failure = reached and failure_to_learn(*reached, metric, baseline)
        if not failure:
            return None
        more, rate = self.flags_of_training()
        if in_minutes:
            more = "--minutes"
        mend = f"lower {rate}" if reached and reached[1] is None else f"raise {more} or change {rate}"
        return f"{failure}. The ranking of the cells means nothing yet: {mend}"

    def is_ranked_by_chance(self) -> bool:
        """Whether nothing shows so far that the ranking is better than chance."""
        return True


@dataclass(frozen=True)
class StandaloneBest(Best):
    """A winner by the metric of standalone training.

    Attributes:
        value: its metric on the validation part; None if training diverged, of several trainings all.
        windows: number of windows of that training.
        finalists: of so many it won the contest, whose value and windows these are; 0 if the strategy alone chose it.
        preferred: whether others of them had better figures, but were not shown to be better.
        diverged: so many of its trainings in the contest diverged, and do not count.
    """

    value: float | None
    windows: int
    finalists: int = field(default=0, kw_only=True)
    preferred: bool = field(default=False, kw_only=True)
    diverged: int = field(default=0, kw_only=True)
    first: ClassVar[str]  # the cell that came first by the strategy alone, in words

    def reached(self) -> tuple[str, float | None]:
        return "the best finalist" if self.finalists else self.first, self.value

    def flags_of_training(self) -> tuple[str, str]:
        return ("--contest-epochs", "--rates") if self.finalists else super().flags_of_training()

    def after_final(self, final: Final) -> Self:
        return replace(
            self,
            genotype=final.cell,
            value=final.value,
            windows=final.windows,
            finalists=final.finalists,
            preferred=final.preferred,
            diverged=final.diverged,
        )

    @classmethod
    def _in_file(cls, values: dict[str, Any], metric: Metric) -> dict[str, Any]:
        values[metric.key] = values.pop("value")
        return values

    @classmethod
    def _from_file(cls, values: dict[str, Any], metric: Metric) -> dict[str, Any]:
        return {**values, "value": values[metric.key]}

    def is_ranked_by_chance(self) -> bool:
        return False

    def how_it_won(self, metric: Metric) -> str:
        if not self.finalists:
            return self._how_it_came_first(metric)
        value = final_value(self.value, self.diverged, metric)
        return final_in_words(self.finalists, self.preferred, self._field(), value, self.windows, metric)

    def sentences(self, metric: Metric) -> Iterator[str]:
        if not self.finalists:
            yield f"{self._course()} {self._place(metric)}"
            return
        value = final_value(self.value, self.diverged, metric)
        final = final_in_sentences(self.finalists, self.preferred, value, self.windows, metric)
        yield f"{self._course()} {final}"

    def _field(self) -> str:
        """What finalists came from, behind "finalists from"."""
        raise NotImplementedError

    def _course(self) -> str:
        """The strategy in a sentence."""
        raise NotImplementedError

    def _how_it_came_first(self, metric: Metric) -> str:
        """As `how_it_won`, of a cell that the strategy alone chose."""
        raise NotImplementedError

    def _place(self, metric: Metric) -> str:
        """What that cell reached, in a sentence."""
        raise NotImplementedError


def final_value(value: float | None, diverged: int, metric: Metric) -> str | None:
    """The mean of a winner's trainings, and how many of them it leaves out; None if all diverged."""
    if value is None:
        return None
    return figure(value, metric.places) + (f" ({counted(diverged, 'training')} diverged)" if diverged else "")


def final_in_words(finalists: int, preferred: bool, field: str, value: str | None, windows: int, metric: Metric) -> str:
    """A winner's place among finalists, for a terminal.

    Args:
        preferred, windows: as in `StandaloneBest`.
        value: from `final_value`.
        field: what finalists came from.
    """
    won = "not shown to be worse than any" if preferred else "best"
    which = f"{won} of {finalists} finalists from {field}"
    if value is None:
        return f"{which}, though its trainings diverged"
    return f"{which}: mean validation {metric.name} {value} after {counted(windows, 'window')}"


def final_in_sentences(finalists: int, preferred: bool, value: str | None, windows: int, metric: Metric) -> str:
    """The same for the report."""
    merit = "This one is the best of them"
    if preferred:
        merit = "This published cell wins, because none of them is shown to be better"
    which = f"Then {finalists} finalists trained from new weights. {merit}"
    if value is None:
        return f"{which}, though its trainings diverged."
    return f"{which}: after {counted(windows, 'window')} it has a mean validation {metric.name} of {value}."


class Strategy(ABC):
    """A way to search: it runs a session to the best cell, and knows the meaning of its records.

    To add one, write a module with a subclass and name it in `wenet.searching.settings.STRATEGIES`.

    A record of a stage has the keys round, windows, tokens, train_loss, valid_ and the metric's key, seconds_so_far,
    peak_memory_bytes, and networks: the cells of the stage in the order of their scores, each with genotype and
    rounds_kept.
    """

    best_type: ClassVar[type[Best]] = Best
    stage: ClassVar[str] = "round"  # the stage of a record
    keeps_cells: ClassVar[bool] = False  # from stage to stage, beside new ones
    figures: ClassVar[tuple[str, ...]] = ()  # figures of the records in the report
    unread: ClassVar[tuple[str, ...]] = ()  # settings that it does not read

    def __init__(self, session: Session[SearchConfig]) -> None:
        self.session = session
        self.records_written = 0

    @abstractmethod
    def run(self) -> Best:
        """Search, resuming where a stopped search ended.

        Raises:
            WenetError: training diverged, the disk is full, or the checkpoint cannot be used.
            Stopped: SIGINT or SIGTERM came; a checkpoint was written first.
        """

    def write_record(self, record: Record) -> None:
        """Append a record. A resumed search reads its trainings and writes all records again; those of before go only
        now, so a run that is refused keeps them."""
        self.session.folder.truncate_records(RECORDS, self.records_written)
        self.session.folder.append_record(RECORDS, record)
        self.records_written += 1

    @classmethod
    def check(cls, config: SearchConfig, processes: int = 1) -> None:
        """Refuse settings or numbers of processes that this strategy does not support."""

    @classmethod
    @abstractmethod
    def memory(cls, config: SearchConfig, data: Any, processes: int) -> int:
        """Bytes needed by each process besides the interpreter."""

    @classmethod
    def outline(cls, config: SearchConfig) -> str:
        """Size and course of the search in a few words, for a terminal."""
        return (
            f"{counted(config.pool, 'network')}, {config.batch} new + {config.keep} kept a round, "
            f"{counted(config.rounds, 'round')} of {counted(config.epochs_per_round, 'epoch')}, hidden {config.hidden}"
        )

    @classmethod
    def seconds(cls, config: SearchConfig, task: Task, data: Any) -> float | None:
        """An estimate of the time that the search takes; None if a mixture of as many networks takes as long."""
        return None

    @classmethod
    @abstractmethod
    def stages(cls, config: SearchConfig) -> int:
        """The number of stages."""

    @classmethod
    @abstractmethod
    def score(cls, record: Record, place: int) -> float:
        """The score of the network at a place of a record, comparable between stages."""

    @classmethod
    def merits(cls, record: Record, place: int, metric: Metric) -> dict[str, Any]:
        """What the network at a place of a record is ranked by, and when, under names for a reader."""
        network = record["networks"][place]
        return {
            cls.stage: record["round"],
            "windows": record["windows"],
            f"validation {metric.name}": network.get(metric.key),
        }

    @classmethod
    def columns(cls, record: Record, network: Record) -> dict[str, str]:
        """Further columns for a kept cell in a table."""
        return {}


def last_ranking(records: Sequence[Record]) -> Record:
    """The record in which a search ranked its cells last: of a race the last of the furthest rung, else the last."""
    return max(reversed(records), key=lambda record: record["round"])


def generation_of(network: Record) -> int:
    """The generation, from 1, in which a network of a record entered its race; 1 in a search without generations."""
    return int(network.get("generation", 1))


def cells_in_words(searched: int, mutations: int) -> str:
    """The cells of a search, some of them mutations of others."""
    of_them = f" and {counted(mutations, 'mutation')} of the best" if mutations else ""
    return f"{counted(searched - mutations, 'random cell')}{of_them}"


def are_mutations(config: SearchConfig, generation: int) -> bool:
    """Whether the cells of a generation of a race, from 1, are mutations of others."""
    return config.mutate and generation > 1


def strategy_of(config: SearchConfig) -> type[Strategy]:
    """The strategy of the settings."""
    return strategy_named("repeated" if config.runs > 1 else config.strategy)


def strategy_named(name: str) -> type[Strategy]:
    """A strategy by its name in `STRATEGIES`."""
    module, class_name = STRATEGIES[name].split(":")
    strategy: type[Strategy] = getattr(import_module(module), class_name)
    return strategy


def read_best(value: dict[str, Any], config: SearchConfig, metric: Metric) -> Best:
    """Read the contents of `best.json`."""
    return strategy_of(config).best_type.from_dict(value, metric)


def unfinished_part(best: Best | None, audited: bool, contested: bool, config: SearchConfig) -> str | None:
    """What a search has yet to end: itself, its audit or its contest; None if nothing. Repeated runs have an audit
    each."""
    if best is None or not best.finished:
        return "search"
    if config.audit and config.runs == 1 and not audited:
        return "audit"
    return "contest" if config.contest and not contested else None
