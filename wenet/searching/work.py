"""A search as a run: checks, messages, cost and result."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wenet.cells import Cell, draw_cell
from wenet.parallel import Ranks
from wenet.run import TEXT_SETTINGS, Session, Work, resolve_machine
from wenet.run.budget import Spent, spent_in
from wenet.run.unread import Unread, check_read
from wenet.searching.audit import describe_audit, run_audit, usual_audit
from wenet.searching.contest import contest_withdrawn, describe_contest, estimate_contest, hold_contest
from wenet.searching.estimate import estimate_search, estimate_search_memory
from wenet.searching.race import least_seconds
from wenet.searching.settings import PARAMETERS_OF_A_WORD, PRESETS, RACE, SearchConfig, resolve_config
from wenet.searching.shapes import config_for
from wenet.searching.space import space_of
from wenet.searching.strategy import Best, strategy_of
from wenet.searching.unread import unread_by_search
from wenet.tasks import Baseline, Metric, fitting_batch, task_of
from wenet.training import estimate_standalone, estimate_training, resolve_train_config
from wenet.words import counted, duration, figure, size
from wenet_kernels import WenetError

FOLLOWING_PRESET = "quick"  # preset of the training proposed after a search


@dataclass(frozen=True)
class NextSteps:
    """Commands to continue with after a search, and the estimated seconds of each on this machine.

    Attributes:
        audit, train: the commands; a model of numbers, which the contest trained, is exported.
        audit_seconds, train_seconds: None if not estimated.
    """

    audit: str
    train: str
    audit_seconds: float | None = None
    train_seconds: float | None = None

    @classmethod
    def of(cls, config: SearchConfig, folder: Path, data_dir: str | None) -> NextSteps:
        """The commands without estimates."""
        audit = ["wenet-search", "--resume", str(folder), "--audit", str(usual_audit(config.keep))]
        if task_of(config).reads != "text":
            return cls(shlex.join(audit), shlex.join(["wenet-cell", "export", str(folder)]))
        train = ["wenet-train", config.dataset, "--cell", str(folder), "--preset", FOLLOWING_PRESET]
        if config.level != resolve_train_config(FOLLOWING_PRESET).level:
            train += ["--level", config.level]
        if config.max_vocabulary is not None:
            train += ["--max-vocabulary", str(config.max_vocabulary)]
        if data_dir is not None:
            train += ["--data-dir", data_dir]
        return cls(shlex.join(audit), shlex.join(train))

    @classmethod
    def of_session(cls, session: Session[SearchConfig]) -> NextSteps:
        return cls.of(session.config, session.folder.path, session.folder.config["data_dir"])

    @classmethod
    def estimated(cls, session: Session[SearchConfig], cell: Cell) -> NextSteps:
        """The commands with their estimated times, which takes a second."""
        config, task, data = session.config, session.task, session.data
        cells = min(usual_audit(config.keep), config.pool)
        sized = config_for(cell, config, task, data)
        seconds = estimate_standalone(sized, cell, cells, config.audit_epochs, task, data)
        if task.reads != "text":
            return replace(cls.of_session(session), audit_seconds=seconds)
        shared = {name: getattr(config, name) for name in (*TEXT_SETTINGS, "device", "backend")}
        training = resolve_machine(resolve_train_config(FOLLOWING_PRESET, shared, {"cell": str(cell)}), cell)
        return replace(
            cls.of_session(session),
            audit_seconds=seconds,
            train_seconds=estimate_training(training, cell, task, data).seconds,
        )


@dataclass(frozen=True, repr=False)
class SearchOutcome:
    """The result of a search.

    Attributes:
        best: how the cell was found.
        folder: the run's folder.
        baseline: the value that a model must beat, if known.
        audit: the contents of `audit.json`, if there was an audit.
        contest: the contents of `contest.json`, if there was a contest.
        spent: the time of a run with `--minutes`, from its beginning.
        to_come: "search", "audit" or "contest", if that has not ended.
    """

    dataset: str
    genotype: Cell
    best: Best
    folder: Path
    metric: Metric
    next_steps: NextSteps
    baseline: Baseline | None = None
    audit: dict[str, Any] | None = None
    contest: dict[str, Any] | None = None
    spent: Spent | None = None
    to_come: str | None = None

    def __str__(self) -> str:
        return describe_search(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.folder}: {self.genotype}>"


class SearchWork(Work[SearchConfig]):
    """A search, as a session sees it."""

    kind = "search"
    preset_without_gpu = "race"

    def resolve(self, preset: str, *layers: Mapping[str, Any]) -> SearchConfig:
        config = resolve_config(preset, *layers)
        strategy_of(config).check(config)
        return config

    def fitted(self, config: SearchConfig, given: Mapping[str, Any], data: Any) -> SearchConfig:
        if task_of(config).reads == "numbers":
            if "split" in given and data.raw.parts is not None and (data.raw.parts == 1).any():
                raise WenetError(f"{data.name} comes in parts for training, validation and test; leave out --split")
            rows = config.data_batch if "data_batch" in given else fitting_batch(len(data.train), config.data_batch)
            return replace(config, data_batch=rows)
        if config.level == "words" and config.parameters is not None and "parameters" not in given:
            parameters = RACE["parameters"] + PARAMETERS_OF_A_WORD * len(data.vocabulary)
            config = replace(config, parameters=parameters)
        if config.strategy == "wenet" and config.parameters is not None:  # the cells of a mixture have one size
            largest = space_of(config).largest(config)
            return replace(config, hidden=config_for(largest, config, task_of(config), data).hidden)
        return config

    def unread(self, config: SearchConfig, cell: Cell | None) -> list[Unread]:
        return unread_by_search(config)

    def streams(self, config: SearchConfig) -> dict[str, str]:
        valid = "data_batch" if config.valid_rows > config.eval_batch else "eval_batch"
        return {"train": "data_batch", "valid": valid, **({"test": "eval_batch"} if config.contest else {})}

    def check_ranks(self, config: SearchConfig, ranks: Ranks) -> None:
        super().check_ranks(config, ranks)
        strategy_of(config).check(config, ranks.count)
        if config.minutes is not None and not ranks.alone:
            raise WenetError("--minutes plans for one process; leave out torchrun, or --minutes")

    def memory(self, config: SearchConfig, cell: Cell | None, data: Any, ranks: Ranks) -> int:
        return estimate_search_memory(config, data, ranks.count)

    def memory_flags(self, config: SearchConfig) -> str:
        flags = ("--audit, " if config.audit else "") + "--batch, " + super().memory_flags(config)
        return flags if config.parameters is None else flags.replace("--hidden", "--parameters")

    @staticmethod
    def divided_dimension(name: str, dimensions: int) -> int | None:
        """Divide all tensors with a leading n except the mixing weights. These tensors have three or more dimensions,
        unlike mixing weights and moments of the embedding."""
        return 0 if dimensions >= 3 and name.startswith(("model.", "optimizer.")) else None

    def announce(self, session: Session[SearchConfig], given: Mapping[str, Any]) -> None:
        """Print the estimated cost of each preset that reads these data as the run does."""
        config, say, ranks = session.config, session.console.say, session.ranks
        if not ranks.alone:
            divided = f"{config.runs} runs" if config.runs > 1 else f"the networks of a {strategy_of(config).stage}"
            memory = size(self.memory(config, None, session.data, ranks))
            say(f"ranks     {ranks.count}, which divide {divided}: about {memory} each")
            return  # the time depends on the connection between them
        usual = self.resolve(config.preset, {"task": config.task}).data_batch
        if "data_batch" not in given and config.data_batch < usual:
            batch = counted(config.data_batch, "sequence")
            say(f"batch     {batch}, as the training part has fewer than the usual {usual}")
        for line in _within(session) if config.minutes is not None else self._costs(session, given):
            say(line)

    def _costs(self, session: Session[SearchConfig], given: Mapping[str, Any]) -> Iterator[str]:
        """What each preset that fits would cost, and what else this run has."""
        config = session.config
        for preset in PRESETS:
            chosen = preset == config.preset
            try:
                candidate = config if chosen else resolve_machine(self.resolve(preset, {"task": config.task, **given}))
                check_read(given, self.unread(candidate, None))
            except WenetError:
                continue  # the given settings only fit the preset of this run
            if candidate.level != config.level:
                continue
            candidate = self.fitted(candidate, given, session.data)
            yield _preset_line(preset, candidate, session) + ("   <- this run" if chosen else "")
        if config.runs > 1:
            yield f"runs      {config.runs}, each of them as above"
        if config.audit:
            epochs = counted(config.audit_epochs, "epoch")
            cells = counted(min(config.audit, config.pool + len(config.initial_cells_given)), "cell")
            yield f"audit     {cells} standalone for {epochs}, on top of that time"
        if config.contest:
            seconds = duration(estimate_contest(session))
            yield f"contest   of the winner with PyTorch's layers and other cells: about {seconds} on top of that time"


SEARCH = SearchWork()


def run_search(session: Session[SearchConfig]) -> SearchOutcome:
    """Run the search of a session by its strategy, and the audit if there is one."""
    config = session.config
    with contest_withdrawn(session) if config.contest else nullcontext():
        best: Best = strategy_of(config)(session).run()
        audit = run_audit(session) if config.audit and config.runs == 1 else None
        contest = None
        if config.contest:
            best, contest = hold_contest(session, best)
    folder, watched = session.folder.path, session.ranks.alone and not session.console.silent and not session.budget
    steps = NextSteps.estimated(session, best.genotype) if watched else NextSteps.of_session(session)
    if (budget := session.budget) is not None:
        budget.planned("spent", lambda: round(budget.spent, 3))
    return SearchOutcome(
        config.dataset,
        best.genotype,
        best,
        folder,
        session.task.metric,
        steps,
        session.baseline,
        audit,
        contest,
        spent=spent_in(folder),
    )


def _within(session: Session[SearchConfig]) -> Iterator[str]:
    """What a search within a given time comes to at most, and whether that time is enough for any."""
    config = session.config
    assert config.minutes is not None
    outline = strategy_of(config).outline(config)
    yield f"{config.preset:<9} at most {outline}; {duration(60 * config.minutes)} in all"
    least = least_seconds(session)
    if least > 60 * config.minutes:
        minutes = math.ceil(least / 6) / 10  # rounded down it might be the one that is too short
        yield f"caution   --minutes is too short: on these data the least search takes about {minutes} min"


def _preset_line(preset: str, config: SearchConfig, session: Session[SearchConfig]) -> str:
    expected = estimate_search(config, session.task, session.data)
    outline = strategy_of(config).outline(config)
    return f"{preset:<9} {outline}: about {duration(expected.seconds)}, {size(expected.memory)}"


def describe_search(result: SearchOutcome) -> str:
    """Describe the winner: a drawing, its weight compared with chance, cost, and next steps."""
    best, folder = result.best, result.folder
    return "\n".join(
        [
            *_how_far(result),
            best.how_it_won(result.metric),
            "",
            draw_cell(result.genotype),
            "",
            f"cell      {result.genotype}",
            f"cost      {_cost(result)}, peak memory {size(best.peak_memory_bytes)}",
            *(
                ["caution   this is longer than --minutes allows; the least on these data is told at the start"]
                if result.spent is not None and result.spent.is_late
                else []
            ),
            *best.lines(result.metric),
            *_how_good_the_ranking_is(result),
            *(describe_contest(result.contest, result.metric) if result.contest else []),
            *_baseline(result),
            f"report    {folder}/report.html",
            f"files     {folder}/best.json (the cell), config.json (settings), and of every search search.jsonl",
            "next      " + _with_time(result.next_steps.train, result.next_steps.train_seconds),
        ]
    )


def _cost(result: SearchOutcome) -> str:
    """The time of the whole, within a budget from its beginning on, and of its parts where it has several."""
    seconds = {"search": result.best.seconds}
    seconds |= {name: part["seconds"] for name, part in (("audit", result.audit), ("contest", result.contest)) if part}
    whole = sum(seconds.values())
    if result.spent is not None and result.spent.seconds is not None:
        seconds["measuring and writing"] = max(0.0, result.spent.seconds - whole)
        whole = result.spent.seconds
    parts = ", ".join(f"{name} {duration(value)}" for name, value in seconds.items())
    return duration(whole) + (f" ({parts})" if len(seconds) > 1 else "")


def _baseline(result: SearchOutcome) -> list[str]:
    """What a prediction without a model gives."""
    if result.baseline is None:
        return []
    name, value = result.baseline
    return [f"baseline  validation {result.metric.name} {figure(value, result.metric.places)} from {name} alone"]


def _how_far(result: SearchOutcome) -> list[str]:
    best = result.best
    if not best.finished:
        return [f"not finished: {best.rounds} of {counted(best.rounds_planned, 'round')} done"]
    return [] if result.to_come is None else [f"not finished: the {result.to_come} has not ended"]


def _with_time(command: str, seconds: float | None) -> str:
    return command if seconds is None else f"{command}   # about {duration(seconds)}"


def _how_good_the_ranking_is(result: SearchOutcome) -> list[str]:
    failure = result.best.failure_to_learn(result.metric, result.baseline, result.spent is not None)
    caution = [] if failure is None else [f"caution   {failure}"]
    if result.audit:
        return caution + describe_audit(result.audit, result.metric)
    if failure is None and result.contest is None and result.best.is_ranked_by_chance():
        return [
            "caution   this is one search, and nothing shows yet that its cell beats a random one; measure it with",
            f"          {_with_time(result.next_steps.audit, result.next_steps.audit_seconds)}",
        ]
    return caution
