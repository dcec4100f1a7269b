"""Without a GPU the Triton kernels run in their interpreter, which Triton has to know when it is first imported."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
