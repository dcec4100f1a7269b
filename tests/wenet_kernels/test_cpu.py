"""The native kernels against the reference, in every instruction set that this processor runs."""

import os
import subprocess
import sys

import pytest
import torch

from bench.parity import compare
from wenet_kernels import WenetError, backends, resolve_backend

from .cases import CASES, draw_seed, make_case, run_op
from .threads import same_on_threads

if backends()["cpu"] != "ready":
    pytest.skip(f"native kernels: {backends()['cpu']}", allow_module_level=True)

from wenet_kernels import _native

LARGER = [
    (3, 4, 20, 33, 8, form, coupling, norm, True)
    for form in ("highway", "plain")
    for coupling in ("weighted", "independent")
    for norm in (None, "batch")
]


@pytest.fixture(params=_native.kernel_sets())
def instruction_set(request, monkeypatch):
    monkeypatch.setenv("WENET_INSTRUCTION_SET", request.param)
    return request.param


def results(operands, backend):
    output = run_op(operands, backend)
    return output, *operands.gradients(output, draw_seed(output))


@pytest.mark.parametrize("case", [*CASES, *LARGER], ids=str)
def test_matches_the_reference(case, instruction_set):
    operands = make_case(case)
    for got, want in zip(results(operands, "cpu"), results(operands, "reference"), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("case", LARGER, ids=str)
def test_single_precision_is_as_exact_as_the_reference(case, instruction_set):
    exact, single = make_case(case), make_case(case, dtype=torch.float32)
    with torch.no_grad():
        for own, other in zip(single.leaves, exact.leaves, strict=True):
            other.copy_(own.copy_(other))
    single.norm, single.mask_h = exact.norm, exact.mask_h.float()
    truths, ours, eager = results(exact, "reference"), results(single, "cpu"), results(single, "reference")
    for deviation in compare(truths, ours, eager):
        assert deviation.passed, deviation


# Three threads share the last two of five networks; a single block of hidden units they cannot share.
@pytest.mark.parametrize(("networks", "hidden"), [(1, 41), (3, 41), (4, 41), (5, 41), (5, 7)])
@pytest.mark.parametrize("coupling", ["weighted", "independent"])
def test_the_number_of_threads_changes_no_bit(coupling, networks, hidden, instruction_set):
    operands = make_case((4, networks, 5, hidden, 4, "highway", coupling, "batch", True), dtype=torch.float32)
    same_on_threads(lambda: results(operands, "cpu"), counts=(1, 2, 2, 3))


@pytest.mark.parametrize("form", ["highway", "plain"])
def test_gradcheck(form):
    operands = make_case((2, 2, 3, 5, 3, form, "weighted", "batch", True))
    assert torch.autograd.gradcheck(lambda *_: run_op(operands, "cpu"), operands.leaves)


def test_compiles_into_one_graph():
    operands = make_case((3, 2, 4, 5, 3, "highway", "weighted", "batch", True))
    compiled = torch.compile(lambda o: run_op(o, "cpu"), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(operands), run_op(operands, "cpu"), rtol=0, atol=0)


def test_an_instruction_set_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setenv("WENET_INSTRUCTION_SET", "abacus")
    with pytest.raises(WenetError, match="WENET_INSTRUCTION_SET=abacus"):
        resolve_backend("cpu")


def test_auto_takes_the_native_kernels_where_they_can_run(monkeypatch):
    monkeypatch.delenv("WENET_BACKEND", raising=False)
    assert resolve_backend("auto", "cpu") == "cpu"
    assert resolve_backend("auto", "cpu", torch.bfloat16) == "reference"
    assert "WENET_INSTRUCTION_SET" not in os.environ


MAPPED = """
import os
import subprocess
import sys
from wenet_kernels import _native

def mapped():
    return int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")

before = mapped()
for megabytes in (100, 140, 200, 280, 400):
    _native.Block(megabytes << 20)
print((mapped() - before) >> 20)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no /proc")
def test_memory_kept_for_reuse_does_not_pile_up():
    mapped = subprocess.run([sys.executable, "-c", MAPPED], capture_output=True, text=True, check=True).stdout
    assert 400 <= int(mapped) <= 1.25 * 400 + 16


ALTERNATING = """
import os
import resource
from wenet_kernels import _native

def fill(megabytes):
    memory = memoryview(_native.Block(megabytes << 20)).cast("B")
    memory[:: os.sysconf("SC_PAGE_SIZE")] = bytes(len(memory[:: os.sysconf("SC_PAGE_SIZE")]))

fill(100), fill(60)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    fill(100), fill(60)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts the page faults of Linux")
def test_calls_of_different_sizes_in_turn_get_no_new_pages():
    faults = subprocess.run([sys.executable, "-c", ALTERNATING], capture_output=True, text=True, check=True).stdout
    assert int(faults) < 400  # 10 MiB of small pages, or 400 large ones


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ancestor", 1, "ancestor"),
        ("ancestor", -1, "ancestor"),
        ("ancestor", 2**30, "ancestor"),
        ("activation", 4, "activation"),
        ("activation", -5, "activation"),
        ("concat", 2, "more than once"),
        ("concat", 0, "without an averaged node"),
        ("rows", 0, "empty size"),
        ("hidden", -3, "empty size"),
        ("threads", 0, "no thread"),
        ("pre", 0, "missing"),
        ("mix", 0, "no mixing weights"),
    ],
)
def test_the_native_module_itself_refuses_what_it_would_index_with(name, value, message):
    values = torch.zeros(64)
    tables = {key: torch.tensor([[0]], dtype=torch.int32) for key in ("ancestor", "activation")}
    tables["concat"] = torch.tensor([[1]], dtype=torch.int32)
    r = _native.Recurrence()
    sizes = dict.fromkeys(("steps", "networks", "rows", "hidden", "nodes", "threads"), 1)
    addresses = dict.fromkeys(("pre", "h0", "weight_hidden", "weight_nodes", "mix"), values.data_ptr())
    for key, initial in (sizes | addresses | {key: made.data_ptr() for key, made in tables.items()}).items():
        setattr(r, key, initial)
    evaluation = _native.Evaluation()
    evaluation.output = (output := torch.zeros(64)).data_ptr()
    kernels = _native.Kernels("auto", _native.Factor.fp32)
    kernels.forward(r, evaluation)
    assert output[0] == 0  # of zeros
    if name in tables:
        tables[name].fill_(value)
    else:
        setattr(r, name, value)
    with pytest.raises(ValueError, match=message):
        kernels.forward(r, evaluation)
