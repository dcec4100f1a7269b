"""The Triton kernels against the reference: on a GPU where there is one, else in Triton's interpreter."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bench.parity import relative_error
from wenet_kernels import WenetError, backends, dag_rnn, resolve_backend

from . import cases
from .cases import CASES, draw_seed, run_op

if backends()["triton"] != "ready":
    pytest.skip(f"Triton kernels: {backends()['triton']}", allow_module_level=True)

from wenet_kernels import triton
from wenet_kernels.triton import _pool as pool
from wenet_kernels.triton import plan, workspace
from wenet_kernels.triton import pool as triton_pool

# One program for a network; or one for a block of its columns, and a launch for every level. As with the shapes for
# which the plan chooses so, the former with transposed products.
FUSED, BY_LEVEL = "fused", "by level"
MULTIPROCESSORS = {FUSED: 1, BY_LEVEL: 1_000_000}  # which make the plan choose so
AXES = {FUSED: 1, BY_LEVEL: 0, "fused, rows first": 0, "by level, columns first": 1}
RUNS = [
    *((FUSED, case) for case in CASES),
    *((BY_LEVEL, case) for case in CASES if case[:2] == (2, 3) or case[5:8] == ("highway", "weighted", "batch")),
    (FUSED, (2, 2, 20, 40, 5, "highway", "weighted", "batch", True)),
    ("fused, rows first", (2, 2, 20, 36, 5, "highway", "independent", "batch", True)),
    (BY_LEVEL, (2, 2, 20, 40, 5, "plain", "independent", "batch", True)),
    ("by level, columns first", (2, 3, 20, 36, 6, "highway", "weighted", "batch", True)),
    ("by level, columns first", (3, 2, 4, 20, 6, "plain", "independent", None, True)),
]


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make_case(*arguments, **options):
    """A case of `cases.py` on the device of these tests."""
    case = cases.make_case(*arguments, **options)
    for name in ("pre", "h0", "weight_hidden", "weight_nodes", "mix"):
        tensor = getattr(case, name)
        setattr(case, name, None if tensor is None else tensor.detach().to(DEVICE).requires_grad_())
    case.mask_h = None if case.mask_h is None else case.mask_h.to(DEVICE)
    case.norm = tuple(part.to(DEVICE) for part in case.norm) if isinstance(case.norm, tuple) else case.norm
    return case


@pytest.fixture
def cut(monkeypatch):
    """Choose how the work is cut, into tiles so small that small cases have several."""

    def choose(schedule):
        multiprocessors = MULTIPROCESSORS[schedule.split(",")[0]]
        machine = replace(plan.Machine.of(torch.device(DEVICE)), multiprocessors=multiprocessors)
        real = plan._cut_columns
        monkeypatch.setattr(workspace.Machine, "of", lambda device: machine)
        monkeypatch.setattr(plan, "_cut_columns", lambda *sizes: replace(real(*sizes), axis=AXES[schedule]))
        monkeypatch.setattr(plan, "MOST_ELEMENTS", 512)
        monkeypatch.setattr(plan, "PIECES", (1, 1))
        monkeypatch.setattr(plan, "GRADIENT_TILE", 16)
        pool().lanes.clear()

    return choose


def results(operands, backend):
    output = run_op(operands, backend)
    return output, *operands.gradients(output, draw_seed(output))


def same_numbers(sizes):
    """A case in double and in single precision."""
    exact, single = make_case(sizes), make_case(sizes, dtype=torch.float32)
    with torch.no_grad():
        for own, other in zip(single.leaves, exact.leaves, strict=True):
            own.copy_(other)
    single.mask_h = None if exact.mask_h is None else exact.mask_h.float()
    single.norm = tuple(part.float() for part in exact.norm) if isinstance(exact.norm, tuple) else exact.norm
    return exact, single


# Normalises a state whose variance over the rows is 2e-4: what rounds off before it is multiplied by seventy, and the
# eager fp32 result is exact by luck. Its bound is what rounding the operands alone does in double precision.
ILL_CONDITIONED = (3, 4, 5, 7, 4, "plain", "independent", "batch", True)


def relative_errors(results, truths):
    return [relative_error(ours, truth) for ours, truth in zip(results, truths, strict=True)]


def errors_of_rounded_operands(sizes, truths, trials=60):
    """The worst relative error of each result where every operand is off by up to half an fp32 ulp."""
    generator = torch.Generator().manual_seed(0)
    errors = []
    for _ in range(trials):
        case = make_case(sizes)
        with torch.no_grad():
            for leaf in case.leaves:
                off = 2 * torch.rand(leaf.shape, generator=generator, dtype=torch.float64) - 1
                leaf.mul_(1 + off.to(leaf.device) * 2**-24)
        errors.append(relative_errors(results(case, "reference"), truths))
    return [max(column) for column in zip(*errors, strict=True)]


@pytest.mark.parametrize(("schedule", "case"), RUNS, ids=str)
def test_as_exact_as_the_reference(schedule, case, cut):
    cut(schedule)
    exact, single = same_numbers(case)
    truths = results(exact, "reference")
    allowed = relative_errors(results(single, "reference"), truths)
    if case == ILL_CONDITIONED:
        allowed = [max(pair) for pair in zip(allowed, errors_of_rounded_operands(case, truths), strict=True)]
    for error, limit in zip(relative_errors(results(single, "triton"), truths), allowed, strict=True):
        assert error <= 2 * limit + 1e-5


def test_batch_statistics():
    operands = make_case((2, 2, 6, 3, 2, "highway", "weighted", "batch", False), dtype=torch.float32)
    _, ours = dag_rnn(*operands.positional, norm="batch", backend="triton")
    _, expected = dag_rnn(*operands.positional, norm="batch", backend="reference")
    torch.testing.assert_close(ours, expected)


@pytest.fixture
def poison(monkeypatch):
    """Fill new memory with NaN from now on."""

    def start():
        real = torch.empty

        def poisoned(*sizes, **options):
            result = real(*sizes, **options)
            return result.fill_(float("nan")) if result.is_floating_point() else result

        monkeypatch.setattr(torch, "empty", poisoned)
        pool().lanes.clear()

    return start


@pytest.mark.parametrize("schedule", MULTIPROCESSORS)
def test_repeats_bitwise_and_writes_every_element(schedule, cut, poison):
    """Memory comes uninitialised: filled with NaN, none may be left in a result."""
    cut(schedule)
    operands = make_case((2, 3, 5, 7, 3, "highway", "weighted", "batch", True), dtype=torch.float32)
    once = results(operands, "triton")
    poison()
    twice = results(operands, "triton")
    for a, b in zip(once, twice, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("form", ["highway", "plain"])
@pytest.mark.parametrize("schedule", MULTIPROCESSORS)
def test_ends_of_rows_are_zero(schedule, form, cut, poison):
    """Rows of 7 elements take 8. Products read the last one, and an activation such as sigmoid leaves 0.5 there."""
    cut(schedule)
    poison()
    masked = form == "highway"  # a mask's ends are zero
    operands = make_case((3, 3, 5, 7, 4, form, "weighted", "running", masked), dtype=torch.float32)
    results(operands, "triton")
    ((lane,),) = pool().lanes.values()
    buffers = {name: value for name, value in vars(lane.workspace).items() if isinstance(value, torch.Tensor)}
    rows = {name: value for name, value in buffers.items() if value.shape[-1] == 8}
    rows |= {name: value.unflatten(-1, (2, 8)) for name, value in buffers.items() if value.shape[-1] == 16}
    rows["states"] = lane.workspace.kept[:, : lane.workspace.shape.states_size].unflatten(1, (-1, 8))
    written = {name: value[~value.isnan().all(-1)] for name, value in rows.items()}
    assert {"states", "factors", "weights", "grad_product"} <= {name for name, value in written.items() if len(value)}
    assert {name for name, value in written.items() if value[..., 7:].count_nonzero()} == set()


def test_saturated_activations_stay_finite():
    operands = make_case((2, 4, 2, 3, 4, "highway", "independent", None, False), dtype=torch.float32)
    with torch.no_grad():
        operands.pre.copy_(torch.where(operands.pre > 0, 80.0, -80.0))
    assert all(torch.isfinite(tensor).all() for tensor in results(operands, "triton"))


def test_forward_passes_before_a_backward_keep_what_they_need():
    """Two layers of one shape, and a longer and a shorter sequence through the same memory."""
    cases = [
        make_case((steps, 2, 3, 4, 2, "highway", "weighted", "batch", True), dtype=torch.float32) for steps in (2, 3, 2)
    ]
    outputs = [run_op(case, "triton") for case in cases]
    for case, output in zip(cases, outputs, strict=True):
        expected = case.gradients(run_op(case, "reference"), draw_seed(output))
        for got, want in zip(case.gradients(output, draw_seed(output)), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


def test_memory_made_in_inference_mode_is_used_again_outside():
    case = make_case((2, 2, 3, 4, 2, "highway", "weighted", "batch", True), dtype=torch.float32)
    pool().lanes.clear()
    with torch.inference_mode():
        within = run_op(case, "triton").clone()
    with torch.no_grad():
        outside = run_op(case, "triton")
    assert [len(lanes) for lanes in pool().lanes.values()] == [1]
    assert torch.equal(within, outside)


def test_a_forward_without_gradients_leaves_what_backward_needs():
    case = make_case((2, 2, 3, 4, 2, "highway", "weighted", "batch", True), dtype=torch.float32)
    other = make_case((2, 2, 3, 4, 2, "highway", "weighted", "batch", True), dtype=torch.float32)
    expected = case.gradients(output := run_op(case, "triton"), draw_seed(output))
    output = run_op(case, "triton")
    with torch.no_grad():
        other.weight_nodes.mul_(2)
        run_op(other, "triton")
    for got, want in zip(case.gradients(output, draw_seed(output)), expected, strict=True):
        assert torch.equal(got, want)


def test_strides_change_nothing():
    case = make_case((2, 2, 3, 4, 2, "highway", "independent", "batch", True), dtype=torch.float32)
    expected = results(case, "triton")
    for name in ("pre", "h0", "weight_hidden", "weight_nodes"):
        operand = getattr(case, name).detach()
        setattr(case, name, operand.transpose(-1, -2).contiguous().transpose(-1, -2).requires_grad_())
    case.mask_h = case.mask_h.t().contiguous().t()
    for got, want in zip(results(case, "triton"), expected, strict=True):
        assert torch.equal(got, want)


def test_projected_input_with_aligned_rows_is_read_where_it_is():
    """In the layout that `project` gives, and its gradient written where it stays; of other addresses with a copy."""
    case = make_case((3, 2, 4, 8, 2, "plain", "weighted", None, True), dtype=torch.float32)
    expected = results(case, "triton")
    pre, count = case.pre.detach(), case.pre.numel()
    for start, copied in ((0, set()), (1, {0})):
        memory = torch.empty(start + count, device=DEVICE)[start:].view(2, 3, *pre.shape[2:])
        case.pre = memory.transpose(0, 1).copy_(pre).requires_grad_()
        pool().lanes.clear()
        for got, want in zip(results(case, "triton"), expected, strict=True):
            assert torch.equal(got, want)
        ((lane,),) = pool().lanes.values()
        assert lane.workspace.copies.keys() == copied


@pytest.mark.parametrize("name", ["pre", "h0", "weight_hidden", "weight_nodes", "mix"])
def test_a_gradient_alone(name):
    case = make_case((2, 2, 3, 4, 2, "plain", "weighted", None, True), dtype=torch.float32)
    expected = dict(
        zip(("output", "pre", "h0", "weight_hidden", "weight_nodes", "mix"), results(case, "triton"), strict=True)
    )
    for leaf in case.leaves:
        leaf.requires_grad_(leaf is getattr(case, name))
    output = run_op(case, "triton")
    (found,) = torch.autograd.grad(output, getattr(case, name), draw_seed(output))
    assert torch.equal(found, expected[name])


def test_memory_is_used_again_once_nothing_holds_it():
    case = make_case((2, 2, 3, 4, 2, "highway", "weighted", None, False), dtype=torch.float32)
    shorter = make_case((1, 2, 3, 4, 2, "highway", "weighted", None, False), dtype=torch.float32)
    pool().lanes.clear()
    for operands in (case, case, shorter):
        results(operands, "triton")
    first, second = run_op(case, "triton"), run_op(case, "triton")
    assert [len(lanes) for lanes in pool().lanes.values()] == [2]
    del first, second
    assert all(lane.free for lanes in pool().lanes.values() for lane in lanes)


def test_cells_of_other_levels_get_their_own_graphs(cut, monkeypatch):
    """Launches depend on levels: graphs of these launches, here replayed one by one, serve no cells of other levels."""
    launch = workspace.Workspace._launch

    def record(run, device):
        recorded = []
        with monkeypatch.context() as patched:
            patched.setattr(workspace.Workspace, "_launch", lambda *given, **options: recorded.append((given, options)))
            run()
        return SimpleNamespace(replay=lambda: [launch(*given, **options) for given, options in recorded])

    cut(BY_LEVEL)
    monkeypatch.setattr(triton_pool, "_may_record", lambda device: True)
    monkeypatch.setattr(triton_pool, "_record", record)
    sizes = (2, 1, 3, 4, 3, "highway", "independent", None, False)
    flat, deep = (
        make_case(sizes, torch.float32, [cases.RandomCell([("tanh", min(i, last)) for i in range(3)], [1, 2, 3])])
        for last in (0, 2)
    )
    with torch.no_grad():
        for case in (flat, flat, flat, deep, flat, deep, deep):
            torch.testing.assert_close(run_op(case, "triton"), run_op(case, "reference"))
    ((lane,),) = pool().lanes.values()
    assert [len(graphs) for graphs in lane.graphs.values()] == [1, 1]


def test_backward_in_a_capture_finds_what_forward_kept(monkeypatch):
    """Or it would load and copy everything once more, in every replay."""
    case = make_case((2, 2, 3, 4, 2, "highway", "weighted", "batch", True), dtype=torch.float32)
    expected = results(case, "triton")
    pool().lanes.clear()
    monkeypatch.setattr(triton, "_captured", lambda device: True)
    monkeypatch.setattr(triton, "_restored", None)
    for got, want in zip(results(case, "triton"), expected, strict=True):
        assert torch.equal(got, want)
    assert not pool().lanes
    run_op(case, "triton")
    assert len(pool().captured) == 1


def test_backward_of_what_was_moved_meanwhile():
    case = make_case((2, 2, 3, 4, 2, "plain", "weighted", "batch", True), dtype=torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.clone(), lambda tensor: tensor):
        output = run_op(case, "triton")
    expected = case.gradients(run_op(case, "reference"), draw_seed(output))
    for got, want in zip(case.gradients(output, draw_seed(output)), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


def test_compiles_into_one_graph():
    operands = make_case((2, 2, 4, 5, 2, "highway", "weighted", "batch", True), dtype=torch.float32)
    compiled = torch.compile(lambda o: run_op(o, "triton"), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(operands), run_op(operands, "triton"), rtol=0, atol=0)


def test_opcheck():
    o = make_case((2, 2, 3, 4, 2, "highway", "weighted", "batch", True), dtype=torch.float32)
    torch.library.opcheck(
        torch.ops.wenet_kernels.dag_rnn.default,
        (*o.positional[:5], o.mask_h, None, None, o.cells.text, "highway", "batch", "full", False, True, "triton"),
        # Outputs of one call lie in memory that the next one uses, which a backward recorded in advance forbids.
    )


def test_never_chosen_on_the_cpu_by_itself():
    assert resolve_backend("auto", "cpu") != "triton"


def test_too_many_rows_is_an_error():
    case = make_case((1, 1, 513, 1, 1, "plain", "weighted", None, False), dtype=torch.float32)
    with pytest.raises(WenetError, match="at most 512 rows"):
        run_op(case, "triton")


@pytest.mark.parametrize("coupling", ["weighted", "independent"])
def test_a_batch_of_calls(coupling):
    """Under vmap, as one call of more networks or, coupled, one call after the other."""
    case = make_case((2, 2, 3, 5, 2, "highway", coupling, None, False), dtype=torch.float32)
    generator = torch.Generator().manual_seed(4)
    leaves = [torch.randn(2, *x.shape, generator=generator).to(DEVICE) * 0.5 for x in case.leaves]

    def loss(backend, *tensors):
        mix = tensors[4] if coupling == "weighted" else None
        output = dag_rnn(*tensors[:4], mix, case.cells, coupling=coupling, backend=backend)
        return (output * torch.linspace(-1, 1, output.numel(), device=DEVICE).view(output.shape)).sum()

    positions = tuple(range(1, len(leaves) + 1))
    gradients = torch.func.grad(loss, argnums=positions)
    found = torch.func.vmap(gradients, in_dims=(None, *(0,) * len(leaves)))("triton", *leaves)
    expected = [gradients("reference", *(leaf[k] for leaf in leaves)) for k in range(2)]
    for ours, truth in zip(found, zip(*expected, strict=True), strict=True):
        assert relative_error(ours, torch.stack(truth)) < 1e-5
