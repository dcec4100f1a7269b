"""A session: everything a run works with, from settings to folder, whether it begins or resumes."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Generic

import torch

from wenet.cells import Cell, Genotype
from wenet.data import KEPT, check_data_dir
from wenet.files import read_json
from wenet.parallel import ALONE, Ranks, check_own_device
from wenet.run.budget import Budget
from wenet.run.console import Console
from wenet.run.curves import require_tensorboard
from wenet.run.folder import NEW_RUN, RunFolder
from wenet.run.interrupt import Interrupt, Stopped
from wenet.run.machine import check_memory, explaining_out_of_memory, pytorch_products_in, resolve_machine
from wenet.run.settings import AnyConfig, Config, lowering
from wenet.run.shared_folder import SharedFolder
from wenet.run.unread import Unread, check_read
from wenet.run.upgrade import upgraded
from wenet.tasks import Baseline, Task, task_of
from wenet.version import VERSION
from wenet.words import counted, size
from wenet_kernels import WenetError, backends, native_status

FORMAT = 1  # version of run folders
NOUNS = {"search": "a search", "train": "a training"}  # of runs in messages, by kind


@dataclass(frozen=True)
class Surroundings:
    """Everything around a run that does not affect its result.

    Attributes:
        out: a new run folder; by default one under `runs/`, named after the time.
        data_dir: where to look for ptb and wikitext-2 first.
        checkpoint_every: minutes between checkpoints.
        console: where to print; by default nothing is printed.
        tensorboard: whether to write curves for TensorBoard into the run folder.
        ranks: the processes that work together, from `wenet.parallel.joined`.
    """

    out: str | Path | None = None
    data_dir: str | Path | None = None
    checkpoint_every: float = 5.0
    console: Console = field(default_factory=lambda: Console(silent=True))
    tensorboard: bool = False
    ranks: Ranks = ALONE

    @classmethod
    def taken_from(cls, options: dict[str, Any]) -> Surroundings:
        """Take the fields of this class out of the options.

        Raises:
            WenetError: the folder of data that they name is none, whether or not the data are looked for there.
        """
        taken = cls(**{field.name: options.pop(field.name) for field in fields(cls) if field.name in options})
        if taken.data_dir is not None:
            check_data_dir(taken.data_dir)
        return taken


class Work(ABC, Generic[AnyConfig]):
    """A kind of run, such as a search, and what a session must know about it before it begins."""

    kind: ClassVar[str]  # in `config.json`
    preset_without_gpu: ClassVar[str] = "quick"

    @property
    def noun(self) -> str:
        """The run in messages."""
        return NOUNS[self.kind]

    @abstractmethod
    def resolve(self, preset: str, *layers: Mapping[str, Any]) -> AnyConfig:
        """The settings of a preset, overridden by each layer in turn."""

    def fitted(self, config: AnyConfig, given: Mapping[str, Any], data: Any) -> AnyConfig:
        """The settings, with what was not given as it fits the data."""
        return config

    @abstractmethod
    def unread(self, config: AnyConfig, cell: Cell | None) -> list[Unread]:
        """Settings that do not matter to such a run, as the others are and for such a cell."""

    def cell(self, config: AnyConfig) -> Cell | None:
        """The cell to train, if there is one from the start."""
        return None

    @abstractmethod
    def streams(self, config: AnyConfig) -> dict[str, str]:
        """The setting that says how many rows of a part of the data are read side by side, by the parts that are."""

    def check_ranks(self, config: AnyConfig, ranks: Ranks) -> None:
        """Refuse work that several processes cannot divide, and GPUs that they would have to share."""
        check_own_device(ranks, torch.device(config.device))

    def stored_cell(self, stored: Mapping[str, Any]) -> Cell | None:
        """The cell of a resumed run, from its `config.json`."""
        return None

    @abstractmethod
    def memory(self, config: AnyConfig, cell: Cell | None, data: Any, ranks: Ranks) -> int:
        """Bytes needed by each process."""

    def memory_flags(self, config: AnyConfig) -> str:
        """Flags that lower the memory."""
        return "--hidden, --data-batch or --bptt"

    def stored(self, cell: Cell | None) -> dict[str, Any]:
        """Further entries of `config.json` besides the settings."""
        return {}

    @staticmethod
    def divided_dimension(name: str, dimensions: int) -> int | None:
        """The dimension along which processes divide a tensor of a checkpoint; None if each has the whole."""
        return None

    def announce(self, session: Session[AnyConfig], given: Mapping[str, Any]) -> None:
        """Print what the run will do and cost; text and machine have been printed."""


@dataclass(frozen=True)
class Session(Generic[AnyConfig]):
    """Everything that the parts of a run work with.

    Attributes:
        config: the settings, with backend and device resolved.
        cell: the cell to train, if there is one from the start.
        data: the data that the task loaded.
        folder: the place of records and checkpoints.
        interrupt: set when a signal asks the run to stop.
        surroundings: console, checkpoints, curves, processes.
        budget: the time that the run may take, if the settings limit it.
    """

    config: AnyConfig
    cell: Cell | None
    task: Task
    data: Any
    folder: RunFolder
    interrupt: Interrupt
    surroundings: Surroundings
    budget: Budget | None = None

    @property
    def console(self) -> Console:
        return self.surroundings.console

    @property
    def ranks(self) -> Ranks:
        return self.surroundings.ranks

    @property
    def device(self) -> torch.device:
        return torch.device(self.config.device)

    @property
    def baseline(self) -> Baseline | None:
        """The value that a model must beat; None if unknown."""
        return stored_baseline(self.folder.config)

    @classmethod
    @contextmanager
    def begin(
        cls,
        work: Work[AnyConfig],
        preset: str,
        given: Mapping[str, Any],
        surroundings: Surroundings,
        arrays: Any = None,
    ) -> Iterator[Session[AnyConfig]]:
        """Begin a new run.

        Args:
            preset: the name of the settings to start from.
            given: settings that override the preset.
            arrays: sequences of numbers to learn from, in place of a dataset's name; the run's folder keeps them.

        Raises:
            WenetError: a setting is impossible, data are missing or unusable, or memory is too small.
        """
        started = time.monotonic()
        require_tensorboard(surroundings.tensorboard)
        asked = work.resolve(preset, given)
        cell = work.cell(asked)
        check_read(given, work.unread(asked, cell))
        config = resolve_machine(asked, cell)
        task, ranks = task_of(config), surroundings.ranks
        data = task.load(config, as_path(surroundings.data_dir)) if arrays is None else taken(task, arrays, config)
        config = work.fitted(_with_absolute_dataset(config), given, data)
        for part, setting in work.streams(config).items():
            with lowering(setting):  # refuses a part that is too short
                task.streams(data, part, getattr(config, setting))
        say_data_and_machine(surroundings.console, config, cell, data)  # before anything slow
        work.check_ranks(config, ranks)
        flags = work.memory_flags(config)
        check_memory(work.memory(config, cell, data, ranks), config.device, flags, ranks.count_here)
        folder = as_path(surroundings.out) or _default_folder(work.kind, data.name)
        baseline = task.baseline(data)
        stored = {
            **run_settings(work.kind, config, data, surroundings.data_dir),
            "baseline": baseline and baseline._asdict(),
            **work.stored(cell),
        }
        ranks.check_same(stored)

        def keep(path: Path) -> None:
            if arrays is not None:
                data.raw.save(path / KEPT)

        with _held(work, ranks, lambda: RunFolder.create(folder, stored, keep)) as (run, interrupt):
            budget = _budget(config, run, started)
            session = cls(config, cell, task, data, run, interrupt, surroundings, budget)
            with session._at_work(work):
                work.announce(session, given)
                yield session

    @classmethod
    @contextmanager
    def resume(
        cls, work: Work[AnyConfig], folder: str | Path, surroundings: Surroundings, **changes: Any
    ) -> Iterator[Session[AnyConfig]]:
        """Resume a stopped run from its last checkpoint.

        Args:
            changes: new values of settings that may change for the rest of the run; None keeps a setting.

        Raises:
            WenetError: there is no such run, it is in use, its checkpoint is damaged, or data or machine changed.
        """
        started = time.monotonic()
        require_tensorboard(surroundings.tensorboard)
        with _held(work, surroundings.ranks, lambda: RunFolder.open(Path(folder))) as (run, interrupt):
            stored = stored_config(run, work)
            config = replace(stored, **{name: value for name, value in changes.items() if value is not None})
            work.check_ranks(config, surroundings.ranks)
            task = task_of(config)
            cell = work.stored_cell(run.config)
            data = _take_up(run, config, cell, task, surroundings)
            budget = _budget(config, run, started)
            session = cls(config, cell, task, data, run, interrupt, surroundings, budget)
            with session._at_work(work):
                yield session

    @contextmanager
    def part(
        self, folder: Path, stored: Mapping[str, Any] | None = None, alone: bool = True, **settings: Any
    ) -> Iterator[Session[AnyConfig]]:
        """Open a part of this run with a folder of its own, resumed if it was begun before.

        Args:
            stored: the contents of its `config.json`; by default the settings of a run of this kind.
            alone: whether this process works on the part by itself.
            settings: settings in which the part differs from this run.
        """
        config = replace(self.config, **settings) if settings else self.config
        if stored is None:
            whole = self.folder.config
            stored = run_settings(whole["kind"], config, self.data, whole["data_dir"])
            stored |= {name: whole[name] for name in ("baseline",) if name in whole}  # older runs have none
        with closing(RunFolder.open_or_create(folder, stored, is_part=True)) as run:
            surroundings = replace(self.surroundings, ranks=ALONE) if alone else self.surroundings
            yield replace(self, config=config, folder=run, surroundings=surroundings)

    @contextmanager
    def _at_work(self, work: Work[AnyConfig]) -> Iterator[None]:
        """Word errors and requests to stop for the whole run, whichever part they come from."""
        needed = size(work.memory(self.config, self.cell, self.data, self.ranks))
        advice = f"about {needed} are needed; lower {work.memory_flags(self.config)}"
        try:
            with explaining_out_of_memory(advice), pytorch_products_in(self.config):
                yield
        except Stopped as stopped:
            raise Stopped(stopped.signal_number, self.folder.path) from None
        finally:
            if self.budget is not None:
                self.budget.keep()
            self.console.stop()


def _budget(config: Config, run: RunFolder, started: float) -> Budget | None:
    minutes = getattr(config, "minutes", None)
    return None if minutes is None else Budget(run, minutes, started)


def taken(task: Any, arrays: Any, config: Config) -> Any:
    """The data of a task from arrays.

    Raises:
        WenetError: the task reads text, or the arrays do not fit.
    """
    if task.reads != "numbers":
        raise WenetError(
            f"--task {config.task} reads a text, which is given by its name or folder, such as 'sotu'; arrays need "
            "task='classify', 'regress', 'forecast' or 'label'"
        )
    return task.take(arrays)


@contextmanager
def _held(work: Work[Any], ranks: Ranks, take: Any) -> Iterator[tuple[RunFolder, Interrupt]]:
    """Hold the folder of a run until its end; meanwhile signals only request a stop."""
    with Interrupt() as interrupt, closing(SharedFolder.take(ranks, work.divided_dimension, take)) as run:
        yield run, interrupt


def say_data_and_machine(console: Console, config: Config, cell: Cell | None, data: Any) -> None:
    """Print the first lines of a run."""
    console.say(f"{task_of(config).reads:<9} {data.name}: {data.describe()}")
    activations = cell.activations if isinstance(cell, Genotype) else config.activation_names
    slower = [f"{name}: {status}" for name, status in backends(activations).items() if status != "ready"]
    console.say(
        f"machine   {config.device} with {counted(torch.get_num_threads(), 'thread')}, backend {config.backend}, "
        f"{config.precision}" + (f" ({'; '.join(slower)})" if slower else "")
    )
    console.say(f"native    {native_status()}")


def _default_folder(kind: str, name: str) -> Path:
    """A new folder, named after the time."""
    base = Path("runs") / f"{kind}-{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder, number = base, 1
    while folder.exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


def _with_absolute_dataset(config: AnyConfig) -> AnyConfig:
    """Make a folder of text or a file of sequences absolute in the settings, so that it is found from anywhere."""
    if not Path(config.dataset).exists():
        return config
    return replace(config, dataset=str(Path(config.dataset).resolve()))


def run_settings(kind: str, config: AnyConfig, data: Any, data_dir: str | Path | None) -> dict[str, Any]:
    """The contents of `config.json`: everything needed to resume a run."""
    return {
        "format": FORMAT,
        "kind": kind,
        "settings": config.to_dict(),
        "corpus": data.fingerprint,
        "data_dir": None if data_dir is None else str(Path(data_dir).resolve()),
        "threads": torch.get_num_threads(),
        "versions": {"wenet-rnn": VERSION, "torch": torch.__version__},
    }


def stored_config(run: RunFolder, work: Work[AnyConfig]) -> AnyConfig:
    """The settings that a run began with.

    Raises:
        WenetError: the run is of another kind or version.
    """
    kind = run.config.get("kind", work.kind)
    if kind != work.kind:
        raise WenetError(f"{run.path} holds {NOUNS.get(kind, 'another run')}, not {work.noun}; name another folder")
    try:
        if run.config["format"] != FORMAT:
            raise KeyError
        stored = dict(run.config["settings"])
        return work.resolve(stored.pop("preset"), stored)
    except (KeyError, TypeError, ValueError, WenetError) as error:
        reason = f" ({error})" if isinstance(error, WenetError) else ""
        raise WenetError(
            f"{run.path / 'config.json'} is not of {work.noun} by this version{reason}; {NEW_RUN}"
        ) from None


def stored_kind(folder: Path) -> tuple[str, str] | None:
    """The kind of a run and its task, by its folder; None if that holds none.

    Raises:
        WenetError: its settings cannot be read.
    """
    if not os.path.isfile(folder / "config.json"):  # no error for a cell too long to be a folder's name
        return None
    stored = upgraded(read_json(folder / "config.json", NEW_RUN, "kind", "settings"))
    return stored["kind"], stored["settings"]["task"]


def stored_baseline(stored: Mapping[str, Any]) -> Baseline | None:
    """The value that a model must beat, from a run's `config.json`; older runs have none."""
    found = stored.get("baseline")
    return None if found is None else Baseline(**found)


