"""Settings of a search: presets, a TOML file and flags, each overriding the one before."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wenet_kernels import FORMS, WenetError, check_choice


def _option(default: Any, text: str, **limits: Any) -> Any:
    """A setting with its help text; `limits` may hold metavar, choices, at_least, above and below."""
    return field(default=default, metadata={"help": text, **limits})


@dataclass(frozen=True)
class SearchConfig:
    """Everything that decides the result of a search. The defaults are the paper's (section 4.1) where it states them.

    Raises:
        WenetError: a value outside its range.
    """

    dataset: str = _option("sotu", "sotu, ptb, wikitext-2, or a folder with train/valid/test text")
    preset: str = _option("paper", "paper or quick; the default is paper with a GPU, quick without")
    max_vocabulary: int | None = _option(
        None, "keep the N most frequent words and read all others as <unk>", metavar="N", at_least=4
    )
    pool: int = _option(10_000, "networks to search in all", metavar="T", at_least=1)
    batch: int = _option(100, "new networks a round", metavar="B", at_least=1)
    seeds: int = _option(20, "networks kept from one round for the next", metavar="K", at_least=1)
    epochs_per_round: float = _option(2.0, "passes over the training text a round", metavar="F", above=0)
    hidden: int = _option(200, "size of embedding and hidden state", metavar="H", at_least=1)
    nodes: int = _option(8, "nodes of a cell", metavar="L", at_least=1)
    form: str = _option("highway", "highway (every node gated) or plain (eqs. 1-3 as printed)", choices=FORMS)
    norm: str = _option("batch", "batch (normalise every node) or none", choices=("batch", "none"))
    # Not in the paper. Adam's customary rate; for the mixing weights the one of DARTS's architecture weights.
    lr: float = _option(1e-3, "Adam's learning rate of the parameters", metavar="RATE", above=0)
    mix_lr: float = _option(3e-3, "Adam's learning rate of the mixing weights", metavar="RATE", above=0)
    weight_decay: float = _option(5e-7, "L2 penalty on the parameters", metavar="W", at_least=0)
    clip: float = _option(0.25, "largest global norm of a gradient", metavar="NORM", above=0)
    data_batch: int = _option(20, "text streams side by side in training", metavar="M", at_least=1)
    eval_batch: int = _option(10, "text streams side by side in validation", metavar="M", at_least=1)
    bptt: int = _option(35, "time steps of a training window", metavar="STEPS", at_least=1)
    dropout_embedding: float = _option(0.2, "on embedded words, locked over time", metavar="P", at_least=0, below=1)
    dropout_x: float = _option(0.75, "on the cell's input, locked over time", metavar="P", at_least=0, below=1)
    dropout_h: float = _option(0.25, "on every hidden product's input, locked", metavar="P", at_least=0, below=1)
    dropout_output: float = _option(0.75, "on the output, locked over time", metavar="P", at_least=0, below=1)
    # "Identical to those in" two papers that differ; these are the values of DARTS, on whose code the paper builds.
    activation_reg: float = _option(0.0, "penalty on the mean square of the output", metavar="W", at_least=0)
    temporal_activation_reg: float = _option(1e-3, "penalty on the output's change a step", metavar="W", at_least=0)
    # Not in the paper. Fresh gives a seed no head start over the new networks of its round.
    seed_parameters: str = _option(
        "fresh", "whether a seed network starts its next round fresh or keeps its parameters", choices=("fresh", "keep")
    )
    init_range: float = _option(0.04, "weights start as U(-R, R)", metavar="R", above=0)
    seed: int = _option(1, "of the pool, the initial weights and the dropouts", at_least=0)
    backend: str = _option("auto", "auto, or a name that this machine has ready")
    device: str = _option("auto", "auto, cpu, cuda or cuda:N")
    precision: str = _option(
        "fp32",
        "of parameters and products; bf16 rounds the factors of the recurrence's products alone",
        choices=("fp32", "fp64", "bf16"),
    )

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            _check(option, getattr(self, option.name))
        if self.norm == "batch" and self.data_batch < 2:
            raise WenetError("--data-batch must be at least 2 with --norm batch, which compares the rows of a batch")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def product_precision(self) -> str:
        """As `wenet_kernels.dag_rnn` calls it."""
        return "bf16" if self.precision == "bf16" else "full"

    @property
    def rounds(self) -> int:
        return -(-self.pool // self.batch)

    @property
    def networks(self) -> int:
        """The most networks that train together."""
        return min(self.batch, self.pool) + (self.seeds if self.rounds > 1 else 0)


# What `quick` changes: a search of some minutes on two processor cores.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "quick": {
        "pool": 64,
        "batch": 16,
        "seeds": 4,
        "epochs_per_round": 0.12,
        "hidden": 64,
        "eval_batch": 64,
        "lr": 3e-3,
        "mix_lr": 1e-2,
    },
}


def flag(name: str) -> str:
    """The command-line spelling of a setting."""
    return "--" + name.replace("_", "-")


def resolve_config(preset: str, *layers: Mapping[str, Any]) -> SearchConfig:
    """A preset, overridden by each layer in turn.

    Raises:
        WenetError: an unknown preset or setting, or a value of the wrong type or outside its range.
    """
    check_choice("preset", preset, PRESETS)
    known = {option.name for option in dataclasses.fields(SearchConfig)}
    values: dict[str, Any] = {**PRESETS[preset]}
    for layer in layers:
        for name, value in layer.items():
            check_choice("setting", name, known)
            values[name] = value
    return SearchConfig(**{**values, "preset": preset})


def read_config_file(path: Path) -> dict[str, Any]:
    """Settings from a TOML file, named as the flags are, with hyphens or underscores.

    Raises:
        WenetError: no such file, or no TOML.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WenetError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise WenetError(f"{path} is not valid TOML: {error}") from None
    return {name.replace("-", "_"): value for name, value in values.items()}


def value_type(option: dataclasses.Field[Any]) -> type[int] | type[float] | type[str]:
    """The type of a setting, from its annotation; None is allowed besides where the annotation says so."""
    return {"int": int, "float": float, "str": str}[str(option.type).removesuffix(" | None")]


def _check(option: dataclasses.Field[Any], value: Any) -> None:
    name, limits = flag(option.name), option.metadata
    if value is None and str(option.type).endswith("None"):
        return
    kind = value_type(option)
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or isinstance(value, bool):
        raise WenetError(f"{name} must be {'a number' if kind is float else kind.__name__}, not {value!r}")
    if "choices" in limits:
        check_choice(name, value, limits["choices"])
    if isinstance(value, float) and not math.isfinite(value):
        raise WenetError(f"{name} must be finite, not {value}")
    if "at_least" in limits and value < limits["at_least"]:
        raise WenetError(f"{name} must be at least {limits['at_least']}, not {value}")
    if "above" in limits and value <= limits["above"]:
        raise WenetError(f"{name} must be above {limits['above']}, not {value}")
    if "below" in limits and value >= limits["below"]:
        raise WenetError(f"{name} must be below {limits['below']}, not {value}")
