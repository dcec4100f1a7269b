"""Every kernel compiled for a GPU that need not be there, and what the kernels are planned to take."""

import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from wenet_kernels import WenetError, aot
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


@pytest.fixture
def without_compiling(monkeypatch):
    """The command with one launch a setting, whose figures are the result of `_of_cubin`."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # so that what the command does to it is undone
    launch = aot.Launch(SimpleNamespace(fn=main_kernel), (), {"num_warps": 4})
    monkeypatch.setattr(aot, "launches", lambda setting, arch: iter([launch]))
    monkeypatch.setattr(aot, "compile_launch", lambda launch, arch: aot.Usage(*aot._of_cubin(b"cubin"), shared=0))


def main_kernel():
    pass


@pytest.mark.parametrize(
    ("printed", "setting", "code"),
    [
        ("REG:32 STACK:0", "paper bf16", 0),
        ("REG:255 STACK:8", "paper bf16", 1),
        ("REG:255 STACK:8", "paper full", 0),
        ("", "paper bf16", 1),
        (None, "large bf16", 1),
        (None, "paper full", 0),
    ],
)
def test_main_kernels_pass_only_by_figures(printed, setting, code, without_compiling, monkeypatch, capsys):
    """What `cuobjdump` prints decides; nothing printed, or no such tool (None), is not taken for no spill."""

    def run(*arguments, **options):
        if printed is None:
            raise FileNotFoundError
        return subprocess.CompletedProcess([], 0, printed, "")

    monkeypatch.setattr(subprocess, "run", run)
    assert aot.main(["--arch", "sm_90", "--setting", setting]) == code
    assert len(capsys.readouterr().err.splitlines()) == code


def test_the_paper_shape_fits_into_16_gb():
    parameters = 120 * 10 * 200 * 400 * 4
    assert count_memory(PAPER, steps=35).total + 4 * parameters < 8e9


@pytest.mark.parametrize(("arch", "precision"), [("sm_90", "tf32x3"), ("gfx942", "ieee")])
def test_full_precision_is_made_of_products_that_the_gpu_has(arch, precision):
    found = [launch.options for launch in aot.launches(aot.SETTINGS["paper full"], arch)]
    assert {options.get("INPUT_PRECISION", precision) for options in found} == {precision}
    assert {options.get("PREFETCH", arch == "sm_90") for options in found} == {arch == "sm_90"}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (dict(rows=513), "at most 512 rows"),
        (dict(networks=10_000), "at most 65535 nodes in all, not 10000 x 8"),
        (dict(networks=1, hidden=11_000), "at most 2147483647 weights, not 2178000000"),
    ],
)
def test_sizes_that_a_launch_cannot_count_are_errors(sizes, message):
    with pytest.raises(WenetError, match=message):
        choose_tiling(replace(PAPER, **sizes), Machine())
    choose_tiling(replace(PAPER, networks=1000, hidden=850, nodes=12), Machine())


def test_few_networks_are_cut_into_many_programs():
    assert choose_tiling(PAPER, Machine()).fused
    one = Shape(1, 64, 850, 8, "highway", "none", "bf16", weighted=False, masked=True, keep=True)
    tiling = choose_tiling(one, Machine())
    assert not tiling.fused
    assert tiling.forward.blocks == 54
