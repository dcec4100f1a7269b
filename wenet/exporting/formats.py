"""Export a cell or a trained language model as a module, ONNX or a torch.export graph."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from wenet.cells import PROGRAMS, PUBLISHED, Cell, Genotype, layer_source, load_cell, model_source, trained_layer_source
from wenet.exporting.saved_layer import is_weight_file, saved_layer
from wenet.exporting.sequences import sequence_source
from wenet.exporting.winner import TrainedWinner, has_trained_winner, trained_winner
from wenet.nn import CellRNN, DagRNN, LanguageModel, SequenceModel
from wenet.run import RunFolder, as_path, stored_config, stored_data, stored_kind, write_tensors
from wenet.tasks import task_of
from wenet.training import TRAIN, trained_model
from wenet_kernels import FORMS, WenetError, check_choice
from wenet_kernels.programs import STATES

MOST_LOST = 1e-4  # of a standard deviation, by the rounding of an input
SUFFIXES = {"module": ".py", "onnx": ".onnx", "torch-export": ".pt2"}  # by format


@dataclass(frozen=True)
class Trained:
    """The trained language model of a run."""

    model: LanguageModel
    layer: DagRNN | CellRNN  # the recurrent layer in it
    vocabulary: tuple[str, ...]
    metric: dict[str, float]  # of its weights, by names such as "valid_perplexity"


def export(
    source: str | Path | Cell,
    format: str = "module",
    out: str | Path | None = None,
    *,
    input_size: int | None = None,
    hidden_size: int | None = None,
    form: str | None = None,
    seed: int | None = None,
    data_dir: str | Path | None = None,
    layer: str | None = None,
) -> list[Path]:
    """Write a cell or a trained model in a form that PyTorch or an ONNX runtime can run without this package.

    The source decides what is written. A search with a contest gives the winner's trained model, and a training run its
    language model with the best weights. A model of numbers maps x `[M, T, F]` in its own units to predictions in
    theirs; see `wenet.nn.SequenceModel`. A language model maps tokens `[T, M]` and a state `[1, M, H]` to scores of the
    next words, `[T, M, V]`, and the last state; several states that a program carries lie beside one another in it.
    A file of weights gives its layer; it holds the state dict of a `DagRNN` or `CellRNN`, or of a model that
    contains one. Any other cell, and a search's where sizes are given, gives a recurrent layer with fresh weights,
    which maps x `[T, M, I]` and h0 `[1, M, H]` to output `[T, M, H]` and h_n; of a program with several states these
    are tuples. T and M stay free in every format. The export computes as in evaluation, without dropout, with products
    in the weights' number type.

    Args:
        source: the folder of a training run or of a search, a file of weights (.pt, .pth, .bin, .ckpt or .safetensors),
            or a cell as in `wenet.cells.load_cell`.
        format: "module" (a Python file, with trained weights as safetensors beside it), "onnx", or "torch-export" (for
            `torch.export.load`).
        out: the file to write; by default named like the source, in the current folder.
        input_size, hidden_size: sizes of a fresh layer in onnx or torch-export; the input size defaults to the hidden
            size. The class in a module takes its sizes as arguments.
        form: the form of a DAG cell, "highway" by default.
        seed: seed of fresh weights in onnx or torch-export, 1 by default.
        data_dir: where to look for a run's text, as in `train`.
        layer: the name of one layer in a file of weights with several, such as "encoder.rnn".

    Returns:
        The files written. A model of a text also gives its vocabulary, one word per line in the order of the tokens,
        which exports in several formats share.

    Raises:
        WenetError: there is nothing to export, a file exists or cannot be written, an argument does not apply, or an
            exporter is not installed.

    Examples:
        >>> import wenet
        >>> [path.name for path in wenet.export("tanh0 relu1", out="cell.py")]
        ['cell.py']
    """
    check_choice("format", format, SUFFIXES)
    for package in ("onnx", "onnxscript") if format == "onnx" else ():
        if importlib.util.find_spec(package) is None:
            raise WenetError(f"{package} is not installed; pip install 'wenet-rnn[export]'")
    sizes = {"--input": input_size, "--hidden": hidden_size, "--seed": seed}
    path = as_path(out) or _default_file(source, format)
    _check_file(path, format)
    if isinstance(source, str | Path) and is_weight_file(Path(source)):
        _refuse({**sizes, "--form": form}, "a file of weights has its own")
        return _export_layer(saved_layer(Path(source), layer), format, path)
    _refuse({"--layer": layer}, "only a file of weights has several")
    if isinstance(source, str | Path) and _is_training_run(Path(source)):
        _refuse({**sizes, "--form": form}, "a training run has its own")
        return _export_run(_trained(Path(source), data_dir), format, path)
    asks_for_fresh = any(value is not None for value in sizes.values())
    if isinstance(source, str | Path) and has_trained_winner(Path(source)) and not asks_for_fresh:
        _refuse({"--form": form}, "a trained model has its own")
        winner = trained_winner(Path(source), as_path(data_dir))
        if isinstance(winner.model, SequenceModel):
            return _export_sequence_model(winner.model, format, path)
        return _export_run(_trained_on_text(winner), format, path)
    if format == "module":
        _refuse(sizes, "the class in a module takes its sizes when it is made")
        return _export_cell(source, form, path)
    fresh = _fresh_layer(source, form, format, input_size, hidden_size, 1 if seed is None else seed)
    return _export_layer(fresh, format, path)


def _default_file(source: str | Path | Cell, format: str) -> Path:
    """A file in the current folder, with a name that Python can import."""
    name = re.sub(r"\W+", "_", Path(str(source)).name).strip("_")
    return Path((name if name.isidentifier() else f"cell_{name}".rstrip("_")) + SUFFIXES[format])


def _check_file(path: Path, format: str) -> None:
    """Refuse a file that could not be written or loaded; beside a module its weights have the same name."""
    if format == "module" and path.suffix != SUFFIXES[format]:
        raise WenetError(f"--out {path} must end in {SUFFIXES[format]}, as a module does")
    if not os.path.isdir(path.parent):
        raise WenetError(f"cannot write {path}: there is no folder {path.parent}; name another file with --out")


def _check_new(path: Path) -> None:
    if path.exists():
        raise WenetError(f"{path} exists; name another file with --out")


def describe_export(source: str | Path, format: str, files: list[Path], fresh: bool = False) -> str:
    """Describe the files written and how to load them; `fresh` where sizes asked for a new layer."""
    path, *beside = files
    if is_weight_file(Path(source)):
        what = "the recurrent layer and its weights"
    elif any(file.name.endswith(".vocabulary.txt") for file in beside):
        what = "the trained model and its vocabulary"
    elif has_trained_winner(Path(source)) and not fresh:
        what = "the trained model, with its standardisation"
    else:
        what = "the recurrent layer, its weights fresh"
    module = f"import {path.stem}" + (f'; model = {path.stem}.load("{beside[0]}")' if beside else "")
    load = {
        "module": module,
        "onnx": f'onnxruntime.InferenceSession("{path}")',
        "torch-export": f'torch.export.load("{path}").module()',
    }
    return f"wrote     {what}: {', '.join(map(str, files))}\nload it   {load[format]}"


def _is_training_run(folder: Path) -> bool:
    stored = stored_kind(folder)
    return stored is not None and stored[0] == TRAIN.kind


def _refuse(arguments: dict[str, Any], reason: str) -> None:
    for flag, value in arguments.items():
        if value is not None:
            raise WenetError(f"leave out {flag}: {reason}")


def _export_cell(source: str | Path | Cell, form: str | None, path: Path) -> list[Path]:
    """Write a cell as a module."""
    cell = _cell(source, form)
    is_name = source in PUBLISHED or source in PROGRAMS
    name = "".join(part.capitalize() for part in str(source).split("-")) if is_name else "Cell"
    code = layer_source(name, cell, form or "highway")
    _check_new(path)
    with _reporting_failed_write(path):
        path.write_text(code, encoding="utf-8")
    return [path]


def _export_layer(layer: DagRNN | CellRNN, format: str, path: Path) -> list[Path]:
    """Write a layer with its weights."""
    files = [path, path.with_suffix(".safetensors")] if format == "module" else [path]
    for file in files:
        _check_new(file)
    with _reporting_failed_write(path):
        if format == "module":
            path.write_text(_layer_code(layer), encoding="utf-8")
            write_tensors(files[1], _weights_by_cell(layer), _description(layer))
        else:
            _save_graph(layer, format, path, _description(layer))
    return files


def _export_sequence_model(model: SequenceModel, format: str, path: Path) -> list[Path]:
    """Write a model of sequences of numbers with its standardisation; a graph reads whole sequences of any length."""
    files = [path, path.with_suffix(".safetensors")] if format == "module" else [path]
    for file in files:
        _check_new(file)
    layer = model.rnn
    assert isinstance(layer, DagRNN | CellRNN)
    description = {**_description(layer), "classes": ", ".join(map(str, model.classes))}
    with _reporting_failed_write(path):
        if format == "module":
            path.write_text(sequence_source(model), encoding="utf-8")
            tensors = {name: tensor for name, tensor in model.state_dict().items() if tensor.numel()}
            write_tensors(files[1], tensors, description)
        else:
            x = torch.zeros(2, 3, model.features_in, dtype=_type_of_inputs(model))
            _save_program(model, {"x": x}, {"x": {0: Dim("batch"), 1: Dim("time")}}, format, path, description)
    return files


def _type_of_inputs(model: SequenceModel) -> torch.dtype:
    """That of the weights, or double precision where values lie so far from zero that it would round off a part of what
    tells them apart."""
    shift, scale = model.get_buffer("shift"), model.get_buffer("scale")
    lost = torch.finfo(model.head_bias.dtype).eps * float((shift / scale).abs().max())
    return torch.float64 if lost > MOST_LOST else model.head_bias.dtype


def _layer_code(layer: DagRNN | CellRNN) -> str:
    sizes = (layer.input_size, layer.hidden_size)
    counts = (layer.num_layers, layer.directions)
    return trained_layer_source("Cell", _cell_in(layer), layer.form, sizes, *counts, layer.bias)


def _weights_by_cell(layer: DagRNN | CellRNN) -> dict[str, Tensor]:
    """The layer's weights by their names in the written module."""
    states = layer.num_layers * layer.directions
    if states == 1:
        return layer.state_dict()
    names, values = zip(*layer.named_parameters(), strict=True)
    kinds = names[: len(names) // states]  # names of the first layer and direction, without suffix
    own = (f"cells.{state}.{kind}" for state in range(states) for kind in kinds)
    said = {f"cells.{state}._extra_state": layer.get_extra_state() for state in range(states)}
    return {**dict(zip(own, (value.detach() for value in values), strict=True)), **said}


def _fresh_layer(
    source: str | Path | Cell,
    form: str | None,
    format: str,
    input_size: int | None,
    hidden_size: int | None,
    seed: int,
) -> DagRNN | CellRNN:
    cell = _cell(source, form)
    if hidden_size is None:
        raise WenetError(f"{format} has fixed sizes: give --hidden, and --input where it differs")
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        sizes = (hidden_size if input_size is None else input_size, hidden_size)
        return DagRNN(*sizes, cell, form or "highway") if isinstance(cell, Genotype) else CellRNN(*sizes, cell)


def _cell(source: str | Path | Cell, form: str | None) -> Cell:
    cell = load_cell(source)
    if form is not None:
        check_choice("form", form, FORMS)
        if not isinstance(cell, Genotype):
            raise WenetError("leave out --form: a program has none")
    return cell


def _cell_in(layer: DagRNN | CellRNN) -> Cell:
    return layer.genotype if isinstance(layer, DagRNN) else layer.program


def _trained(folder: Path, data_dir: str | Path | None) -> Trained:
    with closing(RunFolder.open(folder, to_read=True)) as run:
        config = stored_config(run, TRAIN)
        task = task_of(config)
        cell = TRAIN.stored_cell(run.config)
        if cell is None:
            raise WenetError(f"{folder} holds an {config.cell}; only cells are exported")
        corpus = stored_data(run, config, task, data_dir)
        vocabulary = corpus.vocabulary
        _, tensors = run.load_best()
        best = run.read_json("best.json")
    model = trained_model(config, cell, task, corpus, tensors)
    assert isinstance(model.rnn, DagRNN | CellRNN)
    names = [f"{part}_{task.metric.key}" for part in ("valid", "test")]
    return Trained(model, model.rnn, vocabulary, {name: best[name] for name in names if best[name] is not None})


def _trained_on_text(winner: TrainedWinner) -> Trained:
    """The winner of a search on a text, as a training run's model."""
    assert isinstance(winner.model, LanguageModel) and isinstance(winner.model.rnn, DagRNN | CellRNN)
    return Trained(winner.model, winner.model.rnn, winner.data.vocabulary, winner.metric)


def _export_run(trained: Trained, format: str, path: Path) -> list[Path]:
    files = [path, path.with_suffix(".safetensors")] if format == "module" else [path]
    for file in files:
        _check_new(file)
    words = path.with_suffix(".vocabulary.txt")
    text = "\n".join(map(_on_a_line, trained.vocabulary)) + "\n"
    if words.exists() and words.read_text(encoding="utf-8") != text:
        _check_new(words)
    description = _description(trained.layer, len(trained.vocabulary), trained.metric)
    with _reporting_failed_write(path):
        if format == "module":
            path.write_text(_model_code(trained), encoding="utf-8")
            write_tensors(files[1], trained.model.state_dict(), description)
        else:
            _save_graph(trained.model, format, path, description)
        words.write_text(text, encoding="utf-8")
    return [*files, words]


def _on_a_line(unit: str) -> str:
    """A word, or a character; one that would end a line as Python escapes it."""
    return unit if unit.splitlines() == [unit] else unit.encode("unicode_escape").decode()


def _model_code(trained: Trained) -> str:
    layer, mixture = trained.layer, trained.model.mixture
    sizes = (len(trained.vocabulary), layer.input_size, layer.hidden_size)
    experts = None if mixture is None else mixture.experts
    return model_source("Cell", _cell_in(layer), layer.form, *sizes, experts)


def _description(
    layer: DagRNN | CellRNN, vocabulary_size: int | None = None, metric: dict[str, float] | None = None
) -> dict[str, str]:
    """Metadata of an exported file."""
    sizes = {"input_size": layer.input_size, "hidden_size": layer.hidden_size, "vocabulary_size": vocabulary_size}
    described = {"cell": _cell_in(layer), "form": layer.form, **sizes, **(metric or {})}
    usual = {"num_layers": 1, "bias": isinstance(layer, CellRNN), "bidirectional": False}
    described |= {name: getattr(layer, name) for name, value in usual.items() if getattr(layer, name) != value}
    return {name: str(value) for name, value in described.items() if value is not None}


def _save_graph(module: DagRNN | CellRNN | LanguageModel, format: str, path: Path, description: dict[str, str]) -> None:
    """Save a graph for evaluation, with any number of steps and rows."""
    example = _example(module)
    axes = {0: Dim("time"), 1: Dim("batch")}
    (first, _), (_, states) = example.items()
    of_states = {1: axes[1]} if isinstance(states, Tensor) else tuple({1: axes[1]} for _ in states)
    _save_program(module, example, {first: axes, "h0": of_states}, format, path, description)


def _save_program(
    module: torch.nn.Module,
    example: dict[str, Any],
    shapes: dict[str, Any],
    format: str,
    path: Path,
    description: dict[str, str],
) -> None:
    module = module.eval().requires_grad_(False)  # else every call of the graph would prepare for backward
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if format == "onnx":
            _save_onnx(module, example, shapes, path, description)
        else:
            program = torch.export.export(module, tuple(example.values()), dynamic_shapes=shapes)
            _forget_this_machine(program)
            torch.export.save(program, path, extra_files={"description.json": json.dumps(description)})


def _forget_this_machine(program: ExportedProgram) -> None:
    """Remove the source locations of operators."""
    for graph in program.graph_module.modules():
        for node in graph.graph.nodes if isinstance(graph, GraphModule) else ():
            node.meta.pop("stack_trace", None)


def _example(module: DagRNN | CellRNN | LanguageModel) -> dict[str, Any]:
    """Example arguments by name: input of 3 steps and 2 rows, and a state, or a tuple of them."""
    layer = module.rnn if isinstance(module, LanguageModel) else module
    assert isinstance(layer, DagRNN | CellRNN)
    weight, carried = next(layer.parameters()), layer.carried
    state = weight.new_zeros(layer.num_layers * layer.directions, 2, layer.hidden_size)
    if isinstance(module, LanguageModel):
        return {"tokens": torch.zeros(3, 2, dtype=torch.long), "h0": state.repeat(1, 1, carried)}
    x = weight.new_zeros(3, 2, layer.input_size)
    return {"x": x, "h0": state if carried == 1 else tuple(state.clone() for _ in range(carried))}


def _save_onnx(
    module: torch.nn.Module, example: dict[str, Any], shapes: dict[str, Any], path: Path, description: dict[str, str]
) -> None:
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    first, *has_states = example
    carried = len(example["h0"]) if has_states and not isinstance(example["h0"], Tensor) else len(has_states)
    states = STATES[:carried]
    with _without_warnings_in_the_log():  # about operators of torchvision
        program = torch.onnx.export(
            module,
            tuple(example.values()),
            dynamo=True,
            verbose=False,
            input_names=[first, *(f"{state}0" for state in states)],
            output_names=["scores" if first == "tokens" else "output", *(f"{state}_n" for state in states)],
            dynamic_shapes=shapes,
        )
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)  # which hold paths of this machine
    program.model.metadata_props.update(description)
    program.save(path)


@contextmanager
def _without_warnings_in_the_log() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _reporting_failed_write(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise WenetError(f"cannot write {path}: {reason}; name another file with --out") from None
