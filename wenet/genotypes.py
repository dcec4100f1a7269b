"""Published recurrent cells by name."""

from __future__ import annotations

import json
import re
from pathlib import Path

from wenet.genotype import Genotype, random_genotypes
from wenet_kernels import ACTIVATIONS, WenetError

# Liu et al., DARTS: Differentiable Architecture Search, 2019: first and second order.
DARTS_V1 = Genotype.from_text("relu0 relu1 tanh2 relu3 relu4 identity1 relu5 relu1")
DARTS_V2 = Genotype.from_text("sigmoid0 relu1 relu1 identity1 tanh2 sigmoid5 tanh3 relu5")
# Pham et al., Efficient Neural Architecture Search via Parameter Sharing, 2018: as DARTS lists it, and as its authors'
# later release for language models has it.
ENAS = Genotype.from_text("tanh0 tanh1 relu1 tanh3 tanh3 relu3 relu4 relu7 relu8 relu8 relu8 mean 2,5,6,9,10,11")
ENAS_LM = Genotype.from_text("sigmoid0 tanh1 relu2 sigmoid2 tanh4 tanh5 sigmoid3 sigmoid6")
# Luo et al., Neural Architecture Optimization, 2018: without and with weight sharing.
NAONET = Genotype.from_text("relu0 relu0 relu1 tanh3 relu4 relu4 relu5 relu1 relu7 relu1 identity1")
NAONET_WS = Genotype.from_text("relu0 relu1 sigmoid2 sigmoid1 relu4 relu4 relu4 relu7 sigmoid8 tanh1 relu4")
# Zilly et al., Recurrent Highway Networks, 2017: ten layers a step, gates coupled; here without its biases.
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

RANDOM_NODES = 8  # of a cell asked for as "random:SEED", as many as the searched cells of the paper have


def load_genotype(source: str) -> Genotype:
    """A cell by published name, "random:SEED" (8 nodes), JSON file, run folder, or text such as "tanh0 relu1".

    Raises:
        WenetError: nothing of the kind is there, or it holds no valid cell.
    """
    if source in PUBLISHED:
        return PUBLISHED[source][0]
    if re.fullmatch(r"random:\d+", source):
        return random_genotypes(1, RANDOM_NODES, int(source.removeprefix("random:")))[0]
    path = Path(source)
    if path.is_dir():
        return _read_genotype(path / "best.json")
    if path.is_file():
        return _read_genotype(path)
    if any(character.isdigit() for character in source) and "/" not in source and not source.endswith(".json"):
        try:
            return Genotype.from_text(source)
        except WenetError:
            if " " in source or re.sub(r"\d+$", "", source) in ACTIVATIONS:
                raise
    raise WenetError(f"no cell {source!r}: name a file, a run folder, random:SEED or one of {', '.join(PUBLISHED)}")


def _read_genotype(path: Path) -> Genotype:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WenetError(f"{path} is missing; has the search finished its first round?") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise WenetError(f"{path} holds no cell: {error}") from None
    try:
        return Genotype.from_dict(value["genotype"] if isinstance(value, dict) and "genotype" in value else value)
    except WenetError as error:
        raise WenetError(f"{path}: {error}") from None
