"""The launches of the kernels that run programs, and their buffers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wenet_kernels.programs.batch import ProgramBatch
from wenet_kernels.programs.evaluation import ProgramEvaluation, ProgramGradients, ProgramRun
from wenet_kernels.triton import programs
from wenet_kernels.triton.plan import Machine
from wenet_kernels.triton.program_tables import lower, tables_of

MOST_ELEMENTS = 4096, 2048  # in a tile, forward and backward; more would spill
ELEMENTS_OF_WARP = 256
MOST_ROWS = 32  # fewer than matrix units since Hopper take through shared memory, so that no fence is needed
DEPTH = 16  # of products; more takes more registers
STAGES = 3  # of which so many are being loaded
MOST_REGISTERS = 255  # of a thread; without a limit, NVIDIA's assembler spills a few to make room for more programs
GRADIENT_TILE, GRADIENT_DEPTH = 32, 32  # of weight gradients: either side, and rows multiplied at once


@dataclass(frozen=True)
class Tile:
    """The part of a matrix [M, H] that a Triton program works on at once."""

    rows: int
    columns: int
    blocks: int  # of columns, one after the other
    depth: int
    warps: int


def choose_tile(networks: int, rows: int, hidden: int, most: int, machine: Machine, whole: bool = False) -> Tile:
    """Many rows read weights fewer times; few rows make more programs, where there are too few for the GPU.

    Args:
        whole: whether a tile must have all rows, at most `MOST_ROWS`.
    """
    height = 16
    if rows > 16 and (whole or networks * -(-rows // MOST_ROWS) >= machine.multiprocessors):
        height = MOST_ROWS
    width = max(16, min(_power_of_two(hidden), most // height))
    depth = max(16, min(DEPTH, _power_of_two(hidden)))
    return Tile(height, width, -(-hidden // width), depth, max(4, min(8, height * width // ELEMENTS_OF_WARP)))


class ProgramLaunches:
    """The kernels of one call.

    Args:
        r: operands, contiguous but for steps and columns of `pre`.
        keep: whether backward will come.
    """

    def __init__(self, r: ProgramRun, keep: bool, machine: Machine | None = None) -> None:
        self.r, self.batch, self.device = r, ProgramBatch(r.programs), r.pre.device
        self.machine = machine or Machine.of(self.device)
        self.weighted, self.masked = r.mix is not None, r.mask_h is not None
        self.steps, self.of_input, self.rows, self.hidden = r.pre.shape
        self.lowered = lower(r.programs, self.weighted, keep)
        self.tables = tables_of(r.programs, self.weighted, keep, self.device)
        self.chains = r.states.shape[1:-2]  # (n,), or () for the states of the mixture

    def forward(self) -> tuple[ProgramEvaluation, Tensor]:
        """The evaluation with nothing kept, and the memory that backward reads, `[matrices, M, H]`."""
        over_time = self.lowered.over_time(self.steps)
        memory = self._empty(over_time + self.lowered.singles, self.rows, self.hidden)
        carried = self._carried(memory)
        first = carried[..., 0, :, :]
        first[: self.batch.states].copy_(self.r.states)
        first[self.batch.states :].zero_()  # there is no output before the first step
        if self.r.mix is None:
            self._run_forward(memory, memory[1:], self.steps + 1, 1, 0, self.steps)
        else:
            results = self._empty(self.lowered.carried, self.batch.count, self.rows, self.hidden)
            for t in range(self.steps):
                self._run_forward(memory, results, 1, 0, t, t + 1)
                torch.sum(self.r.mix[:, None, None] * results, 1, out=carried[:, t + 1])
        carried = carried[..., 1:, :, :].movedim(-3, 1)  # [R, T, (n,) M, H]
        output = carried[0 if self.batch.puts_out_h else -1].clone(memory_format=torch.contiguous_format)
        states = carried[int(self.batch.puts_out_h) : self.batch.states]
        apart = states.clone(memory_format=torch.contiguous_format) if len(states) else self._empty(0)
        return ProgramEvaluation(output, apart, self._empty(0)), memory[:over_time]

    def backward(self, memory: Tensor, grad_output: Tensor, grad_apart: Tensor | None) -> ProgramGradients:
        """The derivatives by all operands."""
        r, batch, (rows, hidden) = self.r, self.batch, (self.rows, self.hidden)
        tile = self._tile(1)
        tiles = -(-rows // tile.rows)
        given = self._given(grad_output, grad_apart)
        carried = torch.zeros_like(r.states)
        left = self._empty(batch.states, batch.count, rows, hidden) if self.weighted else carried
        grads = self._empty(self.lowered.values, rows, hidden)
        grad_pre = self._empty(*r.pre.shape)
        grad_product = self._empty(batch.weights, self.steps, rows, hidden)
        grad_vector = torch.zeros(tiles, batch.vectors, hidden, dtype=torch.float32, device=self.device)
        alignment = self._empty(self.steps if self.weighted else 0, batch.count, tiles)
        for last in range(self.steps, 0, -1) if self.weighted else (self.steps,):
            self._launch(
                programs.run_backward, (batch.count, tiles),
                memory, *self._tables(), r.weight, self._or_other(r.mask_h), self._or_other(r.mix), given, carried,
                left, grads, grad_pre, grad_product, grad_vector, alignment, rows, batch.vectors, self.of_input,
                self.lowered.slots, self.lowered.longer, self.steps, last - 1 if self.weighted else 0, last,
                H=hidden, STATES=batch.states, RESULTS=self.lowered.carried, MASKED=self.masked, WEIGHTED=self.weighted,
                **self._options(tile),
            )  # fmt: skip
            if self.weighted:
                torch.sum(left, 1, out=carried)
        grad_mix = alignment.sum((0, 2)) if self.weighted else self._empty(0)
        return ProgramGradients(
            grad_pre, carried, self._weight_gradients(memory, grad_product), grad_vector.sum(0), grad_mix
        )

    def _run_forward(self, memory: Tensor, result_out: Tensor, matrices: int, step: int, first: int, last: int) -> None:
        """Some steps; results lie so many matrices apart, and so many from step to step."""
        r, tile, size = self.r, self._tile(0), self.rows * self.hidden
        self._launch(
            programs.run_forward, (self.batch.count, -(-self.rows // tile.rows)),
            memory, *self._tables(), r.pre, *r.pre.stride()[:2], r.weight, r.vectors, self._or_other(r.mask_h),
            result_out, matrices * size, step * size, self.rows, self.lowered.slots,
            self.lowered.longer, self.steps, first, last,
            H=self.hidden, RESULTS=self.lowered.carried, MASKED=self.masked, **self._options(tile),
        )  # fmt: skip

    def _weight_gradients(self, memory: Tensor, grad_product: Tensor) -> Tensor:
        grad_weight = self._empty(*self.r.weight.shape)
        if not self.batch.weights:
            return grad_weight
        tiles = -(-self.hidden // GRADIENT_TILE)
        self._launch(
            programs.weight_gradients, (self.batch.weights, tiles, tiles),
            memory, self.tables.factors, self._or_other(self.r.mask_h), grad_product, grad_weight, self.rows,
            self.lowered.longer, self.steps,
            H=self.hidden, MASKED=self.masked, TILE=GRADIENT_TILE, DEPTH=GRADIENT_DEPTH,
            INPUT_PRECISION=self._precision(), num_warps=4, num_stages=STAGES, **self._limit(),
        )  # fmt: skip
        return grad_weight

    def _given(self, grad_output: Tensor, grad_apart: Tensor | None) -> Tensor:
        """The derivatives by results in the order of the table, `[R, T, (n,) M, H]`."""
        output = grad_output.unsqueeze(0)
        if self.batch.apart:
            shape = (self.batch.apart, *grad_output.shape)
            apart = torch.zeros(shape, device=self.device) if grad_apart is None else grad_apart
            output = torch.cat([output, apart] if self.batch.puts_out_h else [apart, output])
        return output.contiguous()

    def _carried(self, memory: Tensor) -> Tensor:
        """States, and the output if it is none, before the first step and after every one, `[R, (n,) T + 1, M, H]`."""
        slots = memory[: self.lowered.carried * self.chains.numel() * (self.steps + 1)]
        return slots.view(self.lowered.carried, *self.chains, self.steps + 1, self.rows, self.hidden)

    def _tables(self) -> tuple[Tensor, ...]:
        return self.tables.operations, self.tables.numbers, self.tables.bounds, self.tables.results

    def _or_other(self, operand: Tensor | None) -> Tensor:
        """An operand, or another in place of one that is not read."""
        return self.r.pre if operand is None else operand

    def _tile(self, backward: int) -> Tile:
        most, whole = MOST_ELEMENTS[backward], self.batch.normalises
        return choose_tile(self.batch.count, self.rows, self.hidden, most, self.machine, whole)

    def _precision(self) -> str:
        return self.machine.input_precision("full")

    def _options(self, tile: Tile) -> dict[str, Any]:
        return {
            "ROWS": tile.rows,
            "COLUMNS": tile.columns,
            "BLOCKS": tile.blocks,
            "DEPTH": tile.depth,
            "INPUT_PRECISION": self._precision(),
            "num_warps": tile.warps,
            # Where one depth holds all hidden units there is no loop, and nothing may be loaded ahead of a barrier.
            "num_stages": STAGES if self.hidden > tile.depth else 1,
            **self._limit(),
        }

    def _limit(self) -> dict[str, int]:
        return {} if self.machine.amd else {"maxnreg": MOST_REGISTERS}

    def _launch(self, kernel: Any, grid: tuple[int, ...], *operands: object, **options: object) -> None:
        kernel[grid](*operands, **options, enable_fp_fusion=True)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.device)


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()
