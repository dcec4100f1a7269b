"""Cells as programs: their checks, their text, their canonical form, and the reference."""

from __future__ import annotations

import random

import pytest
import torch

from tests.wenet_kernels.program_cases import SMOOTH, program_case, random_program
from wenet_kernels import Program, ProgramBatch, WenetError, cell_rnn
from wenet_kernels.programs import Instruction, canonical
from wenet_kernels.programs.instructions import PRODUCTS

GRU = (
    "h | v1 = sigmoid(linear(x, h)) | v2 = sigmoid(linear(x, h)) | v3 = tanh(linear(x) + v1 * linear(h)) "
    "| h + (1 - v2) * (v3 - h)"
)


def drawn(count: int, seed: int = 0) -> list[Program]:
    generator = random.Random(seed)
    return [random_program(generator, 1 + place % 4, 4 + place % 20) for place in range(count)]


@pytest.mark.parametrize(
    "text",
    [
        "h | tanh(linear(x, h))",
        "h | -0.5 * tanh(product(x, h)) + 1e-05 * h",
        "h | h - (linear(x) - h) * (vector(0.5) - sigmoid(scalar()))",
        "h, c | v1 = linear(x, h) + c | tanh(v1), v1",
        "h | 2 * (3 + linear(x, h)), 1 - linear(x)",
        GRU,
    ],
)
def test_text_is_read_and_written(text):
    assert str(Program.from_text(text)) == text


@pytest.mark.parametrize("program", drawn(300), ids=lambda program: None)
def test_drawn_programs_survive_text_and_json(program):
    assert Program.from_text(str(program)) == program
    assert Program.from_json(program.to_json()) == program


