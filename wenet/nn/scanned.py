"""A cell over a sequence as a graph of ordinary operators, which exporters and other runtimes know."""

from __future__ import annotations

import torch
from torch import Tensor

from wenet.cells import Genotype, written_step
from wenet_kernels import WenetError


def scanned(
    genotype: Genotype, form: str, pre: Tensor, h0: Tensor, weight_hidden: Tensor, weight_nodes: Tensor
) -> Tensor:
    """The output `[T, M, H]` of one cell without dropout, its loop over time a single operator of the graph, so that T
    and M stay free.

    Args:
        pre: `[T, M, G]`, the input times its weights.
        h0: `[M, H]`.
        weight_hidden, weight_nodes: `[H, G]`, `[L, H, G]`.
    """
    from torch._higher_order_ops.scan import scan  # loads torch._dynamo, which takes a second

    if torch.compiler.is_dynamo_compiling():
        raise WenetError("a cell cannot be exported with strict=True; leave it out")
    step = written_step(genotype, form)

    def advance(h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        h = step(x, h, weight_hidden, weight_nodes)
        return h, h.clone()  # what is carried on and what is put out must not share memory

    start = h0.clone(memory_format=torch.contiguous_format)  # laid out as what is carried on, which scan requires
    output: Tensor = scan(advance, start, pre)[1]
    return output
