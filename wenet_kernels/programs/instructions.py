"""The instructions of a program; each computes a value `[M, H]`."""

from __future__ import annotations

from typing import NamedTuple

X = -1  # the input, as an operand of a product; values count from 0
STATES = ("h", "c", "m", "n")  # names of the carried states, which are the first values
MAX_INSTRUCTIONS = 1024  # far above any published cell; a larger number is a mistake in a file


class Instruction(NamedTuple):
    """One step of a program.

    Args:
        name: one of the operations below.
        operands: numbers of the values that it reads; carried states come first, then the instructions in order.
        number: the constant of the operation, if it has one.
    """

    name: str
    operands: tuple[int, ...] = ()
    number: float | None = None


# `x Wx + (v * mask_h) Wv`, either term or both; linear adds a bias.
PRODUCTS = ("linear", "product")
# Learned numbers, the same for all rows and time steps: one for each hidden unit, or one for all. Their constant is
# the initial value; without one they are drawn like weights.
LEARNED = ("vector", "scalar")
ACTIVATIONS = ("tanh", "relu", "sigmoid", "softplus", "silu", "hardsigmoid", "hardtanh")
# Less the mean over all rows, and divided by their standard deviation: a row's value depends on the others.
NORMALISATIONS = ("batchnorm",)
BINARY = ("add", "sub", "mul")
TERNARY = ("blend",)  # of g, a, b: a + g (b - a)
WITH_NUMBER = ("times", "plus", "from")  # of k and a: k a, k + a, k - a

# Number of values that an operation reads (products may read one or two). In the order of codes in csrc/cpu/program.h.
OPERANDS: dict[str, int] = {
    **dict.fromkeys(LEARNED, 0),
    **dict.fromkeys(ACTIVATIONS, 1),
    **dict.fromkeys(NORMALISATIONS, 1),
    **dict.fromkeys(BINARY, 2),
    **dict.fromkeys(TERNARY, 3),
    **dict.fromkeys(WITH_NUMBER, 1),
}
OPERATIONS = (*PRODUCTS, *OPERANDS)
