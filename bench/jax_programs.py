"""Programs in JAX, to compare with: as one compiled interpreter of all cells, and as code of their own in one step.

JAX is not among the requirements; `pip install jax` brings it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from wenet_kernels import ProgramBatch
from wenet_kernels.programs.batch import FUNCTIONS, NONE, PRODUCT, VECTOR
from wenet_kernels.recurrence import NORM_EPS

Array = Any
OPERATIONS = ("product", "vector", *FUNCTIONS)  # by code


def functions() -> dict[str, Callable[..., Array]]:
    """The functions of values by name; those with a number get it last."""
    jax, jnp = _jax(), importlib.import_module("jax.numpy")
    return {
        "tanh": jnp.tanh,
        "relu": jax.nn.relu,
        "sigmoid": jax.nn.sigmoid,
        "softplus": jax.nn.softplus,
        "silu": jax.nn.silu,
        "hardsigmoid": lambda a: jnp.clip(a / 6 + 0.5, 0, 1),
        "hardtanh": lambda a: jnp.clip(a, -1, 1),
        "batchnorm": lambda a: (a - a.mean(0)) * jax.lax.rsqrt(a.var(0) + NORM_EPS),
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "mul": lambda a, b: a * b,
        "blend": lambda g, a, b: a + g * (b - a),
        "times": lambda a, k: k * a,
        "plus": lambda a, k: k + a,
        "from": lambda a, k: k - a,
    }


class JaxCells:
    """All cells of a batch over a sequence.

    Args:
        batch: the cells.
        hidden: hidden units, H; as many as features.
        interpreted: compile one interpreter, `vmap` over the cells of `scan` over steps and instructions of `switch`;
            else one step in which every cell has code of its own.
    """

    def __init__(self, batch: ProgramBatch, hidden: int, interpreted: bool) -> None:
        self.batch, self.hidden = batch, hidden
        self.output = self._interpreter() if interpreted else self._own_code()

    def run(self, weights: Sequence[Tensor], x: Tensor, grad: Tensor | None) -> Callable[[], object]:
        """A call; with `grad` `[T, n, M, H]`, of the derivatives of input and parameters.

        Args:
            weights: `[X, H, H]` of the input, `[P, H, H]`, and vectors `[V, H]`.
            x: `[T, M, H]`.
        """
        jax = _jax()
        operands = [jax.numpy.asarray(each.detach().numpy()) for each in (*weights, x)]
        if grad is None:
            compiled = jax.jit(self.output)
            return lambda: jax.block_until_ready(compiled(*operands))
        given = jax.numpy.asarray(grad.numpy())
        compiled = jax.jit(jax.grad(lambda *operands: (self.output(*operands) * given).sum(), argnums=(0, 1, 2, 3)))
        return lambda: jax.block_until_ready(compiled(*operands))

    def _own_code(self) -> Callable[..., Array]:
        jax, known, rows = _jax(), functions(), self.batch.rows()

        def step(weight: Array, vectors: Array, states: Array, pre: Array) -> tuple[Array, Array]:
            found = []
            for network in range(self.batch.count):
                values = list(states[:, network])
                for code, *operands in rows.instructions[rows.first[network] : rows.first[network + 1]]:
                    values.append(_value(known, code, operands, values, pre, weight, vectors, rows.constants))
                found.append([values[place] for place in rows.results[network]])
            *new, output = (jax.numpy.stack(each) for each in zip(*found, strict=True))
            return jax.numpy.stack(new), output

        def output(weight_input: Array, weight: Array, vectors: Array, x: Array) -> Array:
            pre = jax.numpy.einsum("tmi,xih->txmh", x, weight_input)
            first = jax.numpy.zeros((self.batch.states, self.batch.count, x.shape[1], self.hidden))
            return jax.lax.scan(lambda states, each: step(weight, vectors, states, each), first, pre)[1]

        return output

    def _interpreter(self) -> Callable[..., Array]:
        jax = _jax()
        tables, results, starts = self._tables()
        known = functions()

        def cell(table: Array, result: Array, start: Array, operands: tuple[Array, ...]) -> Array:
            weight_input, weight, vectors, x = operands
            branches = [_branch(known, name) for name in OPERATIONS]

            def instruction(state: tuple[Array, Array], row: Array) -> tuple[tuple[Array, Array], None]:
                values, pre = state
                place = row["place"]
                found = jax.lax.switch(row["code"], branches, values, pre, weight, vectors, row)
                return (values.at[place].set(found), pre), None

            def step(states: Array, pre: Array) -> tuple[Array, Array]:
                values = jax.numpy.zeros((start + table["code"].shape[0], *states.shape[1:])).at[:start].set(states)
                (values, _), _ = jax.lax.scan(instruction, (values, pre), table)
                return values[result[:-1]], values[result[-1]]

            pre = jax.numpy.einsum("tmi,xih->txmh", x, weight_input)
            # Else backward would keep the results of all branches of all steps.
            return jax.lax.scan(jax.checkpoint(step), jax.numpy.zeros((start, x.shape[1], self.hidden)), pre)[1]

        def output(weight_input: Array, weight: Array, vectors: Array, x: Array) -> Array:
            own = [array[places] for array, places in zip((weight_input, weight, vectors), self._places(), strict=True)]
            every = jax.vmap(lambda table, result, *own: cell(table, result, starts, (*own, x)))
            return every(tables, results, *own).swapaxes(0, 1)

        return output

    def _places(self) -> list[Array]:
        """Which weights of the input, weights and vectors are each cell's, `[n, most]`; the first fill up."""
        numpy = _jax().numpy
        places = []
        for column in (3, 2, 4):
            of_cells = [sorted(self._used(network, column)) for network in range(self.batch.count)]
            most = max(1, *map(len, of_cells))
            places.append(numpy.asarray([own + [0] * (most - len(own)) for own in of_cells]))
        return places

    def _used(self, network: int, column: int) -> set[int]:
        rows = self.batch.rows()
        own = rows.instructions[rows.first[network] : rows.first[network + 1]]
        used = {row[column] for row in own if row[0] == PRODUCT} | (
            {row[1] for row in own if row[0] == VECTOR} if column == 4 else set()
        )
        return used - {NONE}

    def _tables(self) -> tuple[dict[str, Array], Array, int]:
        """Each cell's instructions with its own numbering of weights, `[n, most]`; the last instruction fills up."""
        numpy, rows, states = _jax().numpy, self.batch.rows(), self.batch.states
        most = max(end - begin for begin, end in zip(rows.first, rows.first[1:], strict=False))
        columns: dict[str, list[list[float]]] = {
            name: [] for name in ("code", "place", "a", "b", "c", "k", "w", "x", "v")
        }
        for network in range(self.batch.count):
            own = [
                self._numbered(network, place, row)
                for place, row in enumerate(rows.instructions[rows.first[network] : rows.first[network + 1]])
            ]
            own += [own[-1]] * (most - len(own))
            for name, column in columns.items():
                column.append([row[name] for row in own])
        arrays = {
            name: numpy.asarray(column, dtype=numpy.float32 if name == "k" else numpy.int32)
            for name, column in columns.items()
        }
        return arrays, numpy.asarray(rows.results), states

    def _numbered(self, network: int, place: int, row: list[int]) -> dict[str, float]:
        code, *operands = row
        of = {column: sorted(self._used(network, column)) for column in (2, 3, 4)}
        found: dict[str, float] = dict.fromkeys("abcwxv", NONE) | {
            "code": code,
            "place": self.batch.states + place,
            "k": 0.0,
        }
        if code == PRODUCT:
            found["a"] = operands[0]
            for name, column in (("w", 2), ("x", 3), ("v", 4)):
                found[name] = NONE if row[column] == NONE else of[column].index(row[column])
        elif code == VECTOR:
            found["v"] = of[4].index(operands[0])
        elif OPERATIONS[code] in ("times", "plus", "from"):
            found["a"], found["k"] = operands[0], self.batch.rows().constants[operands[1]]
        else:
            found |= dict(zip("abc", operands, strict=False))
        return found


