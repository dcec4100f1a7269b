"""Results on different numbers of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def same_on_threads(
    compute: Callable[[], list[Tensor]], what: object = "", counts: Sequence[int] = (1, 2, 3)
) -> list[Tensor]:
    """What `compute` gives on the first of so many threads; on all others it must be the same to the last bit."""
    results = []
    for count in counts:
        with threads(count):
            results.append(compute())
    for others in results[1:]:
        for one, other in zip(results[0], others, strict=True):
            assert torch.equal(one, other), what
    return results[0]
