"""The operations to write cells with, under `wenet.cell`; published cells as programs."""

from wenet.cells.gated import mutated, random_programs
from wenet.cells.instances import PROGRAMS, program_of
from wenet.cells.kinds import load_program
from wenet.cells.traced import (
    batchnorm,
    blend,
    hardsigmoid,
    hardtanh,
    identity,
    linear,
    mean,
    product,
    relu,
    scalar,
    sigmoid,
    silu,
    softplus,
    tanh,
    vector,
)

__all__ = [
    "PROGRAMS",
    "batchnorm",
    "blend",
    "hardsigmoid",
    "hardtanh",
    "identity",
    "linear",
    "load_program",
    "mean",
    "mutated",
    "product",
    "program_of",
    "random_programs",
    "relu",
    "scalar",
    "sigmoid",
    "silu",
    "softplus",
    "tanh",
    "vector",
]
