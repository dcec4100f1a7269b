"""Reusable workspaces, with their launches recorded as CUDA graphs.

The tensors that forward keeps for backward are in its workspace, and are handed out as one tensor that shares this
memory. While the tensor is alive, the workspace is in use; a second forward pass before the first backward pass gets
another workspace.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from wenet_kernels.triton.memory import check_memory
from wenet_kernels.triton.plan import Shape
from wenet_kernels.triton.workspace import Workspace

MOST_FREE = 4  # unused workspaces that stay allocated
MOST_ORDERS = 4  # of cells whose levels differ, with graphs in a workspace

Key = tuple[Shape, torch.device, int]  # the last is the stream


class Lane:
    """A workspace, its graphs by direction and length, and the holder of its kept tensor."""

    def __init__(self, shape: Shape, capacity: int, device: torch.device) -> None:
        with torch.inference_mode(False):  # tensors made in inference mode could not be used outside of it
            self.workspace = Workspace(shape, capacity, device)
        # By the cells' levels, on which launches may depend, the last used at the end; then by direction and length.
        self.graphs: dict[object, dict[tuple[str, int], torch.cuda.CUDAGraph | None]] = {}
        self.holder: StorageWeakRef | None = None

    @property
    def free(self) -> bool:
        return self.holder is None or self.holder.expired()

    def hand_out(self, steps: int) -> Tensor:
        """The kept data of `steps` steps, `[T, words]`: a new tensor that shares the workspace's memory."""
        kept: Tensor = torch.from_dlpack(self.workspace.kept[:steps])
        self.holder = StorageWeakRef(kept.untyped_storage())
        return kept

    def run(self, direction: str, steps: int, launch: Callable[[int], None]) -> None:
        """Launch kernels: first one by one, which compiles them; then record them; from then on as one graph."""
        key = direction, steps
        levels = self.workspace.levels, self.workspace.leaves
        graphs = self.graphs[levels] = self.graphs.pop(levels, {})
        if len(self.graphs) > MOST_ORDERS:
            del self.graphs[next(iter(self.graphs))]
        if not _may_record(self.workspace.device):
            launch(steps)
        elif key not in graphs:
            launch(steps)
            graphs[key] = None
        else:
            graph = graphs[key]
            if graph is None:
                graph = graphs[key] = _record(lambda: launch(steps), self.workspace.device)
            graph.replay()


class Pool:
    """All lanes of this process. One thread at a time, including those of autograd, takes a lane and launches in it."""

    def __init__(self) -> None:
        self.lanes: dict[Key, list[Lane]] = {}  # the least recently used shape first
        self.captured: list[Lane] = []
        self.lock = threading.RLock()

    def take(self, shape: Shape, steps: int, device: torch.device) -> Lane:
        """A free lane for at least `steps` steps.

        Raises:
            WenetError: a new one is needed, and the device has too little memory left.
        """
        key = shape, device, _stream(device)
        with self.lock:
            lanes = self.lanes[key] = self.lanes.pop(key, [])
            free = [lane for lane in lanes if lane.free]
            for lane in free:
                if lane.workspace.capacity >= steps:
                    return lane
            for lane in free:  # too short: longer ones take their place
                lanes.remove(lane)
            self._discard_unused()
            check_memory(shape, steps, device)
            lanes.append(Lane(shape, steps, device))
            return lanes[-1]

    def make_captured(self, shape: Shape, steps: int, device: torch.device) -> Lane:
        """A lane for a capture of the user's own, which is found as long as something holds what it keeps."""
        with self.lock:
            self.captured = [lane for lane in self.captured if not lane.free]
            self.captured.append(Lane(shape, steps, device))
            return self.captured[-1]

    def holding(self, kept: Tensor) -> Lane | None:
        """The lane in whose memory a tensor lies that `hand_out` made."""
        with self.lock:
            for lanes in (*self.lanes.values(), self.captured):
                for lane in lanes:
                    if not lane.free and lane.workspace.kept.data_ptr() == kept.data_ptr():
                        return lane
        return None

    def _discard_unused(self) -> None:
        free = [(lanes, lane) for lanes in self.lanes.values() for lane in lanes if lane.free]
        for lanes, lane in free[: max(0, len(free) - MOST_FREE + 1)]:
            lanes.remove(lane)


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def _may_record(device: torch.device) -> bool:
    return device.type == "cuda" and not torch.cuda.is_current_stream_capturing()


def _record(launch: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph:
    """Record launches as a graph, which runs after the work of the current stream; nothing runs yet."""
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        # Other threads, such as a loader that pins memory, may continue to call CUDA.
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            launch()
        finally:
            graph.capture_end()
    return graph
