"""From what was asked for to a run: settings, text, folder, and what is said before and after."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from wenet.checkpoint import RunFolder
from wenet.config import PRESETS, SearchConfig, resolve_config
from wenet.console import Console, duration, size
from wenet.data import Corpus, batchify, load_corpus
from wenet.estimate import estimate, estimate_memory
from wenet.genotype import Genotype
from wenet.interrupt import Interrupt
from wenet.memory import explaining_out_of_memory, total_memory
from wenet.search import DTYPES, Search
from wenet_kernels import WenetError, backends, native_status, resolve_backend

CHECKPOINT_MINUTES = 5.0
FORMAT = 1  # of a run folder


@dataclass(frozen=True)
class SearchResult:
    """What a search found: the cell, what `best.json` says of it, and the run folder."""

    genotype: Genotype
    best: dict[str, Any]
    folder: Path


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
) -> SearchResult:
    """Continue a search bit-exactly from its last checkpoint.

    Raises:
        WenetError: no such run, it is in use, its checkpoint is damaged, or text or machine differ from what it needs.
        Stopped: as in `search`.
    """
    console = console or Console(silent=True)
    with Interrupt() as interrupt, closing(RunFolder.open(Path(folder))) as run:
        config = _stored_config(run)
        if resolve_machine(config) != config:
            raise WenetError(
                f"{run.path} cannot go on here: {config.device} with backend {config.backend} is not ready"
            )
        corpus = load_corpus(config.dataset, _path(data_dir or run.config["data_dir"]), config.max_vocabulary)
        if corpus.fingerprint != run.config["corpus"]:
            raise WenetError(f"the text of {config.dataset} has changed since {run.path} began; start a new run")
        console.say(f"continuing {run.path}")
        if run.config["threads"] != torch.get_num_threads():
            console.say(
                f"note: begun with {run.config['threads']} threads, now {torch.get_num_threads()}; the result may "
                "differ in the last digits"
            )
        return _run(config, corpus, run, console, checkpoint_every, interrupt)


def default_preset() -> str:
    return "paper" if torch.cuda.is_available() else "quick"


def resolve_machine(config: SearchConfig) -> SearchConfig:
    """The settings with device and backend named.

    Raises:
        WenetError: a device or backend asked for is not there, or has no products of the precision asked for.
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
    backend = resolve_backend(config.backend, device, DTYPES[config.precision], config.product_precision)
    return replace(config, device=str(device), backend=backend)


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
    try:
        with explaining_out_of_memory(advice):
            best = Search(config, corpus, run, console, checkpoint_every, interrupt).run()
    finally:
        console.stop()
    return SearchResult(Genotype.from_dict(best["genotype"]), best, run.path)


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
    kept = best["rounds_kept"] - 1
    return "\n".join(
        [
            "",
            f"best of {best['networks_searched']:,} networks: weight {best['weight']:.4f} in the last mixture, where "
            f"equal weights would be {best['uniform_weight']:.4f}; "
            + (f"kept from {kept} earlier round{'s' * (kept > 1)}" if kept else "new in the last round"),
            "",
            result.genotype.draw(),
            "",
            f"cell      {result.genotype}",
            f"cost      {duration(best['seconds'])}, peak memory {size(best['peak_memory_bytes'])}",
            f"mixture   validation perplexity {best['mixture_valid_perplexity']:.1f}, of all networks of the last "
            "round together",
            "caution   one search, ranked by mixing weights: whether the cell beats a random one was not measured",
            f"files     {folder}/best.json (the cell), search.jsonl (every round), config.json (settings)",
            f"next      wenet-cell show {folder}",
        ]
    )
