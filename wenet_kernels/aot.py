"""`python -m wenet_kernels.aot --arch sm_90`: compile all Triton kernels without a GPU, and show their resources."""

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

from wenet_kernels.triton.plan import Machine, Shape

# The launches of a search at the paper's setting, and of training one large cell.
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

MACHINES = {
    "sm_80": Machine(108, 166912, 80),
    "sm_86": Machine(84, 101376, 86),
    "sm_89": Machine(128, 101376, 89),
    "sm_90": Machine(132, 232448, 90),
    "sm_100": Machine(148, 232448, 100),
    "gfx942": Machine(304, 65536, 0),
}
DTYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32"}


@dataclass(frozen=True)
class Launch:
    """A launch of a kernel by the backend, with its operands."""

    kernel: Any
    grid: tuple[int, ...]
    operands: tuple[object, ...]
    options: dict[str, Any]

    @property
    def variant(self) -> str:
        """The options in which launches of one kernel differ."""
        flags = ("KEEP", "INIT", "HEAD", "LINK", "TAIL", "WEIGHTED", "ADD")
        return " ".join(flag.lower() for flag in flags if self.options.get(flag))


@dataclass(frozen=True)
class Usage:
    """The resources of a compiled kernel; None if no tool could tell."""

    registers: int | None
    spills: int | None  # bytes written and read back
    shared: int  # bytes
    products: int | None = None  # products whose operands matrix units read from shared memory
    unfenced: int | None = None  # those without a fence after the last copy to shared memory


def launches(setting: dict[str, Any], arch: str) -> Iterator[Launch]:
    """All launches that need a kernel of their own on an architecture."""
    return record_launches(setting, torch.device("meta"), MACHINES[arch])


def record_launches(setting: dict[str, Any], device: torch.device, machine: Machine) -> Iterator[Launch]:
    """All launches of a short sequence, forward, backward and without gradients, each variant once."""
    from wenet_kernels.triton.workspace import Workspace

    recorded: list[Launch] = []

    class Recorder(Workspace):
        def _launch(self, kernel: Any, grid: tuple[int, ...], *operands: object, **options: object) -> None:
            recorded.append(Launch(kernel, grid, operands, options))

    for keep in (True, False):
        shape = Shape(**setting, keep=keep)
        workspace = Recorder(shape, 2, device, machine)
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
    """Compile a launch as Triton would, with operands aligned as they are."""
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
    shared = compiled.metadata.shared
    return _of_cubin(compiled.asm["cubin"], shared) if nvidia else _of_amdgcn(compiled.asm["amdgcn"], shared)


def _of_cubin(cubin: bytes, shared: int) -> Usage:
    """The output of NVIDIA's `cuobjdump`, which comes with Triton, for machine code."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        try:
            done = subprocess.run([tool, "-res-usage", "-sass", file.name], capture_output=True, text=True)
        except OSError:  # this build of Triton comes without it
            return Usage(None, None, shared)
    found = re.search(r"REG:(\d+) STACK:(\d+)", done.stdout + done.stderr)
    if not found:
        return Usage(None, None, shared)
    return Usage(int(found[1]), int(found[2]), shared, *count_unfenced(instructions(done.stdout)))


def instructions(listing: str) -> list[str]:
    """The names of the instructions in the output of `cuobjdump -sass`, in order."""
    return re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", listing, re.MULTILINE)


def count_unfenced(names: Sequence[str]) -> tuple[int, int]:
    """Count products that read shared memory directly, and those among them that may miss copied data.

    A fence must stand between the arrival of copies (DEPBAR) or a store (STS, STSM) and such a product.
    """
    products = unfenced = 0
    written = False
    for name in names:
        kind = name.split(".")[0]
        if kind in ("DEPBAR", "STS", "STSM"):
            written = True
        elif name.startswith("FENCE.VIEW.ASYNC"):
            written = False
        elif kind == "HGMMA" or (kind.startswith("UTC") and kind.endswith("MMA")):
            products += 1
            unfenced += written
    return products, unfenced


def _of_amdgcn(assembly: str, shared: int) -> Usage:
    registers = re.search(r"\.vgpr_count:\s*(\d+)", assembly)
    spills = re.search(r"\.vgpr_spill_count:\s*(\d+)", assembly)
    return Usage(int(registers[1]) if registers else None, 4 * int(spills[1]) if spills else None, shared)


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
        f"{'products':>10}{'unfenced':>10}"
    )
    main_spills: list[int | None] = []
    unfenced = []
    for arch in options.arch:
        for name in options.setting:
            for launch in launches(SETTINGS[name], arch):
                usage = compile_launch(launch, arch)
                if name in MAIN and arch.startswith("sm_"):
                    main_spills.append(usage.spills)
                if usage.unfenced:
                    unfenced.append(f"{launch.kernel.fn.__name__} of {name} on {arch}")
                print(_line(arch, name, launch, usage), flush=True)
    complaints = [_about_spills(main_spills), _about_fences(unfenced)]
    for complaint in filter(None, complaints):
        print(f"wenet_kernels.aot: {complaint}", file=sys.stderr)
    return int(any(complaints))


def _about_spills(spills: Sequence[int | None]) -> str:
    """The fault of the main kernels, if they spill registers or if that is unknown; else empty."""
    if None in spills:
        return f"cuobjdump gave no figures, so whether a kernel of {' or '.join(MAIN)} spills registers is unknown"
    return f"a kernel of {' or '.join(MAIN)} spills registers" if any(spills) else ""


def _about_fences(unfenced: Sequence[str]) -> str:
    if not unfenced:
        return ""
    return f"{unfenced[0]} multiplies what may not have arrived in shared memory: no fence since it was copied there"


def _line(arch: str, name: str, launch: Launch, usage: Usage) -> str:
    kernel = f"{launch.kernel.fn.__name__} {launch.variant}".strip()
    stages = launch.options.get("num_stages", "")
    return (
        f"{arch:<8}{name:<23}{kernel:<34}{launch.options['num_warps']:>6}{stages:>7}{usage.registers!s:>10}"
        f"{usage.spills!s:>8}{usage.shared:>9}{usage.products!s:>10}{usage.unfenced!s:>10}"
    )


if __name__ == "__main__":
    sys.exit(main())
