"""Many different recurrent cells evaluated as one operator. Knows nothing of searching or training."""

from wenet_kernels.cells import ACTIVATIONS, CellBatch
from wenet_kernels.errors import WenetError
from wenet_kernels.op import backends, dag_rnn, resolve_backend

__all__ = ["ACTIVATIONS", "CellBatch", "WenetError", "backends", "dag_rnn", "resolve_backend"]
