"""The operators under torch.func, differentiated twice, under autocast and compilers, and with wrong arguments."""

import functools
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from wenet_kernels import CellBatch, WenetError, backends, dag_rnn, project
from wenet_kernels.backend import BACKENDS

from .cases import make_case, run_op

READY = [name for name in ("reference", "cpu") if backends()[name] == "ready"]
CELLS = CellBatch("tanh0 relu1 sigmoid0; relu0 identity1 tanh1 mean 2,3")
NODES = 3
COUNT = 2
FORMS = ("highway", "plain")
COUPLINGS = ("weighted", "independent")

each_backend = pytest.mark.parametrize("backend", READY)
each_coupling = pytest.mark.parametrize("coupling", COUPLINGS)


def operands(coupling: str, *batch: int, form: str = "highway", steps: int = 3, rows: int = 2) -> list[Tensor]:
    """x, h0, weight_input, weight_hidden, weight_nodes and, weighted, mix; a batch of each."""
    inputs, hidden = 3, 4
    width = 2 * hidden if form == "highway" else hidden
    generator = torch.Generator().manual_seed(2)
    shapes = [
        (steps, rows, inputs),
        (rows, hidden) if coupling == "weighted" else (COUNT, rows, hidden),
        (COUNT, inputs, width),
        (COUNT, hidden, width),
        (COUNT, NODES, hidden, width),
    ]
    if coupling == "weighted":
        shapes.append((COUNT,))
    return [torch.randn(*batch, *shape, dtype=torch.float64, generator=generator) for shape in shapes]


def run(x, h0, weight_input, weight_hidden, weight_nodes, mix=None, *, backend="reference", form="highway", **options):
    pre = project(x, weight_input, backend=backend)
    coupling = "independent" if mix is None else "weighted"
    result = dag_rnn(
        pre, h0, weight_hidden, weight_nodes, mix, CELLS, form=form, coupling=coupling, backend=backend, **options
    )
    return result[0] if isinstance(result, tuple) else result


def loss(*tensors, **options):
    output = run(*tensors, **options)
    return (output * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)).sum()


def plain_gradients(tensors, **options):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    return torch.autograd.grad(loss(*leaves, **options), leaves)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    largest = max(float(x.abs().max()) for x in torch.utils._pytree.tree_leaves(expected))
    assert largest > 1e-3  # comparing zeros shows nothing


def every(tensors):
    return tuple(range(len(tensors)))


class TestTransforms:
    @each_backend
    @each_coupling
    @pytest.mark.parametrize("form", FORMS)
    def test_grad(self, backend, coupling, form):
        tensors = operands(coupling, form=form)
        found = grad(functools.partial(loss, backend=backend, form=form), argnums=every(tensors))(*tensors)
        close(found, plain_gradients(tensors, backend=backend, form=form))

    @each_backend
    @each_coupling
    def test_vjp_and_jacrev(self, backend, coupling):
        tensors = operands(coupling)
        function = functools.partial(run, backend=backend)
        output, pull_back = vjp(function, *tensors)
        jacobians = jacrev(function, argnums=every(tensors))(*tensors)
        expected = torch.autograd.functional.jacobian(function, tuple(tensors))
        close(jacobians, expected)
        cotangent = torch.randn_like(output)
        close(pull_back(cotangent), tuple(torch.tensordot(cotangent, j, output.dim()) for j in jacobians))

    @each_backend
    @each_coupling
    def test_jvp_and_jacfwd(self, backend, coupling):
        tensors = operands(coupling)
        function = functools.partial(run, backend=backend)
        expected = torch.autograd.functional.jacobian(function, tuple(tensors))
        close(jacfwd(function, argnums=every(tensors))(*tensors), expected)
        tangents = [torch.randn_like(tensor) for tensor in tensors]
        pairs = zip(expected, tangents, strict=True)
        pushed = sum(torch.tensordot(jacobian, tangent, tangent.dim()) for jacobian, tangent in pairs)
        close(jvp(function, tuple(tensors), tuple(tangents))[1], pushed)

    @each_coupling
    def test_second_derivatives(self, coupling):
        x, *rest = operands(coupling, steps=2)
        function = lambda x: loss(x, *rest, backend=READY[-1])  # noqa: E731
        by_reverse = jacrev(jacrev(function))(x)
        close(by_reverse, torch.autograd.functional.hessian(function, x))
        close(hessian(function)(x), by_reverse)

    @each_backend
    @each_coupling
    @pytest.mark.parametrize("norm", [None, "batch"])
    @pytest.mark.parametrize("form", FORMS)
    def test_gradgradcheck(self, backend, coupling, norm, form):
        leaves = [tensor.requires_grad_() for tensor in operands(coupling, form=form, steps=2, rows=3)]
        function = functools.partial(run, backend=backend, norm=norm, form=form)
        assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)

    @each_backend
    def test_gradcheck_in_forward_mode_and_batched(self, backend):
        leaves = [tensor.requires_grad_() for tensor in operands("independent", steps=2)]
        function = functools.partial(run, backend=backend)
        assert torch.autograd.gradcheck(function, leaves, check_forward_ad=True, check_batched_grad=True)

    def test_a_gradient_penalty_by_hand(self):
        """d/dw of (d/dx of sum) squared, by differences."""
        x, *rest = operands("independent")
        weight = rest[2].requires_grad_()

        def penalty(weight):
            rest[2] = weight
            point = x.detach().clone().requires_grad_()
            return (
                torch.autograd.grad(loss(point, *rest, backend=READY[-1]), point, create_graph=True)[0].square().sum()
            )

        (found,) = torch.autograd.grad(penalty(weight), weight)
        step = torch.zeros_like(weight)
        step[1, 2, 3] = 1e-5
        slope = (penalty(weight.detach() + step) - penalty(weight.detach() - step)) / 2e-5
        assert found[1, 2, 3].item() == pytest.approx(slope.item(), rel=1e-5)
        assert abs(slope.item()) > 1e-4

    def test_what_has_no_derivative_says_so(self):
        tensors = operands("independent")
        mask = torch.ones(2, 4, dtype=torch.float64, requires_grad=True)
        with pytest.raises(WenetError, match="no derivative"):
            run(*tensors, mask_h=mask)
        with pytest.raises(WenetError, match="no derivative"):
            jvp(lambda mask: run(*tensors, mask_h=mask), (mask.detach(),), (mask.detach(),))


