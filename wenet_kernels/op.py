"""`dag_rnn`: checks, choice of backend, and the two operators that PyTorch knows (forward and backward)."""

import os
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from wenet_kernels import cpu, reference, triton
from wenet_kernels.activations import WITH_REGISTERED, activation_names, registered_among
from wenet_kernels.cells import CellBatch
from wenet_kernels.errors import WenetError, check_choice
from wenet_kernels.recurrence import Evaluation, Gradients, Recurrence

FORMS = ("highway", "plain")
COUPLINGS = ("weighted", "independent")
PRECISIONS = ("full", "tf32", "bf16")

Norm = Literal["batch"] | tuple[Tensor, Tensor] | None
Statistics = tuple[Tensor, Tensor]


class Backend(Protocol):
    """What a backend module provides."""

    def status(self) -> str: ...  # "ready", or the reason why not
    def runs_on(self, kind: str) -> bool: ...  # of device, as in `torch.device.type`
    def refusal(self, dtype: torch.dtype, precision: str) -> str: ...  # why it has no such products, or empty
    def kept_shape(
        self,
        steps: int,
        networks: int,
        rows: int,
        hidden: int,
        nodes: int,
        form: str,
        dtype: torch.dtype,
        precision: str,
    ) -> tuple[int, ...]: ...  # of `Evaluation.activated`
    def project(self, x: Tensor, weight: Tensor) -> Tensor: ...
    def project_backward(self, grad_output: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]: ...
    def forward(self, r: Recurrence, keep: bool) -> Evaluation: ...
    def backward(self, r: Recurrence, evaluation: Evaluation, grad_output: Tensor) -> Gradients: ...


_BACKENDS: dict[str, Backend] = {"reference": reference, "cpu": cpu, "triton": triton}
_PREFERENCE = {"cpu": ("cpu", "reference"), "cuda": ("triton", "reference")}  # by device, best first


def backends(activations: Sequence[str] = ()) -> dict[str, str]:
    """Every backend by name, with "ready" or the reason why it cannot run here, or not cells of these activations."""
    return {name: _status(name, activations) for name in _BACKENDS}


def resolve_backend(
    backend: str = "auto",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    precision: str = "full",
    activations: Sequence[str] = (),
) -> str:
    """The name of the backend that `dag_rnn` will use on a device, for operands of a type, products of a precision,
    and cells of these activations.

    "auto" follows the environment variable WENET_BACKEND, and without it takes the fastest backend that is ready.

    Raises:
        WenetError: a backend named explicitly is unknown or cannot run, with the reason; nothing replaces it. Or none
            has products of that precision, with every backend's reason. Or an unknown activation.
    """
    for activation in activations:
        check_choice("activation", activation, activation_names())
    check_choice("precision", precision, PRECISIONS)
    name = os.environ.get("WENET_BACKEND", "auto") if backend == "auto" else backend
    kind = torch.device(device).type
    if name == "auto":
        obstacles = {}
        for candidate in _PREFERENCE.get(kind, ("reference",)):
            obstacles[candidate] = _obstacle(candidate, kind, dtype, precision, activations)
            if not obstacles[candidate]:
                return candidate
        reasons = "; ".join(f"{candidate}: {obstacle}" for candidate, obstacle in obstacles.items())
        raise WenetError(f"no backend on {kind} has precision {precision!r}: {reasons}")
    check_choice("backend", name, ["auto", *_BACKENDS])
    obstacle = _obstacle(name, kind, dtype, precision, activations)
    if obstacle:
        raise WenetError(f"backend {name!r} cannot run: {obstacle}")
    return name


def _obstacle(name: str, kind: str, dtype: torch.dtype, precision: str, activations: Sequence[str]) -> str:
    """Why a backend cannot run with such operands and cells on such a device; empty where it can."""
    status = _status(name, activations)
    if status != "ready":
        return status
    if not _BACKENDS[name].runs_on(kind):
        return f"it does not run on {kind}"
    return _BACKENDS[name].refusal(dtype, precision)


def _status(name: str, activations: Sequence[str]) -> str:
    """What `backends` says of one: which of the activations it lacks, and else what it says itself."""
    lacking = registered_among(activations)
    if lacking and name not in WITH_REGISTERED:
        return f"it lacks {', '.join(lacking)}, registered in Python, which only {', '.join(WITH_REGISTERED)} has"
    return _BACKENDS[name].status()


