"""The input's product and the cells in one step of autograd, beside the two operators."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from tests.needs import needs_native
from tests.wenet_kernels.program_cases import EXAMPLES, random_program
from tests.wenet_kernels.threads import same_on_threads
from wenet_kernels import ProgramBatch, WenetError, cell_rnn, project
from wenet_kernels.cpu import INSTRUCTION_SET_VARIABLE, KERNEL_SETS
from wenet_kernels.programs.instructions import ACTIVATIONS
from wenet_kernels.programs.layer import projected_cell_rnn
from wenet_kernels.registration import is_plain

ONE = "h | blend(sigmoid(linear(x, h)), h, tanh(linear(x) + linear(h))); h | relu(product(x, h)) * vector()"
TWO = "h, c | v1 = sigmoid(linear(x, h)) * c + linear(x) | sigmoid(product(h)) * tanh(v1), v1 + h, v1"
T, M, FEATURES, H = 4, 3, 5, 6


def operands(cells: ProgramBatch, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(T, M, FEATURES), (cells.of_input, FEATURES, H), (cells.states, cells.count, M, H), (cells.weights, H, H)]
    shapes.append((cells.vectors, H))
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def in_two(
    x: Tensor,
    weight_input: Tensor,
    *others: Tensor,
    cells: ProgramBatch,
    mask_h: Tensor | None = None,
    backend: str = "auto",
):
    pre = project(x, weight_input, backend=backend)
    return cell_rnn(pre, *others, None, cells, mask_h=mask_h, backend=backend)


def scalar(found) -> Tensor:
    output, states = found
    return sum(((k + 1.3) * each.sin()).sum() for k, each in enumerate((output, *states)))


@pytest.mark.parametrize("text", [ONE, TWO])
@pytest.mark.parametrize("masked", [False, True])
def test_equal_to_the_operators_to_the_last_bit(text, masked):
    cells = ProgramBatch(text)
    leaves = operands(cells)
    mask_h = torch.tensor([0.0, 2.0]).repeat(M, H // 2) if masked else None
    found = projected_cell_rnn(*leaves, cells, mask_h=mask_h)
    expected = in_two(*leaves, cells=cells, mask_h=mask_h)
    with torch.no_grad():
        alone = projected_cell_rnn(*leaves, cells, mask_h=mask_h)
    for got, ungraded, wanted in zip(*((a, *b) for a, b in (found, alone, expected)), strict=True):
        assert torch.equal(got, wanted)
        assert torch.equal(ungraded, wanted)
    for got, wanted in zip(*(torch.autograd.grad(scalar(each), leaves) for each in (found, expected)), strict=True):
        assert torch.equal(got, wanted)


@needs_native
@pytest.mark.parametrize("instruction_set", KERNEL_SETS)
def test_drawn_programs_on_any_number_of_threads(instruction_set, monkeypatch):
    """The native kernels project a few steps at a time, and those of one network give the input's derivative too."""
    monkeypatch.setenv(INSTRUCTION_SET_VARIABLE, instruction_set)
    generator = random.Random(7)
    for number in range(EXAMPLES):
        count, states = generator.choice((1, 1, 2, 5)), generator.choice((1, 2))
        cells = ProgramBatch.of([random_program(generator, states, 6, ACTIVATIONS) for _ in range(count)])
        # Steps are taken together until they have 128 rows.
        steps, rows = generator.choice(((1, 3), (7, 31), (9, 64), (3, 130), (140, 1), (129, 2)))
        inputs, hidden = generator.choice((1, 5, 16, 19)), generator.choice((1, 6, 16, 21))
        shapes = [(steps, rows, inputs), (cells.of_input, inputs, hidden), (states, count, rows, hidden)]
        shapes += [(cells.weights, hidden, hidden), (cells.vectors, hidden)]
        draw = torch.Generator().manual_seed(number)
        scales = (1.0, inputs**-0.5, 1.0, hidden**-0.5, 0.3)
        leaves = [
            (scale * torch.randn(shape, generator=draw, dtype=torch.float64)).requires_grad_()
            for shape, scale in zip(shapes, scales, strict=True)
        ]
        mask_h = 2.0 * (torch.rand(rows, hidden, generator=draw) < 0.5).double() if number % 3 == 0 else None
        wanted = leaves if number % 2 else leaves[1:]
        leaves[0].requires_grad_(bool(number % 2))
        expected = results(in_two(*leaves, cells=cells, mask_h=mask_h, backend="reference"), wanted)

        def native(leaves=leaves, wanted=wanted, cells=cells, mask_h=mask_h) -> list[Tensor]:
            return results(projected_cell_rnn(*leaves, cells, mask_h=mask_h, backend="cpu"), wanted)

        for one, reference in zip(same_on_threads(native, cells), expected, strict=True):
            # Some derivatives are sums of many numbers that cancel.
            assert (one - reference).norm() < 1e-9 * (reference.norm() + 1e-3), (cells, steps, rows, inputs, hidden)


