"""Programs with products of bf16 factors in the native kernels, against the reference with factors rounded before every
product."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tests.needs import needs_bf16, needs_native
from tests.wenet_kernels.cases import weights_to_round
from tests.wenet_kernels.program_cases import EXAMPLES, ProgramCase, drawn_case, error, program_case
from tests.wenet_kernels.threads import same_on_threads
from wenet.programs import load_program
from wenet_kernels import Program, ProgramBatch, WenetError, cell_rnn, cpu
from wenet_kernels.programs import ACTIVATIONS, reference, resolve_backend
from wenet_kernels.programs.evaluation import ProgramRun
from wenet_kernels.programs.layer import projected_cell_rnn

SMALL = 0.1  # errors of smaller results are beside this, as sums in fp32 that should be zero are not quite


class RoundedProduct(torch.autograd.Function):
    """A product whose factors lose what bf16 cannot hold, and so do those of the products of its derivatives."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(rounded(left), rounded(right))
        return rounded(left) @ rounded(right)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        left, right = ctx.saved_tensors
        return rounded(grad) @ right.mT, left.mT @ rounded(grad)


class RoundedFactors(TorchFunctionMode):
    """All products are such. What is the same for all rows, `[H]`, is multiplied row by row."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__ in ("matmul", "__matmul__"):
            left, right = args
            return RoundedProduct.apply(left.expand(self.rows, -1), right)
        return func(*args, **(kwargs or {}))


def rounded(numbers: Tensor) -> Tensor:
    return numbers.bfloat16().to(numbers.dtype)


def reference_results(case: ProgramCase) -> list[Tensor]:
    operands = (case.pre, case.states, case.weight, case.vectors, case.mix, case.mask_h, case.batch.text, "full")
    output, apart = reference.forward(ProgramRun(*operands))
    beside = list(apart.unbind()) if case.batch.apart else []
    return case.with_derivatives([output, *([output] if case.batch.puts_out_h else []), *beside])


def check_against_reference(case: ProgramCase) -> None:
    """What is left between the two: factors so close to the middle of two bf16 numbers that the error of an fp32 sum
    sends them to the other one, and what follows from that, which normalisation by a batch of few rows magnifies."""
    double = case.double()
    truth, single = reference_results(double), reference_results(case)
    with RoundedFactors(case.pre.shape[2]):
        expected = reference_results(double)
    share = 1.5 if "batchnorm" in case.batch.text else 0.5
    for exact, own, wanted, ours in zip(truth, single, expected, case.results("cpu", "bf16"), strict=True):
        allowed = share * error(wanted, exact, SMALL) + 2 * error(own.double(), exact, SMALL) + 1e-5
        assert error(ours.double(), wanted, SMALL) <= allowed, case.batch


# T, M, H: whole vectors; odd and short ends of rows and units; more rows than an outer product takes in at once.
@needs_bf16
@pytest.mark.parametrize("sizes", [(3, 20, 32), (3, 7, 45), (5, 1, 17), (4, 131, 16), (2, 1, 1)], ids=str)
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", ["lstm", "gru", "nas"])
def test_only_factors_of_products_are_rounded(name, mixed, mask, sizes):
    torch.manual_seed(2)
    check_against_reference(program_case([load_program(name)] * 3, *sizes, mixed, mask, torch.float32))


@needs_bf16
def test_drawn_programs():
    generator = random.Random(7)
    for _ in range(EXAMPLES):
        # Without batchnorm, which makes rounding alone of some gradients.
        check_against_reference(drawn_case(generator, torch.float32, ACTIVATIONS))


@needs_bf16
@pytest.mark.parametrize("mixed", [False, True])
def test_normalised_cells(mixed):
    torch.manual_seed(4)
    cells = [
        Program.from_text("h | v1 = batchnorm(tanh(linear(x, h))) | v2 = linear(v1) | v1 * sigmoid(v2)"),
        Program.from_text("h | batchnorm(blend(sigmoid(product(x, h)), h, tanh(product(x, h))))"),
    ]
    check_against_reference(program_case(cells, 3, 20, 33, mixed, True, torch.float32))


@needs_bf16
def test_weights_too_large_for_a_cache():
    """Their gradients wait for the last step."""
    torch.manual_seed(3)
    check_against_reference(program_case([load_program("lstm")], 4, 5, 301, dtype=torch.float32))


@needs_bf16
def test_the_same_bits_on_any_number_of_threads():
    generator = random.Random(8)
    for _ in range(EXAMPLES):
        case = drawn_case(generator, torch.float32)
        same_on_threads(lambda case=case: case.results("cpu", "bf16"), case.batch)


@needs_bf16
@pytest.mark.parametrize("mask", [False, True])
def test_units_that_a_vector_lacks_reach_no_other(mask):
    """There the second state grows without bounds; beside it an odd unit is multiplied together with such a one."""
    program = Program.from_text("h, c | tanh(linear(x, c) * c + 0.5 * h), (2 - vector()) * (c + 1)")
    torch.manual_seed(4)
    case = program_case([program], 140, 3, 17, mask=mask, dtype=torch.float32)
    with torch.no_grad():
        case.vectors[1:].fill_(1.5)
    check_against_reference(case)


def rounded_by_a_product(weights: Tensor) -> Tensor:
    """A square matrix times the identity."""
    size = len(weights)
    cells = ProgramBatch("h | product(h) + relu(product(x))")
    operands = torch.zeros(1, 1, size, size), torch.eye(size)[None, None], weights[None], torch.zeros(0, size)
    return cell_rnn(*operands, None, cells, precision="bf16", backend="cpu")[0][0, 0]


@needs_bf16
def test_factors_are_rounded_to_nearest_ties_to_even():
    weights = weights_to_round()
    assert torch.equal(rounded_by_a_product(weights), weights.bfloat16().float())


@needs_bf16
def test_not_a_number_stays_one():
    case = program_case([load_program("gru")], 2, 3, 5, dtype=torch.float32)
    bits = torch.tensor([0x7F800001, 0x7FFFFFFF, -1], dtype=torch.int32)  # that rounding drops or adds to
    for nan in bits.view(torch.float32):
        with torch.no_grad():
            case.weight[0, 0, 0] = nan
        with pytest.raises(WenetError, match="weight holds NaN"):
            case.run("cpu", "bf16")


@needs_bf16
def test_vmap_keeps_the_precision():
    case = program_case([load_program("gru")], 2, 3, 5, dtype=torch.float32)
    many = torch.randn(4, *case.pre.shape)

    def run(pre: Tensor) -> Tensor:
        operands = (pre, case.states, case.weight, case.vectors, None, case.batch)
        return cell_rnn(*operands, precision="bf16")[0]

    for found, pre in zip(torch.vmap(run)(many), many, strict=True):
        assert torch.equal(found, run(pre))


class TestAutocast:
    @needs_bf16
    def test_rounds_factors_where_the_processor_multiplies_them(self, monkeypatch):
        case = program_case([load_program("gru")], 3, 4, 9, dtype=torch.float32)
        half, full = (case.run("auto", precision)[0] for precision in ("bf16", "full"))
        assert not torch.equal(half, full)
        for precision in ("full", "fp32", "bf16"):
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(case.run("auto", precision)[0], half.bfloat16())
        monkeypatch.setenv("WENET_INSTRUCTION_SET", "portable")  # which has no such products
        with torch.autocast("cpu", torch.bfloat16):
            portable = case.run("auto")[0]
        assert error(portable.float(), full.bfloat16().float()) < 1e-3

    @needs_bf16
    def test_of_a_layers_one_call(self):
        """The same with the input's product in the same step of autograd."""
        case = program_case([load_program("gru")], 3, 4, 9, dtype=torch.float32)
        operands = (torch.randn(3, 4, 5), torch.randn(case.batch.of_input, 5, 9), *case.leaves[1:], case.batch)
        half = projected_cell_rnn(*operands, precision="bf16")[0]
        assert not torch.equal(half, projected_cell_rnn(*operands)[0])
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(projected_cell_rnn(*operands)[0], half.bfloat16())


