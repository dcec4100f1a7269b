"""The choice of measurements: shapes, contestants and precisions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from bench.cases import COMPARED, LARGE_CELL, PAPER, SWEEPS, Case
from bench.on_gpu.programs import PROGRAMS, Programs

PRECISIONS = {"fp32": "full", "tf32": "tf32", "bf16": "bf16"}  # names in the floors, and in the kernels
COMPILED = "compile"  # takes minutes to compile


@dataclass(frozen=True)
class Choice:
    """A stage's shapes and contestants.

    Attributes:
        targets: the shapes that have targets.
        others: those measured after them.
        ours: our contestants with their precisions, the main one first.
        peers: those measured at the targets, and at shapes that are compared.
        parity: precisions that are checked at the targets, over `parity_steps` time steps.
        tricks: what the first target is measured without.
        repeats: runs that must agree to the bit.
        programs: cells that are programs, for the first look.
        compiled: precisions whose kernels are compiled ahead, for the targets.
    """

    targets: tuple[Case, ...]
    others: tuple[Case, ...] = ()
    ours: Mapping[str, str] = field(default_factory=lambda: {"triton bf16": "bf16"})
    peers: Mapping[str, str] = field(default_factory=dict)
    parity: tuple[str, ...] = ("bf16", "full")
    parity_steps: int = 5
    tricks: tuple[str, ...] = ()
    repeats: int = 30
    programs: Programs = PROGRAMS
    compiled: tuple[str, ...] = ("bf16", "full")

    @property
    def main(self) -> str:
        return next(iter(self.ours))

    @property
    def contestants(self) -> dict[str, str]:
        return {**self.ours, **self.peers}

    def to_compile(self) -> Iterator[tuple[str | None, Case, str]]:
        """Trick to leave out, shape and precision of the kernels; the most important first."""
        for precision in self.compiled:
            for case in self.targets:
                yield None, case, precision
        for trick in self.tricks:
            yield trick, self.targets[0], PRECISIONS[self.ours[self.main]]
        for case in self.others:
            yield None, case, PRECISIONS[self.ours[self.main]]


TRICKS = (
    "prefetch of weights",
    "bulk prefetch",
    "copies ahead",
    "one launch a step",
    "approximate activations",
    "transposed products",
)
TARGETS = (
    replace(PAPER, name="paper-120", networks=120, masked=True),
    replace(LARGE_CELL, masked=True),
)
CHOICES = {
    "smoke": Choice(TARGETS, tricks=TRICKS),
    "main": Choice(
        TARGETS,
        tuple(case for case in [*COMPARED, *SWEEPS] if case != LARGE_CELL),
        {"triton bf16": "bf16", "triton tf32": "tf32", "triton": "fp32"},
        # The batched peer of bf16 has all operands in bf16.
        {"traced bf16": "bf16", "traced": "tf32", "loop": "tf32", "reference": "tf32", "lstm": "tf32"},
        compiled=("bf16", "full", "tf32"),
    ),
}