SIZE = 3


def batched_some(tensors, which):
    """The batch's element 0 in place of the batch, but for the tensors at these positions; and `in_dims`."""
    chosen = [tensor if position in which else tensor[0] for position, tensor in enumerate(tensors)]
    return chosen, tuple(0 if position in which else None for position in range(len(tensors)))


def one_by_one(function, tensors, in_dims):
    def call(index):
        return function(*(x if dim is None else x[index] for x, dim in zip(tensors, in_dims, strict=True)))

    return stacked([call(index) for index in range(SIZE)])


def stacked(results):
    return torch.utils._pytree.tree_map(lambda *parts: torch.stack(parts), *results)


WHICH = [(0, 1, 2, 3, 4, 5), (2, 3, 4), (0, 1), (0,), (3,), (0, 2), (5,)]


class TestBatches:
    @each_backend
    @each_coupling
    def test_of_no_calls(self, backend, coupling):
        tensors = operands(coupling, 0)
        function = functools.partial(run, backend=backend)
        assert vmap(function)(*tensors).shape == (0, *run(*operands(coupling), backend=backend).shape)
        found = vmap(grad(functools.partial(loss, backend=backend), argnums=every(tensors)))(*tensors)
        assert [x.shape for x in found] == [x.shape for x in tensors]

    @each_backend
    @each_coupling
    def test_all_derivatives_of_an_empty_output(self, backend, coupling):
        tensors = operands(coupling, rows=0)
        found = jacrev(functools.partial(run, backend=backend), argnums=every(tensors))(*tensors)
        output = run(*tensors, backend=backend)
        assert [x.shape for x in found] == [(*output.shape, *x.shape) for x in tensors]

    @each_backend
    @each_coupling
    @pytest.mark.parametrize("which", WHICH, ids=str)
    def test_values_and_gradients(self, backend, coupling, which):
        tensors, in_dims = batched_some(operands(coupling, SIZE), which)
        if in_dims.count(None) == len(tensors):
            pytest.skip("no such operand")
        function = functools.partial(run, backend=backend)
        with torch.no_grad():
            close(vmap(function, in_dims)(*tensors), one_by_one(function, tensors, in_dims))
        derivative = grad(functools.partial(loss, backend=backend), argnums=every(tensors))
        close(vmap(derivative, in_dims)(*tensors), one_by_one(derivative, tensors, in_dims))
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        weighting = torch.randn(SIZE, dtype=torch.float64)
        whole = functools.partial(loss, backend=backend)
        found = torch.autograd.grad((vmap(whole, in_dims)(*leaves) * weighting).sum(), leaves)
        expected = torch.autograd.grad((one_by_one(whole, leaves, in_dims) * weighting).sum(), leaves)
        close(found, expected)

    @pytest.mark.parametrize("norm", ["batch", "running"])
    @pytest.mark.parametrize("masked", [None, "shared", "each"])
    @each_backend
    def test_norms_and_masks(self, backend, norm, masked):
        tensors = operands("independent", SIZE, rows=4)
        mean, var = torch.randn(COUNT, NODES + 1, 4).double(), torch.rand(COUNT, NODES + 1, 4).double() + 0.5
        masks = torch.bernoulli(torch.full((SIZE, 4, 4), 0.5).double(), generator=torch.Generator().manual_seed(1))
        mask = None if masked is None else masks if masked == "each" else masks[0]

        def function(mask, *tensors):
            options = {"norm": (mean, var) if norm == "running" else norm, "mask_h": mask, "backend": backend}
            return grad(functools.partial(loss, **options), argnums=every(tensors))(*tensors)

        in_dims = (0 if masked == "each" else None, *(0,) * len(tensors))
        found = vmap(function, in_dims)(mask, *tensors)
        close(found, one_by_one(function, (mask, *tensors), in_dims))

    @each_backend
    @each_coupling
    def test_nested_and_in_other_dimensions(self, backend, coupling):
        tensors = operands(coupling, SIZE, 2)
        derivative = grad(functools.partial(loss, backend=backend), argnums=every(tensors))
        found = vmap(vmap(derivative))(*tensors)
        expected = one_by_one(lambda *x: one_by_one_of_two(derivative, x), tensors, (0,) * len(tensors))
        close(found, expected)
        turned = [tensor.movedim(0, 2) for tensor in tensors]
        close(vmap(vmap(derivative), in_dims=2)(*turned), expected)

    @each_backend
    def test_a_batch_of_layers_is_one_call(self, backend, monkeypatch):
        sizes = sizes_of_calls(backend, monkeypatch)
        tensors, in_dims = batched_some(operands("independent", SIZE), (2, 3, 4))
        vmap(functools.partial(run, backend=backend), in_dims)(*tensors)
        assert sizes == [(SIZE * COUNT, 2)]

    @each_backend
    def test_of_one_network_over_data_copies_no_weights(self, backend, monkeypatch):
        sizes = sizes_of_calls(backend, monkeypatch)
        for coupling in COUPLINGS:
            tensors, in_dims = batched_some(operands(coupling, SIZE), (0,))
            with torch.no_grad():
                vmap(functools.partial(run, backend=backend), in_dims)(*tensors)
        assert sizes == [(COUNT, SIZE * 2)] * 2