class TestErrors:
    @needs_bf16
    def test_another_instruction_set(self, monkeypatch):
        monkeypatch.setenv("WENET_INSTRUCTION_SET", "portable")
        with pytest.raises(WenetError, match="WENET_INSTRUCTION_SET=portable does not multiply bf16"):
            resolve_backend("cpu", torch.device("cpu"), torch.float32, "bf16")

    @needs_native
    @pytest.mark.parametrize("backend", ["cpu", "auto"])
    def test_a_processor_without_such_products(self, backend, monkeypatch):
        monkeypatch.setattr(cpu, "BF16_KERNEL_SETS", ())
        case = program_case([load_program("gru")], 1, 2, 3, dtype=torch.float32)
        with pytest.raises(WenetError, match="this processor multiplies no bf16, only fp32 and fp64"):
            case.run(backend, "bf16")

    @pytest.mark.parametrize(
        ("precision", "message"),
        [
            ("bf16", "no products of torch.float64 in precision 'bf16'"),
            ("fp32", "needs operands of torch.float32"),
            ("fp8", "precision"),
        ],
    )
    def test_products_that_no_backend_has(self, precision, message):
        case = program_case([load_program("gru")], 1, 2, 3)
        for backend in ("auto", "reference"):
            with pytest.raises(WenetError, match=message):
                case.run(backend, precision)
