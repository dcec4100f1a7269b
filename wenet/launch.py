"""From what was asked for to a run: settings, text, folder, and what is said before and after."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch

from wenet.checkpoint import RunFolder
from wenet.config import PRECISIONS, PRESETS, Config, SearchConfig, resolve_config
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
SIZE_FLAGS = "--hidden, --data-batch or --bptt"  # that decide how much memory a run takes

AnyConfig = TypeVar("AnyConfig", bound=Config)


@dataclass(frozen=True)
class SearchResult:
    """What a search found on a text: the cell, what `best.json` says of it, and the run folder."""

    dataset: str
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
    corpus = load_corpus(config.dataset, as_path(data_dir), config.max_vocabulary)
    config = with_absolute_dataset(config)
    for part, rows in ((corpus.train, config.data_batch), (corpus.valid, config.eval_batch)):
        batchify(part, rows)  # refuses a text that is too short, before anything is written
    _check_memory(config, corpus)
    folder = as_path(out) or default_folder("search", corpus.name)
    settings_file = run_settings("search", config, corpus, data_dir)
    with Interrupt() as interrupt, closing(RunFolder.create(folder, settings_file)) as run:
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
        config = stored_config(run, "search", resolve_config)
        corpus = take_up(run, config, data_dir, console)
        return _run(config, corpus, run, console, checkpoint_every, interrupt)


def default_preset() -> str:
    return "paper" if torch.cuda.is_available() else "quick"


def resolve_machine(config: AnyConfig, cell: Genotype | None = None) -> AnyConfig:
    """The settings with device, backend and precision named, for a cell where there is one already.

    Raises:
        WenetError: a device or backend asked for is not there, or has no products of the precision asked for, or not
            an activation.
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
    activations = cell.activations if cell else config.activation_names
    precision = config.precision if config.precision != "auto" else best_precision(config.backend, device, activations)
    backend = resolve_backend(config.backend, device, DTYPES[precision], PRECISIONS[precision], activations)
    return replace(config, device=str(device), backend=backend, precision=precision)


def best_precision(backend: str, device: torch.device, activations: Sequence[str] = ()) -> str:
    """The fastest precision that trains as well: bf16 products on a GPU whose backend has them, else fp32."""
    if device.type == "cuda":
        with suppress(WenetError):
            resolve_backend(backend, device, precision="bf16", activations=activations)
            return "bf16"
    return "fp32"


def default_folder(kind: str, dataset: str) -> Path:
    """A folder that does not exist yet, named by the time."""
    base = Path("runs") / f"{kind}-{dataset}-{time.strftime('%Y%m%d-%H%M%S')}"
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
    advice = f"about {needed} are needed; lower --batch, {SIZE_FLAGS}"
    try:
        with explaining_out_of_memory(advice), pytorch_products_in(config):
            best = Search(config, corpus, run, console, checkpoint_every, interrupt).run()
    finally:
        console.stop()
    return SearchResult(config.dataset, Genotype.from_dict(best["genotype"]), best, run.path)


@contextmanager
def pytorch_products_in(config: Config) -> Iterator[None]:
    """On a GPU, let PyTorch's own products (projection, decoder) be TF32 where the recurrence's are rounded too."""
    before = torch.get_float32_matmul_precision()
    if torch.device(config.device).type == "cuda" and config.precision in ("tf32", "bf16"):
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _check_memory(config: SearchConfig, corpus: Corpus) -> None:
    check_memory(estimate_memory(config, len(corpus.vocabulary)), config.device, "--batch, " + SIZE_FLAGS)


def check_memory(needed: int, device: str, flags: str) -> None:
    """Refuse what cannot fit.

    Raises:
        WenetError: the device has less memory than needed.
    """
    there = total_memory(torch.device(device))
    if needed > there:
        raise WenetError(f"about {size(needed)} of memory are needed and {device} has {size(there)}; lower {flags}")


def with_absolute_dataset(config: AnyConfig) -> AnyConfig:
    """The settings with a folder of text named so that it is found from anywhere."""
    if not Path(config.dataset).is_dir():
        return config
    return replace(config, dataset=str(Path(config.dataset).resolve()))


