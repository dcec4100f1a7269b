"""From a cell and a text to a trained model: settings, folder, and what is said before and after."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from wenet.checkpoint import RunFolder
from wenet.config import LSTMS, TrainConfig, resolve_train_config
from wenet.console import Console, duration, size
from wenet.curves import require_tensorboard
from wenet.data import Corpus, load_corpus
from wenet.distributed import ALONE, Ranks, check_own_device
from wenet.estimate import estimate_training, estimate_training_memory
from wenet.genotype import Genotype
from wenet.genotypes import load_genotype
from wenet.interrupt import Interrupt
from wenet.launch import (
    CHECKPOINT_MINUTES,
    SIZE_FLAGS,
    add_report,
    as_path,
    check_lengths,
    check_memory,
    default_folder,
    overriding_settings,
    pytorch_products_in,
    resolve_machine,
    run_settings,
    say_text_and_machine,
    stored_config,
    take_up,
    with_absolute_dataset,
)
from wenet.memory import explaining_out_of_memory
from wenet.resumable import Workplace
from wenet.shared_folder import SharedFolder
from wenet.train import Training, divided_dimension
from wenet_kernels import WenetError


@dataclass(frozen=True)
class TrainResult:
    """What training came to: perplexities, what `best.json` says, and the run folder."""

    valid_perplexity: float
    test_perplexity: float
    best: dict[str, Any]
    folder: Path


def train(
    dataset: str | None = None,
    *,
    cell: str | Genotype | None = None,
    preset: str | None = None,
    out: str | Path | None = None,
    data_dir: str | Path | None = None,
    checkpoint_every: float = CHECKPOINT_MINUTES,
    console: Console | None = None,
    tensorboard: bool = False,
    config_file: Mapping[str, Any] | None = None,
    ranks: Ranks = ALONE,
    **settings: Any,
) -> TrainResult:
    """Train one cell as a language model, as the paper evaluates what it found (section 4.2).

    Args:
        dataset, out, data_dir, checkpoint_every, console, tensorboard, config_file: as in `search`.
        cell: a genotype, a published name, "lstm" or "lstm-skip", "random:SEED", a JSON file, a run folder, or text
            such as "tanh0 relu1".
        preset: "paper" or "quick"; by default "paper" with a GPU and "quick" without.
        ranks: as in `search`; they divide the rows of every data batch among them.
        settings: any field of `TrainConfig`.

    Raises:
        WenetError: an impossible setting, no such cell, missing or unusable text, too little memory, or diverged
            training.
        Stopped: SIGINT or SIGTERM came; `resume_train` goes on from there.
    """
    console = console or Console(silent=True)
    require_tensorboard(tensorboard)
    preset, given = overriding_settings(dataset, preset, config_file, settings)
    if cell is not None:
        given["cell"] = str(cell)
    asked = resolve_train_config(preset, given)
    genotype = None if asked.cell in LSTMS else load_genotype(asked.cell)
    config = resolve_machine(asked, genotype)
    corpus = load_corpus(config.dataset, as_path(data_dir), config.max_vocabulary)
    config = with_absolute_dataset(config)
    check_lengths(corpus, train=config.data_batch, valid=config.eval_batch, test=config.test_batch)
    _check_ranks(config, ranks)
    needed = _needed_memory(config, genotype, corpus, ranks)
    check_memory(needed, config.device, SIZE_FLAGS, ranks)
    folder = as_path(out) or default_folder("train", corpus.name)
    stored = {**run_settings("train", config, corpus, data_dir), "genotype": genotype and genotype.to_dict()}
    ranks.check_same(stored)
    with (
        Interrupt() as interrupt,
        closing(SharedFolder.take(ranks, divided_dimension, lambda: RunFolder.create(folder, stored))) as run,
    ):
        _say_header(console, config, genotype, corpus, ranks)
        work = Workplace(config, corpus, console, checkpoint_every, interrupt, tensorboard, ranks)
        return _run(work, genotype, run)


def resume_train(
    folder: str | Path,
    *,
    data_dir: str | Path | None = None,
    checkpoint_every: float = CHECKPOINT_MINUTES,
    console: Console | None = None,
    tensorboard: bool = False,
    ranks: Ranks = ALONE,
) -> TrainResult:
    """Continue training bit-exactly from its last checkpoint.

    Args:
        ranks: as in `resume_search`.

    Raises:
        WenetError: no such run, it is in use, its checkpoint is damaged, or text or machine differ from what it needs.
        Stopped: as in `train`.
    """
    console = console or Console(silent=True)
    require_tensorboard(tensorboard)
    with (
        Interrupt() as interrupt,
        closing(SharedFolder.take(ranks, divided_dimension, lambda: RunFolder.open(Path(folder)))) as run,
    ):
        config = stored_config(run, "train", resolve_train_config)
        _check_ranks(config, ranks)
        corpus = take_up(run, config, data_dir, console)
        work = Workplace(config, corpus, console, checkpoint_every, interrupt, tensorboard, ranks)
        return _run(work, stored_genotype(run), run)


def stored_genotype(run: RunFolder) -> Genotype | None:
    """The cell that a run trains, None for an LSTM; the file that a cell was read from may have changed since."""
    stored = run.config["genotype"]
    return None if stored is None else Genotype.from_dict(stored)


def _run(work: Workplace[TrainConfig], genotype: Genotype | None, run: RunFolder) -> TrainResult:
    needed = size(_needed_memory(work.config, genotype, work.corpus, work.ranks))
    advice = f"about {needed} are needed; lower {SIZE_FLAGS}"
    try:
        with explaining_out_of_memory(advice), pytorch_products_in(work.config):
            best = Training(work, genotype, run).run()
    finally:
        work.console.stop()
    if work.ranks.first:
        add_report(run.path, work.console)
    return TrainResult(best["valid_perplexity"], best["test_perplexity"], best, run.path)


def _check_ranks(config: TrainConfig, ranks: Ranks) -> None:
    """Refuse what several ranks cannot do.

    Raises:
        WenetError: a GPU for each is not there, or there are fewer rows in a data batch than ranks.
    """
    check_own_device(ranks, torch.device(config.device))
    if config.data_batch < ranks.count:
        raise WenetError(f"--data-batch {config.data_batch} cannot be divided over {ranks.count} ranks; start fewer")


def _needed_memory(config: TrainConfig, genotype: Genotype | None, corpus: Corpus, ranks: Ranks) -> int:
    """Bytes that each rank needs."""
    own = replace(config, data_batch=-(-config.data_batch // ranks.count))
    return estimate_training_memory(own, genotype, len(corpus.vocabulary))


def _say_header(console: Console, config: TrainConfig, genotype: Genotype | None, corpus: Corpus, ranks: Ranks) -> None:
    say_text_and_machine(console, config, corpus, genotype)
    same = genotype is None or str(genotype) == config.cell
    console.say(f"cell      {config.cell}" + ("" if same else f": {genotype}"))
    if not ranks.alone:
        memory = _needed_memory(config, genotype, corpus, ranks)
        console.say(f"ranks     {ranks.count}, which divide batches of {config.data_batch}: about {size(memory)} each")
        return  # how long it will take depends on what is between them
    expected = estimate_training(config, genotype, corpus)
    console.say(
        f"{config.preset:<9} {config.epochs:,} epochs, hidden {config.hidden}, batch {config.data_batch}: about "
        f"{duration(expected.seconds)}, {size(expected.memory)}"
    )


def describe_training(result: TrainResult) -> str:
    """Perplexities, how they were come by, and what to do next."""
    best, folder = result.best, result.folder
    averaged = "never averaged" if best["averaging_from"] is None else f"averaged from epoch {best['averaging_from']}"
    rollbacks = best["rollbacks"]
    lines = [
        "",
        f"perplexity  valid {result.valid_perplexity:.2f}, test {result.test_perplexity:.2f}",
        f"weights     of epoch {best['epoch']} of {best['epochs']}, the best in validation; {averaged}; "
        f"{best['parameters']:,} parameters",
        f"cost        {duration(best['seconds'])}, peak memory {size(best['peak_memory_bytes'])}",
    ]
    if rollbacks:
        lines.append(f"caution     training diverged {rollbacks} time{'s' * (rollbacks > 1)} and went back each time")
    return "\n".join(
        [
            *lines,
            f"report      {folder}/report.html",
            f"files       {folder}/best.json (the result), train.jsonl (every epoch), config.json (settings)",
            f"next        wenet-eval {folder}",
        ]
    )
