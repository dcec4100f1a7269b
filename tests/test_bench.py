"""The benchmarks themselves: peers compute what the backends compute, and a run becomes a report."""

import pytest
import torch

pytest.importorskip("pytest_benchmark", reason="needs the extra `bench`")
pytest.importorskip("matplotlib", reason="needs the extra `bench`")

from bench.cases import PAPER, Case, make_operands
from bench.contestants import prepare
from wenet.genotypes import ENAS_LM

TINY = [
    Case("tiny", networks=3, hidden=6, rows=4, steps=3, form=form, coupling=coupling, norm=norm)
    for form in ("highway", "plain")
    for coupling in ("weighted", "independent")
    for norm in ("batch", None)
]
TINY.append(Case("tiny cell", networks=1, hidden=5, rows=3, steps=2, coupling="independent", norm=None, cell=ENAS_LM))


@pytest.fixture
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def gradients(name, operands):
    contestant = prepare(name, operands)
    output = contestant.forward()
    pre, h0, *weights = torch.autograd.grad(output, contestant.leaves, operands.grad_output)
    if name == "loop":  # its weights are modules' own
        count = operands.case.networks
        mix, weights = weights[9 * count :], weights[: 9 * count]
        own = [torch.stack(weights[9 * k : 9 * k + 9]) for k in range(count)]
        weights = [torch.stack([w[0] for w in own]), torch.stack([w[1:] for w in own]), *mix]
    return [output.detach(), pre, h0, *weights]


@pytest.mark.parametrize("peer", ["loop", "traced"])
@pytest.mark.parametrize("case", TINY, ids=lambda case: f"{case.form}-{case.coupling}-{case.norm}")
def test_peers_compute_what_the_reference_does(case, peer, double_precision):
    operands = make_operands(case)
    for actual, expected in zip(gradients(peer, operands), gradients("reference", operands), strict=True):
        torch.testing.assert_close(actual, expected)


def test_products_are_counted_as_the_paper_shape_has_them():
    assert PAPER.flops(backward=False) == 2 * 35 * 100 * 9 * 20 * 200 * 400
    assert PAPER.flops(backward=True) == 3 * PAPER.flops(backward=False)