def project(x: Tensor, weight_input: Tensor, *, backend: str = "auto") -> Tensor:
    """The input through every network's weights, one product for all steps: what `dag_rnn` takes as `pre`.

    Args:
        x: `[T, M, I]`, shared by all networks; masked already where there is dropout.
        weight_input: `[n, I, G]`.
        backend: as in `dag_rnn`.

    Returns:
        `[T, n, M, G]`.

    Raises:
        WenetError: operands that disagree, or a backend that cannot run.
    """
    if x.dim() != 3 or weight_input.dim() != 3:
        raise WenetError(f"x {list(x.shape)} must be [T, M, I] and weight_input {list(weight_input.shape)} [n, I, G]")
    backend = resolve_backend(backend, x.device, x.dtype)
    product = torch.ops.wenet_kernels.project(x.flatten(0, 1), weight_input, backend)
    return product.unflatten(1, x.shape[:2]).transpose(0, 1)


def dag_rnn(
    pre: Tensor,
    h0: Tensor,
    weight_hidden: Tensor,
    weight_nodes: Tensor,
    mix: Tensor | None,
    cells: CellBatch,
    *,
    form: str = "highway",
    mask_h: Tensor | None = None,
    norm: Norm = None,
    coupling: str = "weighted",
    precision: str = "full",
    all_ranks: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Statistics]:
    """Run `n` different recurrent cells over a sequence of `T` steps as one operator (paper eqs. 1-4).

    Args:
        pre: `[T, n, M, G]`, the projected input `(x * mask_x) @ weight_input`; G is 2H (highway) or H (plain).
        h0: `[M, H]`, or `[n, M, H]` with independent coupling.
        weight_hidden: `[n, H, G]`.
        weight_nodes: `[n, L, H, G]`.
        mix: `[n]`, softmax weights that sum to one; None with independent coupling.
        cells: the cells.
        form: "highway" (every node gated) or "plain" (eqs. 1-3 as printed).
        mask_h: `[M, H]`, variational dropout on the input of every hidden product; scaled by 1 / (1 - p) already.
        norm: "batch" normalises every state over the M rows; a pair (mean, var), `[n, L+1, H]` each, normalises with
            these instead; None does not normalise.
        coupling: "weighted" mixes the networks into one hidden state; "independent" keeps each network's own.
        precision: of the products' factors: "full" (as the operands are), or for fp32 operands "tf32" or "bf16", summed
            in fp32. Everything else is computed in the operands' own type.
        all_ranks: the networks are some of a mixture whose others are on the other ranks of `torch.distributed`; `mix`
            holds their part of its weights, and `h0` and `mask_h` are the same everywhere. The output is that of the
            whole mixture, and so are, given the whole derivative of the output on every rank, the derivatives but that
            of `pre`, to which only the networks here contribute.
        backend: "auto" or a name that `backends()` lists as ready.

    Returns:
        The output, `[T, M, H]` or `[T, n, M, H]`; with norm="batch" also the pair (mean, biased variance) of every
        state, `[T, n, L+1, H]` each, without derivative.

    Raises:
        WenetError: operands that disagree, an unknown option, a backend that cannot run, NaN among the operands, or a
            rank that is gone.
    """
    running_mean, running_var = norm if isinstance(norm, tuple) else (None, None)
    mode = "running" if isinstance(norm, tuple) else norm or "none"
    _check_options(form, mode, coupling, mix, all_ranks)
    operands = (pre, h0, weight_hidden, weight_nodes, mix, mask_h, running_mean, running_var)
    backend = resolve_backend(backend, pre.device, pre.dtype, precision, cells.registered)
    trained = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in operands)
    keep = trained or torch.jit.is_tracing()  # a trace made without gradients may be trained all the same
    output, _, mean, var = torch.ops.wenet_kernels.dag_rnn(
        *operands, cells.text, form, mode, precision, all_ranks, keep, backend
    )
    return (output, (mean.detach(), var.detach())) if mode == "batch" else output


