"""Settings that must be in place before the first import of torch or Triton, and a build that is up to date."""

import os

import pytest

# Processes of several threads each that share the processor wait for one another, and take many times as long.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

# Without a GPU the Triton kernels run in their interpreter, which Triton has to know when it is first imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from wenet_kernels.native import IS_STALE, absence


def pytest_sessionstart():
    """Most tests of the native kernels would be left out without a word that anybody reads."""
    if IS_STALE:
        pytest.exit(f"native kernels: {absence()}", returncode=1)
