"""From what was asked for to a run: settings, text, folder, and what is said before and after."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from wenet.audit import begun_audit, describe_audit, run_audit
from wenet.checkpoint import RunFolder
from wenet.config import PRESETS, SearchConfig, resolve_config
from wenet.console import Console, duration, size
from wenet.data import Corpus, batchify, load_corpus
from wenet.estimate import estimate, estimate_memory
from wenet.genotype import Genotype
from wenet.genotypes import load_genotype
from wenet.halving import Halving
from wenet.independent import Workplace
from wenet.interrupt import Interrupt, Stopped
from wenet.memory import explaining_out_of_memory, total_memory
from wenet.runs import compare, describe_runs, rank_runs
from wenet.search import Search
from wenet_kernels import WenetError, backends, native_status, resolve_backend

CHECKPOINT_MINUTES = 5.0
FORMAT = 1  # of a run folder


@dataclass(frozen=True)
class SearchResult:
    """What a search found: the cell, what `best.json` says of it, the run folder, and what the audit found."""

    genotype: Genotype
    best: dict[str, Any]
    folder: Path
    audit: dict[str, Any] | None = None  # what `audit.json` holds, where there is one


def search(
    dataset: str | None = None,
    *,
    preset: str | None = None,
    out: str | Path | None = None,
    data_dir: str | Path | None = None,
    checkpoint_every: float = CHECKPOINT_MINUTES,
    console: Console | None = None,
    config_file: Mapping[str, Any] | None = None,
    **settings: Any,
) -> SearchResult:
    """Search for a recurrent cell by Algorithm 2 of the paper.

    Args:
        dataset: "sotu" (embedded, the default), "ptb", "wikitext-2", or a folder with train/valid/test text.
        preset: "paper" or "quick"; by default "paper" with a GPU and "quick" without.
        out: a new run folder; by default one under `runs/`, named by the time.
        data_dir: where to look for ptb and wikitext-2 first.
        checkpoint_every: minutes.
        console: where to print; nothing is printed by default.
        config_file: settings that rank below `settings`.
        settings: any field of `SearchConfig`.

    Raises:
        WenetError: an impossible setting, missing or unusable text, too little memory, or diverged training.
        Stopped: SIGINT or SIGTERM came; `resume_search` goes on from there.
    """
    console = console or Console(silent=True)
    file_settings = dict(config_file or {})
    # The last of these that is given wins; the preset itself may stand in the file too.
    preset = preset or file_settings.pop("preset", None) or default_preset()
    file_settings.pop("preset", None)
    if dataset is not None:
        settings["dataset"] = dataset
    asked = resolve_config(preset, file_settings, settings)
    config = resolve_machine(asked)
    corpus = load_corpus(config.dataset, _path(data_dir), config.max_vocabulary)
    if Path(config.dataset).is_dir():
        config = replace(config, dataset=str(Path(config.dataset).resolve()))
    for part, rows in ((corpus.train, config.data_batch), (corpus.valid, config.eval_batch)):
        batchify(part, rows)  # refuses a text that is too short, before anything is written
    _check_memory(config, corpus)
    folder = _path(out) or default_folder(corpus.name)
    with Interrupt() as interrupt, closing(RunFolder.create(folder, _run_settings(config, corpus, data_dir))) as run:
        _say_header(console, config, corpus, [file_settings, settings])
        return _run(config, corpus, run, console, checkpoint_every, interrupt)


def resume_search(
    folder: str | Path,
    *,
    data_dir: str | Path | None = None,
    checkpoint_every: float = CHECKPOINT_MINUTES,
    console: Console | None = None,
    audit: int | None = None,
    audit_epochs: float | None = None,
) -> SearchResult:
    """Continue a search bit-exactly from its last checkpoint.

    Args:
        audit, audit_epochs: as in `SearchConfig`, for a search that was begun without.

    Raises:
        WenetError: no such run, it is in use, its checkpoint is damaged, or text or machine differ from what it needs.
        Stopped: as in `search`.
    """
    console = console or Console(silent=True)
    with Interrupt() as interrupt, closing(RunFolder.open(Path(folder))) as run:
        config = _with_audit(_stored_config(run), run.path, audit, audit_epochs)
        if resolve_machine(config) != config:
            raise WenetError(
                f"{run.path} cannot go on here: {config.device} with backend {config.backend} is not ready"
            )
        corpus = _stored_corpus(run, config, data_dir)
        console.say(f"continuing {run.path}")
        if run.config["threads"] != torch.get_num_threads():
            console.say(
                f"note: begun with {run.config['threads']} threads, now {torch.get_num_threads()}; the result may "
                "differ in the last digits"
            )
        return _run(config, corpus, run, console, checkpoint_every, interrupt)


def compare_cells(
    cells: Sequence[str],
    out: str | Path,
    *,
    seeds: int = 3,
    epochs: float | None = None,
    data_dir: str | Path | None = None,
    checkpoint_every: float = CHECKPOINT_MINUTES,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train cells standalone on equal terms, over several seeds; the same call again goes on where it was stopped.

    Args:
        cells: run folders, names, files or texts of cells, as `load_genotype` takes them; the first is a run, from
            which the text and all settings are taken.
        out: folder for `compare.json` and the trainings.
        seeds: trainings of each cell, at least 2.
        epochs: passes over the training text; by default the run's `audit_epochs`.

    Returns what `compare.json` holds.

    Raises:
        WenetError: fewer than two cells or seeds, cells of different sizes, no such run, or its text has changed.
        Stopped: SIGINT or SIGTERM came; a checkpoint was written first.
    """
    console = console or Console(silent=True)
    if len(cells) < 2 or len(set(cells)) < len(cells):
        raise WenetError("name at least two different cells, the first of them a run folder")
    if seeds < 2:
        raise WenetError(f"--seeds must be at least 2, not {seeds}")
    genotypes = {cell: load_genotype(cell) for cell in cells}
    with closing(RunFolder.open(Path(cells[0]))) as first:
        config = _with_audit(_stored_config(first), first.path, None, epochs)
        corpus = _stored_corpus(first, config, data_dir)
        settings = _run_settings(config, corpus, data_dir)
    settings |= {"kind": "comparison", "cells": {cell: str(genotype) for cell, genotype in genotypes.items()}}
    with Interrupt() as interrupt, closing(RunFolder.open_or_create(Path(out), settings)) as run:
        try:
            return compare(
                Workplace(config, corpus, run.path, console, checkpoint_every, interrupt), run, genotypes, seeds
            )
        finally:
            console.stop()


