"""The kernels of cells that are programs: all time steps forward, all of them in reverse, and the weight gradients.
`wenet_kernels/programs/reference.py` has the meaning of the instructions, `program_tables.py` the tables.

A Triton program owns one network and a tile of rows of the data batch, and interprets the network's table: which
operation comes next is the same for all of its threads, so branches cost little. Values lie in memory, in practice the
caches, because only the table says which operations read them. Barriers order the writes of a program before its reads;
no program reads what another has written, so none waits for another.
"""

from __future__ import annotations

import triton
import triton.language as tl

from wenet_kernels.programs.batch import CODES
from wenet_kernels.triton.kernels import EPS, _relu_slope, _sigmoid, _sigmoid_slope, _tanh, _tanh_slope
from wenet_kernels.triton.program_tables import FIELDS

TANH = tl.constexpr(CODES["tanh"])
RELU = tl.constexpr(CODES["relu"])
SIGMOID = tl.constexpr(CODES["sigmoid"])
SOFTPLUS = tl.constexpr(CODES["softplus"])
SILU = tl.constexpr(CODES["silu"])
HARDSIGMOID = tl.constexpr(CODES["hardsigmoid"])
HARDTANH = tl.constexpr(CODES["hardtanh"])
BATCHNORM = tl.constexpr(CODES["batchnorm"])
ADD = tl.constexpr(CODES["add"])
SUB = tl.constexpr(CODES["sub"])
MUL = tl.constexpr(CODES["mul"])
BLEND = tl.constexpr(CODES["blend"])
TIMES = tl.constexpr(CODES["times"])
PLUS = tl.constexpr(CODES["plus"])
FROM = tl.constexpr(CODES["from"])

WIDTH = tl.constexpr(len(FIELDS))
A = tl.constexpr(FIELDS.index("a"))
B = tl.constexpr(FIELDS.index("b"))
C = tl.constexpr(FIELDS.index("c"))
VALUE = tl.constexpr(FIELDS.index("value"))
GRAD_A = tl.constexpr(FIELDS.index("grad_a"))
GRAD_B = tl.constexpr(FIELDS.index("grad_b"))
GRAD_C = tl.constexpr(FIELDS.index("grad_c"))
GRAD_VALUE = tl.constexpr(FIELDS.index("grad_value"))
IS_PRODUCT = tl.constexpr(FIELDS.index("is_product"))
WEIGHT = tl.constexpr(FIELDS.index("weight"))
COLUMN = tl.constexpr(FIELDS.index("column"))
VECTOR = tl.constexpr(FIELDS.index("vector"))
FRESH = tl.constexpr(FIELDS.index("fresh"))


@triton.jit
def _softplus(x):
    """log(1 + exp(x)); the quotient makes up for what rounding 1 + decay has lost."""
    decay = tl.exp(-tl.abs(x))
    rounded = 1 + decay
    small = tl.where(rounded == 1, decay, tl.log(rounded) * decay / tl.where(rounded == 1, 1.0, rounded - 1))
    return tl.where(x > 0, x, 0.0) + small


@triton.jit
def _softplus_slope(f):
    """1 - exp(-f), from the value f."""
    near = f * (1 - f * (1 / 2 - f * (1 / 6 - f * (1 / 24 - f / 120))))
    return tl.where(f < 0.1, near, 1 - tl.exp(-f))


@triton.jit
def _activate(x, code):
    """A function of one value; NaN stays NaN."""
    if code == TANH:
        x = _tanh(x, False)
    elif code == RELU:
        x = tl.where(x < 0, 0.0, x)
    elif code == SIGMOID:
        x = _sigmoid(x, False)
    elif code == SOFTPLUS:
        x = _softplus(x)
    elif code == SILU:
        x = x * _sigmoid(x, False)
    elif code == HARDSIGMOID:
        x = x * (1 / 6) + 0.5
        x = tl.where(x < 0, 0.0, tl.where(x > 1, 1.0, x))
    elif code == HARDTANH:
        x = tl.where(x < -1, -1.0, tl.where(x > 1, 1.0, x))
    return x


@triton.jit
def _slope(f, code):
    """The derivative of a function from its value f, silu's from its argument; 1 of none."""
    slope = f * 0 + 1
    if code == TANH:
        slope = _tanh_slope(f)
    elif code == RELU:
        slope = _relu_slope(f)
    elif code == SIGMOID:
        slope = _sigmoid_slope(f)
    elif code == SOFTPLUS:
        slope = _softplus_slope(f)
    elif code == SILU:
        gate = _sigmoid(f, False)
        slope = gate * (1 + f * (1 - gate))
    elif code == HARDSIGMOID:
        slope = tl.where((f > 0) & (f < 1), 1 / 6, 0.0)
    elif code == HARDTANH:
        slope = tl.where((f > -1) & (f < 1), 1.0, 0.0)
    return slope


