"""The race itself: generation after generation, rung after rung."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wenet.cells import Cell
from wenet.run import Session
from wenet.searching.race.best import RaceBest
from wenet.searching.race.course import Course, Runner
from wenet.searching.race.estimate import memory_of_race, seconds_of_race
from wenet.searching.race.fitting import end_of_race, fitting_sizes, fitting_windows_of_rates, probed_seconds
from wenet.searching.race.losses import extrapolated, losses_of, of_cells
from wenet.searching.race.rates import choose_rate, family_of, tries_rates, windows_of_rates
from wenet.searching.race.rungs import (
    extrapolates,
    held_out_windows,
    mutations_in,
    networks_of_entrant,
    rungs_from,
    trained_in,
)
from wenet.searching.settings import SearchConfig
from wenet.searching.shapes import Group, by_shape
from wenet.searching.space import draw_pool, identity, pool_in_words, space_of
from wenet.searching.strategy import OF_MIXTURES, Record, Strategy, are_mutations
from wenet.tasks import Metric, Task
from wenet.training import (
    Cost,
    Plan,
    StandaloneResult,
    kind_of,
    networks_left,
    train_standalone,
    training_windows,
)
from wenet.words import counted, duration, figure

FOLDER = "rungs"
PATIENCE = 100  # mutations tried at most, for each that is wanted
OVER = 1.15  # times the time that a race has, at most, for its last rung to end


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
        self.windows = rungs_from(training_windows(session, self.config.epochs_per_round), self.config.rungs)
        self.windows_of_rates = windows_of_rates(self.config, self.windows[-1])
        self._steps = session.task.window_steps(session.data, self.config)
        self.pool = draw_pool(self.config)
        self.generator = random.Random(self.config.seed)
        self.generations, self.size = self.config.rounds, self.config.batch  # and the cells of each
        self.rates: dict[str, float] = {}  # by family
        self.course = Course([[] for _ in self.windows])
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
            entrants = self.course.going_on(rung)
        return True

    def _new_cells(self, generation: int) -> list[Cell]:
        """The next of the pool, or as many mutations of the best cells so far."""
        from_pool = self.pool[generation * self.size : (generation + 1) * self.size]
        if not are_mutations(self.config, generation + 1):
            return from_pool
        cells = self._mutations(len(from_pool))
        if len(cells) < len(from_pool):
            self.session.console.say(
                f"generation {generation + 1}: {counted(len(cells), 'cell')} in place of {len(from_pool)}, as the best "
                "cells have no other mutations"
            )
        return cells

    def _mutations(self, wanted: int) -> list[Cell]:
        """Mutations of the best cells so far, each of them new to the race; fewer than wanted where there are none."""
        seen = {identity(runner.genotype) for runner in self.course.finished[0]}
        standings = self.course.standings()
        parents = [runner.genotype for runner in standings if math.isfinite(runner.loss)] or [standings[0].genotype]
        cells: list[Cell] = []
        for tried in range(PATIENCE * wanted):  # a small space runs out
            best = parents[: self.config.keep + tried // wanted]  # small cells have few mutations
            cell = space_of(self.config).mutated(self.generator.choice(best), self.generator, self.config)
            if identity(cell) not in seen:
                seen.add(identity(cell))
                cells.append(cell)
            if len(cells) == wanted:
                break
        return cells

    def _run_rung(self, generation: int, rung: int, entrants: Sequence[Runner]) -> list[Runner]:
        """Train the entrants' networks on, all of one shape at once."""
        found: list[Runner] = []
        cells = [runner.genotype for runner in entrants]
        for group in by_shape(cells, self.config, self.session.task, self.session.data):
            runners = [entrants[place] for place in group.places]
            self._settle_rate(family_of(runners[0].genotype), cells)
            found += self._run_group(generation, rung, group, runners)
        return sorted(found, key=lambda runner: runner.order)

    def _run_group(self, generation: int, rung: int, group: Group, runners: Sequence[Runner]) -> list[Runner]:
        """Train on the networks of one shape, and measure them at each stop of the rung."""
        copies = self.config.networks_per_cell
        networks = [network for runner in runners for network in runner.networks]
        measured = [[runner.held_out for runner in runners]]  # in the rung before, then at each stop
        trained = runners[0].windows
        rate = self.rates[family_of(runners[0].genotype)]
        for windows, suffix, part in self._stops(rung):
            plan = replace(self._plan(generation, rung, group, windows, rate), origins=networks)
            path = self.folder.path / FOLDER / f"{generation + 1}-{rung + 1}{suffix}-{group.name}"
            result = self._train(group, path, plan, self._label(generation, rung) + part)
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

    def _plan(self, generation: int, rung: int, group: Group, windows: int, rate: float) -> Plan:
        """How a group trains from new weights in a rung, for so many windows."""
        copies = self.config.networks_per_cell
        architectures = [cell for cell in group.architectures for _ in range(copies)]
        return Plan(
            architectures,
            windows,
            self.config.seed + generation,
            rates=[rate] * len(architectures),
            hidden=group.hidden(copies),
            decay=self.config.falling_rates,
            schedule=self.windows[-1] if self.config.falling_rates else 0,
            average=True,
            leave=True,
            held_out=self._held_out_windows(rung),
        )

    def _stops(self, rung: int) -> list[tuple[int, str, str]]:
        """The windows after which the networks of a rung are measured, and what names the first half: in the name of a
        folder, and on the console."""
        windows = self.windows[rung]
        halfway = extrapolates(self.config, rung) and rung == 0 and windows > 1  # later rungs begin halfway
        return [(windows // 2, "-halfway", ", first half")] * halfway + [(windows, "", "")]

    def _held_out_windows(self, rung: int) -> int:
        """On which a rung is measured; before losses are extrapolated, on as many as then."""
        extrapolating = [windows for number, windows in enumerate(self.windows) if extrapolates(self.config, number)]
        windows = max([self.windows[rung], *extrapolating])
        return held_out_windows(self.config, self.session.task, self.session.data, windows)

    def _train(self, group: Group, path: Path, plan: Plan, label: str) -> StandaloneResult:
        session = replace(self.session, config=group.config)
        result = train_standalone(session, path, plan, f"{label}, {group.title}")
        self.course.results.append(result)
        return result

    def _settle_rate(self, family: str, cells: Sequence[Cell]) -> None:
        """Choose the rate of a family, the first time that some of its cells train."""

        def train(group: Group, plan: Plan) -> StandaloneResult:
            return self._train(group, self.folder.path / FOLDER / f"rates-{group.name}", plan, "rates")

        if family not in self.rates:
            self.rates[family] = choose_rate(self.session, family, cells, self.windows_of_rates, train)

    def _fit_to_budget(self) -> None:
        """Choose how many cells race, and for how long, from how long it takes to try their rates."""
        budget, session = self.session.budget, self.session
        if budget is None:
            return
        cells = self.pool[: self.config.batch]
        if tries_rates(self.config):
            self.windows_of_rates = budget.planned(
                "windows_of_rates", lambda: fitting_windows_of_rates(session, budget, cells)
            )
        for family in dict.fromkeys(map(family_of, cells)):
            self._settle_rate(family, cells)
        self.until = budget.planned("race_until", lambda: end_of_race(session, budget))
        of_kind = self.config.networks_per_cell * len(cells) // len(set(map(kind_of, cells)))
        self.generations, self.size, first = budget.planned(
            "sizes_of_race",
            lambda: fitting_sizes(
                session,
                self.until - budget.spent,
                self._seconds_per_network_window() or probed_seconds(session, cells, of_kind),
                len(cells),
            ),
        )
        self.windows = rungs_from(first, self.config.rungs)
        self.session.console.say(
            f"the time allows {counted(self.generations, 'generation')} of {counted(self.size, 'cell')}, the best of "
            f"them trained for {counted(self.windows[-1], 'window')}"
        )

    def _seconds_per_network_window(self) -> float:
        """In the trainings so far; 0 before the first."""
        cost = Cost.of(self.course.results)
        return cost.seconds / cost.network_windows if cost.network_windows else 0.0

    def _has_time_for(self, generation: int, rung: int, entrants: int) -> bool:
        """Whether a rung fits into what is left of the time, and at the first of a generation all its rungs do; the
        first of a race is always run."""
        budget = self.session.budget
        if budget is None or (generation, rung) == (0, 0):
            return True
        of_entrant = networks_of_entrant(self.config) if rung == 0 else self.config.networks_per_cell * trained_in(rung)
        needed = self.windows[0] * of_entrant * entrants * self._seconds_per_network_window()
        fits = budget.spent + needed < OVER * self.until and not budget.is_over
        return bool(budget.planned(f"rung_{generation + 1}_{rung + 1}", lambda: fits))

    def _label(self, generation: int, rung: int) -> str:
        which = f"generation {generation + 1}/{self.generations}, " if self.generations > 1 else ""
        return f"{which}rung {rung + 1}/{len(self.windows)}"

    def _record(self, generation: int, rung: int, ran: Sequence[Runner]) -> None:
        """Write the record of a rung, and say what it found; that of the last rung has all cells that ever finished
        it."""
        last = rung + 1 == len(self.windows)
        ranked = self.course.ranked(rung) if last else list(ran)
        cost = Cost.of(self.course.results)
        trained = cost.network_windows - self.course.recorded  # by all networks, since the last record
        best = ranked[0].to_dict(rung, self.metric)
        record = {
            "round": rung + 1,
            "generation": generation + 1,
            "windows": max(runner.windows for runner in ran),
            "tokens": trained * self._steps * self.config.data_batch,
            "train_loss": None,
            f"valid_{self.metric.key}": best[self.metric.key],
            "seconds_so_far": cost.seconds,
            "peak_memory_bytes": cost.peak_memory,
            "networks": [runner.to_dict(rung, self.metric) for runner in ranked],
        }
        self.course.recorded = cost.network_windows
        self.write_record(record)
        by = " by extrapolated loss" if ranked[0].extrapolated else ""
        self.session.console.say(
            f"{self._label(generation, rung)} done after {duration(cost.seconds)}: "
            f"{counted(len(ran), 'cell')}, {counted(record['windows'], 'window')}, first{by}, with validation "
            f"{self.metric.name} {figure(best[self.metric.key], self.metric.places, 'not finite, as all diverged')}: "
            f"{best['genotype']}"
        )
        if len({runner.windows for runner in ran}) > 1:
            self.session.console.say("caution   the time was up; cells that it cut short are ranked behind the others")

    def _best(self) -> RaceBest:
        winner = self.course.standings()[0]
        entered = self.course.finished[0]
        cost = Cost.of(self.course.results)
        return RaceBest(
            genotype=winner.genotype,
            value=winner.value if math.isfinite(winner.loss) else None,
            windows=winner.windows,
            networks_per_cell=self.config.networks_per_cell,
            mutations=sum(are_mutations(self.config, runner.generation + 1) for runner in entered),
            rounds_kept=max(number for number, finished in enumerate(self.course.finished) if finished),
            rounds=len(self.windows),
            rounds_planned=len(self.windows),
            networks_searched=len(entered),
            network_windows=cost.network_windows,
            seconds=cost.seconds,
            peak_memory_bytes=cost.peak_memory,
        )

    @classmethod
    def memory(cls, config: SearchConfig, data: Any, processes: int) -> int:
        return memory_of_race(config, data, processes)

    @classmethod
    def seconds(cls, config: SearchConfig, task: Task, data: Any) -> float:
        return seconds_of_race(config, task, data)

    @classmethod
    def outline(cls, config: SearchConfig) -> str:
        of_them = f" ({mutations_in(config)} of them mutations)" if mutations_in(config) else ""
        networks, rungs = counted(config.networks_per_cell, "network"), counted(config.rungs, "rung")
        return f"{pool_in_words(config)}{of_them}, {networks} each, {rungs}"

    @classmethod
    def stages(cls, config: SearchConfig) -> int:
        return config.rungs * config.rounds

    @classmethod
    def merits(cls, record: Record, place: int, metric: Metric) -> dict[str, Any]:
        network = record["networks"][place]
        merits = {**super().merits(record, place, metric), "windows": windows_of(record, network)}
        losses = {"validation loss": network["held_out_loss"], "extrapolated loss": network.get("extrapolated_loss")}
        return {**merits, **losses, "rate": network.get("rate")}

    @classmethod
    def columns(cls, record: Record, network: Record) -> dict[str, str]:
        """The loss, and the extrapolated loss if cells were ranked by that."""
        names = {"held_out_loss": "validation loss", "extrapolated_loss": "extrapolated loss"}
        return {names[key]: figure(network[key], 4, "diverged") for key in names if key in network}

    @classmethod
    def score(cls, record: Record, place: int) -> float:
        """The number of rungs that a cell reached, and above it by the loss that ranked it in the last of them; the
        lower half of what is above it is for cells that the time cut short there, sorted by windows first."""
        network = record["networks"][place]
        loss = network.get("extrapolated_loss", network["held_out_loss"])
        if loss is None:
            return float(network["rung"])
        merit = 0.5 - math.atan(loss) / math.pi  # from 0 to 1
        windows, most = windows_of(record, network), max(windows_of(record, other) for other in record["networks"])
        part = 1 + merit if windows == most else (windows + merit) / (most + 1)
        return float(network["rung"]) + part / 2


def windows_of(record: Record, network: Record) -> int:
    """On which a network of a record has trained; records of earlier versions have one number for all."""
    return int(network["windows"] if "windows" in network else record["windows"])
