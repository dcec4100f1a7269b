"""The kernels of one time step, and of the weight gradients after the last step. `reference.py` has the equations.

A program evaluates one network, or one block of its columns. All M rows of a column are in one tile, so activation,
gate, normalisation and masks follow the product in registers. A state reaches the nodes that read it through memory, in
practice the L2 cache, because only the tables say which nodes read it.

No kernel waits for another program, so Triton's interpreter can run them all. Barriers within a program order its
writes before its reads of the same data. Where a result needs what several programs wrote, the last of them to arrive
computes it, in an order that does not depend on which one that is.
"""

from __future__ import annotations

import triton
import triton.language as tl

from wenet_kernels.activations import ACTIVATIONS
from wenet_kernels.recurrence import NORM_EPS

EPS = tl.constexpr(NORM_EPS)
TANH = tl.constexpr(ACTIVATIONS.index("tanh"))
RELU = tl.constexpr(ACTIVATIONS.index("relu"))
SIGMOID = tl.constexpr(ACTIVATIONS.index("sigmoid"))
LINE_BYTES = tl.constexpr(128)  # a line of the L2 cache
LINES = tl.constexpr(256)  # requested at once


@triton.jit
def _approximate_tanh(x):
    """As the GPU has it: off by up to 2^-11 of the value, a quarter of what rounding to bf16 is off by."""
    return tl.inline_asm_elementwise(
        "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )  # fmt: skip


@triton.jit
def _tanh(x, APPROXIMATE: tl.constexpr):
    """tanh without overflow, accurate also for small arguments."""
    if APPROXIMATE:
        result = _approximate_tanh(x)
    else:
        decay = tl.exp(-2 * tl.abs(x))  # in 0..1
        far = (1 - decay) / (1 + decay)
        square = x * x
        near = x * (1 - square * (1 / 3 - square * (2 / 15 - square * (17 / 315 - square * (62 / 2835)))))
        result = tl.where(square < 0.06, near, tl.where(x < 0, -far, far))
    return result


@triton.jit
def _sigmoid(x, APPROXIMATE: tl.constexpr):
    return 0.5 + 0.5 * _approximate_tanh(0.5 * x) if APPROXIMATE else tl.sigmoid(x)


@triton.jit
def _activate(x, kind, APPROXIMATE: tl.constexpr):
    if kind == TANH:
        x = _tanh(x, APPROXIMATE)
    elif kind == RELU:
        x = tl.maximum(x, 0.0)
    elif kind == SIGMOID:
        x = _sigmoid(x, APPROXIMATE)
    return x


@triton.jit
def _tanh_slope(f):
    """The derivative, from the value f; as in the next two."""
    return 1 - f * f


@triton.jit
def _relu_slope(f):
    return tl.where(f > 0, 1.0, 0.0)


@triton.jit
def _sigmoid_slope(f):
    return f * (1 - f)


@triton.jit
def _slope(f, kind):
    """The derivative of the activation, from its value f."""
    slope = f * 0 + 1
    if kind == TANH:
        slope = _tanh_slope(f)
    elif kind == RELU:
        slope = _relu_slope(f)
    elif kind == SIGMOID:
        slope = _sigmoid_slope(f)
    return slope


@triton.jit
def _prefetch(matrix, SIZE: tl.constexpr, PREFETCH: tl.constexpr):
    """Request a matrix of SIZE elements into the L2 cache, without waiting for it: "bulk" by one instruction of one
    thread, which GPUs have since Hopper, "lines" by one of some thread for each line of the cache."""
    BYTES: tl.constexpr = SIZE * matrix.dtype.element_ty.primitive_bitwidth // 8
    if PREFETCH == "bulk":
        tl.inline_asm_elementwise(
            """
            {
                .reg .pred first;
                .reg .u32 thread;
                mov.u32 thread, %tid.x;
                setp.eq.u32 first, thread, 0;
                @first cp.async.bulk.prefetch.L2.global [$1], $2;
                mov.u32 $0, 0;
            }
            """, "=r,l,r", [matrix.to(tl.int64), BYTES], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip
    elif PREFETCH == "lines":
        LINE: tl.constexpr = LINE_BYTES * SIZE // BYTES
        for start in range(0, SIZE, LINES * LINE):
            line = tl.minimum(start + tl.arange(0, LINES) * LINE, SIZE - 1)
            tl.inline_asm_elementwise(
                "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [(matrix + line).to(tl.int64)],
                dtype=tl.int32, is_pure=False, pack=1,
            )  # fmt: skip


@triton.jit
def _is_last(arrivals, count):
    """Whether this program is the last of `count` that arrive; it then sees all that they wrote before.

    `arrivals` counts them, and is zero before and after.
    """
    tl.debug_barrier()
    last = tl.atomic_add(arrivals, 1, sem="acq_rel") == count - 1
    if last:
        tl.store(arrivals, 0)
    return last


@triton.jit
def _links(links, network, node, L: tl.constexpr):
    """A row of `links`: the first position of nodes that read this one, the position behind the last, and its own."""
    row = links + (network * (L + 2) + node) * 3
    return tl.load(row), tl.load(row + 1), tl.load(row + 2)


@triton.jit
def _outside(border, t, network):
    """A step of a network in a tensor of the caller, [T, n, M, G]; `border` has its address and first two strides."""
    tensor = tl.multiple_of(tl.load(border), 16).to(tl.pointer_type(tl.float32))
    step, stride = tl.multiple_of(tl.load(border + 1), 4), tl.multiple_of(tl.load(border + 2), 4)
    return tensor + t * step + network * stride


@triton.jit
def _indices(first_column, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows and columns of a tile of a state, ready to be broadcast."""
    return tl.arange(0, ROWS)[:, None], first_column + tl.arange(0, COLUMNS)[None, :]


@triton.jit
def _product(left, right, total, INPUT_PRECISION: tl.constexpr, FENCE: tl.constexpr):
    """`total + left @ right`, after a fence if FENCE.

    Since Hopper, matrix units read shared memory through their own path (PTX: the async proxy). Only a fence ensures
    that they see data which copies have written there.
    """
    if FENCE:
        tl.inline_asm_elementwise(
            "fence.proxy.async.shared::cta; mov.u32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=False, pack=1
        )
    return tl.dot(left, right, total, input_precision=INPUT_PRECISION)


@triton.jit
def _state_product(
    factor, weight, total, AXIS: tl.constexpr, INPUT_PRECISION: tl.constexpr, FENCE: tl.constexpr
):  # fmt: skip
    """`total + factor @ weight`, the transpose of it where rows are along axis 1.

    Matrix units since Hopper take 64 rows of their left factor at least: a state with fewer rows is on the right.
    """
    if AXIS == 1:
        total = _product(tl.trans(weight), tl.trans(factor), total, INPUT_PRECISION, FENCE)
    else:
        total = _product(factor, weight, total, INPUT_PRECISION, FENCE)
    return total


@triton.jit
def _hidden_product(
    factors, weight, first_column, M: tl.constexpr, H: tl.constexpr, PITCH: tl.constexpr, HIGHWAY: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, AXIS: tl.constexpr,
    INPUT_PRECISION: tl.constexpr, FENCE: tl.constexpr,
):  # fmt: skip
    """The product of a state's factor and some columns of a weight: the logits of gate and candidate."""
    WIDTH: tl.constexpr = 2 * PITCH if HIGHWAY else PITCH
    rows = tl.arange(0, ROWS)[:, None]
    columns = first_column + tl.arange(0, COLUMNS)[None, :]
    first_sum = tl.zeros([COLUMNS, ROWS] if AXIS == 1 else [ROWS, COLUMNS], tl.float32)
    second_sum = tl.zeros([COLUMNS, ROWS] if AXIS == 1 else [ROWS, COLUMNS], tl.float32)
    for start in range(0, H, DEPTH):
        inner = start + tl.arange(0, DEPTH)
        factor = tl.load(factors + rows * PITCH + inner[None, :], mask=(rows < M) & (inner[None, :] < PITCH), other=0.0)
        entry = weight + inner[:, None] * WIDTH + columns
        there = (inner[:, None] < H) & (columns < PITCH)
        first = tl.load(entry, mask=there, other=0.0)
        first_sum = _state_product(factor, first, first_sum, AXIS, INPUT_PRECISION, FENCE)
        if HIGHWAY:
            second = tl.load(entry + PITCH, mask=there, other=0.0)
            second_sum = _state_product(factor, second, second_sum, AXIS, INPUT_PRECISION, FENCE)
    return first_sum, second_sum


@triton.jit
def _normalised(state, rows, columns, mean, var, M: tl.constexpr, H: tl.constexpr, NORM: tl.constexpr):
    """Normalise a state; "batch" computes mean and variance over the rows and stores them."""
    if NORM == "none":
        return state
    if NORM == "batch":
        centre = tl.sum(tl.where(rows < M, state, 0.0), 0, keep_dims=True) / M
        deviation = tl.where(rows < M, state - centre, 0.0)
        spread = tl.sum(deviation * deviation, 0, keep_dims=True) / M
        tl.store(mean + columns, centre, mask=columns < H)
        tl.store(var + columns, spread, mask=columns < H)
    else:
        centre = tl.load(mean + columns, mask=columns < H, other=0.0)
        spread = tl.load(var + columns, mask=columns < H, other=1.0)
    return (state - centre) * tl.rsqrt(spread + EPS)


@triton.jit
def _finish_node(
    first, second, previous, mask, mean, var, state_out, factor_out, activated_out, kind, read, first_column,
    M: tl.constexpr, H: tl.constexpr, PITCH: tl.constexpr, HIGHWAY: tl.constexpr, NORM: tl.constexpr,
    HAS_MASK: tl.constexpr, KEEP: tl.constexpr, INIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    APPROXIMATE: tl.constexpr,
):  # fmt: skip
    """What follows the product for some columns of a node: activation, gate, norm, and its factor if nodes `read` it.

    `first` and `second` are the logits of gate and candidate; plain: of the candidate, and of the init node's gate.
    """
    WIDTH: tl.constexpr = 2 * PITCH if HIGHWAY else PITCH
    rows, columns = _indices(first_column, ROWS, COLUMNS)
    inside = (rows < M) & (columns < PITCH)
    narrow = rows * PITCH + columns  # in [M, PITCH]
    wide = rows * WIDTH + columns  # in [M, WIDTH]
    if HIGHWAY or INIT:
        carried = tl.load(previous + narrow, mask=inside, other=0.0)
    factor = tl.load(mask + narrow, mask=inside, other=0.0) if HAS_MASK else 1.0
    if HIGHWAY:
        gate = _sigmoid(first, APPROXIMATE)
        candidate = _activate(second, kind, APPROXIMATE)
        if KEEP:
            tl.store(activated_out + wide, gate.to(activated_out.dtype.element_ty), mask=inside)
            tl.store(activated_out + wide + PITCH, candidate.to(activated_out.dtype.element_ty), mask=inside)
    else:
        candidate = _activate(first, kind, APPROXIMATE)
        if KEEP:
            tl.store(activated_out + wide, candidate.to(activated_out.dtype.element_ty), mask=inside)
        if INIT:
            gate = _sigmoid(second, APPROXIMATE)
    state = carried + gate * (candidate - carried) if HIGHWAY or INIT else candidate
    state = _normalised(state, rows, columns, mean, var, M, H, NORM)
    if PITCH > H:
        state = tl.where(columns < H, state, 0.0)
    tl.store(state_out + narrow, state, mask=inside)
    tl.store(factor_out + narrow, (state * factor).to(factor_out.dtype.element_ty), mask=inside & read)


@triton.jit
def _add_input(first, second, pre, rows, columns, M: tl.constexpr, PITCH: tl.constexpr, HIGHWAY: tl.constexpr):
    """The init node's logits with its projected input; plain: of the candidate, and that of the gate."""
    inside = (rows < M) & (columns < PITCH)
    if HIGHWAY:
        wide = pre + rows * (2 * PITCH) + columns
        first += tl.load(wide, mask=inside, other=0.0)
        second += tl.load(wide + PITCH, mask=inside, other=0.0)
    else:
        second = tl.load(pre + rows * PITCH + columns, mask=inside, other=0.0)
    return first, second


@triton.jit
def _evaluate_node(
    previous, factors, pre, weight, mask, mean, var, state_out, factor_out, activated_out, products, kind, read,
    first_column,
    M: tl.constexpr, H: tl.constexpr, PITCH: tl.constexpr, HIGHWAY: tl.constexpr, NORM: tl.constexpr,
    HAS_MASK: tl.constexpr, KEEP: tl.constexpr, INIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, BLOCKS: tl.constexpr, PIECE: tl.constexpr, AXIS: tl.constexpr, APPROXIMATE: tl.constexpr,
    INPUT_PRECISION: tl.constexpr, FENCE: tl.constexpr,
):  # fmt: skip
    """Evaluate some blocks of columns of one node.

    A transposed product goes through `products` [M, WIDTH], in practice the L2 cache: what follows takes tiles of its
    own, which threads read and write in the order of memory. Passing each operand between threads would take longer.
    """
    WIDTH: tl.constexpr = 2 * PITCH if HIGHWAY else PITCH
    for block in range(BLOCKS):
        column = first_column + block * COLUMNS
        first, second = _hidden_product(
            factors, weight, column, M, H, PITCH, HIGHWAY, ROWS, COLUMNS, DEPTH, AXIS, INPUT_PRECISION, FENCE
        )
        if AXIS == 1:
            rows, columns = tl.arange(0, ROWS)[None, :], column + tl.arange(0, COLUMNS)[:, None]
            element = products + rows * WIDTH + columns
            inside = (rows < M) & (columns < PITCH)
            tl.store(element, first, mask=inside)
            if HIGHWAY:
                tl.store(element + PITCH, second, mask=inside)
        else:
            rows, columns = _indices(column, ROWS, COLUMNS)
            if INIT:
                first, second = _add_input(first, second, pre, rows, columns, M, PITCH, HIGHWAY)
            _finish_node(
                first, second, previous, mask, mean, var, state_out, factor_out, activated_out, kind, read, column,
                M, H, PITCH, HIGHWAY, NORM, HAS_MASK, KEEP, INIT, ROWS, COLUMNS, APPROXIMATE,
            )  # fmt: skip
    if AXIS == 1:
        tl.debug_barrier()
        for piece in range(BLOCKS * COLUMNS // PIECE):
            column = first_column + piece * PIECE
            rows, columns = _indices(column, ROWS, PIECE)
            element = products + rows * WIDTH + columns
            inside = (rows < M) & (columns < PITCH)
            first = tl.load(element, mask=inside, other=0.0)
            second = tl.load(element + PITCH, mask=inside, other=0.0) if HIGHWAY else first
            if INIT:
                first, second = _add_input(first, second, pre, rows, columns, M, PITCH, HIGHWAY)
            _finish_node(
                first, second, previous, mask, mean, var, state_out, factor_out, activated_out, kind, read, column,
                M, H, PITCH, HIGHWAY, NORM, HAS_MASK, KEEP, INIT, ROWS, PIECE, APPROXIMATE,
            )  # fmt: skip


@triton.jit
def _sum_states(
    states, share, mask, output, factor_out, first_column, M: tl.constexpr, PITCH: tl.constexpr, L: tl.constexpr,
    HAS_MASK: tl.constexpr, WEIGHTED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Some columns of a cell's output; if that is the hidden state, also its factor, which the init node reads."""
    rows, columns = _indices(first_column, ROWS, COLUMNS)
    inside = (rows < M) & (columns < PITCH)
    narrow = rows * PITCH + columns
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for node in tl.static_range(1, L + 1):
        total += tl.load(share + node - 1) * tl.load(states + node * (M * PITCH) + narrow, mask=inside, other=0.0)
    tl.store(output + narrow, total, mask=inside)
    if not WEIGHTED:
        if HAS_MASK:
            total *= tl.load(mask + narrow, mask=inside, other=0.0)
        tl.store(factor_out + narrow, total.to(factor_out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["capacity", "factor_steps", "t", "first_node", "last_node"])
def step_forward(
    border, hidden, hidden_step, hidden_network, hidden_factor, weights, mask, mean, var,
    statistics_step, ancestor, activation, order, links, arrivals, share, kept_states, states_step, kept_activated,
    activated_step, factors, products, cell_output, cell_output_step, capacity, factor_steps, t, first_node, last_node,
    M: tl.constexpr, H: tl.constexpr, PITCH: tl.constexpr, L: tl.constexpr, HIGHWAY: tl.constexpr, NORM: tl.constexpr,
    HAS_MASK: tl.constexpr, WEIGHTED: tl.constexpr, KEEP: tl.constexpr, INIT: tl.constexpr, LAST: tl.constexpr,
    LEVELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, BLOCKS: tl.constexpr,
    PIECE: tl.constexpr, AXIS: tl.constexpr, PREFETCH: tl.constexpr, APPROXIMATE: tl.constexpr,
    INPUT_PRECISION: tl.constexpr, FENCE: tl.constexpr,
):  # fmt: skip
    """Evaluate nodes of one time step: with INIT the init node, then nodes from `first_node` to before `last_node`, and
    with LAST the cell's output from the states of all.

    Program (k, b) evaluates BLOCKS blocks of columns of network k, starting at block b * BLOCKS. If a network has more
    blocks than one program evaluates, LEVELS is set. Then a launch evaluates only the init node, or program (p, b) the
    node at position `first_node` + p of `order`; with LAST the last program of a network's last level adds the output.

    border [2, 3] of pre [T, n, M, G] and its gradient, as in `_outside`, hidden [T+1, (n,) M, H], hidden_factor
    [(n,) T+1, M, H], weights [n, L+1, H, G], mask [M, H], mean and var [T, n, L+1, H] (or without T), `order` and
    `links` as in `order.py`, arrivals [n, L+1, blocks], share [n, L] of a node in the cell's output, kept_states
    [T, n, L+1, M, H], kept_activated [T, n, L+1, M, G], factors [n, L, T, M, H], products [n, M, G], with LEVELS
    [n, L+1, M, G], cell_output [(T,) n, M, H]; `_step` is the stride of T, `capacity` its length, in factors
    `factor_steps`. Rows of H elements are PITCH elements long in memory, filled up with zeros.
    """
    WIDTH: tl.constexpr = 2 * PITCH if HIGHWAY else PITCH
    STATE: tl.constexpr = M * PITCH
    if LEVELS and not INIT:
        position = first_node + tl.program_id(0)
        place = tl.load(order + position)
        network = (place // (L + 1)).to(tl.int64)
        first_node = place % (L + 1)
        last_node = first_node + 1
    else:
        network = tl.program_id(0).to(tl.int64)
    t = t.to(tl.int64)
    first_column = tl.program_id(1) * BLOCKS * COLUMNS
    states = kept_states + t * states_step + network * ((L + 1) * STATE)
    activated = kept_activated + t * activated_step + network * ((L + 1) * M * WIDTH)
    if not WEIGHTED:
        hidden_factor += network * (capacity + 1) * STATE
    hidden_factor += t * STATE
    matrix_factor = factor_steps.to(tl.int64) * STATE  # from one node's factor to the next
    factors += network * L * matrix_factor
    if KEEP:
        factors += t * STATE
    mean += t * statistics_step + network * ((L + 1) * H)
    var += t * statistics_step + network * ((L + 1) * H)
    weights += network * ((L + 1) * H * WIDTH)
    products += network * (((L + 1) if LEVELS else 1) * M * WIDTH)
    PRODUCT: tl.constexpr = M * WIDTH if LEVELS else 0  # from one node's product to the next
    if INIT:
        _prefetch(weights + H * WIDTH, H * WIDTH, PREFETCH)
        _evaluate_node(
            hidden + t * hidden_step + network * hidden_network, hidden_factor, _outside(border, t, network), weights,
            mask, mean, var, states, factors, activated, products, TANH, True, first_column,
            M, H, PITCH, HIGHWAY, NORM, HAS_MASK, KEEP, True, ROWS, COLUMNS, DEPTH, BLOCKS, PIECE, AXIS, APPROXIMATE,
            INPUT_PRECISION, FENCE,
        )  # fmt: skip
        tl.debug_barrier()
    if not LEVELS or not INIT:
        for node in range(first_node, last_node):
            column = network * L + node - 1
            source = tl.load(ancestor + column)
            kind = tl.load(activation + column)
            # Weights of the next node; the init node of the next step follows the last one.
            _prefetch(weights + (node + 1) % (L + 1) * (H * WIDTH), H * WIDTH, PREFETCH)
            _evaluate_node(
                states + source * STATE, factors + source * matrix_factor, states, weights + node * (H * WIDTH), mask,
                mean + node * H, var + node * H, states + node * STATE, factors + node * matrix_factor,
                activated + node * (M * WIDTH), products + node * PRODUCT, kind, node < L, first_column,
                M, H, PITCH, HIGHWAY, NORM, HAS_MASK, KEEP, False, ROWS, COLUMNS, DEPTH, BLOCKS, PIECE, AXIS,
                APPROXIMATE, INPUT_PRECISION, FENCE,
            )  # fmt: skip
            tl.debug_barrier()
    if LAST:
        complete = True
        if LEVELS:
            begin, end, _ = _links(links, network, L + 1, L)
            complete = (position >= begin) & (position < end)
            if complete:
                arrived = arrivals + network * (L + 1) * tl.num_programs(1) + tl.program_id(1)
                complete = _is_last(arrived, end - begin)
        if complete:
            for piece in range(BLOCKS * COLUMNS // PIECE):
                _sum_states(
                    states, share + network * L, mask, cell_output + t * cell_output_step + network * STATE,
                    hidden_factor + STATE, first_column + piece * PIECE,
                    M, PITCH, L, HAS_MASK, WEIGHTED, ROWS, PIECE,
                )  # fmt: skip


@triton.jit(do_not_specialize=["t"])
def sum_networks(
    values, factors, addend, addend_step, mask, result, result_step, rounded, count, size, t,
    WEIGHTED: tl.constexpr, ADD: tl.constexpr, HAS_MASK: tl.constexpr, ROUND: tl.constexpr, NETWORKS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """`result[t] = addend[t] + sum_k factors[k] * values[k]` over `count` networks of `size` elements, in fixed order.

    Forward mixes the cells' outputs with it (eq. 4), and with ROUND writes their factor to `rounded[t]`; backward sums
    the networks' gradients of the hidden state.
    """
    t = t.to(tl.int64)
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, count, NETWORKS):
        network = start + tl.arange(0, NETWORKS)
        inside = (network[:, None] < count) & (element[None, :] < size)
        value = tl.load(values + network[:, None].to(tl.int64) * size + element[None, :], mask=inside, other=0.0)
        if WEIGHTED:
            value *= tl.load(factors + network, mask=network < count, other=0.0)[:, None]
        total += tl.sum(value, 0)
    if ADD:
        total += tl.load(addend + t * addend_step + element, mask=element < size, other=0.0)
    tl.store(result + t * result_step + element, total, mask=element < size)
    if ROUND:
        if HAS_MASK:
            total *= tl.load(mask + element, mask=element < size, other=0.0)
        tl.store(rounded + t * size + element, total.to(rounded.dtype.element_ty), mask=element < size)


@triton.jit
def _collect(
    passed, products, mask, begin, end, rows, columns,
    M: tl.constexpr, PITCH: tl.constexpr, HIGHWAY: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """Some columns of a state's gradient, from the nodes that read it: those at positions `begin` to before `end`.

    Each gave what its gate passed on and its product, which the mask still has to multiply.
    """
    inside = (rows < M) & (columns < PITCH)
    narrow = rows * PITCH + columns
    kept = tl.load(mask + narrow, mask=inside, other=0.0) if HAS_MASK else 1.0
    from_gates = tl.zeros(inside.shape, tl.float32)
    from_products = tl.zeros(inside.shape, tl.float32)
    first = begin.to(tl.int64) * (M * PITCH)
    for reader in range(end - begin):
        element = first + reader * (M * PITCH) + narrow
        from_products += tl.load(products + element, mask=inside, other=0.0)
        if HIGHWAY:
            from_gates += tl.load(passed + element, mask=inside, other=0.0)
    return from_gates + kept * from_products


@triton.jit
def _differentiate_columns(
    previous, pre, var, state, activated, grad_hidden, passed, products, mask, begin, end, passed_out,
    grad_product, grad_pre, alignment, portion, kind, first_column,
    M: tl.constexpr, H: tl.constexpr, PITCH: tl.constexpr, HIGHWAY: tl.constexpr, NORM: tl.constexpr,
    HAS_MASK: tl.constexpr, WEIGHTED: tl.constexpr, INIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    APPROXIMATE: tl.constexpr,
):  # fmt: skip
    """From the gradient of a node's state, compute that of its product and the part that the gate passes to the
    ancestor, for some columns.

    `portion` is the node's share of the step's output. `alignment` receives the inner product of the state with the
    gradient of that output, from which gradients of mixing weights are computed.
    """
    WIDTH: tl.constexpr = 2 * PITCH if HIGHWAY else PITCH
    rows, columns = _indices(first_column, ROWS, COLUMNS)
    inside = (rows < M) & (columns < PITCH)
    narrow = rows * PITCH + columns
    wide = rows * WIDTH + columns
    # All loads come first, so that they wait for memory together.
    normalised = tl.load(state + narrow, mask=inside, other=0.0)
    if not INIT:
        grad_output = tl.load(grad_hidden + narrow, mask=inside, other=0.0)
    if HIGHWAY:
        gate = tl.load(activated + wide, mask=inside, other=0.0)
        candidate = tl.load(activated + wide + PITCH, mask=inside, other=0.0)
    else:
        candidate = tl.load(activated + wide, mask=inside, other=0.0)
        if INIT:
            gate = tl.load(pre + wide, mask=inside, other=0.0)
    if HIGHWAY or INIT:
        carried = tl.load(previous + narrow, mask=inside, other=0.0)
    grad = _collect(passed, products, mask, begin, end, rows, columns, M, PITCH, HIGHWAY, HAS_MASK)
    if not INIT:
        grad += portion * grad_output
        if WEIGHTED:
            tl.store(alignment, tl.sum(normalised * grad_output))
    if NORM != "none":
        spread = tl.load(var + columns, mask=columns < H, other=1.0)
        if NORM == "batch":  # the batch's own mean and variance depend on the states too
            along = tl.sum(grad * normalised, 0, keep_dims=True) / M
            grad = grad - tl.sum(grad, 0, keep_dims=True) / M - normalised * along
        grad *= tl.rsqrt(spread + EPS)
    candidate = candidate.to(tl.float32)
    grad_candidate = grad * _slope(candidate, kind)
    if HIGHWAY or INIT:
        gate = gate.to(tl.float32) if HIGHWAY else _sigmoid(gate, APPROXIMATE)
        grad_gate = grad * (candidate - carried) * gate * (1 - gate)
        grad_candidate *= gate
        grad_carried = grad * (1 - gate)
        if INIT and not WEIGHTED:  # adds to the gradient of the output one step before
            grad_carried += tl.load(passed_out + narrow, mask=inside, other=0.0)
        tl.store(passed_out + narrow, grad_carried, mask=inside)
        if INIT:
            tl.store(grad_pre + wide, grad_gate, mask=inside)
    if HIGHWAY:
        tl.store(grad_product + wide, grad_gate.to(grad_product.dtype.element_ty), mask=inside)
        tl.store(grad_product + wide + PITCH, grad_candidate.to(grad_product.dtype.element_ty), mask=inside)
        if INIT:
            tl.store(grad_pre + wide + PITCH, grad_candidate, mask=inside)
    else:
        tl.store(grad_product + wide, grad_candidate.to(grad_product.dtype.element_ty), mask=inside)


@triton.jit
def _describe(node, network, ancestor, activation, portions, links, L: tl.constexpr):
    """What tables tell of a node other than the init node, loaded before it is needed."""
    column = network * L + node - 1
    begin, end, own = _links(links, network, node, L)
    return tl.load(ancestor + column), tl.load(activation + column), tl.load(portions + column), begin, end, own


@triton.jit
def _differentiate_node(
    node, description, var, states, activated, grad_hidden, passed, products, mask, grad_product, matrix_grad,
    alignment, pieces, first_column,
    M: tl.constexpr, H: tl.constexpr, PITCH: tl.constexpr, HIGHWAY: tl.constexpr, NORM: tl.constexpr,
    HAS_MASK: tl.constexpr, WEIGHTED: tl.constexpr, ROWS: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr,
    APPROXIMATE: tl.constexpr,
):  # fmt: skip
    """The first stage of a node other than the init node, for all columns of a program."""
    WIDTH: tl.constexpr = 2 * PITCH if HIGHWAY else PITCH
    STATE: tl.constexpr = M * PITCH
    source, kind, portion, begin, end, own = description
    for piece in tl.range(PIECES, disable_licm=True):
        _differentiate_columns(
            states + source * STATE, states, var + node * H, states + node * STATE, activated + node * (M * WIDTH),
            grad_hidden, passed, products, mask, begin, end, passed + own.to(tl.int64) * STATE,
            grad_product + node * matrix_grad, states, alignment + (node - 1) * pieces + piece, portion, kind,
            first_column + piece * PIECE,
            M, H, PITCH, HIGHWAY, NORM, HAS_MASK, WEIGHTED, False, ROWS, PIECE, APPROXIMATE,
        )  # fmt: skip


@triton.jit
def _product_backward(
    grad_product, weight, product, first_column,
    M: tl.constexpr, H: tl.constexpr, PITCH: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, DEPTH: tl.constexpr, BLOCKS: tl.constexpr, AXIS: tl.constexpr,
    INPUT_PRECISION: tl.constexpr, FENCE: tl.constexpr,
):  # fmt: skip
    """`product = grad_product @ weight^T` for some blocks of columns.

    It goes through memory, in practice the L2 cache, to the programs and tiles that need it.
    """
    for block in range(BLOCKS):
        column = first_column + block * COLUMNS
        rows = tl.arange(0, ROWS)[:, None]
        columns = column + tl.arange(0, COLUMNS)[:, None]
        total = tl.zeros([COLUMNS, ROWS] if AXIS == 1 else [ROWS, COLUMNS], tl.float32)
        for start in range(0, WIDTH, DEPTH):
            inner = start + tl.arange(0, DEPTH)[None, :]
            factor = tl.load(grad_product + rows * WIDTH + inner, mask=(rows < M) & (inner < WIDTH), other=0.0)
            entry = tl.load(weight + columns * WIDTH + inner, mask=(columns < H) & (inner < WIDTH), other=0.0)
            total = _state_product(factor, tl.trans(entry), total, AXIS, INPUT_PRECISION, FENCE)
        if AXIS == 1:
            row = tl.arange(0, ROWS)[None, :]
            tl.store(product + row * PITCH + columns, total, mask=(row < M) & (columns < PITCH))
        else:
            column = tl.trans(columns)
            tl.store(product + rows * PITCH + column, total, mask=(rows < M) & (column < PITCH))


@triton.jit(do_not_specialize=["networks", "capacity", "t", "first_node", "last_node"])
def step_backward(
    border, hidden, hidden_step, hidden_network, weights, mask, var, statistics_step,
    ancestor, activation, order, links, arrivals, portions, kept_states, states_step, kept_activated, activated_step,
    grad_hidden, grad_hidden_step, grad_hidden_network, passed, grad_previous, grad_previous_step, grad_product,
    alignment, pieces, products, networks, capacity, t, first_node,
    last_node,
    M: tl.constexpr, H: tl.constexpr, PITCH: tl.constexpr, L: tl.constexpr, HIGHWAY: tl.constexpr, NORM: tl.constexpr,
    HAS_MASK: tl.constexpr, WEIGHTED: tl.constexpr, HEAD: tl.constexpr, NODES: tl.constexpr, LINK: tl.constexpr,
    TAIL: tl.constexpr, LEVELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    BLOCKS: tl.constexpr, PIECE: tl.constexpr, AXIS: tl.constexpr, PREFETCH: tl.constexpr, APPROXIMATE: tl.constexpr,
    INPUT_PRECISION: tl.constexpr, FENCE: tl.constexpr,
):  # fmt: skip
    """Differentiate nodes of one time step in reverse, in two stages each: elementwise, then the weight's product.

    HEAD is the first stage of the last node. With NODES, each node from `first_node` down to `last_node` (both above 1)
    continues with its second stage and the first stage of the node before it. LINK does this for node 1 and the init
    node, and TAIL is the second stage of the init node. Programs are as in `step_forward`: a stage reads other columns
    only after a stage of another launch or of the same program. The first stage takes PIECE columns at a time.

    With LEVELS, a launch is one of these, and program (p, b) works on the node at position `first_node` + p of `order`:
    with HEAD the first stage of a leaf; with NODES and LINK the second stage of a node, and the last one of those that
    read the same state continues with its first stage.

    Operands are as in `step_forward`, with these besides: portions [n, L] of a node in the mixture, grad_hidden
    [T, (n,) M, H], grad_previous [n, M, H] of the hidden state one step before (not weighted: [T, n, M, H], in fact
    grad_hidden one step before, to which is added), grad_product [n, L+1, T, M, G], alignment [T, n, L, pieces];
    and at the nodes' positions, those of init last, [n * (L+1), M, H]: what gates have `passed`, and
    `products`.
    """
    WIDTH: tl.constexpr = 2 * PITCH if HIGHWAY else PITCH
    MATRIX: tl.constexpr = H * WIDTH
    STATE: tl.constexpr = M * PITCH
    WIDE: tl.constexpr = M * WIDTH
    PIECES: tl.constexpr = BLOCKS * COLUMNS // PIECE
    if LEVELS and not TAIL:
        place = tl.load(order + first_node + tl.program_id(0))
        network = (place // (L + 1)).to(tl.int64)
        first_node = place % (L + 1)
        last_node = first_node
    else:
        network = tl.program_id(0).to(tl.int64)
    t = t.to(tl.int64)
    first_column = tl.program_id(1) * BLOCKS * COLUMNS
    alignment += (t * networks + network) * L * pieces + tl.program_id(1) * PIECES
    matrix_grad = capacity.to(tl.int64) * WIDE  # from one node's gradient of the product to the next
    grad_product += network * (L + 1) * matrix_grad + t * WIDE
    states = kept_states + t * states_step + network * ((L + 1) * STATE)
    activated = kept_activated + t * activated_step + network * ((L + 1) * WIDE)
    var += t * statistics_step + network * ((L + 1) * H)
    weights += network * ((L + 1) * MATRIX)
    grad_hidden += t * grad_hidden_step + network * grad_hidden_network
    grad_previous += t * grad_previous_step + network * STATE
    arrivals += network * (L + 1) * tl.num_programs(1) + tl.program_id(1)
    if HEAD:
        node = first_node if LEVELS else L
        description = _describe(node, network, ancestor, activation, portions, links, L)
        _prefetch(weights + L * MATRIX, MATRIX, PREFETCH)
        _differentiate_node(
            node, description, var, states, activated, grad_hidden, passed, products, mask, grad_product, matrix_grad,
            alignment, pieces, first_column,
            M, H, PITCH, HIGHWAY, NORM, HAS_MASK, WEIGHTED, ROWS, PIECE, PIECES, APPROXIMATE,
        )  # fmt: skip
        tl.debug_barrier()
    if NODES:
        for node in tl.range(first_node, last_node - 1, -1, disable_licm=True):
            following = tl.load(ancestor + network * L + node - 1) if LEVELS else node - 1
            description = _describe(following, network, ancestor, activation, portions, links, L)
            _, _, own = _links(links, network, node, L)
            # What comes after this node's product.
            _prefetch(weights + (node - 1) * MATRIX, MATRIX, PREFETCH)
            _prefetch(states + (node - 1) * STATE, STATE, PREFETCH)
            _prefetch(activated + (node - 1) * WIDE, WIDE, PREFETCH)
            _product_backward(
                grad_product + node * matrix_grad, weights + node * MATRIX, products + own.to(tl.int64) * STATE,
                first_column,
                M, H, PITCH, WIDTH, ROWS, COLUMNS, DEPTH, BLOCKS, AXIS, INPUT_PRECISION, FENCE,
            )  # fmt: skip
            tl.debug_barrier()
            complete = True
            if LEVELS:
                complete = _is_last(arrivals + following * tl.num_programs(1), description[4] - description[3])
            if complete:
                _differentiate_node(
                    following, description, var, states, activated, grad_hidden, passed, products, mask, grad_product,
                    matrix_grad, alignment, pieces, first_column,
                    M, H, PITCH, HIGHWAY, NORM, HAS_MASK, WEIGHTED, ROWS, PIECE, PIECES, APPROXIMATE,
                )  # fmt: skip
            tl.debug_barrier()
    if LINK:
        node = first_node if LEVELS else 1
        begin, end, _ = _links(links, network, 0, L)
        _, _, own = _links(links, network, node, L)
        _prefetch(weights, MATRIX, PREFETCH)
        _prefetch(states, STATE, PREFETCH)
        _prefetch(activated, WIDE, PREFETCH)
        _product_backward(
            grad_product + node * matrix_grad, weights + node * MATRIX, products + own.to(tl.int64) * STATE,
            first_column,
            M, H, PITCH, WIDTH, ROWS, COLUMNS, DEPTH, BLOCKS, AXIS, INPUT_PRECISION, FENCE,
        )  # fmt: skip
        tl.debug_barrier()
        complete = True
        if LEVELS:
            complete = _is_last(arrivals, end - begin)
        pre, grad_pre = _outside(border, t, network), _outside(border + 3, t, network)
        # The init node has more to load: of many columns, half as many at a time.
        PART: tl.constexpr = PIECE if LEVELS else PIECE // 2
        if complete:
            for part in tl.range(BLOCKS * COLUMNS // PART, disable_licm=True):
                _differentiate_columns(
                    hidden + t * hidden_step + network * hidden_network, pre, var, states, activated, grad_hidden,
                    passed, products, mask, begin, end, grad_previous, grad_product, grad_pre, alignment, 0.0, TANH,
                    first_column + part * PART,
                    M, H, PITCH, HIGHWAY, NORM, HAS_MASK, WEIGHTED, True, ROWS, PART, APPROXIMATE,
                )  # fmt: skip
        tl.debug_barrier()
    if TAIL:
        _prefetch(weights + L * MATRIX, MATRIX, PREFETCH)  # the previous step begins with the last node
        if t > 0:
            _prefetch(states + L * STATE - states_step, STATE, PREFETCH)
            _prefetch(activated + L * WIDE - activated_step, WIDE, PREFETCH)
        products += (networks.to(tl.int64) * L + network) * STATE
        _product_backward(
            grad_product, weights, products, first_column,
            M, H, PITCH, WIDTH, ROWS, COLUMNS, DEPTH, BLOCKS, AXIS, INPUT_PRECISION, FENCE,
        )  # fmt: skip
        tl.debug_barrier()
        for piece in tl.range(PIECES, disable_licm=True):
            rows, columns = _indices(first_column + piece * PIECE, ROWS, PIECE)
            inside = (rows < M) & (columns < PITCH)
            narrow = rows * PITCH + columns
            product = tl.load(products + narrow, mask=inside, other=0.0)
            if HAS_MASK:
                product *= tl.load(mask + narrow, mask=inside, other=0.0)
            collected = tl.load(grad_previous + narrow, mask=inside, other=0.0)
            tl.store(grad_previous + narrow, collected + product, mask=inside)


@triton.jit(do_not_specialize=["input_rows", "grad_rows", "rows"])
def weight_gradient(
    inputs, input_rows, ancestor, grad_product, grad_rows, result, rows,
    H: tl.constexpr, PITCH: tl.constexpr, L: tl.constexpr, HIGHWAY: tl.constexpr, INIT: tl.constexpr,
    DEPTH: tl.constexpr, TILE: tl.constexpr, INPUT_PRECISION: tl.constexpr, FENCE: tl.constexpr,
):  # fmt: skip
    """`inputs^T @ grad_product` over the `rows` of all steps: TILE by TILE elements of a matrix's gradient.

    Program (i, j, p) computes matrix p. With INIT it belongs to the init node: inputs are the factors of the hidden
    states [(n,) T+1, M, H], the result is [n, H, G]. Otherwise it belongs to node p % L + 1: inputs are its ancestor's
    factors in [n, L, T, M, H], the result is [n, L, H, G]. grad_product is [n, L+1, T, M, G]; `input_rows` and
    `grad_rows` are the rows from one matrix to the next, 0 where all networks share one.
    """
    WIDTH: tl.constexpr = 2 * PITCH if HIGHWAY else PITCH
    TILES: tl.constexpr = (H + TILE - 1) // TILE
    matrix = tl.program_id(2).to(tl.int64)
    if INIT:
        inputs += matrix * input_rows * PITCH
        grad_product += matrix * (L + 1) * grad_rows * WIDTH
    else:
        network = matrix // L
        inputs += (network * L + tl.load(ancestor + matrix)) * input_rows * PITCH
        grad_product += (network * (L + 1) + matrix % L + 1) * grad_rows * WIDTH
    half = tl.program_id(1) // TILES  # of the gate or of the candidate
    height = tl.program_id(0) * TILE + tl.arange(0, TILE)
    columns = tl.program_id(1) % TILES * TILE + tl.arange(0, TILE)
    depth = tl.arange(0, DEPTH)
    total = tl.zeros([TILE, TILE], tl.float32)
    grad_product += half * PITCH
    for start in range(0, rows, DEPTH):
        there = (start + depth < rows)[:, None]
        left = tl.load(
            inputs + depth[:, None] * PITCH + height[None, :], mask=there & (height[None, :] < PITCH), other=0.0
        )
        right = tl.load(
            grad_product + depth[:, None] * WIDTH + columns[None, :], mask=there & (columns[None, :] < PITCH), other=0.0
        )
        total = _product(tl.trans(left), right, total, INPUT_PRECISION, FENCE)
        inputs += DEPTH * PITCH  # a 64-bit scalar: all rows may lie further apart than 32 bits count
        grad_product += DEPTH * WIDTH
    COLUMNS: tl.constexpr = 2 * H if HIGHWAY else H
    tl.store(
        result + matrix * (H * COLUMNS) + half * H + height[:, None] * COLUMNS + columns[None, :],
        total,
        mask=(height[:, None] < H) & (columns[None, :] < H),
    )
