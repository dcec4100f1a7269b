"""The kernels of one time step, and of the weight gradients after the last step. `reference.py` has the equations.

A program evaluates one network, or one block of its columns. All M rows of a column are in one tile, so activation,
gate, normalisation and masks follow the product in registers. A state reaches the nodes that read it through memory, in
practice the L2 cache, because only the tables say which nodes read it.

No kernel waits for another program, so Triton's interpreter can run them all. Barriers within a program order its
writes before its reads of the same data.
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
LINES = tl.constexpr(1024)  # requested at once


@triton.jit
def _tanh(x):
    """tanh without overflow, accurate also for small arguments."""
    decay = tl.exp(-2 * tl.abs(x))  # in 0..1
    far = (1 - decay) / (1 + decay)
    square = x * x
    near = x * (1 - square * (1 / 3 - square * (2 / 15 - square * (17 / 315 - square * (62 / 2835)))))
    return tl.where(square < 0.06, near, tl.where(x < 0, -far, far))


@triton.jit
def _activate(x, kind):
    if kind == TANH:
        x = _tanh(x)
    elif kind == RELU:
        x = tl.maximum(x, 0.0)
    elif kind == SIGMOID:
        x = tl.sigmoid(x)
    return x


@triton.jit
def _slope(f, kind):
    """The derivative of the activation, from its value f."""
    slope = f * 0 + 1
    if kind == TANH:
        slope = 1 - f * f
    elif kind == RELU:
        slope = tl.where(f > 0, 1.0, 0.0)
    elif kind == SIGMOID:
        slope = f * (1 - f)
    return slope


@triton.jit
def _prefetch(matrix, SIZE: tl.constexpr):
    """Request a matrix of SIZE elements into the L2 cache, without waiting for it."""
    LINE: tl.constexpr = LINE_BYTES * 8 // matrix.dtype.element_ty.primitive_bitwidth
    for start in range(0, SIZE, LINES * LINE):
        line = tl.minimum(start + tl.arange(0, LINES) * LINE, SIZE - 1)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [(matrix + line).to(tl.int64)],
            dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip


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
def _hidden_product(
    state, mask, weight, rows, columns, second,
    M: tl.constexpr, H: tl.constexpr, HIGHWAY: tl.constexpr, HAS_MASK: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, INPUT_PRECISION: tl.constexpr,
    FENCE: tl.constexpr,
):  # fmt: skip
    """`(state * mask) @ weight` for some columns and those `second` further on: logits of gate and candidate."""
    WIDTH: tl.constexpr = 2 * H if HIGHWAY else H
    first_sum = tl.zeros([ROWS, COLUMNS], tl.float32)
    second_sum = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, H, DEPTH):
        inner = start + tl.arange(0, DEPTH)
        element = rows[:, None] * H + inner[None, :]
        inside = (rows[:, None] < M) & (inner[None, :] < H)
        factor = tl.load(state + element, mask=inside, other=0.0)
        if HAS_MASK:
            factor *= tl.load(mask + element, mask=inside, other=0.0)
        factor = factor.to(weight.dtype.element_ty)
        entry = inner[:, None] * WIDTH + columns[None, :]
        there = (inner[:, None] < H) & (columns[None, :] < H)
        first = tl.load(weight + entry, mask=there, other=0.0)
        first_sum = _product(factor, first, first_sum, INPUT_PRECISION, FENCE)
        if HIGHWAY:
            other = tl.load(weight + entry + second, mask=there, other=0.0)
            second_sum = _product(factor, other, second_sum, INPUT_PRECISION, FENCE)
    return first_sum, second_sum


@triton.jit
def _normalised(state, rows, columns, mean, var, M: tl.constexpr, H: tl.constexpr, NORM: tl.constexpr):
    """Normalise a state; "batch" computes mean and variance over the rows and stores them."""
    if NORM == "none":
        return state
    if NORM == "batch":
        inside = (rows < M)[:, None]
        centre = tl.sum(tl.where(inside, state, 0.0), 0) / M
        deviation = tl.where(inside, state - centre[None, :], 0.0)
        spread = tl.sum(deviation * deviation, 0) / M
        tl.store(mean + columns, centre, mask=columns < H)
        tl.store(var + columns, spread, mask=columns < H)
    else:
        centre = tl.load(mean + columns, mask=columns < H, other=0.0)
        spread = tl.load(var + columns, mask=columns < H, other=1.0)
    return (state - centre[None, :]) * tl.rsqrt(spread + EPS)[None, :]


@triton.jit
def _evaluate_node(
    previous, pre, weight, mask, mean, var, state_out, activated_out, cell_output, kind, share, node, first_column,
    M: tl.constexpr, H: tl.constexpr, HIGHWAY: tl.constexpr, NORM: tl.constexpr, HAS_MASK: tl.constexpr,
    KEEP: tl.constexpr, INIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    INPUT_PRECISION: tl.constexpr, FENCE: tl.constexpr,
):  # fmt: skip
    """Evaluate some columns of one node: product, activation, gate, norm, and its share of the cell's output."""
    WIDTH: tl.constexpr = 2 * H if HIGHWAY else H
    rows = tl.arange(0, ROWS)
    columns = first_column + tl.arange(0, COLUMNS)
    inside = (rows[:, None] < M) & (columns[None, :] < H)
    narrow = rows[:, None] * H + columns[None, :]  # in [M, H]
    wide = rows[:, None] * WIDTH + columns[None, :]  # in [M, G]
    first, second = _hidden_product(
        previous, mask, weight, rows, columns, H, M, H, HIGHWAY, HAS_MASK, ROWS, COLUMNS, DEPTH, INPUT_PRECISION, FENCE
    )
    if HIGHWAY:
        if INIT:
            first += tl.load(pre + wide, mask=inside, other=0.0)
            second += tl.load(pre + wide + H, mask=inside, other=0.0)
        gate = tl.sigmoid(first)
        candidate = _activate(second, kind)
        if KEEP:
            tl.store(activated_out + wide, gate.to(activated_out.dtype.element_ty), mask=inside)
            tl.store(activated_out + wide + H, candidate.to(activated_out.dtype.element_ty), mask=inside)
    else:
        candidate = _activate(first, kind)
        if KEEP:
            tl.store(activated_out + wide, candidate.to(activated_out.dtype.element_ty), mask=inside)
        if INIT:
            gate = tl.sigmoid(tl.load(pre + wide, mask=inside, other=0.0))
    if HIGHWAY or INIT:
        carried = tl.load(previous + narrow, mask=inside, other=0.0)
        state = carried + gate * (candidate - carried)
    else:
        state = candidate
    state = _normalised(state, rows, columns, mean, var, M, H, NORM)
    tl.store(state_out + narrow, state, mask=inside)
    if not INIT:
        collected = tl.load(cell_output + narrow, mask=inside & (node > 1), other=0.0)
        tl.store(cell_output + narrow, collected + share * state, mask=inside)


