"""The public functions `dag_rnn` and `project`."""

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

# The precision of products, by autocast's type: precisions that are as exact, if a backend has them.
AUTOCAST_PRECISIONS = {torch.bfloat16: "bf16|full", torch.float16: "tf32|full"}


def project(x: Tensor, weight_input: Tensor, *, backend: str = "auto") -> Tensor:
    """Multiply the input by each network's weights, in one product for all steps; the result is `pre` of `dag_rnn`.

    Args:
        x: `[T, M, I]`, shared by all networks; dropout, if any, has been applied.
        weight_input: `[n, I, G]`.
        backend: as in `dag_rnn`.

    Returns:
        `[T, n, M, G]`; under autocast in fp32, in which `dag_rnn` then computes.

    Raises:
        WenetError: operands disagree, the backend cannot run, or on the CPU an operand has NaN.

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
        mask_h: `[M, H]`, variational dropout on the input of every hidden product, with kept elements 1 / (1 - p).
        norm: "batch" normalises every state over the M rows; a pair (mean, var), `[n, L+1, H]` each, is used for
            normalisation instead; None does not normalise.
        coupling: "weighted" mixes the networks into one hidden state; "independent" keeps each network's own.
        precision: number type of the products' factors: "full" (the operands' type, whatever it is), "fp32" or "fp64"
            (the same, but an error for operands of another type), or for fp32 operands "tf32" or "bf16", summed in
            fp32. Everything else is computed in the operands' type.
        all_ranks: whether the mixture has more networks, on the other ranks of `torch.distributed`. `mix` then holds
            this rank's part of the weights; `h0` and `mask_h` are the same on all ranks. The output is that of the
            whole mixture. Given its whole derivative on every rank, all derivatives are those of the whole mixture,
            except that of `pre`, which has only the contribution of this rank's networks.
        backend: "auto" or a name that `backends()` lists as ready.

    Returns:
        The output, `[T, M, H]` or `[T, n, M, H]`; with norm="batch" also the pair (mean, biased variance) of all
        states, `[T, n, L+1, H]` each, without derivative.

    Raises:
        WenetError: operands disagree, an option is unknown, the backend cannot run, an operand has NaN, or another
            rank is lost.

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
