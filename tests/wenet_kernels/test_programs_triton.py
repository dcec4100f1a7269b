"""Programs in the Triton kernels against the reference: on a GPU where there is one, else in Triton's interpreter."""

import random
from dataclasses import fields

import pytest
import torch

from bench.parity import relative_error
from wenet.cells import load_program
from wenet.nn import CellRNN, StandaloneCellRNN
from wenet.run import resolve_machine
from wenet.searching.settings import resolve_config
from wenet.training.settings import resolve_train_config
from wenet_kernels import Program, ProgramBatch, WenetError, backends, cell_rnn

from . import program_cases
from .program_cases import ProgramCase, random_program

if backends()["triton"] != "ready":
    pytest.skip(f"Triton kernels: {backends()['triton']}", allow_module_level=True)

from wenet_kernels.programs import ACTIVATIONS, resolve_backend
from wenet_kernels.programs.backend import PREFERENCE, settled
from wenet_kernels.programs.batch import CODES, FUNCTIONS
from wenet_kernels.triton import program_launches, program_tables
from wenet_kernels.triton.plan import Machine
from wenet_kernels.triton.program_tables import lower, operations_of

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

CELLS = {name: str(load_program(name)) for name in ("rnn-relu", "lstm", "gru", "mgu", "nas", "indrnn", "lem")}
# Every operation: of products at once, of other values, and where an operand comes twice or a product has two readers.
CELLS["of products"] = (
    "h, c | v1 = product(x, c) | v2 = softplus(linear(x, h)) * hardsigmoid(linear(h)) + relu(product(c)) "
    "| v3 = hardtanh(product(x, v2)) - silu(linear(x)) * sigmoid(v1) | blend(tanh(linear(v3)), v1, h), 0.2 + c * v3"
)
CELLS["of values"] = (
    "h | v1 = linear(x, h) | v2 = softplus(v1) + relu(0.5 * v1) | v3 = hardsigmoid(v2) * hardtanh(v1) "
    "| v4 = silu(v2 - v3) | v5 = blend(v4, v4, sigmoid(v3) * vector(0.5)) | v6 = tanh(v5 + scalar(0.3)) | 1 - v6 * v6"
)
CELLS["normalised"] = (  # products read some of these values and not others, and all of them come again in backward
    "h, c | v1 = batchnorm(linear(x, h)) | v2 = batchnorm(tanh(linear(v1)) * c) | v3 = batchnorm(h) "
    "| v2 + vector() * batchnorm(relu(v1)) * v3, v3 + v2"
)
CELLS["three states"] = (
    "h, c, m | v1 = tanh(linear(x, h) + m) | v2 = 0.5 * (c + v1) | v3 = v2 * sigmoid(linear(x, c)) | v3, h, c"
)
CELLS["an output of its own"] = "h | v1 = tanh(linear(x, h)) | v1 * sigmoid(linear(v1)), v1"

# Cells, steps, rows, hidden units, whether they are mixed, with a mask
RUNS = [
    (["lstm"], 3, 3, 5, False, True),
    (["gru"], 1, 2, 7, False, False),
    (["mgu", "rnn-relu", "indrnn"], 2, 3, 5, True, True),
    (["nas"], 2, 3, 5, False, False),
    (["lem", "lstm", "of products"], 2, 3, 4, False, True),
    (["of products", "lem"], 2, 3, 5, True, False),
    (["of values"], 3, 3, 5, False, False),
    (["three states"], 4, 1, 3, False, True),
    (["normalised"], 3, 3, 5, False, True),
    (["lstm", "normalised"], 2, 5, 17, True, True),
    (["normalised", "lstm"], 2, 20, 3, False, False),
    (["an output of its own", "gru"], 2, 3, 5, False, True),
    (["gru", "an output of its own"], 2, 3, 1, True, False),
]


def make_case(programs, *sizes, dtype=torch.float32):
    case = program_cases.program_case(programs, *sizes, dtype=dtype)
    return on_device(case, dtype)