def run_settings(kind: str, config: Config, corpus: Corpus, data_dir: str | Path | None) -> dict[str, Any]:
    """What `config.json` holds: all that a run needs to be taken up again."""
    return {
        "format": FORMAT,
        "kind": kind,
        "settings": config.to_dict(),
        "corpus": corpus.fingerprint,
        "data_dir": None if data_dir is None else str(Path(data_dir).resolve()),
        "threads": torch.get_num_threads(),
        "versions": {"wenet-rnn": version("wenet-rnn"), "torch": torch.__version__},
    }


def stored_config(run: RunFolder, kind: str, resolve: Callable[..., AnyConfig]) -> AnyConfig:
    """The settings that a run of this kind began with.

    Raises:
        WenetError: it is of another kind or version.
    """
    try:
        if run.config["kind"] != kind or run.config["format"] != FORMAT:
            raise KeyError
        stored = dict(run.config["settings"])
        return resolve(stored.pop("preset"), stored)
    except (KeyError, TypeError, WenetError) as error:
        what = {"search": "a search", "train": "training"}[kind]
        reason = f" ({error})" if isinstance(error, WenetError) else ""
        raise WenetError(
            f"{run.path / 'config.json'} is not of {what} by this version{reason}; start a new run"
        ) from None


def take_up(run: RunFolder, config: Config, data_dir: str | Path | None, console: Console) -> Corpus:
    """The text of a run that goes on, after a check that machine and text still are what it began with.

    Raises:
        WenetError: they are not.
    """
    if resolve_machine(config) != config:
        raise WenetError(f"{run.path} cannot go on here: {config.device} with backend {config.backend} is not ready")
    corpus = stored_corpus(run, config, data_dir)
    console.say(f"continuing {run.path}")
    if run.config["threads"] != torch.get_num_threads():
        console.say(
            f"note: begun with {run.config['threads']} threads, now {torch.get_num_threads()}; the result may "
            "differ in the last digits"
        )
    return corpus


def stored_corpus(run: RunFolder, config: Config, data_dir: str | Path | None) -> Corpus:
    """The text that a run began with.

    Raises:
        WenetError: it is not there any more, or has changed.
    """
    corpus = load_corpus(config.dataset, as_path(data_dir or run.config["data_dir"]), config.max_vocabulary)
    if corpus.fingerprint != run.config["corpus"]:
        raise WenetError(f"the text of {config.dataset} has changed since {run.path} began; start a new run")
    return corpus


def _say_header(console: Console, config: SearchConfig, corpus: Corpus, layers: list[Mapping[str, Any]]) -> None:
    say_text_and_machine(console, config, corpus)
    for preset in PRESETS:
        chosen = preset == config.preset
        try:
            candidate = config if chosen else resolve_machine(resolve_config(preset, *layers))
        except WenetError:
            continue  # what was asked for fits the preset of this run alone
        console.say(_preset_line(preset, candidate, corpus) + ("   <- this run" if chosen else ""))


def say_text_and_machine(console: Console, config: Config, corpus: Corpus, cell: Genotype | None = None) -> None:
    tokens = f"{len(corpus.train):,} training tokens, {len(corpus.vocabulary):,} words"
    console.say(f"text      {corpus.name}: {tokens}")
    activations = cell.activations if cell else config.activation_names
    slower = [f"{name}: {status}" for name, status in backends(activations).items() if status != "ready"]
    console.say(
        f"machine   {config.device} with {torch.get_num_threads()} threads, backend {config.backend}, "
        f"{config.precision}" + (f" ({'; '.join(slower)})" if slower else "")
    )
    console.say(f"native    {native_status()}")


def _preset_line(preset: str, config: SearchConfig, corpus: Corpus) -> str:
    expected = estimate(config, corpus)
    return (
        f"{preset:<9} {config.pool:,} networks, {config.batch} new + {config.seeds} kept a round, {config.rounds} "
        f"rounds of {config.epochs_per_round:g} epochs, hidden {config.hidden}: about {duration(expected.seconds)}, "
        f"{size(expected.memory)}"
    )


def as_path(value: str | Path | None) -> Path | None:
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
            "next      " + shlex.join(["wenet-train", result.dataset, "--cell", str(folder), "--preset", "quick"]),
        ]
    )