def sizes_of_calls(backend, monkeypatch):
    """Of every call of a backend from now on, the networks and the rows."""
    module, sizes = BACKENDS[backend], []
    real = module.forward

    def recorded(r, keep):
        sizes.append(r.sizes[1:3])
        return real(r, keep)

    monkeypatch.setattr(module, "forward", recorded)
    return sizes


def one_by_one_of_two(function, tensors):
    return stacked([function(*(x[k] for x in tensors)) for k in range(2)])


COMPILED = {
    "grad": lambda tensors: grad(loss, argnums=every(tensors))(*tensors),
    "vmap": lambda tensors: vmap(run, in_dims=(0,) * len(tensors))(*(x.expand(2, *x.shape) for x in tensors)),
    "twice": lambda tensors: grad(lambda x: grad(loss)(x, *tensors[1:]).square().sum())(tensors[0]),
}


@pytest.mark.parametrize("what", COMPILED)
def test_transforms_compile_into_one_graph(what):
    tensors = operands("independent", steps=2)
    compiled = torch.compile(COMPILED[what], fullgraph=True, backend="aot_eager")
    close(compiled(tensors), COMPILED[what](tensors))


class TestAutocast:
    @each_backend
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @each_coupling
    def test_gives_what_rnns_give(self, backend, dtype, coupling):
        tensors = [tensor.float().requires_grad_() for tensor in operands(coupling)]
        exact = run(*tensors, backend=backend)
        with torch.autocast("cpu", dtype=dtype):
            output = run(tensors[0].to(dtype), *tensors[1:], backend=backend)
            expected = torch.nn.RNN(3, 4)(tensors[0])[0].dtype
            gradients = torch.autograd.grad(output.float().square().sum(), tensors)
        assert output.dtype == expected == dtype
        torch.testing.assert_close(output.float(), exact, rtol=0.05, atol=0.05)
        exact_gradients = torch.autograd.grad(exact.square().sum(), tensors)
        for found, wanted in zip(gradients, exact_gradients, strict=True):
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, wanted, rtol=0.1, atol=0.05 * float(wanted.abs().max()))

    @each_backend
    def test_leaves_fp64_alone(self, backend):
        tensors = operands("independent")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(run(*tensors, backend=backend), run(*tensors, backend=backend).double())
            found = grad(functools.partial(loss, backend=backend), argnums=every(tensors))(*tensors)
            second = jacrev(jacrev(lambda x: loss(x, *tensors[1:])))(tensors[0])
        close(found, plain_gradients(tensors))
        close(second, jacrev(jacrev(lambda x: loss(x, *tensors[1:])))(tensors[0]))


