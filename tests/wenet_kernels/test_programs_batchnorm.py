"""Batch normalisation in programs: against PyTorch's, against differences, on every backend that runs without a GPU."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tests.needs import needs_native
from tests.wenet_kernels.program_cases import ProgramCase, error, program_case
from tests.wenet_kernels.threads import same_on_threads
from wenet_kernels import Program, ProgramBatch, WenetError, cell_rnn
from wenet_kernels.cpu import INSTRUCTION_SET_VARIABLE, KERNEL_SETS

BACKENDS = ["reference", pytest.param("cpu", marks=needs_native)]

# Values that are kept, and others that backward computes again; read by products, by other instructions, by several
# of them, as a new state, as the output, and by batchnorm itself; a state as it comes. No bias directly before it,
# whose gradient would be zero.
CELLS = {
    "a state": "h | batchnorm(tanh(linear(x, h)))",
    "a product's": "h | tanh(batchnorm(product(x, h)) + vector())",
    "between products": (
        "h | v1 = batchnorm(relu(linear(x, h))) | v2 = batchnorm(silu(linear(v1))) | tanh(v1 * v2) + v1"
    ),
    "read twice": "h | v1 = linear(x, h) | v2 = batchnorm(v1) | v1 * v2 + sigmoid(v2) * batchnorm(v2 * v2)",
    "of old states": (
        "h, c | v1 = batchnorm(h) * sigmoid(linear(x)) + vector() * batchnorm(c) | v1, tanh(linear(v1)) + c"
    ),
    "an output": "h | v1 = tanh(linear(x, h)) | batchnorm(v1), v1",
    "of the input alone": "h | v1 = batchnorm(product(x)) | v2 = batchnorm(product(x)) | blend(sigmoid(v1), h, v2)",
}
# Steps, rows, hidden units. Of two rows it makes nearly one and minus one, whose gradient is nearly zero; and of three,
# where relu leaves one.
SIZES = [(3, 5, 7), (1, 9, 1), (2, 33, 40)]


def case_of(names: list[str], sizes: tuple[int, int, int], mixed: bool, mask: bool, dtype: torch.dtype) -> ProgramCase:
    torch.manual_seed(len(names) + sum(sizes))
    return program_case([Program.from_text(CELLS[name]) for name in names], *sizes, mixed, mask, dtype)


def cases(dtype: torch.dtype = torch.float64) -> list[ProgramCase]:
    """Every cell alone, and together, in both couplings and with and without a mask."""
    alone = [
        case_of([name], sizes, bool((place + turn) % 2), bool((place + turn) // 2 % 2), dtype)
        for place, name in enumerate(CELLS)
        for turn, sizes in enumerate(SIZES)
    ]
    one_state = [name for name, text in CELLS.items() if text.startswith("h |")]
    return alone + [case_of(one_state, (3, 4, 13), mixed, mixed, dtype) for mixed in (False, True)]


def test_as_batch_normalisation_of_pytorch():
    case = case_of(["a product's"], (1, 6, 5), False, False, torch.float64)
    [output, _] = case.run("reference")
    product = case.pre[0, 0] + case.states[0, 0] @ case.weight[0]
    normalised = functional.batch_norm(product, None, None, training=True, eps=1e-5)
    expected = torch.tanh(normalised + case.vectors[0])
    torch.testing.assert_close(output[0, 0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", [name for name in CELLS if name != "between products"])  # whose relu has a kink
def test_derivatives_agree_with_differences(name, mixed, backend):
    case = case_of([name], (2, 4, 3), mixed, True, torch.float64)

    def function(*leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = [*leaves, *([] if mixed else [None])]
        output, carried = cell_rnn(*given, case.batch, mask_h=case.mask_h, backend=backend)
        return output, *carried

    assert torch.autograd.gradcheck(function, case.leaves)
    if backend == "reference" and not mixed:
        assert torch.autograd.gradgradcheck(function, case.leaves)


@needs_native
@pytest.mark.parametrize("instruction_set", KERNEL_SETS)
def test_native_against_the_reference(instruction_set, monkeypatch):
    monkeypatch.setenv(INSTRUCTION_SET_VARIABLE, instruction_set)
    for case in cases():
        for found, expected in zip(case.results("cpu"), case.results("reference"), strict=True):
            assert error(found, expected) < 1e-12, case.batch


@needs_native
def test_single_precision_against_double():
    for case in cases(torch.float32):
        trios = zip(case.results("cpu"), case.double().results("reference"), case.results("reference"), strict=True)
        for found, truth, eager in trios:
            assert error(found.double(), truth) <= 2 * error(eager.double(), truth) + 1e-5, case.batch


@needs_native
def test_the_same_bits_on_any_number_of_threads():
    for case in cases(torch.float32):
        same_on_threads(lambda case=case: case.results("cpu"), case.batch)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_are_equal_become_zero_and_stay_finite(backend):
    case = case_of(["a state"], (2, 3, 5), False, False, torch.float64)
    with torch.no_grad():
        for operand in (case.pre, case.states):
            operand.copy_(operand[..., :1, :].clone())
    output, _, *gradients = case.results(backend)
    assert output.abs().max() < 1e-10
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_row_is_refused_and_none_is_not(backend):
    with pytest.raises(WenetError, match="batchnorm needs at least two rows") as refusal:
        case_of(["a state"], (2, 1, 3), False, False, torch.float64).run(backend)
    assert "\n" not in str(refusal.value)
    *found, _ = case_of(["a state"], (2, 0, 3), False, False, torch.float64).results(backend)
    assert found[0].shape == (2, 1, 0, 3)


@pytest.mark.parametrize(
    "text",
    [
        "h | batchnorm(vector()) * tanh(linear(x, h))",
        "h | v1 = tanh(product(0.5 * vector())) | batchnorm(v1 - scalar()) + linear(x, h)",
    ],
)
def test_a_value_that_is_the_same_in_all_rows_is_refused(text):
    with pytest.raises(WenetError, match="batchnorm reads a value made only of learned numbers") as refusal:
        Program.from_text(text)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_step_by_step_as_all_at_once(backend):
    case = case_of(["of old states"], (3, 4, 5), False, True, torch.float64)
    output, *carried = case.run(backend)
    states = case.states
    for t in range(3):
        one, found = cell_rnn(
            *(case.pre[t : t + 1], states, case.weight, case.vectors, None, case.batch),
            mask_h=case.mask_h,
            backend=backend,
        )
        states = torch.stack([each[0] for each in found])
        torch.testing.assert_close(one[0], output[t], rtol=0, atol=1e-14)
        torch.testing.assert_close(states, torch.stack([each[t] for each in carried]), rtol=0, atol=1e-14)


def test_the_operator_passes_the_checks_of_pytorch():
    for mixed in (False, True):
        case = case_of(["read twice"], (2, 3, 3), mixed, False, torch.float64)
        operands = (case.pre, case.states, case.weight, case.vectors, case.mix, None)
        options = (case.batch.text, "full", True, "auto")
        torch.library.opcheck(torch.ops.wenet_kernels.cell_rnn.default, (*operands, *options))


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_call_of_a_vmap_has_its_own_statistics(backend):
    case = case_of(["between products"], (3, 4, 3), False, False, torch.float64)
    pre = torch.randn(4, *case.pre.shape, dtype=torch.float64)

    def run(pre: torch.Tensor) -> torch.Tensor:
        return cell_rnn(pre, case.states, case.weight, case.vectors, None, case.batch, backend=backend)[0]

    torch.testing.assert_close(torch.vmap(run)(pre), torch.stack([run(each) for each in pre]))
    gradient = torch.func.grad(lambda pre: (run(pre) ** 2).sum())
    torch.testing.assert_close(torch.vmap(gradient)(pre), torch.stack([gradient(each) for each in pre]))


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("h | tanh(linear(x, h))", "h | batchnorm(tanh(linear(x, h)))"),
        # Whatever reads a new state reads it normalised.
        (
            "h, c | v1 = c + tanh(linear(x, h)) | sigmoid(linear(x)) * tanh(v1), v1",
            "h, c | v1 = batchnorm(c + tanh(linear(x, h))) | batchnorm(sigmoid(linear(x)) * tanh(v1)), v1",
        ),
        # An output apart is no state; an old state and learned numbers stay; two states of one value share it.
        ("h | v1 = tanh(linear(x, h)) | 2 * v1, v1", "h | v1 = batchnorm(tanh(linear(x, h))) | 2 * v1, v1"),
        ("h, c | tanh(linear(x, c)), h", "h, c | batchnorm(tanh(linear(x, c))), h"),
        ("h, c | tanh(linear(x, c) + h), vector()", "h, c | batchnorm(tanh(linear(x, c) + h)), vector()"),
        ("h, c | v1 = linear(x, h) + c | v1, v1", "h, c | v1 = batchnorm(linear(x, h) + c) | v1, v1"),
    ],
)
def test_a_cell_with_normalised_states(text, normalised):
    found = Program.from_text(text).normalised()
    assert str(found) == normalised and found.normalised() == found
    assert found.normalises and ProgramBatch.of([found]).normalises and not Program.from_text(text).normalises
