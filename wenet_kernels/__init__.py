"""Many different recurrent cells evaluated as one operator. Knows nothing of searching or training."""

from wenet_kernels.activations import ACTIVATIONS, activation_names, register_activation, registered_among
from wenet_kernels.cells import CellBatch
from wenet_kernels.errors import WenetError, check_choice
from wenet_kernels.native import native_status
from wenet_kernels.op import COUPLINGS, FORMS, PRECISIONS, Norm, backends, dag_rnn, project, resolve_backend

__all__ = [
    "ACTIVATIONS",
    "COUPLINGS",
    "FORMS",
    "PRECISIONS",
    "CellBatch",
    "Norm",
    "WenetError",
    "activation_names",
    "backends",
    "check_choice",
    "dag_rnn",
    "native_status",
    "project",
    "register_activation",
    "registered_among",
    "resolve_backend",
]
