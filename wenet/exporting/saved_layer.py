"""Load a layer from a file of weights, where it is alone or part of a model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from wenet.cells import Description, Genotype
from wenet.nn.cell_rnn import CellRNN
from wenet.nn.rnn import DagRNN
from wenet_kernels import Program, WenetError

PICKLED = (".pt", ".pth", ".bin", ".ckpt")  # written by torch.save
WEIGHT_FILES = (*PICKLED, ".safetensors")
# Names of a layer's tensors.
OWN_NAME = re.compile(r"(?:(?:(?:weight|bias)_\w+?|biases|vectors|scalars)(?:_l(\d+))?(_reverse)?|_extra_state)")


def is_weight_file(path: Path) -> bool:
    """Whether the path has a suffix of weight files and is no folder."""
    return path.suffix in WEIGHT_FILES and not path.is_dir()


def saved_layer(path: Path, name: str | None = None) -> DagRNN | CellRNN:
    """Load a layer from a state dict, with the cell and sizes that it names.

    Args:
        path: a state dict, or a dictionary that contains one, written by `torch.save` or as safetensors.
        name: the name of the layer, if the model has several.

    Raises:
        WenetError: the file does not exist, holds more than tensors or no layer, holds several layers and none is
            named, or names no cell.
    """
    tensors = _read(path)
    name = _name(path, tensors, name)
    prefix = f"{name}." if name else ""
    names = (each.removeprefix(prefix) for each in tensors if each.startswith(prefix))
    weights = {each: tensors[prefix + each] for each in names if OWN_NAME.fullmatch(each)}
    if "_extra_state" not in weights:
        raise WenetError(
            f"the weights in {path} do not name their cell, as an earlier version saved them; load them "
            "into a layer of that cell and save its state dict again"
        )
    kind = "DagRNN" if "weight_nodes" in weights else "CellRNN"
    try:
        layer = _layer(weights)
        layer.load_state_dict(weights)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise WenetError(f"the weights in {path} are not those of a whole {kind}: {reason}") from None
    return layer


def _read(path: Path) -> dict[str, Tensor]:
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    except OSError as error:
        raise WenetError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception:  # the readers raise errors of many kinds
        raise WenetError(f"{path} is not a file of plain tensors; save model.state_dict(), not the model") from None
    return dict(_flat(content))


def _unpickled(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _flat(content: object, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a nested dictionary, with names joined by dots."""
    if isinstance(content, Mapping):
        for name, value in content.items():
            yield from _flat(value, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(content, Tensor):
        yield prefix, content


def _name(path: Path, tensors: Mapping[str, Tensor], name: str | None) -> str:
    """The name of the only layer, or of the requested one."""
    found = [each.rpartition(".")[0] for each in tensors if _is_of_a_layer(each, tensors)]
    if name is not None and name not in found:
        raise WenetError(f"{path} has no layer {name!r}; it has {', '.join(found) or 'none'}")
    if not found:
        raise WenetError(f"{path} holds no weights of a DagRNN or CellRNN")
    if name is None and len(found) > 1:
        raise WenetError(f"{path} holds the layers {', '.join(found)}; name one with --layer")
    return found[0] if name is None else name


def _is_of_a_layer(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a tensor is one that every layer of a kind has once: of a DagRNN its nodes, of a CellRNN its label."""
    owner, dot, last = name.rpartition(".")
    others = {f"{owner}{dot}{other}" for other in ("weight_input", "weight_nodes")}
    return last == "weight_nodes" or (last == "_extra_state" and others & set(tensors) == {f"{owner}{dot}weight_input"})


def _layer(weights: Mapping[str, Tensor]) -> DagRNN | CellRNN:
    """Build the layer that these weights fit."""
    description = Description.from_tensor(weights["_extra_state"])
    suffixes = [match for match in map(OWN_NAME.fullmatch, weights) if match]
    layers = 1 + max(int(match[1] or 0) for match in suffixes)
    bidirectional = any(match[2] for match in suffixes)
    if description.form == "program":
        _, input_size, hidden_size = weights["weight_input"].shape
        return CellRNN(
            input_size,
            hidden_size,
            Program.from_text(description.cells),
            num_layers=layers,
            bidirectional=bidirectional,
            dtype=weights["weight_input"].dtype,
        )
    if weights["weight_nodes"].dim() != 3:
        cells = len(description.cells.split(";"))
        raise WenetError(f"these are the weights of {cells} cells side by side; only a single one is exported")
    return DagRNN(
        weights["weight_input"].shape[0],
        weights["weight_hidden"].shape[0],
        Genotype.from_text(description.cells),
        form=description.form,
        num_layers=layers,
        bias="bias_input" in weights,
        bidirectional=bidirectional,
        dtype=weights["weight_input"].dtype,
    )
