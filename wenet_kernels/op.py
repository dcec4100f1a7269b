"""`dag_rnn` and `project`: what a program calls."""

from typing import Literal

import torch
from torch import Tensor

from wenet_kernels import operators
from wenet_kernels.autocast import autocast_type, in_fp32
from wenet_kernels.cells import CellBatch
from wenet_kernels.errors import WenetError, check_choice
from wenet_kernels.recurrence import COUPLINGS

Norm = Literal["batch"] | tuple[Tensor, Tensor] | None
Statistics = tuple[Tensor, Tensor]

# Of the products, by the type that autocast asks for: those as exact as it, where a backend has them.
AUTOCAST_PRECISIONS = {torch.bfloat16: "bf16|full", torch.float16: "tf32|full"}


def project(x: Tensor, weight_input: Tensor, *, backend: str = "auto") -> Tensor:
    """The input through every network's weights, one product for all steps: what `dag_rnn` takes as `pre`.

    Args:
        x: `[T, M, I]`, shared by all networks; masked already where there is dropout.
        weight_input: `[n, I, G]`.
        backend: as in `dag_rnn`.

    Returns:
        `[T, n, M, G]`; under autocast in fp32, as `dag_rnn` then computes.

    Raises:
        WenetError: operands that disagree, a backend that cannot run, or on the CPU NaN among the operands.

    Examples:
        >>> import torch
        >>> from wenet_kernels import project
        >>> project(torch.ones(3, 2, 4), torch.ones(5, 4, 6)).shape
        torch.Size([3, 5, 2, 6])
    """
    for name, operand in (("x", x), ("weight_input", weight_input)):
        _check_tensor(name, operand)
    if x.dim() != 3 or weight_input.dim() != 3:
        raise WenetError(f"x {list(x.shape)} must be [T, M, I] and weight_input {list(weight_input.shape)} [n, I, G]")
    if autocast_type(x) is not None:
        x, weight_input = in_fp32(x), in_fp32(weight_input)
    product = operators.project(x.flatten(0, 1), weight_input, backend)
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
        precision: of the products' factors: "full" (as the operands are, whatever that is), "fp32" or "fp64" (the same,
            and an error where the operands are not), or for fp32 operands "tf32" or "bf16", summed in fp32. Everything
            else is computed in the operands' own type.
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

    Examples:
        >>> import torch
        >>> from wenet_kernels import CellBatch, dag_rnn
        >>> cells = CellBatch("tanh0 relu1; relu0 sigmoid0")
        >>> T, n, M, H, L = 5, cells.count, 3, 4, cells.nodes
        >>> weights = torch.randn(n, H, 2 * H), torch.randn(n, L, H, 2 * H)
        >>> mix = torch.tensor([0.5, 0.5])
        >>> dag_rnn(torch.randn(T, n, M, 2 * H), torch.zeros(M, H), *weights, mix, cells).shape
        torch.Size([5, 3, 4])
    """
    running_mean, running_var = norm if isinstance(norm, tuple) else (None, None)
    mode = "running" if isinstance(norm, tuple) else norm or "none"
    check_choice("coupling", coupling, COUPLINGS)
    if (mix is None) != (coupling == "independent"):
        raise WenetError(f"coupling {coupling!r} {'needs' if mix is None else 'takes no'} mixing weights")
    operands = {
        "pre": pre, "h0": h0, "weight_hidden": weight_hidden, "weight_nodes": weight_nodes, "mix": mix,
        "mask_h": mask_h, "norm's mean": running_mean, "norm's var": running_var,
    }  # fmt: skip
    tensors = []
    for name, operand in operands.items():
        if operand is not None:
            _check_tensor(name, operand)
        tensors.append(operand)
    wanted = autocast_type(pre)
    if wanted is not None:
        tensors = [None if tensor is None else in_fp32(tensor) for tensor in tensors]
        precision = AUTOCAST_PRECISIONS[wanted] if precision in ("full", "fp32") else precision
    output, _, mean, var = operators.dag_rnn(*tensors, cells.text, form, mode, precision, all_ranks, False, backend)
    if wanted is not None:
        output = output.to(wanted)
    return (output, (mean.detach(), var.detach())) if mode == "batch" else output


def _check_tensor(name: str, operand: object) -> None:
    if not isinstance(operand, Tensor):
        raise WenetError(f"{name} must be a tensor, not a {type(operand).__name__}")
