"""The operators registered with PyTorch: the recurrence, the input's product, and the derivatives of both."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from wenet_kernels import batching, reference
from wenet_kernels.backend import BACKENDS, first_possible, resolve_backend
from wenet_kernels.cells import CellBatch
from wenet_kernels.checks import (
    check_evaluation,
    check_finite,
    check_finite_projection,
    check_projection,
    check_projection_gradient,
    check_recurrence,
)
from wenet_kernels.errors import WenetError
from wenet_kernels.recurrence import Evaluation, Gradients, Recurrence, TracedRecurrence
from wenet_kernels.registration import Operator, register, vjp

# The operands of a recurrence, as schemas name them.
_TYPES = {"Tensor": "Tensor", "Tensor | None": "Tensor?", "str": "str", "bool": "bool"}
_OPERANDS = ", ".join(f"{_TYPES[str(field.type)]} {field.name}" for field in fields(Recurrence))
_EVALUATION = ", ".join(f"Tensor {name}" for name in Evaluation._fields)
_GRADIENTS = ", ".join(f"Tensor {name}" for name in Gradients._fields)

_VARIABLES = tuple(range(len(Gradients._fields)))  # differentiable operands come first
_CONSTANTS = tuple(position for position, field in enumerate(fields(Recurrence)) if "Tensor" in str(field.type))[
    len(_VARIABLES) :
]


class DagRNN(Operator):
    """The recurrence: (operands, keep, backend) -> `Evaluation`. `keep` stores what backward needs."""

    name = "dag_rnn"
    schema = f"({_OPERANDS}, bool keep, str backend) -> ({_EVALUATION})"
    variables = _VARIABLES
    constants = _CONSTANTS
    differentiable_outputs = 1
    keeps_outputs = True
    batched = staticmethod(batching.dag_rnn)

    @staticmethod
    def for_derivatives(*arguments: Any) -> tuple[Any, ...]:
        r, _, backend = _settled(*arguments)
        return *r.values(), torch.is_grad_enabled(), backend

    @staticmethod
    def compute(*arguments: Any) -> Evaluation:
        r, keep, backend = _settled(*arguments)
        if r.pre.numel() == 0:
            return _empty_evaluation(r, keep, backend)
        evaluation = BACKENDS[backend].forward(r, keep)
        check_finite(r, evaluation.output)
        return evaluation

    @staticmethod
    def fake(*arguments: Any) -> Evaluation:
        return _empty_evaluation(*_settled(*arguments))

    @staticmethod
    def formula(*arguments: Any) -> Tensor:
        *operands, _, _ = arguments
        return _traced(operands)

    @staticmethod
    def backward(
        arguments: Sequence[Any], outputs: Sequence[Tensor], grads: Sequence[Tensor | None]
    ) -> Sequence[Tensor | None]:
        *operands, _, backend = arguments
        assert grads[0] is not None
        found = Gradients(*dag_rnn_backward(grads[0].contiguous(), *outputs, *operands, backend))
        return found if Recurrence(*operands).mix is not None else found[:-1]


class DagRNNBackward(Operator):
    """The derivative of the recurrence: (grad_output, evaluation, operands, backend) -> `Gradients`."""

    name = "dag_rnn_backward"
    schema = f"(Tensor grad_output, {_EVALUATION}, {_OPERANDS}, str backend) -> ({_GRADIENTS})"
    # The evaluation is a function of the operands; derivatives go through those.
    variables = (0, *(1 + len(Evaluation._fields) + position for position in _VARIABLES))
    constants = tuple(1 + len(Evaluation._fields) + position for position in _CONSTANTS)
    batched = staticmethod(batching.dag_rnn_backward)

    @staticmethod
    def compute(grad_output: Tensor, *arguments: Any) -> Gradients:
        evaluation, r, backend = _split(arguments)
        resolve_backend(backend, r.pre.device, r.pre.dtype, r.precision, CellBatch(r.cells).registered)
        check_recurrence(r)
        check_evaluation(r, evaluation, _shapes(r, True, backend), grad_output)
        if r.pre.numel() == 0:
            return Gradients(*(gradient.zero_() for gradient in _empty_gradients(r)))
        return BACKENDS[backend].backward(r, evaluation, grad_output.contiguous())

    @staticmethod
    def fake(grad_output: Tensor, *arguments: Any) -> Gradients:
        return _empty_gradients(_split(arguments)[1])

    @staticmethod
    def formula(grad_output: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        operands = arguments[len(Evaluation._fields) : -1]
        given = [position for position in _VARIABLES if operands[position] is not None]

        def output(*variables: Tensor) -> Tensor:
            filled = list(operands)
            for position, variable in zip(given, variables, strict=True):
                filled[position] = variable
            return _traced(filled)

        _, pull_back = vjp(output, *(operands[position] for position in given))
        found = pull_back(grad_output)
        return found if len(found) == len(_VARIABLES) else (*found, grad_output.new_empty(0))


def _settled(*arguments: Any) -> tuple[Recurrence, bool, str]:
    """The checked arguments of `DagRNN`, with backend and precision resolved."""
    *operands, keep, backend = arguments
    r = Recurrence(*operands)
    check_recurrence(r)
    registered = CellBatch(r.cells).registered
    backend, precision = first_possible(
        r.precision,
        r.pre.dtype,
        lambda precision: resolve_backend(backend, r.pre.device, r.pre.dtype, precision, registered),
    )
    return r if precision == r.precision else replace(r, precision=precision), keep, backend


def _traced(operands: Sequence[Any]) -> Tensor:
    r = TracedRecurrence(*operands)
    if r.all_ranks:
        raise WenetError("a mixture over several processes has first derivatives alone, and those by backward()")
    return reference.traced(r)


def _split(arguments: Sequence[Any]) -> tuple[Evaluation, Recurrence, str]:
    kept = len(Evaluation._fields)
    return Evaluation(*arguments[:kept]), Recurrence(*arguments[kept:-1]), arguments[-1]


def _shapes(r: Recurrence, keep: bool, backend: str) -> tuple[tuple[int, ...], ...]:
    """Shapes of an `Evaluation`; for an empty data batch nothing is kept."""
    steps, networks, rows, hidden, nodes = r.sizes
    kept: tuple[int, ...] = (0,)
    if keep and rows > 0:
        kept = BACKENDS[backend].kept_shape(*r.sizes, r.form, r.pre.dtype, r.precision)
    statistics = (steps, networks, nodes + 1, hidden) if r.norm == "batch" else (0,)
    return (steps, *r.h0.shape), kept, statistics, statistics


def _empty_evaluation(r: Recurrence, keep: bool, backend: str) -> Evaluation:
    return Evaluation(*(r.pre.new_empty(shape) for shape in _shapes(r, keep, backend)))


def _empty_gradients(r: Recurrence) -> Gradients:
    return Gradients(
        torch.empty_like(r.pre),
        r.h0.new_empty(r.h0.shape),
        r.weight_hidden.new_empty(r.weight_hidden.shape),
        r.weight_nodes.new_empty(r.weight_nodes.shape),
        r.pre.new_empty(0 if r.mix is None else r.mix.shape),
    )


class Project(Operator):
    """The input's product: x `[R, I]` and weight `[n, I, G]` give `[n, R, G]`."""

    name = "project"
    schema = "(Tensor x, Tensor weight, str backend) -> Tensor"
    variables = (0, 1)
    differentiable_outputs = 1
    batched = staticmethod(batching.project)

    @staticmethod
    def compute(x: Tensor, weight: Tensor, backend: str) -> Tensor:
        check_projection(x, weight)
        backend = resolve_backend(backend, x.device, x.dtype)
        if x.numel() == 0 or weight.numel() == 0:
            return reference.project(x, weight)
        output = BACKENDS[backend].project(x, weight)
        if backend != "cpu":  # which looks itself
            check_finite_projection(x, weight, output)
        return output

    @staticmethod
    def fake(x: Tensor, weight: Tensor, backend: str) -> Tensor:
        check_projection(x, weight)
        return x.new_empty(weight.shape[0], x.shape[0], weight.shape[2])

    @staticmethod
    def formula(x: Tensor, weight: Tensor, backend: str) -> Tensor:
        return reference.project(x, weight)

    @staticmethod
    def for_derivatives(x: Tensor, weight: Tensor, backend: str) -> tuple[Tensor, Tensor, str]:
        check_projection(x, weight)
        return x, weight, resolve_backend(backend, x.device, x.dtype)

    @staticmethod
    def backward(
        arguments: Sequence[Any], outputs: Sequence[Tensor], grads: Sequence[Tensor | None]
    ) -> Sequence[Tensor | None]:
        return project_backward(grads[0], *arguments)


