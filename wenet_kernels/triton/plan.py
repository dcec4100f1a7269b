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
STAGE_BYTES = 36864  # of factors being loaded from memory while others are multiplied
MOST_STAGES = 4
MOST_DEPTH = 128
ASYNCHRONOUS = 64  # rows of a left factor, from which on matrix units since Hopper read it from shared memory
ALIGNED = 8  # elements; rows of a multiple of it begin at 16 bytes, which is what one instruction copies
PIECES = 64, 32  # bytes of a thread in stages without a product, forward and backward; more would spill
RESERVED = 16384  # bytes of shared memory for reductions and for tiles passed between warps
ELEMENTS_OF_WARP = 1024  # of a state's tile; more would spill
GRADIENT_TILE = 128  # of a weight gradient, on either side
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
    def pitch(self) -> int:
        """Elements from one row of a state to the next in memory: H, filled up so that rows are aligned."""
        return -(-self.hidden // ALIGNED) * ALIGNED

    @property
    def parts(self) -> int:
        """Parts of a weight's columns: gate and candidate, or only the candidate."""
        return 2 if self.form == "highway" else 1

    @property
    def width(self) -> int:
        """Elements from one row of a weight to the next in memory."""
        return self.parts * self.pitch

    @property
    def dtype(self) -> torch.dtype:
        """Type of the products' factors and of kept activations."""
        return DTYPES[self.precision]

    @property
    def states_size(self) -> int:
        """Number of elements in the states of a time step, [n, L+1, M, H]."""
        return self.networks * (self.nodes + 1) * self.rows * self.pitch

    @property
    def activated_size(self) -> int:
        """Number of elements in the gates and candidates of a time step, [n, L+1, M, G]."""
        return self.networks * (self.nodes + 1) * self.rows * self.width

    @property
    def hidden_shape(self) -> tuple[int, ...]:
        """Shape of the hidden state between two time steps, in memory."""
        return (self.rows, self.pitch) if self.weighted else (self.networks, self.rows, self.pitch)


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
        piece: columns at a time in stages without a product.
        axis: the axis of a tile along which the state's rows are.
        depth: length of the inner dimension that a program multiplies at once.
        stages: tiles of weights being loaded at a time.
        warps: number of warps in a program.
    """

    size: int
    blocks: int
    piece: int
    axis: int
    depth: int
    stages: int
    warps: int

    @property
    def pieces(self) -> int:
        """Pieces of all blocks."""
        return self.blocks * self.size // self.piece


@dataclass(frozen=True)
class Gradient:
    """Tiles of the weight gradients: elements of a side, rows of the factors multiplied at once, and loads ahead."""

    size: int
    depth: int
    stages: int
    warps: int


@dataclass(frozen=True)
class Tiling:
    """The division of a time step.

    Attributes:
        rows: number of rows in a tile of a state.
        forward, backward: the division of columns in each direction.
        forward_wide, backward_wide: the same in tiles of twice the columns if there are any, for several nodes at once.
        gradient: the division of the weight gradients.
        fused: whether one program evaluates a whole network, and one launch all nodes; if not, a launch evaluates all
            nodes of a level, and each block of columns has its own program.
    """

    rows: int
    forward: Columns
    backward: Columns
    forward_wide: Columns
    backward_wide: Columns
    gradient: Gradient
    fused: bool

    @property
    def pieces(self) -> int:
        """The most pieces of a state in backward."""
        return max(self.backward.pieces, self.backward_wide.pieces)


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
    forward, backward = _cut(shape, rows, min(columns, MOST_ELEMENTS // rows), machine)
    wide = forward, backward
    if not fused and forward.blocks > 1:
        wide = _cut(shape, rows, min(2 * columns, MOST_ELEMENTS // rows), machine)
    return Tiling(rows, forward, backward, *wide, _cut_gradient(shape, machine), fused)


def _cut(shape: Shape, rows: int, columns: int, machine: Machine) -> tuple[Columns, Columns]:
    """The division of columns forward and backward, in tiles of at most some columns."""
    # Three products in place of one would spill.
    axis = int(rows < ASYNCHRONOUS <= columns and machine.asynchronous_products and shape.precision != "full")
    # Backward holds more of a tile in registers where its product is not transposed.
    narrow = columns if axis else min(columns, MOST_ELEMENTS // 2 // rows)
    of_warp = ELEMENTS_OF_WARP if axis else ELEMENTS_OF_WARP // (2 * (3 - shape.parts))
    pieces = tuple(part // shape.dtype.itemsize for part in PIECES)
    return (
        _cut_columns(shape, rows, columns, shape.hidden, shape.parts, axis, ELEMENTS_OF_WARP, pieces[0], machine),
        _cut_columns(shape, rows, narrow, shape.width, 1, axis, of_warp, pieces[1], machine),
    )


def _check_limits(shape: Shape) -> None:
    if shape.rows > MOST_ROWS:
        raise WenetError(f"backend 'triton' takes at most {MOST_ROWS} rows in a data batch, not {shape.rows}")
    if shape.networks * shape.nodes > MOST_MATRICES:
        raise WenetError(
            f"backend 'triton' takes at most {MOST_MATRICES} nodes in all, not {shape.networks} x {shape.nodes}"
        )
    elements = (shape.nodes + 1) * shape.hidden * shape.parts * shape.hidden
    if elements > MOST_CELL_ELEMENTS:
        raise WenetError(
            f"backend 'triton' takes cells of at most {MOST_CELL_ELEMENTS} weights, not {elements} "
            f"(hidden units: {shape.hidden}, nodes: {shape.nodes})"
        )


def _cut_columns(
    shape: Shape,
    rows: int,
    columns: int,
    inner: int,
    matrices: int,
    axis: int,
    warp_elements: int,
    piece_elements: int,
    machine: Machine,
) -> Columns:
    """Tiles with a limited number of columns, of the product of a state's factor and some matrices side by side."""
    size = max(16, columns)
    bytes_of_one = shape.dtype.itemsize * (rows + matrices * size)  # of one inner index
    fitting = max(16, min(MOST_DEPTH, STAGE_BYTES // bytes_of_one))
    depth = max(16, min(_power_of_two(fitting + 1) // 2, _power_of_two(inner)))
    stages = (machine.shared_memory - RESERVED) // (depth * bytes_of_one)
    warps = max(4, rows * size // warp_elements)
    piece = max(8, min(size, piece_elements * 32 * warps // rows))
    blocks = -(-shape.hidden // size)
    return Columns(size, blocks, piece, axis, depth, max(1, min(MOST_STAGES, stages)), warps)


def _cut_gradient(shape: Shape, machine: Machine) -> Gradient:
    """Large tiles read each factor fewer times."""
    size = min(GRADIENT_TILE, max(16, _power_of_two(shape.hidden)))
    depth = 128 // shape.dtype.itemsize
    stages = (machine.shared_memory - RESERVED) // (2 * size * depth * shape.dtype.itemsize)
    return Gradient(size, depth, max(1, min(MOST_STAGES, stages)), max(4, size * size // 2048))


def _power_of_two(size: int) -> int:
    """The smallest power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()
