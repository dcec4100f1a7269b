"""From what was asked for to a search: settings, folder, and what is said before and after."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from wenet.audit import RESULT as AUDIT
from wenet.audit import begun_audit, describe_audit, run_audit
from wenet.checkpoint import RunFolder
from wenet.config import PRESETS, SearchConfig, resolve_config
from wenet.console import Console, duration, size
from wenet.curves import require_tensorboard
from wenet.data import Corpus, load_corpus
from wenet.distributed import ALONE, Ranks, check_own_device
from wenet.estimate import estimate, estimate_memory
from wenet.genotype import Genotype
from wenet.halving import Halving
from wenet.interrupt import Interrupt, Stopped, wait_until
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
from wenet.runs import describe_runs, rank_runs
from wenet.search import Search, divided_dimension
from wenet.shared_folder import SharedFolder
from wenet_kernels import WenetError


@dataclass(frozen=True)
class SearchResult:
    """What a search found on a text: the cell, what `best.json` says of it, the run folder, and its audit."""

    dataset: str
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
    tensorboard: bool = False,
    config_file: Mapping[str, Any] | None = None,
    ranks: Ranks = ALONE,
    **settings: Any,
) -> SearchResult:
    """Search for a recurrent cell by Algorithm 2 of the paper, or by its baseline.

    Args:
        dataset: "sotu" (embedded, the default), "ptb", "wikitext-2", or a folder with train/valid/test text.
        preset: "paper" or "quick"; by default "paper" with a GPU and "quick" without.
        out: a new run folder; by default one under `runs/`, named by the time.
        data_dir: where to look for ptb and wikitext-2 first.
        checkpoint_every: minutes.
        console: where to print; nothing is printed by default.
        tensorboard: whether to write curves for TensorBoard into the run folder.
        config_file: settings that rank below `settings`.
        ranks: of `wenet.distributed.joined`, where torchrun started several processes that all call this alike. They
            divide the networks of each round among them, or whole runs where `runs` asks for several.
        settings: any field of `SearchConfig`.

    Raises:
        WenetError: an impossible setting, missing or unusable text, too little memory, or diverged training.
        Stopped: SIGINT or SIGTERM came; `resume_search` goes on from there.
    """
    console = console or Console(silent=True)
    require_tensorboard(tensorboard)
    preset, given = overriding_settings(dataset, preset, config_file, settings)
    config = resolve_machine(resolve_config(preset, given))
    corpus = load_corpus(config.dataset, as_path(data_dir), config.max_vocabulary)
    config = with_absolute_dataset(config)
    check_lengths(corpus, train=config.data_batch, valid=max(config.valid_rows, config.eval_batch))
    _check_ranks(config, ranks)
    check_memory(_needed_memory(config, corpus, ranks), config.device, _smaller(config), ranks)
    folder = as_path(out) or default_folder("search", corpus.name)
    stored = run_settings("search", config, corpus, data_dir)
    ranks.check_same(stored)
    with (
        Interrupt() as interrupt,
        closing(SharedFolder.take(ranks, divided_dimension, lambda: RunFolder.create(folder, stored))) as run,
    ):
        _say_header(console, config, corpus, given, ranks)
        return _run(Workplace(config, corpus, console, checkpoint_every, interrupt, tensorboard, ranks), run)


def resume_search(
    folder: str | Path,
    *,
    data_dir: str | Path | None = None,
    checkpoint_every: float = CHECKPOINT_MINUTES,
    console: Console | None = None,
    tensorboard: bool = False,
    audit: int | None = None,
    audit_epochs: float | None = None,
    ranks: Ranks = ALONE,
) -> SearchResult:
    """Continue a search bit-exactly from its last checkpoint.

    Args:
        ranks: as in `search`, and not necessarily as many as before; only with as many does it go on to the last bit.
        audit, audit_epochs: as in `SearchConfig`, for a search that was begun without.

    Raises:
        WenetError: no such run, it is in use, its checkpoint is damaged, or text or machine differ from what it needs.
        Stopped: as in `search`.
    """
    console = console or Console(silent=True)
    require_tensorboard(tensorboard)
    with (
        Interrupt() as interrupt,
        closing(SharedFolder.take(ranks, divided_dimension, lambda: RunFolder.open(Path(folder)))) as run,
    ):
        config = _with_audit(stored_config(run, "search", resolve_config), run.path, audit, audit_epochs)
        _check_ranks(config, ranks)
        corpus = take_up(run, config, data_dir, console)
        return _run(Workplace(config, corpus, console, checkpoint_every, interrupt, tensorboard, ranks), run)


def _with_audit(config: SearchConfig, folder: Path, audit: int | None, epochs: float | None) -> SearchConfig:
    """The settings with the audit that is asked for now, or that was begun on this run before."""
    if audit is None and config.audit == 0:
        audit, epochs = begun_audit(folder) or (0, None)
    return replace(
        config,
        audit=config.audit if audit is None else audit,
        audit_epochs=config.audit_epochs if epochs is None else epochs,
    )


def _run(work: Workplace[SearchConfig], run: RunFolder) -> SearchResult:
    config = work.config
    needed = size(_needed_memory(config, work.corpus, work.ranks))
    advice = f"about {needed} are needed; lower {_smaller(config)}"
    try:
        with explaining_out_of_memory(advice), pytorch_products_in(config):
            best = _search_several(work, run) if config.runs > 1 else _search_once(work, run)
            audit = run_audit(work, run) if config.audit and config.runs == 1 else None
    except Stopped as stopped:  # within a run, it may be, or a training: what goes on is the whole
        raise Stopped(stopped.signal_number, run.path) from None
    finally:
        work.console.stop()
    if work.ranks.first:
        add_report(run.path, work.console)
    return SearchResult(config.dataset, Genotype.from_dict(best["genotype"]), best, run.path, audit)


def _search_once(work: Workplace[SearchConfig], run: RunFolder) -> dict[str, Any]:
    if work.config.strategy == "random":
        return Halving(work, run).run()
    return Search(work, run).run()


def _search_several(work: Workplace[SearchConfig], run: RunFolder) -> dict[str, Any]:
    """Searches of different seeds, each a run folder of its own that a stopped run goes on in; then their ranking.

    Of several ranks each takes some of the searches, alone.
    """
    config, ranks = work.config, work.ranks
    folders = [run.path / f"run-{number + 1}" for number in range(config.runs)]
    for number in range(ranks.rank, config.runs, ranks.count):
        own = replace(work, config=replace(config, runs=1, seed=config.seed + number), ranks=ALONE)
        settings = run_settings("search", own.config, work.corpus, run.config["data_dir"])
        work.console.say(f"run {number + 1}/{config.runs}")
        with closing(RunFolder.open_or_create(folders[number], settings)) as own_run:
            _search_once(own, own_run)
            if config.audit:
                run_audit(own, own_run)
    wait_until(lambda: all(_is_finished(folder, config) for folder in folders), work.interrupt, run.path)
    return rank_runs(work, run, [run.read_json(f"{folder.name}/best.json") for folder in folders])


def _is_finished(folder: Path, config: SearchConfig) -> bool:
    """Whether a run that another process may be working on has come to its end."""
    if not (folder / "best.json").exists() or (config.audit and not (folder / AUDIT).exists()):
        return False
    best = json.loads((folder / "best.json").read_text(encoding="utf-8"))
    return best["rounds"] == best["rounds_planned"]


def _check_ranks(config: SearchConfig, ranks: Ranks) -> None:
    """Refuse what several ranks cannot do.

    Raises:
        WenetError: a GPU for each is not there, some round has fewer networks than ranks, or an option that looks at
            every network by itself.
    """
    check_own_device(ranks, torch.device(config.device))
    if ranks.alone or config.runs > 1 or config.strategy == "random":
        return
    for option, given in (
        ("--score held-out", config.score == "held-out"),
        ("--cell-weights shared", config.cell_weights == "shared"),
    ):
        if given:
            raise WenetError(f"networks cannot be divided over ranks with {option}; leave it out, or torchrun")
    if config.fewest_networks < ranks.count:
        raise WenetError(
            f"a round of {config.fewest_networks} networks cannot be divided over {ranks.count} ranks; start fewer"
        )


def _needed_memory(config: SearchConfig, corpus: Corpus, ranks: Ranks) -> int:
    """Bytes that each rank needs."""
    return estimate_memory(config, len(corpus.vocabulary), ranks.count if config.runs == 1 else 1)


def _smaller(config: SearchConfig) -> str:
    """The flags that lower what a search needs of memory."""
    return ("--audit, " if config.audit else "") + "--batch, " + SIZE_FLAGS


def _say_header(console: Console, config: SearchConfig, corpus: Corpus, given: Mapping[str, Any], ranks: Ranks) -> None:
    say_text_and_machine(console, config, corpus)
    if not ranks.alone:
        divided = f"{config.runs} runs" if config.runs > 1 else f"the networks, at most {config.networks}"
        memory = size(_needed_memory(config, corpus, ranks))
        console.say(f"ranks     {ranks.count}, which divide {divided}: about {memory} each")
        return  # how long it will take depends on what is between them
    for preset in PRESETS:
        chosen = preset == config.preset
        try:
            candidate = config if chosen else resolve_machine(resolve_config(preset, given))
        except WenetError:
            continue  # what was asked for fits the preset of this run alone
        console.say(_preset_line(preset, candidate, corpus) + ("   <- this run" if chosen else ""))
    if config.strategy == "random":
        console.say("strategy  random: as many network-steps, which take longer standalone than in one mixture")
    if config.runs > 1:
        console.say(f"runs      {config.runs}, each of them as above")
    if config.audit:
        console.say(
            f"audit     {config.audit} cells standalone for {config.audit_epochs:g} epochs, on top of that time"
        )


def _preset_line(preset: str, config: SearchConfig, corpus: Corpus) -> str:
    expected = estimate(config, corpus)
    return (
        f"{preset:<9} {config.pool:,} networks, {config.batch} new + {config.seeds} kept a round, {config.rounds} "
        f"rounds of {config.epochs_per_round:g} epochs, hidden {config.hidden}: about {duration(expected.seconds)}, "
        f"{size(expected.memory)}"
    )


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
            f"report    {folder}/report.html",
            f"files     {folder}/best.json (the cell), config.json (settings), and of every search search.jsonl",
            "next      " + shlex.join(["wenet-train", result.dataset, "--cell", str(folder), "--preset", "quick"]),
        ]
    )


def _how_it_won(best: dict[str, Any]) -> str:
    searched = f"best of {best['networks_searched']:,} networks"
    if "runs" in best:
        return f"{searched}: first of the winners of {len(best['runs'])} runs after standalone training"
    if best["weight"] is None:
        return f"{searched} by successive halving: validation perplexity {best['perplexity']:.1f} standalone"
    if best["held_out_loss"] is not None:
        searched += f": validation loss {best['held_out_loss']:.3f} of its own output"
    return (
        f"{searched}: weight {best['weight']:.4f} in the last mixture, where equal weights would be "
        f"{best['uniform_weight']:.4f}; {_how_long_kept(best)}"
    )


def _how_long_kept(best: dict[str, Any]) -> str:
    earlier = best["rounds_kept"] - 1
    if best["rounds"] == 1:
        return "of one round"
    return f"kept from {earlier} earlier round{'s' * (earlier > 1)}" if earlier else "new in the last round"


def _what_is_known(result: SearchResult) -> list[str]:
    best = result.best
    if "runs" in best:
        return describe_runs(best)
    lines = []
    if best["weight"] is not None:
        valid = best["mixture_valid_perplexity"]
        found = "not finite" if valid is None else f"{valid:.1f}"
        lines.append(f"mixture   validation perplexity {found}, of all networks of the last round together")
    if result.audit:
        return lines + describe_audit(result.audit)
    if best["weight"] is not None:
        lines.append(
            "caution   one search: whether the cell beats a random one was not measured; "
            f"measure it with wenet-search --resume {result.folder} --audit 24"
        )
    return lines
