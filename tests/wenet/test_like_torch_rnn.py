"""A `DagRNN` wherever `torch.nn.RNN` goes: what is drawn at random works with both or with neither, and gives the same.

So many examples as the environment variable WENET_EXAMPLES says, by default what takes less than a minute; they are the
same in every run.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable

import torch
from hypothesis import HealthCheck, Phase, given, settings
from torch import nn

from tests.wenet.drawn_calls import SLOW, USES, Arguments, Call, Tensors, Use, calls, our_layer, torch_layer
from wenet import WenetError

EXAMPLES = int(os.environ.get("WENET_EXAMPLES", "400"))


def drawn(examples: int) -> settings:
    unhealthy = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=unhealthy,
        phases=[Phase.generate],  # what fails is small enough to read, and shrinking it takes minutes
        report_multiple_bugs=False,
        print_blob=False,
    )


@drawn(EXAMPLES)
@given(calls(tuple(name for name in USES if name not in SLOW)))
def test_calls_and_transforms(call):
    compare(call)


@drawn(max(5, EXAMPLES // 100))
@given(calls(SLOW, faults=False))
def test_compilers(call):
    compare(call)


def compare(call: Call) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch, about packed sequences on meta, dropout of one layer and others
        use_ours, use_torchs = USES[call.used]
        ours, torchs = attempt(our_layer, use_ours, call), attempt(torch_layer, use_torchs, call)
    if isinstance(ours, Exception):
        if not isinstance(ours, WenetError):
            raise ours
        assert str(ours) and "\n" not in str(ours)
        assert isinstance(torchs, Exception) or may_refuse(call, str(ours)), f"torch.nn.RNN does not refuse: {ours}"
        return
    if isinstance(torchs, Exception):
        if "autocast::prioritize" in str(torchs):  # PyTorch itself joins no half types but that asked for
            return
        raise AssertionError("torch.nn.RNN refuses") from torchs
    assert [described(tensor) for tensor in ours] == [described(tensor) for tensor in torchs]
    if call.comparable:
        for found, expected in zip(ours, torchs, strict=True):
            tolerance = {"rtol": call.tolerance, "atol": call.tolerance}
            torch.testing.assert_close(found, expected, **tolerance)


def attempt(make: Callable[[Call], nn.Module], use: Use, call: Call) -> Tensors | Exception:
    """The results, or why there are none."""
    try:
        return use(make(call), Arguments(call))
    except Exception as error:  # whatever it is, the caller says whether it is right
        return error


def described(tensor: torch.Tensor) -> tuple[object, ...]:
    return tuple(tensor.shape), tensor.dtype, tensor.device, tensor.requires_grad, tensor.is_inference()


def may_refuse(call: Call, message: str) -> bool:
    """Whether a cell may refuse what `torch.nn.RNN` takes: numbers that are none; types and devices that differ, which
    `torch.nn.RNN` does not notice where it has nothing to compute; and a state of too many rows, of which it takes the
    first where it sorts them."""
    given = (call.x, call.h0)
    if "dtype" in given or "device" in given:
        return "but the layer is" in message
    if call.h0 == "rows":
        return message.startswith("h0 must have shape") and call.layout == "packed, not sorted"
    return "NaN" in message and ("nan" in given or call.x == "inf")
