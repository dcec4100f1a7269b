"""Checks of a program."""

from __future__ import annotations

import math
from collections.abc import Sequence

from wenet_kernels.errors import WenetError, did_you_mean
from wenet_kernels.programs.instructions import (
    LEARNED,
    MAX_INSTRUCTIONS,
    NORMALISATIONS,
    OPERANDS,
    OPERATIONS,
    PRODUCTS,
    STATES,
    WITH_NUMBER,
    Instruction,
    X,
)


def check_program(states: int, instructions: Sequence[Instruction], results: Sequence[int], output: object) -> None:
    """Raise `WenetError` unless the parts form a cell."""
    if type(states) is not int or not 1 <= states <= len(STATES):
        raise WenetError(f"a cell carries 1 to {len(STATES)} states, not {states!r}")
    if not instructions:
        raise WenetError("a cell must compute something; this one only hands on its states")
    if not 1 <= len(instructions) <= MAX_INSTRUCTIONS:
        raise WenetError(f"a cell has 1 to {MAX_INSTRUCTIONS} instructions, this one has {len(instructions)}")
    for value, instruction in enumerate(instructions, start=states):
        _check_instruction(instruction, value, f"instruction {value - states + 1}")
    values = states + len(instructions)
    if len(results) != states:
        raise WenetError(f"a cell of {states} states needs as many new ones, not {len(results)}")
    for result in (*results, output):
        if type(result) is not int or not 0 <= result < values:
            raise WenetError(f"a new state or output is value {result!r}; there are 0 to {values - 1}")
    assert isinstance(output, int)
    _check_normalised(states, instructions)
    _check_reach(states, instructions, results, output)


def _check_instruction(instruction: Instruction, value: int, place: str) -> None:
    name, operands, number = instruction
    if name not in OPERATIONS:
        mend = did_you_mean(name, OPERATIONS) or f"choose from {', '.join(OPERATIONS)}"
        raise WenetError(f"{place}: unknown operation {name!r}; {mend}")
    if not isinstance(operands, tuple) or any(type(operand) is not int for operand in operands):
        raise WenetError(f"{place}: operands must be a tuple of value numbers, not {operands!r}")
    if name in PRODUCTS:
        _check_factors(name, operands, place)
    elif len(operands) != OPERANDS[name]:
        raise WenetError(f"{place}: {name} reads {OPERANDS[name]} values, not {len(operands)}")
    for operand in operands:
        if operand != X and not 0 <= operand < value:
            raise WenetError(f"{place}: value {operand} is not yet computed; it must lie in 0..{value - 1}")
        if operand == X and name not in PRODUCTS:
            raise WenetError(f"{place}: {name} reads x, which has another size; write linear(x)")
    _check_number(name, number, place)


def _check_factors(name: str, operands: tuple[int, ...], place: str) -> None:
    values = [operand for operand in operands if operand != X]
    if not operands or len(values) > 1 or len(operands) - len(values) > 1 or (len(operands) == 2 and operands[0] != X):
        raise WenetError(f"{place}: {name} takes x, or one value, or x and one value, in this order")


def _check_number(name: str, number: object, place: str) -> None:
    if number is None:
        if name in WITH_NUMBER:
            raise WenetError(f"{place}: {name} needs a constant")
        return
    if name not in WITH_NUMBER + LEARNED:
        raise WenetError(f"{place}: {name} takes no constant")
    if type(number) is not float or not math.isfinite(number):
        raise WenetError(f"{place}: the constant must be a finite float, not {number!r}")


def _check_normalised(states: int, instructions: Sequence[Instruction]) -> None:
    alike = alike_in_all_rows(states, instructions)
    for place, (name, operands, _) in enumerate(instructions, start=1):
        if name in NORMALISATIONS and operands[0] in alike:
            raise WenetError(
                f"instruction {place}: {name} reads a value made only of learned numbers, the same in all rows, and "
                "would make zero of it; leave it out"
            )


def alike_in_all_rows(states: int, instructions: Sequence[Instruction]) -> set[int]:
    """The values that are made of learned numbers alone: those of any two rows are equal, but for dropout."""
    alike: set[int] = set()
    for value, (_, operands, _) in enumerate(instructions, start=states):
        if all(operand in alike for operand in operands):
            alike.add(value)
    return alike


def _check_reach(states: int, instructions: Sequence[Instruction], results: Sequence[int], output: int) -> None:
    """Every state and instruction must contribute to the output, of this step or a later one."""
    live = reaching(states, instructions, results, output)
    for state in range(states):
        if state not in live:
            raise WenetError(f"state {STATES[state]} never reaches the output; drop it, or read it")
    for value, instruction in enumerate(instructions, start=states):
        if value not in live:
            raise WenetError(f"instruction {value - states + 1}, {instruction.name}, never reaches the output; drop it")
    if X not in live:
        raise WenetError("the output does not depend on x; put linear(x) somewhere")


def reaching(states: int, instructions: Sequence[Instruction], results: Sequence[int], output: int) -> set[int]:
    """The values (and `X`) on which the output depends, directly or through the states of earlier steps."""
    found: set[int] = set()
    pending = [output]
    while pending:
        value = pending.pop()
        if value in found:
            continue
        found.add(value)
        if 0 <= value < states:
            pending.append(results[value])
        elif value >= states:
            pending += instructions[value - states].operands
    return found
