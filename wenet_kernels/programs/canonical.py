"""One canonical form for all programs that compute the same thing in another order."""

from __future__ import annotations

from collections.abc import Sequence

from wenet_kernels.programs.instructions import LEARNED, PRODUCTS, Instruction, X
from wenet_kernels.programs.program import Program

COMMUTATIVE = ("add", "mul")
ROUNDS = 4  # of refinement; two are enough to tell drawn cells apart


def canonical(program: Program) -> Program:
    """The same cell with its instructions in an order that depends only on what they compute.

    Programs have the same canonical form if they differ only in the order of instructions, in the order of the terms of
    sums and products, or in values computed twice. The order of the parameters may change.

    Examples:
        >>> from wenet_kernels import Program
        >>> from wenet_kernels.programs import canonical
        >>> one = Program.from_text("h | v1 = linear(x) | v2 = linear(h) | tanh(v1 + v2)")
        >>> two = Program.from_text("h | tanh(linear(h) + linear(x))")
        >>> canonical(one) == canonical(two)
        True
    """
    merged = _without_repetition(program)
    return _ordered(merged, _colours(merged))


def _without_repetition(program: Program) -> Program:
    """Merge instructions that compute the same value; products and learned vectors have parameters of their own."""
    states = program.states
    number: dict[int, int] = {X: X, **{state: state for state in range(states)}}  # old to new
    known: dict[Instruction, int] = {}
    kept: list[Instruction] = []
    for value, (name, operands, constant) in enumerate(program.instructions, start=states):
        instruction = Instruction(name, tuple(number[operand] for operand in operands), constant)
        if name in COMMUTATIVE:
            instruction = instruction._replace(operands=tuple(sorted(instruction.operands)))
        if name in PRODUCTS + LEARNED or instruction not in known:
            known[instruction] = states + len(kept)
            kept.append(instruction)
            number[value] = states + len(kept) - 1
        else:
            number[value] = known[instruction]
    return Program(states, kept, [number[result] for result in program.results], number[program.output])


def _colours(program: Program) -> dict[int, int]:
    """A number for every value that depends on its operands and its readers, but not on the order of instructions."""
    ends = {X: (0, 0), **{state: (1, state) for state in range(program.states)}}
    values = list(enumerate(program.instructions, start=program.states))
    made: dict[int, int] = {value: hash(end) for value, end in ends.items()}
    for value, instruction in values:
        made[value] = _mixed(instruction, made)
    colours = dict(made)
    for _ in range(ROUNDS):
        read: dict[int, list[int]] = {value: [] for value in colours}
        for place, result in enumerate((program.output, *program.results)):
            read[result].append(hash((2, place)))
        for value, (name, operands, _) in reversed(values):
            above = hash((colours[value], *sorted(read[value])))
            for place, operand in enumerate(operands):
                read[operand].append(hash((above, 0 if name in COMMUTATIVE else place)))
        refined = {value: hash((made[value], *sorted(read[value]))) for value in colours}
        for value, instruction in values:
            refined[value] = hash((refined[value], _mixed(instruction, refined)))
        colours = refined
    return colours


def _mixed(instruction: Instruction, colours: dict[int, int]) -> int:
    parts = [colours[operand] for operand in instruction.operands]
    # Hashes of strings differ between processes, so hash the bytes as numbers.
    kind = tuple(instruction.name.encode())
    number = () if instruction.number is None else (instruction.number,)
    return hash((kind, number, tuple(sorted(parts) if instruction.name in COMMUTATIVE else parts)))


def _ordered(program: Program, colours: dict[int, int]) -> Program:
    """Instructions in the order in which the results need them; commutative operands by colour."""
    number: dict[int, int] = {X: X, **{state: state for state in range(program.states)}}
    placed: list[Instruction] = []

    def arranged(value: int) -> Sequence[int]:
        name, operands, _ = program.instructions[value - program.states]
        return sorted(operands, key=colours.__getitem__) if name in COMMUTATIVE else operands

    for root in (program.output, *program.results):
        pending = [root]
        while pending:
            value = pending[-1]
            missing = [] if value in number else [each for each in arranged(value) if each not in number]
            if missing:
                pending.append(missing[0])
                continue
            pending.pop()
            if value not in number:
                operands = tuple(number[operand] for operand in arranged(value))
                placed.append(program.instructions[value - program.states]._replace(operands=operands))
                number[value] = program.states + len(placed) - 1
    return Program(program.states, placed, [number[result] for result in program.results], number[program.output])
