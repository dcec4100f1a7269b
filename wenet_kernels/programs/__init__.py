"""Recurrent cells as programs: what they are, as text and as tables, and how they are run."""

from wenet_kernels.programs.backend import resolve_backend
from wenet_kernels.programs.batch import ProgramBatch
from wenet_kernels.programs.builder import Builder, Term
from wenet_kernels.programs.canonical import canonical
from wenet_kernels.programs.instructions import ACTIVATIONS, LEARNED, NORMALISATIONS, PRODUCTS, STATES, Instruction, X
from wenet_kernels.programs.op import cell_rnn
from wenet_kernels.programs.program import Program

__all__ = [
    "ACTIVATIONS",
    "LEARNED",
    "NORMALISATIONS",
    "PRODUCTS",
    "STATES",
    "Builder",
    "Instruction",
    "Program",
    "ProgramBatch",
    "Term",
    "X",
    "canonical",
    "cell_rnn",
    "resolve_backend",
]