class TestEmptyBatch:
    @each_backend
    @each_coupling
    def test_has_an_output_and_gradients(self, backend, coupling):
        tensors = [tensor.requires_grad_() for tensor in operands(coupling, rows=0)]
        output = run(*tensors, backend=backend)
        assert output.shape == ((3, 0, 4) if coupling == "weighted" else (3, COUNT, 0, 4))
        gradients = torch.autograd.grad(output.sum(), tensors)
        for tensor, gradient in zip(tensors, gradients, strict=True):
            assert gradient.shape == tensor.shape
            assert not gradient.any()

    def test_norm_refuses_it(self):
        with pytest.raises(WenetError, match="at least 2 rows"):
            run(*operands("weighted", rows=0), norm="batch")


class TestArguments:
    """Whoever calls the operators themselves is told what is wrong, and nothing is read past its end."""

    @each_backend
    @pytest.mark.parametrize(
        "change",
        [
            {"cells": "tanh0 relu1 sigmoid7; relu0 identity1 tanh1"},
            {"cells": "tanh0 relu1 swish0; relu0 identity1 tanh1"},
            {"cells": "tanh0 relu1 tanh1 mean 4; relu0 identity1 tanh1"},
            {"cells": "tanh0 relu1 tanh1"},
            {"cells": ""},
            {"form": "round"},
            {"norm": "running"},
            {"norm": "layer"},
            {"precision": "double"},
            {"backend": "abacus"},
            {"weight_nodes": torch.zeros(2, 3, 4, 7, dtype=torch.float64)},
            {"weight_hidden": torch.zeros(2, 4, 8)},
            {"h0": torch.zeros(4, dtype=torch.float64)},
            {"all_ranks": True},
        ],
        ids=str,
    )
    def test_forward(self, backend, change):
        torch.ops.wenet_kernels.dag_rnn(*self.arguments(backend))
        with pytest.raises(WenetError):
            torch.ops.wenet_kernels.dag_rnn(*self.arguments(**{"backend": backend} | change))

    def arguments(self, backend, **changes):
        x, h0, weight_input, weight_hidden, weight_nodes = operands("independent")
        values = {
            "pre": project(x, weight_input), "h0": h0, "weight_hidden": weight_hidden, "weight_nodes": weight_nodes,
            "mix": None, "mask_h": None, "running_mean": None, "running_var": None, "cells": CELLS.text,
            "form": "highway", "norm": "none", "precision": "full", "all_ranks": False, "keep": True,
            "backend": backend,
        }  # fmt: skip
        return tuple((values | changes).values())

    @each_backend
    @pytest.mark.parametrize("position", range(5))
    @pytest.mark.parametrize("fault", ["shape", "type"])
    def test_backward(self, backend, position, fault):
        *operands, _, _ = self.arguments(backend)
        evaluation = torch.ops.wenet_kernels.dag_rnn(*operands, True, backend)
        given = [torch.ones_like(evaluation[0]), *evaluation]
        gradients = torch.ops.wenet_kernels.dag_rnn_backward(*given, *operands, backend)
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
        given[position] = given[position][:-1].clone() if fault == "shape" else given[position].float()
        if fault == "shape" and position > 2:  # of statistics, there are none
            given[position] = torch.zeros(7, dtype=torch.float64)
        with pytest.raises(WenetError):
            torch.ops.wenet_kernels.dag_rnn_backward(*given, *operands, backend)

    @each_backend
    def test_projection(self, backend):
        x, weight = torch.zeros(3, 4), torch.zeros(2, 5, 6)
        for wrong in ((x, weight), (x[0], weight), (x, weight[0]), (x.int(), weight[:, :4].int())):
            with pytest.raises(WenetError):
                torch.ops.wenet_kernels.project(*wrong, backend)
        with pytest.raises(WenetError):
            torch.ops.wenet_kernels.project_backward(torch.zeros(2, 3, 5), x, weight[:, :4], backend)

    def test_tuples_and_other_things(self):
        x, h0, *rest = operands("independent")
        with pytest.raises(WenetError, match="h0 must be a tensor, not a tuple"):
            run(x, (h0, h0), *rest)
        with pytest.raises(WenetError, match="x must be a tensor, not a list"):
            run([1.0], h0, *rest)

    def test_no_time_steps(self):
        with pytest.raises(WenetError, match="at least one time step"):
            run(*operands("independent", steps=0))

    @each_backend
    @pytest.mark.parametrize(("position", "name"), [(0, "x"), (2, "weight_input"), (1, "h0"), (4, "weight_nodes")])
    def test_nan_is_found_where_it_is(self, backend, position, name):
        tensors = operands("independent")
        tensors[position].view(-1)[-2] = float("nan")
        with pytest.raises(WenetError, match=f"^{name} holds NaN"):
            run(*tensors, backend=backend)

    def test_infinity_is_no_nan(self):
        tensors = operands("independent")
        tensors[0][0, 0, 0] = float("inf")
        assert not torch.isnan(run(*tensors, backend=READY[-1])).all()


