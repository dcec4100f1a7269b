"""The contestants at a case: backends and their peers, ready to be called repeatedly."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.cases import COMPARED, Case, Operands
from bench.peers import BatchedStep, PerNetworkLoop, batched_loop
from wenet_kernels import WenetError, backends, dag_rnn


@dataclass(frozen=True)
class Contestant:
    """A way to compute the recurrence of a case.

    Attributes:
        forward: computes the output.
        leaves: tensors to differentiate with respect to.
        grad_output: derivative of the loss with respect to the output.
        flops_forward: operations of one call's products.
        calls: number of calls for the work of the case.
    """

    forward: Callable[[], Tensor]
    leaves: list[Tensor]
    grad_output: Tensor
    flops_forward: int
    calls: int = 1

    def run(self, backward: bool) -> None:
        """Forward without a graph, or forward and all derivatives."""
        if backward:
            torch.autograd.grad(self.forward(), self.leaves, self.grad_output)
        else:
            with torch.no_grad():
                self.forward()

    def flops(self, backward: bool) -> int:
        """Operations of one call's products; backward has two products for each one of forward."""
        return (3 if backward else 1) * self.flops_forward


def prepare_loop(operands: Operands) -> Contestant:
    """Each network as its own module, called in turn."""
    loop = PerNetworkLoop(operands)
    pre, h0, _, _, *mix = operands.leaves
    leaves = [pre, h0, *loop.parameters(), *mix]
    return _contestant(operands, lambda: loop(pre, h0, operands.mix), leaves)


def prepare_traced(operands: Operands) -> Contestant:
    """All networks in batched products, and autograd's backward."""
    return _prepare_batched(operands, BatchedStep(operands))


def prepare_compiled(operands: Operands) -> Contestant:
    """Batched products with one time step compiled and called in a loop; compiling many steps takes too long."""
    torch.compiler.reset()
    return _prepare_batched(operands, torch.compile(BatchedStep(operands), dynamic=False, fullgraph=True))


def prepare_lstm(operands: Operands) -> Contestant:
    """A `torch.nn.LSTM` of the case's hidden size for each network; its products include those with the input."""
    case = operands.case
    like: dict[str, Any] = {"device": operands.pre.device, "dtype": operands.pre.dtype}
    lstm = nn.LSTM(case.hidden, case.hidden, **like)
    x = torch.randn(case.steps, case.rows, case.hidden, requires_grad=True, **like)
    return Contestant(
        lambda: lstm(x)[0],
        [x, *lstm.parameters()],
        torch.randn(case.steps, case.rows, case.hidden, **like),
        2 * case.steps * case.rows * (2 * case.hidden) * (4 * case.hidden),
        calls=case.networks,
    )


def prepare_backend(name: str, operands: Operands) -> Contestant:
    """`dag_rnn` with a backend, named alone or with a precision ("cpu bf16").

    Raises:
        WenetError: the backend cannot run here, or not in this precision.
    """
    backend, _, precision = name.partition(" ")
    status = backends().get(backend, "this version has no such backend")
    if status != "ready":
        raise WenetError(f"{backend}: {status}")
    if precision and "precision" not in inspect.signature(dag_rnn).parameters:
        raise WenetError("this version's dag_rnn takes no precision")
    options: dict[str, Any] = {"precision": precision} if precision else {}

    return _contestant(operands, lambda: evaluate(operands, backend, **options), operands.leaves)


def evaluate(o: Operands, backend: str, **options: Any) -> Tensor:
    """The output of `dag_rnn`, `[T, M, H]` or `[T, n, M, H]`."""
    result = dag_rnn(
        o.pre, o.h0, o.weight_hidden, o.weight_nodes, o.mix, o.cells, mask_h=o.mask_h,
        form=o.case.form, norm=o.case.norm, coupling=o.case.coupling, backend=backend, **options,
    )  # fmt: skip
    return result[0] if isinstance(result, tuple) else result


PEERS: dict[str, Callable[[Operands], Contestant]] = {
    "loop": prepare_loop,
    "traced": prepare_traced,
    "compile": prepare_compiled,
    "lstm": prepare_lstm,
}


def prepare(name: str, operands: Operands) -> Contestant:
    """A peer or a backend by name.

    Raises:
        WenetError: it cannot run here.
    """
    return PEERS[name](operands) if name in PEERS else prepare_backend(name, operands)


def contestants_of(case: Case) -> list[str]:
    """The names of all contestants at a case, even if they cannot run here."""
    return [*(PEERS if case in COMPARED else ()), *backends(), "cpu bf16"]


def _prepare_batched(operands: Operands, step: Callable[..., Tensor]) -> Contestant:
    return _contestant(operands, lambda: batched_loop(step, operands), operands.leaves)


def _contestant(operands: Operands, forward: Callable[[], Tensor], leaves: list[Tensor]) -> Contestant:
    return Contestant(forward, leaves, operands.grad_output, operands.case.flops(backward=False))