def default_preset() -> str:
    return "paper" if torch.cuda.is_available() else "quick"


def resolve_machine(config: SearchConfig) -> SearchConfig:
    """The settings with device and backend named.

    Raises:
        WenetError: a device or backend asked for is not there.
    """
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise WenetError(f"unknown --device {name!r}; choose auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise WenetError(f"unknown --device {name!r}; choose auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise WenetError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return replace(config, device=str(device), backend=resolve_backend(config.backend, device))


def default_folder(dataset: str) -> Path:
    """A folder that does not exist yet, named by the time."""
    base = Path("runs") / f"search-{dataset}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder, number = base, 1
    while folder.exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


def _run(
    config: SearchConfig,
    corpus: Corpus,
    run: RunFolder,
    console: Console,
    checkpoint_every: float,
    interrupt: Interrupt,
) -> SearchResult:
    needed = size(estimate_memory(config, len(corpus.vocabulary)))
    advice = f"about {needed} are needed; lower --batch, --hidden, --data-batch or --bptt"
    work = Workplace(config, corpus, run.path, console, checkpoint_every, interrupt)
    try:
        with explaining_out_of_memory(advice):
            best = _run_all(work, run) if config.runs > 1 else _search_once(work, run)
        with explaining_out_of_memory("training the audited cells at once; lower --audit"):
            audit = run_audit(work, run) if config.audit and config.runs == 1 else None
    finally:
        console.stop()
    return SearchResult(Genotype.from_dict(best["genotype"]), best, run.path, audit)


def _search_once(work: Workplace, run: RunFolder) -> dict[str, Any]:
    if work.config.strategy == "random":
        return Halving(work, run).run()
    return Search(work.config, work.corpus, run, work.console, work.checkpoint_every, work.interrupt).run()


def _run_all(work: Workplace, run: RunFolder) -> dict[str, Any]:
    """Searches of different seeds, each a run folder of its own that a stopped run goes on in; then their ranking."""

    def search_one(number: int) -> dict[str, Any]:
        config = replace(work.config, runs=1, seed=work.config.seed + number)
        settings = _run_settings(config, work.corpus, run.config["data_dir"])
        work.console.say(f"run {number + 1}/{work.config.runs}")
        with closing(RunFolder.open_or_create(run.path / f"run-{number + 1}", settings)) as own:
            best = _search_once(replace(work, config=config), own)
            if config.audit:
                run_audit(replace(work, config=config), own)
        return best

    try:
        return rank_runs(work, run, [search_one(number) for number in range(work.config.runs)])
    except Stopped as stopped:
        raise Stopped(stopped.signal_number, run.path) from None


def _with_audit(config: SearchConfig, folder: Path, audit: int | None, epochs: float | None) -> SearchConfig:
    """The settings with the audit that is asked for now, or that was begun on this run before."""
    if audit is None and config.audit == 0:
        begun = begun_audit(folder)
        audit, epochs = begun if begun is not None else (0, None)
    return replace(
        config,
        audit=config.audit if audit is None else audit,
        audit_epochs=config.audit_epochs if epochs is None else epochs,
    )


def _check_memory(config: SearchConfig, corpus: Corpus) -> None:
    needed, there = estimate_memory(config, len(corpus.vocabulary)), total_memory(torch.device(config.device))
    if needed > there:
        raise WenetError(
            f"about {size(needed)} of memory are needed and {config.device} has {size(there)}; lower --batch, "
            "--hidden, --data-batch or --bptt"
        )


def _run_settings(config: SearchConfig, corpus: Corpus, data_dir: str | Path | None) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "kind": "search",
        "settings": config.to_dict(),
        "corpus": corpus.fingerprint,
        "data_dir": None if data_dir is None else str(Path(data_dir).resolve()),
        "threads": torch.get_num_threads(),
        "versions": {"wenet-rnn": version("wenet-rnn"), "torch": torch.__version__},
    }


