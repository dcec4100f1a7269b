"""A recurrent cell as a program: carried states, instructions on values, new states and an output."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn

from wenet_kernels.errors import WenetError
from wenet_kernels.programs.checks import alike_in_all_rows, check_program
from wenet_kernels.programs.instructions import LEARNED, NORMALISATIONS, PRODUCTS, Instruction, X
from wenet_kernels.programs.text import program_text, read_program


@dataclass(frozen=True)
class Program:
    """A recurrent cell of any kind, with sizes left open. `wenet.cell` makes one of a Python function.

    A step computes values, each `[M, H]`: first the carried states, then the result of each instruction. A value
    depends on earlier values; a product reads all their hidden units. Each product and each learned vector has its own
    parameters, in the order of the instructions.

    Args:
        states: number of states carried from step to step, 1 to 4; the first is h.
        instructions: in the order in which they are computed.
        results: the values that become the new states, h first.
        output: the value that is the output, by default the new h.

    Raises:
        WenetError: an unknown operation, an operand that is not yet computed, an output that does not depend on the
            input, or an instruction or state that never reaches the output.

    Examples:
        >>> from wenet_kernels import Program
        >>> cell = Program.from_text("h | blend(sigmoid(linear(x, h)), h, tanh(linear(x, h)))")
        >>> cell.states, len(cell.products), cell.parameters(input_size=10, hidden_size=20)
        (1, 2, 1240)
        >>> print(cell)
        h | blend(sigmoid(linear(x, h)), h, tanh(linear(x, h)))
    """

    states: int
    instructions: tuple[Instruction, ...]
    results: tuple[int, ...]
    output: int

    def __init__(
        self, states: int, instructions: Iterable[Instruction], results: Iterable[int], output: int | None = None
    ) -> None:
        object.__setattr__(self, "states", states)
        object.__setattr__(self, "instructions", tuple(Instruction(*each) for each in instructions))
        object.__setattr__(self, "results", tuple(results))
        object.__setattr__(self, "output", self.results[0] if output is None and self.results else output)
        check_program(self.states, self.instructions, self.results, self.output)

    @cached_property
    def products(self) -> tuple[Instruction, ...]:
        """The products in their order."""
        return tuple(instruction for instruction in self.instructions if instruction.name in PRODUCTS)

    @cached_property
    def learned(self) -> tuple[Instruction, ...]:
        """The learned vectors and scalars in their order."""
        return tuple(instruction for instruction in self.instructions if instruction.name in LEARNED)

    @property
    def of_input(self) -> int:
        """Products that read the input: weights `[I, H]`."""
        return sum(X in product.operands for product in self.products)

    @property
    def of_values(self) -> int:
        """Products that read a state or another value: weights `[H, H]`."""
        return sum(product.operands != (X,) for product in self.products)

    @property
    def biases(self) -> int:
        """Products that add a bias: `[H]`."""
        return sum(product.name == "linear" for product in self.products)

    @property
    def normalises(self) -> bool:
        """Whether it has values that depend on all rows of the data batch."""
        return any(each.name in NORMALISATIONS for each in self.instructions)

    def parameters(self, input_size: int, hidden_size: int) -> int:
        """The number of parameters at these sizes."""
        rows = self.of_input * input_size + self.of_values * hidden_size + self.biases
        vectors = sum(each.name == "vector" for each in self.learned)
        return (rows + vectors) * hidden_size + len(self.learned) - vectors

    def without_biases(self) -> Program:
        """The same cell without biases in its products."""
        plain = (each._replace(name="product") if each.name == "linear" else each for each in self.instructions)
        return Program(self.states, plain, self.results, self.output)

    def normalised(self) -> Program:
        """The same cell with every new state passed through `batchnorm` as soon as it is formed; whatever else reads
        the state reads it normalised. One that is an old state, normalised already, or made only of learned numbers
        stays as it is.

        Examples:
            >>> from wenet_kernels import Program
            >>> print(Program.from_text("h | tanh(linear(x, h))").normalised())
            h | batchnorm(tanh(linear(x, h)))
        """
        alike = alike_in_all_rows(self.states, self.instructions)
        number: dict[int, int] = {value: value for value in (X, *range(self.states))}  # old to new
        made: list[Instruction] = []
        for value, instruction in enumerate(self.instructions, start=self.states):
            made.append(instruction._replace(operands=tuple(number[operand] for operand in instruction.operands)))
            number[value] = self.states + len(made) - 1
            if value in self.results and value not in alike and instruction.name not in NORMALISATIONS:
                made.append(Instruction("batchnorm", (number[value],)))
                number[value] += 1
        return Program(self.states, made, [number[result] for result in self.results], number[self.output])

    def __call__(self, *_: object, **__: object) -> NoReturn:
        raise WenetError(
            "a program describes a cell and has no weights; make a layer of it, such as "
            "wenet.nn.CellRNN(input_size, hidden_size, cell), and call that"
        )

    def __str__(self) -> str:
        """One line, which `from_text` reads."""
        return program_text(self.states, self.instructions, self.results, self.output)

    @classmethod
    def from_text(cls, text: str) -> Program:
        """Read the text that `str` writes: the states, statements, and the new states, separated by "|".

        If there is one more result than there are states, the first is the output.

        Raises:
            WenetError: the text is not a valid program.
        """
        return cls(*read_program(text))

    def to_json(self) -> str:
        return json.dumps({"program": str(self)})

    @classmethod
    def from_json(cls, text: str) -> Program:
        """Read the JSON that `to_json` writes.

        Raises:
            WenetError: the text is not JSON, or holds no valid program.
        """
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise WenetError(f"the cell is not valid JSON: {error}") from None
        if not isinstance(value, dict) or not isinstance(value.get("program"), str):
            raise WenetError('a program in JSON looks like {"program": "h | tanh(linear(x, h))"}')
        return cls.from_text(value["program"])
