"""A cell, or a trained language model, in a form that runs without this package."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch.export import Dim, ExportedProgram

from wenet.checkpoint import RunFolder
from wenet.config import resolve_train_config
from wenet.genotype import Genotype
from wenet.genotypes import PUBLISHED, load_genotype
from wenet.launch import as_path, stored_config, stored_corpus
from wenet.launch_train import stored_genotype
from wenet.nn import DagRNN
from wenet.source import layer_source, model_source
from wenet.train import trained_model
from wenet_kernels import FORMS, WenetError, check_choice

SUFFIXES = {"module": ".py", "onnx": ".onnx", "torch-export": ".pt2"}  # by format


@dataclass(frozen=True)
class Written:
    """A cell or a model as Python source."""

    code: str
    layer: str  # the class of the recurrent layer in it
    weights: dict[str, Tensor] = field(default_factory=dict)  # of its class `LanguageModel`, where there is one
    vocabulary: tuple[str, ...] = ()


def export(
    source: str | Path | Genotype,
    format: str = "module",
    out: str | Path | None = None,
    *,
    input_size: int | None = None,
    hidden_size: int | None = None,
    form: str | None = None,
    seed: int | None = None,
    data_dir: str | Path | None = None,
) -> list[Path]:
    """Write a cell or a trained model so that PyTorch or an ONNX runtime can run it without this package.

    Of a folder that `wenet.train` made it is the language model with its best weights: tokens `[T, M]` and a state
    `[1, M, H]` to scores of the words that follow, `[T, M, V]`, and the last state. Of any other cell it is a recurrent
    layer with fresh weights, x `[T, M, I]` and h0 `[1, M, H]` to output `[T, M, H]` and h_n. T and M stay free in every
    format. It computes as in evaluation, without dropout, its products in the type of the weights.

    Args:
        source: a training run's folder, or a cell as in `wenet.genotypes.load_genotype`.
        format: "module" (a Python file; a run's weights as safetensors beside it), "onnx", or "torch-export" (for
            `torch.export.load`).
        out: the file to write; by default named like the source, in the current folder.
        input_size, hidden_size: of a layer as onnx or torch-export, the first by default as the second. In a module the
            class is given them.
        form: of a cell, "highway" by default.
        seed: of the fresh weights of onnx or torch-export, 1 by default.
        data_dir: where to look for a run's text, as in `train`.

    Returns:
        The files written: with a run also its vocabulary, a word a line in the order of the tokens.

    Raises:
        WenetError: nothing to export there, a file that exists or cannot be written, an argument that means nothing
            here, or an exporter that is not installed.
    """
    check_choice("format", format, SUFFIXES)
    for package in ("onnx", "onnxscript") if format == "onnx" else ():
        if importlib.util.find_spec(package) is None:
            raise WenetError(f"{package} is not installed; pip install 'wenet-rnn[export]'")
    sizes = {"--input": input_size, "--hidden": hidden_size, "--seed": seed}
    if not isinstance(source, Genotype) and _is_training_run(Path(source)):
        _refuse({**sizes, "--form": form}, "a training run has its own")
        written = _written_run(Path(source), data_dir)
    else:
        if format == "module":
            _refuse(sizes, "the class in a module takes its sizes when it is made")
        written = _written_cell(source, form or "highway")
    files = _files(as_path(out) or _default_file(source, format), format, written)
    with _reporting_failed_write(files[0]):
        _write(files[0], format, written, input_size, hidden_size, 1 if seed is None else seed)
    return files


def _default_file(source: str | Path | Genotype, format: str) -> Path:
    """In the current folder, by a name that Python can import."""
    return Path(re.sub(r"\W+", "_", Path(str(source)).name).strip("_") + SUFFIXES[format])


def _files(path: Path, format: str, written: Written) -> list[Path]:
    """All that will be written, none of which may be there yet."""
    files = [path]
    if written.weights and format == "module":
        files.append(path.with_suffix(".safetensors"))
    if written.weights:
        files.append(path.with_suffix(".vocabulary.txt"))
    for file in files:
        if file.exists():
            raise WenetError(f"{file} exists; name another file with --out")
    return files


def describe_export(format: str, files: list[Path]) -> str:
    """What was written, and how to load it."""
    path, *beside = files
    what = "the language model" if beside else "the recurrent layer, its weights fresh"
    module = f"import {path.stem}" + (f'; model = {path.stem}.load("{beside[0]}")' if beside else "")
    load = {
        "module": module,
        "onnx": f'onnxruntime.InferenceSession("{path}")',
        "torch-export": f'torch.export.load("{path}").module()',
    }
    return f"wrote     {what}: {', '.join(map(str, files))}\nload it   {load[format]}"


def _is_training_run(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / "config.json").read_text(encoding="utf-8"))["kind"] == "train")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _refuse(arguments: dict[str, Any], reason: str) -> None:
    for flag, value in arguments.items():
        if value is not None:
            raise WenetError(f"leave out {flag}: {reason}")


def _written_cell(source: str | Path | Genotype, form: str) -> Written:
    check_choice("form", form, FORMS)
    genotype = source if isinstance(source, Genotype) else load_genotype(str(source))
    name = "".join(part.capitalize() for part in str(source).split("-")) if source in PUBLISHED else "Cell"
    return Written(layer_source(name, genotype, form), name)


def _written_run(folder: Path, data_dir: str | Path | None) -> Written:
    with closing(RunFolder.open(folder)) as run:
        config = stored_config(run, "train", resolve_train_config)
        genotype = stored_genotype(run)
        if genotype is None:
            raise WenetError(f"{folder} holds an {config.cell}; only cells are exported")
        vocabulary = stored_corpus(run, config, data_dir).vocabulary
        _, tensors = run.load_best()
    model = trained_model(config, genotype, len(vocabulary), tensors)
    assert isinstance(model.rnn, DagRNN)
    experts = None if model.mixture is None else model.mixture.experts
    sizes = (len(vocabulary), model.rnn.input_size, model.rnn.hidden_size)
    code = model_source("Cell", genotype, config.form, *sizes, experts)
    return Written(code, "Cell", model.state_dict(), tuple(vocabulary))


def _write(
    path: Path, format: str, written: Written, input_size: int | None, hidden_size: int | None, seed: int
) -> None:
    if format == "module":
        path.write_text(written.code, encoding="utf-8")
        if written.weights:
            save_file(written.weights, path.with_suffix(".safetensors"))
    else:
        if written.weights:
            graph = _traced_model(written)
        elif hidden_size is None:
            raise WenetError(f"{format} has fixed sizes: give --hidden, and --input where it differs")
        else:
            graph = _traced_layer(written, input_size or hidden_size, hidden_size, seed)
        if format == "onnx":
            _save_onnx(graph, path)
        else:
            torch.export.save(graph, path)
    if written.weights:
        path.with_suffix(".vocabulary.txt").write_text("\n".join(written.vocabulary) + "\n", encoding="utf-8")


class _Scanned(nn.Module):
    """A written layer with its loop over time as one operator, so that a graph of it takes any number of steps."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, h0: Tensor) -> tuple[Tensor, Tensor]:
        layer: Any = self.layer

        def step(h: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
            h = layer.step(x_t, h)
            return h, h.clone()  # what is carried on and what is put out must not share memory

        h, output = scan(step, h0[0], x @ layer.weight_input)
        return output, h.unsqueeze(0)


@contextmanager
def _imported(code: str) -> Iterator[Any]:
    """Written source as a module, to be found by name for as long as it is traced."""
    module = ModuleType("wenet_exported")
    exec(compile(code, "wenet_exported.py", "exec"), module.__dict__)
    sys.modules[module.__name__] = module
    try:
        yield module
    finally:
        del sys.modules[module.__name__]


def _traced_layer(written: Written, input_size: int, hidden_size: int, seed: int) -> ExportedProgram:
    if min(input_size, hidden_size) < 1:
        raise WenetError(f"--input and --hidden must be at least 1, not {input_size}, {hidden_size}")
    with _imported(written.code) as module, torch.random.fork_rng([]):
        torch.manual_seed(seed)
        layer = _Scanned(getattr(module, written.layer)(input_size, hidden_size))
        return _trace(layer, "x", torch.zeros(3, 2, input_size), torch.zeros(1, 2, hidden_size))


def _traced_model(written: Written) -> ExportedProgram:
    dtype = written.weights["decoder_bias"].dtype
    with _imported(written.code) as module:
        model = module.LanguageModel().to(dtype)
        model.load_state_dict(written.weights)
        h0 = torch.zeros(1, 2, model.rnn.hidden_size, dtype=dtype)
        model.rnn = _Scanned(model.rnn)
        return _trace(model, "tokens", torch.zeros(3, 2, dtype=torch.long), h0)


def _trace(module: nn.Module, name: str, example: Tensor, h0: Tensor) -> ExportedProgram:
    """A graph that takes any number of steps and of rows."""
    shapes = {name: {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, "h0": {1: Dim.DYNAMIC}}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(module.eval(), (example, h0), dynamic_shapes=shapes)


def _save_onnx(graph: ExportedProgram, path: Path) -> None:
    inputs = list(graph.graph_signature.user_inputs)
    outputs = ["output" if "x" in inputs else "scores", "h_n"]
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # of operators that torchvision would have
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(graph, dynamo=True, verbose=False, input_names=inputs, output_names=outputs)
    finally:
        logging.disable(before)
    assert program is not None
    program.save(path)


@contextmanager
def _reporting_failed_write(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WenetError(f"cannot write {path}: {error.strerror}; name another file with --out") from None
