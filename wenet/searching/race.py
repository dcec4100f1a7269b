"""A race: standalone networks train side by side, and cells that fall behind leave it, rung by rung."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from wenet.cells import Cell, Genotype
from wenet.run import Session
from wenet.run.budget import Budget
from wenet.searching.contest import kept_for_measuring
from wenet.searching.paired import are_larger
from wenet.searching.settings import SearchConfig
from wenet.searching.shapes import Group, by_shape, config_for
from wenet.searching.space import draw_pool, identity, pool_in_words, space_of
from wenet.searching.strategy import OF_MIXTURES, Record, StandaloneBest, Strategy
from wenet.tasks import Metric, Task, task_of
from wenet.training import (
    Origin,
    Plan,
    StandaloneResult,
    kind_of,
    networks_left,
    seconds_per_measured,
    seconds_per_network,
    train_standalone,
    training_windows,
    windows_measured,
)
from wenet.words import counted, duration, figure
from wenet_kernels import Program, WenetError

FOLDER = "rungs"
# At a quarter of a training whose rates fall, cells are compared by an extrapolated loss: below the measured one by so
# much of what it fell since half as many windows. It tells more than the loss, so fewer go on.
EXTRAPOLATED = 0.5
ONE_IN, ONE_IN_EXTRAPOLATED = 2, 3  # of so many cells of a rung one goes on
MOST, USUALLY = 1.5, 1.2  # times as many go on, at most and on average, as some cannot be told from the last of these
OF_MUTATIONS = 1.4  # the same on average over all generations, as mutations are better than the cells before them
HELD_OUT_SHARE = 4  # a rung is measured on at most one token for this many trained on
# Of a race that must fit into a time: the part of the rest before a contest, and before one with several finalists, the
# part for trying rates, and by how much the last rung may take too long.
RACE_SHARE, SHARE_BEFORE_FINALISTS, RATES_SHARE, OVER = 0.4, 0.3, 0.1, 1.15
FEWEST_CELLS, FEWEST_WINDOWS, WANTED_WINDOWS = 6, 4, 30  # the last two of a first rung
WANTED_PASSES = 0.5  # over the data in a first rung, if the settings do not ask for fewer
PATIENCE = 100  # mutations tried at most, for each that is wanted
ALL_DIVERGED = "all that were left diverged"
TRIED, TRIED_IN_ALL = 2, 4  # cells of a kind, and of a family, on which rates are tried; at least one of each kind


@dataclass(frozen=True)
class Runner:
    """A cell that has finished a rung, or enters the race.

    Attributes:
        generation: the generation, from 0, in which it entered the race.
        networks: the places of its networks, from which the next rung continues.
        rate: the learning rate of its networks.
        held_out: their mean loss in each validation window of the rung, or on each sequence; infinite if one diverged.
        extrapolated: these losses extrapolated, where the rung compares cells by that; else empty.
        value: their mean metric.
        windows: on which each of them has trained, fewer than those of the rung if the time was up.
    """

    genotype: Cell
    generation: int
    networks: list[Origin] = field(default_factory=list)
    rate: float = math.nan
    held_out: list[float] = field(default_factory=list)
    extrapolated: list[float] = field(default_factory=list)
    value: float = math.nan
    windows: int = 0

    @property
    def compared(self) -> list[float]:
        """The losses by which the rung compares it."""
        return self.extrapolated or self.held_out

    @property
    def loss(self) -> float:
        return statistics.fmean(self.compared)

    @property
    def order(self) -> tuple[int, float]:
        """By which cells of a rung are sorted: those that the time cut short are behind the others."""
        return -self.windows, self.loss

    def to_dict(self, rung: int, metric: Metric) -> dict[str, Any]:
        finite = math.isfinite(self.loss)
        return {
            "genotype": str(self.genotype),
            metric.key: self.value if finite else None,
            "held_out_loss": statistics.fmean(self.held_out) if finite else None,
            **({"extrapolated_loss": self.loss if finite else None} if self.extrapolated else {}),
            "rate": self.rate,
            "rung": rung + 1,
            "rounds_kept": rung,
            "generation": self.generation + 1,
        }


@dataclass(frozen=True)
class RaceBest(StandaloneBest):
    """The first cell of the last rung.

    Attributes:
        value: the metric on the validation part, as far as the rung was measured on it; the mean of its networks.
        windows: number of windows that its networks were trained on.
        networks_per_cell: number of its networks.
        mutations: how many of the cells are mutations of better ones; the others were drawn at random.
    """

    networks_per_cell: int
    mutations: int = 0
    more_training: ClassVar[str] = "--rungs"
    rate: ClassVar[str] = "--rates"

    def _field(self) -> str:
        return f"a race of {counted(self.networks_searched, 'cell')}"

    def _course(self) -> str:
        cells = counted(self.networks_searched - self.mutations, "random cell")
        mutations = f" and {counted(self.mutations, 'mutation')} of the best" if self.mutations else ""
        return (
            f"{cells}{mutations} raced: their networks trained side by side, and at every rung those that did worse on "
            "held-out data left."
        )

    def _how_it_came_first(self, metric: Metric) -> str:
        which = f"first of {counted(self.networks_searched, 'cell')} in a race"
        if self.value is None:
            return f"{which}, by chance: {ALL_DIVERGED}"
        return (
            f"{which}: validation {metric.name} {figure(self.value, metric.places)} after "
            f"{counted(self.windows, 'window')} ({counted(self.networks_per_cell, 'network')})"
        )

    def _place(self, metric: Metric) -> str:
        if self.value is None:
            return f"This one came first by chance: {ALL_DIVERGED}."
        return (
            f"This one came first: after {counted(self.windows, 'window')} its validation {metric.name} was "
            f"{figure(self.value, metric.places)} ({counted(self.networks_per_cell, 'network')})."
        )

    def reached(self) -> tuple[str, float | None]:
        return "the best finalist" if self.finalists else "the first cell of the race", self.value


@dataclass
class Course:
    """The events of a race so far."""

    finished: list[list[Runner]]  # by rung
    gone_on: set[tuple[int, Cell]] = field(default_factory=set)  # rung and cell
    results: list[StandaloneResult] = field(default_factory=list)
    recorded: int = 0  # windows of networks, in the records so far


class Race(Strategy):
    """Standalone networks race in generations of `batch` cells.

    At every rung the networks of a cell train on, at the learning rate that suits the last rung, constant or falling to
    zero until the end of it, until they have seen twice as many windows; then cells are compared by their loss on the
    same held-out windows, with a moving average of the weights. The best half goes on, or the best third where losses
    are extrapolated, and with it cells that a paired t-test over the windows cannot tell from its last, up to one and a
    half times as many in all. The next generation comes from the pool, or by mutations of the best cells so far (as in
    evolution, Real et al. 2019); its cells have to be among the best of all that ever finished the rung (as in
    asynchronous successive halving, Li et al. 2020).
    """

    best_type = RaceBest
    stage = "rung"
    figures = ("rungs",)
    unread = OF_MIXTURES

    def __init__(self, session: Session[SearchConfig]) -> None:
        super().__init__(session)
        self.config, self.folder, self.metric = session.config, session.folder, session.task.metric
        first = training_windows(session, self.config.epochs_per_round)
        self.windows = [first * 2**rung for rung in range(self.config.rungs)]
        self.windows_of_rates = windows_of_rates(self.config, self.windows[-1])
        self._steps = session.task.window_steps(session.data, self.config)
        self.pool = draw_pool(self.config)
        self.generator = random.Random(self.config.seed)
        self.generations, self.size = self.config.rounds, self.config.batch  # and the cells of each
        self.rates: dict[str, float] = {}  # by family
        self.course = Course([[] for _ in self.windows])
        share = SHARE_BEFORE_FINALISTS if self.config.finalists > 1 else RACE_SHARE
        self.of_budget = share if self.config.contest else 0.95
        self.until = math.inf  # in the seconds of a budget

    def run(self) -> RaceBest:
        """Run all generations, resuming where they were stopped."""
        self._fit_to_budget()
        for generation in range(self.generations):
            if not self._run_generation(generation):
                break
        best = self._best()
        self.folder.write_json("best.json", best.to_dict(self.metric))
        return best

    def _run_generation(self, generation: int) -> bool:
        """Run all rungs of a generation; whether there was time for them."""
        entrants = [Runner(cell, generation) for cell in self._new_cells(generation)]
        for rung in range(len(self.windows)):
            if not entrants:
                break
            if not self._has_time_for(generation, rung, len(entrants)):
                return False
            ran = self._run_rung(generation, rung, entrants)
            self.course.finished[rung] += ran
            self._record(generation, rung, ran)
            entrants = self._going_on(rung)
        return True

    def _fit_to_budget(self) -> None:
        """Choose how many cells race, and for how long, from how long it takes to try their rates."""
        budget = self.session.budget
        if budget is None:
            return
        cells = self.pool[: self.config.batch]
        if tries_rates(self.config):
            self.windows_of_rates = budget.planned(
                "windows_of_rates", lambda: self._fitting_windows_of_rates(budget, cells)
            )
        for family in dict.fromkeys(map(family_of, cells)):
            self.rates[family] = self._choose_rate(family, cells)
        kept = kept_for_measuring(self.session)
        self.until = budget.planned(
            "race_until",
            lambda: round(min(budget.last_moment, budget.spent + self.of_budget * max(0.0, budget.left - kept)), 3),
        )
        of_kind = self.config.networks_per_cell * len(cells) // len(set(map(kind_of, cells)))
        self.generations, self.size, first = budget.planned(
            "sizes_of_race",
            lambda: self._sizes(
                self.until - budget.spent,
                self._seconds_per_network_window() or self._probed_seconds(cells, of_kind),
                len(cells),
            ),
        )
        self.windows = [first * 2**rung for rung in range(self.config.rungs)]

    def _fitting_windows_of_rates(self, budget: Budget, cells: Sequence[Cell]) -> int:
        """Windows with which trying rates takes a small part of the time, no more than the last rung may have."""
        kinds, rates = dict.fromkeys(map(kind_of, cells)), len(self.config.rate_grid)
        tried = [len(typical(kind, cells)) for kind in kinds]
        each = self._probed_seconds(cells, max(tried) * rates)
        *_, first = self._sizes(self.of_budget * budget.left, each, len(cells))
        fitting = int(RATES_SHARE * budget.total / (sum(tried) * rates * each))
        return min(max(FEWEST_WINDOWS, fitting), windows_of_rates(self.config, first * 2 ** (self.config.rungs - 1)))

    def _probed_seconds(self, cells: Sequence[Cell], side_by_side: int) -> float:
        """What a window takes for each of the networks in a call, by a short measurement of one kind."""
        task, data = self.session.task, self.session.data
        cell = typical(kind_of(cells[0]), cells)[0]
        shaped = config_for(cell, self.config, task, data)
        seconds = seconds_per_network(shaped, cell, 1.0, task, data, side_by_side=side_by_side)
        return seconds / training_windows(self.session, 1.0)

    def _sizes(self, seconds: float, each: float, most: int) -> tuple[int, int, int]:
        """The generations, the cells of each, and the windows of the first rung, that fit into so many seconds.

        Args:
            each: seconds that a window takes for each network of a call.
            most: cells that a generation may have.
        """
        windows = max(0.0, seconds) / (each * networks_of_entrant(self.config))  # of a single cell
        wanted = max(WANTED_WINDOWS, training_windows(self.session, min(WANTED_PASSES, self.config.epochs_per_round)))
        affordable = windows / wanted
        if self.config.falling_rates:  # cells need a part of a whole training, so both shrink alike
            affordable = math.sqrt(most * self.config.rounds * affordable)
        generations = max(1, min(self.config.rounds, int(affordable) // FEWEST_CELLS))
        count = max(min(FEWEST_CELLS, most), min(most, int(affordable / generations)))
        return generations, count, max(FEWEST_WINDOWS, int(windows / (generations * count)))

    def _seconds_per_network_window(self) -> float:
        """In the trainings so far; 0 before the first."""
        networks = sum(result.network_windows for result in self.course.results)
        return sum(result.seconds for result in self.course.results) / networks if networks else 0.0

    def _has_time_for(self, generation: int, rung: int, entrants: int) -> bool:
        """Whether a rung fits into what is left of the time, and at the first of a generation all its rungs do; the
        first of a race is always run."""
        budget = self.session.budget
        if budget is None or (generation, rung) == (0, 0):
            return True
        if rung == 0:
            needed = self.windows[0] * entrants * networks_of_entrant(self.config)
        else:
            needed = (self.windows[rung] - self.windows[rung - 1]) * entrants * self.config.networks_per_cell
        needed *= self._seconds_per_network_window()
        fits = budget.spent + needed < OVER * self.until and not budget.is_over
        return bool(budget.planned(f"rung_{generation + 1}_{rung + 1}", lambda: fits))

    def _new_cells(self, generation: int) -> list[Cell]:
        """The next of the pool; or mutations of the best cells so far, each of them new to the race."""
        from_pool = self.pool[generation * self.size : (generation + 1) * self.size]
        if not self._mutates(generation):
            return from_pool
        seen = {identity(runner.genotype) for runner in self.course.finished[0]}
        standings = self._standings()
        parents = [runner.genotype for runner in standings if math.isfinite(runner.loss)] or [standings[0].genotype]
        cells: list[Cell] = []
        for tried in range(PATIENCE * len(from_pool)):  # a small space runs out
            best = parents[: self.config.keep + tried // len(from_pool)]  # small cells have few mutations
            cell = space_of(self.config).mutated(self.generator.choice(best), self.generator, self.config)
            if identity(cell) not in seen:
                seen.add(identity(cell))
                cells.append(cell)
            if len(cells) == len(from_pool):
                return cells
        self.session.console.say(
            f"generation {generation + 1}: {counted(len(cells), 'cell')} in place of {len(from_pool)}, as the best "
            "cells have no other mutations"
        )
        return cells

    def _mutates(self, generation: int) -> bool:
        return self.config.mutate and generation > 0

    def _run_rung(self, generation: int, rung: int, entrants: Sequence[Runner]) -> list[Runner]:
        """Train the entrants' networks on, all of one shape at once."""
        found: list[Runner] = []
        cells = [runner.genotype for runner in entrants]
        for group in by_shape(cells, self.config, self.session.task, self.session.data):
            runners = [entrants[place] for place in group.places]
            family = family_of(runners[0].genotype)
            if family not in self.rates:
                self.rates[family] = self._choose_rate(family, cells)
            found += self._run_group(generation, rung, group, runners)
        return sorted(found, key=lambda runner: runner.order)

    def _run_group(self, generation: int, rung: int, group: Group, runners: Sequence[Runner]) -> list[Runner]:
        """Train on the networks of one shape, and measure them at each stop of the rung."""
        copies, rate = self.config.networks_per_cell, self.rates[family_of(runners[0].genotype)]
        networks = [network for runner in runners for network in runner.networks]
        measured = [[runner.held_out for runner in runners]]  # in the rung before, then at each stop
        trained = runners[0].windows
        for windows, half in self._stops(rung):
            plan = Plan(
                [cell for cell in group.architectures for _ in range(copies)],
                windows,
                self.config.seed + generation,
                rates=[rate] * copies * len(runners),
                hidden=group.hidden(copies),
                decay=self.config.falling_rates,
                schedule=self.windows[-1] if self.config.falling_rates else 0,
                origins=networks,
                average=True,
                leave=True,
                held_out=self._held_out_windows(max(self.windows[rung], self._windows_of_extrapolation())),
            )
            path = self.folder.path / FOLDER / f"{generation + 1}-{rung + 1}{half and '-halfway'}-{group.name}"
            result = self._train(group, path, plan, self._label(generation, rung) + half)
            networks = networks_left(self.session, path, len(plan.architectures))
            measured.append(of_cells(losses_of(result), copies))
            trained += result.windows
        ran = []
        for place, runner in enumerate(runners):
            own = slice(place * copies, (place + 1) * copies)
            halfway, held_out = measured[-2][place], measured[-1][place]
            value = statistics.fmean(outcome.value for outcome in result.outcomes[own])
            ahead = extrapolated(halfway, held_out) if halfway and extrapolates(self.config, rung) else []
            entrant = replace(runner, networks=networks[own], rate=rate, windows=trained)
            ran.append(replace(entrant, held_out=held_out, extrapolated=ahead, value=value))
        return ran

    def _stops(self, rung: int) -> list[tuple[int, str]]:
        """The windows after which the networks of a rung are measured, and what names the first half on the console."""
        windows = self.windows[rung]
        halfway = extrapolates(self.config, rung) and rung == 0 and windows > 1  # later rungs begin halfway
        return [(windows // 2, ", first half")] * halfway + [(windows, "")]

    def _windows_of_extrapolation(self) -> int:
        """After which losses are extrapolated; 0 if none are. What is measured before is measured on as much data."""
        return sum(windows for rung, windows in enumerate(self.windows) if extrapolates(self.config, rung))

    def _train(self, group: Group, path: Path, plan: Plan, label: str) -> StandaloneResult:
        session = replace(self.session, config=group.config)
        result = train_standalone(session, path, plan, f"{label}, {group.title}")
        self.course.results.append(result)
        return result

    def _choose_rate(self, family: str, cells: Sequence[Cell]) -> float:
        """The rate at which some cells of each kind in a family have the lowest mean loss; first of all, one at which
        few diverge."""
        rates = self.config.rate_grid
        if not tries_rates(self.config):
            return rates[0]
        sums = torch.zeros(len(rates), dtype=torch.float64)
        diverged = torch.zeros(len(rates), dtype=torch.int64)
        kinds = dict.fromkeys(kind_of(cell) for cell in cells if family_of(cell) == family)
        tried = [cell for kind in kinds for cell in typical(kind, cells)]
        for group in by_shape(tried, self.config, self.session.task, self.session.data):
            plan = Plan(
                [cell for _ in rates for cell in group.architectures],
                self.windows_of_rates,
                self.config.seed,
                rates=[rate for rate in rates for _ in group.architectures],
                hidden=group.hidden() * len(rates),
                decay=self.config.falling_rates,
                average=True,
                held_out=self._held_out_windows(self.windows_of_rates),
            )
            result = self._train(group, self.folder.path / FOLDER / f"rates-{group.name}", plan, "rates")
            losses = losses_of(result).mean(0).view(len(rates), -1)  # [rates, cells]
            diverged += losses.isinf().sum(1)
            sums += losses.where(losses.isfinite(), 0).sum(1)
        order = zip(diverged.tolist(), sums.tolist(), rates, strict=True)  # a cell may diverge at every rate
        return min(order)[-1]

    def _held_out_windows(self, windows: int) -> int:
        return held_out_windows(self.config, self.session.task, self.session.data, windows)

    def _label(self, generation: int, rung: int) -> str:
        which = f"generation {generation + 1}/{self.config.rounds}, " if self.config.rounds > 1 else ""
        return f"{which}rung {rung + 1}/{len(self.windows)}"

    def _going_on(self, rung: int) -> list[Runner]:
        """Cells that finished a rung and may now go on for the first time."""
        if rung + 1 == len(self.windows):
            return []
        ranked = sorted(self.course.finished[rung], key=lambda runner: runner.order)
        one_in = ONE_IN_EXTRAPOLATED if any(runner.extrapolated for runner in ranked) else ONE_IN
        better = -(-len(ranked) // one_in)
        last, most = ranked[better - 1], max(better, int(MOST * len(ranked) / one_in))
        allowed = ranked[:better] + [
            runner for runner in ranked[better:most] if not are_larger(runner.compared, last.compared)
        ]
        going = [runner for runner in allowed if (rung, runner.genotype) not in self.course.gone_on]
        self.course.gone_on |= {(rung, runner.genotype) for runner in going}
        return [runner for runner in going if math.isfinite(runner.loss)]

    def _standings(self) -> list[Runner]:
        """All cells, sorted by the rung they reached, then by loss."""
        seen: set[Cell] = set()
        standings = []
        for finished in reversed(self.course.finished):
            for runner in sorted(finished, key=lambda runner: runner.order):
                if runner.genotype not in seen:
                    seen.add(runner.genotype)
                    standings.append(runner)
        return standings

    def _record(self, generation: int, rung: int, ran: Sequence[Runner]) -> None:
        """The record of a rung; that of the last rung has all cells that ever finished it."""
        last = rung + 1 == len(self.windows)
        ranked = sorted(self.course.finished[rung], key=lambda runner: runner.order) if last else list(ran)
        seconds = round(sum(result.seconds for result in self.course.results), 3)
        trained = sum(result.network_windows for result in self.course.results)
        best = ranked[0].to_dict(rung, self.metric)
        record = {
            "round": rung + 1,
            "generation": generation + 1,
            "windows": max(runner.windows for runner in ran),
            "tokens": (trained - self.course.recorded) * self._steps * self.config.data_batch,  # of all networks
            "train_loss": None,
            f"valid_{self.metric.key}": best[self.metric.key],
            "seconds_so_far": seconds,
            "peak_memory_bytes": max(result.peak_memory for result in self.course.results),
            "networks": [runner.to_dict(rung, self.metric) for runner in ranked],
        }
        self.course.recorded = trained
        self.write_record(record)
        by = " by extrapolated loss" if ranked[0].extrapolated else ""
        self.session.console.say(
            f"{self._label(generation, rung)} done after {duration(seconds)}: "
            f"{counted(len(ran), 'cell')}, {counted(record['windows'], 'window')}, first{by}, with validation "
            f"{self.metric.name} {figure(best[self.metric.key], self.metric.places, 'not finite, as all diverged')}: "
            f"{best['genotype']}"
        )
        if len({runner.windows for runner in ran}) > 1:
            self.session.console.say("caution   the time was up; cells that it cut short are ranked behind the others")

    @classmethod
    def columns(cls, record: Record, network: Record) -> dict[str, str]:
        """The loss, and the extrapolated loss if cells were ranked by that."""
        names = {"held_out_loss": "validation loss", "extrapolated_loss": "extrapolated loss"}
        return {names[key]: figure(network[key], 4, "diverged") for key in names if key in network}

    def _best(self) -> RaceBest:
        winner = self._standings()[0]
        rung = max(number for number, finished in enumerate(self.course.finished) if finished)
        results = self.course.results
        return RaceBest(
            genotype=winner.genotype,
            value=winner.value if math.isfinite(winner.loss) else None,
            windows=winner.windows,
            networks_per_cell=self.config.networks_per_cell,
            mutations=sum(self._mutates(runner.generation) for runner in self.course.finished[0]),
            rounds_kept=rung,
            rounds=len(self.windows),
            rounds_planned=len(self.windows),
            networks_searched=len(self.course.finished[0]),
            network_windows=sum(result.network_windows for result in results),
            seconds=round(sum(result.seconds for result in results), 3),
            peak_memory_bytes=max(result.peak_memory for result in results),
        )

    @classmethod
    def check(cls, config: SearchConfig, processes: int = 1) -> None:
        if config.initial_cells is not None:
            raise WenetError("--initial-cells is for --strategy wenet; a race draws its cells at random")

    @classmethod
    def memory(cls, config: SearchConfig, data: Any, processes: int) -> int:
        """Memory of the call with the most networks: a kind in the first rung, or some of its cells at all rates."""
        cells = draw_pool(config)[: config.batch]
        rates = len(config.rate_grid) if tries_rates(config) else 0

        def networks(group: Group) -> int:
            size = len(group.places)
            raced = len(cells) if mutations_in(config) else size  # all mutations may be of one kind
            return max(config.networks_per_cell * raced, rates * min(size, len(typical(group.kind, cells))))

        groups = by_shape(cells, config, task_of(config), data)
        return max(group.memory(data, networks(group), processes) for group in groups)

    @classmethod
    def outline(cls, config: SearchConfig) -> str:
        of_them = f" ({mutations_in(config)} of them mutations)" if mutations_in(config) else ""
        networks, rungs = counted(config.networks_per_cell, "network"), counted(config.rungs, "rung")
        return f"{pool_in_words(config)}{of_them}, {networks} each, {rungs}"

    @classmethod
    def seconds(cls, config: SearchConfig, task: Task, data: Any) -> float:
        """Estimated seconds, as if the same part of each kind left at a rung, and all cells of a kind were alike."""
        pool = draw_pool(config)
        kinds = dict.fromkeys(map(kind_of, pool))
        return sum(_seconds_of(kind, pool, config, task, data) for kind in kinds)

    @classmethod
    def stages(cls, config: SearchConfig) -> int:
        return config.rungs * config.rounds

    @classmethod
    def merits(cls, record: Record, place: int, metric: Metric) -> dict[str, Any]:
        network = record["networks"][place]
        merits = super().merits(record, place, metric)
        losses = {"validation loss": network["held_out_loss"], "extrapolated loss": network.get("extrapolated_loss")}
        return {**merits, **losses, "rate": network.get("rate")}

    @classmethod
    def score(cls, record: Record, place: int) -> float:
        """The number of rungs that a cell reached, and above it by the loss that ranked it in the last of them."""
        network = record["networks"][place]
        loss = network.get("extrapolated_loss", network["held_out_loss"])
        return float(network["rung"]) + (0.0 if loss is None else 0.5 - math.atan(loss) / math.pi)


def mutations_in(config: SearchConfig) -> int:
    """How many cells of a race are mutations of others, at most."""
    return max(0, config.pool - config.batch) if config.mutate else 0


def extrapolates(config: SearchConfig, rung: int) -> bool:
    """Whether a rung compares cells by extrapolated losses: the one at a quarter of a training whose rates fall."""
    return config.falling_rates and rung == config.rungs - 3


def extrapolated(halfway: Sequence[float], last: Sequence[float]) -> list[float]:
    """The losses of a cell as they would be if they went on to fall.

    Small cells learn fast and are overtaken, and how fast the losses of others still fall tells by which.

    Args:
        halfway, last: its losses in the same windows after half of the training and after all; infinite if it diverged.

    Example:
        >>> extrapolated([2.0, 3.0], [1.5, 1.0])  # a loss that halved and more may be that of a network that recovered
        [1.25, 0.5]
    """
    return [
        after - EXTRAPOLATED * min(before - after, abs(after)) if math.isfinite(before + after) else after
        for before, after in zip(halfway, last, strict=True)
    ]


def shares_left(config: SearchConfig) -> list[float]:
    """The part of all cells that usually runs each rung."""
    one_in = [ONE_IN_EXTRAPOLATED if extrapolates(config, rung) else ONE_IN for rung in range(config.rungs - 1)]
    usually = OF_MUTATIONS if mutations_in(config) else USUALLY
    return list(accumulate((usually / cells for cells in one_in), mul, initial=1.0))


def networks_of_entrant(config: SearchConfig) -> float:
    """Networks that train for the windows of the first rung, for each cell that enters a race."""
    return config.networks_per_cell * sum(
        share * 2 ** max(0, rung - 1) for rung, share in enumerate(shares_left(config))
    )


def tries_rates(config: SearchConfig) -> bool:
    """Whether there are learning rates to choose from."""
    return len(config.rate_grid) > 1


def windows_of_rates(config: SearchConfig, last: int) -> int:
    """Windows for which rates are tried in a race whose last rung has so many.

    A constant rate that is best for a short training is too high in a long one, where networks go wrong at it. Rates
    that fall to zero are told apart by a training half as long.
    """
    return -(-last // 2) if config.falling_rates else last


def of_cells(losses: Tensor, copies: int) -> list[list[float]]:
    """The mean losses of each cell's networks in all windows: `[windows, n]` -> `[n / copies][windows]`."""
    return [own.mean(1).tolist() for own in losses.split(copies, 1)]


def losses_of(result: StandaloneResult) -> Tensor:
    """The losses on held-out data of a training's networks, `[windows, n]`: infinite for those that diverged."""
    losses = torch.tensor(result.held_out, dtype=torch.float64)
    frozen = torch.tensor([outcome.diverged_at is not None for outcome in result.outcomes])
    return losses.masked_fill(frozen | ~losses.isfinite().all(0), math.inf)


def family_of(cell: Cell) -> str:
    """What cells have in common that race at one rate: to be DAG cells, or programs with as many states.

    A rate for each number of nodes would rest on two cells, and where it is too high by chance its cells are ahead in
    short rungs, displace all others there, and learn no more in the last.
    """
    return "dag" if isinstance(cell, Genotype) else kind_of(cell)


def typical(kind: str, cells: Sequence[Cell]) -> list[Cell]:
    """Some cells of a kind, those in the middle by their number of weights; fewer if its family has many kinds."""
    own = [cell for cell in cells if kind_of(cell) == kind]
    kinds = len({kind_of(cell) for cell in cells if family_of(cell) == family_of(own[0])})
    weights = [cell.parameters(1, 1) if isinstance(cell, Program) else 0 for cell in own]
    middle = statistics.median(weights)
    order = sorted(range(len(own)), key=lambda place: abs(weights[place] - middle))
    return [own[place] for place in order[: max(1, min(TRIED, TRIED_IN_ALL // kinds))]]


def _seconds_of(kind: str, pool: Sequence[Cell], config: SearchConfig, task: Task, data: Any) -> float:
    """An estimate for the cells of one kind: rates first, then all rungs."""
    typical_cells = typical(kind, pool)
    cell = typical_cells[0]
    shaped = config_for(cell, config, task, data)
    of_first = seconds_per_network(shaped, cell, config.epochs_per_round, task, data)
    of_measured = seconds_per_measured(shaped, cell, task, data)
    first = config.epochs_per_round * task.windows(task.streams(data, "train", config.data_batch), config.bptt)

    def seconds(networks: int, trained: int, so_far: int, times: int = 1) -> float:
        """In windows of the first rung; measured so many times."""
        measured = held_out_windows(config, task, data, round(first * so_far))
        return networks * (trained * of_first + times * measured * of_measured)

    tried = len(typical_cells) * len(config.rate_grid) if tries_rates(config) else 0
    longest = windows_of_rates(config, 2 ** (config.rungs - 1))
    total = seconds(tried, longest, longest)
    entering = sum(kind_of(cell) == kind for cell in pool)
    for rung, share in enumerate(shares_left(config)):
        networks = math.ceil(share * entering) * config.networks_per_cell
        total += seconds(networks, 2 ** max(0, rung - 1), 2**rung, 2 if extrapolates(config, rung) else 1)
    return total


def held_out_windows(config: SearchConfig, task: Task, data: Any, windows: int) -> int:
    """The number of validation windows on which networks are measured that were trained on so many windows."""
    whole = windows_measured(config, task, data, "valid")
    return max(2, min(whole, windows * config.data_batch // (HELD_OUT_SHARE * config.eval_batch)))