def stored_data(run: RunFolder, config: AnyConfig, task: Task, data_dir: str | Path | None) -> Any:
    """The data that a run began with.

    Raises:
        WenetError: the data are gone or have changed.
    """
    kept = run.path / KEPT
    named = replace(config, dataset=str(kept)) if kept.exists() else config
    data = task.load(named, as_path(data_dir or run.config["data_dir"]))
    if data.fingerprint != run.config["corpus"]:
        raise WenetError(f"the {task.reads} of {config.dataset} has changed since {run.path} began; start a new run")
    return data


def _take_up(run: RunFolder, config: AnyConfig, cell: Cell | None, task: Task, surroundings: Surroundings) -> Any:
    """Load the data of a resumed run, after a check that machine and data are unchanged.

    Raises:
        WenetError: machine or data changed.
    """
    if resolve_machine(config, cell) != config:
        raise WenetError(f"{run.path} cannot go on here: {config.device} with backend {config.backend} is not ready")
    data = stored_data(run, config, task, surroundings.data_dir)
    surroundings.console.say(f"continuing {run.path}")
    if run.config["threads"] != torch.get_num_threads():
        surroundings.console.say(
            f"note: begun with {counted(run.config['threads'], 'thread')}, now {torch.get_num_threads()}; the result "
            "may differ in the last digits"
        )
    return data


def as_path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)
