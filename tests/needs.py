"""Marks of tests that need what a machine may lack."""

import pytest
import torch

from wenet_kernels import cpu

needs_native = pytest.mark.skipif(cpu.status() != "ready", reason=f"native kernels: {cpu.status()}")
needs_bf16 = pytest.mark.skipif(
    cpu.status() != "ready" or cpu.refusal(torch.float32, "bf16") != "",
    reason="no native kernels, or a processor that does not multiply bf16",
)
