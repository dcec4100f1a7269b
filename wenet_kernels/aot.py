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

from wenet_kernels.machine_code import Counts, Instruction, count, count_unfenced, find_loops, main_loop, read_listing
from wenet_kernels.programs import ProgramBatch
from wenet_kernels.programs.evaluation import ProgramRun
from wenet_kernels.triton.plan import Machine, Shape

CELL = "sigmoid0 relu1 relu1 identity1 tanh2 sigmoid5 tanh3 relu5"  # of all networks: the published DARTS_V2
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
    "large tf32": {**LARGE, "precision": "tf32"},
    "large full": {**LARGE, "precision": "full"},
}
MAIN = ("paper bf16", "large bf16")  # must not spill, and keep the ceilings

# Launches of cells that are programs, two hundred of them or one; kernels differ by sizes, not by the programs.
LSTM = (
    "h, c | v1 = sigmoid(linear(x, h)) | v2 = sigmoid(linear(x, h)) | v3 = tanh(linear(x, h)) "
    "| v4 = sigmoid(linear(x, h)) | v5 = v2 * c + v1 * v3 | v4 * tanh(v5), v5"
)
PROGRAMS: dict[str, dict[str, Any]] = {
    "programs 64": dict(networks=200, rows=32, hidden=64, masked=True, weighted=False),
    "mixed programs 200": dict(networks=200, rows=20, hidden=200, masked=True, weighted=True),
    "one program 200": dict(networks=1, rows=20, hidden=200, masked=False, weighted=False),
}
ALL = {**SETTINGS, **PROGRAMS}

MACHINES = {
    "sm_80": Machine(108, 166912, 80),
    "sm_86": Machine(84, 101376, 86),
    "sm_89": Machine(128, 101376, 89),
    "sm_90": Machine(132, 232448, 90),
    "sm_100": Machine(148, 232448, 100),
    "gfx942": Machine(304, 65536, 0),
}


@dataclass(frozen=True)
class Ceiling:
    """The most in a kernel's main loop: instructions, barriers, and copies of less than 16 bytes."""

    instructions: int
    barriers: int
    narrow: int


# On sm_90, about a tenth more than Triton 3.9 makes. Of narrow copies, a product of few rows has those of a factor that
# is too small for 16 bytes a thread; the others load single numbers.
CEILINGS = {
    ("paper bf16", "step_forward"): Ceiling(1450, 40, 6),
    ("paper bf16", "step_backward"): Ceiling(1650, 32, 7),
    ("paper bf16", "weight_gradient"): Ceiling(135, 2, 0),
    ("large bf16", "step_forward"): Ceiling(225, 2, 0),
    ("large bf16", "step_backward"): Ceiling(160, 2, 0),
    ("large bf16", "weight_gradient"): Ceiling(135, 2, 0),
}
SETTINGS_OF_COMPILER = ("num_warps", "num_stages", "maxnreg")
DTYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32", torch.int64: "*i64"}


@dataclass(frozen=True)
class Launch:
    """A launch of a kernel by the backend, with its operands."""

    kernel: Any
    grid: tuple[int, ...]
    operands: tuple[object, ...]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.kernel.fn.__name__)

    @property
    def variant(self) -> str:
        """The options in which launches of one kernel differ."""
        flags = ("KEEP", "INIT", "LAST", "HEAD", "NODES", "LINK", "TAIL", "ROUND", "ADD")
        return " ".join(flag.lower() for flag in flags if self.options.get(flag))


@dataclass(frozen=True)
class Usage:
    """The resources of a compiled kernel; None if no tool could tell."""

    registers: int | None
    spills: int | None  # bytes written and read back
    shared: int  # bytes
    code: tuple[Instruction, ...] = ()  # of NVIDIA's GPUs

    @property
    def loop(self) -> Counts:
        """What the loop over nodes contains, or that over the inner dimension of a product."""
        return count(main_loop(find_loops(self.code)).all)

    @property
    def unfenced(self) -> int:
        """Products without a fence after the last copy to shared memory."""
        return count_unfenced(self.code)


def launches(setting: dict[str, Any], arch: str) -> Iterator[Launch]:
    """All launches that need a kernel of their own on an architecture."""
    record = record_launches if "nodes" in setting else record_program_launches
    return record(setting, torch.device("meta"), MACHINES[arch])


def record_launches(setting: dict[str, Any], device: torch.device, machine: Machine) -> Iterator[Launch]:
    """All launches of a short sequence, forward, backward and without gradients, each variant once."""
    seen = set()
    for keep in (True, False):
        for launch in record_step(setting, device, machine, keep):
            key = launch.name, tuple(launch.options.items())
            if key not in seen:
                seen.add(key)
                yield launch


def record_step(
    setting: dict[str, Any], device: torch.device, machine: Machine, keep: bool, cell: str = CELL
) -> list[Launch]:
    """All launches of a sequence of one step, `keep` with those of backward."""
    from wenet_kernels.triton.workspace import Workspace

    recorded: list[Launch] = []

    class Recorder(Workspace):
        def _launch(self, kernel: Any, grid: tuple[int, ...], *operands: object, **options: object) -> None:
            recorded.append(Launch(kernel, grid, operands, options))

    shape = Shape(**setting, keep=keep)
    workspace = Recorder(shape, 2, device, machine)
    workspace.load_order("; ".join([cell] * shape.networks))
    workspace.forward(1)
    if keep:
        workspace.allocate_gradients()
        workspace.backward(1)
        workspace.weight_gradients(1, workspace.products, workspace.products)
    return recorded


