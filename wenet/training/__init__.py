"""Training: the loop itself, the paper's evaluation of one cell, and standalone training of many cells at once."""

from wenet.training.adaptive import Cache, Dynamic
from wenet.training.architectures import (
    LAYERS,
    Architecture,
    TooFewParameters,
    build_standalone,
    hidden_for,
    kind_in_words,
    kind_of,
    parameter_count,
)
from wenet.training.estimate import (
    Estimate,
    estimate_standalone,
    estimate_training,
    seconds_of_measured,
    seconds_per_measured,
    seconds_per_network,
    seconds_per_window,
    tamed,
    timed_step,
    windows_measured,
)
from wenet.training.held_out import SETTINGS, evaluate
from wenet.training.memory import INTERPRETER, network_weights, recurrence_bytes, standalone_memory
from wenet.training.nt_asgd import build_cell, trained_model
from wenet.training.outcome import Cost, Outcome, StandaloneResult
from wenet.training.plan import Origin, Plan
from wenet.training.settings import LSTMS, SOFTMAXES, TRAIN_PRESETS, TRAINS_TEXT, TrainConfig, resolve_train_config
from wenet.training.standalone import READING, networks_left, train_standalone, training_windows
from wenet.training.trainer import ModelTrainer, Progress, restore_random, restore_training
from wenet.training.work import TRAIN, TrainOutcome, run_training, unread_by_training

__all__ = [
    "INTERPRETER",
    "LAYERS",
    "LSTMS",
    "READING",
    "SETTINGS",
    "SOFTMAXES",
    "TRAIN",
    "TRAINS_TEXT",
    "TRAIN_PRESETS",
    "Architecture",
    "Cache",
    "Cost",
    "Dynamic",
    "Estimate",
    "ModelTrainer",
    "Origin",
    "Outcome",
    "Plan",
    "Progress",
    "StandaloneResult",
    "TooFewParameters",
    "TrainConfig",
    "TrainOutcome",
    "build_cell",
    "build_standalone",
    "estimate_standalone",
    "estimate_training",
    "evaluate",
    "hidden_for",
    "kind_in_words",
    "kind_of",
    "network_weights",
    "networks_left",
    "parameter_count",
    "recurrence_bytes",
    "resolve_train_config",
    "restore_random",
    "restore_training",
    "run_training",
    "seconds_of_measured",
    "seconds_per_measured",
    "seconds_per_network",
    "seconds_per_window",
    "standalone_memory",
    "tamed",
    "timed_step",
    "train_standalone",
    "trained_model",
    "training_windows",
    "unread_by_training",
    "windows_measured",
]
