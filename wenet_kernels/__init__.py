"""Many different recurrent cells evaluated as one operator. Knows nothing of searching or training."""

from wenet_kernels.activations import ACTIVATIONS, activation_names, register_activation, registered_among
from wenet_kernels.backend import backends, resolve_backend
from wenet_kernels.cells import MAX_NODES, CellBatch
from wenet_kernels.errors import WenetError, check_choice, did_you_mean
from wenet_kernels.native import native_status
from wenet_kernels.op import Norm, dag_rnn, project
from wenet_kernels.programs import Program, ProgramBatch, cell_rnn
from wenet_kernels.ranks import LostRanks, sum_over_ranks
from wenet_kernels.recurrence import COUPLINGS, FORMS, PRECISIONS

__all__ = [
    "ACTIVATIONS",
    "COUPLINGS",
    "FORMS",
    "MAX_NODES",
    "PRECISIONS",
    "CellBatch",
    "LostRanks",
    "Norm",
    "Program",
    "ProgramBatch",
    "WenetError",
    "activation_names",
    "backends",
    "cell_rnn",
    "check_choice",
    "dag_rnn",
    "did_you_mean",
    "native_status",
    "project",
    "register_activation",
    "registered_among",
    "resolve_backend",
    "sum_over_ranks",
]