@triton.jit
def _normalised(value, inside, M):
    """A tile that has all rows, less their mean and divided by their standard deviation; and one over the latter."""
    mean = tl.sum(tl.where(inside, value, 0.0), 0, keep_dims=True) / M
    deviation = tl.where(inside, value - mean, 0.0)
    scale = tl.rsqrt(tl.sum(deviation * deviation, 0, keep_dims=True) / M + EPS)
    return deviation * scale, scale


@triton.jit
def _matrix(memory, place, t, slots, longer, steps, size):
    """The address of the matrix at a place in step t. Slots have `steps` matrices each, and the first ones, which are
    `longer`, one more; behind them are single matrices."""
    place, steps = place.to(tl.int64), steps.to(tl.int64)
    over_time = place * steps + tl.minimum(place, longer) + t
    single = slots * steps + longer - 1 - place
    return memory + tl.where(place < 0, single, over_time) * size


@triton.jit
def _tile(first_row, first_column, M, H: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Offsets of a tile of a matrix [M, H], and which of them are inside."""
    rows = first_row + tl.arange(0, ROWS)[:, None]
    columns = first_column + tl.arange(0, COLUMNS)[None, :]
    return rows * H + columns, (rows < M) & (columns < H)


@triton.jit
def _product(
    left, mask, weight, first_row, first_column, M,
    H: tl.constexpr, MASKED: tl.constexpr, TRANSPOSED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, INPUT_PRECISION: tl.constexpr,
):  # fmt: skip
    """Some columns of `(left * mask) @ weight`, or of the product with the transposed weight."""
    columns = first_column + tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, H, DEPTH):
        inner = start + tl.arange(0, DEPTH)
        element, inside = _tile(first_row, start, M, H, ROWS, DEPTH)
        factor = tl.load(left + element, mask=inside, other=0.0)
        if MASKED:
            factor *= tl.load(mask + element, mask=inside, other=0.0)
        if TRANSPOSED:
            there = (columns[:, None] < H) & (inner[None, :] < H)
            part = tl.trans(tl.load(weight + columns[:, None] * H + inner[None, :], mask=there, other=0.0))
        else:
            there = (inner[:, None] < H) & (columns[None, :] < H)
            part = tl.load(weight + inner[:, None] * H + columns[None, :], mask=there, other=0.0)
        total = tl.dot(factor, part, total, input_precision=INPUT_PRECISION)
    return total


@triton.jit
def _sum_of_product(
    left, mask, weight, pre, pre_column, vectors, factor, column, vector, first_row, first_column, M,
    H: tl.constexpr, MASKED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
):  # fmt: skip
    """Some columns of what a product gives: a value by a weight, the projected input and a bias, as far as it has them.
    A learned vector is one that has only a bias."""
    element, inside = _tile(first_row, first_column, M, H, ROWS, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    if factor >= 0:
        total = _product(
            left, mask, weight + factor.to(tl.int64) * (H * H), first_row, first_column, M,
            H, MASKED, False, ROWS, COLUMNS, DEPTH, INPUT_PRECISION,
        )  # fmt: skip
    if column >= 0:
        total += tl.load(pre + column.to(tl.int64) * pre_column + element, mask=inside, other=0.0)
    if vector >= 0:
        columns = first_column + tl.arange(0, COLUMNS)[None, :]
        total += tl.load(vectors + vector * H + columns, mask=columns < H, other=0.0)
    return total


@triton.jit(do_not_specialize=["M", "slots", "longer", "steps", "first_step", "last_step"])
def run_forward(
    memory, operations, numbers, bounds, results, pre, pre_step, pre_column, weight, vectors, mask, result_out,
    result_matrix, result_step, M, slots, longer, steps, first_step, last_step,
    H: tl.constexpr, RESULTS: tl.constexpr, MASKED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCKS: tl.constexpr, DEPTH: tl.constexpr, INPUT_PRECISION: tl.constexpr,
):  # fmt: skip
    """Run steps from `first_step` to before `last_step`.

    memory: matrices [M, H], those of slots first, then single ones (see `_matrix`); pre
    [T, X, M, H] (two strides are arguments), weight [P, H, H], vectors [V, H], mask [M, H]. Result r of network k goes
    to matrix r n + k of `result_out`, whose distances from matrix to matrix and from step to step are arguments.
    """
    network = tl.program_id(0)
    first_row = tl.program_id(1) * ROWS
    size = M.to(tl.int64) * H
    begin, end = tl.load(bounds + network * 3), tl.load(bounds + network * 3 + 1)
    results += network * RESULTS * 3
    result_out += network.to(tl.int64) * result_matrix
    networks = tl.num_programs(0).to(tl.int64)
    for t in range(first_step.to(tl.int64), last_step.to(tl.int64)):
        for position in range(begin, end):
            operation = operations + position * WIDTH
            code, is_product = tl.load(operation), tl.load(operation + IS_PRODUCT)
            a = _matrix(memory, tl.load(operation + A), t, slots, longer, steps, size)
            b = _matrix(memory, tl.load(operation + B), t, slots, longer, steps, size)
            c = _matrix(memory, tl.load(operation + C), t, slots, longer, steps, size)
            to = _matrix(memory, tl.load(operation + VALUE), t, slots, longer, steps, size)
            for block in range(BLOCKS):
                element, inside = _tile(first_row, block * COLUMNS, M, H, ROWS, COLUMNS)
                if is_product != 0:
                    value = _sum_of_product(
                        a, mask, weight, pre + t * pre_step, pre_column, vectors,
                        tl.load(operation + WEIGHT), tl.load(operation + COLUMN), tl.load(operation + VECTOR),
                        first_row, block * COLUMNS, M, H, MASKED, ROWS, COLUMNS, DEPTH, INPUT_PRECISION,
                    )  # fmt: skip
                else:
                    value = tl.load(a + element, mask=inside, other=0.0)
                if code == ADD:
                    value += tl.load(b + element, mask=inside, other=0.0)
                elif code == SUB:
                    value -= tl.load(b + element, mask=inside, other=0.0)
                elif code == MUL:
                    value *= tl.load(b + element, mask=inside, other=0.0)
                elif code == BLEND:
                    first = tl.load(b + element, mask=inside, other=0.0)
                    value = first + value * (tl.load(c + element, mask=inside, other=0.0) - first)
                elif code == TIMES:
                    value *= tl.load(numbers + position)
                elif code == PLUS:
                    value += tl.load(numbers + position)
                elif code == FROM:
                    value = tl.load(numbers + position) - value
                elif code == BATCHNORM:
                    value, _ = _normalised(value, inside, M)
                else:
                    value = _activate(value, code)
                tl.store(to + element, value, mask=inside)
            tl.debug_barrier()
        for result in tl.static_range(RESULTS):
            source = _matrix(memory, tl.load(results + result * 3), t, slots, longer, steps, size)
            to = result_out + result * networks * result_matrix + t * result_step
            for block in range(BLOCKS):
                element, inside = _tile(first_row, block * COLUMNS, M, H, ROWS, COLUMNS)
                tl.store(to + element, tl.load(source + element, mask=inside), mask=inside)
        tl.debug_barrier()


@triton.jit
def _add(grads, number, gradient, fresh, element, inside, size):
    """Add to the derivative of a value, or begin it."""
    to = grads + number.to(tl.int64) * size + element
    if fresh == 0:
        gradient += tl.load(to, mask=inside, other=0.0)
    tl.store(to, gradient, mask=inside)
    tl.debug_barrier()  # the next operand may be the same value


@triton.jit
def _function_backward(
    operation, number, grads, memory, gradient, t, slots, longer, steps, size, element, inside, M
):  # fmt: skip
    """Through an operation that is no product: from the derivative of its value to those of its operands."""
    code, fresh = tl.load(operation), tl.load(operation + FRESH)
    grad_a, grad_b, grad_c = (
        tl.load(operation + GRAD_A), tl.load(operation + GRAD_B), tl.load(operation + GRAD_C)
    )  # fmt: skip
    a = _matrix(memory, tl.load(operation + A), t, slots, longer, steps, size) + element
    b = _matrix(memory, tl.load(operation + B), t, slots, longer, steps, size) + element
    c = _matrix(memory, tl.load(operation + C), t, slots, longer, steps, size) + element
    if code == ADD:
        _add(grads, grad_a, gradient, fresh & 1, element, inside, size)
        _add(grads, grad_b, gradient, fresh & 2, element, inside, size)
    elif code == SUB:
        _add(grads, grad_a, gradient, fresh & 1, element, inside, size)
        _add(grads, grad_b, -gradient, fresh & 2, element, inside, size)
    elif code == MUL:
        left, right = tl.load(a, mask=inside, other=0.0), tl.load(b, mask=inside, other=0.0)
        _add(grads, grad_a, gradient * right, fresh & 1, element, inside, size)
        _add(grads, grad_b, gradient * left, fresh & 2, element, inside, size)
    elif code == BLEND:  # b + a (c - b)
        gate, from_gate = tl.load(a, mask=inside, other=0.0), tl.load(c, mask=inside, other=0.0)
        from_gate -= tl.load(b, mask=inside, other=0.0)
        _add(grads, grad_a, gradient * from_gate, fresh & 1, element, inside, size)
        _add(grads, grad_b, gradient - gradient * gate, fresh & 2, element, inside, size)
        _add(grads, grad_c, gradient * gate, fresh & 4, element, inside, size)
    elif code == TIMES:
        _add(grads, grad_a, gradient * tl.load(number), fresh & 1, element, inside, size)
    elif code == PLUS:
        _add(grads, grad_a, gradient, fresh & 1, element, inside, size)
    elif code == FROM:
        _add(grads, grad_a, -gradient, fresh & 1, element, inside, size)
    elif code == BATCHNORM:  # the statistics depend on all rows of the value too
        normalised, scale = _normalised(tl.load(a, mask=inside, other=0.0), inside, M)
        along = tl.sum(gradient * normalised, 0, keep_dims=True) / M
        gradient = (gradient - tl.sum(gradient, 0, keep_dims=True) / M - normalised * along) * scale
        _add(grads, grad_a, gradient, fresh & 1, element, inside, size)
    else:
        source = tl.where(code == SILU, tl.load(operation + A), tl.load(operation + VALUE))
        known = tl.load(_matrix(memory, source, t, slots, longer, steps, size) + element, mask=inside, other=0.0)
        gradient *= _slope(known, code)
        _add(grads, grad_a, gradient, fresh & 1, element, inside, size)


@triton.jit(do_not_specialize=["M", "vectors", "of_input", "slots", "longer", "steps", "first_step", "last_step"])
def run_backward(
    memory, operations, numbers, bounds, results, weight, mask, mix, given, carried, carried_out, grads, grad_pre,
    grad_product, grad_vector, alignment, M, vectors, of_input, slots, longer, steps, first_step, last_step,
    H: tl.constexpr, STATES: tl.constexpr, RESULTS: tl.constexpr, MASKED: tl.constexpr, WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCKS: tl.constexpr, DEPTH: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
):  # fmt: skip
    """Differentiate steps in reverse, from before `last_step` down to `first_step`.

    memory as forward left it; given [R, T, (n,) M, H] derivatives by results, carried [S, (n,) M, H] by the states that
    the last of these steps leaves, carried_out [S, n, M, H] by those that the first one reads; grads [values, M, H]
    of the current step, grad_pre [T, X, M, H], grad_product [P, T, M, H] of products, grad_vector [tiles, V, H] summed
    over rows and steps, alignment [T, n, tiles] of results and their derivatives.
    """
    network, tile, networks = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    first_row = tile * ROWS
    size = M.to(tl.int64) * H
    begin, end = tl.load(bounds + network * 3), tl.load(bounds + network * 3 + 1)
    first_value = tl.load(bounds + network * 3 + 2)
    results += network * RESULTS * 3
    chains = 1 if WEIGHTED else networks
    chain = 0 if WEIGHTED else network
    duration = steps.to(tl.int64)
    for back in range(first_step, last_step):
        t = (last_step - 1 - back + first_step).to(tl.int64)
        share = 0.0
        for result in tl.static_range(RESULTS):
            place, number = tl.load(results + result * 3), tl.load(results + result * 3 + 1)
            value = _matrix(memory, place, t, slots, longer, steps, size)
            of_result = given + ((result * duration + t) * chains + chain) * size
            for block in range(BLOCKS):
                element, inside = _tile(first_row, block * COLUMNS, M, H, ROWS, COLUMNS)
                gradient = tl.load(of_result + element, mask=inside, other=0.0)
                if result < STATES:
                    of_state = carried + (result * chains + chain).to(tl.int64) * size
                    gradient += tl.load(of_state + element, mask=inside, other=0.0)
                if WEIGHTED:
                    share += tl.sum(gradient * tl.load(value + element, mask=inside, other=0.0))
                    gradient *= tl.load(mix + network)
                _add(grads, number, gradient, tl.load(results + result * 3 + 2), element, inside, size)
        if WEIGHTED:
            tl.store(alignment + (t * networks + network) * tl.num_programs(1) + tile, share)
        for position_back in range(begin, end):
            position = begin + end - 1 - position_back
            operation = operations + position * WIDTH
            gradient_of_value = grads + tl.load(operation + GRAD_VALUE).to(tl.int64) * size
            if tl.load(operation + IS_PRODUCT) == 0:
                for block in range(BLOCKS):
                    element, inside = _tile(first_row, block * COLUMNS, M, H, ROWS, COLUMNS)
                    gradient = tl.load(gradient_of_value + element, mask=inside, other=0.0)
                    _function_backward(
                        operation, numbers + position, grads, memory, gradient, t, slots, longer, steps, size,
                        element, inside, M,
                    )  # fmt: skip
            else:
                code, factor = tl.load(operation), tl.load(operation + WEIGHT)
                column, vector = tl.load(operation + COLUMN), tl.load(operation + VECTOR)
                value = _matrix(memory, tl.load(operation + VALUE), t, slots, longer, steps, size)
                of_product = grad_product + (factor * duration + t) * size
                of_input_product = grad_pre + (t * of_input + column) * size
                for block in range(BLOCKS):
                    element, inside = _tile(first_row, block * COLUMNS, M, H, ROWS, COLUMNS)
                    gradient = tl.load(gradient_of_value + element, mask=inside, other=0.0)
                    if code != 0:
                        gradient *= _slope(tl.load(value + element, mask=inside, other=0.0), code)
                    if factor >= 0:
                        tl.store(of_product + element, gradient, mask=inside)
                    if column >= 0:
                        tl.store(of_input_product + element, gradient, mask=inside)
                    if vector >= 0:
                        columns = block * COLUMNS + tl.arange(0, COLUMNS)
                        total = grad_vector + (tile * vectors + vector).to(tl.int64) * H + columns
                        before = tl.load(total, mask=columns < H, other=0.0)
                        tl.store(total, before + tl.sum(gradient, 0), mask=columns < H)
                tl.debug_barrier()
                if factor >= 0:
                    number, fresh = tl.load(operation + GRAD_A), tl.load(operation + FRESH) & 1
                    for block in range(BLOCKS):
                        element, inside = _tile(first_row, block * COLUMNS, M, H, ROWS, COLUMNS)
                        gradient = _product(
                            of_product, mask, weight + factor.to(tl.int64) * (H * H), first_row, block * COLUMNS, M,
                            H, False, True, ROWS, COLUMNS, DEPTH, INPUT_PRECISION,
                        )  # fmt: skip
                        if MASKED:
                            gradient *= tl.load(mask + element, mask=inside, other=0.0)
                        _add(grads, number, gradient, fresh, element, inside, size)
        for state in tl.static_range(STATES):
            of_value = grads + (first_value + state).to(tl.int64) * size
            to = carried_out + (state * networks + network).to(tl.int64) * size
            for block in range(BLOCKS):
                element, inside = _tile(first_row, block * COLUMNS, M, H, ROWS, COLUMNS)
                tl.store(to + element, tl.load(of_value + element, mask=inside), mask=inside)
        tl.debug_barrier()


@triton.jit(do_not_specialize=["M", "longer", "steps"])
def weight_gradients(
    memory, factors, mask, grad_product, grad_weight, M, longer, steps,
    H: tl.constexpr, MASKED: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr, INPUT_PRECISION: tl.constexpr,
):  # fmt: skip
    """grad_weight [P, H, H]: the products, over all rows and steps, of what a weight multiplies and the derivative of
    the product. Program (p, i, j) computes a tile of weight p."""
    size = M.to(tl.int64) * H
    matrix = tl.program_id(0).to(tl.int64)
    left = _matrix(memory, tl.load(factors + matrix), 0, 0, longer, steps, size)
    right = grad_product + matrix * steps * size
    rows = tl.program_id(1) * TILE + tl.arange(0, TILE)
    columns = tl.program_id(2) * TILE + tl.arange(0, TILE)
    total = tl.zeros([TILE, TILE], tl.float32)
    for start in range(0, steps * M, DEPTH):
        inner = (start + tl.arange(0, DEPTH))[:, None]
        offset = inner.to(tl.int64) * H
        inside = inner < steps * M
        factor = tl.load(left + offset + rows[None, :], mask=inside & (rows[None, :] < H), other=0.0)
        if MASKED:
            factor *= tl.load(mask + inner % M * H + rows[None, :], mask=inside & (rows[None, :] < H), other=0.0)
        gradient = tl.load(right + offset + columns[None, :], mask=inside & (columns[None, :] < H), other=0.0)
        total = tl.dot(tl.trans(factor), gradient, total, input_precision=INPUT_PRECISION)
    to = grad_weight + matrix * (H * H) + rows[:, None] * H + columns[None, :]
    tl.store(to, total, mask=(rows[:, None] < H) & (columns[None, :] < H))
