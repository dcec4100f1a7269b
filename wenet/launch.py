"""What a search and a training have in common before they start: settings, machine, text, folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from wenet.checkpoint import RunFolder
from wenet.config import DTYPES, PRECISIONS, AnyConfig, Config
from wenet.console import Console, size
from wenet.data import Corpus, batchify, load_corpus
from wenet.distributed import ALONE, Ranks
from wenet.genotype import Genotype
from wenet.memory import total_memory
from wenet.version import VERSION
from wenet_kernels import WenetError, backends, native_status, resolve_backend

CHECKPOINT_MINUTES = 5.0
FORMAT = 1  # of a run folder
SIZE_FLAGS = "--hidden, --data-batch or --bptt"  # that decide how much memory a run takes


def overriding_settings(
    dataset: str | None, preset: str | None, config_file: Mapping[str, Any] | None, settings: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The preset, and the settings that override it; what is given by name ranks above what stands in a file."""
    given = {**(config_file or {}), **settings}
    if dataset is not None:
        given["dataset"] = dataset
    preset_in_file = given.pop("preset", None)
    return preset or preset_in_file or default_preset(), given


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


def add_report(folder: Path, console: Console) -> None:
    """Write the report of a run that has ended. The result stands without it, where the disk is full by then."""
    from wenet.report.write import write_report  # matplotlib takes a second to import

    try:
        write_report(folder)
    except WenetError as error:
        console.say(f"note      no report: {error}")


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


def check_memory(needed: int, device: str, flags: str, ranks: Ranks = ALONE) -> None:
    """Refuse what cannot fit; `needed` is what each rank needs.

    Raises:
        WenetError: the device has less memory than needed.
    """
    there = total_memory(torch.device(device))
    if torch.device(device).type == "cpu":
        needed *= ranks.count_here
    if needed > there:
        raise WenetError(f"about {size(needed)} of memory are needed and {device} has {size(there)}; lower {flags}")


def check_lengths(corpus: Corpus, **streams: int) -> None:
    """Refuse a text that has a part too short for so many streams side by side.

    Raises:
        WenetError: it has.
    """
    for part, rows in streams.items():
        batchify(getattr(corpus, part), rows)


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
        "versions": {"wenet-rnn": VERSION, "torch": torch.__version__},
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


def as_path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)
