"""The sum over the processes of `torch.distributed`."""

import torch.distributed as dist
from torch import Tensor

from wenet_kernels.errors import WenetError


class LostRanks(WenetError):
    """Another process failed or does not answer."""

    def __init__(self, error: RuntimeError) -> None:
        reason = str(error).strip().splitlines()[0]
        super().__init__(f"lost the other ranks, of which one has failed or is stuck ({reason})")


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sum over all ranks of the default process group, in place; every rank gets the same bits.

    Raises:
        LostRanks: a rank did not take part.
    """
    try:
        dist.all_reduce(tensor)
    except RuntimeError as error:  # raised by gloo and NCCL
        raise LostRanks(error) from None
    return tensor
