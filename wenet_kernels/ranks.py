"""The sum over the processes of `torch.distributed`."""

import torch.distributed as dist
from torch import Tensor

from wenet_kernels.errors import WenetError


class LostRanks(WenetError):
    """Another process has failed, or does not answer."""

    def __init__(self, error: RuntimeError) -> None:
        reason = str(error).strip().splitlines()[0]
        super().__init__(f"lost the other ranks, of which one has failed or is stuck ({reason})")


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum over all ranks of the default process group, in place; to the same bits on all of them.

    Raises:
        LostRanks: not all of them came.
    """
    try:
        dist.all_reduce(tensor)
    except RuntimeError as error:  # which is what gloo and NCCL raise
        raise LostRanks(error) from None
    return tensor
