"""A cell over a sequence as ordinary operators, for exporters and other runtimes."""

from __future__ import annotations

import torch
from torch import Tensor

from wenet.cells import Genotype, written_step
from wenet_kernels import WenetError


def scanned(
    genotype: Genotype, form: str, pre: Tensor, h0: Tensor, weight_hidden: Tensor, weight_nodes: Tensor
) -> Tensor:
    """The output `[T, M, H]` of one cell without dropout. The loop over time is one operator of the graph, so T and M
    stay free.

    Args:
        pre: `[T, M, G]`, the projected input.
        h0: `[M, H]`.
        weight_hidden, weight_nodes: `[H, G]`, `[L, H, G]`.
    """
    from torch._higher_order_ops.scan import scan  # loads torch._dynamo, which takes a second

    if torch.compiler.is_dynamo_compiling():
        raise WenetError("a cell cannot be exported with strict=True; leave that out")
    step = written_step(genotype, form)

    def advance(h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        h = step(x, h, weight_hidden, weight_nodes)
        return h, h.clone()  # the carried state and the output must not share memory

    start = h0.clone(memory_format=torch.contiguous_format)  # laid out as what is carried on, which scan requires
    output: Tensor = scan(advance, start, pre)[1]
    return output
