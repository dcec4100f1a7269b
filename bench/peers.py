"""Other ways to compute the recurrence in PyTorch, for comparison with the backends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.cases import Operands
from wenet import Genotype
from wenet_kernels import ACTIVATIONS
from wenet_kernels.recurrence import NORM_EPS

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "identity": lambda u: u,
}


class EagerCell(nn.Module):
    """One time step of one cell, with its nodes visited in Python, as in research code."""

    def __init__(
        self,
        genotype: Genotype,
        weight_hidden: Tensor,
        weight_nodes: Tensor,
        mask: Tensor | None,
        form: str,
        norm: bool,
    ) -> None:
        super().__init__()
        self.mask = mask
        self.genotype, self.highway, self.norm = genotype, form == "highway", norm
        self.weight_hidden = nn.Parameter(weight_hidden.detach().clone())  # [H, G]
        self.weight_nodes = nn.ParameterList(weight.detach().clone() for weight in weight_nodes)  # [H, G] each

    def forward(self, pre: Tensor, h: Tensor) -> Tensor:
        states = [self._init(pre, h)]
        for (activation, ancestor), weight in zip(self.genotype.recurrent, self.weight_nodes, strict=True):
            states.append(self._node(states[ancestor], weight, FUNCTIONS[activation]))
        return torch.stack([states[node] for node in self.genotype.concat]).mean(0)  # [M, H]

    def _init(self, pre: Tensor, h: Tensor) -> Tensor:
        if self.highway:
            c, u = torch.addmm(pre, _masked(h, self.mask), self.weight_hidden).chunk(2, dim=-1)
        else:
            c, u = pre, _masked(h, self.mask) @ self.weight_hidden
        return self._normalise(h + torch.sigmoid(c) * (torch.tanh(u) - h))

    def _node(self, state: Tensor, weight: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        product = _masked(state, self.mask) @ weight
        if not self.highway:
            return self._normalise(function(product))
        c, u = product.chunk(2, dim=-1)
        return self._normalise(state + torch.sigmoid(c) * (function(u) - state))

    def _normalise(self, state: Tensor) -> Tensor:
        return functional.batch_norm(state, None, None, training=True, eps=NORM_EPS) if self.norm else state


class PerNetworkLoop(nn.Module):
    """`n` cells, called one after the other in every time step."""

    def __init__(self, operands: Operands) -> None:
        super().__init__()
        case = operands.case
        self.cells = nn.ModuleList(
            EagerCell(genotype, weight_hidden, weight_nodes, operands.mask_h, case.form, case.norm == "batch")
            for genotype, weight_hidden, weight_nodes in zip(
                case.genotypes, operands.weight_hidden, operands.weight_nodes, strict=True
            )
        )

    def forward(self, pre: Tensor, h0: Tensor, mix: Tensor | None) -> Tensor:
        outputs = []
        h = h0
        for step in pre.unbind(0):  # with indexing, backward would fill a tensor as large as `pre` for each index
            before = h.unbind(0) if mix is None else [h] * len(self.cells)
            after = [cell(p, b) for cell, p, b in zip(self.cells, step.unbind(0), before, strict=True)]
            h = _mixture(torch.stack(after), mix)
            outputs.append(h)
        return torch.stack(outputs)


class BatchedStep:
    """One time step of all cells as batched products, with autograd for backward."""

    def __init__(self, operands: Operands) -> None:
        cells = operands.cells.tables(operands.pre.device)
        self.highway, self.norm = operands.case.form == "highway", operands.case.norm == "batch"
        self.networks = torch.arange(operands.cells.count, device=operands.pre.device)
        self.mask = operands.mask_h
        self.ancestors = list(cells.ancestor.long().unbind(1))  # [n] each
        self.kinds = [  # [n, 1, 1] each: whether a network's node has this activation
            {name: (column == ACTIVATIONS.index(name))[:, None, None] for name in FUNCTIONS}
            for column in cells.activation.unbind(1)
        ]
        self.share = (cells.concat / cells.concat.sum(1, keepdim=True)).t()[:, :, None, None]  # [L, n, 1, 1]

    def __call__(
        self, pre: Tensor, h: Tensor, weight_hidden: Tensor, weight_nodes: Sequence[Tensor], mix: Tensor | None
    ) -> Tensor:
        states = [self._init(pre, h.expand(*pre.shape[:2], h.shape[-1]), weight_hidden)]
        for weight, ancestor, kinds in zip(weight_nodes, self.ancestors, self.kinds, strict=True):
            previous = torch.stack(states)[ancestor, self.networks]  # [n, M, H]
            states.append(self._node(previous, weight, kinds))
        return _mixture((torch.stack(states[1:]) * self.share).sum(0), mix)

    def _init(self, pre: Tensor, h: Tensor, weight: Tensor) -> Tensor:
        factor = _masked(h, self.mask)
        c, u = torch.baddbmm(pre, factor, weight).chunk(2, dim=-1) if self.highway else (pre, factor @ weight)
        return self._normalise(h + torch.sigmoid(c) * (torch.tanh(u) - h))

    def _node(self, previous: Tensor, weight: Tensor, kinds: dict[str, Tensor]) -> Tensor:
        product = _masked(previous, self.mask) @ weight  # [n, M, G]
        if not self.highway:
            return self._normalise(_activate(product, kinds))
        c, u = product.chunk(2, dim=-1)
        return self._normalise(previous + torch.sigmoid(c) * (_activate(u, kinds) - previous))

    def _normalise(self, state: Tensor) -> Tensor:
        if not self.norm:
            return state
        var, mean = torch.var_mean(state, dim=1, correction=0, keepdim=True)
        return (state - mean) * torch.rsqrt(var + NORM_EPS)


def batched_loop(step: Callable[..., Tensor], operands: Operands) -> Tensor:
    """A `BatchedStep`, eager or compiled, repeated over the sequence."""
    weight_nodes = operands.weight_nodes.unbind(1)  # once, as the gradient of an index would be as large as all weights
    outputs = []
    h = operands.h0
    for pre in operands.pre.unbind(0):
        h = step(pre, h, operands.weight_hidden, weight_nodes, operands.mix)
        outputs.append(h)
    return torch.stack(outputs)


def _masked(state: Tensor, mask: Tensor | None) -> Tensor:
    """A state under dropout, as products read it."""
    return state if mask is None else state * mask


def _activate(u: Tensor, kinds: dict[str, Tensor]) -> Tensor:
    result = u
    for name in ("relu", "sigmoid", "tanh"):
        result = torch.where(kinds[name], FUNCTIONS[name](u), result)
    return result


def _mixture(outputs: Tensor, mix: Tensor | None) -> Tensor:
    return outputs if mix is None else (mix[:, None, None] * outputs).sum(0)
