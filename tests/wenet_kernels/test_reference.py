"""The reference backend against the equations written a second time, network by network and step by step."""

import copy
import pickle

import pytest
import torch

from wenet_kernels import ACTIVATIONS, CellBatch, WenetError, backends, dag_rnn, resolve_backend
from wenet_kernels.recurrence import NORM_EPS

from .cases import CASES, Case, draw_seed, make_case, run_op

ACTIVATION = {"tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid, "identity": lambda u: u}


def naive(case: Case) -> torch.Tensor:
    """Section 3.1 of the paper as nested loops, traced by autograd."""
    h = case.h0
    outputs = []
    for pre in case.pre:
        cell_outputs = []
        for k, genotype in enumerate(case.genotypes):
            h_k = h if case.mix is not None else h[k]
            states = [naive_init(case, k, pre[k], h_k)]
            for node, (activation, ancestor) in enumerate(genotype.recurrent, start=1):
                previous = states[ancestor]
                product = masked(case, previous) @ case.weight_nodes[k, node - 1]
                if case.form == "highway":
                    c, u = product.chunk(2, -1)
                    state = previous + torch.sigmoid(c) * (ACTIVATION[activation](u) - previous)
                else:
                    state = ACTIVATION[activation](product)
                states.append(normed(case, k, node, state))
            cell_outputs.append(sum(states[node] for node in genotype.concat) / len(genotype.concat))
        stacked = torch.stack(cell_outputs)
        h = stacked if case.mix is None else torch.einsum("n,nmh->mh", case.mix, stacked)
        outputs.append(h)
    return torch.stack(outputs)


def naive_init(case: Case, k: int, pre: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    product = masked(case, h) @ case.weight_hidden[k]
    if case.form == "highway":
        c, u = (pre + product).chunk(2, -1)
    else:
        c, u = pre, product
    return normed(case, k, 0, h + torch.sigmoid(c) * (torch.tanh(u) - h))


def masked(case: Case, state: torch.Tensor) -> torch.Tensor:
    return state if case.mask_h is None else state * case.mask_h


def normed(case: Case, k: int, node: int, state: torch.Tensor) -> torch.Tensor:
    if case.norm is None:
        return state
    if case.norm == "batch":
        return torch.nn.functional.batch_norm(state, None, None, training=True, eps=NORM_EPS)
    mean, var = case.norm
    return torch.nn.functional.batch_norm(state, mean[k, node], var[k, node], training=False, eps=NORM_EPS)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_and_gradients_match_nested_loops(case):
    operands = make_case(case)
    expected = naive(operands)
    actual = run_op(operands, "reference")
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    seed = torch.randn_like(expected)
    for got, want in zip(operands.gradients(actual, seed), operands.gradients(expected, seed), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("norm", [None, "batch", "running"])
@pytest.mark.parametrize("coupling", ["weighted", "independent"])
@pytest.mark.parametrize("form", ["highway", "plain"])
def test_gradcheck(form, coupling, norm):
    operands = make_case((3, 3, 4, 5, 3, form, coupling, norm, True))

    def function(*_):
        return run_op(operands, "reference")

    assert torch.autograd.gradcheck(function, operands.leaves)


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("coupling", ["weighted", "independent"])
def test_opcheck(coupling, norm):
    o = make_case((2, 2, 3, 4, 2, "highway", coupling, None if norm == "none" else norm, True))
    torch.library.opcheck(
        torch.ops.wenet_kernels.dag_rnn.default,
        (*o.positional[:5], o.mask_h, None, None, o.cells.text, "highway", norm, "full", False, True, "reference"),
    )


def test_compiles_into_one_graph():
    operands = make_case((3, 2, 4, 5, 3, "highway", "weighted", "batch", True))
    compiled = torch.compile(lambda o: run_op(o, "reference"), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(operands), run_op(operands, "reference"), rtol=0, atol=0)


def test_repeats_bitwise():
    operands = make_case((4, 3, 5, 6, 4, "highway", "weighted", "batch", True), dtype=torch.float32)
    assert torch.equal(run_op(operands, "reference"), run_op(operands, "reference"))


def test_writes_every_output_element(monkeypatch):
    """Outputs are allocated uninitialised: fill them with NaN and none may be left."""
    real = torch.Tensor.new_empty

    def poisoned(self, *sizes, **options):
        result = real(self, *sizes, **options)
        return result.fill_(float("nan")) if result.is_floating_point() else result

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    operands = make_case((3, 3, 4, 5, 3, "highway", "weighted", "batch", True))
    output = run_op(operands, "reference")
    gradients = operands.gradients(output, draw_seed(output))
    assert all(torch.isfinite(tensor).all() for tensor in (output, *gradients))


def test_saturated_activations_stay_finite():
    operands = make_case((2, 4, 2, 3, 4, "highway", "independent", None, False))
    with torch.no_grad():
        operands.pre.copy_(torch.where(operands.pre > 0, 80.0, -80.0))
    output = run_op(operands, "reference")
    assert torch.isfinite(output).all()
    assert all(torch.isfinite(g).all() for g in operands.gradients(output, draw_seed(output)))


def test_batch_statistics_are_those_of_the_states():
    operands = make_case((2, 2, 6, 3, 2, "highway", "weighted", "batch", False))
    _, (mean, var) = dag_rnn(*operands.positional, form="highway", norm="batch", backend="reference")
    assert mean.shape == var.shape == (2, 2, 3, 3)
    h, pre = operands.h0, operands.pre[0, 1]
    c, u = (pre + h @ operands.weight_hidden[1]).chunk(2, -1)
    state = h + torch.sigmoid(c) * (torch.tanh(u) - h)
    torch.testing.assert_close(mean[0, 1, 0], state.mean(0).detach())
    torch.testing.assert_close(var[0, 1, 0], state.var(0, correction=0).detach())


def test_worked_example_of_the_equations():
    """Eqs. (1)-(4) by hand: two cells of one hidden unit, one step, plain form.

    s0 = h + sigma(x)(tanh(2h) - h) with x = 0, h = 1: 1 + 0.5 (0.9640276 - 1) = 0.9820138.
    Cell 1, relu0 tanh1: s1 = relu(3 s0) = 2.9460414, s2 = tanh(-s1) = -0.9944928; mean 0.9757743.
    Cell 2, sigmoid0 identity0: s1 = sigma(s0) = 0.7275076, s2 = 0.5 s0 = 0.4910069; mean 0.6092573.
    Weights 0.25 and 0.75: 0.7008865.
    """

    class Cell:
        def __init__(self, *recurrent):
            self.recurrent, self.concat = recurrent, (1, 2)

    cells = CellBatch.from_genotypes([Cell(("relu", 0), ("tanh", 1)), Cell(("sigmoid", 0), ("identity", 0))])
    double = torch.float64
    output = dag_rnn(
        torch.zeros(1, 2, 1, 1, dtype=double),
        torch.ones(1, 1, dtype=double),
        torch.full((2, 1, 1), 2.0, dtype=double),
        torch.tensor([[3.0, -1.0], [1.0, 0.5]], dtype=double).view(2, 2, 1, 1),
        torch.tensor([0.25, 0.75], dtype=double),
        cells,
        form="plain",
        backend="reference",
    )
    assert output.item() == pytest.approx(0.7008865, abs=2e-7)


class TestErrors:
    def setup_method(self):
        self.operands = make_case((2, 2, 3, 4, 2, "highway", "weighted", None, True))

    def call(self, **changes):
        names = ("pre", "h0", "weight_hidden", "weight_nodes", "mix", "cells")
        values = dict(zip(names, self.operands.positional, strict=True)) | changes
        return dag_rnn(**values)

    @pytest.mark.parametrize("name", ["h0", "weight_hidden", "weight_nodes", "mix"])
    def test_shapes_that_disagree(self, name):
        wrong = torch.zeros(7, 7, 9, 9, dtype=torch.float64)
        with pytest.raises(WenetError, match=name if name != "h0" else "pre|h0"):
            self.call(**{name: wrong})

    def test_dtypes_that_disagree(self):
        with pytest.raises(WenetError, match="mask_h is torch.float32"):
            self.call(mask_h=torch.ones(3, 4))

    @pytest.mark.parametrize("option", [{"form": "round"}, {"coupling": "loose"}, {"norm": "layer"}])
    def test_unknown_options(self, option):
        with pytest.raises(WenetError, match="unknown"):
            self.call(**option)

    def test_mixing_weights_and_coupling(self):
        with pytest.raises(WenetError, match="takes no mixing weights"):
            self.call(coupling="independent")
        with pytest.raises(WenetError, match="needs mixing weights"):
            self.call(mix=None)

    def test_batch_norm_of_one_row(self):
        o = make_case((2, 2, 1, 4, 2, "highway", "weighted", None, False))
        with pytest.raises(WenetError, match="at least 2 rows"):
            dag_rnn(*o.positional, norm="batch")

    @pytest.mark.parametrize("name", ["pre", "weight_nodes"])
    def test_nan_names_its_operand(self, name):
        with torch.no_grad():
            getattr(self.operands, name).view(-1)[5] = float("nan")
        with pytest.raises(WenetError, match=f"{name} holds NaN"):
            self.call()

    def test_statistics_that_let_the_states_grow(self):
        """A state that is normalised with the same variance at every step is multiplied at every step."""
        cells = CellBatch("identity0 identity1")
        steps, rows, hidden = 60, 3, 4
        weights = torch.randn(1, hidden, 2 * hidden), torch.randn(1, 2, hidden, 2 * hidden)
        shape = (1, 3, hidden)
        norm = torch.zeros(shape), torch.full(shape, 1e-3)
        arguments = torch.randn(steps, 1, rows, 2 * hidden), torch.randn(rows, hidden), *weights, torch.ones(1), cells
        for backend in ("reference", "cpu"):
            if backends()[backend] == "ready":
                with pytest.raises(WenetError, match=r"statistics that norm gives.*norm='batch'"):
                    dag_rnn(*arguments, norm=norm, backend=backend)
                output, _ = dag_rnn(*arguments, norm="batch", backend=backend)
                assert bool(output.isfinite().all())

    def test_unknown_backend(self, monkeypatch):
        with pytest.raises(WenetError, match="unknown backend 'abacus'"):
            self.call(backend="abacus")
        monkeypatch.setenv("WENET_BACKEND", "abacus")
        with pytest.raises(WenetError, match="unknown backend 'abacus'"):
            self.call()

    def test_backend_that_cannot_run_gives_its_reason(self, monkeypatch):
        from wenet_kernels import backend, reference

        class Absent:
            forward, backward = reference.forward, reference.backward

            @staticmethod
            def status():
                return "no such device"

        monkeypatch.setitem(backend.BACKENDS, "absent", Absent)
        assert backends()["absent"] == "no such device"
        with pytest.raises(WenetError, match="'absent' cannot run: no such device"):
            resolve_backend("absent")


class TestCellBatch:
    class Cell:
        def __init__(self, recurrent, concat):
            self.recurrent, self.concat = recurrent, concat

    @pytest.mark.parametrize(
        ("recurrent", "concat", "message"),
        [
            ([("tanh", 1)], [1], "ancestor 1 is out of range"),
            ([("tanh", -1)], [1], "ancestor -1 is out of range"),
            ([("swish", 0)], [1], "unknown activation 'swish'"),
            ([("tanh", 0)], [], "concat is empty"),
            ([("tanh", 0)], [2], "concat names node 2"),
            ([("tanh", 0)], [1, 1], "twice"),
            ([], [1], "1 to 64 nodes"),
            ([("tanh", 0)] * 10_000, [1], "this one has 10000"),
        ],
    )
    def test_invalid_cells(self, recurrent, concat, message):
        with pytest.raises(WenetError, match=message):
            CellBatch.from_genotypes([self.Cell(recurrent, concat)])

    def test_tables(self):
        cells = CellBatch.from_genotypes([self.Cell([("relu", 0), ("identity", 1)], [2])])
        tables = cells.tables("cpu")
        assert tables.ancestor.tolist() == [[0, 1]]
        assert [ACTIVATIONS[code] for code in tables.activation[0]] == ["relu", "identity"]
        assert tables.concat.tolist() == [[0, 1]]
        assert (cells.count, cells.nodes, cells.registered) == (1, 2, ())

    @pytest.mark.parametrize("text", ["", "tanh", "tanh0; ", "tanh0 mean 2", "tanh1", f"tanh{'9' * 5000}", "swish0"])
    def test_a_text_that_is_no_batch_of_cells(self, text):
        with pytest.raises(WenetError):
            CellBatch(text)

    def test_is_a_value(self):
        cells = CellBatch("tanh0 relu1; relu0 sigmoid0 mean 2")
        for copied in (copy.deepcopy(cells), pickle.loads(pickle.dumps(cells)), CellBatch(cells.text)):
            assert copied == cells and hash(copied) == hash(cells)
            assert copied.tables("cpu") is cells.tables("cpu")

    def test_needs_equal_lengths_and_some_cell(self):
        one, two = self.Cell([("tanh", 0)], [1]), self.Cell([("tanh", 0), ("tanh", 0)], [1])
        with pytest.raises(WenetError, match="same number of nodes"):
            CellBatch.from_genotypes([one, two])
        with pytest.raises(WenetError, match="at least one genotype"):
            CellBatch.from_genotypes([])


def test_a_precision_that_no_backend_has_is_an_error():
    o = make_case((1, 1, 2, 3, 1, "highway", "weighted", None, False))
    with pytest.raises(WenetError, match=r"no products of torch.float64 in precision 'bf16'"):
        dag_rnn(*o.positional, precision="bf16", backend="reference")
    with pytest.raises(WenetError, match="no backend on cpu"):
        dag_rnn(*o.positional, precision="bf16")
    with pytest.raises(WenetError, match="unknown precision 'fp8'"):
        dag_rnn(*o.positional, precision="fp8")


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("fp64", torch.float64)])
def test_a_precision_by_the_name_of_the_operands_type(name, dtype):
    o = make_case((2, 2, 2, 3, 2, "highway", "weighted", None, False))
    operands = [x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in o.positional]
    named, usual = (dag_rnn(*operands, backend="reference", precision=word) for word in (name, "full"))
    assert named.dtype == dtype and named.count_nonzero() > 0
    assert torch.equal(named, usual)
    other = {"fp32": "fp64", "fp64": "fp32"}[name]
    for backend in ("reference", "auto"):
        with pytest.raises(WenetError, match=f"precision '{other}' needs operands of torch.float.., not {dtype}"):
            dag_rnn(*operands, backend=backend, precision=other)
