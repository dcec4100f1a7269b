"""What only a GPU can show of the Triton kernels: bf16, recorded graphs, streams, several devices."""

from dataclasses import replace

import pytest
import torch

from wenet_kernels import WenetError, backends, dag_rnn

if not torch.cuda.is_available():
    pytest.skip("no CUDA device: bf16, graphs, streams and devices are not tested", allow_module_level=True)
if backends()["triton"] != "ready":
    pytest.skip(f"Triton kernels: {backends()['triton']}", allow_module_level=True)

from bench.cases import LARGE_CELL, PAPER
from bench.parity import check_parity
from wenet_kernels.triton import _pool as pool
from wenet_kernels.triton import memory, plan

from .cases import draw_seed
from .test_triton import make_case, results

PAPER_LIKE = (5, 70, 20, 200, 8, "highway", "weighted", "batch", True)  # a program for a network
ONE_CELL = (5, 1, 64, 170, 8, "highway", "independent", None, True)  # a launch for a node


def call(case, precision="full", **options):
    result = dag_rnn(
        *case.positional,
        form=case.form,
        mask_h=case.mask_h,
        norm=case.norm,
        coupling=case.coupling,
        precision=precision,
        backend="triton",
        **options,
    )
    return result[0] if isinstance(result, tuple) else result


def output_and_gradients(case, precision="full"):
    output = call(case, precision)
    return output, *case.gradients(output, draw_seed(output))


@pytest.mark.parametrize("case", ["networks", "cell"])
@pytest.mark.parametrize("precision", ["full", "tf32", "bf16"])
def test_precisions(case, precision):
    """Eager PyTorch, of operands all in bf16 where ours are rounded, bounds what is allowed."""
    shape = {"networks": replace(PAPER, networks=70), "cell": replace(LARGE_CELL, hidden=170)}[case]
    for deviation in check_parity(replace(shape, steps=5, masked=True), precision, "triton", "cuda", seed=5):
        assert deviation.passed, deviation


@pytest.mark.parametrize("precision", ["full", "bf16"])
@pytest.mark.parametrize("sizes", [PAPER_LIKE, ONE_CELL], ids=["networks", "cell"])
def test_launched_recorded_and_replayed_are_the_same(sizes, precision):
    pool().lanes.clear()
    case = make_case(sizes, dtype=torch.float32)
    first, second, third = (output_and_gradients(case, precision) for _ in range(3))
    for a, b, c in zip(first, second, third, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(b, c)
    lanes = [lane for lanes in pool().lanes.values() for lane in lanes]
    graphs = [graph for lane in lanes for of_levels in lane.graphs.values() for graph in of_levels.values()]
    assert len(graphs) == 2
    assert None not in graphs


def test_replays_read_new_operands():
    pool().lanes.clear()
    for scale in (1.0, 0.5, 0.25, 2.0):
        case = make_case(PAPER_LIKE, dtype=torch.float32)
        with torch.no_grad():
            case.pre.mul_(scale)
            case.weight_nodes.mul_(scale)
        for got, want in zip(results(case, "triton"), results(case, "reference"), strict=True):
            assert (got - want).norm() <= 1e-3 * want.norm()


def test_lengths_that_vary():
    pool().lanes.clear()
    for steps in (3, 5, 3, 5, 4, 3):
        case = make_case((steps, *PAPER_LIKE[1:]), dtype=torch.float32)
        for got, want in zip(results(case, "triton"), results(case, "reference"), strict=True):
            assert (got - want).norm() <= 1e-3 * want.norm()
    assert [len(lanes) for lanes in pool().lanes.values()] == [1]


def test_the_current_stream():
    case = make_case(PAPER_LIKE, dtype=torch.float32)
    expected = call(case)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        outputs = [call(case) for _ in range(3)]
    torch.cuda.current_stream().wait_stream(stream)
    assert all(torch.equal(output, expected) for output in outputs)


def test_within_a_capture_of_the_users_own():
    case = make_case(PAPER_LIKE, dtype=torch.float32)
    expected = output_and_gradients(case)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = output_and_gradients(case)
    for _ in range(2):
        graph.replay()
        for got, want in zip(captured, expected, strict=True):
            assert torch.equal(got, want)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_another_device_than_the_current_one():
    case = make_case(PAPER_LIKE, dtype=torch.float32)
    expected = call(case)
    with torch.no_grad():
        positional = [p if p is None else p.to("cuda:1") for p in case.positional]
        output = dag_rnn(*positional, mask_h=case.mask_h.to("cuda:1"), norm="batch", backend="triton")[0]
    assert output.device == torch.device("cuda:1")
    torch.testing.assert_close(output.cpu(), expected.cpu())


def test_compiled():
    case = make_case(ONE_CELL, dtype=torch.float32)
    compiled = torch.compile(call, fullgraph=True)
    torch.testing.assert_close(compiled(case), call(case), rtol=0, atol=0)


def test_too_large_is_an_error_before_anything_is_allocated(monkeypatch):
    shape = plan.Shape(1000, 20, 200, 8, "highway", "batch", "bf16", True, True, True)
    before = torch.cuda.memory_allocated()
    with pytest.raises(WenetError, match="GB of memory"):
        memory.check_memory(shape, 10**5, torch.device("cuda", 0))
    assert torch.cuda.memory_allocated() == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_types_that_rnns_give(dtype):
    case = make_case(ONE_CELL, dtype=torch.float32)
    exact = call(case)
    with torch.autocast("cuda", dtype=dtype):
        output = call(case)
        expected = torch.nn.RNN(5, 8, device="cuda")(torch.zeros(3, 2, 5, device="cuda"))[0].dtype
    assert output.dtype == expected == dtype
    torch.testing.assert_close(output.float(), exact, rtol=0.1, atol=0.05)
    assert all(gradient.dtype == torch.float32 for gradient in case.gradients(output, draw_seed(output)))
