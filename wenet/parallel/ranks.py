"""The processes that torchrun started for one run, and how they exchange data."""

from __future__ import annotations

import importlib
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

# How long a process waits for the others. The longest that one works alone is to write a checkpoint.
TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class Ranks:
    """The processes that work on one run, and the place of this one among them.

    All processes must call every method except `own`, in the same order. With a single process, methods return their
    arguments.

    Raises:
        LostRanks: from any method that waits for the others, if one has failed or needs longer than `TIMEOUT`.
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
        """The slice of `total` items that belongs to this rank, or to `rank`; shares differ by at most one."""
        rank = self.rank if rank is None else rank
        return slice(total * rank // self.count, total * (rank + 1) // self.count)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over all ranks, in place; every rank gets the same bits."""
        return tensor if self.alone else sum_over_ranks(tensor)

    def largest(self, value: int) -> int:
        """The largest value on any rank."""
        if self.alone:
            return value
        tensor = torch.tensor(int(value))
        with self._naming_lost_ranks():
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def from_first(self, value: Any) -> Any:
        """The first rank's value, which JSON must be able to hold."""
        if self.alone:
            return value
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        length = self._broadcast(torch.tensor(len(text)))
        own = text if self.first else torch.empty(int(length), dtype=torch.uint8)
        return json.loads(self._broadcast(own).numpy().tobytes())

    def on_first(self, action: Callable[[], Any]) -> Any:
        """Run `action` on the first rank only; all ranks get its result, which JSON must hold, or its `WenetError`."""
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
        """Refuse to go on if ranks differ.

        Args:
            what: values to compare, which JSON must be able to hold, by their names in words.

        Raises:
            WenetError: on every rank that differs from the first.
        """
        expected = self.from_first(what)
        differing = [name for name, value in json.loads(json.dumps(what)).items() if expected.get(name) != value]
        if differing:
            raise WenetError(
                f"this rank differs from the first in {', '.join(differing)}; start all alike, on machines of one kind "
                "with the same software"
            )

    def gather(self, part: Tensor, dim: int) -> Tensor:
        """Concatenate the parts of all ranks along a dimension, on the CPU; only the first rank gets the whole."""
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
        """This rank's part of the first rank's tensor, on the CPU; the whole tensor if `dim` is None."""
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
        except RuntimeError as error:  # raised by gloo and NCCL
            raise LostRanks(error) from None


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join all ranks that torchrun started; without torchrun, this process alone.

    Raises:
        LostRanks: some ranks did not join.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if not dist.is_torchelastic_launched() or count == 1:
        yield ALONE
        return
    ranks = Ranks(int(os.environ["RANK"]), count, int(os.environ["LOCAL_WORLD_SIZE"]))
    local_rank = int(os.environ["LOCAL_RANK"])
    if local_rank < torch.cuda.device_count():
        torch.cuda.set_device(local_rank)  # "cuda" now means this rank's own GPU
    # Its functions hold the default group of the moment it is imported as their default argument. Imported later, by an
    # optimizer, they would keep the group alive after it is destroyed, and its threads could abort the end of Python.
    importlib.import_module("torch.distributed.nn.functional")
    with ranks._naming_lost_ranks():
        dist.init_process_group(timeout=TIMEOUT)  # gloo for CPU tensors, NCCL for GPU tensors
    met = False
    try:
        yield ranks
        # All ranks leave together, so that no connection closes while another rank still reads from it.
        with ranks._naming_lost_ranks():
            dist.barrier()
        met = True
    finally:
        # Threads of gloo that outlive the group can abort the end of Python, or keep it from coming. After an error the
        # ranks do not meet, and NCCL would wait for those that are gone.
        if met or "nccl" not in str(dist.get_backend_config()):
            dist.destroy_process_group()


def check_own_device(ranks: Ranks, device: torch.device) -> None:
    """Refuse to let ranks share a GPU.

    Raises:
        WenetError: this machine has fewer GPUs than ranks, or `device` names one GPU.
    """
    if ranks.alone or device.type != "cuda":
        return
    if device.index is not None:
        raise WenetError(f"--device {device} names one GPU for all ranks; with --device cuda each takes its own")
    gpus = torch.cuda.device_count()
    if ranks.count_here > gpus:
        raise WenetError(f"more ranks here ({ranks.count_here}) than GPUs ({gpus}); start fewer, or pass --device cpu")


def _shape_of_part(shape: Sequence[int], dim: int, part: slice) -> tuple[int, ...]:
    return (*shape[:dim], part.stop - part.start, *shape[dim + 1 :])
