"""The parts of every run: settings, machine, folder, console, checkpoints, and requests to stop."""

from wenet.run.console import Console
from wenet.run.folder import NEW_RUN, RunFolder, read_tensors, write_tensors
from wenet.run.interrupt import Interrupt, Stopped, wait_until
from wenet.run.machine import (
    default_preset,
    explaining_out_of_memory,
    peak_memory,
    pytorch_products_in,
    resolve_machine,
)
from wenet.run.session import (
    Session,
    Surroundings,
    Work,
    as_path,
    run_settings,
    stored_baseline,
    stored_config,
    stored_data,
    stored_kind,
)
from wenet.run.settings import DTYPES, TEXT_SETTINGS, Config, Group, as_flag, flag, read_config_file, value_type

__all__ = [
    "DTYPES",
    "NEW_RUN",
    "TEXT_SETTINGS",
    "Config",
    "Console",
    "Group",
    "Interrupt",
    "RunFolder",
    "Session",
    "Stopped",
    "Surroundings",
    "Work",
    "as_flag",
    "as_path",
    "default_preset",
    "explaining_out_of_memory",
    "flag",
    "peak_memory",
    "pytorch_products_in",
    "read_config_file",
    "read_tensors",
    "resolve_machine",
    "run_settings",
    "stored_baseline",
    "stored_config",
    "stored_data",
    "stored_kind",
    "value_type",
    "wait_until",
    "write_tensors",
]
