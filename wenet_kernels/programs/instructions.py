"""What a program is made of: instructions on values, each `[M, H]`."""

from __future__ import annotations

from typing import NamedTuple

X = -1  # the input, as an operand of a product; values count from 0
STATES = ("h", "c", "m", "n")  # names of the carried states, which are the first values
MAX_INSTRUCTIONS = 1024  # far above any published cell; a larger number is a mistake in a file


class Instruction(NamedTuple):
    """One step of a program.

    Args:
        name: of an operation below.
        operands: the values that it reads, by number: carried states first, then the results of instructions in turn.
        number: a constant of the operation; None where it has none.
    """

    name: str
    operands: tuple[int, ...] = ()
    number: float | None = None


# Through weights, `x Wx + (v * mask_h) Wv`, either factor or both; linear adds a bias.
PRODUCTS = ("linear", "product")
# Learned numbers, the same for all rows and time steps: one for each hidden unit, or one for all. Their constant is
# what they are first; without one they are drawn like weights.
LEARNED = ("vector", "scalar")
UNARY = ("tanh", "relu", "sigmoid", "softplus", "silu", "hardsigmoid", "hardtanh")
BINARY = ("add", "sub", "mul")
TERNARY = ("blend",)  # of g, a, b: a + g (b - a)
WITH_NUMBER = ("times", "plus", "from")  # of k and a: k a, k + a, k - a

# How many values an operation reads; the products are free to choose. In the order of codes, as in csrc/cpu/program.h.
OPERANDS: dict[str, int] = {
    **dict.fromkeys(LEARNED, 0),
    **dict.fromkeys(UNARY, 1),
    **dict.fromkeys(BINARY, 2),
    **dict.fromkeys(TERNARY, 3),
    **dict.fromkeys(WITH_NUMBER, 1),
}
OPERATIONS = (*PRODUCTS, *OPERANDS)
