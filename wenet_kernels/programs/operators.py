"""The registered operators: programs over a sequence, and their gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from wenet_kernels.autocast import without_autocast
from wenet_kernels.programs import batching, reference
from wenet_kernels.programs.backend import BACKENDS, pulled_back, settled
from wenet_kernels.programs.batch import ProgramBatch
from wenet_kernels.programs.evaluation import ProgramEvaluation, ProgramGradients, ProgramRun
from wenet_kernels.programs.run_checks import check_evaluation, check_finite, check_run
from wenet_kernels.registration import Operator, register

_TYPES = {"Tensor": "Tensor", "Tensor | None": "Tensor?", "str": "str"}
_OPERANDS = ", ".join(f"{_TYPES[str(field.type)]} {field.name}" for field in fields(ProgramRun))
_EVALUATION = ", ".join(f"Tensor {name}" for name in ProgramEvaluation._fields)
_GRADIENTS = ", ".join(f"Tensor {name}" for name in ProgramGradients._fields)

_VARIABLES = tuple(range(len(ProgramGradients._fields)))  # operands with a gradient come first
_MASK = len(_VARIABLES)


class CellRNN(Operator):
    """Programs over a sequence: (operands, keep, backend) -> `ProgramEvaluation`."""

    name = "cell_rnn"
    schema = f"({_OPERANDS}, bool keep, str backend) -> ({_EVALUATION})"
    variables = _VARIABLES
    constants = (_MASK,)
    differentiable_outputs = 2
    keeps_outputs = True
    batched = staticmethod(batching.cell_rnn)

    @staticmethod
    def for_derivatives(*arguments: Any) -> tuple[Any, ...]:
        *operands, programs, precision, _, backend = arguments
        backend, precision = settled(backend, operands[0], precision, programs)
        return *operands, programs, precision, torch.is_grad_enabled(), backend

    @staticmethod
    def compute(*arguments: Any) -> ProgramEvaluation:
        r, keep, backend = _settled(*arguments)
        if r.states.numel() == 0:
            return _empty_evaluation(r, keep, backend)
        with without_autocast(r.pre.device):
            evaluation = BACKENDS[backend].forward(r, keep)
        if backend != "cpu":  # which looks itself
            check_finite(r, evaluation.output)
        return evaluation

    @staticmethod
    def fake(*arguments: Any) -> ProgramEvaluation:
        return _empty_evaluation(*_settled(*arguments))

    @staticmethod
    def formula(*arguments: Any) -> tuple[Tensor, Tensor]:
        return reference.forward(ProgramRun(*arguments[:-2]))

    @staticmethod
    def backward(
        arguments: Sequence[Any], outputs: Sequence[Tensor], grads: Sequence[Tensor | None]
    ) -> Sequence[Tensor | None]:
        *operands, _, backend = arguments
        grad_output = torch.zeros_like(outputs[0]) if grads[0] is None else grads[0].contiguous()
        grad_apart = None if grads[1] is None or outputs[1].numel() == 0 else grads[1].contiguous()
        found = ProgramGradients(*cell_rnn_backward(grad_output, grad_apart, *outputs, *operands, backend))
        return found if ProgramRun(*operands).mix is not None else found[:-1]


class CellRNNBackward(Operator):
    """Its gradient: (grad_output, grad_apart, evaluation, operands, backend) -> `ProgramGradients`."""

    name = "cell_rnn_backward"
    schema = f"(Tensor grad_output, Tensor? grad_apart, {_EVALUATION}, {_OPERANDS}, str backend) -> ({_GRADIENTS})"
    # The results of forward are functions of the operands, so second derivatives go through the operands alone.
    variables = (0, 1, *(2 + len(ProgramEvaluation._fields) + position for position in _VARIABLES))
    constants = (2 + len(ProgramEvaluation._fields) + _MASK,)
    batched = staticmethod(batching.cell_rnn_backward)

    @staticmethod
    def compute(grad_output: Tensor, grad_apart: Tensor | None, *arguments: Any) -> ProgramGradients:
        evaluation, r, backend = _split(arguments)
        check_run(r)
        settled(backend, r.pre, r.precision, r.programs)
        check_evaluation(r, evaluation, evaluation_shapes(r, True, backend), grad_output, grad_apart)
        if r.states.numel() == 0:
            return ProgramGradients(*(gradient.zero_() for gradient in _empty_gradients(r)))
        with without_autocast(r.pre.device):
            return BACKENDS[backend].backward(r, evaluation, grad_output, grad_apart)

    @staticmethod
    def fake(grad_output: Tensor, grad_apart: Tensor | None, *arguments: Any) -> ProgramGradients:
        return _empty_gradients(_split(arguments)[1])

    @staticmethod
    def formula(grad_output: Tensor, grad_apart: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
        return tuple(pulled_back(arguments[len(ProgramEvaluation._fields) : -1], grad_output, grad_apart))


def _settled(*arguments: Any) -> tuple[ProgramRun, bool, str]:
    """The arguments of `CellRNN`, checked, with backend and precision resolved."""
    *operands, keep, backend = arguments
    r = ProgramRun(*operands)
    check_run(r)
    backend, precision = settled(backend, r.pre, r.precision, r.programs)
    return r if precision == r.precision else replace(r, precision=precision), keep, backend


def _split(arguments: Sequence[Any]) -> tuple[ProgramEvaluation, ProgramRun, str]:
    kept = len(ProgramEvaluation._fields)
    return ProgramEvaluation(*arguments[:kept]), ProgramRun(*arguments[kept:-1]), arguments[-1]


def evaluation_shapes(r: ProgramRun, keep: bool, backend: str) -> tuple[tuple[int, ...], ...]:
    """The shapes of a `ProgramEvaluation`; nothing is kept of an empty data batch."""
    steps, apart = r.pre.shape[0], ProgramBatch(r.programs).apart
    kept = BACKENDS[backend].kept_shape(r) if keep and r.states.numel() > 0 else (0,)
    return (steps, *r.states.shape[1:]), (apart, steps, *r.states.shape[1:]) if apart else (0,), kept


def _empty_evaluation(r: ProgramRun, keep: bool, backend: str) -> ProgramEvaluation:
    return ProgramEvaluation(*(r.pre.new_empty(shape) for shape in evaluation_shapes(r, keep, backend)))


def _empty_gradients(r: ProgramRun) -> ProgramGradients:
    return ProgramGradients(
        torch.empty_like(r.pre),  # in the same layout, which may have the products before the steps
        r.states.new_empty(r.states.shape),
        r.weight.new_empty(r.weight.shape),
        r.vectors.new_empty(r.vectors.shape),
        r.pre.new_empty(0 if r.mix is None else r.mix.shape),
    )


cell_rnn = register(CellRNN)
cell_rnn_backward = register(CellRNNBackward)
