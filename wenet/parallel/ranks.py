"""Several processes at one run, started by torchrun: who takes part, and what they hand each other."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from wenet_kernels import LostRanks, WenetError, sum_over_ranks

# For the others to come to where one is waiting. The longest thing that one does alone is to write a checkpoint.
TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class Ranks:
    """The processes that work on one run, and which of them this one is.

    Every method but `own` has to be called by all of them, in the same order. Alone, they hand back what they are
    given.

    Raises:
        LostRanks: by every method that waits for the others, where one of them has failed or takes longer than
            `TIMEOUT`.
    """

    rank: int = 0
    count: int = 1
    count_here: int = 1  # on this machine

    @property
    def alone(self) -> bool:
        return self.count == 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def own(self, total: int, rank: int | None = None) -> slice:
        """Which of `total` things in a row are this rank's, or another's; no rank has two more than another."""
        rank = self.rank if rank is None else rank
        return slice(total * rank // self.count, total * (rank + 1) // self.count)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place; to the same bits on all of them."""
        return tensor if self.alone else sum_over_ranks(tensor)

    def largest(self, value: int) -> int:
        """The largest that any rank has."""
        if self.alone:
            return value
        tensor = torch.tensor(int(value))
        with self._naming_lost_ranks():
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def from_first(self, value: Any) -> Any:
        """What the first rank has; anything that JSON can hold."""
        if self.alone:
            return value
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        length = self._broadcast(torch.tensor(len(text)))
        own = text if self.first else torch.empty(int(length), dtype=torch.uint8)
        return json.loads(self._broadcast(own).numpy().tobytes())

    def on_first(self, action: Callable[[], Any]) -> Any:
        """Let the first rank alone do something; all have the result, which JSON can hold, or its `WenetError`."""
        if self.alone:
            return action()
        failure = result = None
        if self.first:
            try:
                result = action()
            except WenetError as error:
                failure = error
        message, result = self.from_first([failure and str(failure), result])
        if message is not None:
            raise failure or WenetError(message)
        return result

    def check_same(self, what: dict[str, Any]) -> None:
        """Refuse to go on where ranks differ; `what` maps what may differ, in words, to anything that JSON can hold.

        Raises:
            WenetError: on a rank that is not as the first.
        """
        expected = self.from_first(what)
        differing = [name for name, value in json.loads(json.dumps(what)).items() if expected.get(name) != value]
        if differing:
            raise WenetError(
                f"this rank differs from the first in {', '.join(differing)}; start all alike, on machines of one kind "
                "with the same software"
            )

    def gather(self, part: Tensor, dim: int) -> Tensor:
        """The parts of all ranks put together along a dimension, on the CPU; only the first rank's result is whole."""
        part = part.cpu().contiguous()
        if self.alone:
            return part
        total = int(self.sum(torch.tensor(part.shape[dim])))
        with self._naming_lost_ranks():
            if not self.first:
                dist.send(part, 0)
                return part
            parts = [part]
            for rank in range(1, self.count):
                parts.append(part.new_empty(_shape_of_part(part.shape, dim, self.own(total, rank))))
                dist.recv(parts[-1], rank)
        return torch.cat(parts, dim)

    def scatter(self, whole: Tensor | None, shape: Sequence[int], dtype: torch.dtype, dim: int | None) -> Tensor:
        """This rank's part of a tensor that the first has, on the CPU; all of it where no dimension is to be cut."""
        if whole is not None and self.alone:
            return whole
        if dim is None:
            return self._broadcast(torch.empty(tuple(shape), dtype=dtype) if whole is None else whole.contiguous())
        own = self.own(shape[dim])
        with self._naming_lost_ranks():
            if whole is None:
                part = torch.empty(_shape_of_part(shape, dim, own), dtype=dtype)
                dist.recv(part, 0)
                return part
            for rank in range(1, self.count):
                other = self.own(shape[dim], rank)
                dist.send(whole.narrow(dim, other.start, other.stop - other.start).contiguous(), rank)
        return whole.narrow(dim, own.start, own.stop - own.start).contiguous()

    def _broadcast(self, tensor: Tensor) -> Tensor:
        with self._naming_lost_ranks():
            dist.broadcast(tensor, 0)
        return tensor

    @contextmanager
    def _naming_lost_ranks(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # which is what gloo and NCCL raise
            raise LostRanks(error) from None


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """All ranks that torchrun has started, within this context; this process alone where it was started without.

    Raises:
        LostRanks: some have not come.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if not dist.is_torchelastic_launched() or count == 1:
        yield ALONE
        return
    ranks = Ranks(int(os.environ["RANK"]), count, int(os.environ["LOCAL_WORLD_SIZE"]))
    local_rank = int(os.environ["LOCAL_RANK"])
    if local_rank < torch.cuda.device_count():
        torch.cuda.set_device(local_rank)  # so that "cuda" is a GPU of this rank's own
    with ranks._naming_lost_ranks():
        dist.init_process_group(timeout=TIMEOUT)  # gloo for tensors of the CPU, NCCL for those of GPUs
    yield ranks
    dist.destroy_process_group()  # not after an error: NCCL would wait for those that are gone


def check_own_device(ranks: Ranks, device: torch.device) -> None:
    """Refuse GPUs that ranks would have to share.

    Raises:
        WenetError: more ranks than GPUs on this machine, or one named for all of them.
    """
    if ranks.alone or device.type != "cuda":
        return
    if device.index is not None:
        raise WenetError(f"--device {device} names one GPU for all ranks; with --device cuda each takes its own")
    gpus = torch.cuda.device_count()
    if ranks.count_here > gpus:
        raise WenetError(f"{ranks.count_here} ranks on a machine with {gpus} GPUs; start fewer, or pass --device cpu")


def _shape_of_part(shape: Sequence[int], dim: int, part: slice) -> tuple[int, ...]:
    return (*shape[:dim], part.stop - part.start, *shape[dim + 1 :])