def on_device(case, dtype):
    """The same numbers on the device of these tests, in some type."""
    own = {}
    for field in fields(ProgramCase):
        operand = getattr(case, field.name)
        own[field.name] = operand
        if isinstance(operand, torch.Tensor):
            own[field.name] = operand.detach().to(DEVICE, dtype).requires_grad_(operand.requires_grad)
    return ProgramCase(**own)


def cells(names):
    return [Program.from_text(CELLS[name]) for name in names]


def results(case, backend):
    """Output, states, and the derivatives of a random sum of them, the same in every precision."""
    found = case.run(backend)
    generator = torch.Generator().manual_seed(1)
    factors = [torch.randn(each.shape, generator=generator, dtype=torch.float64).to(each) for each in found]
    loss = sum((each * factor).sum() for each, factor in zip(found, factors, strict=True))
    return [*found, *torch.autograd.grad(loss, case.leaves, allow_unused=True, materialize_grads=True)]


def check(programs, *sizes):
    torch.manual_seed(5)
    exact = make_case(programs, *sizes, dtype=torch.float64)
    single = on_device(exact, torch.float32)
    truths = results(exact, "reference")
    eager, ours = results(single, "reference"), results(single, "triton")
    compared = [trio for trio in zip(ours, truths, eager, strict=True) if trio[1].numel()]
    assert sum(bool(truth.any()) for _, truth, _ in compared) >= 4  # output, and derivatives by three operands at least
    for found, truth, other in compared:
        if truth.any():
            assert relative_error(found, truth) <= 2 * relative_error(other, truth) + 1e-5
        else:
            assert not found.any()


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_as_exact_as_the_reference(run):
    names, *sizes = run
    check(cells(names), *sizes)


@pytest.mark.parametrize("seed", range(6))
def test_drawn_programs(seed):
    generator = random.Random(seed)
    states, mixed = 1 + seed % 4, seed % 3 == 2
    rows, count = generator.choice((1, 3)), generator.choice((1, 2))
    unary = program_cases.UNARY if rows > 1 else ACTIVATIONS
    programs = [random_program(generator, states, generator.randint(3, 12), unary) for _ in range(count)]
    check(programs, 2, rows, generator.choice((2, 5)), mixed, seed % 2 == 0)


