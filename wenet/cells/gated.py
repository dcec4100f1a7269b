"""A space of cells with gates and memory, LSTM and GRU among them: random programs by a grammar, and their mutation."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache

from wenet.cells.instances import GRU, LSTM, program_of
from wenet.cells.published import PUBLISHED
from wenet_kernels import Program, WenetError
from wenet_kernels.programs import Instruction, X, canonical
from wenet_kernels.programs.checks import reaching

MIN_BLOCKS, MAX_BLOCKS = 2, 8
VALUES = ("tanh", "relu", "sigmoid", "identity", "softplus", "silu")  # what a candidate may be passed through
SQUASHED = ("tanh", "sigmoid")  # what keeps a state within bounds
PATIENCE = 300  # draws without a new cell after which a space counts as gone through


def random_programs(count: int, states: int, seed: int, blocks: int | range = 4) -> list[Program]:
    """`count` random gated cells that carry so many states, no two of them the same; for the same seed the same.

    Every cell has its new state made of a candidate and of the state before, by a gate or a leak; a cell of two states
    puts the second one out through an output gate, as an LSTM does. Gates may be shared, and may reset what a candidate
    reads. LSTM or GRU is the first cell where it has so many states and blocks.

    Args:
        states: carried, 1 or 2.
        blocks: at most so many products in a cell, 2 to 8, where a cell has at least two; or the numbers of products
            that a cell may have, such as `range(3, 7)`.

    Raises:
        WenetError: numbers out of range, or fewer different cells than asked for.

    Examples:
        >>> from wenet.programs import random_programs
        >>> for cell in random_programs(3, states=1, seed=1):
        ...     print(cell)
        h | v1 = sigmoid(linear(x, h)) | blend(sigmoid(linear(x, h)), tanh(linear(x) + v1 * linear(h)), h)
        h | blend(sigmoid(vector()), h, tanh(linear(x) * linear(h)))
        h | blend(sigmoid(vector()), h, softplus(linear(x, sigmoid(linear(x, h)) * h)))
    """
    numbers = blocks if isinstance(blocks, range) else range(MIN_BLOCKS, blocks + 1)
    if states not in (1, 2) or not _are_possible(numbers) or count < 1:
        raise WenetError(
            f"gated cells have 1 or 2 states and {MIN_BLOCKS} to {MAX_BLOCKS} blocks, and at least one is drawn"
        )
    generator = random.Random(seed)
    found = [_named(states)] if len(_named(states).products) in numbers else []
    seen = {canonical(program) for program in found}
    patience = PATIENCE
    while len(found) < count and patience:
        program = _draw(generator, states, range(numbers[0], generator.choice(numbers) + 1))
        form = canonical(program)
        patience = patience - 1 if form in seen else PATIENCE
        if form not in seen:
            seen.add(form)
            found.append(program)
    if len(found) < count:
        most = numbers[-1]
        raise WenetError(
            f"fewer than {count} gated cells of {most} blocks and {states} states exist; allow more blocks"
        )
    return found[:count]


def _are_possible(blocks: range) -> bool:
    return len(blocks) > 0 and blocks.step == 1 and blocks[0] >= MIN_BLOCKS and blocks[-1] <= MAX_BLOCKS


def random_mixed_programs(
    count: int, states: Sequence[int], blocks: range, seed: int, known: bool = True
) -> list[Program]:
    """Random gated cells of different numbers of states in turn, all different.

    Args:
        states: numbers of states that cells may carry, 1, 2 or both.
        known: whether LSTM and GRU come first, and the published DAG cells last, of any number of blocks; else LSTM and
            GRU are left out.
        count, blocks, seed: as in `random_programs`.

    Raises:
        WenetError: as in `random_programs`.

    Examples:
        >>> from wenet.cells.gated import random_mixed_programs
        >>> [cell.states for cell in random_mixed_programs(4, (1, 2), range(2, 5), seed=1, known=False)]
        [1, 2, 1, 2]
    """
    return list(_mixed(count, tuple(states), blocks, seed, known))


@lru_cache(maxsize=8)  # a search asks for its pool again and again
def _mixed(count: int, states: tuple[int, ...], blocks: range, seed: int, known: bool) -> tuple[Program, ...]:
    first = [cell for cell in (LSTM, GRU) if known and cell.states in states]
    last = [cell for cell in _published() if known and cell.states in states]
    seen = {canonical(cell) for cell in (LSTM, GRU, *_published())}
    each = -(-count // len(states)) + 1  # one may be known
    drawn = [
        [cell for cell in random_programs(each, number, seed, blocks) if canonical(cell) not in seen]
        for number in states
    ]
    others = [*first, *(cell for cells in zip(*drawn, strict=False) for cell in cells)]
    return tuple(others[:count] if count < 2 * len(last) else [*others[: count - len(last)], *last])


def _published() -> list[Program]:
    return [program_of(genotype) for genotype, _ in PUBLISHED.values()]


def mutated(program: Program, seed: int) -> Program:
    """A cell that differs from another by one gene: an activation, an operand, or what two values are joined by.

    Raises:
        WenetError: no change of one gene gives another valid cell.
    """
    generator = random.Random(seed)
    before = canonical(program)
    for _ in range(PATIENCE):
        instructions = list(program.instructions)
        place = generator.randrange(len(instructions))
        instructions[place] = _changed(generator, instructions[place], program.states, program.states + place)
        try:
            found = _pruned(program.states, instructions, program.results)
        except WenetError:
            continue
        # One gene, not all that hangs on it: what fell away would be more.
        if len(found.products) == len(program.products) and canonical(found) != before:
            return found
    raise WenetError("no change of one gene makes another valid cell of this one")


def _named(states: int) -> Program:
    return (GRU, LSTM)[states - 1]


def _draw(generator: random.Random, states: int, blocks: range) -> Program:
    """By the grammar, with one of these numbers of products."""
    while True:
        cell = _Draft(generator, states, blocks[-1])
        carried = cell.refined(cell.new_state(memory=states - 1))
        output = cell.output(carried) if states == 2 else carried
        results = [output, carried][:states]
        try:
            program = Program(states, cell.instructions, results)
        except WenetError:
            continue
        if len(program.products) in blocks:
            return program


class _Draft:
    """A cell that is being drawn."""

    def __init__(self, generator: random.Random, states: int, blocks: int) -> None:
        self.generator, self.states, self.left = generator, states, blocks
        self.instructions: list[Instruction] = []
        self.gates: list[int] = []

    def append(self, name: str, *operands: int, number: float | None = None) -> int:
        self.instructions.append(Instruction(name, operands, number))
        return self.states + len(self.instructions) - 1

    def product(self, *operands: int) -> int:
        self.left -= 1
        return self.append("linear", *operands)

    def gate(self) -> int:
        """A new one, or one that is there already."""
        if self.gates and (self.left < 2 or self.generator.random() < 0.3):
            return self.generator.choice(self.gates)
        read = self.generator.choice(((X, 0), (X, 0), (X, 0), (X,), (0,)))
        self.gates.append(self.append("sigmoid", self.product(*read)))
        return self.gates[-1]

    def candidate(self) -> int:
        """What a state may become: a product of input and h, where a gate may reset h before or behind it."""
        way = self.generator.choice(("plain", "plain", "before", "behind", "multiplied"))
        if way == "before" and self.left >= 2:
            value = self.product(X, self.append("mul", self.gate(), 0))
        elif way == "behind" and self.left >= 3:
            gate = self.gate()
            value = self.append("add", self.product(X), self.append("mul", gate, self.product(0)))
        elif way == "multiplied" and self.left >= 2:
            value = self.append("mul", self.product(X), self.product(0))
        else:
            value = self.product(X, 0)
        name = self.generator.choice(VALUES)
        return value if name == "identity" else self.append(name, value)

    def new_state(self, memory: int) -> int:
        """Of the state before and a candidate; of two gates, or of one and what it leaves."""
        way = self.generator.choice(("blend", "blend", "two gates", "leak", "candidate"))
        if way == "blend":
            return self.append("blend", self.gate(), memory, self.candidate())
        if way == "two gates":
            kept = self.append("mul", self.gate(), memory)
            return self.append("add", kept, self.append("mul", self.gate(), self.candidate()))
        if way == "leak":
            share = self.append("sigmoid", self.append("vector"))
            return self.append("blend", share, memory, self.candidate())
        joined = self.append("add", self.candidate(), memory)
        return self.append(self.generator.choice(SQUASHED), joined)

    def refined(self, state: int) -> int:
        """With gated nodes on it, as highway cells have, while there are blocks left for them."""
        while self.left >= 2 + (self.states > 1) and self.generator.random() < 0.5:
            gate = self.append("sigmoid", self.product(state))
            candidate = self.append(self.generator.choice(SQUASHED), self.product(state))
            state = self.append("blend", gate, state, candidate)
        return state

    def output(self, memory: int) -> int:
        value = self.append("tanh", memory)
        return self.append("mul", self.gate(), value) if self.generator.random() < 0.8 else value


def _changed(generator: random.Random, instruction: Instruction, states: int, value: int) -> Instruction:
    name, operands, _ = instruction
    if name in (*VALUES, "hardsigmoid", "hardtanh") and generator.random() < 0.6:
        return instruction._replace(name=generator.choice([each for each in VALUES if each != "identity"]))
    if name in ("add", "sub", "mul") and generator.random() < 0.4:
        return instruction._replace(name=generator.choice(("add", "sub", "mul")))
    if name == "linear":
        read = generator.choice(((X,), (generator.randrange(value),), (X, generator.randrange(value))))
        return instruction._replace(operands=read)
    if operands:
        place = generator.randrange(len(operands))
        other = (*operands[:place], generator.randrange(value), *operands[place + 1 :])
        return instruction._replace(operands=other)
    return instruction


def _pruned(states: int, instructions: Sequence[Instruction], results: Sequence[int]) -> Program:
    """Without the instructions that no longer reach anything."""
    live = reaching(states, instructions, results, results[0])
    number = {X: X, **{state: state for state in range(states)}}
    kept: list[Instruction] = []
    for value, instruction in enumerate(instructions, start=states):
        if value in live:
            number[value] = states + len(kept)
            kept.append(instruction._replace(operands=tuple(number[operand] for operand in instruction.operands)))
    return Program(states, kept, [number[result] for result in results if result in number])
