"""Published recurrent cells by name."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wenet.cells.genotype import Genotype
from wenet.cells.space import random_genotypes
from wenet.files import WRITTEN_AGAIN
from wenet_kernels import Program, WenetError, activation_names, did_you_mean

# Liu et al., DARTS: Differentiable Architecture Search, 2019: first and second order.
DARTS_V1 = Genotype.from_text("relu0 relu1 tanh2 relu3 relu4 identity1 relu5 relu1")
DARTS_V2 = Genotype.from_text("sigmoid0 relu1 relu1 identity1 tanh2 sigmoid5 tanh3 relu5")
# Pham et al., Efficient Neural Architecture Search via Parameter Sharing, 2018: the cell as listed by DARTS, and
# the one in the authors' later release for language models.
ENAS = Genotype.from_text("tanh0 tanh1 relu1 tanh3 tanh3 relu3 relu4 relu7 relu8 relu8 relu8 mean 2,5,6,9,10,11")
ENAS_LM = Genotype.from_text("sigmoid0 tanh1 relu2 sigmoid2 tanh4 tanh5 sigmoid3 sigmoid6")
# Luo et al., Neural Architecture Optimization, 2018: without and with weight sharing.
NAONET = Genotype.from_text("relu0 relu0 relu1 tanh3 relu4 relu4 relu5 relu1 relu7 relu1 identity1")
NAONET_WS = Genotype.from_text("relu0 relu1 sigmoid2 sigmoid1 relu4 relu4 relu4 relu7 sigmoid8 tanh1 relu4")
# Zilly et al., Recurrent Highway Networks, 2017: ten layers a step, gates coupled; here without biases.
RHN = Genotype([("tanh", layer) for layer in range(9)], concat=[9])

PUBLISHED: dict[str, tuple[Genotype, str]] = {
    "darts-v1": (DARTS_V1, "Liu et al. 2019, first order"),
    "darts-v2": (DARTS_V2, "Liu et al. 2019, second order"),
    "enas": (ENAS, "Pham et al. 2018, as listed by DARTS"),
    "enas-lm": (ENAS_LM, "Pham et al. 2018, later release"),
    "naonet": (NAONET, "Luo et al. 2018"),
    "naonet-ws": (NAONET_WS, "Luo et al. 2018, with weight sharing"),
    "rhn": (RHN, "Zilly et al. 2017, ten layers a step"),
}

CELLS = r"[a-z]+\d+[a-z\d, ;]*"  # cells as text, separated by ";"
RANDOM_NODES = 8  # of a "random:SEED" cell, as in the paper's search


def load_genotype(source: Genotype | str | Path, besides: Sequence[str] = ()) -> Genotype:
    """Load a cell by published name, "random:SEED" (8 nodes), JSON file, run folder, or text such as "tanh0 relu1".

    A `Genotype` is returned unchanged.

    Args:
        besides: further names that the caller accepts, for the "did you mean" of the error.

    Raises:
        WenetError: the source does not exist, or holds no valid cell.

    Examples:
        >>> from wenet.genotypes import load_genotype
        >>> load_genotype("darts-v2").nodes
        8
        >>> print(load_genotype("tanh0 relu1 mean 2"))
        tanh0 relu1 mean 2
    """
    if isinstance(source, Genotype):
        return source
    if isinstance(source, Program):
        raise _not_of_programs("the cell is a program")
    if not isinstance(source, str | Path):
        raise WenetError(f"a cell must be a Genotype, or a name such as 'darts-v2', not {source!r}")
    source = str(source)
    if source in PUBLISHED:
        return PUBLISHED[source][0]
    if re.fullmatch(r"random:\d+", source):
        return random_genotypes(1, RANDOM_NODES, int(source.removeprefix("random:")))[0]
    if os.path.isdir(source):  # unlike those of Path, no error for a cell too long to be a file's name
        return _read_genotype(Path(source) / "best.json")
    if os.path.isfile(source):
        return _read_genotype(Path(source))
    if "|" in source:
        raise _not_of_programs("the cell is a program")
    if any(character.isdigit() for character in source) and "/" not in source and not source.endswith(".json"):
        try:
            return Genotype.from_text(source)
        except WenetError:
            if " " in source or re.sub(r"\d+$", "", source) in activation_names():
                raise
    names = [*PUBLISHED, *besides]
    mend = did_you_mean(source, names) or f"name a file, a run folder, random:SEED or one of {', '.join(names)}"
    raise WenetError(f"no cell {source!r}: {mend}")


def _not_of_programs(what: str) -> WenetError:
    return WenetError(f"{what}, and a DAG cell is needed; use wenet.nn.CellRNN, or layer(...) of a result")


def _read_genotype(path: Path) -> Genotype:
    mend = f"; {WRITTEN_AGAIN}" if path.name == "best.json" else ""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        mend = "a search that was begun there goes on with --resume"
        raise WenetError(f"{path} is missing, so there is no cell yet; {mend}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise WenetError(f"{path} holds no cell: {error}{mend}") from None
    value = value["genotype"] if isinstance(value, dict) and "genotype" in value else value
    if isinstance(value, dict) and "program" in value:
        raise _not_of_programs(f"{path} holds a program")
    try:
        return Genotype.from_dict(value)
    except WenetError as error:
        raise WenetError(f"{path}: {error}{mend}") from None


def load_genotypes(source: str) -> list[Genotype]:
    """Load cells from a file, or from text separated by ";".

    A file has one cell per line, in JSON or in any form that `load_genotype` takes, or is one JSON list of cells.

    Raises:
        WenetError: there are no cells, or an entry is no cell; the message gives its place.
    """
    is_file = os.path.isfile(source)
    if not is_file and not re.fullmatch(CELLS, source):
        raise WenetError(f"no file of cells {source!r}")
    try:
        entries = _entries(Path(source).read_text(encoding="utf-8")) if is_file else source.split(";")
    except (OSError, ValueError) as error:
        raise WenetError(f"{source} holds no cells: {error}") from None
    if not entries:
        raise WenetError(f"{source} holds no cells")
    genotypes = []
    for number, entry in enumerate(entries, start=1):
        try:
            genotypes.append(load_genotype(entry.strip()) if isinstance(entry, str) else Genotype.from_dict(entry))
        except WenetError as error:
            raise WenetError(f"{source}, cell {number}: {error}") from None
    return genotypes


def _entries(text: str) -> list[Any]:
    """The entries of a file of cells, as text or as parsed JSON."""
    if text.lstrip().startswith("["):
        return list(json.loads(text))
    lines = [line.strip() for line in text.splitlines()]
    return [json.loads(line) if line.startswith("{") else line for line in lines if line]
