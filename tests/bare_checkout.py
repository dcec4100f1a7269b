"""Processes as on a machine with a checkout of this repository, PyTorch and little else."""

from __future__ import annotations

import os
from pathlib import Path

HIDE = """
import importlib.abc
import importlib.metadata
import sys


class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in ("platformdirs", "wenet_kernels._native"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def from_name(name, real=importlib.metadata.Distribution.from_name):
    if name == "wenet-rnn":
        raise importlib.metadata.PackageNotFoundError(name)
    return real(name)


sys.meta_path.insert(0, Hidden())
importlib.metadata.Distribution.from_name = from_name
"""


def bare_environment(folder: Path) -> dict[str, str]:
    """The environment of a process, and of those that it starts, where neither platformdirs nor this package nor its
    native module is installed."""
    (folder / "sitecustomize.py").write_text(HIDE)
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**inherited, "PYTHONPATH": str(folder)}
