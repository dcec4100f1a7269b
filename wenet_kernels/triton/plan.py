"""The sizes of a recurrence, and how its work is divided into launches, programs and tiles."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wenet_kernels.errors import WenetError
from wenet_kernels.recurrence import Recurrence

MOST_ROWS = 512
MOST_MATRICES = 65535  # the limit of a grid's last dimension; `weight_gradient` uses one entry per node
MOST_CELL_ELEMENTS = 2**31 - 1  # offsets between networks are 64-bit, those within a network 32-bit
MOST_ELEMENTS = 8192  # in a tile of a state; more would not fit into a program's registers
STAGE_BYTES = 32768  # of factors being loaded from memory while others are multiplied
MOST_STAGES = 4
FUSED_SHARE = 2  # multiprocessors per network; with more, several programs share a network
DTYPES = {"full": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Shape:
    """All sizes of a recurrence except its length; calls with equal shapes run the same kernels."""

    networks: int
    rows: int
    hidden: int
    nodes: int
    form: str
    norm: str
    precision: str
    weighted: bool
    masked: bool
    keep: bool
    all_ranks: bool = False

    @classmethod
    def of(cls, r: Recurrence, keep: bool) -> Shape:
        _, networks, rows, hidden, nodes = r.sizes
        weighted, masked = r.mix is not None, r.mask_h is not None
        return cls(networks, rows, hidden, nodes, r.form, r.norm, r.precision, weighted, masked, keep, r.all_ranks)

    @property
    def width(self) -> int:
        """Columns of a weight, G."""
        return 2 * self.hidden if self.form == "highway" else self.hidden

    @property
    def dtype(self) -> torch.dtype:
        """Type of the products' factors and of kept activations."""
        return DTYPES[self.precision]

    @property
    def states_size(self) -> int:
        """Number of elements in the states of a time step, [n, L+1, M, H]."""
        return self.networks * (self.nodes + 1) * self.rows * self.hidden

    @property
    def activated_size(self) -> int:
        """Number of elements in the gates and candidates of a time step, [n, L+1, M, G]."""
        return self.networks * (self.nodes + 1) * self.rows * self.width

    @property
    def hidden_shape(self) -> tuple[int, ...]:
        """Shape of the hidden state between two time steps."""
        return (self.rows, self.hidden) if self.weighted else (self.networks, self.rows, self.hidden)


@dataclass(frozen=True)
class Machine:
    """The properties of a GPU on which the plan depends; the defaults, of an H100, serve where there is no GPU."""

    multiprocessors: int = 132
    shared_memory: int = 232448  # bytes available to one program
    capability: int = 90  # NVIDIA's compute capability times ten; 0 of AMD's GPUs

    @classmethod
    def of(cls, device: torch.device) -> Machine:
        if device.type != "cuda":
            return cls()
        properties = torch.cuda.get_device_properties(device)
        shared_memory = getattr(properties, "shared_memory_per_block_optin", 49152)
        capability = 0 if torch.version.hip is not None else 10 * properties.major + properties.minor
        return cls(properties.multi_processor_count, shared_memory, capability)

    @property
    def amd(self) -> bool:
        return self.capability == 0

    @property
    def asynchronous_products(self) -> bool:
        """Whether matrix units read shared memory through their own path."""
        return self.capability >= 90

    def input_precision(self, precision: str) -> str:
        """The way tl.dot multiplies fp32 factors; three TF32 products are as exact as one in fp32.

        Triton does not offer that on AMD's GPUs, which multiply fp32 matrices directly.
        """
        return {"full": "ieee" if self.amd else "tf32x3", "tf32": "tf32", "bf16": "ieee"}[precision]


@dataclass(frozen=True)
class Columns:
    """The division of a state's columns in one direction.

    Attributes:
        size: columns of a tile.
        blocks: tiles side by side in a network.
        depth: length of the inner dimension that a program multiplies at once.
        stages: tiles of weights being loaded at a time.
        warps: number of warps in a program.
    """

    size: int
    blocks: int
    depth: int
    stages: int
    warps: int


@dataclass(frozen=True)
class Tiling:
    """The division of a time step.

    Attributes:
        rows: number of rows in a tile of a state.
        forward, backward: the division of columns in each direction.
        fused: whether one program evaluates a whole network, and one launch all nodes; if not, a launch evaluates one
            node, and each block of columns has its own program.
    """

    rows: int
    forward: Columns
    backward: Columns
    fused: bool


def choose_tiling(shape: Shape, machine: Machine) -> Tiling:
    """Choose few launches if there are enough networks to keep the GPU busy, else many programs.

    Raises:
        WenetError: there are more rows than a tile can hold, or sizes exceed the limits of launches or offsets.
    """
    _check_limits(shape)
    rows = max(16, _power_of_two(shape.rows))
    fused = FUSED_SHARE * shape.networks >= machine.multiprocessors
    columns = _power_of_two(shape.hidden)
    while not fused and columns > 16 and shape.networks * -(-shape.hidden // columns) < machine.multiprocessors:
        columns //= 2
    matrices = 2 if shape.form == "highway" else 1
    size = shape.dtype.itemsize
    # Bytes of one inner index of fp32 states and their mask or of gradients, and of weights; elements of a warp. The
    # values were found by trial, as large as possible without spilling registers.
    forward, backward = (8 * rows, matrices * size, 1024), (size * rows, size, 512 if shape.form == "highway" else 256)
    return Tiling(
        rows,
        _cut_columns(shape.hidden, rows, min(columns, MOST_ELEMENTS // rows), shape.hidden, *forward, machine),
        # Backward holds more of a tile in registers.
        _cut_columns(shape.hidden, rows, min(columns, MOST_ELEMENTS // 2 // rows), shape.width, *backward, machine),
        fused,
    )


def _check_limits(shape: Shape) -> None:
    if shape.rows > MOST_ROWS:
        raise WenetError(f"backend 'triton' takes at most {MOST_ROWS} rows in a data batch, not {shape.rows}")
    if shape.networks * shape.nodes > MOST_MATRICES:
        raise WenetError(
            f"backend 'triton' takes at most {MOST_MATRICES} nodes in all, not {shape.networks} x {shape.nodes}"
        )
    elements = (shape.nodes + 1) * shape.hidden * shape.width
    if elements > MOST_CELL_ELEMENTS:
        raise WenetError(
            f"backend 'triton' takes cells of at most {MOST_CELL_ELEMENTS} weights, not {elements} "
            f"(hidden units: {shape.hidden}, nodes: {shape.nodes})"
        )


def _cut_columns(
    hidden: int,
    rows: int,
    columns: int,
    inner: int,
    factor_bytes: int,
    weight_bytes: int,
    warp_elements: int,
    machine: Machine,
) -> Columns:
    """Tiles with a limited number of columns; `_bytes` are for one inner index of a factor or of a weight's column."""
    size = max(16, columns)
    bytes_of_one = factor_bytes + size * weight_bytes
    fitting = max(16, min(128, STAGE_BYTES // bytes_of_one))
    depth = max(16, min(_power_of_two(fitting + 1) // 2, _power_of_two(inner)))
    reserve = 16384  # for reductions and for tiles passed between warps
    stages = (machine.shared_memory - reserve) // (depth * bytes_of_one)
    warps = max(4, rows * size // warp_elements)
    return Columns(size, -(-hidden // size), depth, max(1, min(MOST_STAGES, stages)), warps)


def _power_of_two(size: int) -> int:
    """The smallest power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()