def record_program_launches(setting: dict[str, Any], device: torch.device, machine: Machine) -> Iterator[Launch]:
    """All launches of programs over a short sequence, forward and backward, each kernel once."""
    from wenet_kernels.triton.program_launches import ProgramLaunches

    recorded: list[Launch] = []

    class Recorder(ProgramLaunches):
        def _launch(self, kernel: Any, grid: tuple[int, ...], *operands: object, **options: object) -> None:
            recorded.append(Launch(kernel, grid, operands, options))

    launches = Recorder(_program_operands(**setting, device=device), keep=True, machine=machine)
    evaluation, memory = launches.forward()
    launches.backward(memory, evaluation.output, evaluation.apart)
    yield from {launch.name: launch for launch in recorded}.values()


def _program_operands(
    networks: int, rows: int, hidden: int, masked: bool, weighted: bool, device: torch.device
) -> ProgramRun:
    """Of LSTMs over two steps."""
    batch = ProgramBatch("; ".join([LSTM] * networks))

    def tensor(*shape: int) -> Tensor:
        return torch.empty(shape, device=device)

    return ProgramRun(
        tensor(2, batch.of_input, rows, hidden),
        tensor(batch.states, *(() if weighted else (networks,)), rows, hidden),
        tensor(batch.weights, hidden, hidden),
        tensor(batch.vectors, hidden),
        tensor(networks) if weighted else None,
        tensor(rows, hidden) if masked else None,
        batch.text,
        "full",
    )


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
    settings = {name: value for name, value in launch.options.items() if name in SETTINGS_OF_COMPILER}
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
    return Usage(int(found[1]), int(found[2]), shared, tuple(read_listing(done.stdout)))


def _of_amdgcn(assembly: str, shared: int) -> Usage:
    registers = re.search(r"\.vgpr_count:\s*(\d+)", assembly)
    spills = re.search(r"\.vgpr_spill_count:\s*(\d+)", assembly)
    return Usage(int(registers[1]) if registers else None, 4 * int(spills[1]) if spills else None, shared)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m wenet_kernels.aot", description=__doc__)
    parser.add_argument("--arch", nargs="+", choices=MACHINES, default=["sm_80", "sm_90", "sm_100"])
    parser.add_argument("--setting", nargs="+", choices=ALL, default=list(ALL))
    options = parser.parse_args(arguments)
    os.environ.pop("TRITON_INTERPRET", None)
    try:
        import triton
    except ImportError:
        print("wenet_kernels.aot: triton is not installed", file=sys.stderr)
        return 2
    print(f"triton {triton.__version__}\n")
    print("\n".join(HEAD), flush=True)
    complaints = []
    for arch in options.arch:
        for name in options.setting:
            for launch in launches(ALL[name], arch):
                usage = compile_launch(launch, arch)
                print(_row(arch, name, launch, usage), flush=True)
                faults = list(_faults(usage, arch, name, launch))
                complaints += [f"`{launch.name} {launch.variant}` of {name} on {arch}: {fault}" for fault in faults]
    for complaint in complaints:
        print(f"wenet_kernels.aot: {complaint}", file=sys.stderr)
    return int(bool(complaints))


def _faults(usage: Usage, arch: str, setting: str, launch: Launch) -> Iterator[str]:
    """What is wrong with a kernel, whose resources must be known if it is one of the main settings."""
    if usage.unfenced:
        yield "multiplies what may not have arrived in shared memory: no fence since it was copied there"
    if setting not in (*MAIN, *PROGRAMS) or not arch.startswith("sm_"):
        return
    if usage.spills is None:
        yield "cuobjdump gave no figures, so whether it spills registers is unknown"
        return
    if usage.spills:
        yield f"spills {usage.spills} bytes of registers"
    ceiling = CEILINGS.get((setting, launch.name))
    if arch != "sm_90" or ceiling is None or launch.variant == "head":  # the first stage of leaves, without a product
        return
    loop = usage.loop
    found = Ceiling(loop.instructions, loop.barriers, sum(n for size, n in loop.copies.items() if size < 16))
    for what, most in vars(ceiling).items():
        if getattr(found, what) > most:
            yield f"its main loop has {getattr(found, what)} {TERMS[what]}, more than {most}"
    if not loop.wide_products:
        yield "its products are not those of four warps"


TERMS = {"instructions": "instructions", "barriers": "barriers", "narrow": "copies of less than 16 bytes"}
COLUMNS = (
    "arch", "setting", "kernel and variant", "warps", "stages", "registers", "spilled bytes", "shared memory",
    "instructions", "barriers", "copies", "products", "wide", "fences",
)  # fmt: skip
HEAD = (f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|")


def _row(arch: str, name: str, launch: Launch, usage: Usage) -> str:
    """A row of the table; from instructions on, of the main loop."""
    loop = usage.loop
    copies = ", ".join(f"{count} of {size}" for size, count in loop.copies.items())
    cells = (
        arch, name, f"`{launch.name}` {launch.variant}".strip(), launch.options["num_warps"],
        launch.options.get("num_stages", ""), usage.registers, usage.spills, usage.shared, loop.instructions,
        loop.barriers, copies, loop.products, loop.wide_products, loop.fences,
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    sys.exit(main())