@triton.jit(do_not_specialize=["t", "first_node", "last_node"])
def step_forward(
    pre, pre_step, pre_network, hidden, hidden_step, hidden_network, weights, mask, mean, var, statistics_step,
    ancestor, activation, share, kept_states, states_step, kept_activated, activated_step, cell_output,
    cell_output_step, t, first_node, last_node,
    M: tl.constexpr, H: tl.constexpr, L: tl.constexpr, HIGHWAY: tl.constexpr, NORM: tl.constexpr,
    HAS_MASK: tl.constexpr, KEEP: tl.constexpr, INIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, BLOCKS: tl.constexpr, PREFETCH: tl.constexpr, INPUT_PRECISION: tl.constexpr,
    FENCE: tl.constexpr,
):  # fmt: skip
    """Evaluate nodes of one time step: with INIT the init node, then nodes from `first_node` to before `last_node`.

    Program (k, b) evaluates BLOCKS blocks of columns of network k, starting at block b * BLOCKS. If a network has more
    blocks than one program evaluates, a launch can evaluate only one node.

    pre [T, n, M, G] (two strides are arguments), hidden [T+1, (n,) M, H], weights [n, L+1, H, G], mask [M, H], mean and
    var [T, n, L+1, H] (or without T), share [n, L] of a node in the cell's output, kept_states [T, n, L+1, M, H],
    kept_activated [T, n, L+1, M, G], cell_output [(T,) n, M, H]; `_step` is the stride of T.
    """
    WIDTH: tl.constexpr = 2 * H if HIGHWAY else H
    network = tl.program_id(0).to(tl.int64)
    t = t.to(tl.int64)
    first_column = tl.program_id(1) * BLOCKS * COLUMNS
    states = kept_states + t * states_step + network * ((L + 1) * M * H)
    activated = kept_activated + t * activated_step + network * ((L + 1) * M * WIDTH)
    mean += t * statistics_step + network * ((L + 1) * H)
    var += t * statistics_step + network * ((L + 1) * H)
    weights += network * ((L + 1) * H * WIDTH)
    cell_output += t * cell_output_step + network * (M * H)
    pre += t * pre_step + network * pre_network
    if INIT:
        previous = hidden + t * hidden_step + network * hidden_network
        if PREFETCH:
            _prefetch(weights + H * WIDTH, H * WIDTH)
        for block in range(BLOCKS):
            _evaluate_node(
                previous, pre, weights, mask, mean, var, states, activated, cell_output, TANH, 0.0, 0,
                first_column + block * COLUMNS,
                M, H, HIGHWAY, NORM, HAS_MASK, KEEP, True, ROWS, COLUMNS, DEPTH, INPUT_PRECISION, FENCE,
            )  # fmt: skip
        tl.debug_barrier()
    for node in range(first_node, last_node):
        column = network * L + node - 1
        source = tl.load(ancestor + column)
        kind = tl.load(activation + column)
        portion = tl.load(share + column)
        if PREFETCH:  # weights of the next node; the init node of the next step follows the last one
            _prefetch(weights + (node + 1) % (L + 1) * (H * WIDTH), H * WIDTH)
        for block in range(BLOCKS):
            _evaluate_node(
                states + source * (M * H), pre, weights + node * (H * WIDTH), mask, mean + node * H, var + node * H,
                states + node * (M * H), activated + node * (M * WIDTH), cell_output, kind, portion, node,
                first_column + block * COLUMNS,
                M, H, HIGHWAY, NORM, HAS_MASK, KEEP, False, ROWS, COLUMNS, DEPTH, INPUT_PRECISION, FENCE,
            )  # fmt: skip
        tl.debug_barrier()


