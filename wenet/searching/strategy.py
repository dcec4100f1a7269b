"""The protocol of a search strategy, and the best cell that one ends with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, Self

from wenet.cells import Genotype, random_genotypes, random_mixed_genotypes
from wenet.run import Session, counted
from wenet.searching.settings import STRATEGIES, SearchConfig
from wenet.tasks import Baseline, Metric, Task, failure_to_learn

RECORDS = "search.jsonl"
Record = dict[str, Any]


@dataclass(frozen=True)
class Best:
    """The winner of a search, and how it was found; `best.json` holds it.

    Attributes:
        rounds_kept: rounds after which the cell was kept, before the last one and with it.
        rounds, rounds_planned: done, and to be done in all.
        networks_searched: different cells that have taken part.
        network_windows: windows trained on, counted for each network.
    """

    genotype: Genotype
    rounds_kept: int
    rounds: int
    rounds_planned: int
    networks_searched: int
    network_windows: int
    seconds: float
    peak_memory_bytes: int
    more_training: ClassVar[str] = "--epochs-per-round"  # the flag for it

    @property
    def finished(self) -> bool:
        return self.rounds >= self.rounds_planned

    def to_dict(self, metric: Metric) -> dict[str, Any]:
        """For `best.json`; values of the task's metric go by its key."""
        values = {key: value for key, value in vars(self).items() if key != "genotype"}
        return {"genotype": self.genotype.to_dict(), "text": str(self.genotype), **self._in_file(values, metric)}

    @classmethod
    def from_dict(cls, value: dict[str, Any], metric: Metric) -> Self:
        """Read what `to_dict` gave."""
        given = cls._from_file(dict(value), metric)
        known = {name: given[name] for name in cls.__dataclass_fields__ if name in given}
        return cls(**{**known, "genotype": Genotype.from_dict(value["genotype"])})

    @classmethod
    def _in_file(cls, values: dict[str, Any], metric: Metric) -> dict[str, Any]:
        return values

    @classmethod
    def _from_file(cls, values: dict[str, Any], metric: Metric) -> dict[str, Any]:
        return values

    def how_it_won(self, metric: Metric) -> str:
        """For a terminal: what tells the winner from the others."""
        return f"best of {counted(self.networks_searched, 'network')}"

    def lines(self, metric: Metric) -> list[str]:
        """For a terminal: what else is known of it."""
        return []

    def sentences(self, metric: Metric) -> Iterator[str]:
        """For the report: what was found, a paragraph each."""
        yield f"Of {counted(self.networks_searched, 'random cell')} this one won."

    def reached(self) -> tuple[str, float | None] | None:
        """What was trained last, in words, and the metric that it reached, None where that is not finite; None where
        nothing was trained."""
        return None

    def failure_to_learn(self, metric: Metric, baseline: Baseline | None) -> str | None:
        """What to say where what was trained does not beat the baseline, and so cannot tell good cells from bad."""
        reached = self.reached()
        failure = reached and failure_to_learn(*reached, metric, baseline)
        if not failure:
            return None
        return f"{failure}. The ranking of the cells means nothing yet: raise {self.more_training} or change --lr"

    def is_ranked_by_chance(self) -> bool:
        """Whether nothing yet shows that the ranking beats chance."""
        return True


class Strategy(ABC):
    """A way to search: it runs a session to its best cell, and knows what its records mean.

    To add one, write a module with a subclass and name it in `wenet.searching.settings.STRATEGIES`.

    A record of a stage has the keys round, windows, tokens, train_loss, valid_ and the metric's key, seconds_so_far,
    peak_memory_bytes, and networks: the cells of the stage in the order of their scores, each with genotype and
    rounds_kept.
    """

    best_type: ClassVar[type[Best]] = Best
    stage: ClassVar[str] = "round"  # what a record is about
    figures: ClassVar[tuple[str, ...]] = ()  # that the report draws of the records
    note: ClassVar[str] = ""  # for the first lines of a search, where the time it takes needs a word

    def __init__(self, session: Session[SearchConfig]) -> None:
        self.session = session

    @abstractmethod
    def run(self) -> Best:
        """Search, from where a stopped search was left.

        Raises:
            WenetError: training diverged, the disk is full, or the checkpoint cannot be used.
            Stopped: SIGINT or SIGTERM came; a checkpoint was written first.
        """

    @classmethod
    def check(cls, config: SearchConfig, processes: int = 1) -> None:
        """Refuse settings, or a number of processes, that this strategy cannot follow."""

    @classmethod
    @abstractmethod
    def memory(cls, config: SearchConfig, data: Any, processes: int) -> int:
        """Bytes that each process needs besides the interpreter."""

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
        """How many there are."""

    @classmethod
    @abstractmethod
    def score(cls, record: Record, place: int) -> float:
        """What the network at a place of a record was ranked by, so that scores of different stages compare."""

    @classmethod
    def columns(cls, record: Record, network: Record) -> dict[str, str]:
        """Figures of a kept cell, for a table."""
        return {}


def strategy_of(config: SearchConfig) -> type[Strategy]:
    """The strategy that the settings ask for."""
    module, name = STRATEGIES["repeated" if config.runs > 1 else config.strategy].split(":")
    strategy: type[Strategy] = getattr(import_module(module), name)
    return strategy


def read_best(value: dict[str, Any], config: SearchConfig, metric: Metric) -> Best:
    """What `best.json` holds."""
    return strategy_of(config).best_type.from_dict(value, metric)


def is_finished(best: Best | None, audited: bool, contested: bool, config: SearchConfig) -> bool:
    """Whether a search has done all rounds, and the audit and contest asked for; repeated runs have an audit each."""
    if best is None or not best.finished:
        return False
    return (audited or not config.audit or config.runs > 1) and (contested or not config.contest)


def draw_pool(config: SearchConfig) -> list[Genotype]:
    """The random cells that a search goes through, in order."""
    seed = config.seed if config.pool_seed is None else config.pool_seed
    activations, counts = config.activations.split(","), config.node_counts
    if len(counts) > 1:
        return random_mixed_genotypes(config.pool, counts, seed, activations)
    return random_genotypes(config.pool, counts[0], seed, activations)