def _check_options(form: str, norm: str, coupling: str, mix: Tensor | None, all_ranks: bool) -> None:
    check_choice("form", form, FORMS)
    if norm not in ("none", "batch", "running"):
        raise WenetError(f"unknown norm {norm!r}; pass 'batch', a pair (mean, var) or None")
    check_choice("coupling", coupling, COUPLINGS)
    if (mix is None) != (coupling == "independent"):
        raise WenetError(f"coupling {coupling!r} {'needs' if mix is None else 'takes no'} mixing weights")
    if all_ranks and mix is None:
        raise WenetError("independent networks have nothing that is summed over ranks; leave all_ranks out")


def _check_shapes(r: Recurrence) -> None:
    """Where the operator is called, as a trace calls it with tensors that nothing else has looked at."""
    pre, h0, cells = r.pre, r.h0, CellBatch(r.cells)
    if pre.dim() != 4:
        raise WenetError(f"pre must have shape [T, n, M, G], not {list(pre.shape)}")
    steps, _, rows, _ = pre.shape
    hidden = h0.shape[-1]
    count, nodes = cells.count, cells.nodes
    width = 2 * hidden if r.highway else hidden
    if steps < 1 or rows < 1 or hidden < 1:
        raise WenetError(f"pre {list(pre.shape)} and h0 {list(h0.shape)} must not be empty")
    expected = {
        "pre": (pre, (steps, count, rows, width)),
        "h0": (h0, (rows, hidden) if r.mix is not None else (count, rows, hidden)),
        "weight_hidden": (r.weight_hidden, (count, hidden, width)),
        "weight_nodes": (r.weight_nodes, (count, nodes, hidden, width)),
        "mix": (r.mix, (count,)),
        "mask_h": (r.mask_h, (rows, hidden)),
        "norm's mean": (r.running_mean, (count, nodes + 1, hidden)),
        "norm's var": (r.running_var, (count, nodes + 1, hidden)),
    }
    for name, (operand, shape) in expected.items():
        if operand is None:
            continue
        if tuple(operand.shape) != shape:
            found = list(operand.shape)
            raise WenetError(f"{name} must have shape {list(shape)} with {count} {r.form} cells, not {found}")
        if operand.dtype != pre.dtype or operand.device != pre.device:
            raise WenetError(f"{name} is {operand.dtype} on {operand.device}, but pre is {pre.dtype} on {pre.device}")
    if r.norm == "batch" and rows < 2:
        raise WenetError("batch normalisation needs at least 2 rows in the data batch, this one has 1")


# The operands of the operators, as their schemas name them.
_TYPES = {"Tensor": "Tensor", "Tensor | None": "Tensor?", "str": "str", "bool": "bool"}
_OPERANDS = ", ".join(f"{_TYPES[str(field.type)]} {field.name}" for field in fields(Recurrence))
_EVALUATION = ", ".join(f"Tensor {name}" for name in Evaluation._fields)
_GRADIENTS = ", ".join(f"Tensor {name}" for name in Gradients._fields)


@torch.library.custom_op(
    "wenet_kernels::dag_rnn", mutates_args=(), schema=f"({_OPERANDS}, bool keep, str backend) -> ({_EVALUATION})"
)
def _dag_rnn(*arguments: Any) -> Evaluation:
    *operands, keep, backend = arguments
    r = Recurrence(*operands)
    _check_shapes(r)
    evaluation = _BACKENDS[backend].forward(r, keep)
    _check_finite(r, evaluation.output)
    return evaluation


def _check_finite(r: Recurrence, output: Tensor) -> None:
    """Name the operand that brought in NaN; only on the CPU, where looking costs no synchronisation."""
    if output.device.type != "cpu" or bool(torch.isfinite(output).all()):
        return
    for name in ("pre", "h0", "weight_hidden", "weight_nodes", "mix", "mask_h", "running_mean", "running_var"):
        operand = getattr(r, name)
        if operand is not None and bool(torch.isnan(operand).any()):
            raise WenetError(f"{name} holds NaN; find where it comes from, for example an input or a diverged update")