def _stored_config(run: RunFolder) -> SearchConfig:
    try:
        if run.config["kind"] != "search" or run.config["format"] != FORMAT:
            raise KeyError
        stored = dict(run.config["settings"])
        return resolve_config(stored.pop("preset"), stored)
    except (KeyError, TypeError, WenetError):
        raise WenetError(f"{run.path / 'config.json'} is not of a search by this version; start a new run") from None


def _stored_corpus(run: RunFolder, config: SearchConfig, data_dir: str | Path | None) -> Corpus:
    corpus = load_corpus(config.dataset, _path(data_dir or run.config["data_dir"]), config.max_vocabulary)
    if corpus.fingerprint != run.config["corpus"]:
        raise WenetError(f"the text of {config.dataset} has changed since {run.path} began; start a new run")
    return corpus


def _say_header(console: Console, config: SearchConfig, corpus: Corpus, layers: list[Mapping[str, Any]]) -> None:
    tokens = f"{len(corpus.train):,} training tokens, {len(corpus.vocabulary):,} words"
    console.say(f"text      {corpus.name}: {tokens}")
    slower = [f"{name} {status}" for name, status in backends().items() if status != "ready"]
    console.say(
        f"machine   {config.device} with {torch.get_num_threads()} threads, backend {config.backend}, "
        f"{config.precision}" + (f" ({'; '.join(slower)})" if slower else "")
    )
    console.say(f"native    {native_status()}")
    for preset in PRESETS:
        chosen = preset == config.preset
        candidate = config if chosen else resolve_machine(resolve_config(preset, *layers))
        console.say(_preset_line(preset, candidate, corpus) + ("   <- this run" if chosen else ""))
    if config.strategy == "random":
        console.say("strategy  random: as many network-steps, which take longer standalone than in one mixture")
    if config.runs > 1:
        console.say(f"runs      {config.runs}, each of them as above")


def _preset_line(preset: str, config: SearchConfig, corpus: Corpus) -> str:
    expected = estimate(config, corpus)
    return (
        f"{preset:<9} {config.pool:,} networks, {config.batch} new + {config.seeds} kept a round, {config.rounds} "
        f"rounds of {config.epochs_per_round:g} epochs, hidden {config.hidden}: about {duration(expected.seconds)}, "
        f"{size(expected.memory)}"
    )


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)


def describe_result(result: SearchResult) -> str:
    """The winner as a person wants it: drawn, beside what chance would give, with its cost and what to do next."""
    best, folder = result.best, result.folder
    return "\n".join(
        [
            "",
            _how_it_won(best),
            "",
            result.genotype.draw(),
            "",
            f"cell      {result.genotype}",
            f"cost      {duration(best['seconds'])}, peak memory {size(best['peak_memory_bytes'])}",
            *_what_is_known(result),
            f"files     {folder}/best.json (the cell), config.json (settings), and of every search search.jsonl",
            f"next      wenet-cell show {folder}",
        ]
    )


def _how_it_won(best: dict[str, Any]) -> str:
    searched = f"best of {best['networks_searched']:,} networks"
    if "runs" in best:
        return f"{searched}: first of the winners of {len(best['runs'])} runs after standalone training"
    if best["weight"] is None:
        return f"{searched} by successive halving: validation perplexity {best['perplexity']:.1f} standalone"
    kept = best["rounds_kept"] - 1
    return (
        f"{searched}: weight {best['weight']:.4f} in the last mixture, where equal weights would be "
        f"{best['uniform_weight']:.4f}; "
        + (f"kept from {kept} earlier round{'s' * (kept > 1)}" if kept else "new in the last round")
    )


def _what_is_known(result: SearchResult) -> list[str]:
    best = result.best
    if "runs" in best:
        return describe_runs(best)
    lines = []
    if best["weight"] is not None:
        lines.append(
            f"mixture   validation perplexity {best['mixture_valid_perplexity']:.1f}, of all networks of the last "
            "round together"
        )
    if result.audit:
        return lines + describe_audit(result.audit)
    if best["weight"] is not None:
        lines.append(
            "caution   one search, ranked by mixing weights: whether the cell beats a random one was not measured; "
            f"measure it with wenet-search --resume {result.folder} --audit 24"
        )
    return lines