def test_the_cases_have_every_operation():
    """Also those that are not applied to a product at once."""
    found = set()
    for names, *_ in RUNS:
        for text in (CELLS[name] for name in names):
            found |= {(each.is_product, each.code) for each in operations_of(ProgramBatch(text), 0)}
    assert {(False, CODES[name]) for name in FUNCTIONS} <= found
    assert {(True, code) for code in program_tables.FOLDED} <= found


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles so small that small cases have several, side by side and one below the other."""

    def choose(rows):
        monkeypatch.setattr(program_launches, "MOST_ELEMENTS", (16 * rows, 16 * rows))
        monkeypatch.setattr(program_launches, "DEPTH", 16)
        monkeypatch.setattr(program_launches, "GRADIENT_TILE", 16)
        machine = Machine(multiprocessors=1 if rows == program_launches.MOST_ROWS else 1000)
        monkeypatch.setattr(program_launches.Machine, "of", lambda device: machine)

    return choose


@pytest.mark.parametrize(("rows", "mixed"), [(16, True), (16, False), (32, False)])
def test_several_tiles(rows, mixed, small_tiles):
    small_tiles(rows)
    tile = program_launches.choose_tile(2, 35, 20, program_launches.MOST_ELEMENTS[1], Machine.of(None))
    assert (tile.rows, tile.columns, tile.blocks) == (rows, 16, 2)
    check(cells(["gru", "mgu"]), 2, 35, 20, mixed, True)


def test_one_tile_has_all_rows_that_are_normalised(small_tiles):
    small_tiles(16)
    check(cells(["normalised", "lstm"]), 2, program_launches.MOST_ROWS, 20, True, True)
    with pytest.raises(WenetError, match="batchnorm compares all rows, and its programs hold 32 of 33") as refusal:
        make_case(cells(["normalised"]), 2, program_launches.MOST_ROWS + 1, 3).run("triton")
    assert "\n" not in str(refusal.value)


def test_auto_leaves_more_rows_to_the_reference(monkeypatch):
    """As on a GPU, where Triton comes first: whoever does not ask for it is not refused either."""
    monkeypatch.setitem(PREFERENCE, DEVICE, ("triton", "reference"))
    most = program_launches.MOST_ROWS
    for name, rows, chosen in [("normalised", most, "triton"), ("normalised", most + 1, "reference")]:
        case = make_case(cells([name]), 2, rows, 3)
        assert settled("auto", case.pre, "full", case.batch.text)[0] == chosen
        for ours, theirs in zip(results(case, "auto"), results(case, chosen), strict=True):
            assert torch.equal(ours, theirs)
    case = make_case(cells(["gru"]), 2, most + 1, 3)
    assert settled("auto", case.pre, "full", case.batch.text)[0] == "triton"


@pytest.mark.parametrize(
    ("settings", "chosen"),
    [({"data_batch": 33}, "reference"), ({"data_batch": 32}, "triton"), ({"data_batch": 33, "norm": "none"}, "triton")],
)
def test_a_run_names_the_backend_that_its_batches_allow(settings, chosen, monkeypatch):
    monkeypatch.setitem(PREFERENCE, DEVICE, ("triton", "reference"))
    of_all = {"space": "gated", "states": "1", "norm": "batch", "device": DEVICE, "eval_batch": 64}
    assert resolve_machine(resolve_config("quick", {**of_all, **settings})).backend == chosen
    if chosen == "reference":
        with pytest.raises(WenetError, match="hold 32 of 33"):
            resolve_machine(resolve_config("quick", {**of_all, **settings, "backend": "triton"}))


def test_a_cell_that_normalises_is_measured_by_the_largest_batch(monkeypatch):
    monkeypatch.setitem(PREFERENCE, DEVICE, ("triton", "reference"))
    config = resolve_train_config("quick", {"device": DEVICE, "data_batch": 20, "eval_batch": 20, "test_batch": 40})
    for name, chosen in [("normalised", "reference"), ("gru", "triton")]:
        assert resolve_machine(config, cells([name])[0]).backend == chosen


def test_repeats_bitwise_and_writes_every_element(monkeypatch):
    """Memory comes uninitialised: filled with NaN, none may be left in a result."""
    case = make_case(cells(["of products", "lstm"]), 2, 3, 5, True, True)
    once = results(case, "triton")
    real = torch.empty

    def poisoned(*sizes, **options):
        result = real(*sizes, **options)
        return result.fill_(float("nan")) if result.is_floating_point() else result

    monkeypatch.setattr(torch, "empty", poisoned)
    for first, second in zip(once, results(case, "triton"), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("mixed", [True, False])
def test_without_gradients_the_results_are_the_same(mixed):
    """Then values share memory as soon as nothing reads them any more."""
    case = make_case(cells(["nas", "of products"]), 3, 3, 5, mixed, True)
    expected = case.run("triton")
    kept, shared = (lower(case.batch.text, mixed, keep) for keep in (True, False))
    assert shared.slots + shared.singles < kept.slots
    with torch.no_grad():
        for found, other in zip(case.run("triton"), expected, strict=True):
            assert torch.equal(found, other)


def test_saturated_values_stay_finite():
    case = make_case(cells(["of products"]), 2, 2, 3)
    with torch.no_grad():
        case.pre.copy_(torch.where(case.pre > 0, 80.0, -80.0))
    assert all(torch.isfinite(each).all() for each in results(case, "triton"))


def test_operands_of_any_layout():
    case = make_case(cells(["lstm", "lem"]), 3, 3, 5, True, True)
    expected = results(case, "triton")
    case.pre = case.pre.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    for name in ("states", "weight", "vectors"):
        operand = getattr(case, name).detach()
        setattr(case, name, operand.mT.contiguous().mT.requires_grad_())
    case.mask_h = case.mask_h.t().contiguous().t()
    for found, other in zip(results(case, "triton"), expected, strict=True):
        assert torch.equal(found, other)


def test_backward_of_what_was_moved_meanwhile():
    case = make_case(cells(["gru"]), 2, 2, 3)
    expected = results(case, "triton")
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.clone(), lambda tensor: tensor):
        for found, other in zip(results(case, "triton"), expected, strict=True):
            assert torch.equal(found, other)


def test_a_derivative_of_a_state_alone():
    case = make_case(cells(["lstm"]), 3, 2, 3)
    for place in (0, 1):
        found, expected = (
            torch.autograd.grad(cell_run(case, backend)[1][place][-1].square().sum(), case.leaves)
            for backend in ("triton", "reference")
        )
        for ours, other in zip(found, expected, strict=True):
            assert relative_error(ours, other.double()) < 1e-5


def cell_run(case, backend):
    return cell_rnn(
        *(case.pre, case.states, case.weight, case.vectors, case.mix, case.batch),
        mask_h=case.mask_h,
        backend=backend,
    )


def test_a_batch_of_calls():
    """Under vmap, as one call of more networks."""
    case = make_case(cells(["gru"]), 2, 2, 3)
    generator = torch.Generator().manual_seed(4)
    leaves = [torch.randn(2, *each.shape, generator=generator).to(DEVICE) * 0.5 for each in case.leaves]

    def loss(backend, *tensors):
        output, _ = cell_rnn(*tensors, None, case.batch, backend=backend)
        return output.square().sum()

    gradients = torch.func.grad(loss, argnums=(1, 2, 3, 4))
    found = torch.func.vmap(gradients, in_dims=(None, 0, 0, 0, 0))("triton", *leaves)
    expected = [gradients("reference", *(leaf[k] for leaf in leaves)) for k in range(2)]
    for ours, truth in zip(found, zip(*expected, strict=True), strict=True):
        assert relative_error(ours, torch.stack(truth).double()) < 1e-5


def test_compiles_into_one_graph():
    case = make_case(cells(["lstm"]), 2, 2, 3)
    compiled = torch.compile(lambda each: cell_run(each, "triton")[0], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(case), cell_run(case, "triton")[0], rtol=0, atol=0)


def test_opcheck():
    case = make_case(cells(["lstm"]), 2, 2, 3)
    operands = (case.pre, case.states, case.weight, case.vectors, None, None, case.batch.text, "full", True, "triton")
    torch.library.opcheck(torch.ops.wenet_kernels.cell_rnn.default, operands)


def test_an_empty_data_batch_has_an_empty_output():
    *found, grad = results(make_case(cells(["gru"]), 2, 0, 3), "triton")
    assert found[0].shape == (2, 1, 0, 3) and not grad.any()


def test_it_is_chosen_only_where_it_can_run():
    assert resolve_backend("auto", torch.device("cpu"), torch.float32) != "triton"
    assert resolve_backend("triton", torch.device(DEVICE), torch.float32) == "triton"
    assert resolve_backend("auto", torch.device("cuda"), torch.float32) == "triton"
    assert resolve_backend("auto", torch.device("cuda"), torch.float64) == "reference"
    with pytest.raises(WenetError, match="backend 'triton' cannot run: it has no products of torch.float64"):
        make_case(cells(["gru"]), 2, 2, 3, dtype=torch.float64).run("triton")
    assert resolve_backend("triton", torch.device(DEVICE), torch.float32, "fp32") == "triton"
    with pytest.raises(WenetError, match="it has no products of bf16 for cells that are programs"):
        resolve_backend("triton", torch.device(DEVICE), torch.float32, "bf16")
    with pytest.raises(WenetError, match="backend 'triton' cannot run: it does not run on meta"):
        resolve_backend("triton", torch.device("meta"), torch.float32)


def test_layers():
    torch.manual_seed(0)
    gates = [load_program("gru"), load_program("mgu")]
    for make in (
        lambda backend: CellRNN(4, 5, "lstm", num_layers=2, bidirectional=True, backend=backend),
        lambda backend: StandaloneCellRNN(4, 5, gates, backend=backend),
    ):
        ours, other = make("triton").to(DEVICE), make("reference").to(DEVICE)
        other.load_state_dict(ours.state_dict())
        x = torch.randn(3, 2, 4, device=DEVICE)
        (found, _), (expected, _) = ours(x), other(x)
        torch.testing.assert_close(found, expected)
        found.square().sum().backward()
        expected.square().sum().backward()
        for one, two in zip(ours.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(one.grad, two.grad)