@_dag_rnn.register_fake
def _(*arguments: Any) -> Evaluation:
    *operands, keep, backend = arguments
    r = Recurrence(*operands)
    _check_shapes(r)
    steps, networks, _, hidden, nodes = r.sizes
    kept = _BACKENDS[backend].kept_shape(*r.sizes, r.form, r.pre.dtype, r.precision)
    statistics = (steps, networks, nodes + 1, hidden) if r.norm == "batch" else (0,)
    return Evaluation(
        r.pre.new_empty(steps, *r.h0.shape),
        r.pre.new_empty(kept if keep else (0,)),
        r.pre.new_empty(statistics),
        r.pre.new_empty(statistics),
    )


@torch.library.custom_op(
    "wenet_kernels::dag_rnn_backward",
    mutates_args=(),
    schema=f"(Tensor grad_output, {_EVALUATION}, {_OPERANDS}, str backend) -> ({_GRADIENTS})",
)
def _dag_rnn_backward(grad_output: Tensor, *arguments: Any) -> Gradients:
    evaluation, operands, backend = _split(arguments)
    return _BACKENDS[backend].backward(Recurrence(*operands), Evaluation(*evaluation), grad_output)


@_dag_rnn_backward.register_fake
def _(grad_output: Tensor, *arguments: Any) -> Gradients:
    r = Recurrence(*_split(arguments)[1])
    return Gradients(
        torch.empty_like(r.pre),
        r.h0.new_empty(r.h0.shape),
        r.weight_hidden.new_empty(r.weight_hidden.shape),
        r.weight_nodes.new_empty(r.weight_nodes.shape),
        r.pre.new_empty(0 if r.mix is None else r.mix.shape),
    )


def _split(arguments: Sequence[Any]) -> tuple[Sequence[Tensor], Sequence[Any], str]:
    """What forward left, the operands, and the backend."""
    kept = len(Evaluation._fields)
    return arguments[:kept], arguments[kept:-1], arguments[-1]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Sequence[Tensor]) -> None:
    *operands, _, ctx.backend = inputs
    tensors = [operand for operand in operands if operand is None or isinstance(operand, Tensor)]
    ctx.options, ctx.weighted = operands[len(tensors) :], tensors[4] is not None
    ctx.save_for_backward(*output, *tensors)
    ctx.set_materialize_grads(False)  # or zeros as large as all that forward kept would be filled in for nothing


def _backward(ctx: Any, grad_output: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    without = (None,) * (len(fields(Recurrence)) + 2)
    if grad_output is None:
        return without
    grads = torch.ops.wenet_kernels.dag_rnn_backward(
        grad_output.contiguous(), *ctx.saved_tensors, *ctx.options, ctx.backend
    )
    return *grads[:4], grads[4] if ctx.weighted else None, *without[len(grads) :]


_dag_rnn.register_autograd(_backward, setup_context=_setup_context)


@torch.library.custom_op("wenet_kernels::project", mutates_args=())
def _project(x: Tensor, weight: Tensor, backend: str) -> Tensor:
    _check_projection(x, weight)
    return _BACKENDS[backend].project(x, weight)


def _check_projection(x: Tensor, weight: Tensor) -> None:
    """As `_check_shapes`."""
    if x.shape[1] != weight.shape[1]:
        raise WenetError(f"x {list(x.shape)} must be [R, I] and weight_input {list(weight.shape)} [n, I, G]")
    if x.dtype != weight.dtype or x.device != weight.device:
        raise WenetError(f"weight_input is {weight.dtype} on {weight.device}, but x is {x.dtype} on {x.device}")


@_project.register_fake
def _(x, weight, backend):
    _check_projection(x, weight)
    return x.new_empty(weight.shape[0], x.shape[0], weight.shape[2])


@torch.library.custom_op("wenet_kernels::project_backward", mutates_args=())
def _project_backward(grad_output: Tensor, x: Tensor, weight: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return _BACKENDS[backend].project_backward(grad_output, x, weight)


@_project_backward.register_fake
def _(grad_output, x, weight, backend):
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _setup_projection(ctx, inputs, output) -> None:
    x, weight, ctx.backend = inputs
    ctx.save_for_backward(x, weight)


def _differentiate_projection(ctx, grad_output):
    return *torch.ops.wenet_kernels.project_backward(grad_output, *ctx.saved_tensors, ctx.backend), None


_project.register_autograd(_differentiate_projection, setup_context=_setup_projection)
