"""Collects the instructions of a program, for the text reader and the tracer."""

from __future__ import annotations

import math

from wenet_kernels.errors import WenetError
from wenet_kernels.programs.instructions import MAX_INSTRUCTIONS, PRODUCTS, Instruction, X

Term = int | float  # the number of a value, or a constant

SYMBOLS = {"add": "+", "sub": "-", "mul": "*"}


class Builder:
    """Collects the instructions of a program.

    Args:
        states: number of states that the program carries; they are its first values.
    """

    def __init__(self, states: int) -> None:
        self.states = states
        self.instructions: list[Instruction] = []

    def append(self, name: str, operands: tuple[int, ...] = (), number: float | None = None) -> int:
        """Append an instruction; returns the number of its value.

        A product is a sum over its factors, whose order does not matter: x comes first, however they were named.
        """
        if len(self.instructions) == MAX_INSTRUCTIONS:
            raise WenetError(f"a cell has at most {MAX_INSTRUCTIONS} instructions, this one has more")
        if name in PRODUCTS:
            operands = tuple(sorted(operands, key=lambda operand: operand != X))
        self.instructions.append(Instruction(name, operands, number))
        return self.states + len(self.instructions) - 1

    def arithmetic(self, name: str, a: Term, b: Term) -> Term:
        """a + b, a - b or a * b ("add", "sub", "mul") of values and constants."""
        if isinstance(a, int) and isinstance(b, int):
            return self.append(name, (a, b))
        if isinstance(a, float) and isinstance(b, float):
            return {"add": a + b, "sub": a - b, "mul": a * b}[name]
        if isinstance(a, int):
            assert isinstance(b, float)
            return self._with_number("plus" if name == "sub" else _of_number(name), -b if name == "sub" else b, a)
        assert isinstance(b, int)
        return self._with_number("from" if name == "sub" else _of_number(name), a, b)

    def _with_number(self, name: str, number: float, value: int) -> int:
        if not math.isfinite(number):
            raise WenetError(f"a cell has a constant {number}; constants must be finite")
        return self.append(name, (value,), number)


def _of_number(name: str) -> str:
    return {"add": "plus", "mul": "times"}[name]
