"""Cells written as Python functions: `cell` calls one once, with values that take note of what is done to them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from types import TracebackType
from typing import Any, NoReturn

import torch
from torch.nn import functional

from wenet_kernels import Program, WenetError
from wenet_kernels.programs import STATES, Builder, Term, X

_tracing: ContextVar[Builder | None] = ContextVar("tracing", default=None)


def cell(function: Callable[..., Any]) -> Program:
    """A recurrent cell of a function that writes down one step of it.

    The function takes the input and the carried states, one to four, and returns the new states, the first of which is
    put out; one value more in front of them is put out instead. Sizes stay open. What it can do with values: `+ - *`
    with one another and with numbers, division by a number, and the functions of `wenet.programs`, or those of the
    same names in PyTorch. Each `linear` and each `vector` is a parameter of its own.

    Raises:
        WenetError: the function does something else, or what it writes down is no cell, with the line.

    Examples:
        >>> import torch, wenet
        >>> from wenet.programs import linear, sigmoid, tanh
        >>> @wenet.cell
        ... def gru(x, h):
        ...     r, z = sigmoid(linear(x, h)), sigmoid(linear(x, h))
        ...     n = tanh(linear(x) + r * linear(h))
        ...     return h + (1 - z) * (n - h)
        >>> layer = wenet.nn.CellRNN(10, 20, gru)
        >>> output, h = layer(torch.randn(7, 3, 10))
        >>> output.shape, h.shape
        (torch.Size([7, 3, 20]), torch.Size([1, 3, 20]))
    """
    if not inspect.isfunction(function):
        raise WenetError(f"a cell is made of a function, not of {function!r}")
    builder = Builder(_count_states(function))
    arguments = [Value(builder, X), *(Value(builder, state) for state in range(builder.states))]
    token = _tracing.set(builder)
    try:
        results = _results(function(*arguments), builder)
    except Exception as error:
        reason = error if isinstance(error, WenetError) else f"{type(error).__name__}: {error}"
        line = " ".join(str(reason).split())
        raise WenetError(f"cell {function.__name__}{_place(error.__traceback__, function)}: {line}") from None
    finally:
        _tracing.reset(token)
    try:
        return Program(builder.states, builder.instructions, results[-builder.states :], results[0])
    except WenetError as error:
        raise WenetError(f"cell {function.__name__}: {error}") from None


def _count_states(function: Callable[..., Any]) -> int:
    parameters = inspect.signature(function).parameters.values()
    plain = all(each.kind is each.POSITIONAL_OR_KEYWORD and each.default is each.empty for each in parameters)
    if not plain or not 2 <= len(parameters) <= 1 + len(STATES):
        raise WenetError(f"cell {function.__name__} must take x and 1 to {len(STATES)} states, and nothing else")
    return len(parameters) - 1


def _place(traceback: TracebackType | None, function: Callable[..., Any]) -> str:
    """Where in the function an error arose."""
    line = None
    while traceback is not None:
        if traceback.tb_frame.f_code is function.__code__:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return "" if line is None else f", line {line}"


def _results(returned: object, builder: Builder) -> list[int]:
    values = list(returned) if isinstance(returned, tuple | list) else [returned]
    if len(values) not in (builder.states, builder.states + 1):
        raise WenetError(
            f"it must return {builder.states} new states, or an output and {builder.states} new states, "
            f"not {len(values)} values"
        )
    return [_operand(value, builder, "the function returns") for value in values]


class Value:
    """What a cell computes with, `[M, H]`, while it is written down; it holds no numbers."""

    __slots__ = ("builder", "number")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, builder: Builder, number: int) -> None:
        self.builder, self.number = builder, number

    def __add__(self, other: object) -> Value:
        return _arithmetic("add", self, other)

    def __radd__(self, other: object) -> Value:
        return _arithmetic("add", other, self)

    def __sub__(self, other: object) -> Value:
        return _arithmetic("sub", self, other)

    def __rsub__(self, other: object) -> Value:
        return _arithmetic("sub", other, self)

    def __mul__(self, other: object) -> Value:
        return _arithmetic("mul", self, other)

    def __rmul__(self, other: object) -> Value:
        return _arithmetic("mul", other, self)

    def __neg__(self) -> Value:
        return _arithmetic("mul", -1.0, self)

    def __truediv__(self, other: object) -> Value:
        if not isinstance(other, int | float) or other == 0:
            raise WenetError(f"a cell divides by numbers other than 0, not by {_described(other)}")
        return _arithmetic("mul", self, 1 / other)

    def __bool__(self) -> NoReturn:
        raise WenetError("a cell cannot decide by a value, as 'if', 'while', 'and', 'or' do; blend two instead")

    def _compare(self, other: object) -> NoReturn:
        raise WenetError("a cell cannot compare values; relu, hardtanh and hardsigmoid bend where a comparison would")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _compare

    def _divide_up(self, *_: object) -> NoReturn:
        raise WenetError("a value of a cell is one whole and has no parts; call linear once for each part")

    __iter__ = __getitem__ = __len__ = _divide_up

    def __getattr__(self, name: str) -> NoReturn:
        raise WenetError(f"a value of a cell has no {name!r}; use +, -, * and the functions of wenet.programs")

    def __repr__(self) -> str:
        return "x" if self.number == X else f"value {self.number} of a cell"

    @classmethod
    def __torch_function__(
        cls, function: Any, types: object, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Value:
        name = getattr(function, "__name__", str(function))
        if function not in _OF_TORCH:
            raise WenetError(f"a cell knows no torch function {name!r}; use those of wenet.programs")
        if any(option != _DEFAULTS.get(each) for each, option in (options or {}).items()):
            raise WenetError(f"{name} takes no options in a cell, not {options}")
        try:
            return _OF_TORCH[function](*arguments)
        except TypeError:
            raise WenetError(f"{name} takes other arguments in a cell, not {len(arguments)}") from None


def _arithmetic(name: str, a: object, b: object) -> Value:
    builder = _builder()
    terms = [_term(a, builder), _term(b, builder)]
    neutral = 1.0 if name == "mul" else 0.0
    if isinstance(terms[1], float) and terms[1] == neutral:
        return Value(builder, int(terms[0]))
    if isinstance(terms[0], float) and terms[0] == neutral and name != "sub":
        return Value(builder, int(terms[1]))
    return Value(builder, int(builder.arithmetic(name, *terms)))


def _term(value: object, builder: Builder) -> Term:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return _operand(value, builder, "there is")


def _operand(value: object, builder: Builder, where: str) -> int:
    """The number of a value that an instruction reads."""
    if not isinstance(value, Value):
        raise WenetError(f"{where} {_described(value)} where a value of the cell is needed; see wenet.programs")
    if value.builder is not builder:
        raise WenetError("a value belongs to another cell, or to an earlier call of this one")
    if value.number == X:
        raise WenetError("only linear and product can read x, which has another size; write linear(x)")
    return value.number


def _described(value: object) -> str:
    return "None" if value is None else repr(value) if isinstance(value, Value | int | float) else type(value).__name__


def _builder() -> Builder:
    builder = _tracing.get()
    if builder is None:
        raise WenetError("this function describes a cell; call it in a function under @wenet.cell")
    return builder


def _append(name: str, *values: object, number: float | None = None) -> Value:
    builder = _builder()
    operands = tuple(_operand(value, builder, f"{name} is given") for value in values)
    return Value(builder, builder.append(name, operands, number))


def linear(*factors: Value) -> Value:
    """`x Wx + v Wv + b`: the input, a state or another value, or the input and one of these, through weights of its
    own. The order of the two does not matter: `linear(h, x)` is `linear(x, h)`."""
    return _product("linear", factors)


def product(*factors: Value) -> Value:
    """`linear` without a bias."""
    return _product("product", factors)


def _product(name: str, factors: tuple[object, ...]) -> Value:
    builder = _builder()
    inputs = [isinstance(factor, Value) and factor.number == X for factor in factors]
    if sum(inputs) > 1 or inputs.count(False) > 1 or not factors:
        raise WenetError(f"{name} takes x, one value, or x and one value; add two of them for more")
    operands = (
        X if is_input else _operand(factor, builder, f"{name} is given")
        for factor, is_input in zip(factors, inputs, strict=True)
    )
    return Value(builder, builder.append(name, tuple(operands)))


def vector(first: float | None = None) -> Value:
    """Learned numbers, one for each hidden unit.

    Args:
        first: what they all are before training; by default they are drawn as weights are.
    """
    return _learned("vector", first)


def scalar(first: float | None = None) -> Value:
    """A learned number, the same for all hidden units; `first` as in `vector`."""
    return _learned("scalar", first)


def _learned(name: str, first: object) -> Value:
    if first is not None and (not isinstance(first, int | float) or isinstance(first, bool)):
        raise WenetError(f"{name} begins with a number, not with {_described(first)}")
    return _append(name, number=None if first is None else float(first))


def tanh(a: Value) -> Value:
    return _append("tanh", a)


def relu(a: Value) -> Value:
    return _append("relu", a)


def sigmoid(a: Value) -> Value:
    return _append("sigmoid", a)


def softplus(a: Value) -> Value:
    """log(1 + exp(a))."""
    return _append("softplus", a)


def silu(a: Value) -> Value:
    """a sigmoid(a)."""
    return _append("silu", a)


def hardsigmoid(a: Value) -> Value:
    """a / 6 + 1 / 2 between 0 and 1."""
    return _append("hardsigmoid", a)


def hardtanh(a: Value) -> Value:
    """a between -1 and 1."""
    return _append("hardtanh", a)


def batchnorm(a: Value) -> Value:
    """(a - mean) / sqrt(variance + 1e-5), both over the rows of the data batch in this step, for each hidden unit; in
    evaluation too."""
    return _append("batchnorm", a)


def identity(a: Value) -> Value:
    return a


def blend(gate: Value, a: Value, b: Value) -> Value:
    """a where the gate is 0, b where it is 1, and between them in between: a + gate (b - a)."""
    return _append("blend", gate, a, b)


def mean(*values: Value | Iterable[Value]) -> Value:
    """Of several values, or of a list of them."""
    given: list[Any] = list(values)
    if len(given) == 1 and isinstance(given[0], list | tuple):
        given = list(given[0])
    if not given:
        raise WenetError("mean needs at least one value")
    total = given[0]
    for value in given[1:]:
        total = _arithmetic("add", total, value)
    return _arithmetic("mul", 1 / len(given), total)


_OF_TORCH: dict[Any, Callable[..., Value]] = {
    torch.tanh: tanh,
    torch.relu: relu,
    functional.relu: relu,
    torch.sigmoid: sigmoid,
    functional.softplus: softplus,
    functional.silu: silu,
    functional.hardsigmoid: hardsigmoid,
    functional.hardtanh: hardtanh,
    torch.lerp: lambda a, b, gate: blend(gate, a, b),
}
_DEFAULTS = {"inplace": False, "min_val": -1.0, "max_val": 1.0}  # options that say nothing else than ours do