@triton.jit(do_not_specialize=["t"])
def sum_networks(
    values, factors, addend, addend_step, result, result_step, count, size, t,
    WEIGHTED: tl.constexpr, ADD: tl.constexpr, NETWORKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`result[t] = addend[t] + sum_k factors[k] * values[k]` over `count` networks of `size` elements, in fixed order.

    Forward mixes the cells' outputs with it (eq. 4); backward sums the networks' gradients of the hidden state.
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


@triton.jit
def _differentiate_node(
    previous, pre, var, state, activated, grad_hidden, grad_state, grad_previous, grad_product, grad_pre, alignment,
    portion, kind, first_column,
    M: tl.constexpr, H: tl.constexpr, HIGHWAY: tl.constexpr, NORM: tl.constexpr, ALIGN: tl.constexpr,
    INIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """From the gradient of a node's state, compute that of its product and the part passed by the gate to the ancestor.

    `portion` is the node's share of the step's output. `alignment` receives the inner product of the state with the
    gradient of that output, from which gradients of mixing weights are computed.
    """
    WIDTH: tl.constexpr = 2 * H if HIGHWAY else H
    rows = tl.arange(0, ROWS)
    columns = first_column + tl.arange(0, COLUMNS)
    inside = (rows[:, None] < M) & (columns[None, :] < H)
    narrow = rows[:, None] * H + columns[None, :]
    wide = rows[:, None] * WIDTH + columns[None, :]
    grad = tl.load(grad_state + narrow, mask=inside, other=0.0)
    normalised = tl.load(state + narrow, mask=inside, other=0.0)
    if not INIT:
        grad_output = tl.load(grad_hidden + narrow, mask=inside, other=0.0)
        grad += portion * grad_output
        if ALIGN:
            tl.store(alignment, tl.sum(normalised * grad_output))
    if NORM != "none":
        spread = tl.load(var + columns, mask=columns < H, other=1.0)
        if NORM == "batch":  # the batch's own mean and variance depend on the states too
            along = tl.sum(grad * normalised, 0) / M
            grad = grad - (tl.sum(grad, 0) / M)[None, :] - normalised * along[None, :]
        grad *= tl.rsqrt(spread + EPS)[None, :]
    if HIGHWAY:
        gate = tl.load(activated + wide, mask=inside, other=0.0).to(tl.float32)
        candidate = tl.load(activated + wide + H, mask=inside, other=0.0).to(tl.float32)
    else:
        candidate = tl.load(activated + wide, mask=inside, other=0.0).to(tl.float32)
        if INIT:
            gate = tl.sigmoid(tl.load(pre + wide, mask=inside, other=0.0))
    grad_candidate = grad * _slope(candidate, kind)
    if HIGHWAY or INIT:
        carried = tl.load(previous + narrow, mask=inside, other=0.0)
        grad_gate = grad * (candidate - carried) * gate * (1 - gate)
        grad_candidate *= gate
        passed = grad * (1 - gate)
        if not INIT:
            passed += tl.load(grad_previous + narrow, mask=inside, other=0.0)
        tl.store(grad_previous + narrow, passed, mask=inside)
        if INIT:
            tl.store(grad_pre + wide, grad_gate, mask=inside)
    if HIGHWAY:
        tl.store(grad_product + wide, grad_gate.to(grad_product.dtype.element_ty), mask=inside)
        tl.store(grad_product + wide + H, grad_candidate.to(grad_product.dtype.element_ty), mask=inside)
        if INIT:
            tl.store(grad_pre + wide + H, grad_candidate, mask=inside)
    else:
        tl.store(grad_product + wide, grad_candidate.to(grad_product.dtype.element_ty), mask=inside)


@triton.jit
def _product_backward(
    grad_product, weight, mask, grad_state, grad_previous, first_column,
    M: tl.constexpr, H: tl.constexpr, WIDTH: tl.constexpr, HAS_MASK: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, DEPTH: tl.constexpr, INPUT_PRECISION: tl.constexpr, FENCE: tl.constexpr,
):  # fmt: skip
    """`grad_previous += mask * (grad_product @ weight^T)` for some columns; clears `grad_state`, read before."""
    rows = tl.arange(0, ROWS)
    columns = first_column + tl.arange(0, COLUMNS)
    inside = (rows[:, None] < M) & (columns[None, :] < H)
    narrow = rows[:, None] * H + columns[None, :]
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, WIDTH, DEPTH):
        inner = start + tl.arange(0, DEPTH)
        factor = tl.load(
            grad_product + rows[:, None] * WIDTH + inner[None, :],
            mask=(rows[:, None] < M) & (inner[None, :] < WIDTH),
            other=0.0,
        )
        entry = tl.load(
            weight + columns[:, None] * WIDTH + inner[None, :],
            mask=(columns[:, None] < H) & (inner[None, :] < WIDTH),
            other=0.0,
        )
        total = _product(factor, tl.trans(entry), total, INPUT_PRECISION, FENCE)
    if HAS_MASK:
        total *= tl.load(mask + narrow, mask=inside, other=0.0)
    collected = tl.load(grad_previous + narrow, mask=inside, other=0.0)
    tl.store(grad_previous + narrow, collected + total, mask=inside)
    tl.store(grad_state + narrow, tl.zeros([ROWS, COLUMNS], tl.float32), mask=inside)


@triton.jit(do_not_specialize=["t", "first_node", "last_node"])
def step_backward(
    pre, pre_step, pre_network, hidden, hidden_step, hidden_network, weights, mask, var, statistics_step,
    ancestor, activation, portions, kept_states, states_step, kept_activated, activated_step, grad_hidden,
    grad_hidden_step, grad_hidden_network, grad_states, grad_previous, grad_product, grad_pre, grad_pre_step,
    grad_pre_network, alignment, t, first_node, last_node,
    M: tl.constexpr, H: tl.constexpr, L: tl.constexpr, HIGHWAY: tl.constexpr, NORM: tl.constexpr,
    HAS_MASK: tl.constexpr, ALIGN: tl.constexpr, HEAD: tl.constexpr, LINK: tl.constexpr, TAIL: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, BLOCKS: tl.constexpr, PREFETCH: tl.constexpr,
    INPUT_PRECISION: tl.constexpr, FENCE: tl.constexpr,
):  # fmt: skip
    """Differentiate nodes of one time step in reverse, in two stages each: elementwise, then the weight's product.

    HEAD is the first stage of the last node. Each node from `first_node` down to `last_node` (both above 1) continues
    with its second stage and the first stage of the node before it. LINK does this for node 1 and the init node, and
    TAIL is the second stage of the init node. Programs are as in `step_forward`: a stage reads other columns only after
    a stage of another launch or of the same program.

    Operands are as in `step_forward`, with these besides: portions [n, L] of a node in the mixture, grad_hidden
    [T, (n,) M, H], grad_states [n, L+1, M, H] (zero before and after), grad_previous [n, M, H] of the hidden state one
    step before, grad_product [T, n, L+1, M, G], grad_pre [T, n, M, G], alignment [T, n, L, 2 blocks].
    """
    WIDTH: tl.constexpr = 2 * H if HIGHWAY else H
    MATRIX: tl.constexpr = H * WIDTH
    # The first stage needs more registers per tile, so it takes half a tile at a time.
    HALF: tl.constexpr = COLUMNS // 2
    halves = tl.num_programs(1) * BLOCKS * 2
    network = tl.program_id(0).to(tl.int64)
    first_block = tl.program_id(1) * BLOCKS
    first_half = first_block * 2
    alignment += ((t.to(tl.int64) * tl.num_programs(0) + network) * L) * halves + first_half
    grad_product += (t.to(tl.int64) * tl.num_programs(0) + network) * ((L + 1) * M * WIDTH)
    t = t.to(tl.int64)
    states = kept_states + t * states_step + network * ((L + 1) * M * H)
    activated = kept_activated + t * activated_step + network * ((L + 1) * M * WIDTH)
    var += t * statistics_step + network * ((L + 1) * H)
    weights += network * ((L + 1) * MATRIX)
    grad_states += network * ((L + 1) * M * H)
    grad_hidden += t * grad_hidden_step + network * grad_hidden_network
    grad_previous += network * (M * H)
    if HEAD:
        source = tl.load(ancestor + network * L + L - 1)
        kind = tl.load(activation + network * L + L - 1)
        portion = tl.load(portions + network * L + L - 1)
        if PREFETCH:
            _prefetch(weights + L * MATRIX, MATRIX)
        for half in range(2 * BLOCKS):
            _differentiate_node(
                states + source * (M * H), pre, var + L * H, states + L * (M * H), activated + L * (M * WIDTH),
                grad_hidden, grad_states + L * (M * H), grad_states + source * (M * H),
                grad_product + L * (M * WIDTH), grad_pre, alignment + (L - 1) * halves + half, portion, kind,
                (first_half + half) * HALF, M, H, HIGHWAY, NORM, ALIGN, False, ROWS, HALF,
            )  # fmt: skip
        tl.debug_barrier()
    for node in range(first_node, last_node - 1, -1):
        source = tl.load(ancestor + network * L + node - 1)
        if PREFETCH:
            _prefetch(weights + (node - 1) * MATRIX, MATRIX)
        for block in range(BLOCKS):
            _product_backward(
                grad_product + node * (M * WIDTH), weights + node * MATRIX, mask, grad_states + node * (M * H),
                grad_states + source * (M * H), (first_block + block) * COLUMNS,
                M, H, WIDTH, HAS_MASK, ROWS, COLUMNS, DEPTH, INPUT_PRECISION, FENCE,
            )  # fmt: skip
        tl.debug_barrier()
        column = network * L + node - 2
        source = tl.load(ancestor + column)
        kind = tl.load(activation + column)
        portion = tl.load(portions + column)
        for half in range(2 * BLOCKS):
            _differentiate_node(
                states + source * (M * H), pre, var + (node - 1) * H, states + (node - 1) * (M * H),
                activated + (node - 1) * (M * WIDTH), grad_hidden, grad_states + (node - 1) * (M * H),
                grad_states + source * (M * H), grad_product + (node - 1) * (M * WIDTH), grad_pre,
                alignment + (node - 2) * halves + half, portion, kind,
                (first_half + half) * HALF, M, H, HIGHWAY, NORM, ALIGN, False, ROWS, HALF,
            )  # fmt: skip
        tl.debug_barrier()
    if LINK:
        if PREFETCH:
            _prefetch(weights, MATRIX)
        for block in range(BLOCKS):
            _product_backward(
                grad_product + M * WIDTH, weights + MATRIX, mask, grad_states + M * H, grad_states,
                (first_block + block) * COLUMNS,
                M, H, WIDTH, HAS_MASK, ROWS, COLUMNS, DEPTH, INPUT_PRECISION, FENCE,
            )  # fmt: skip
        tl.debug_barrier()
        for half in range(2 * BLOCKS):
            _differentiate_node(
                hidden + t * hidden_step + network * hidden_network, pre + t * pre_step + network * pre_network, var,
                states, activated, grad_hidden, grad_states, grad_previous, grad_product,
                grad_pre + t * grad_pre_step + network * grad_pre_network, alignment, 0.0, TANH,
                (first_half + half) * HALF, M, H, HIGHWAY, NORM, False, True, ROWS, HALF,
            )  # fmt: skip
        tl.debug_barrier()
    if TAIL:
        if PREFETCH:  # the previous step begins with the last node
            _prefetch(weights + L * MATRIX, MATRIX)
        for block in range(BLOCKS):
            _product_backward(
                grad_product, weights, mask, grad_states, grad_previous, (first_block + block) * COLUMNS,
                M, H, WIDTH, HAS_MASK, ROWS, COLUMNS, DEPTH, INPUT_PRECISION, FENCE,
            )  # fmt: skip


@triton.jit(do_not_specialize=["steps"])
def weight_gradient(
    inputs, inputs_step, inputs_network, mask, ancestor, grad_product, grad_product_step, result, steps,
    M: tl.constexpr, H: tl.constexpr, L: tl.constexpr, WIDTH: tl.constexpr, HAS_MASK: tl.constexpr,
    INIT: tl.constexpr, DEPTH: tl.constexpr, HEIGHT: tl.constexpr, COLUMNS: tl.constexpr,
    INPUT_PRECISION: tl.constexpr, FENCE: tl.constexpr,
):  # fmt: skip
    """`(inputs * mask)^T @ grad_product` over all steps and rows: HEIGHT by COLUMNS elements of a matrix's gradient.

    Program (i, j, p) computes matrix p. With INIT it belongs to the init node: inputs are the hidden states
    [T, (n,) M, H], the result is [n, H, G]. Otherwise it belongs to node p % L + 1: inputs are its ancestor's states in
    [T, n, L+1, M, H], the result is [n, L, H, G].
    """
    matrix = tl.program_id(2).to(tl.int64)
    if INIT:
        network = matrix
        inputs += network * inputs_network
        grad_product += network * ((L + 1) * M * WIDTH)
    else:
        network = matrix // L
        inputs += network * inputs_network + tl.load(ancestor + matrix) * (M * H)
        grad_product += (network * (L + 1) + matrix % L + 1) * (M * WIDTH)
    height = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([HEIGHT, COLUMNS], tl.float32)
    for start in range(0, steps * M, DEPTH):
        position = start + tl.arange(0, DEPTH)
        step = (position // M).to(tl.int64)
        row = position % M
        there = position < steps * M
        inside = there[:, None] & (height[None, :] < H)
        left = tl.load(inputs + (step * inputs_step + row * H)[:, None] + height[None, :], mask=inside, other=0.0)
        if HAS_MASK:
            left *= tl.load(mask + row[:, None] * H + height[None, :], mask=inside, other=0.0)
        right = tl.load(
            grad_product + (step * grad_product_step + row * WIDTH)[:, None] + columns[None, :],
            mask=there[:, None] & (columns[None, :] < WIDTH),
            other=0.0,
        )
        total = _product(tl.trans(left.to(right.dtype)), right, total, INPUT_PRECISION, FENCE)
    tl.store(
        result + matrix * (H * WIDTH) + height[:, None] * WIDTH + columns[None, :],
        total,
        mask=(height[:, None] < H) & (columns[None, :] < WIDTH),
    )
