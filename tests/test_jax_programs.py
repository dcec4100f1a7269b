"""The cells that benches run in JAX are those of the reference."""

import pytest
import torch

pytest.importorskip("jax", reason="JAX is not installed")

from bench.jax_programs import JaxCells, functions
from tests.wenet_kernels.program_cases import error
from wenet_kernels import ProgramBatch, cell_rnn, project
from wenet_kernels.programs.batch import FUNCTIONS

T, M, H = 3, 4, 5

# Every function, a product of either term alone and of both, cells of unequal length, and an output of its own.
CELLS = [
    "h, c | v1 = linear(x, h) | v2 = sigmoid(v1) * softplus(product(c)) + relu(linear(x)) "
    "| v3 = blend(hardsigmoid(v1), tanh(v2), vector()) | silu(v3) - hardtanh(linear(v3)), 0.5 * c + v3",
    "h, c | v1 = batchnorm(product(x, c)) | v2 = 1 - sigmoid(v1) + scalar() | 0.2 + v1 * v2, tanh(v2) + c, h",
]


def test_the_cells_have_every_function():
    named = {each.name for program in ProgramBatch("; ".join(CELLS)).programs for each in program.instructions}
    assert set(FUNCTIONS) <= named and set(FUNCTIONS) == set(functions())


@pytest.mark.parametrize("interpreted", [False, True])
@pytest.mark.parametrize("cells", [CELLS, CELLS[:1], CELLS[1:]], ids=["both", "first", "second"])
def test_outputs_and_derivatives(cells, interpreted):
    batch = ProgramBatch("; ".join(cells))
    torch.manual_seed(1)
    x = torch.randn(T, M, H)
    weights = [
        torch.randn(batch.of_input, H, H) * H**-0.5,
        torch.randn(batch.weights, H, H) * H**-0.5,
        torch.randn(batch.vectors, H),
    ]
    grad = torch.randn(T, batch.count, M, H)

    exact = [each.double().requires_grad_() for each in (*weights, x)]
    *of_cells, of_input = exact
    states = torch.zeros(batch.states, batch.count, M, H, dtype=torch.float64)
    pre = project(of_input, of_cells[0], backend="reference")
    output, _ = cell_rnn(pre, states, of_cells[1], of_cells[2], None, batch, backend="reference")
    gradients = torch.autograd.grad(output, exact, grad.double())

    found = JaxCells(batch, H, interpreted)
    in_jax = [found.run(weights, x, None)(), *found.run(weights, x, grad)()]
    for name, ours, expected in zip(("output", "Wx", "W", "v", "x"), in_jax, (output, *gradients), strict=True):
        assert expected.norm() > 0 and tuple(ours.shape) == tuple(expected.shape), name
        assert error(torch.tensor(ours.tolist(), dtype=torch.float64), expected) < 1e-5, name
