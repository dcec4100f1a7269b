"""Every kernel compiled for a GPU that need not be there, and what the kernels are planned to take."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from wenet_kernels.triton.memory import count_memory
from wenet_kernels.triton.plan import Machine, Shape, choose_tiling

PAPER = Shape(120, 20, 200, 8, "highway", "batch", "bf16", weighted=True, masked=True, keep=True)


def test_main_kernels_compile_without_spills():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "wenet_kernels.aot", "--arch", "sm_90", "--setting", "paper bf16"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "step_forward keep init" in done.stdout
    assert "step_backward head link tail" in done.stdout


def test_the_paper_shape_fits_into_16_gb():
    parameters = 120 * 10 * 200 * 400 * 4
    assert count_memory(PAPER, steps=35).total + 4 * parameters < 8e9


def test_few_networks_are_cut_into_many_programs():
    assert choose_tiling(PAPER, Machine()).fused
    one = Shape(1, 64, 850, 8, "highway", "none", "bf16", weighted=False, masked=True, keep=True)
    tiling = choose_tiling(one, Machine())
    assert not tiling.fused
    assert tiling.forward.blocks == 54
