"""What a run uses where nothing is asked for, on a machine with a GPU that the test makes up."""

from types import SimpleNamespace

import pytest
import torch

from wenet.data import Corpus
from wenet.run import Console
from wenet.run.machine import resolve_machine
from wenet.run.session import say_data_and_machine
from wenet.searching.settings import resolve_config
from wenet_kernels import WenetError, triton


@pytest.fixture(params=[True, False], ids=["bf16", "no bf16"])
def has_bf16(request, monkeypatch):
    """A machine with one GPU for which Triton is ready."""
    monkeypatch.delenv("WENET_BACKEND", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(triton, "status", lambda: "ready")
    monkeypatch.setattr(triton, "_interpreted", lambda: False)
    monkeypatch.setattr(triton, "_has_bf16", lambda: request.param)
    return request.param


def resolved(**settings):
    return resolve_machine(resolve_config("quick", settings))


def test_bf16_is_the_default_where_the_gpu_has_it(has_bf16):
    config = resolved()
    assert (config.device, config.backend) == ("cuda", "triton")
    assert config.precision == ("bf16" if has_bf16 else "fp32")


def test_the_precision_is_printed(has_bf16, capsys):
    words = torch.zeros(3, dtype=torch.long)
    data = Corpus("text", words, words, words, ("a",), "0")
    say_data_and_machine(Console(), resolved(), None, data)
    assert f"backend triton, {'bf16' if has_bf16 else 'fp32'}" in capsys.readouterr().out


def test_fp32_always_works(has_bf16):
    assert resolved(precision="fp32").precision == "fp32"


def test_bf16_asked_of_a_gpu_without_it_is_an_error(has_bf16):
    if has_bf16:
        assert resolved(precision="bf16").precision == "bf16"
        return
    with pytest.raises(WenetError, match="this GPU has no bf16"):
        resolved(precision="bf16")


@pytest.mark.parametrize(
    ("hip", "architecture", "capability", "has_it"),
    [
        (None, None, (9, 0), True),
        (None, None, (8, 0), True),
        (None, None, (7, 5), False),
        ("6.3", "gfx942:sramecc+:xnack-", (9, 4), True),
        ("6.3", "gfx1100", (11, 0), False),
    ],
)
def test_tf32_asked_of_a_gpu_without_it_is_an_error(has_bf16, monkeypatch, hip, architecture, capability, has_it):
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(gcnArchName=architecture))
    if has_it:
        assert resolved(precision="tf32").precision == "tf32"
        return
    with pytest.raises(WenetError, match="this GPU has no tf32"):
        resolved(precision="tf32")


def test_products_default_to_fp32_with_a_backend_that_has_no_others(has_bf16):
    assert resolved(backend="reference").precision == "fp32"