class ProjectBackward(Operator):
    """The derivative of the input's product: (grad_output `[n, R, G]`, x, weight) -> derivatives of x and weight."""

    name = "project_backward"
    schema = "(Tensor grad_output, Tensor x, Tensor weight, str backend) -> (Tensor x, Tensor weight)"
    variables = (0, 1, 2)
    batched = staticmethod(batching.project_backward)

    @staticmethod
    def compute(grad_output: Tensor, x: Tensor, weight: Tensor, backend: str) -> tuple[Tensor, Tensor]:
        check_projection_gradient(grad_output, x, weight)
        resolve_backend(backend, x.device, x.dtype)
        if x.numel() == 0 or weight.numel() == 0:
            return reference.project_backward(grad_output, x, weight)
        return BACKENDS[backend].project_backward(grad_output, x, weight)

    @staticmethod
    def fake(grad_output: Tensor, x: Tensor, weight: Tensor, backend: str) -> tuple[Tensor, Tensor]:
        return x.new_empty(x.shape), weight.new_empty(weight.shape)

    @staticmethod
    def formula(grad_output: Tensor, x: Tensor, weight: Tensor, backend: str) -> tuple[Tensor, Tensor]:
        return reference.project_backward(grad_output, x, weight)


dag_rnn = register(DagRNN)
dag_rnn_backward = register(DagRNNBackward)
project = register(Project)
project_backward = register(ProjectBackward)
