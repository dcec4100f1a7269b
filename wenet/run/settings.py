"""Settings of searches and trainings: a preset, a TOML file and flags, each overriding the one before."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from wenet.data import LEVELS
from wenet.tasks import TASKS
from wenet_kernels import WenetError, check_choice

# Type of the parameters, by the precision of products.
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}


MOST = 2**31 - 1  # of a setting that is a whole number

TEXT_SETTINGS = ("task", "dataset", "level", "max_vocabulary")  # the text of a run, and how it is read


class Group(StrEnum):
    """The group of a setting in `--help`; groups appear in this order."""

    FIRST = "common settings"
    MODEL = "text and model"
    NUMBERS = "sequences of numbers"
    CELLS = "the space of cells"
    MIXTURE = "strategy and mixture"
    RACE = "race and contest"
    STANDALONE = "standalone training and audit"
    OPTIMISATION = "optimisation"
    REGULARISATION = "regularisation"
    MACHINE = "machine"
    RUN = "the run"


def option(default: Any, text: str, group: Group, **limits: Any) -> Any:
    """A setting with its help text; `limits` may hold metavar, choices, at_least, at_most, above and below."""
    return field(default=default, metadata={"help": text, "group": group, **limits})


@dataclass(frozen=True)
class Config:
    """Settings that check themselves; each field is also a flag, a key in TOML files and a named argument.

    Raises:
        WenetError: a value has the wrong type or is out of range.
    """

    dataset: str = option(
        "sotu", "sotu, ptb, wikitext-2, a folder with train/valid/test text, or a file of sequences", Group.FIRST
    )
    task: str = option(
        "language",
        "language; or for sequences of numbers classify, regress, forecast or label",
        Group.FIRST,
    )
    preset: str = option("paper", "paper or quick; by default paper with a GPU, quick without", Group.FIRST)
    level: str = option("words", "read a text by words or by characters", Group.MODEL, choices=LEVELS)
    max_vocabulary: int | None = option(
        None,
        "keep the N most frequent words or characters, read all others as <unk>",
        Group.MODEL,
        metavar="N",
        at_least=4,
    )
    backend: str = option("auto", "auto, or the name of a backend that is ready on this machine", Group.MACHINE)
    device: str = option("auto", "auto, cpu, cuda or cuda:N", Group.MACHINE)
    precision: str = option(
        "auto",
        "of products: auto (bf16 on a GPU that has it, else fp32), fp32, tf32 or bf16; or fp64, of everything",
        Group.MACHINE,
        choices=("auto", *DTYPES),
    )

    def __post_init__(self) -> None:
        for setting in dataclasses.fields(self):
            if isinstance(value := getattr(self, setting.name), np.generic):
                object.__setattr__(self, setting.name, value.item())  # as of a grid of settings
            _check(setting, getattr(self, setting.name))
        check_choice("--task", self.task, TASKS)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def activation_names(self) -> tuple[str, ...]:
        """Activations that these settings allow."""
        return ()

    @property
    def has_programs(self) -> bool:
        """Whether the cells that these settings lead to are programs."""
        return False

    @property
    def compared_rows(self) -> int:
        """Rows of a data batch over which these settings normalise cells; 0 if they do not."""
        return 0

    @property
    def most_rows(self) -> int:
        """The most rows of a data batch."""
        return 1


AnyConfig = TypeVar("AnyConfig", bound=Config)


# Removed settings, which had no measured benefit (docs/search-quality.md), with the value that today's code follows.
# Old runs with this value can still be opened.
REMOVED: dict[str, Any] = {"seed_parameters": "fresh", "mix_temperature": 1.0, "mix_norm": "none"}

LAST_WITH_REMOVED = "d4c45fd"


def flag(name: str) -> str:
    """A setting's name on the command line."""
    return "--" + name.replace("_", "-")


@contextmanager
def lowering(name: str) -> Iterator[None]:
    """A context whose errors advise to lower a setting."""
    try:
        yield
    except WenetError as error:
        raise WenetError(f"{error}; lower {flag(name)}") from None


def as_flag(name: str, value: Any) -> list[str]:
    """A setting on the command line; one that is on or off is a flag of its own, with --no- where it is off."""
    if isinstance(value, bool):
        return [flag(name if value else f"no_{name}")]
    return [flag(name), str(value)]


def overridden(config_class: type[Config], *layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge layers of settings; later layers override earlier ones."""
    known = [option.name for option in dataclasses.fields(config_class)]
    values: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            if name in REMOVED:
                _check_removed(name, value)
                continue
            check_choice("setting", name, known)
            values[name] = value
    return values


def _check_removed(name: str, value: Any) -> None:
    if value != REMOVED[name]:
        raise WenetError(
            f"{flag(name)} was removed and is {REMOVED[name]!r} for good, not {value!r}; "
            f"the last commit that has it is {LAST_WITH_REMOVED}"
        )


def read_config_file(path: Path) -> dict[str, Any]:
    """Settings from a TOML file, named as the flags are, with hyphens or underscores.

    Raises:
        WenetError: there is no such file, or it is not TOML.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WenetError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # no TOML or UTF-8, an endless number, or brackets without end
        raise WenetError(f"{path} is not valid TOML: {error}") from None
    return {name.replace("-", "_"): value for name, value in values.items()}


def value_type(option: dataclasses.Field[Any]) -> type[int] | type[float] | type[str] | type[bool]:
    """The type of a setting, from its annotation; an optional one may also be None."""
    return {"int": int, "float": float, "str": str, "bool": bool}[str(option.type).removesuffix(" | None")]


def _check(option: dataclasses.Field[Any], value: Any) -> None:
    name, limits = flag(option.name), option.metadata
    if value is None and str(option.type).endswith("None"):
        return
    kind = value_type(option)
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or isinstance(value, bool) is not (kind is bool):
        wanted = {bool: "true or false", float: "a number", int: "a whole number", str: "text"}[kind]
        raise WenetError(f"{name} must be {wanted}, not {value!r}")
    if "choices" in limits:
        check_choice(name, value, limits["choices"])
    if isinstance(value, float) and not math.isfinite(value):
        raise WenetError(f"{name} must be finite, not {value}")
    if isinstance(value, int) and value > limits.get("at_most", MOST):
        raise WenetError(f"{name} must be at most {limits.get('at_most', MOST)}, not {value}")
    if "at_least" in limits and value < limits["at_least"]:
        raise WenetError(f"{name} must be at least {limits['at_least']}, not {value}")
    if "above" in limits and value <= limits["above"]:
        raise WenetError(f"{name} must be above {limits['above']}, not {value}")
    if "below" in limits and value >= limits["below"]:
        raise WenetError(f"{name} must be below {limits['below']}, not {value}")
