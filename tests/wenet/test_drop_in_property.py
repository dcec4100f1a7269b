"""Whatever `torch.nn.RNN` makes of its options and its input, `DagRNN` makes of them, or says in one line why not."""

import copy
import io
import os
import pickle
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from wenet import WenetError

from .test_drop_in import twin_of

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

CASES = int(os.environ.get("WENET_PROPERTY_CASES", "200"))
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def same(rnn: nn.Module) -> nn.Module:
    return rnn


def saved_whole(rnn: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(rnn, buffer)
    buffer.seek(0)
    loaded: nn.Module = torch.load(buffer, weights_only=False)
    return loaded


def emptied(rnn: nn.Module) -> nn.Module:
    """Its storage is lost and its weights are loaded again."""
    weights = copy.deepcopy(rnn.state_dict())
    rnn = copy.deepcopy(rnn).to("meta").to_empty(device="cpu")
    rnn.load_state_dict(weights)
    return rnn


def from_meta(rnn: nn.Module) -> nn.Module:
    weights = rnn.state_dict()
    rnn = copy.deepcopy(rnn).to("meta")
    rnn.load_state_dict(weights, assign=True)
    return rnn


WAYS = (same, copy.deepcopy, lambda rnn: pickle.loads(pickle.dumps(rnn)), saved_whole, emptied, from_meta)


def plainly(rnn, x, h0):
    return rnn(x, h0)


def functional(rnn, x, h0):
    return torch.func.functional_call(rnn, dict(rnn.named_parameters()), (x, h0))


def in_inference(rnn, x, h0):
    with torch.inference_mode():
        return rnn(x, h0)


def in_autocast(rnn, x, h0):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return rnn(x, h0)


CALLS = (plainly, functional, in_inference, in_autocast)


@dataclass
class Case:
    torchs: nn.RNN
    x: Tensor | PackedSequence
    h0: Tensor | None
    way: object
    call: object


@st.composite
def cases(draw):
    inputs, hidden, layers = (draw(st.integers(1, high)) for high in (4, 5, 3))
    batch_first, bidirectional = draw(st.booleans()), draw(st.booleans())
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]))
    torch.manual_seed(draw(st.integers(0, 1000)))
    torchs = nn.RNN(inputs, hidden, layers, batch_first=batch_first, bidirectional=bidirectional, dtype=dtype)
    kind = draw(st.sampled_from(["padded", "single", "packed"]))
    least = 1 if kind == "packed" else 0  # nothing else can be packed
    steps, rows = draw(st.integers(least, 4)), draw(st.integers(least, 3))
    features = draw(st.sampled_from([inputs] * 9 + [inputs + 1]))
    other = draw(st.sampled_from([dtype] * 9 + [torch.float32]))
    sizes = (steps,) if kind == "single" else (rows, steps) if batch_first else (steps, rows)
    x = torch.randn(*sizes, features).to(other)
    if kind == "packed":
        lengths = draw(st.lists(st.integers(1, steps), min_size=rows, max_size=rows))
        is_sorted = lengths == sorted(lengths, reverse=True) and draw(st.booleans())
        x = pack_padded_sequence(x, torch.tensor(lengths), batch_first, is_sorted)
    h0 = None
    if draw(st.booleans()):
        # Where a packed sequence is not sorted, torch.nn.RNN takes the first rows of a state that has too many.
        wrong = rows if kind == "packed" else rows + 1
        h_sizes = () if kind == "single" else (draw(st.sampled_from([rows] * 9 + [wrong])),)
        h0 = torch.randn(layers * (2 if bidirectional else 1), *h_sizes, hidden).to(dtype)
    # PyTorch itself has no autocast of one half type to the other.
    calls = CALLS[:-1] if dtype == torch.float16 else CALLS
    return Case(torchs, x, h0, draw(st.sampled_from(WAYS)), draw(st.sampled_from(calls)))


@settings(max_examples=CASES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(cases())
def test_as_torch_rnn(case):
    try:
        expected = case.call(case.torchs, case.x, case.h0)
    except Exception as error:
        expected = error
    ours = case.way(twin_of(case.torchs))
    try:
        found = case.call(ours, case.x, case.h0)
    except WenetError as error:
        assert "\n" not in str(error)
        assert isinstance(expected, Exception), f"{error}, but torch.nn.RNN runs"
        return
    assert not isinstance(expected, Exception), f"torch.nn.RNN says {expected}"
    compare(found, expected, case.call is in_autocast)


def compare(found, expected, autocast):
    if isinstance(found[0], PackedSequence):
        for one, other in zip(found[0][1:], expected[0][1:], strict=True):
            assert (one is None and other is None) or torch.equal(one, other)
        found, expected = (found[0].data, found[1]), (expected[0].data, expected[1])
    for one, other in zip(found, expected, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        tolerance = TOLERANCE[torch.bfloat16 if autocast else one.dtype]
        torch.testing.assert_close(one.float(), other.float(), rtol=tolerance, atol=tolerance)