FIRST_UNDER_A_TRANSFORM = """
import torch
from wenet_kernels import CellBatch, dag_rnn

def run(weight, cells):
    return dag_rnn(pre, h0, weight, nodes, None, CellBatch(cells), coupling="independent", backend="reference")

pre, h0, weight, nodes = torch.randn(2, 1, 3, 8), torch.zeros(1, 3, 4), torch.randn(1, 4, 8), torch.randn(1, 2, 4, 8)
for cells, transform in (
    ("tanh0 relu1", lambda f: torch.func.grad(f)),
    ("tanh0 relu0", lambda f: lambda w: torch.func.vmap(f)(w.expand(2, *w.shape))),
    ("relu0 tanh1", lambda f: torch.func.grad(lambda w: torch.func.grad(f)(w).sum())),
    ("relu0 relu1", lambda f: torch.inference_mode()(f)),
    ("relu0 sigmoid0", lambda f: torch.compile(f, fullgraph=True, backend="aot_eager")),
):
    function = lambda w: run(w, cells).sum()
    transform(function)(weight)
    leaf = weight.clone().requires_grad_()
    (first,) = torch.autograd.grad(function(leaf), leaf, create_graph=True)
    torch.autograd.grad(first.sum(), leaf)
"""


@each_coupling
def test_on_the_device_meta(coupling):
    """Where tensors have a shape alone, and there is no autocast to switch off."""
    tensors = [tensor.to("meta") for tensor in operands(coupling)]

    def total(*tensors):
        return run(*tensors).square().sum()

    for transform in (grad, jvp_of_ones, lambda f: grad(lambda x, *rest: grad(f)(x, *rest).sum())):
        assert transform(total)(*tensors) is not None
    assert vmap(grad(total))(*(tensor.to("meta") for tensor in operands(coupling, SIZE))).shape[0] == SIZE


def jvp_of_ones(function):
    return lambda *tensors: jvp(function, tensors, tuple(torch.ones_like(tensor) for tensor in tensors))


def test_tables_made_under_a_transform_serve_afterwards():
    subprocess.run([sys.executable, "-W", "ignore", "-c", FIRST_UNDER_A_TRANSFORM], check=True)


@pytest.mark.parametrize("package", ["wenet_kernels", "wenet_kernels.triton", "wenet.nn"])
def test_importing_loads_no_compiler(package):
    code = f"import sys, {package}; sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_call_loads_no_compiler():
    code = "import sys; from tests.wenet_kernels.test_transforms import *; run(*operands('weighted'))"
    subprocess.run([sys.executable, "-c", f"{code}; sys.exit('torch._dynamo' in sys.modules)"], check=True)


@each_coupling
def test_opcheck_of_the_derivatives(coupling):
    o = make_case((2, 2, 3, 4, 2, "highway", coupling, "batch", True))
    settled = (*o.positional[:5], o.mask_h, None, None, o.cells.text, "highway", "batch", "full", False)
    settled = tuple(x.detach() if isinstance(x, Tensor) else x for x in settled)
    evaluation = torch.ops.wenet_kernels.dag_rnn(*settled, True, "reference")
    seed = torch.randn_like(run_op(o, "reference")).requires_grad_()
    torch.library.opcheck(torch.ops.wenet_kernels.dag_rnn_backward.default, (seed, *evaluation, *settled, "reference"))
    x, weight = torch.randn(3, 4), torch.randn(2, 4, 5)
    operator = torch.ops.wenet_kernels.project_backward.default
    torch.library.opcheck(operator, (torch.randn(2, 3, 5), x.requires_grad_(), weight, "reference"))
