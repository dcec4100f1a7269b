"""Settings of a search or of training: presets, a TOML file and flags, each overriding the one before."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from wenet.genotype import Genotype, check_activations
from wenet.genotypes import load_genotypes
from wenet_kernels import ACTIVATIONS, FORMS, WenetError, check_choice

LSTMS = ("lstm", "lstm-skip")  # what can be trained though it is no cell of the search space
SOFTMAXES = ("tied", "mos")
WINDOWS = ("fixed", "darts", "merity")  # how long the windows of a search are
# By name: the precision of the products in `wenet_kernels.dag_rnn`. Parameters are fp32, or with fp64 double too.
PRECISIONS = {"fp32": "full", "tf32": "tf32", "bf16": "bf16", "fp64": "full"}
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}  # of parameters


def _option(default: Any, text: str, **limits: Any) -> Any:
    """A setting with its help text; `limits` may hold metavar, choices, at_least, above and below."""
    return field(default=default, metadata={"help": text, **limits})


@dataclass(frozen=True)
class Config:
    """Settings that check themselves; the fields of a subclass are flags, keys of a TOML file and arguments.

    Raises:
        WenetError: a value of the wrong type or outside its range.
    """

    dataset: str = _option("sotu", "sotu, ptb, wikitext-2, or a folder with train/valid/test text")
    preset: str = _option("paper", "paper or quick; the default is paper with a GPU, quick without")
    max_vocabulary: int | None = _option(
        None, "keep the N most frequent words and read all others as <unk>", metavar="N", at_least=4
    )
    backend: str = _option("auto", "auto, or a name that this machine has ready")
    device: str = _option("auto", "auto, cpu, cuda or cuda:N")
    precision: str = _option(
        "auto",
        "of products: auto (bf16 on a GPU that has it, else fp32), fp32, tf32 or bf16; or fp64, of everything",
        choices=("auto", *PRECISIONS),
    )

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            _check(option, getattr(self, option.name))

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def activation_names(self) -> tuple[str, ...]:
        """Those that the settings themselves say cells will have."""
        return ()


@dataclass(frozen=True)
class SearchConfig(Config):
    """Everything that decides the result of a search. The defaults are the paper's (section 4.1) where it states them.

    Raises:
        WenetError: a value outside its range.
    """

    pool: int = _option(10_000, "networks to search in all", metavar="T", at_least=1)
    batch: int = _option(100, "new networks a round", metavar="B", at_least=1)
    seeds: int = _option(20, "networks kept from one round for the next", metavar="K", at_least=1)
    epochs_per_round: float = _option(2.0, "passes over the training text a round", metavar="F", above=0)
    hidden: int = _option(200, "size of embedding and hidden state", metavar="H", at_least=1)
    nodes: int = _option(8, "nodes of a cell", metavar="L", at_least=1)
    activations: str = _option(",".join(ACTIVATIONS), "that the nodes are drawn from", metavar="NAME,NAME...")
    init_seeds: str | None = _option(
        None, "known cells, a line each or a JSON list, that compete in the first round as seeds", metavar="FILE"
    )
    form: str = _option("highway", "highway (every node gated) or plain (eqs. 1-3 as printed)", choices=FORMS)
    norm: str = _option("batch", "batch (normalise every node) or none", choices=("batch", "none"))
    # Not in the paper. Adam's customary rate; for the mixing weights the one of DARTS's architecture weights.
    lr: float = _option(1e-3, "Adam's learning rate of the parameters", metavar="RATE", above=0)
    mix_lr: float = _option(3e-3, "Adam's learning rate of the mixing weights", metavar="RATE", above=0)
    weight_decay: float = _option(5e-7, "L2 penalty on the parameters", metavar="W", at_least=0)
    clip: float = _option(0.25, "largest global norm of a gradient", metavar="NORM", above=0)
    data_batch: int = _option(20, "text streams side by side in training", metavar="M", at_least=1)
    eval_batch: int = _option(
        10, "text streams side by side in validation; with --norm batch --data-batch", metavar="M", at_least=1
    )
    bptt: int = _option(35, "time steps of a training window", metavar="STEPS", at_least=1)
    dropout_embedding: float = _option(0.2, "on embedded words, locked over time", metavar="P", at_least=0, below=1)
    dropout_x: float = _option(0.75, "on the cell's input, locked over time", metavar="P", at_least=0, below=1)
    dropout_h: float = _option(0.25, "on every hidden product's input, locked", metavar="P", at_least=0, below=1)
    dropout_output: float = _option(0.75, "on the output, locked over time", metavar="P", at_least=0, below=1)
    # The paper: "identical to those in" Merity et al. and Yang et al., who agree: 2, 1, 0.1, windows drawn.
    # Here they are those of the search code of DARTS, on which the paper's is built: 0, 0.001, 0 and windows of --bptt
    # steps. With Adam, whose rates the paper leaves open, neither was measured against the other.
    activation_reg: float = _option(0.0, "penalty on the mean square of the output", metavar="W", at_least=0)
    temporal_activation_reg: float = _option(1e-3, "penalty on the output's change a step", metavar="W", at_least=0)
    dropout_word: float = _option(0.0, "on whole words of the vocabulary", metavar="P", at_least=0, below=1)
    windows: str = _option(
        "fixed",
        "length of a search's windows: fixed (--bptt), darts (one in twenty is half as long) or merity (drawn around "
        "these); the rates go with it",
        choices=WINDOWS,
    )
    # Departures from the paper, none of them by default.
    cell_weights: str = _option(
        "own",
        "own (of every network) or shared (all networks have the same weights for the node of the same number)",
        choices=("own", "shared"),
    )
    score: str = _option(
        "weight",
        "what ranks the networks of a round: weight (in the mixture) or held-out (validation loss of its own output)",
        choices=("weight", "held-out"),
    )
    mix_dropout: float = _option(0.0, "on whole networks of the mixture", metavar="P", at_least=0, below=1)
    init_range: float = _option(0.04, "weights start as U(-R, R)", metavar="R", above=0)
    strategy: str = _option(
        "wenet",
        "wenet, or random: successive halving of standalone training at the same number of network-steps",
        choices=("wenet", "random"),
    )
    runs: int = _option(1, "separate searches, their winners ranked by standalone training", metavar="R", at_least=1)
    audit: int = _option(
        0,
        "train N of the cells standalone after the search, the kept and some of the rejected; also with --resume",
        metavar="N",
        at_least=0,
    )
    audit_epochs: float = _option(1.0, "passes over the training text of a standalone training", metavar="F", above=0)
    # Standalone cells are not normalised, and learn best at a lower rate than a batch of normalised ones.
    standalone_lr: float | None = _option(
        None, "Adam's learning rate of standalone training; by default that of --lr", metavar="RATE", above=0
    )
    seed: int = _option(1, "of the pool, the initial weights and the dropouts", at_least=0)
    pool_seed: int | None = _option(None, "of the pool alone, where it is to differ from --seed", at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_activations(self.activations.split(","))
        if self.init_seeds is not None:
            # The cells in place of the file: the file may be gone when the run goes on.
            object.__setattr__(self, "init_seeds", "; ".join(map(str, self._checked_seeds(self.init_seeds))))
            if self.strategy == "random":
                raise WenetError("--init-seeds is for --strategy wenet; the baseline draws its cells at random")
        if self.norm == "batch" and self.data_batch < 2:
            raise WenetError("--data-batch must be at least 2 with --norm batch, which compares the rows of a batch")
        if self.norm == "batch" and self.form == "plain":
            # At h = 0 eq. (1) gives s_0 = 0 for any input; what activations then make of that is alike in all rows.
            raise WenetError(
                "--form plain needs --norm none: its state starts at zero, and normalised over a batch it stays there"
            )
        if 0 < self.audit < self.seeds + 2:
            raise WenetError(f"--audit must be at least {self.seeds + 2}: the --seeds kept and two rejected cells")

    def _checked_seeds(self, source: str) -> list[Genotype]:
        seeds = load_genotypes(source)
        if len(seeds) > self.seeds:
            raise WenetError(f"--init-seeds has {len(seeds)} cells, more than the {self.seeds} that --seeds keeps")
        for number, seed in enumerate(seeds, start=1):
            if seed.nodes != self.nodes:
                raise WenetError(f"--init-seeds, cell {number}: {seed.nodes} nodes, but --nodes is {self.nodes}")
            if seed in seeds[: number - 1]:
                raise WenetError(f"--init-seeds, cell {number}: {seed} comes twice")
        return seeds

    @property
    def initial_cells(self) -> list[Genotype]:
        """The seeds of the first round."""
        return [] if self.init_seeds is None else load_genotypes(self.init_seeds)

    @property
    def activation_names(self) -> tuple[str, ...]:
        of_seeds = (name for genotype in self.initial_cells for name in genotype.activations)
        return tuple(dict.fromkeys([*self.activations.split(","), *of_seeds]))

    @property
    def rounds(self) -> int:
        return -(-self.pool // self.batch)

    @property
    def valid_rows(self) -> int:
        """Text streams side by side in the validation of a mixture: as many as in training where it is normalised over
        them, for the statistics of another number of rows would be others."""
        return self.data_batch if self.norm == "batch" else self.eval_batch

    @property
    def networks(self) -> int:
        """The most networks that train together."""
        return min(self.batch, self.pool) + (self.seeds if self.rounds > 1 else len(self.initial_cells))

    @property
    def fewest_networks(self) -> int:
        """The fewest that train together: in the first round there are no seeds yet, in the last few new ones."""
        if self.rounds == 1:
            return self.pool
        return min(self.batch, self.pool - (self.rounds - 1) * self.batch + min(self.seeds, self.batch))

    @property
    def standalone_networks(self) -> int:
        """The most that train together standalone: a rung of the baseline, the audit, the winners of several runs."""
        rung = self.batch if self.strategy == "random" else 0
        winners = self.runs if self.runs > 1 else 0
        return max(min(max(rung, self.audit), self.pool), winners)


AnyConfig = TypeVar("AnyConfig", bound=Config)

# Settings that are gone, for want of a measured benefit (docs/search-quality.md). Runs that began with the value here
# are what they were; no other value can be had. The last commit that had them is named.
REMOVED: dict[str, Any] = {"seed_parameters": "fresh", "mix_temperature": 1.0, "mix_norm": "none"}
LAST_WITH_REMOVED = "d4c45fd"

# What `quick` changes: a search of some minutes on two processor cores.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "quick": {
        "pool": 80,
        "batch": 16,
        "seeds": 4,
        "epochs_per_round": 0.4,
        "hidden": 64,
        "eval_batch": 64,
        # A round is a fifth of the paper's. With its dropouts and a rate of 3e-3 hardly anything was learned in one.
        "lr": 2e-2,
        "mix_lr": 1e-2,
        "init_range": 0.1,
        "dropout_embedding": 0.1,
        "dropout_x": 0.2,
        "dropout_h": 0.1,
        "dropout_output": 0.2,
        "audit_epochs": 0.25,
        "standalone_lr": 1e-2,
    },
}


@dataclass(frozen=True)
class TrainConfig(Config):
    """Everything that decides the result of training one cell. The defaults are the paper's (section 4.2).

    What the paper leaves out is as in the code of DARTS, on which it builds.

    Raises:
        WenetError: a value outside its range.
    """

    cell: str = _option(
        "darts-v2", "published name, lstm, lstm-skip, random:SEED, JSON file, run folder, or text such as 'tanh0 relu1'"
    )
    hidden: int = _option(850, "size of the hidden state", metavar="H", at_least=1)
    embedding: int | None = _option(
        None, "size of an embedded word; by default that of the hidden state", metavar="D", at_least=1
    )
    layers: int = _option(3, "layers of an lstm", metavar="N", at_least=1)
    last_hidden: int | None = _option(
        None, "size of the last layer of an lstm; by default that of the embedding", metavar="H", at_least=1
    )
    softmax: str = _option("tied", "tied (one, with the embedding's weights) or mos (a mixture)", choices=SOFTMAXES)
    experts: int = _option(15, "softmaxes of a mixture", metavar="K", at_least=1)
    dropout_latent: float = _option(
        0.29, "on the context of every expert of a mixture, locked", metavar="P", at_least=0, below=1
    )
    form: str = _option("highway", "highway (every node gated) or plain (eqs. 1-3 as printed)", choices=FORMS)
    epochs: int = _option(1600, "passes over the training text", metavar="N", at_least=1)
    lr: float = _option(20.0, "learning rate of a window of --bptt steps; in proportion for others", above=0)
    nonmonotone: int = _option(
        5, "average the weights once validation is worse than the best of all but the last N", metavar="N", at_least=1
    )
    weight_decay: float = _option(8e-7, "L2 penalty on the parameters", metavar="W", at_least=0)
    clip: float = _option(0.25, "largest global norm of a gradient", metavar="NORM", above=0)
    data_batch: int = _option(64, "text streams side by side in training", metavar="M", at_least=1)
    eval_batch: int = _option(10, "text streams side by side in validation", metavar="M", at_least=1)
    test_batch: int = _option(1, "text streams side by side in the test at the end", metavar="M", at_least=1)
    bptt: int = _option(35, "usual time steps of a training window; their number varies", metavar="STEPS", at_least=1)
    dropout_word: float = _option(0.1, "on whole words of the vocabulary", metavar="P", at_least=0, below=1)
    dropout_embedding: float = _option(0.2, "on embedded words, locked over time", metavar="P", at_least=0, below=1)
    dropout_x: float = _option(
        0.75,
        "on the cell's input, or between the layers of an lstm, locked over time",
        metavar="P",
        at_least=0,
        below=1,
    )
    dropout_h: float = _option(
        0.25,
        "on every hidden product's input, locked; on the hidden weights of an lstm",
        metavar="P",
        at_least=0,
        below=1,
    )
    dropout_output: float = _option(0.75, "on the output, locked over time", metavar="P", at_least=0, below=1)
    activation_reg: float = _option(0.0, "penalty on the mean square of the output", metavar="W", at_least=0)
    temporal_activation_reg: float = _option(1e-3, "penalty on the output's change a step", metavar="W", at_least=0)
    init_range: float = _option(0.04, "weights start as U(-R, R)", metavar="R", above=0)
    on_nan: str = _option(
        "stop", "where training diverges: stop, or rollback to the best epoch so far", choices=("stop", "rollback")
    )
    seed: int = _option(1, "of the initial weights, the window lengths and the dropouts", at_least=0)


TRAIN_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},  # completed below
    # Some minutes on two processor cores. A small model that sees the text a few times needs little regularisation.
    "quick": {
        "hidden": 128,
        "epochs": 5,
        "data_batch": 20,
        "eval_batch": 64,
        "test_batch": 64,
        "dropout_word": 0.0,
        "dropout_embedding": 0.1,
        "dropout_x": 0.1,
        "dropout_h": 0.1,
        "dropout_output": 0.2,
    },
}

# What the preset `paper` changes for a text (section 4.3), and for architectures that have settings of their own:
# Merity et al. 2017 for an LSTM, Yang et al. 2018 for one with a mixture of softmaxes. Melis et al. 2018 tuned theirs
# by a search of its own; here it takes the settings of the LSTM, at the published number of parameters.
PAPER_WIKITEXT_2: dict[str, Any] = {"hidden": 700, "dropout_h": 0.15, "weight_decay": 5e-7}
PAPER_RHN: dict[str, Any] = {"hidden": 830}
PAPER_LSTM: dict[str, Any] = {
    "hidden": 1150,
    "embedding": 400,
    "epochs": 500,
    "lr": 30.0,
    "weight_decay": 1.2e-6,
    "data_batch": 20,
    "bptt": 70,
    "dropout_embedding": 0.4,
    "dropout_x": 0.25,
    "dropout_h": 0.5,
    "dropout_output": 0.4,
    "activation_reg": 2.0,
    "temporal_activation_reg": 1.0,
    "init_range": 0.1,
}
PAPER_LSTM_WIKITEXT_2: dict[str, Any] = {"epochs": 750, "data_batch": 80, "dropout_x": 0.2, "dropout_embedding": 0.65}
PAPER_LSTM_SKIP: dict[str, Any] = {"hidden": 720, "embedding": 720, "layers": 4}
PAPER_LSTM_SKIP_WIKITEXT_2: dict[str, Any] = {"hidden": 490, "embedding": 490}
PAPER_LSTM_MOS: dict[str, Any] = {
    "hidden": 960,
    "embedding": 280,
    "last_hidden": 620,
    "epochs": 1000,
    "lr": 20.0,
    "data_batch": 12,
    "dropout_x": 0.225,
}
PAPER_LSTM_MOS_WIKITEXT_2: dict[str, Any] = {
    "hidden": 1150,
    "embedding": 300,
    "last_hidden": 650,
    "lr": 15.0,
    "data_batch": 15,
    "dropout_x": 0.2,
    "dropout_embedding": 0.55,
}


def _paper_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the preset `paper` is for the text and architecture asked for."""
    cell = given.get("cell", TrainConfig.cell)
    wikitext = given.get("dataset", TrainConfig.dataset) == "wikitext-2"
    if cell not in LSTMS:
        return {**(PAPER_WIKITEXT_2 if wikitext else {}), **(PAPER_RHN if cell == "rhn" else {})}
    settings = {**PAPER_LSTM, **(PAPER_LSTM_WIKITEXT_2 if wikitext else {})}
    if cell == "lstm-skip":
        settings |= {**PAPER_LSTM_SKIP, **(PAPER_LSTM_SKIP_WIKITEXT_2 if wikitext else {})}
    elif given.get("softmax") == "mos":
        settings |= {**PAPER_LSTM_MOS, **(PAPER_LSTM_MOS_WIKITEXT_2 if wikitext else {})}
    return settings


