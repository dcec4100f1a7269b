"""Evaluate a trained model on validation and test text."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from wenet.data import UNKNOWN, batchify, encode_held_out, units_of
from wenet.nn import LanguageModel
from wenet.run import (
    Console,
    RunFolder,
    as_path,
    explaining_out_of_memory,
    pytorch_products_in,
    resolve_machine,
    stored_config,
    stored_data,
)
from wenet.run.settings import lowering
from wenet.tasks import Metric, task_of
from wenet.training.adaptive import Cache, Dynamic, cache_cross_entropy, dynamic_cross_entropy, statistics_stream
from wenet.training.nt_asgd import trained_model
from wenet.training.settings import TrainConfig
from wenet.training.work import TRAIN
from wenet.words import counted, duration
from wenet_kernels import LostRanks, WenetError

RECORDS = "eval.jsonl"
SETTINGS = ("eval_batch", "test_batch", "backend", "device", "precision")  # of the run that an evaluation may change


def evaluate(
    folder: str | Path,
    dataset: str | None = None,
    *,
    data_dir: str | Path | None = None,
    cache: Cache | None = None,
    dynamic: Dynamic | None = None,
    console: Console | None = None,
    eval_batch: int | None = None,
    test_batch: int | None = None,
    backend: str = "auto",
    device: str = "auto",
    precision: str | None = None,
) -> dict[str, Any]:
    """Measure the best weights of a training run on the validation and test part of a text.

    The metric is the run's: perplexity, or bits per character for a run by characters.

    Args:
        folder: the run; results are also added to its `eval.jsonl`.
        dataset: by default the run's own text. Any other is read with the run's vocabulary, and by words or characters
            like the run's.
        data_dir, console: as in `train`.
        cache, dynamic: two ways to adapt to the text while reading it, of which one may be used.
        eval_batch, test_batch, precision: by default those of the run; for dynamic evaluation one stream of text.
        backend, device: by default the best of this machine.

    Returns:
        For each part the metric under its key, the number of tokens predicted (all except the first of each stream and
        the few that do not fill a row), how many of these are `<unk>`, and the seconds taken.

    Raises:
        WenetError: the folder holds no trained model, or a text or setting cannot be used.

    Examples:
        >>> import wenet
        >>> measured = wenet.evaluate("runs/trained")
        >>> measured["test"]["perplexity"] < 100
        True
    """
    console = console or Console(silent=True)
    if cache and dynamic:
        raise WenetError("the cache and dynamic evaluation cannot be combined; ask for one of them")
    sizes = {"eval_batch": eval_batch, "test_batch": test_batch}
    given: dict[str, Any] = {
        name: value for name, value in {**sizes, "precision": precision}.items() if value is not None
    }
    advice = "lower --eval-batch or --test-batch"
    with closing(RunFolder.open(Path(folder), to_read=True)) as run, explaining_out_of_memory(advice):
        stored = stored_config(run, TRAIN)
        task = task_of(stored)
        genotype = TRAIN.stored_cell(run.config)
        config = resolve_machine(replace(stored, backend=backend, device=device, **given), genotype)
        corpus = stored_data(run, stored, task, data_dir)
        held_out = {"valid": corpus.valid, "test": corpus.test}
        if dataset is not None:
            units = units_of(stored.level, stored.dataset)
            held_out = encode_held_out(dataset, as_path(data_dir), corpus.vocabulary, units)
        _, tensors = run.load_best()
        model = trained_model(config, genotype, task, corpus, tensors).to(config.device)
        measure = _measure(model, config, task, corpus.train, cache, dynamic)
        record: dict[str, Any] = {
            "dataset": dataset or stored.dataset,
            "precision": config.precision,
            "cache": cache and asdict(cache),
            "dynamic": dynamic and asdict(dynamic),
        }
        mend = "lower --dynamic-lr" if dynamic else "measure it with --precision fp32 or fp64, or train it anew"
        unknown = corpus.vocabulary.index(UNKNOWN) if UNKNOWN in corpus.vocabulary else None
        for part, setting in (("valid", "eval_batch"), ("test", "test_batch")):
            rows = given.get(setting, 1) if dynamic else getattr(config, setting)
            with lowering(setting):
                stream = batchify(held_out[part], rows, part).to(config.device)
            with pytorch_products_in(config):
                record[part] = _score(measure, part, stream, unknown, mend, task.metric)
            console.say(_describe(part, record[part], rows, task.metric))
        try:
            run.append_record(RECORDS, record)
        except WenetError as error:  # of a run that lies where nothing can be written
            console.say(f"caution   {error}; these figures are kept nowhere else")
    return record


def _measure(
    model: LanguageModel, config: TrainConfig, task: Any, train: Tensor, cache: Cache | None, dynamic: Dynamic | None
) -> Callable[[Tensor], float]:
    """A function that gives a stream's metric: plain, with the cache, or by dynamic evaluation."""
    if cache is not None:
        return lambda stream: task.in_metric(cache_cross_entropy(model, stream, config.bptt, cache))
    if dynamic is not None:
        train_stream = statistics_stream(train, dynamic.segment).to(config.device)
        return lambda stream: task.in_metric(dynamic_cross_entropy(model, train_stream, stream, dynamic))
    return lambda stream: float(task.measure(model, stream, config.bptt, lambda: None).metric)


def _score(
    measure: Callable[[Tensor], float], part: str, stream: Tensor, unknown: int | None, mend: str, metric: Metric
) -> dict[str, Any]:
    started = time.monotonic()
    try:
        value = measure(stream)
    except LostRanks:
        raise
    except WenetError:  # model and text fit, so only NaN can be refused
        value = math.nan
    if not math.isfinite(value):
        raise WenetError(f"the model's {metric.name} on the {part} text is not finite; {mend}")
    predicted = stream[1:]
    return {
        metric.key: value,
        "tokens_predicted": predicted.numel(),
        "unknown_tokens": 0 if unknown is None else int((predicted == unknown).sum()),
        "seconds": round(time.monotonic() - started, 3),
    }


def _describe(part: str, score: dict[str, Any], rows: int, metric: Metric) -> str:
    reached = f"{metric.name} {score[metric.key]:.{metric.final_places}f}"
    return (
        f"{part:<6} {reached} over {score['tokens_predicted']:,} predicted tokens "
        f"({score['unknown_tokens']:,} of them <unk>), {counted(rows, 'stream')}, "
        f"{duration(score['seconds'])}"
    )
