"""Several programs as integer tables, which every backend reads."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from wenet_kernels.errors import WenetError
from wenet_kernels.programs.instructions import LEARNED, OPERANDS, PRODUCTS, X
from wenet_kernels.programs.program import Program

# The codes of operations in tables. Both kinds of product share a code, and so do learned vectors and scalars: their
# operands tell them apart.
PRODUCT, VECTOR = 0, 1
FUNCTIONS = tuple(name for name in OPERANDS if name not in LEARNED)  # of values alone; codes from 2 on
CODES = {**dict.fromkeys(PRODUCTS, PRODUCT), **dict.fromkeys(LEARNED, VECTOR)} | {
    name: code for code, name in enumerate(FUNCTIONS, start=2)
}
NONE = -1


class Rows(NamedTuple):
    """Programs as numbers. Values are numbered within each program, tensors across all programs."""

    # A code and four operands each; NONE for a missing operand.
    # PRODUCT: value, weight, column of the projected input, vector that is its bias. VECTOR: vector.
    # Others: up to three values, then the index of a constant.
    instructions: list[list[int]]
    first: list[int]  # n + 1: the first instruction of each program, and the end
    results: list[list[int]]  # n of S + 1, the new states and the output
    constants: list[float]


class Tables(NamedTuple):
    """The same as tensors: int32, and fp64 for the constants."""

    instructions: Tensor  # [N, 5]
    first: Tensor  # [n + 1]
    results: Tensor  # [n, S + 1]
    constants: Tensor  # [K]


class ProgramBatch:
    """`n` programs that carry the same number of states.

    Batches of equal text are equal and share their tables.

    Args:
        text: the programs as `str` writes them, separated by semicolons.

    Attributes:
        text: as given.
        programs: each of them.
        count: n.
        states: carried by each, S.
        of_input, weights, vectors: numbers over all programs of products that read the input, of products that read
            values, and of learned vectors (biases, vectors, and scalars, which are stored as vectors).
        puts_out_h: whether the output of every program is its new h.
        normalises: whether a program has values that depend on all rows of the data batch.

    Raises:
        WenetError: no program, an invalid one, or programs that carry different numbers of states.

    Examples:
        >>> from wenet_kernels import ProgramBatch
        >>> batch = ProgramBatch("h | tanh(linear(x, h)); h | relu(linear(x) + h)")
        >>> batch.count, batch.of_input, batch.weights, batch.vectors
        (2, 2, 1, 2)
    """

    def __init__(self, text: str) -> None:
        facts = _facts(text)
        self.text, self.programs = text, facts.programs
        self.count, self.states = len(facts.programs), facts.programs[0].states
        self.of_input, self.weights, self.vectors = facts.of_input, facts.weights, facts.vectors
        self.puts_out_h, self.normalises = facts.puts_out_h, facts.normalises

    @classmethod
    def of(cls, programs: Iterable[Program]) -> ProgramBatch:
        """A batch of these programs.

        Raises:
            WenetError: as in the class.
        """
        return cls("; ".join(map(str, programs)))

    @property
    def apart(self) -> int:
        """R: the number of carried states that are returned beside the output."""
        return self.states - self.puts_out_h

    def rows(self) -> Rows:
        """The programs as numbers."""
        return _rows(self.text)

    def tables(self) -> Tables:
        """The programs as tensors on the CPU, made once."""
        return _tables(self.text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ProgramBatch) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"ProgramBatch({self.text!r})"


class _Facts(NamedTuple):
    programs: tuple[Program, ...]
    of_input: int
    weights: int
    vectors: int
    puts_out_h: bool
    normalises: bool


@functools.cache
def _facts(text: str) -> _Facts:
    if not text.strip():
        raise WenetError("a batch of programs needs at least one")
    programs = tuple(Program.from_text(each.strip()) for each in text.split(";"))
    states = {program.states for program in programs}
    if len(states) > 1:
        raise WenetError(f"programs of one batch must carry the same number of states; these carry {sorted(states)}")
    return _Facts(
        programs,
        sum(program.of_input for program in programs),
        sum(program.of_values for program in programs),
        sum(program.biases + len(program.learned) for program in programs),
        all(program.output == program.results[0] for program in programs),
        any(program.normalises for program in programs),
    )


@functools.cache
def _rows(text: str) -> Rows:
    programs = _facts(text).programs
    counter = _Counter()
    instructions = [row for program in programs for row in counter.rows(program)]
    first = [0]
    for program in programs:
        first.append(first[-1] + len(program.instructions))
    results = [[*program.results, program.output] for program in programs]
    return Rows(instructions, first, results, counter.constants)


@functools.cache
def _tables(text: str) -> Tables:
    *integers, constants = _rows(text)
    # An inference tensor could not take part in autograd later, one made in a transform must not outlive it, and one
    # made for a compiler has no memory.
    with torch.inference_mode(False), torch._C._DisableFuncTorch(), _disable_current_modes():
        tables = [torch.tensor(rows, dtype=torch.int32, device="cpu") for rows in integers]
        return Tables(tables[0], tables[1], tables[2], torch.tensor(constants, dtype=torch.float64, device="cpu"))


class _Counter:
    """Numbers the products and learned vectors of all programs."""

    def __init__(self) -> None:
        self.weights = self.inputs = self.vectors = 0
        self.constants: list[float] = []

    def rows(self, program: Program) -> list[list[int]]:
        return [self._row(*instruction) for instruction in program.instructions]

    def _row(self, name: str, operands: tuple[int, ...], number: float | None) -> list[int]:
        code = CODES[name]
        if code == PRODUCT:
            values = [operand for operand in operands if operand != X]
            return [
                code,
                values[0] if values else NONE,
                self._next("weights") if values else NONE,
                self._next("inputs") if X in operands else NONE,
                self._next("vectors") if name == "linear" else NONE,
            ]
        if code == VECTOR:
            return [code, self._next("vectors"), NONE, NONE, NONE]
        row = [code, *operands]
        if number is not None:
            row.append(len(self.constants))
            self.constants.append(number)
        return row + [NONE] * (5 - len(row))

    def _next(self, kind: str) -> int:
        place: int = getattr(self, kind)
        setattr(self, kind, place + 1)
        return place
