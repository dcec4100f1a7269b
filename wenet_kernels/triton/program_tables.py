"""Programs as the tables that the kernels of `programs.py` read: operations, and where their values lie.

A *place* says where in the memory of a call a value lies, which is a list of matrices `[M, H]`. What is needed over
time has a slot, and its place is the number of that: T + 1 matrices in a row for states, before the first step and
after every one, and then T for each value that backward reads. Other values have one matrix behind all slots, which the
next step writes anew; matrix z of these is at place -1 - z.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from wenet_kernels.programs.batch import CODES, FUNCTIONS, NONE, PRODUCT, VECTOR, ProgramBatch
from wenet_kernels.programs.instructions import OPERANDS, WITH_NUMBER

SILU, BATCHNORM = CODES["silu"], CODES["batchnorm"]
# Activations whose derivative follows from their value: applied to a product at once, which is then not kept.
FOLDED = tuple(CODES[name] for name in ("tanh", "relu", "sigmoid", "softplus", "hardsigmoid", "hardtanh"))
READ_BY_BACKWARD = {CODES["mul"]: 2, CODES["blend"]: 3, SILU: 1, BATCHNORM: 1}  # number of operands

# Columns of the table of operations. A place and the number of a derivative of each of three operands and of the
# value; what a product has; whether the derivative of an operand begins here, a bit for each.
FIELDS = (
    "code", "a", "b", "c", "value", "grad_a", "grad_b", "grad_c", "grad_value", "is_product", "weight", "column",
    "vector", "fresh",
)  # fmt: skip


class Operation(NamedTuple):
    """What is done at once: a product and a function of it, or a function of up to three values.

    Args:
        code: of the function; PRODUCT for none.
        operands: values; the one that a product with a weight reads.
        value: that it gives.
    """

    code: int
    operands: tuple[int, ...]
    value: int
    is_product: bool = False
    weight: int = NONE
    column: int = NONE
    vector: int = NONE
    number: float = 0.0


class ProgramTables(NamedTuple):
    """All programs as integers; `results` are the new states, and the output if it is none."""

    operations: Tensor  # [N, FIELDS]
    numbers: Tensor  # [N] fp32, the constants of operations
    bounds: Tensor  # [n, 3]: first and last operation, first derivative; those of a program's states come first
    results: Tensor  # [n, R, 3]: place, number of the derivative, whether that begins here
    factors: Tensor  # [P]: the place of the value that a weight multiplies


@functools.cache
def lower(programs: str, weighted: bool, keep: bool) -> Lowered:
    """A batch of programs as the kernels carry it out.

    Args:
        programs: `ProgramBatch.text`.
        weighted: whether the networks are mixed.
        keep: whether backward will come.
    """
    return Lowered(ProgramBatch(programs), weighted, keep)


@functools.cache
def tables_of(programs: str, weighted: bool, keep: bool, device: torch.device) -> ProgramTables:
    """The tables of `lower` on a device, made once."""
    lowered = lower(programs, weighted, keep)
    # An inference tensor could not take part in autograd later, and a tensor made in a transform must not outlive it.
    with torch.inference_mode(False), torch._C._DisableFuncTorch():

        def integers(rows: Sequence[object]) -> Tensor:
            return torch.tensor(rows, dtype=torch.int32, device=device)

        return ProgramTables(
            integers(lowered.operations),
            torch.tensor(lowered.numbers, dtype=torch.float32, device=device),
            integers(lowered.bounds),
            integers(lowered.results),
            integers([place for _, place in sorted(lowered.factors.items())]),
        )


def operations_of(batch: ProgramBatch, network: int) -> list[Operation]:
    """The operations of a program, in order, with activations folded into the products that they alone read."""
    rows = batch.rows()
    plain = [
        _operation(row, value, rows.constants)
        for value, row in enumerate(rows.instructions[rows.first[network] : rows.first[network + 1]], batch.states)
    ]
    readers: dict[int, list[Operation]] = {}
    for operation in plain:
        for operand in operation.operands:
            readers.setdefault(operand, []).append(operation)
    found, folded = [], set()
    for operation in plain:
        if operation.value in folded:
            continue
        own = readers.get(operation.value, [])
        alone = len(own) == 1 and operation.value not in rows.results[network]
        if operation.is_product and alone and own[0].code in FOLDED:
            operation = operation._replace(code=own[0].code, value=own[0].value)
            folded.add(operation.value)
        found.append(operation)
    return found


def _operation(row: Sequence[int], value: int, constants: Sequence[float]) -> Operation:
    code, *operands = row
    if code == PRODUCT:
        read, weight, column, vector = operands
        return Operation(PRODUCT, () if read == NONE else (read,), value, True, weight, column, vector)
    if code == VECTOR:
        return Operation(PRODUCT, (), value, True, vector=operands[0])
    name = FUNCTIONS[code - 2]
    count = OPERANDS[name]
    number = constants[operands[count]] if name in WITH_NUMBER else 0.0
    return Operation(code, tuple(operands[:count]), value, number=number)


def _read_by_backward(operations: Sequence[Operation], results: Sequence[int], weighted: bool) -> set[int]:
    """Values that backward needs."""
    needed = set(results) if weighted else set()  # for the derivatives of the mixing weights
    for operation in operations:
        if operation.weight != NONE:
            needed.update(operation.operands)
        needed.update(operation.operands[: READ_BY_BACKWARD.get(operation.code, 0)])
        if operation.code in FOLDED:
            needed.add(operation.value)
    return needed


class Lowered:
    """The rows of the tables, and the sizes of what the kernels need.

    Attributes:
        carried: results, R.
        slots: of values over time, the first of which are `longer` by one matrix.
        singles: matrices that all steps share.
        values: derivatives, one for each value of each program.
    """

    def __init__(self, batch: ProgramBatch, weighted: bool, keep: bool) -> None:
        self.batch, self.weighted, self.keep = batch, weighted, keep
        self.operations: list[list[int]] = []
        self.numbers: list[float] = []
        self.bounds: list[list[int]] = []
        self.results: list[list[list[int]]] = []
        self.factors: dict[int, int] = {}
        self.chains = 1 if weighted else batch.count  # sets of states: one for all networks, or each network's own
        self.carried = batch.states + (not batch.puts_out_h)
        self.longer = self.slots = self.carried * self.chains
        self.singles = self.values = 0
        for network in range(batch.count):
            self._add(network)

    def over_time(self, steps: int) -> int:
        """Matrices of all slots, behind which are the single ones."""
        return self.slots * steps + self.longer

    def _add(self, network: int) -> None:
        operations = operations_of(self.batch, network)
        results = self.batch.rows().results[network][: self.carried]
        places = self._places(network, operations, results)
        begun: set[int] = set()  # values whose derivative has begun, in the order of backward
        self.results.append([[places[each], self.values + each, _begins(each, begun)] for each in results])
        rows = [self._row(operation, places, begun) for operation in reversed(operations)]
        self.bounds.append([len(self.operations), len(self.operations) + len(rows), self.values])
        self.operations += reversed(rows)
        self.numbers += [operation.number for operation in operations]
        self.values += self.batch.states + len(self.batch.programs[network].instructions)

    def _row(self, operation: Operation, places: dict[int, int], begun: set[int]) -> list[int]:
        read = [*operation.operands, *[0] * (3 - len(operation.operands))]
        fresh = sum(_begins(operand, begun) << bit for bit, operand in enumerate(operation.operands))
        if operation.weight != NONE:
            self.factors[operation.weight] = places[read[0]]
        return [
            operation.code,
            *(places[operand] for operand in read),
            places[operation.value],
            *(self.values + operand for operand in read),
            self.values + operation.value,
            int(operation.is_product),
            *(operation.weight, operation.column, operation.vector),
            fresh,
        ]

    def _places(self, network: int, operations: Sequence[Operation], results: Sequence[int]) -> dict[int, int]:
        """Slots for states and for what backward reads, and for all else as few matrices as suffice."""
        needed = _read_by_backward(operations, results, self.weighted) if self.keep else set()
        places = {s: s * self.chains + (0 if self.weighted else network) for s in range(self.batch.states)}
        last = {operand: place for place, operation in enumerate(operations) for operand in operation.operands}
        free: list[int] = []
        for place, operation in enumerate(operations):
            if operation.value in needed:
                places[operation.value] = self.slots
                self.slots += 1
            else:
                places[operation.value] = free.pop() if free else self._single()
            # A product reads its operand while it writes its value, so that place is free only for the next one.
            done = {each for each in operation.operands if last[each] == place and each not in results}
            free += [places[each] for each in sorted(done) if places[each] < 0]
        return places

    def _single(self) -> int:
        self.singles += 1
        return -self.singles


def _begins(value: int, begun: set[int]) -> bool:
    """Whether this is the first time that a value is met."""
    new = value not in begun
    begun.add(value)
    return new