def flag(name: str) -> str:
    """The command-line spelling of a setting."""
    return "--" + name.replace("_", "-")


def resolve_config(preset: str, *layers: Mapping[str, Any]) -> SearchConfig:
    """Settings of a search: a preset, overridden by each layer in turn.

    Raises:
        WenetError: an unknown preset or setting, or a value of the wrong type or outside its range.
    """
    check_choice("preset", preset, PRESETS)
    return SearchConfig(**{**_overridden(SearchConfig, PRESETS[preset], *layers), "preset": preset})


def resolve_train_config(preset: str, *layers: Mapping[str, Any]) -> TrainConfig:
    """Settings of training: a preset, which depends on text and architecture, overridden by each layer in turn.

    Raises:
        WenetError: an unknown preset or setting, or a value of the wrong type or outside its range.
    """
    check_choice("preset", preset, TRAIN_PRESETS)
    given = _overridden(TrainConfig, *layers)
    base = _paper_settings(given) if preset == "paper" else TRAIN_PRESETS[preset]
    return TrainConfig(**{**base, **given, "preset": preset})


def _overridden(config_class: type[Config], *layers: Mapping[str, Any]) -> dict[str, Any]:
    """The layers as one, each setting from the last layer that has it."""
    known = {option.name for option in dataclasses.fields(config_class)}
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
