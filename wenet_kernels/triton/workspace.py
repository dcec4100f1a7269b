"""The buffers of one recurrence's kernels, and the order of their launches."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import triton
from torch import Tensor

from wenet_kernels.ranks import sum_over_ranks
from wenet_kernels.recurrence import Recurrence
from wenet_kernels.triton import kernels
from wenet_kernels.triton.order import Level, order_of, order_tables
from wenet_kernels.triton.plan import ASYNCHRONOUS, Columns, Machine, Shape, Tiling, choose_tiling

SUM_BLOCK, SUM_NETWORKS = 32, 32  # of `sum_networks`: elements per program, networks added at once
APPROXIMATE = True  # in bf16: take tanh as NVIDIA's GPUs have it, and sigmoid from it
PREFETCH = True  # if one program evaluates a network: load its next weights into the L2 cache ahead
BULK = True  # by one instruction for a weight, where GPUs have it
STAGES = ("HEAD", "NODES", "LINK", "TAIL")  # of `step_backward`
FENCED_SINCE = (3, 7, 1)  # the version of Triton that adds fences before such products


class Workspace:
    """Buffers for sequences of one shape with up to `capacity` steps, and the launches that fill them.

    A shorter sequence uses the beginnings of the buffers, at the same addresses. Time is their first dimension, except
    in the factors of the weight gradients, where all steps of a node follow each other, as the rows of one matrix. Rows
    are filled up with zeros to `Shape.pitch` elements.
    """

    def __init__(self, shape: Shape, capacity: int, device: torch.device, machine: Machine | None = None) -> None:
        self.shape, self.capacity, self.device = shape, capacity, device
        machine = machine or Machine.of(device)
        self.tiling = _of_version(choose_tiling(shape, machine))
        self.input_precision = machine.input_precision(shape.precision)
        # Prefetches and fences are NVIDIA assembler, which the interpreter cannot run.
        on_gpu = device.type != "cpu"
        prefetched = PREFETCH and self.tiling.fused and not machine.amd and on_gpu
        self.prefetch = ("bulk" if BULK and machine.capability >= 90 else "lines") if prefetched else "none"
        self.approximate = APPROXIMATE and shape.precision == "bf16" and not machine.amd and on_gpu
        lacks_fences = machine.asynchronous_products and on_gpu and _version(triton.__version__) < FENCED_SINCE
        self.fence = lacks_fences and machine.capability < 100
        # Older versions of Triton cannot compile our fence for GPUs after Hopper, so there nothing is copied ahead.
        self.copies_ahead = not lacks_fences or self.fence
        s = shape
        networks, nodes, rows, pitch, width = s.networks, s.nodes, s.rows, s.pitch, s.width
        self.border = torch.zeros(2, 3, dtype=torch.int64, device=device)  # of pre and its gradient: `kernels._outside`
        self.borders = [[0, 0, 0], [0, 0, 0]]  # what it holds
        self.copies: dict[int, Tensor] = {}  # of these, where their layout is another
        self.hidden = self._filled(capacity + 1, *s.hidden_shape)
        # A state's factor is what products read: the state times the mask, in their type.
        of_networks = () if s.weighted else (networks,)
        self.hidden_factor = self._empty(*of_networks, capacity + 1, rows, pitch, dtype=s.dtype)
        self.factor_steps = capacity if s.keep else 1
        self.factors = self._empty(networks, nodes, self.factor_steps, rows, pitch, dtype=s.dtype)
        # Transposed products, on their way to other tiles; of a level's nodes at once.
        self.products = self._empty(networks, *(() if self.tiling.fused else (nodes + 1,)), rows, width)
        self.weights = self._filled(networks, nodes + 1, s.hidden, width, dtype=s.dtype)
        self.mask = self._filled(rows, pitch)
        statistics = {"none": (0,), "running": (networks, nodes + 1, s.hidden)}
        self.mean = self._empty(*statistics.get(s.norm, (capacity, networks, nodes + 1, s.hidden)))
        self.var = torch.empty_like(self.mean)
        self.ancestor = self._empty(networks, nodes, dtype=torch.int32)
        self.activation = torch.empty_like(self.ancestor)
        self.order = self._empty(2 * networks * nodes, dtype=torch.int32)  # and the leaves
        self.links = self._empty(networks, nodes + 2, 3, dtype=torch.int32)
        blocks = max(self.tiling.forward.blocks, self.tiling.backward.blocks)
        self.arrivals = torch.zeros(networks, nodes + 1, blocks, dtype=torch.int32, device=device)
        self.levels: tuple[Level, ...] = ()
        self.leaves = 0
        self.share = self._empty(networks, nodes)  # share of each node in its cell's output
        self.portions = self._empty(networks, nodes)  # share of each node in the mixture
        self.mix = self._empty(networks)
        self.kept = self._empty(capacity if s.keep else 1, kept_words(s) if s.keep else s.states_size)
        self.cell_output = self._empty(networks, rows, pitch) if s.weighted else self.hidden[1:]

    def _empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def _filled(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Memory whose rows the host writes: it leaves their ends, if any, at zero. Kernels write whole rows."""
        make = torch.empty if self.shape.pitch == self.shape.hidden else torch.zeros
        return make(shape, dtype=dtype, device=self.device)

    def states_of(self, tensor: Tensor) -> Tensor:
        """Rows of states without their ends, `[..., H]`."""
        return tensor[..., : self.shape.hidden]

    def parts_of(self, tensor: Tensor) -> Tensor:
        """Rows of gates and candidates, or only of these, without their ends: `[..., parts, H]`."""
        return self.states_of(tensor.unflatten(-1, (self.shape.parts, self.shape.pitch)))

    def _launch(self, kernel: Any, grid: tuple[int, ...], *operands: object, **options: object) -> None:
        kernel[grid](*operands, **options, enable_fp_fusion=True)

    def load(self, r: Recurrence) -> None:
        """Copy the operands into the buffers, rounding the products' factors once for all time steps."""
        parts = self.shape.parts, self.shape.hidden
        self.lend(0, r.pre)
        self.states_of(self.hidden)[0].copy_(r.h0)
        weights = self.parts_of(self.weights)
        weights[:, 0].copy_(r.weight_hidden.unflatten(-1, parts))
        weights[:, 1:].copy_(r.weight_nodes.unflatten(-1, parts))
        self.ancestor.copy_(r.ancestor)
        self.activation.copy_(r.activation)
        self.load_order(r.cells)
        torch.div(r.concat, r.concat.sum(1, keepdim=True), out=self.share)
        self.portions.copy_(self.share)
        if r.mix is not None:
            self.mix.copy_(r.mix)
            self.portions.mul_(self.mix[:, None])
        if r.mask_h is not None:
            self.states_of(self.mask).copy_(r.mask_h)
        if r.running_mean is not None and r.running_var is not None:
            self.mean.copy_(r.running_mean)
            self.var.copy_(r.running_var)
        self._round(self.hidden[:1], self.hidden_factor[..., :1, :, :])

    def lend(self, place: int, tensor: Tensor) -> Tensor | None:
        """Let kernels use a tensor of the caller, `[T, n, M, G]`: at place 0 pre, which they read, at 1 its gradient.

        If its rows are not aligned as theirs they use a copy, which is returned; that of pre has its values.
        """
        s, copy = self.shape, None
        step, network, *rows = tensor.stride()
        if rows != [s.width, 1] or s.pitch != s.hidden or tensor.data_ptr() % 16 or step % 4 or network % 4:
            if place not in self.copies:
                with torch.inference_mode(False):  # to be used outside of it too
                    self.copies[place] = self._filled(self.capacity, s.networks, s.rows, s.width)
            copy = self.parts_of(self.copies[place][: len(tensor)])
            if place == 0:
                copy.copy_(tensor.unflatten(-1, copy.shape[-2:]))
            tensor, (step, network) = copy, copy.stride()[:2]
        for i, value in enumerate((tensor.data_ptr(), step, network)):
            if self.borders[place][i] != value:
                self.border[place, i].fill_(value)
                self.borders[place][i] = value
        return copy

    def load_order(self, cells: str) -> None:
        """Take the cells' levels, on which launches depend where there is one for each."""
        positions, links = order_tables(cells, self.device)
        self.order[: len(positions)].copy_(positions)
        self.links.copy_(links)
        if not self.tiling.fused:
            self.levels, self.leaves = order_of(cells).levels, order_of(cells).leaves

    def restore(self, steps: int, output: Tensor, kept: Tensor) -> None:
        """Take what an evaluation gave, in place of evaluating the operands."""
        s = self.shape
        self.states_of(self.hidden)[1 : steps + 1].copy_(output)
        self.kept[:steps].copy_(kept)
        states = self.kept[:steps, : s.states_size].unflatten(1, (s.networks, s.nodes + 1, s.rows, s.pitch))
        self._round(states[:, :, :-1], self.factors[:, :, :steps])
        self._round(self.hidden[1 : steps + 1], self.hidden_factor[..., 1 : steps + 1, :, :])

    def _round(self, states: Tensor, factor: Tensor) -> None:
        """Write the factor of some steps' states, with time behind networks and nodes."""
        factor.copy_((states * self.mask if self.shape.masked else states).movedim(0, -3))

    def forward(self, steps: int) -> None:
        """Launch the kernels that evaluate the operands over some steps."""
        for t in range(steps):
            for launch in self._launches():
                self._step_forward(t, *launch)
            if self.shape.weighted:
                self._sum(self.cell_output, self.mix, None, self.hidden[1:], t, self.hidden_factor[1:])
            if self.shape.all_ranks:
                sum_over_ranks(self.hidden[t + 1])
                self._round(self.hidden[t + 1 : t + 2], self.hidden_factor[t + 1 : t + 2])

    def _launches(self) -> Iterator[tuple[int, bool, bool, int, int]]:
        """For each launch: programs for a block of columns, INIT, LAST, first_node and last_node of `step_forward`."""
        networks, nodes = self.shape.networks, self.shape.nodes
        if self.tiling.fused:
            yield networks, True, True, 1, nodes + 1
        else:
            yield networks, True, False, 1, 1
            for level in self.levels:
                yield level.size, False, level.ends, level.first, level.first

    def _step_forward(self, t: int, programs: int, init: bool, last: bool, first_node: int, last_node: int) -> None:
        columns = self._columns(programs, self.tiling.forward, self.tiling.forward_wide)
        self._launch(
            kernels.step_forward, self._grid(programs, columns),
            self.border, self.hidden, *self._hidden_strides(), self.hidden_factor, self.weights, self.mask,
            self.mean, self.var, self._statistics_stride(), self.ancestor, self.activation, self.order,
            self.links, self.arrivals, self.share, *self._kept_operands(), self.factors, self.products,
            self.cell_output, 0 if self.shape.weighted else self.hidden.stride(0), self.capacity, self.factor_steps,
            t, first_node, last_node,
            KEEP=self.shape.keep, INIT=init, LAST=last, **self._constants(columns),
        )  # fmt: skip

    def allocate_gradients(self) -> None:
        """Allocate the buffers of `backward`, at its first call."""
        if hasattr(self, "grad_hidden"):
            return
        s, capacity = self.shape, self.capacity
        self.grad_hidden = self._filled(capacity + 1, *s.hidden_shape)  # the first is that of h0
        self.passed = self._empty(s.networks * (s.nodes + 1), s.rows, s.pitch)  # by gates, from nodes to ancestors
        self.grad_products = torch.empty_like(self.passed)  # what products give to them
        # Of each network, where they share a hidden state.
        self.grad_previous = self._empty(s.networks, s.rows, s.pitch) if s.weighted else self.grad_hidden
        self.grad_product = self._empty(s.networks, s.nodes + 1, capacity, s.rows, s.width, dtype=s.dtype)
        self.alignment = self._empty(capacity, s.networks, s.nodes, self.tiling.pieces)

    def backward(self, steps: int) -> None:
        """Launch the kernels that compute all derivatives from those of the output, except for the weights.

        `grad_hidden` has the derivatives of the output behind its first step, which becomes that of h0.
        """
        self.grad_hidden[0].zero_()
        if self.shape.weighted:
            self.grad_previous.zero_()
            self.alignment.zero_()  # tiles of different widths leave different parts of it alone
        for t in reversed(range(steps)):
            if self.shape.weighted:
                self._sum_backward(t)
            for launch in self._launches_backward():
                self._step_backward(t, *launch)
        if self.shape.weighted:
            self._sum(self.grad_previous, None, None, self.grad_hidden, 0)
        if self.shape.all_ranks:
            sum_over_ranks(self.grad_hidden[0])

    def _sum_backward(self, t: int) -> None:
        """Add to the derivative of the hidden state after step t what comes from the next step."""
        if not self.shape.all_ranks:
            return self._sum(self.grad_previous, None, self.grad_hidden[1:], self.grad_hidden[1:], t)
        self._sum(self.grad_previous, None, None, self.grad_hidden, 0)
        self.grad_hidden[t + 1].add_(sum_over_ranks(self.grad_hidden[0]))

    def _launches_backward(self) -> Iterator[tuple[int, set[str], int, int]]:
        """Programs for a block of columns, stages, first_node and last_node of `step_backward`."""
        networks, nodes = self.shape.networks, self.shape.nodes
        if self.tiling.fused:
            yield networks, {"HEAD", "NODES", "LINK", "TAIL"}, nodes, 2
        else:
            yield self.leaves, {"HEAD"}, networks * nodes, 0
            for level in reversed(self.levels):
                yield level.size, {"NODES" if level.first else "LINK"}, level.first, 0
            yield networks, {"TAIL"}, 0, 0

    def _step_backward(self, t: int, programs: int, stages: set[str], first_node: int, last_node: int) -> None:
        s, tiling = self.shape, self.tiling
        wide = tiling.backward if "HEAD" in stages else tiling.backward_wide  # which without a product is no gain
        columns = self._columns(programs, tiling.backward, wide)
        self._launch(
            kernels.step_backward, self._grid(programs, columns),
            self.border, self.hidden, *self._hidden_strides(), self.weights, self.mask, self.var,
            self._statistics_stride(), self.ancestor, self.activation, self.order, self.links, self.arrivals,
            self.portions, *self._kept_operands(), self.grad_hidden[1:], *self._hidden_strides(), self.passed,
            self.grad_previous, 0 if s.weighted else self.grad_previous.stride(0), self.grad_product, self.alignment,
            tiling.pieces, self.grad_products, s.networks, self.capacity, t, first_node, last_node,
            **{stage: stage in stages for stage in STAGES}, **self._constants(columns),
        )  # fmt: skip

    def weight_gradients(self, steps: int, grad_hidden: Tensor, grad_nodes: Tensor) -> None:
        """Launch the products over all steps and rows, with results `[n, H, G]` and `[n, L, H, G]`."""
        s, tile = self.shape, self.tiling.gradient
        tiles = -(-s.hidden // tile.size)
        hidden_rows = 0 if s.weighted else (self.capacity + 1) * s.rows
        for init, inputs, input_rows, result, matrices in (
            (True, self.hidden_factor, hidden_rows, grad_hidden, s.networks),
            (False, self.factors, self.capacity * s.rows, grad_nodes, s.networks * s.nodes),
        ):
            self._launch(
                kernels.weight_gradient, (tiles, s.parts * tiles, matrices),
                inputs, input_rows, self.ancestor, self.grad_product, self.capacity * s.rows, result, steps * s.rows,
                H=s.hidden, PITCH=s.pitch, L=s.nodes, HIGHWAY=s.form == "highway", INIT=init, DEPTH=tile.depth,
                TILE=tile.size, INPUT_PRECISION=self.input_precision,
                FENCE=self.fence and tile.size >= ASYNCHRONOUS, num_warps=tile.warps,
                num_stages=tile.stages if self.copies_ahead else 1,
            )  # fmt: skip

    def grad_mix(self, steps: int) -> Tensor:
        """The gradients of the mixing weights, `[n]`: each cell's output times the mixture's gradient, summed."""
        return (self.alignment[:steps].sum((0, 3)) * self.share).sum(1)

    def _sum(
        self,
        values: Tensor,
        weights: Tensor | None,
        addend: Tensor | None,
        result: Tensor,
        t: int,
        factor: Tensor | None = None,
    ) -> None:
        """Launch `sum_networks`."""
        count = self.shape.networks
        size = values.numel() // count
        self._launch(
            kernels.sum_networks, (-(-size // SUM_BLOCK),),
            values, values if weights is None else weights, result if addend is None else addend, size, self.mask,
            result, size, result if factor is None else factor, count, size, t,
            WEIGHTED=weights is not None, ADD=addend is not None, HAS_MASK=self.shape.masked, ROUND=factor is not None,
            NETWORKS=SUM_NETWORKS, BLOCK=SUM_BLOCK, num_warps=4,
        )  # fmt: skip

    def _columns(self, programs: int, narrow: Columns, wide: Columns) -> Columns:
        """Wide tiles, with fewer reads of each state, if they leave as many programs as narrow ones for one node."""
        return wide if programs * wide.blocks >= self.shape.networks * narrow.blocks else narrow

    def _grid(self, programs: int, columns: Columns) -> tuple[int, int]:
        return programs, 1 if self.tiling.fused else columns.blocks

    def _hidden_strides(self) -> tuple[int, int]:
        """The strides of a step and of a network; weighted networks share one hidden state."""
        return self.hidden.stride(0), 0 if self.shape.weighted else self.hidden.stride(1)

    def _statistics_stride(self) -> int:
        return self.var.stride(0) if self.shape.norm == "batch" else 0

    def _kept_operands(self) -> tuple[Tensor, int, Tensor, int]:
        """The kept states, and the kept gates and candidates, each with its stride from one step to the next."""
        step = self.kept.stride(0) if self.shape.keep else 0
        states = self.kept.view(-1)
        activated = states[self.shape.states_size if self.shape.keep else 0 :].view(self.shape.dtype)
        return states, step, activated, step * 4 // self.shape.dtype.itemsize

    def _constants(self, columns: Columns) -> dict[str, Any]:
        s = self.shape
        asynchronous = (columns.size if columns.axis else self.tiling.rows) >= ASYNCHRONOUS
        return {
            "M": s.rows,
            "H": s.hidden,
            "PITCH": s.pitch,
            "L": s.nodes,
            "HIGHWAY": s.form == "highway",
            "NORM": s.norm,
            "HAS_MASK": s.masked,
            "WEIGHTED": s.weighted,
            "LEVELS": not self.tiling.fused,
            "ROWS": self.tiling.rows,
            "COLUMNS": columns.size,
            "DEPTH": columns.depth,
            "BLOCKS": columns.blocks if self.tiling.fused else 1,
            "PIECE": columns.piece,
            "AXIS": columns.axis,
            "PREFETCH": self.prefetch,
            "APPROXIMATE": self.approximate,
            "INPUT_PRECISION": self.input_precision,
            "FENCE": self.fence and asynchronous,
            "num_warps": columns.warps,
            "num_stages": columns.stages if self.copies_ahead or not asynchronous else 1,
        }


def _of_version(tiling: Tiling) -> Tiling:
    """Halve what backward holds at a time where Triton is older: it moves more out of loops, and would spill."""
    if _version(triton.__version__) >= FENCED_SINCE:
        return tiling
    return replace(tiling, backward=replace(tiling.backward, piece=max(8, tiling.backward.piece // 2)))


def _version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version; "3.6.0+git1a2b" gives (3, 6, 0)."""
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(number or 0) for number in found.groups()) if found else (0,)


def kept_words(shape: Shape) -> int:
    """Number of fp32 elements kept for backward per time step: states, then gates and candidates in their own type."""
    words = shape.states_size + shape.activated_size * shape.dtype.itemsize // 4
    return -(-words // 16) * 16  # of which kernels see the alignment
