"""A cell over a sequence as ordinary operators, for exporters and other runtimes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wenet.cells import Genotype, written_step
from wenet_kernels import ProgramBatch, WenetError
from wenet_kernels.programs import reference


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
    scan = _loop()
    step = written_step(genotype, form)

    def advance(h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        h = step(x, h, weight_hidden, weight_nodes)
        return h, h.clone()  # the carried state and the output must not share memory

    start = h0.clone(memory_format=torch.contiguous_format)  # laid out as what is carried on, which scan requires
    output: Tensor = scan(advance, start, pre)[1]
    return output


def scanned_program(
    cells: ProgramBatch, pre: Tensor, states: Tensor, weight: Tensor, vectors: Tensor
) -> tuple[Tensor, ...]:
    """The same of a program, the only one of a batch: its output, and all carried states behind every step, each
    `[T, M, H]`.

    Args:
        pre, states, weight, vectors: `[T, X, M, H]`, `[S, M, H]`, `[P, H, H]` and `[V, H]`, as in `cell_rnn`.
    """

    rows = cells.rows()
    passed_on = [result < cells.states for result in rows.results[0]]  # states that become another's as they are

    def advance(carried: list[Tensor], x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        *new, output = reference.step(rows, 0, x, carried, weight, vectors)
        put_out = new if cells.puts_out_h else [output, *new]
        # What comes in, what is carried on and what is put out must not share memory; and not clones of one tensor, of
        # which exporters make one.
        new = [state * 1 if passed else state for state, passed in zip(new, passed_on, strict=False)]
        return new, [each.clone() for each in put_out]

    first = [state.clone() for state in states]  # each in memory of its own
    found: list[Tensor] = _loop()(advance, first, pre)[1]
    return (found[0], *found) if cells.puts_out_h else tuple(found)


def _loop() -> Any:
    from torch._higher_order_ops.scan import scan  # loads torch._dynamo, which takes a second

    if torch.compiler.is_dynamo_compiling():
        raise WenetError("a cell cannot be exported with strict=True; leave that out")
    return scan