OTHER_INSTRUCTIONS = """
import os, torch
from wenet_kernels import ProgramBatch
from wenet_kernels.programs.layer import projected_cell_rnn
cells = ProgramBatch("h | tanh(linear(x, h))")
shapes = [(4, 3, 5), (1, 5, 64), (1, 1, 3, 64), (1, 64, 64), (cells.vectors, 64)]
leaves = [torch.randn(shape).requires_grad_() for shape in shapes]
os.environ["WENET_INSTRUCTION_SET"] = {first!r}
output, _ = projected_cell_rnn(*leaves, cells, backend="cpu")
os.environ["WENET_INSTRUCTION_SET"] = {second!r}
try:
    output.sum().backward()
except Exception as error:
    print(type(error).__name__, error)
"""


@needs_native
def test_backward_refuses_what_another_instruction_set_kept():
    """In a process of its own: the kernels would read memory that is not theirs."""
    if len(KERNEL_SETS) == 1:
        pytest.skip("a single instruction set here")
    for first, second in (KERNEL_SETS[::-1][:2], KERNEL_SETS[-2:]):  # each has vectors of another width
        script = OTHER_INSTRUCTIONS.format(first=first, second=second)
        found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False)
        assert found.stdout.startswith("WenetError kept must have shape"), (found.returncode, found.stderr)


def results(found, leaves: list[Tensor]) -> list[Tensor]:
    output, states = found
    gradients = torch.autograd.grad(scalar(found), leaves, allow_unused=True)
    return [each.detach() for each in (output, *states, *gradients) if each is not None]


def test_an_input_without_a_derivative():
    cells = ProgramBatch(TWO)
    x, *others = operands(cells)
    found, expected = (
        torch.autograd.grad(scalar(projected_cell_rnn(each, *others, cells)), others) for each in (x.detach(), x)
    )
    for got, wanted in zip(found, expected, strict=True):
        assert torch.equal(got, wanted)


def test_second_derivatives():
    cells = ProgramBatch(TWO)
    leaves = operands(cells, torch.float64)
    found, expected = (
        torch.autograd.grad(
            sum(each.square().sum() for each in torch.autograd.grad(scalar(value), leaves, create_graph=True)), leaves
        )
        for value in (projected_cell_rnn(*leaves, cells), in_two(*leaves, cells=cells))
    )
    for got, wanted in zip(found, expected, strict=True):
        assert wanted.abs().max() > 0.1
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_transforms_and_views_take_the_long_way():
    cells = ProgramBatch(ONE)
    x, *others = (leaf.detach() for leaf in operands(cells))
    batch = torch.stack([x, 2 * x])
    found = torch.vmap(lambda x: projected_cell_rnn(x, *others, cells)[0])(batch)
    for got, each in zip(found, batch, strict=True):
        torch.testing.assert_close(got, projected_cell_rnn(each, *others, cells)[0])
    negated = torch._neg_view(x)
    assert is_plain((x,))
    assert not is_plain((negated,))
    assert torch.equal(projected_cell_rnn(negated, *others, cells)[0], projected_cell_rnn(-x, *others, cells)[0])
    with torch.inference_mode():
        assert torch.equal(projected_cell_rnn(x, *others, cells)[0], projected_cell_rnn(x.clone(), *others, cells)[0])


def test_a_profiler_sees_the_operators():
    cells = ProgramBatch(ONE)
    leaves = operands(cells)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        projected_cell_rnn(*leaves, cells)
    names = {event.key for event in profile.key_averages()}
    assert {"wenet_kernels::project", "wenet_kernels::cell_rnn"} <= names


@pytest.mark.parametrize("place", range(5))
def test_nan_is_named(place):
    cells = ProgramBatch(ONE)
    leaves = [leaf.detach() for leaf in operands(cells)]
    leaves[place].flatten()[-1] = float("nan")
    name = ("x", "weight_input", "states", "weight", "vectors")[place]
    with pytest.raises(WenetError, match=f"^{name} holds NaN"):
        projected_cell_rnn(*leaves, cells)
