"""`python -m wenet_kernels.aot --arch sm_90`: compile all Triton kernels without a GPU, and see what they take."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# What a search at the paper's setting launches, and what training one large cell does.
PAPER = dict(networks=120, rows=20, hidden=200, nodes=8, form="highway", norm="batch", weighted=True, masked=True)
LARGE = dict(networks=1, rows=64, hidden=850, nodes=8, form="highway", norm="none", weighted=False, masked=True)
SETTINGS: dict[str, dict[str, Any]] = {
    "paper bf16": {**PAPER, "precision": "bf16"},
    "large bf16": {**LARGE, "precision": "bf16"},
    "paper tf32": {**PAPER, "precision": "tf32"},
    "paper full": {**PAPER, "precision": "full"},
    "paper plain bf16": {**PAPER, "form": "plain", "precision": "bf16"},
    "paper evaluation bf16": {**PAPER, "rows": 10, "norm": "running", "masked": False, "precision": "bf16"},
    "large full": {**LARGE, "precision": "full"},
}
MAIN = ("paper bf16", "large bf16")  # must not spill

# Of each architecture: multiprocessors and the shared memory that one program may have.
MACHINES = {
    "sm_80": (108, 166912),
    "sm_86": (84, 101376),
    "sm_89": (128, 101376),
    "sm_90": (132, 232448),
    "sm_100": (148, 232448),
    "gfx942": (304, 65536),
}
DTYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32"}


@dataclass(frozen=True)
class Launch:
    """A kernel with its operands, as the backend launches it."""

    kernel: Any
    operands: tuple[object, ...]
    options: dict[str, Any]

    @property
    def variant(self) -> str:
        """The options that tell launches of one kernel apart."""
        flags = ("KEEP", "INIT", "HEAD", "LINK", "TAIL", "WEIGHTED", "ADD")
        return " ".join(flag.lower() for flag in flags if self.options.get(flag))


@dataclass(frozen=True)
class Usage:
    """What a compiled kernel takes; None where no tool could tell."""

    registers: int | None
    spills: int | None  # bytes written and read back
    shared: int  # bytes


def launches(setting: dict[str, Any], arch: str) -> Iterator[Launch]:
    """Every launch of a short sequence, forward, backward and without gradients, each variant once."""
    from wenet_kernels.triton.plan import Machine, Shape
    from wenet_kernels.triton.workspace import Workspace

    recorded: list[Launch] = []

    class Recorder(Workspace):
        def _launch(self, kernel: Any, grid: tuple[int, ...], *operands: object, **options: object) -> None:
            recorded.append(Launch(kernel, operands, options))

    for keep in (True, False):
        shape = Shape(**setting, keep=keep)
        workspace = Recorder(shape, 2, torch.device("meta"), Machine(*MACHINES[arch]))
        workspace.prefetch = arch.startswith("sm_")
        workspace.forward(1)
        if keep:
            workspace.allocate_gradients()
            workspace.backward(1)
            workspace.weight_gradients(1, workspace.pre, workspace.pre)
    seen = set()
    for launch in recorded:
        key = launch.kernel.fn.__name__, tuple(launch.options.items())
        if key not in seen:
            seen.add(key)
            yield launch


def compile_launch(launch: Launch, arch: str) -> Usage:
    """Compile as Triton would at the launch, its operands aligned as they are."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    nvidia = arch.startswith("sm_")
    target = GPUTarget("cuda", int(arch[3:]), 32) if nvidia else GPUTarget("hip", arch, 64)
    parameters = launch.kernel.params
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[object]]] = {}
    for position, (parameter, operand) in enumerate(zip(parameters, launch.operands, strict=False)):
        plain = parameter.do_not_specialize
        if isinstance(operand, Tensor):
            signature[parameter.name] = DTYPES[operand.dtype]
            aligned = operand.storage_offset() * operand.itemsize % 16 == 0
        elif operand == 1 and not plain:
            signature[parameter.name], constants[parameter.name] = "constexpr", 1
            continue
        else:
            assert isinstance(operand, int)
            signature[parameter.name] = "i32" if abs(operand) < 2**31 else "i64"
            aligned = operand % 16 == 0 and not plain
        if aligned:
            attributes[(position,)] = [["tt.divisibility", 16]]
    for parameter in parameters[len(launch.operands) :]:
        signature[parameter.name], constants[parameter.name] = "constexpr", launch.options[parameter.name]
    settings = {name: value for name, value in launch.options.items() if name in ("num_warps", "num_stages")}
    settings["enable_fp_fusion"] = True
    source = ASTSource(launch.kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=target, options=settings)
    registers, spills = _of_cubin(compiled.asm["cubin"]) if nvidia else _of_amdgcn(compiled.asm["amdgcn"])
    return Usage(registers, spills, compiled.metadata.shared)


def _of_cubin(cubin: bytes) -> tuple[int | None, int | None]:
    """Registers and spilled bytes, as NVIDIA's `cuobjdump` reads them; it comes with Triton."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        try:
            done = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True)
        except OSError:  # this build of Triton comes without it
            return None, None
    found = re.search(r"REG:(\d+) STACK:(\d+)", done.stdout + done.stderr)
    return (int(found[1]), int(found[2])) if found else (None, None)


def _of_amdgcn(assembly: str) -> tuple[int | None, int | None]:
    registers = re.search(r"\.vgpr_count:\s*(\d+)", assembly)
    spills = re.search(r"\.vgpr_spill_count:\s*(\d+)", assembly)
    return (int(registers[1]) if registers else None, 4 * int(spills[1]) if spills else None)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m wenet_kernels.aot", description=__doc__)
    parser.add_argument("--arch", nargs="+", choices=MACHINES, default=["sm_80", "sm_90", "sm_100"])
    parser.add_argument("--setting", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    options = parser.parse_args(arguments)
    os.environ.pop("TRITON_INTERPRET", None)
    try:
        import triton
    except ImportError:
        print("wenet_kernels.aot: triton is not installed", file=sys.stderr)
        return 2
    print(f"triton {triton.__version__}")
    print(
        f"{'arch':<8}{'setting':<23}{'kernel':<34}{'warps':>6}{'stages':>7}{'registers':>10}{'spills':>8}{'shared':>9}"
    )
    main_spills: list[int | None] = []
    for arch in options.arch:
        for name in options.setting:
            for launch in launches(SETTINGS[name], arch):
                usage = compile_launch(launch, arch)
                if name in MAIN and arch.startswith("sm_"):
                    main_spills.append(usage.spills)
                print(_line(arch, name, launch, usage), flush=True)
    complaint = _complaint(main_spills)
    if complaint:
        print(f"wenet_kernels.aot: {complaint}", file=sys.stderr)
    return int(bool(complaint))


def _complaint(spills: Sequence[int | None]) -> str:
    """What is wrong with the main kernels by their spilled bytes, unknown ones included; empty where nothing is."""
    if None in spills:
        return f"cuobjdump gave no figures, so whether a kernel of {' or '.join(MAIN)} spills registers is unknown"
    return f"a kernel of {' or '.join(MAIN)} spills registers" if any(spills) else ""


def _line(arch: str, name: str, launch: Launch, usage: Usage) -> str:
    kernel = f"{launch.kernel.fn.__name__} {launch.variant}".strip()
    stages = launch.options.get("num_stages", "")
    return (
        f"{arch:<8}{name:<23}{kernel:<34}{launch.options['num_warps']:>6}{stages:>7}{usage.registers!s:>10}"
        f"{usage.spills!s:>8}{usage.shared:>9}"
    )


if __name__ == "__main__":
    sys.exit(main())
