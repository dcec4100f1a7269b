"""Programs as one line of text, in the syntax of Python expressions."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Sequence
from typing import Any

from wenet_kernels.errors import WenetError, did_you_mean
from wenet_kernels.programs.builder import SYMBOLS, Builder, Term
from wenet_kernels.programs.instructions import (
    BINARY,
    LEARNED,
    OPERATIONS,
    STATES,
    WITH_NUMBER,
    Instruction,
    X,
)

Parts = tuple[int, list[Instruction], list[int], int]  # the arguments of a `Program`

MAX_DEPTH = 12  # of a written expression; deeper values get a name
FUNCTIONS = tuple(name for name in OPERATIONS if name not in BINARY + WITH_NUMBER)
_PRECEDENCE = {"add": 1, "plus": 1, "sub": 1, "from": 1, "mul": 2, "times": 2}
_SIGNS = {**SYMBOLS, "plus": "+", "from": "-", "times": "*"}
_OPERATORS = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul"}


def program_text(states: int, instructions: Sequence[Instruction], results: Sequence[int], output: int) -> str:
    """One line: the states, statements, and the results. The output comes before the results if it is not the new h.

    A value that is read once stands where it is read, if that keeps the order of the instructions; others get names.
    """
    writer = _Writer(states, instructions, results if output == results[0] else [output, *results])
    return " | ".join([", ".join(STATES[:states]), *writer.statements, ", ".join(writer.results)])


class _Writer:
    def __init__(self, states: int, instructions: Sequence[Instruction], results: Sequence[int]) -> None:
        self.states, self.instructions = states, instructions
        self.names = {X: "x", **dict(enumerate(STATES[:states]))}
        self.in_place = _read_in_place(states, instructions, results)
        self.statements: list[str] = []
        for value in range(states, states + len(instructions)):
            if value not in self.in_place:
                name = f"v{len(self.statements) + 1}"
                self.statements.append(f"{name} = {self._expression(value)}")
                self.names[value] = name
        self.results = [self._term(result, 0) for result in results]

    def _term(self, value: int, precedence: int) -> str:
        """A value as an operand, in brackets if its surroundings bind more tightly."""
        if value in self.names:
            return self.names[value]
        text = self._expression(value)
        own = _PRECEDENCE.get(self.instructions[value - self.states].name, 3)
        return f"({text})" if own < precedence else text

    def _expression(self, value: int) -> str:
        name, operands, number = self.instructions[value - self.states]
        if name in _PRECEDENCE:
            precedence = _PRECEDENCE[name]
            last = self._term(operands[-1], precedence + 1)
            first = _number(number) if number is not None else self._term(operands[0], precedence)
            return f"{first} {_SIGNS[name]} {last}"
        arguments = [self._term(operand, 0) for operand in operands]
        return f"{name}({', '.join(arguments if number is None else [*arguments, _number(number)])})"


def _number(number: float) -> str:
    text = repr(number)
    return text.removesuffix(".0")


def _read_in_place(states: int, instructions: Sequence[Instruction], results: Sequence[int]) -> set[int]:
    """The values that are read once, by an instruction that directly follows."""
    reads = [0] * (states + len(instructions))
    for operands in (*(instruction.operands for instruction in instructions), results):
        for operand in operands:
            reads[operand] += operand != X
    found: set[int] = set()
    start = list(range(len(reads)))  # the first instruction within the expression of a value
    depth = [0] * len(reads)

    def take(operands: Sequence[int], end: int) -> int:
        for operand in reversed(operands):
            if operand == end - 1 and operand >= states and reads[operand] == 1 and depth[operand] <= MAX_DEPTH:
                found.add(operand)
                end = start[operand]
        return end

    for value, instruction in enumerate(instructions, start=states):
        start[value] = take(instruction.operands, value)
        depth[value] = 1 + max((depth[operand] for operand in instruction.operands if operand in found), default=0)
    take(results, len(reads))
    return found


def read_program(text: str) -> Parts:
    """Read the text of `program_text`; the parts are not yet checked.

    Raises:
        WenetError: the text is not a program.
    """
    try:
        return _read(text)
    except RecursionError:
        raise WenetError(f"{_short(text)} is nested too deeply; give some of its values names") from None


def _read(text: str) -> Parts:
    header, *statements = (part.strip() for part in text.split("|"))
    names = [name.strip() for name in header.split(",")]
    if not statements or names != list(STATES[: len(names)]):
        raise WenetError(f"{_short(text)} is not a program; write it like 'h | tanh(linear(x, h))'")
    reader = _Reader(len(names))
    for statement in statements[:-1]:
        reader.assign(statement)
    found = reader.results(statements[-1])
    if len(found) not in (len(names), len(names) + 1):
        raise WenetError(f"a program of {len(names)} states ends in as many new states, not in {len(found)}")
    return len(names), reader.builder.instructions, found[-len(names) :], found[0]


class _Reader:
    def __init__(self, states: int) -> None:
        self.builder = Builder(states)
        self.values: dict[str, int] = {"x": X, **{name: value for value, name in enumerate(STATES[:states])}}

    def assign(self, statement: str) -> None:
        name, sign, expression = statement.partition("=")
        name = name.strip()
        if not sign or not name.isidentifier():
            raise WenetError(f"{_short(statement)} is not a statement; write it like 'v1 = tanh(linear(x, h))'")
        if name in self.values:
            raise WenetError(f"{name} is already defined; give {_short(statement)} another name")
        self.values[name] = self._value(_parsed(expression))

    def results(self, text: str) -> list[int]:
        node = _parsed(text)
        return [self._value(each) for each in (node.elts if isinstance(node, ast.Tuple) else [node])]

    def _value(self, node: ast.expr) -> int:
        term = self._term(node)
        if isinstance(term, float):
            raise WenetError(f"{_short(ast.unparse(node))} is a constant, but a value is needed")
        return term

    def _term(self, node: ast.expr) -> Term:
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return _as_float(node.value)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return self.builder.arithmetic("mul", -1.0, self._term(node.operand))
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            left, right = self._term(node.left), self._term(node.right)
            if any(isinstance(term, int) and term == X for term in (left, right)):
                raise WenetError("only linear and product can read x, which has another size")
            return self.builder.arithmetic(_OPERATORS[type(node.op)], left, right)
        if isinstance(node, ast.Name):
            if node.id not in self.values:
                raise WenetError(f"no value {node.id!r} is defined before this place")
            return self.values[node.id]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            return self._call(node.func.id, [self._term(argument) for argument in node.args])
        raise WenetError(f"{_short(ast.unparse(node))} cannot stand in a program")

    def _call(self, name: str, arguments: list[Term]) -> int:
        if name not in FUNCTIONS:
            mend = did_you_mean(name, FUNCTIONS) or f"choose from {', '.join(FUNCTIONS)}"
            raise WenetError(f"unknown function {name!r}; {mend}")
        number = arguments.pop() if name in LEARNED and arguments and isinstance(arguments[-1], float) else None
        if any(isinstance(argument, float) for argument in arguments):
            raise WenetError(f"{name} takes values, not constants")
        return self.builder.append(name, tuple(map(int, arguments)), number)


def _as_float(number: Any) -> float:
    try:
        return float(number)
    except OverflowError:
        raise WenetError("a constant of the program is too large") from None


def _parsed(expression: str) -> ast.expr:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # about numbers that run into names
            return ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise WenetError(f"{_short(expression)} is not an expression of a program") from None


def _short(text: str) -> str:
    return repr(text if len(text) < 60 else f"{text[:56]} ...")
