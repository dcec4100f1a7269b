"""Cells with batch normalisation in layers: DAG cells with norm, packed and single rows, exports, drawings."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

import wenet
from wenet import WenetError
from wenet.cells import load_cell
from wenet.cells.kinds import draw_cell
from wenet.cells.program_source import program_layer_source
from wenet.nn import CellRNN
from wenet.nn.sequence import StandaloneSequenceModels
from wenet.nn.standalone_cells import StandaloneCellRNN
from wenet.programs import batchnorm, linear, program_of, tanh, vector
from wenet_kernels import CellBatch, ProgramBatch, cell_rnn, dag_rnn

from .test_export import imported

T, M, H = 4, 5, 6
CELLS = ["darts-v2", "enas", "tanh0 relu0 identity1 mean 1,3"]


@wenet.cell
def normalised(x, h):
    return tanh(vector(1) * batchnorm(linear(x, h)) + vector(0))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert expected.norm() > 0
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("form", ["highway", "plain"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_normalised_dag_cell_as_a_program(cell, form, mixed, backend):
    """Equal to `dag_rnn(norm="batch")`: output, and derivatives by every operand."""
    torch.manual_seed(1)
    genotype = load_cell(cell)
    program = program_of(genotype, form, norm="batch")
    batch = ProgramBatch.of([program, program] if mixed else [program])
    reaching = sorted(wenet.cells.source.reaching_output(genotype))
    assert sum(each.name == "batchnorm" for each in program.instructions) == 1 + len(reaching)
    n, per = batch.count, 2 if form == "highway" else 1

    def leaf(*shape: int, scale: float = 1) -> torch.Tensor:
        return (torch.randn(*shape, dtype=torch.float64) * scale).requires_grad_()

    pre = leaf(T, n, M, per * H)
    # Larger weights would make it chaotic.
    hidden, nodes = leaf(n, H, per * H, scale=H**-0.5), leaf(n, genotype.nodes, H, per * H, scale=H**-0.5)
    h0 = leaf(M, H) if mixed else leaf(n, M, H)
    mix = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=True) if mixed else None
    mask = (torch.rand(M, H) < 0.7).double() / 0.7
    factor = torch.randn(T, *h0.shape, dtype=torch.float64)
    leaves = [each for each in (pre, h0, hidden, nodes, mix) if each is not None]

    coupling = "weighted" if mixed else "independent"
    options = {"form": form, "mask_h": mask, "norm": "batch", "coupling": coupling, "backend": backend}
    expected, _ = dag_rnn(pre, h0, hidden, nodes, mix, CellBatch.from_genotypes([genotype] * n), **options)

    used = torch.cat([hidden.unsqueeze(1), nodes[:, [node - 1 for node in reaching]]], 1)
    weight = used.unflatten(-1, (per, H)).movedim(-2, 2).flatten(0, 2)
    of_input = pre.unflatten(-1, (per, H)).movedim(-2, 2).flatten(1, 2)
    none = pre.new_empty(0, H)
    found, _ = cell_rnn(of_input, h0.unsqueeze(0), weight, none, mix, batch, mask_h=mask, backend=backend)

    assert relative(found, expected) < 1e-12
    gradients = [torch.autograd.grad((each * factor).sum(), leaves, retain_graph=True) for each in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        assert relative(ours, theirs) < 1e-12


def test_it_is_traced_drawn_and_shown():
    assert str(normalised) == "h | tanh(vector(1) * batchnorm(linear(x, h)) + vector(0))"
    assert wenet.programs.load_program(str(normalised)) == normalised
    assert "batchnorm(linear(x, h))" in draw_cell(normalised)
    with pytest.raises(WenetError, match="cell learned: instruction 2: batchnorm reads a value made only of learned"):

        @wenet.cell
        def learned(x, h):
            return batchnorm(vector()) * linear(x, h)


def test_a_layer_learns_and_refuses_a_single_row(tmp_path):
    torch.manual_seed(0)
    layer = CellRNN(3, H, normalised, num_layers=2, bidirectional=True, dropout_h=0.5)
    output, _ = layer(torch.randn(T, M, 3))
    output.square().sum().backward()
    assert all(each.grad.isfinite().all() and each.grad.any() for each in layer.parameters())
    layer.eval()
    for single in (torch.randn(T, 1, 3), torch.randn(T, 3)):
        with pytest.raises(WenetError, match="at least two rows"):
            layer(single)
    path = tmp_path / "cell.py"
    path.write_text(program_layer_source("Cell", normalised))
    with pytest.raises(ValueError, match="at least two rows"):
        imported(path).Cell(3, H)(torch.randn(T, 1, 3))


def test_rows_that_have_ended_are_refused():
    layer = CellRNN(3, H, normalised)
    x = torch.randn(T, M, 3)
    output, _ = layer(pack_padded_sequence(x, torch.full((M,), T)))
    torch.testing.assert_close(output.data, layer(x)[0].flatten(0, 1))
    with pytest.raises(WenetError, match="all sequences of one must be equally long") as refusal:
        layer(pack_sequence([torch.randn(T, 3), torch.randn(T - 1, 3)]))
    assert "\n" not in str(refusal.value)


def test_models_of_sequences_refuse_them_too():
    cells = [normalised, wenet.programs.load_program("gru")]
    models = StandaloneSequenceModels(StandaloneCellRNN(3, H, cells), 2, "mse")
    inputs = torch.ones(T, M, 3)
    assert models(inputs).shape == (2, M, 2)
    inputs[-1, 0] = 0  # this one has ended
    with pytest.raises(WenetError, match="equally long"):
        models(inputs)


def test_step_by_step_as_all_at_once():
    layer = CellRNN(3, H, normalised, dtype=torch.float64)
    x = torch.randn(T, M, 3, dtype=torch.float64)
    output, last = layer(x)
    state, steps = None, []
    for each in x:
        one, state = layer(each.unsqueeze(0), state)
        steps.append(one)
    torch.testing.assert_close(torch.cat(steps), output, rtol=0, atol=1e-14)
    torch.testing.assert_close(state, last, rtol=0, atol=1e-14)


def test_as_a_graph():
    layer = CellRNN(3, H, normalised).eval()
    example = torch.randn(T, M, 3)
    free = {"x": {0: torch.export.Dim("T", min=1), 1: torch.export.Dim("M", min=2)}}
    program = torch.export.export(layer, (example,), dynamic_shapes=free)
    for steps, rows in ((T, M), (2, 9)):
        x = torch.randn(steps, rows, 3)
        torch.testing.assert_close(program.module()(x), layer(x), rtol=1e-5, atol=1e-5)


def test_as_onnx(tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    layer = CellRNN(3, H, normalised).eval()
    example, path = torch.randn(T, M, 3), tmp_path / "cell.onnx"
    free = {"x": {0: torch.export.Dim("T", min=1), 1: torch.export.Dim("M", min=2)}}
    torch.onnx.export(layer, (example,), path, dynamo=True, dynamic_shapes=free, verbose=False)
    session = runtime.InferenceSession(path)
    for steps, rows in ((T, M), (2, 9)):
        x = torch.randn(steps, rows, 3)
        found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found[0]), layer(x)[0], rtol=1e-4, atol=1e-5)


def test_compiles_into_one_graph():
    layer = CellRNN(3, H, normalised)
    x = torch.randn(T, M, 3)
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    torch.testing.assert_close(compiled(x), layer(x))
    assert layer.to("meta")(x.to("meta"))[0].shape == (T, M, H)
