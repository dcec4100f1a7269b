"""A run folder for several ranks: only the first needs access to its disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wenet.parallel.ranks import Ranks
from wenet.run.folder import RunFolder

# Maps a checkpoint tensor's name and number of dimensions to the dimension along which ranks divide it; None if every
# rank has the whole.
Layout = Callable[[str, int], int | None]


class SharedFolder(RunFolder):
    """Sends all writes to the first rank and all reads from it.

    Files are the same as in a run of one process: divided tensors are joined for writing and divided again for reading,
    by as many ranks as there are then.

    Args:
        held: the folder, on the first rank.
        layout: the layout of checkpoint tensors.
    """

    def __init__(self, ranks: Ranks, held: RunFolder | None, path: Path, config: Mapping[str, Any], layout: Layout):
        self.ranks, self.held, self.layout = ranks, held, layout
        self.path, self.config = path, config

    @classmethod
    def take(cls, ranks: Ranks, layout: Layout, take: Callable[[], RunFolder]) -> RunFolder:
        """Open or create a folder by `take` on the first rank, for all ranks.

        Raises:
            WenetError: on all ranks, if `take` raises it on the first.
        """
        if ranks.alone:
            return take()
        held: list[RunFolder] = []

        def hold() -> tuple[str, Mapping[str, Any]]:
            held.append(take())
            return str(held[0].path), held[0].config

        path, config = ranks.on_first(hold)
        return cls(ranks, held[0] if held else None, Path(path), config, layout)

    def close(self) -> None:
        if self.held is not None:
            self.held.close()

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        self._on_first(lambda folder: folder.write_json(name, value))

    def read_json(self, name: str, *keys: str) -> dict[str, Any]:
        return self._on_first(lambda folder: folder.read_json(name, *keys))

    def holds(self, name: str) -> bool:
        return self._on_first(lambda folder: folder.holds(name))

    def append_record(self, name: str, record: Mapping[str, Any]) -> None:
        self._on_first(lambda folder: folder.append_record(name, record))

    def records(self, name: str) -> list[dict[str, Any]]:
        return self._on_first(lambda folder: folder.records(name))

    def truncate_records(self, name: str, count: int) -> None:
        self._on_first(lambda folder: folder.truncate_records(name, count))

    def save_checkpoint(self, progress: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
        whole = self._gathered(tensors)
        return Path(self._on_first(lambda folder: str(folder.save_checkpoint(progress, whole))))

    def load_checkpoint(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        return self._load(RunFolder.load_checkpoint)

    def save_best(self, progress: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        whole = self._gathered(tensors)
        self._on_first(lambda folder: folder.save_best(progress, whole))

    def load_best(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        best = self._load(RunFolder.load_best)
        assert best is not None
        return best

    def _on_first(self, action: Callable[[RunFolder], Any]) -> Any:
        def act() -> Any:
            assert self.held is not None
            return action(self.held)

        return self.ranks.on_first(act)

    def _gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Join tensors on the first rank, and check that undivided tensors agree on all ranks."""
        divided = {name: self.layout(name, tensor.dim()) for name, tensor in tensors.items()}
        alike = {name: _digest(tensor) for name, tensor in tensors.items() if divided[name] is None}
        self.ranks.check_same(alike)
        whole = {}
        for name, tensor in tensors.items():
            dim = divided[name]
            whole[name] = tensor if dim is None else self.ranks.gather(tensor, dim)
        return whole

    def _load(
        self, load: Callable[[RunFolder], tuple[dict[str, Any], dict[str, Tensor]] | None]
    ) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        whole: dict[str, Tensor] = {}

        def read(folder: RunFolder) -> Any:
            found = load(folder)
            if found is None:
                return None
            whole.update(found[1])
            return found[0], [(n, list(t.shape), str(t.dtype).removeprefix("torch.")) for n, t in whole.items()]

        found = self._on_first(read)
        if found is None:
            return None
        progress, listing = found
        parts = {
            name: self.ranks.scatter(whole.get(name), shape, getattr(torch, dtype), self.layout(name, len(shape)))
            for name, shape, dtype in listing
        }
        return progress, parts


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