def _branch(known: dict[str, Callable[..., Array]], name: str) -> Callable[..., Array]:
    jnp = _jax().numpy

    def branch(values: Array, pre: Array, weight: Array, vectors: Array, row: dict[str, Array]) -> Array:
        def some(array: Array, place: Array) -> Array:
            return jnp.where(place >= 0, array[place], 0)

        if name == "product":
            product = some(values, row["a"]) @ weight[row["w"]]
            return jnp.where(row["w"] >= 0, product, 0) + some(pre, row["x"]) + some(vectors, row["v"])
        if name == "vector":
            return jnp.broadcast_to(vectors[row["v"]], values.shape[1:])
        if name in ("times", "plus", "from"):
            return known[name](values[row["a"]], row["k"])
        count = 3 if name == "blend" else 2 if name in ("add", "sub", "mul") else 1
        return known[name](*(values[row[operand]] for operand in "abc"[:count]))

    return branch


def _value(
    known: dict[str, Callable[..., Array]],
    code: int,
    operands: list[int],
    values: list[Array],
    pre: Array,
    weight: Array,
    vectors: Array,
    constants: list[float],
) -> Array:
    """What an instruction gives, in code of its own."""
    name = OPERATIONS[code]
    if code == PRODUCT:
        value, place, column, bias = operands
        terms = [] if value == NONE else [values[value] @ weight[place]]
        terms += [] if column == NONE else [pre[column]]
        terms += [] if bias == NONE else [vectors[bias]]
        return sum(terms[1:], terms[0])
    if code == VECTOR:
        return _jax().numpy.broadcast_to(vectors[operands[0]], values[0].shape)
    if name in ("times", "plus", "from"):
        return known[name](values[operands[0]], constants[operands[1]])
    return known[name](*(values[operand] for operand in operands if operand != NONE))


def _jax() -> Any:
    return importlib.import_module("jax")
