"""Programs in the native kernels: against the reference, on any number of threads, and with tables that are wrong."""

from __future__ import annotations

import random

import pytest
import torch

from tests.needs import needs_native
from tests.wenet_kernels.program_cases import EXAMPLES, ProgramCase, drawn_case, error, program_case
from tests.wenet_kernels.threads import same_on_threads, threads
from wenet_kernels import Program
from wenet_kernels.cpu import INSTRUCTION_SET_VARIABLE, KERNEL_SETS
from wenet_kernels.programs import cpu as native
from wenet_kernels.programs.evaluation import ProgramRun
from wenet_kernels.programs.instructions import ACTIVATIONS
from wenet_kernels.programs.reference import EQUATIONS

pytestmark = needs_native


@pytest.mark.parametrize("instruction_set", KERNEL_SETS)
@pytest.mark.parametrize("count", [1, 2])
def test_drawn_programs_against_the_reference(instruction_set, count, monkeypatch):
    monkeypatch.setenv(INSTRUCTION_SET_VARIABLE, instruction_set)
    generator = random.Random(count)
    with threads(count):
        for _ in range(EXAMPLES):
            case = drawn_case(generator)
            for found, expected in zip(case.results("cpu"), case.results("reference"), strict=True):
                assert error(found, expected) < 1e-9, case.batch


def test_single_precision_against_double():
    generator = random.Random(5)
    for _ in range(EXAMPLES):
        case = drawn_case(generator, torch.float32)
        expected, eager = case.double().run("reference"), case.run("reference")
        for found, truth, other in zip(case.run("cpu"), expected, eager, strict=True):
            assert error(found.double(), truth) <= 2 * error(other.double(), truth) + 1e-5, case.batch


@pytest.mark.parametrize("instruction_set", KERNEL_SETS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_functions_and_their_slopes_in_single_precision(name, instruction_set, monkeypatch):
    monkeypatch.setenv(INSTRUCTION_SET_VARIABLE, instruction_set)
    near, far = torch.linspace(-4, 4, 1000), torch.linspace(-80, 80, 1000)
    tiny = torch.logspace(-30, 0, 500)
    case = program_case([Program.from_text(f"h | {name}(product(x)) * h")], 1, 1, 3000, dtype=torch.float32)
    with torch.no_grad():
        case.pre.copy_(torch.cat([near, far, tiny, -tiny]))
        case.states.fill_(1)
    [output, _] = case.run("cpu")
    [slope] = torch.autograd.grad(output.sum(), case.pre)
    x = case.pre.detach().double().requires_grad_()
    expected = EQUATIONS[name](x)
    torch.testing.assert_close(output.double().flatten(), expected.flatten(), rtol=5e-7, atol=2e-8)
    [slope_expected] = torch.autograd.grad(expected.sum(), x)
    torch.testing.assert_close(slope.double(), slope_expected, rtol=5e-7, atol=4e-7)


def operands(case: ProgramCase) -> list[torch.Tensor | None]:
    return [case.pre, case.states, case.weight, case.vectors, case.mix, case.mask_h]


def test_the_same_bits_on_any_number_of_threads():
    generator = random.Random(6)
    for _ in range(EXAMPLES):
        case = drawn_case(generator, torch.float32)
        same_on_threads(lambda case=case: case.results("cpu"), case.batch)


def test_without_gradients_the_results_are_the_same():
    """Then states lie in two places in turn, not one for each step."""
    generator = random.Random(9)
    for _ in range(EXAMPLES):
        case = drawn_case(generator)
        expected = case.run("cpu")
        with torch.no_grad(), threads(2):
            found = case.run("cpu")
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True)), case.batch


# Hidden units for an odd number of blocks in each set of kernels, so that one thread is ahead of the other in the last
# network, which they share.
@pytest.mark.parametrize("hidden", [6, 24, 40])
def test_a_state_of_the_input_alone_does_not_overtake_products_of_the_one_before(hidden):
    cells = [Program.from_text("h, c | v1 = tanh(linear(x)) | tanh(linear(c) + linear(h)), v1")] * 3
    case = program_case(cells, 60, 40, hidden)
    expected = case.run("cpu")
    for _ in range(5):
        with torch.no_grad(), threads(2):
            assert all(torch.equal(one, other) for one, other in zip(case.run("cpu"), expected, strict=True))


def test_saturated_values_stay_finite():
    case = program_case([Program.from_text("h | softplus(linear(x)) * tanh(silu(linear(x, h)))")], 3, 2, 20)
    with torch.no_grad():
        case.pre.mul_(1e3)
    for found, expected in zip(case.results("cpu"), case.results("reference"), strict=True):
        assert found.isfinite().all() and error(found, expected) < 1e-9


def test_operands_of_any_layout():
    case = program_case([Program.from_text("h | tanh(linear(x, h)) * sigmoid(linear(x, h))")], 3, 4, 20)
    expected = case.results("cpu")
    case.pre = case.pre.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    case.weight = case.weight.detach().mT.contiguous().mT.requires_grad_()
    for found, other in zip(case.results("cpu"), expected, strict=True):
        torch.testing.assert_close(found, other)


@pytest.fixture
def run():
    """A valid run of two programs, and its tables."""
    case = program_case(
        [Program.from_text("h | tanh(linear(x, h)) * vector()"), Program.from_text("h | 0.5 * (h + linear(x))")],
        2,
        3,
        4,
    )
    tables = case.batch.tables()
    own = {name: table.clone() for name, table in tables._asdict().items()}
    given = ProgramRun(*(each if each is None else each.detach() for each in operands(case)), case.batch.text, "full")
    made = native._run(given)
    names = {"instructions": "instruction", "first": "first", "results": "result", "constants": "constant"}
    for name, address in names.items():
        setattr(made, address, own[name].data_ptr())
    return made, own, given


def launch(made, given):
    output = torch.empty(2, 2, 3, 4, dtype=torch.float64)
    evaluation = native._native.ProgramEvaluation()
    evaluation.output = output.data_ptr()
    native.cpu.kernels(torch.float64, "full").program_forward(made, evaluation)


def test_wrong_tables_are_an_error_and_never_a_crash(run):
    made, own, given = run
    launch(made, given)
    generator = random.Random(1)
    refused = 0
    for _ in range(3000):
        name = generator.choice(("instructions", "instructions", "instructions", "first", "results"))
        flat = own[name].flatten()
        place = generator.randrange(len(flat))
        before = flat[place].item()
        flat[place] = generator.choice((-(2**31), -2, -1, 0, 1, 2, 3, 4, 7, 15, 16, 100, 2**31 - 1))
        own[name].view(-1)[place] = flat[place]
        try:
            launch(made, given)
        except ValueError as fault:
            assert "were called with" in str(fault)
            refused += 1
        own[name].view(-1)[place] = before
    assert refused > 1500
    launch(made, given)


@pytest.mark.parametrize("name", ["steps", "networks", "rows", "hidden", "states", "threads", "weights", "vectors"])
def test_wrong_sizes_are_an_error(run, name):
    made, _, given = run
    setattr(made, name, -1)
    with pytest.raises(ValueError, match="were called with"):
        launch(made, given)
