"""Programs and operands at random, for every backend's tests."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from wenet_kernels import Program, ProgramBatch, WenetError, cell_rnn
from wenet_kernels.programs.checks import reaching
from wenet_kernels.programs.instructions import (
    ACTIVATIONS,
    BINARY,
    LEARNED,
    NORMALISATIONS,
    PRODUCTS,
    TERNARY,
    WITH_NUMBER,
    Instruction,
    X,
)

EXAMPLES = int(os.environ.get("WENET_EXAMPLES", "60"))  # of each of the drawn programs
UNARY = ACTIVATIONS + NORMALISATIONS
SMOOTH = ("tanh", "sigmoid", "softplus", "silu")  # without the kinks that differences stumble over


def random_program(generator: random.Random, states: int, length: int, unary: tuple[str, ...] = UNARY) -> Program:
    """A valid program of at most so many instructions."""
    while True:
        instructions = [_instruction(generator, states + place, unary) for place in range(length)]
        # States that are carried on stay bounded, or a product of some would grow beyond all numbers.
        instructions += [Instruction("tanh", (generator.randrange(states, states + length),)) for _ in range(states)]
        values = range(states + length + states)
        results = list(values[-states:])
        for state in range(states):  # some become what another state was, or becomes
            if generator.random() < 0.2:
                results[state] = generator.choice((*range(states), *results))
        output = results[0] if generator.random() < 0.7 else generator.choice(values)
        try:
            return Program(*_pruned(states, instructions, results, output))
        except WenetError:
            continue


def _instruction(generator: random.Random, value: int, unary: tuple[str, ...]) -> Instruction:
    kind = generator.choice((PRODUCTS, PRODUCTS, unary, unary, BINARY, TERNARY, WITH_NUMBER, LEARNED))
    name = generator.choice(kind)

    def recent() -> int:  # near values are read more often, or most instructions would reach nothing
        return max(0, value - 1 - min(generator.randrange(value), generator.randrange(value)))

    if kind is PRODUCTS:
        return Instruction(name, generator.choice(((X,), (recent(),), (X, recent()), (X, recent()))))
    number = round(generator.uniform(-1.5, 1.5), 2) if kind in (WITH_NUMBER, LEARNED) else None
    count = {BINARY: 2, TERNARY: 3, LEARNED: 0}.get(kind, 1)
    return Instruction(name, tuple(recent() for _ in range(count)), number)


def _pruned(
    states: int, instructions: list[Instruction], results: list[int], output: int
) -> tuple[int, list[Instruction], list[int], int]:
    """Without the instructions that reach nothing."""
    live = reaching(states, instructions, results, output)
    number = {X: X, **{state: state for state in range(states)}}
    kept: list[Instruction] = []
    for value, instruction in enumerate(instructions, start=states):
        if value in live:
            number[value] = states + len(kept)
            kept.append(instruction._replace(operands=tuple(number[operand] for operand in instruction.operands)))
    return states, kept, [number.get(result, 0) for result in results], number[output]


@dataclass
class ProgramCase:
    pre: Tensor
    states: Tensor
    weight: Tensor
    vectors: Tensor
    mix: Tensor | None
    mask_h: Tensor | None
    batch: ProgramBatch

    @property
    def leaves(self) -> list[Tensor]:
        tensors = (self.pre, self.states, self.weight, self.vectors, self.mix)
        return [tensor for tensor in tensors if tensor is not None]

    def run(self, backend: str, precision: str = "full") -> list[Tensor]:
        output, states = cell_rnn(
            self.pre,
            self.states,
            self.weight,
            self.vectors,
            self.mix,
            self.batch,
            mask_h=self.mask_h,
            precision=precision,
            backend=backend,
        )
        return [output, *states]

    def results(self, backend: str, precision: str = "full") -> list[Tensor]:
        """Output, states, and the derivatives of a random sum of them."""
        return self.with_derivatives(self.run(backend, precision))

    def with_derivatives(self, found: list[Tensor]) -> list[Tensor]:
        generator = torch.Generator().manual_seed(1)  # the same numbers in any type
        drawn = [torch.randn(tensor.shape, generator=generator).to(tensor) for tensor in found]
        loss = torch.stack([(tensor * other).sum() for tensor, other in zip(found, drawn, strict=True)]).sum()
        return [*found, *torch.autograd.grad(loss, self.leaves, allow_unused=True, materialize_grads=True)]

    def double(self) -> ProgramCase:
        """The same numbers in double precision."""
        pre, states, weight, vectors, *mix = (each.detach().double().requires_grad_() for each in self.leaves)
        mask_h = None if self.mask_h is None else self.mask_h.double()
        return ProgramCase(pre, states, weight, vectors, mix[0] if mix else None, mask_h, self.batch)


def program_case(
    programs: list[Program],
    steps: int,
    rows: int,
    hidden: int,
    mixed: bool = False,
    mask: bool = False,
    dtype: torch.dtype = torch.float64,
) -> ProgramCase:
    batch = ProgramBatch.of(programs)
    networks = () if mixed else (batch.count,)

    def leaf(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, dtype=dtype) * scale).requires_grad_()

    return ProgramCase(
        leaf(steps, batch.of_input, rows, hidden),
        leaf(batch.states, *networks, rows, hidden),
        leaf(batch.weights, hidden, hidden, scale=hidden**-0.5),  # larger ones would make it chaotic
        leaf(batch.vectors, hidden),
        torch.softmax(torch.randn(batch.count, dtype=dtype), 0).requires_grad_() if mixed else None,
        (torch.rand(rows, hidden) < 0.7).to(dtype) / 0.7 if mask else None,
        batch,
    )


def drawn_case(
    generator: random.Random, dtype: torch.dtype = torch.float64, unary: tuple[str, ...] = UNARY
) -> ProgramCase:
    """Programs, sizes, mask and coupling at random."""
    states, count = generator.randint(1, 4), generator.choice((1, 1, 2, 3, 5))
    # Rows of more and of fewer steps than one are multiplied together for the derivatives of weights.
    steps, rows = generator.randint(1, 5), generator.choice((1, 2, 3, 4, 5, 6, 7, 70))
    unary = unary if rows > 1 else ACTIVATIONS
    programs = [random_program(generator, states, generator.randint(3, 25), unary) for _ in range(count)]
    torch.manual_seed(generator.randrange(1000))
    sizes = steps, rows, generator.choice((1, 3, 8, 13, 17, 33, 40))
    return program_case(programs, *sizes, generator.random() < 0.4, generator.random() < 0.4, dtype)


def error(found: Tensor, expected: Tensor, least: float = 1e-4) -> float:
    """Relative, in root mean square. What is smaller than `least` counts as if it were so large: it may be zero up to
    rounding, as the derivative of a bias that `batchnorm` takes away again."""
    return ((found - expected).norm() / expected.norm().clamp(min=least)).item()
