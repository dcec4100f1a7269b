"""Every kernel compiled for a GPU that need not be there, and what the kernels are planned to take."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from wenet_kernels import WenetError, aot
from wenet_kernels.machine_code import (
    Counts,
    Instruction,
    count,
    count_unfenced,
    find_loops,
    main_loop,
    read_listing,
)
from wenet_kernels.triton.memory import count_memory
from wenet_kernels.triton.plan import Machine, Shape, choose_tiling

PAPER = Shape(120, 20, 200, 8, "highway", "batch", "bf16", weighted=True, masked=True, keep=True)


PAGE = Path(__file__).parents[2] / "docs" / "measurements" / "gpu-kernels.md"


@pytest.mark.parametrize(
    ("settings", "first"), [(aot.MAIN, "`step_forward` keep init last"), (aot.PROGRAMS, "`run_forward`")]
)
def test_main_kernels_keep_their_ceilings_and_are_in_the_documentation(settings, first):
    """Without spills, fenced, with wide copies and products; the figures are of the pinned version of Triton."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "wenet_kernels.aot", "--arch", "sm_90", "--setting", *settings]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| sm_90")]
    assert f"| {first} |" in rows[0]
    if f"Triton {done.stdout.split()[1]}" in PAGE.read_text(encoding="utf-8"):
        missing = [row for row in rows if row not in PAGE.read_text(encoding="utf-8")]
        assert not missing, f"put the output of `python {' '.join(command[1:])}` into {PAGE}"


@pytest.fixture
def without_compiling(monkeypatch):
    """The command with one launch a setting, whose figures are the result of `_of_cubin`."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # so that what the command does to it is undone
    launch = aot.Launch(SimpleNamespace(fn=main_kernel), (1,), (), {"num_warps": 4})
    monkeypatch.setattr(aot, "launches", lambda setting, arch: iter([launch]))
    monkeypatch.setattr(aot, "compile_launch", lambda launch, arch: aot._of_cubin(b"cubin", shared=0))


def main_kernel():
    pass


def listing(*names):
    """What `cuobjdump` prints of a kernel without spills that has these instructions."""
    lines = [f"        /*{16 * i:04x}*/    @P1 {name} ;   /* 0x40200010 */" for i, name in enumerate(names)]
    return "\n".join(["REG:32 STACK:0", *lines])


@pytest.mark.parametrize(
    ("names", "counts"),
    [
        ("LDGSTS DEPBAR FENCE HGMMA HGMMA", (2, 0)),
        ("LDGSTS DEPBAR HGMMA FENCE HGMMA", (2, 1)),
        ("DEPBAR FENCE HGMMA DEPBAR UTCHMMA", (2, 1)),
        ("FENCE STS HGMMA", (1, 1)),
        ("FENCE STSM FENCE HGMMA", (1, 0)),
        ("DEPBAR HMMA FFMA", (0, 0)),
    ],
)
def test_products_of_what_was_copied_need_a_fence(names, counts):
    found = read_listing(listing(*(name.replace("FENCE", "FENCE.VIEW.ASYNC.S") for name in names.split())))
    assert (count(found).wide_products, count_unfenced(found)) == counts


def test_loops_are_what_lies_between_a_branch_back_and_its_target():
    names = ("LDG.E.128", "MOV", "LDGSTS.E.64", "BRA 0x20", "BAR.SYNC", "STL.64", "BRA 0x10", "BRA 0x70", "EXIT")
    whole = find_loops(read_listing(listing(*names)))
    loop = main_loop(whole)
    assert [each.name for each in whole.own] == ["LDG.E.128", "BRA", "EXIT"]
    assert [each.name for each in loop.own] == ["MOV", "BAR.SYNC", "STL.64", "BRA"]
    assert [each.name for each in loop.loops[0].own] == ["LDGSTS.E.64", "BRA"]
    assert count(loop.all) == Counts(6, 1, {8: 1}, 0, 0, 0, 1)


def test_the_waits_of_an_instruction_are_in_its_control_bits():
    lines = [
        "        /*0b80*/  HGMMA.64x32x16.F32 R40, gdesc[UR16] ;  /* 0x00600000 */",
        f"  /* 0x{1 << 52 | 3 << 49 | 1 << 46 | 5 << 41:016x} */",
    ]
    (found,) = read_listing("\n".join(lines))
    assert found == Instruction(0xB80, "HGMMA.64x32x16.F32", "R40, gdesc[UR16]", 5, 1, 3, (0,))


def test_versions_are_compared_by_their_numbers():
    workspace = pytest.importorskip("wenet_kernels.triton.workspace")
    assert workspace._version("3.10.0") > workspace.FENCED_SINCE > workspace._version("3.7.0+git1a2b")


@pytest.mark.parametrize(("arch", "fence", "stages"), [("sm_80", False, 4), ("sm_90", True, 4), ("sm_100", False, 1)])
def test_an_older_triton_gets_a_fence_or_copies_nothing_ahead(arch, fence, stages, monkeypatch):
    """Before 3.7.1 Triton leaves the fence out; only for Hopper can it compile one of ours."""
    monkeypatch.setattr(sys.modules["triton"], "__version__", "3.6.0")
    for setting in aot.MAIN:
        found = [launch.options for launch in aot.launches(aot.SETTINGS[setting], arch) if "DEPTH" in launch.options]
        assert {options["FENCE"] for options in found} == {fence}
        assert {options["num_stages"] for options in found} == {stages}


@pytest.mark.parametrize(
    ("printed", "setting", "code"),
    [
        ("REG:32 STACK:0", "paper bf16", 0),
        ("REG:255 STACK:8", "paper bf16", 1),
        ("REG:255 STACK:8", "paper full", 0),
        (listing("DEPBAR.LE", "BAR.SYNC", "FENCE.VIEW.ASYNC.S", "HGMMA.64x16x16.F32.BF16"), "paper full", 0),
        (listing("DEPBAR.LE", "BAR.SYNC", "HGMMA.64x16x16.F32.BF16"), "paper full", 1),
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
    prefetch = {"sm_90": "bulk", "gfx942": "none"}[arch]
    assert {options.get("PREFETCH", prefetch) for options in found} == {prefetch}


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
