"""Settings of training: those shared with searches, and those for training one cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wenet.run.settings import Config, Group, option, overridden
from wenet.tasks import TASKS
from wenet_kernels import FORMS, WenetError, check_choice

LSTMS = ("lstm", "lstm-skip")  # baselines that are not cells of the search space
SOFTMAXES = ("tied", "mos")
TRAINS_TEXT = "wenet-train reads text; the contest of wenet-search trains models of numbers"


def _dropout(default: float, text: str) -> Any:
    return option(default, text, Group.REGULARISATION, metavar="P", at_least=0, below=1)


@dataclass(frozen=True)
class LearningConfig(Config):
    """Settings shared by searches and the training of one cell; the defaults are those of a search."""

    hidden: int = option(200, "size of embedded words and of the hidden state", Group.FIRST, metavar="H", at_least=1)
    form: str = option(
        "highway", "highway (every node gated) or plain (eqs. 1-3 as printed)", Group.MODEL, choices=FORMS
    )
    # The paper leaves Adam's rate open; this is the customary one.
    lr: float = option(1e-3, "Adam's learning rate of the parameters", Group.OPTIMISATION, metavar="RATE", above=0)
    clip: float = option(0.25, "largest global norm of a gradient", Group.OPTIMISATION, metavar="NORM", above=0)
    data_batch: int = option(
        20,
        "text streams, or sequences of numbers, side by side in training",
        Group.OPTIMISATION,
        metavar="M",
        at_least=1,
    )
    eval_batch: int = option(
        10,
        "text streams, or sequences of numbers, side by side in validation",
        Group.OPTIMISATION,
        metavar="M",
        at_least=1,
    )
    bptt: int = option(35, "time steps of a training window", Group.OPTIMISATION, metavar="STEPS", at_least=1)
    init_range: float = option(0.04, "weights start as U(-R, R)", Group.OPTIMISATION, metavar="R", above=0)
    # The paper's bases start at zero. From frequencies on, a training need not learn first what is alike for all cells.
    decoder_bias: str = option(
        "zero",
        "initial bias of the decoder: zero, or frequencies (the logarithms of those in the training text)",
        Group.OPTIMISATION,
        choices=("zero", "frequencies"),
    )
    weight_decay: float = option(5e-7, "L2 penalty on the parameters", Group.REGULARISATION, metavar="W", at_least=0)
    dropout_word: float = _dropout(0.0, "dropout of whole words of the vocabulary")
    dropout_embedding: float = _dropout(0.2, "dropout of embedded words, the same at every step")
    dropout_x: float = _dropout(0.75, "dropout of the cell's input, the same at every step")
    dropout_h: float = _dropout(0.25, "dropout of every hidden product's input, the same at every step")
    dropout_output: float = _dropout(0.75, "dropout of the output, the same at every step")
    activation_reg: float = option(
        0.0, "penalty on the mean square of the output", Group.REGULARISATION, metavar="W", at_least=0
    )
    temporal_activation_reg: float = option(
        1e-3, "penalty on the output's change from step to step", Group.REGULARISATION, metavar="W", at_least=0
    )
    seed: int = option(
        1, "seed of everything random: cells, initial weights, window lengths, dropout", Group.FIRST, at_least=0
    )

    @property
    def most_rows(self) -> int:
        return max(self.data_batch, self.eval_batch)


def inherited(name: str, default: Any, text: str | None = None) -> Any:
    """Redefine a setting of `LearningConfig` with another default or help text."""
    metadata = LearningConfig.__dataclass_fields__[name].metadata
    return field(default=default, metadata=metadata if text is None else {**metadata, "help": text})


@dataclass(frozen=True)
class TrainConfig(LearningConfig):
    """All settings that affect the training of one cell. The defaults are the paper's (section 4.2).

    Settings that the paper leaves out follow the code of DARTS, on which it builds.

    Raises:
        WenetError: a value is out of range.
    """

    cell: str = option(
        "darts-v2",
        "published name, lstm, lstm-skip, random:SEED, JSON file, run folder, or text such as 'tanh0 relu1' or "
        "'h | tanh(linear(x, h))'; with -program behind it the name of a program",
        Group.FIRST,
    )
    hidden: int = inherited("hidden", 850, "size of the hidden state")
    epochs: int = option(1600, "passes over the training text", Group.FIRST, metavar="N", at_least=1)
    softmax: str = option(
        "tied", "tied (with the embedding's weights) or mos (a mixture of softmaxes)", Group.FIRST, choices=SOFTMAXES
    )
    embedding: int | None = option(
        None, "size of an embedded word; by default --hidden", Group.MODEL, metavar="D", at_least=1
    )
    layers: int = option(3, "layers of an lstm", Group.MODEL, metavar="N", at_least=1)
    last_hidden: int | None = option(
        None,
        "size of an lstm's last layer; by default that of the embedding",
        Group.MODEL,
        metavar="H",
        at_least=1,
    )
    experts: int = option(15, "softmaxes of the mixture mos", Group.MODEL, metavar="K", at_least=1)
    lr: float = inherited(
        "lr", 20.0, "learning rate for a window of --bptt steps; in proportion for longer and shorter ones"
    )
    nonmonotone: int = option(
        5,
        "average the weights once validation is worse than the best of all but the last N",
        Group.OPTIMISATION,
        metavar="N",
        at_least=1,
    )
    data_batch: int = inherited("data_batch", 64)
    test_batch: int = option(
        1, "text streams side by side in the test at the end", Group.OPTIMISATION, metavar="M", at_least=1
    )
    bptt: int = inherited("bptt", 35, "usual number of time steps of a training window, which varies")
    on_nan: str = option(
        "stop",
        "if training diverges: stop, or rollback to the best epoch so far",
        Group.OPTIMISATION,
        choices=("stop", "rollback"),
    )
    weight_decay: float = inherited("weight_decay", 8e-7)
    dropout_word: float = inherited("dropout_word", 0.1)
    dropout_x: float = inherited(
        "dropout_x", 0.75, "dropout of the cell's input, or between an lstm's layers, the same at every step"
    )
    dropout_h: float = inherited(
        "dropout_h", 0.25, "dropout of every hidden product's input, or of an lstm's hidden weights"
    )
    dropout_latent: float = _dropout(
        0.29, "dropout of every expert's context in the mixture mos, the same at every step"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if TASKS[self.task].reads != "text":
            raise WenetError(f"--task {self.task}: {TRAINS_TEXT}")

    @property
    def most_rows(self) -> int:
        return max(self.data_batch, self.eval_batch, self.test_batch)


TRAIN_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},  # completed below
    # A few minutes on two CPU cores. A small model that reads the text only a few times needs little regularisation.
    "quick": {
        "hidden": 128,
        "epochs": 5,
        "data_batch": 20,
        "eval_batch": 64,
        "test_batch": 64,
        "decoder_bias": "frequencies",
        "dropout_word": 0.0,
        "dropout_embedding": 0.1,
        "dropout_x": 0.1,
        "dropout_h": 0.1,
        "dropout_output": 0.2,
    },
}


# Changes of the preset `paper` for a text (section 4.3) and for architectures with settings of their own: Merity et al.
# 2017 for an LSTM, Yang et al. 2018 for an LSTM with a mixture of softmaxes. Melis et al. 2018 tuned their LSTM by a
# search; here it takes the settings of the other LSTM, at the published number of parameters.
PAPER_WIKITEXT_2: dict[str, Any] = {"hidden": 700, "dropout_h": 0.15, "weight_decay": 5e-7}


PAPER_RHN: dict[str, Any] = {"hidden": 830}


PAPER_NAS: dict[str, Any] = {"hidden": 975}  # 25M parameters on Penn Treebank, as in the paper's table


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
    """The preset `paper` for the text and architecture in the given settings."""
    cell = given.get("cell", TrainConfig.cell)
    wikitext = given.get("dataset", TrainConfig.dataset) == "wikitext-2"
    if cell not in LSTMS:
        of_cell = {"rhn": PAPER_RHN, "nas": PAPER_NAS}.get(cell, {})
        return {**(PAPER_WIKITEXT_2 if wikitext else {}), **of_cell}
    settings = {**PAPER_LSTM, **(PAPER_LSTM_WIKITEXT_2 if wikitext else {})}
    if cell == "lstm-skip":
        settings |= {**PAPER_LSTM_SKIP, **(PAPER_LSTM_SKIP_WIKITEXT_2 if wikitext else {})}
    elif given.get("softmax") == "mos":
        settings |= {**PAPER_LSTM_MOS, **(PAPER_LSTM_MOS_WIKITEXT_2 if wikitext else {})}
    return settings


def resolve_train_config(preset: str, *layers: Mapping[str, Any]) -> TrainConfig:
    """Resolve the settings of a training: a preset, which depends on text and architecture, then each layer in turn.

    Raises:
        WenetError: a preset or setting is unknown, or a value has the wrong type or is out of range.
    """
    check_choice("preset", preset, TRAIN_PRESETS)
    given = overridden(TrainConfig, *layers)
    base = _paper_settings(given) if preset == "paper" else TRAIN_PRESETS[preset]
    return TrainConfig(**{**base, **given, "preset": preset})
