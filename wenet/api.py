"""The functions behind the commands: search, train, rank cells, and resume stopped runs."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from wenet.cells import Genotype
from wenet.data import is_file_of_series
from wenet.nn import LOSSES, forget_loss, named_loss
from wenet.report.run import read_run
from wenet.results import SearchResult, TrainResult
from wenet.run import TEXT_SETTINGS, Session, Surroundings, Work, default_preset
from wenet.searching import (
    OF_NUMBERS,
    PRESETS,
    SEARCH,
    added_settings,
    hold_tournament,
    resolve_config,
    run_search,
    usual_preset,
)
from wenet.searching.contest import RESULT
from wenet.training import LSTMS, SOFTMAXES, TRAIN, TRAIN_PRESETS, TRAINS_TEXT, resolve_train_config, run_training
from wenet_kernels import WenetError, check_choice

P = ParamSpec("P")
Result = TypeVar("Result")


class Elsewhere:
    """A placeholder in signatures for a default that is decided elsewhere."""

    def __init__(self, by: str) -> None:
        self.by = by

    def __repr__(self) -> str:
        return f"<{self.by}>"


def takes(*examples: Any) -> Callable[[Callable[P, Result]], Callable[P, Result]]:
    """Show the fields of dataclasses as named arguments of a function, for `help` and completion.

    Args:
        examples: instances of the dataclasses. A default is shown if all instances of a class agree on it.
    """

    def decorate(function: Callable[P, Result]) -> Callable[P, Result]:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        named = {field.name: (field, type(example)) for example in examples for field in fields(example)}
        more = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=_default(field, kind, examples), annotation=field.type
            )
            for name, (field, kind) in named.items()
            if name not in {parameter.name for parameter in own}
        ]
        function.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
        return function

    return decorate


def _default(field: Field[Any], kind: type, examples: Sequence[Any]) -> Any:
    if field.default is MISSING:
        return Elsewhere("silent")  # a console
    values = {getattr(example, field.name) for example in examples if type(example) is kind}
    return values.pop() if len(values) == 1 else Elsewhere("by preset")


SEARCHES = [resolve_config(preset) for preset in PRESETS]
TRAININGS = [  # the preset depends on them
    resolve_train_config(preset, {"cell": cell, "dataset": dataset, "softmax": softmax})
    for preset in TRAIN_PRESETS
    for cell in ("darts-v2", "rhn", *LSTMS)
    for dataset in ("ptb", "wikitext-2")
    for softmax in SOFTMAXES
]


@takes(Surroundings(), *SEARCHES)
def search(
    dataset: Any = None,
    *,
    preset: str | None = None,
    config_file: Mapping[str, Any] | None = None,
    **options: Any,
) -> SearchResult:
    """Search for a recurrent cell, by Algorithm 2 of the paper or another strategy.

    Args:
        dataset: "sotu" (embedded, the default), "ptb", "wikitext-2", or a folder with train/valid/test text. With a
            task on numbers the path of a file, or the data themselves: a pair of sequences and targets (x, y), x alone
            for a forecast, a dictionary of "train", "valid" and "test", or a `torch.utils.data` Dataset of pairs. x is
            an array or tensor `[N, T, F]`, or a list of arrays `[T, F]` of different length.
        preset: "paper", "quick", "race" or "words"; by default "paper" with a GPU, and without one "race" or, for a
            text read by words, "words". "numbers" for a task on numbers, where it is the default.
        config_file: settings that rank below the options.
        options: what surrounds the run (`out`, `data_dir`, `console` ...; `help(wenet.search)` lists all) and any field
            of `SearchConfig`. With a task on numbers `loss` may be a function, called as PyTorch's losses are:
            predictions `[M, K]` and targets `[M]` or `[M, K]`, standardised, give a number. Several processes of
            torchrun that make the same call divide the networks of each round, or with `runs` whole runs.

    Raises:
        WenetError: a setting is impossible, the text is missing or unusable, memory is too small, or training diverged.
        Stopped: SIGINT or SIGTERM came; `resume_search` continues the run.

    Examples:
        >>> import wenet
        >>> found = wenet.search("my-text", preset="quick", pool=4, batch=2, keep=1, hidden=8, epochs_per_round=0.1)
        >>> found.genotype.nodes, found.best.networks_searched
        (8, 4)
        >>> import numpy
        >>> x = numpy.random.default_rng(1).normal(size=(60, 12, 3))  # 60 sequences of 12 steps and 3 features
        >>> y = x[:, :, 0].sum(1) > 0
        >>> small = dict(space="dag", pool=4, batch=4, rungs=2, parameters=300, epochs_per_round=1, contest_epochs=2)
        >>> found = wenet.search((x, y), task="classify", **small)
        >>> found.predict(x).shape
        (60,)
    """
    surroundings = Surroundings.taken_from(options)
    name, arrays = (dataset, None) if dataset is None or isinstance(dataset, str | Path) else ("arrays", dataset)
    chosen, given = _settings(SEARCH, None if name is None else str(name), preset, config_file, options)
    with Session.begin(SEARCH, chosen, given, surroundings, arrays) as session:
        outcome = run_search(session)
        _write_report(session)
        return SearchResult(**vars(outcome))


@takes(Surroundings())
def resume_search(
    folder: str | Path,
    *,
    audit: int | None = None,
    audit_epochs: float | None = None,
    contest: bool | None = None,
    loss: Callable[[Any, Any], Any] | None = None,
    **options: Any,
) -> SearchResult:
    """Continue a search bit-exactly from its last checkpoint.

    Args:
        folder: the run's folder.
        audit, audit_epochs, contest: as in `SearchConfig`, for a search that began without an audit or contest.
        loss: the function that the search began with, if it had one; no file keeps it.
        options: any field of `Surroundings`. The result is bit-exact only with as many processes as before.

    Raises:
        WenetError: there is no such run, it is in use, its checkpoint is damaged, or text or machine changed.
        Stopped: as in `search`.

    Examples:
        >>> import wenet
        >>> found = wenet.resume_search("runs/found")
        >>> found.best.finished
        True
    """
    surroundings = _only_surroundings(options)
    if loss is not None:
        named_loss(loss)
    if contest is False and (Path(folder) / RESULT).exists():
        raise WenetError(f"the contest of {folder} has chosen its winner; leave out --no-contest")
    given = {"audit": audit, "audit_epochs": audit_epochs, "contest": contest}
    given = {name: value for name, value in given.items() if value is not None}
    changes = {**added_settings(Path(folder)), **given}
    with Session.resume(SEARCH, folder, surroundings, **changes) as session:
        if audit_epochs is not None and not session.config.audit and session.config.runs == 1:
            raise WenetError("--audit-epochs is for --audit or --runs; say --audit too")
        if loss is None:
            forget_loss(session.config.loss)  # a run knows it by its name, which several functions may have
        outcome = run_search(session)
        _write_report(session)
        return SearchResult(**vars(outcome))


@takes(Surroundings(), *TRAININGS)
def train(
    dataset: str | None = None,
    *,
    cell: str | Genotype | None = None,
    preset: str | None = None,
    config_file: Mapping[str, Any] | None = None,
    **options: Any,
) -> TrainResult:
    """Train one cell as a language model, as the paper evaluates the cells it found (section 4.2).

    Args:
        dataset, preset, config_file: as in `search`.
        cell: a genotype, a published name, "lstm" or "lstm-skip", "random:SEED", a JSON file, a run folder, or text
            such as "tanh0 relu1". The text and level of a run folder are the defaults here, too.
        options: any field of `Surroundings` and of `TrainConfig`. Several processes divide the rows of every data
            batch.

    Raises:
        WenetError: a setting is impossible, the cell or text is missing or unusable, memory is too small, or training
            diverged.
        Stopped: SIGINT or SIGTERM came; `resume_train` continues the run.

    Examples:
        >>> import wenet
        >>> trained = wenet.train("my-text", cell="tanh0 relu1", preset="quick", hidden=8, epochs=1)
        >>> trained.test < 100
        True
    """
    surroundings = Surroundings.taken_from(options)
    if cell is not None:
        options["cell"] = str(cell)
    chosen, given = _settings(TRAIN, dataset, preset, config_file, options)
    given, surroundings = _on_the_text_of_its_run(given, surroundings)
    with Session.begin(TRAIN, chosen, given, surroundings) as session:
        outcome = run_training(session)
        _write_report(session)
        return TrainResult(**vars(outcome))


@takes(Surroundings())
def resume_train(folder: str | Path, **options: Any) -> TrainResult:
    """Continue training bit-exactly from its last checkpoint.

    Args:
        folder: the run's folder.
        options: as in `resume_search`.

    Raises:
        WenetError: there is no such run, it is in use, its checkpoint is damaged, or text or machine changed.
        Stopped: as in `train`.

    Examples:
        >>> import wenet
        >>> wenet.resume_train("runs/trained").best["epochs"]
        1
    """
    with Session.resume(TRAIN, folder, _only_surroundings(options)) as session:
        outcome = run_training(session)
        _write_report(session)
        return TrainResult(**vars(outcome))


@takes(Surroundings())
def rank_cells(
    cells: Sequence[str], out: str | Path, *, seeds: int = 3, epochs: float | None = None, **options: Any
) -> dict[str, Any]:
    """Train cells standalone on equal terms, over several seeds. A repeated call resumes a ranking that was stopped.

    Args:
        cells: cells in any form that `load_genotype` takes. The first must be the folder of a search, which provides
            the text and all settings. "lstm", "gru" and "rnn" stand for one layer of PyTorch. All have as many
            parameters as the first.
        out: folder for `ranking.json` and the trainings.
        seeds: trainings of each cell, at least 2.
        epochs: passes over the training text; by default the search's `audit_epochs`.
        options: any other field of `Surroundings`.

    Returns:
        The contents of `ranking.json`: cells sorted by their mean on the validation part, each with the p of Welch's
        two-sided t-test against the first cell. Diverged trainings are counted, and left out of mean and test.

    Raises:
        WenetError: there are fewer than two cells or seeds, there is no such run, or its text changed.
        Stopped: SIGINT or SIGTERM came; a checkpoint was written first.

    Examples:
        >>> import wenet
        >>> ranking = wenet.rank_cells(["runs/found", "darts-v2"], "runs/ranking", seeds=2, epochs=0.1)
        >>> len(ranking["cells"])
        2
    """
    return hold_tournament(cells, Path(out), seeds, epochs, _only_surroundings(options))


def _settings(
    work: Work[Any],
    dataset: str | None,
    preset: str | None,
    config_file: Mapping[str, Any] | None,
    options: Mapping[str, Any],
) -> tuple[str, dict[str, Any]]:
    """The preset, and the settings that override it; named arguments override those of a file."""
    given = {**(config_file or {}), **options}
    if callable(given.get("loss")):
        given["loss"] = named_loss(given["loss"])
    elif given.get("loss") is not None:
        check_choice("--loss", given["loss"], LOSSES)
    if dataset is not None:
        given["dataset"] = dataset
    if not isinstance(given.get("dataset", ""), str):
        raise WenetError(f"--dataset must be text, not {given['dataset']!r}")
    preset_in_file = given.pop("preset", None)
    if "task" not in given and "numbers" not in (preset, preset_in_file) and is_file_of_series(given.get("dataset")):
        mend = f"; say --task {', '.join(OF_NUMBERS)}" if work is SEARCH else f", and {TRAINS_TEXT}"
        raise WenetError(f"{given['dataset']} is a file of sequences{mend}")
    usual = default_preset(work.preset_without_gpu)
    return preset or preset_in_file or (usual_preset(given, usual) if work is SEARCH else usual), given


def _on_the_text_of_its_run(given: dict[str, Any], surroundings: Surroundings) -> tuple[dict[str, Any], Surroundings]:
    """If the cell comes from a run and no text is named, take the run's text; any other text is read by words or
    characters like the run's."""
    cell = given.get("cell")
    folder = Path(cell) if isinstance(cell, str) else None
    if folder is None or not os.path.isfile(folder / "config.json"):  # no error for a long cell
        return given, surroundings
    run = read_run(folder)
    level = run.settings["level"]
    if "dataset" in given:
        return {"level": level, **given}, surroundings
    text: dict[str, Any] = {name: run.settings[name] for name in TEXT_SETTINGS if name in run.settings}
    how = " by characters" if level == "characters" else ""
    surroundings.console.say(f"no text named: {text['dataset']}{how}, that of {folder}")
    data_dir = surroundings.data_dir or run.config["data_dir"]
    return {**text, **given}, replace(surroundings, data_dir=data_dir)


def _only_surroundings(options: dict[str, Any]) -> Surroundings:
    surroundings = Surroundings.taken_from(options)
    if options:
        raise WenetError(f"unknown argument {next(iter(options))!r}; a run that goes on keeps its settings")
    return surroundings


def _write_report(session: Session[Any]) -> None:
    """Write the report of a finished run. If that fails, say so; the result stands without it."""
    if not session.ranks.first:
        return
    from wenet.report.write import write_report  # matplotlib takes a second to import

    try:
        write_report(session.folder.path)
    except WenetError as error:
        session.console.say(f"note      no report: {error}")


__all__ = ["rank_cells", "resume_search", "resume_train", "search", "train"]
