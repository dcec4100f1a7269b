"""The input projection: every backend against the equation."""

import pytest
import torch

from wenet_kernels import WenetError, backends, project

from ..needs import needs_native
from .threads import same_on_threads, threads

READY = [name for name in ("reference", "cpu") if backends()[name] == "ready"]  # Triton leaves it to PyTorch

# T, n, M, I, G: tiny, ragged, and wider than several vectors
SIZES = [(1, 1, 1, 1, 1), (3, 2, 5, 7, 9), (4, 3, 20, 33, 66)]


def operands(sizes, dtype=torch.float64):
    steps, networks, rows, inputs, columns = sizes
    torch.manual_seed(5)
    return (
        torch.randn(steps, rows, inputs, dtype=dtype).requires_grad_(),
        torch.randn(networks, inputs, columns, dtype=dtype).requires_grad_(),
    )


def results(x, weight, function):
    output = function(x, weight)
    seed = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(x.dtype)
    return output, *torch.autograd.grad(output, (x, weight), seed)


@pytest.mark.parametrize("backend", READY)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_matches_the_equation(sizes, backend):
    x, weight = operands(sizes)
    ours = results(x, weight, lambda x, w: project(x, w, backend=backend))
    equation = results(x, weight, lambda x, w: torch.einsum("tmi,nig->tnmg", x, w))
    for own, expected in zip(ours, equation, strict=True):
        torch.testing.assert_close(own, expected)


@needs_native
def test_every_instruction_set_and_number_of_threads(monkeypatch):
    from wenet_kernels import _native

    x, weight = operands((4, 3, 20, 33, 66), torch.float32)
    expected = results(x, weight, lambda x, w: project(x, w, backend="reference"))
    for instruction_set in _native.kernel_sets():
        monkeypatch.setenv("WENET_INSTRUCTION_SET", instruction_set)
        found = same_on_threads(lambda: results(x, weight, lambda x, w: project(x, w, backend="cpu")), counts=(1, 2))
        for one, want in zip(found, expected, strict=True):
            torch.testing.assert_close(one, want, rtol=1e-4, atol=1e-4)


@needs_native
@pytest.mark.parametrize("count", [1, 2])
def test_subnormal_numbers_are_zero_within_a_call(count):
    """They take many times as long; the caller's own arithmetic keeps them."""
    small, smaller = torch.full((4, 3, 2), 1e-30), torch.full((2, 2, 5), 1e-10)
    with threads(count):
        assert not project(small, smaller, backend="cpu").any()
        for _ in range(100):  # on every thread
            assert (torch.full((100_000,), 1e-30) * 1e-10).all()


@pytest.mark.parametrize("backend", READY)
def test_operator_and_gradient(backend):
    x, weight = operands((2, 2, 3, 4, 5))
    torch.library.opcheck(torch.ops.wenet_kernels.project.default, (x.flatten(0, 1), weight, backend))
    assert torch.autograd.gradcheck(lambda x, w: project(x, w, backend=backend), (x, weight))


def test_errors():
    x, weight = operands((2, 2, 3, 4, 5))
    with pytest.raises(WenetError, match=r"weight_input \[2, 3, 5\]"):
        project(x, weight[:, :3])
    with pytest.raises(WenetError, match="but x is torch.float32"):
        project(x.float(), weight)
