"""Products of bf16 factors in the native kernels, against the reference with factors rounded before every product."""

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bench.parity import relative_error
from wenet_kernels import CellBatch, WenetError, cpu, dag_rnn, reference, resolve_backend
from wenet_kernels.recurrence import Recurrence

from ..needs import needs_bf16, needs_native
from .cases import Case, RandomCell, draw_seed, make_case, run_op, weights_to_round
from .threads import same_on_threads

# T, n, M, H, L: whole vectors, and odd or short ends of rows, hidden units and vectors of columns.
SIZES = [(2, 3, 20, 33, 8), (3, 2, 7, 45, 4), (2, 1, 1, 1, 2)]
BF16_CASES = [
    (*sizes, form, coupling, norm, mask)
    for form in ("highway", "plain")
    for coupling in ("weighted", "independent")
    for norm, mask in ((None, False), ("batch", True), ("running", True))
    for sizes in SIZES
    if norm != "batch" or sizes[2] > 1
]


class RoundedFactors(TorchFunctionMode):
    """Both factors of every product lose what bf16 cannot hold."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__ in ("matmul", "__matmul__"):
            args = [factor.bfloat16().to(factor.dtype) for factor in args]
        return func(*args, **(kwargs or {}))


def single_and_double(case) -> tuple[Case, Case]:
    """The same operands in both precisions."""
    single, double = make_case(case, dtype=torch.float32), make_case(case)
    with torch.no_grad():
        for own, other in zip(single.leaves, double.leaves, strict=True):
            other.copy_(own)
    if single.mask_h is not None:
        double.mask_h = single.mask_h.double()
    if isinstance(single.norm, tuple):
        double.norm = tuple(statistic.double() for statistic in single.norm)
    return single, double


def native_results(o: Case) -> list[Tensor]:
    output = run_op(o, "cpu", "bf16")
    return [output.detach(), *o.gradients(output, draw_seed(output))]


def reference_results(o: Case) -> list[Tensor]:
    mean, var = o.norm if isinstance(o.norm, tuple) else (None, None)
    norm = "running" if isinstance(o.norm, tuple) else o.norm or "none"
    operands = [None if x is None else x.detach() for x in (o.pre, o.h0, o.weight_hidden, o.weight_nodes, o.mix)]
    r = Recurrence(*operands, o.mask_h, mean, var, o.cells.text, o.form, norm, "full")
    evaluation = reference.forward(r, keep=True)
    grads = reference.backward(r, evaluation, draw_seed(evaluation.output))
    return [evaluation.output, *(grad for grad in grads if grad.numel())]


@needs_bf16
@pytest.mark.parametrize("case", BF16_CASES, ids=str)
def test_only_factors_of_products_are_rounded(case):
    """What is left between the two: factors so close to the middle of two bf16 numbers that the error of an fp32 sum
    sends them to the other one, and what follows from that, which normalisation by a batch of few rows magnifies."""
    single, double = single_and_double(case)
    truth = reference_results(double)
    with RoundedFactors():
        rounded = reference_results(double)
    tolerance = 1.5 if single.norm == "batch" else 0.5
    for exact, expected, ours in zip(truth, rounded, native_results(single), strict=True):
        allowed = tolerance * relative_error(expected, exact) + 1e-5
        assert relative_error(ours, expected) <= allowed


@needs_bf16
# Three threads share the last two of five networks; a single block of hidden units they cannot share.
@pytest.mark.parametrize(("networks", "hidden"), [(1, 41), (3, 41), (4, 41), (5, 41), (5, 7)])
@pytest.mark.parametrize("coupling", ["weighted", "independent"])
def test_the_number_of_threads_changes_no_bit(coupling, networks, hidden):
    o = make_case((4, networks, 5, hidden, 4, "highway", coupling, "batch", True), dtype=torch.float32)
    same_on_threads(lambda: native_results(o), counts=(1, 2, 2, 3))


@needs_bf16
@pytest.mark.parametrize("form", ["highway", "plain"])
def test_gradients_lead_downhill(form):
    o = make_case((3, 4, 6, 24, 4, form, "weighted", "batch", True), dtype=torch.float32)
    target = torch.randn(3, 6, 24, generator=torch.Generator().manual_seed(5))
    losses = []
    for _ in range(5):
        loss = (run_op(o, "cpu", "bf16") - target).square().mean()
        losses.append(loss.item())
        with torch.no_grad():
            for leaf, grad in zip(o.leaves[:4], torch.autograd.grad(loss, o.leaves[:4]), strict=True):
                leaf -= 0.01 * grad / grad.norm()
    assert losses == sorted(losses, reverse=True)


def rounded_by_a_product(weights: Tensor) -> Tensor:
    """A square matrix times the identity: the hidden state passes closed gates and is one node's only input."""
    size = len(weights)
    closed, identity = torch.full((1, 1, size, size), -1e4), torch.eye(size)
    cells = CellBatch.from_genotypes([RandomCell([("identity", 0)], [1])])
    first, second = torch.zeros(1, size, size), weights[None, None]
    return dag_rnn(
        closed, identity, first, second, torch.ones(1), cells, form="plain", precision="bf16", backend="cpu"
    )[0]


@needs_bf16
def test_factors_are_rounded_to_nearest_ties_to_even():
    weights = weights_to_round()
    assert torch.equal(rounded_by_a_product(weights), weights.bfloat16().float())


@needs_bf16
def test_what_bf16_cannot_hold():
    largest, tiny = torch.finfo(torch.float32).max, torch.finfo(torch.float32).tiny
    assert rounded_by_a_product(torch.tensor([[largest]])).item() == torch.inf
    assert rounded_by_a_product(torch.tensor([[tiny / 2]])).item() == 0


@needs_bf16
def test_not_a_number_stays_one():
    """Rounding must not carry NaN over into the infinite, which activations would make finite."""
    o = make_case((1, 1, 2, 3, 1, "highway", "weighted", None, False), dtype=torch.float32)
    # In the bits that rounding drops or adds to.
    bits = torch.tensor([0x7F800001, 0x7FFFFFFF, -1], dtype=torch.int32)
    for nan in bits.view(torch.float32):
        with torch.no_grad():
            o.weight_hidden[0, 0, 0] = nan
        with pytest.raises(WenetError, match="weight_hidden holds NaN"):
            run_op(o, "cpu", "bf16")


@needs_bf16
def test_another_instruction_set_is_an_error(monkeypatch):
    monkeypatch.setenv("WENET_INSTRUCTION_SET", "portable")
    with pytest.raises(WenetError, match="WENET_INSTRUCTION_SET=portable does not multiply bf16"):
        resolve_backend("cpu", precision="bf16")


@needs_native
def test_a_processor_without_such_products_is_an_error(monkeypatch):
    monkeypatch.setattr(cpu, "BF16_KERNEL_SETS", ())
    o = make_case((1, 1, 2, 3, 1, "highway", "weighted", None, False), dtype=torch.float32)
    for backend in ("cpu", "auto"):
        with pytest.raises(WenetError, match="this processor multiplies no bf16, only fp32 and fp64"):
            dag_rnn(*o.positional, precision="bf16", backend=backend)


@needs_native
def test_double_precision_has_no_bf16_products():
    with pytest.raises(WenetError, match="no products of torch.float64 in precision 'bf16'"):
        resolve_backend("cpu", "cpu", torch.float64, "bf16")
