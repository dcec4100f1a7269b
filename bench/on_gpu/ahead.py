"""`python -m bench.on_gpu.ahead`: compile Triton kernels ahead of their first launch, in several processes at once."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from bench.cases import NODES, Case
from bench.on_gpu.choice import CHOICES, Choice
from wenet_kernels.aot import Launch, record_launches, record_program_launches
from wenet_kernels.triton.plan import Machine

ROOT = Path(__file__).resolve().parents[2]
# Parts of the kernels that can be switched off, as attributes of modules of `wenet_kernels.triton`.
TRICKS: dict[str, tuple[str, str, object]] = {
    "prefetch of weights": ("workspace", "PREFETCH", False),
    "bulk prefetch": ("workspace", "BULK", False),
    "copies ahead": ("plan", "MOST_STAGES", 1),
    "one launch a step": ("plan", "FUSED_SHARE", 0),
    "transposed products": ("plan", "ASYNCHRONOUS", 0),
    "approximate activations": ("workspace", "APPROXIMATE", False),
}


@contextmanager
def without(trick: str | None) -> Iterator[None]:
    """A context in which new workspaces do without one of the tricks."""
    with ExitStack() as stack:
        if trick is not None:
            module, name, value = TRICKS[trick]
            stack.enter_context(patch(f"wenet_kernels.triton.{module}.{name}", value))
        yield


def setting(case: Case, precision: str) -> dict[str, Any]:
    """The settings of kernels in the form of `wenet_kernels.aot`."""
    return {
        "networks": case.networks, "rows": case.rows, "hidden": case.hidden, "nodes": NODES, "form": case.form,
        "norm": case.norm or "none", "precision": precision, "weighted": case.coupling == "weighted",
        "masked": case.masked,
    }  # fmt: skip


def launches_of(choice: Choice, device: torch.device) -> Iterator[Launch]:
    """The launches of a choice that need kernels of their own; those of programs last."""
    machine = Machine.of(device)
    for trick, case, precision in choice.to_compile():
        with without(trick):
            yield from record_launches(setting(case, precision), device, machine)
    yield from record_program_launches(choice.programs.setting, device, machine)


def compile_part(choice: Choice, part: int, parts: int, device: torch.device) -> int:
    """Compile every `parts`-th kernel of a choice, from `part` on, as its launch would; returns their number."""
    compiled = 0
    for launch in islice(launches_of(choice, device), part, None, parts):
        options = {**launch.options, "enable_fp_fusion": True}
        launch.kernel.warmup(*launch.operands, grid=launch.grid, **options)
        compiled += 1
    return compiled


class Compiling:
    """The compiling processes; they write into Triton's cache, where launches look first."""

    def __init__(self, choice: str, parts: int | None = None) -> None:
        parts = parts or min(14, max(1, (os.cpu_count() or 2) - 1))
        command = [sys.executable, "-m", "bench.on_gpu.ahead", "--choice", choice, "--parts", str(parts), "--part"]
        streams: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        self.processes = [subprocess.Popen([*command, str(part)], cwd=ROOT, **streams) for part in range(parts)]

    def wait(self, deadline: float) -> list[str]:
        """Wait until all have ended, or stop them at a time of `time.monotonic`; returns their errors.

        A kernel that is missing then is compiled at its first launch.
        """
        failures = []
        for part, process in enumerate(self.processes):
            try:
                _, errors = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                failures.append(f"part {part}: stopped at the time limit")
                continue
            if process.returncode != 0:
                failures.append(f"part {part}: {(errors.strip().splitlines() or ['no message'])[-1]}")
        return failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--choice", choices=CHOICES, required=True)
    parser.add_argument("--part", type=int, required=True)
    parser.add_argument("--parts", type=int, required=True)
    options = parser.parse_args()
    compile_part(CHOICES[options.choice], options.part, options.parts, torch.device("cuda"))


if __name__ == "__main__":
    main()