def test_long_chains_survive_too():
    deep = [Instruction("linear", (-1, 0)), *(Instruction("tanh", (value,)) for value in range(1, 900))]
    assert Program.from_text(str(Program(1, deep, [900]))) == Program(1, deep, [900])
    sums = [Instruction("linear", (-1, 0)), *(Instruction("add", (value, 0)) for value in range(1, 900))]
    assert Program.from_text(str(Program(1, sums, [900]))) == Program(1, sums, [900])


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "is not a program"),
        ("tanh(linear(x, h))", "is not a program"),
        ("c | tanh(linear(x, c))", "is not a program"),
        ("h | tanh(x)", "write linear"),
        ("h | tanh(h)", "does not depend on x"),
        ("h | x + h", "can read x"),
        ("h | tanh(linear(h, h))", "in this order"),
        ("h | tanh(linear())", "in this order"),
        ("h | tanh(linear(x, h), h)", "reads 1 values"),
        ("h | tahn(linear(x, h))", "did you mean 'tanh'"),
        ("h | tanh(linear(x, c))", "no value 'c'"),
        ("h | tanh(linear(x, 2))", "not constants"),
        ("h | 1", "is a constant"),
        ("h | v1 = linear(x) | tanh(linear(x, h))", "instruction 1, linear, never reaches"),
        ("h, c | v1 = linear(x, h) | v1, v1", "state c never reaches"),
        ("h, c | linear(x, h)", "ends in as many"),
        ("h | v1 = linear(x | v1", "not an expression"),
        ("h | linear(x, h) | h", "not a statement"),
        ("h | x = linear(x, h) | h", "is already defined"),
        ("h | __import__('os')", "cannot stand"),
        ("h | linear(x).real", "cannot stand"),
        ("h | 1e999 * linear(x, h)", "must be finite"),
        ("h | " + "(" * 5000 + "x" + ")" * 5000, "not an expression"),
        ("h | " + "1 + " * 3000 + "linear(x, h)", "program"),
    ],
)
def test_what_is_no_program_is_told_in_one_line(text, fault):
    with pytest.raises(WenetError, match=fault.replace("(", "\\(")) as error:
        Program.from_text(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


@pytest.mark.parametrize(
    "parts",
    [
        (0, [("linear", (-1, 0))], [0]),
        (5, [("linear", (-1, 0))], [0] * 5),
        (1, [], [0]),
        (1, [("linear", (-1, 1))], [1]),
        (1, [("linear", (-2,))], [1]),
        (1, [("linear", (-1, 0), 1.0)], [1]),
        (1, [("linear", (-1, -1))], [1]),
        (1, [("linear", [-1, 0])], [1]),
        (1, [("linear", (-1, 0)), ("times", (1,))], [2]),
        (1, [("linear", (-1, 0)), ("times", (1,), float("nan"))], [2]),
        (1, [("linear", (-1, 0)), ("times", (1,), 1)], [2]),
        (1, [("linear", (-1, 0))], [2]),
        (1, [("linear", (-1, 0))], []),
        (1, [("linear", (-1, 0))], [1], -1),
        (1, [("linear", (-1, 0))], [True]),
        (1, [("linear", (-1, 0)), *[("tanh", (1,))] * 2000], [1]),
    ],
)
def test_invalid_parts_are_refused(parts):
    with pytest.raises(WenetError):
        Program(*parts)


def test_damaged_text_is_refused_or_read():
    """Whatever is done to a text, it is a program or an error of ours."""
    generator = random.Random(3)
    for program in drawn(300, seed=1):
        text = list(str(program))
        for _ in range(generator.randint(1, 4)):
            text[generator.randrange(len(text))] = generator.choice("hcvx012().,|+-*= ")
        try:
            damaged = Program.from_text("".join(text))
        except WenetError as error:
            assert "\n" not in str(error)
        else:
            assert Program.from_text(str(damaged)) == damaged


def shuffled(program: Program, generator: random.Random) -> Program:
    """The same cell written in another order, terms of sums and products exchanged."""
    order: list[int] = []
    ready = list(range(program.states, program.states + len(program.instructions)))
    while ready:
        value = generator.choice(ready)
        operands = [operand for operand in program.instructions[value - program.states].operands]
        if all(operand < program.states or operand in order for operand in operands):
            order.append(value)
            ready.remove(value)
    number = {-1: -1, **{state: state for state in range(program.states)}}
    number |= {value: program.states + place for place, value in enumerate(order)}
    instructions = []
    for value in order:
        name, operands, constant = program.instructions[value - program.states]
        operands = tuple(number[operand] for operand in operands)
        if name in ("add", "mul") and generator.random() < 0.5:
            operands = operands[::-1]
        instructions.append(Instruction(name, operands, constant))
    return Program(program.states, instructions, [number[each] for each in program.results], number[program.output])


def test_the_order_of_writing_does_not_matter_to_the_canonical_form():
    generator = random.Random(5)
    changed = 0
    for program in drawn(200, seed=2):
        other = shuffled(program, generator)
        changed += other != program
        assert canonical(other) == canonical(program)
        assert canonical(canonical(program)) == canonical(program)
    assert changed > 100


def test_different_cells_have_different_canonical_forms():
    texts = [
        "h | tanh(linear(x, h))",
        "h | tanh(linear(x) + h)",
        "h | tanh(linear(x) + linear(h))",
        "h | tanh(linear(x) - linear(h))",
        "h | tanh(linear(h) - linear(x))",
        "h | v1 = linear(x, h) | v1 * tanh(v1)",
        "h | linear(x, h) * tanh(linear(x, h))",
        "h, c | v1 = tanh(linear(x, h) + c) | v1, v1",
        "h, c | v1 = tanh(linear(x, c) + h) | v1, v1",
    ]
    assert len({str(canonical(Program.from_text(text))) for text in texts}) == len(texts)


def test_a_value_computed_twice_is_computed_once_in_the_canonical_form():
    twice = Program.from_text("h | v1 = linear(x, h) | tanh(v1) * tanh(v1)")
    assert sum(each.name == "tanh" for each in canonical(twice).instructions) == 1
    own = Program.from_text("h | tanh(linear(x)) * tanh(linear(x)) + h")
    assert sum(each.name in PRODUCTS for each in canonical(own).instructions) == 2


def test_tables_are_numbers_and_the_same_ones():
    batch = ProgramBatch(f"{GRU}; h | tanh(linear(x, h))")
    tables = batch.tables()
    assert batch.tables() is tables
    assert tables.instructions.shape == (15, 5) and tables.first.tolist() == [0, 13, 15]
    assert tables.instructions[-2].tolist() == [0, 0, 3, 3, 4]  # a product of h, weight 3, input 3, bias 4


def test_a_batch_carries_equally_many_states():
    with pytest.raises(WenetError, match="the same number"):
        ProgramBatch("h | tanh(linear(x, h)); h, c | v1 = linear(x, h) + c | tanh(v1), v1")


def test_an_lstm_by_hand():
    """The reference against the equations, written once more."""
    program = Program.from_text(
        "h, c | v1 = sigmoid(linear(x, h)) | v2 = sigmoid(linear(x, h)) * c + v1 * tanh(linear(x, h)) "
        "| sigmoid(linear(x, h)) * tanh(v2), v2"
    )
    case = program_case([program], steps=4, rows=3, hidden=5)
    output, [_, last] = cell_rnn(
        case.pre, case.states, case.weight, case.vectors, None, case.batch, backend="reference"
    )
    h, c = case.states[:, 0]
    for t in range(4):
        i, f, g, o = (case.pre[t, k] + h @ case.weight[k] + case.vectors[k] for k in range(4))
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        torch.testing.assert_close(output[t, 0], h)
        torch.testing.assert_close(last[t, 0], c)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("states", [1, 2])
def test_derivatives_agree_with_differences(states, mixed):
    generator = random.Random(states)
    programs = [random_program(generator, states, 9, SMOOTH) for _ in range(2)]
    case = program_case(programs, steps=2, rows=2, hidden=3, mixed=mixed, mask=True)

    def function(*leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        operands = [*leaves, *([] if mixed else [None])]
        output, carried = cell_rnn(*operands, case.batch, mask_h=case.mask_h, backend="reference")
        return output, *carried

    assert torch.autograd.gradcheck(function, case.leaves)
    assert torch.autograd.gradgradcheck(function, case.leaves)


def test_a_mixture_mixes_all_states():
    generator = random.Random(4)
    programs = [random_program(generator, 2, 12) for _ in range(3)]
    case = program_case(programs, steps=1, rows=2, hidden=3, mixed=True)
    apart = program_case(programs, steps=1, rows=2, hidden=3)
    apart.pre, apart.weight, apart.vectors = case.pre, case.weight, case.vectors
    apart.states = case.states.unsqueeze(1).expand(-1, 3, -1, -1)
    for mixed, each in zip(case.run("reference"), apart.run("reference"), strict=True):
        torch.testing.assert_close(mixed[0], torch.einsum("n,nmh->mh", case.mix, each[0]))


def test_vmap_is_one_call_of_more_networks():
    case = program_case(drawn(1, seed=9), steps=3, rows=2, hidden=3)
    pre, states = torch.randn(4, *case.pre.shape, dtype=torch.float64), torch.randn(4, *case.states.shape).double()

    def run(pre: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        return cell_rnn(pre, states, case.weight, case.vectors, None, case.batch)[0]

    expected = torch.stack([run(*each) for each in zip(pre, states, strict=True)])
    torch.testing.assert_close(torch.vmap(run)(pre, states), expected)
    gradient = torch.func.grad(lambda *operands: (run(*operands) ** 2).sum())
    expected = torch.stack([gradient(*each) for each in zip(pre, states, strict=True)])
    torch.testing.assert_close(torch.vmap(gradient)(pre, states), expected)


def test_operator_passes_the_checks_of_pytorch():
    for mixed in (False, True):
        case = program_case(drawn(8, seed=3)[::4], steps=2, rows=2, hidden=3, mixed=mixed)
        operands = (case.pre, case.states, case.weight, case.vectors, case.mix, None)
        options = (case.batch.text, "full", True, "auto")
        torch.library.opcheck(torch.ops.wenet_kernels.cell_rnn.default, (*operands, *options))


@pytest.mark.parametrize("name", ["pre", "states", "weight", "vectors", "mix"])
def test_operands_that_disagree_are_named(name):
    case = program_case(drawn(8)[::4], steps=2, rows=2, hidden=3, mixed=True)
    setattr(case, name, torch.zeros(7, *getattr(case, name).shape[1:], dtype=torch.float64))
    if name == "pre":
        case.pre = torch.zeros(2, 1, 2, 3, dtype=torch.float64)
    with pytest.raises(WenetError, match=f"{name} must have shape"):
        case.run("auto")


def test_nan_is_named():
    case = program_case(drawn(1), steps=2, rows=2, hidden=3)
    with torch.no_grad():
        case.weight[0, 0, 0] = torch.nan
    with pytest.raises(WenetError, match="weight holds NaN"):
        case.run("auto")


def test_an_empty_data_batch_has_an_empty_output():
    case = program_case(drawn(2)[1:], steps=2, rows=0, hidden=3)
    *results, grad = case.results("auto")
    assert results[0].shape == (2, 1, 0, 3) and not grad.any()
