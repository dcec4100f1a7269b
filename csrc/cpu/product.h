// Dense products on blocked matrices, and the packing of weights for them.
#pragma once

#include "cpu/recurrence.h"
#include "cpu/vector.h"

namespace wenet {
namespace WENET_ISA {

// A matrix of R rows in blocks of W columns: block b is a contiguous [R, W], W being the vector width. Columns beyond
// the last are zero. `data` may point at an inner row, for a view of the rows from there on.
template <typename T>
struct Blocked {
  T* data;
  int64_t block_stride;  // R * W

  T* block(int64_t b) const { return data + b * block_stride; }
  Blocked from_row(int64_t row) const { return {data + row * kWidth<T>, block_stride}; }
  operator Blocked<const T>() const { return {data, block_stride}; }
};

// How H hidden units, or the G = `per` * H columns of a product with them, divide into vectors. The two columns of a
// highway node, gate and candidate, lie beside each other: vectors go gate 0, candidate 0, gate 1, candidate 1, ...
template <typename T>
struct Layout {
  int64_t hidden;
  int per;  // 2 highway, 1 plain

  int64_t blocks() const { return ceil_div(hidden, kWidth<T>); }
  int64_t vectors() const { return per * blocks(); }
  int64_t width() const { return per * hidden; }  // G
  int count(int64_t block) const { return static_cast<int>(smaller(kWidth<T>, hidden - block * kWidth<T>)); }
  // First column of a vector in a row-major weight, whose first H columns are gates.
  int64_t column(int64_t vector) const { return (vector % per) * hidden + (vector / per) * kWidth<T>; }
};

// Packed weights [rows, G]: for each vector of columns all rows, [vectors, rows, W]. `late` says that they are read when
// the caches have forgotten them.
template <typename T>
void pack(const T* weight, int64_t rows, const Layout<T>& layout, int64_t first, int64_t last, bool late, T* packed) {
  constexpr int W = kWidth<T>;
  constexpr int64_t kRows = 16;  // at a time, so that lines of the weights that two vectors share are read once
  for (int64_t row = 0; row < rows; row += kRows) {
    const int64_t end = smaller(row + kRows, rows);
    for (int64_t v = first; v < last; ++v) {
      const T* from = weight + layout.column(v);
      T* to = packed + v * rows * W;
      const int count = layout.count(v / layout.per);
      for (int64_t k = row; k < end; ++k) {
        __builtin_prefetch(from + (k + kRows) * layout.width());
        put(to + k * W, load_part(from + k * layout.width(), count), late);
      }
    }
  }
}

// A square of W vectors becomes its transpose: in turn, squares of half, a quarter, ... of its size change places across
// the diagonal of theirs.
template <typename T>
WENET_INLINE void transpose(Vector<T> (&square)[kWidth<T>]) {
  constexpr int W = kWidth<T>;
#pragma GCC unroll 8
  for (int size = W / 2; size > 0; size /= 2) {
    IndexVector<T> upper, lower;
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) {
      upper[i] = i & size ? W + i - size : i;
      lower[i] = i & size ? W + i : i + size;
    }
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) {
      if (i & size) continue;
      const Vector<T> above = square[i], below = square[i + size];
      square[i] = __builtin_shuffle(above, below, upper);
      square[i + size] = __builtin_shuffle(above, below, lower);
    }
  }
}

// Packed transposed weights [G, rows]: for each vector of rows all G columns in the order of the vectors of a product,
// [blocks, G, W].
template <typename T>
void pack_transposed(const T* weight, const Layout<T>& rows, const Layout<T>& layout, int64_t first, int64_t last,
                     bool late, T* packed) {
  constexpr int W = kWidth<T>;
  const int64_t width = layout.width();
  for (int64_t b = first; b < last; ++b) {
    T* to = packed + b * width * W;
    const int lanes = rows.count(b);
    for (int64_t v = 0; v < layout.vectors(); ++v) {
      const T* from = weight + b * W * width + layout.column(v);
      const int count = layout.count(v / layout.per);
      Vector<T> square[W] = {};
      for (int row = 0; row < lanes; ++row) {
        __builtin_prefetch(from + row * width + 4 * W);
        square[row] = load_part(from + row * width, count);
      }
      transpose<T>(square);
      for (int column = 0; column < count; ++column) put(to + column * W, square[column], late);
      to += count * W;
    }
  }
}

template <typename T, int R, int V>
WENET_INLINE void accumulate(Vector<T> (&total)[R][V], const T* left, const T* right, int64_t right_stride, int depth,
                             const T* ahead) {
  constexpr int W = kWidth<T>;
#pragma GCC unroll 4
  for (int k = 0; k < depth; ++k) {
    __builtin_prefetch(ahead + k * W, 0, 2);
    Vector<T> columns[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) columns[v] = load(right + v * right_stride + k * W);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const T factor = left[r * W + k];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) total[r][v] += factor * columns[v];
    }
  }
}

// R rows times V vectors of columns, to out[v * out_stride + r * W]. `ahead` is where the weights lie that are wanted
// soon: memory answers too late if it is only asked when they are.
template <typename T, int R, int V>
void tile(Blocked<const T> left, const Layout<T>& depth, const T* right, int64_t right_stride, const T* ahead, T* out,
          int64_t out_stride) {
  constexpr int W = kWidth<T>;
  Vector<T> total[R][V] = {};
  const int64_t vectors = depth.vectors();
  const int64_t whole = depth.hidden / W * depth.per;
  for (int64_t b = 0; b < whole; ++b) {
    accumulate<T, R, V>(total, left.block(b), right, right_stride, W, ahead);
    right += W * W;
    ahead += W * W;
  }
  for (int64_t b = whole; b < vectors; ++b) {
    const int count = depth.count(b / depth.per);
    accumulate<T, R, V>(total, left.block(b), right, right_stride, count, ahead);
    right += count * W;
    ahead += count * W;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) store(out + v * out_stride + r * W, total[r][v]);
  }
}

template <typename T, int V, int R = WENET_TILE_ROWS>
WENET_INLINE void tile_of(int64_t rows, Blocked<const T> left, const Layout<T>& depth, const T* right,
                          int64_t right_stride, const T* ahead, T* out, int64_t out_stride) {
  if (rows == R) return tile<T, R, V>(left, depth, right, right_stride, ahead, out, out_stride);
  if constexpr (R > 1) tile_of<T, V, R - 1>(rows, left, depth, right, right_stride, ahead, out, out_stride);
}

// out [V, rows, W] = left [rows, depth] times V vectors of columns from packed weights.
template <typename T, int V>
void multiply(Blocked<const T> left, const Layout<T>& depth, const T* right, int64_t right_stride, int64_t rows,
              T* out) {
  constexpr int W = kWidth<T>;
  const int64_t tiles = ceil_div(rows, WENET_TILE_ROWS);
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t first = rows * i / tiles, last = rows * (i + 1) / tiles;
    const T* ahead = right + (V + i) * right_stride;  // each tile fetches a vector of the next V
    tile_of<T, V>(last - first, left.from_row(first), depth, right, right_stride, ahead, out + first * W, rows * W);
  }
}

// The product of one or two vectors of columns, whichever is asked for.
template <typename T>
WENET_INLINE void multiply_vectors(int64_t count, Blocked<const T> left, const Layout<T>& depth, const T* right,
                                   int64_t rows, T* out) {
  const int64_t stride = depth.width() * kWidth<T>;
  if (count == 2) return multiply<T, 2>(left, depth, right, stride, rows, out);
  multiply<T, 1>(left, depth, right, stride, rows, out);
}

// R columns of `left`, transposed, times V blocks of `right`: out [V, R, W] += their product over `depth` rows. `ahead`
// is as in `tile`.
template <typename T, int R, int V>
void outer_tile(const T* left, const T* right, int64_t right_stride, int64_t depth, const T* ahead, T* out,
                int64_t out_stride) {
  constexpr int W = kWidth<T>;
  Vector<T> total[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) total[r][v] = load(out + v * out_stride + r * W);
  }
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; ++k) {
    __builtin_prefetch(ahead + k * W, 0, 2);
    Vector<T> columns[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) columns[v] = load(right + v * right_stride + k * W);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const T factor = left[k * W + r];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) total[r][v] += factor * columns[v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) store(out + v * out_stride + r * W, total[r][v]);
  }
}

// out [V, blocks * W, W] = left [depth, H] transposed times V blocks of right [depth, W].
template <typename T, int V>
void outer_product(Blocked<const T> left, Blocked<const T> right, int64_t depth, const Layout<T>& hidden, T* out) {
  constexpr int W = kWidth<T>;
  constexpr int R = W < 4 ? W : WENET_TILE_ROWS < 12 ? 4 : 8;  // as many as the registers hold; must divide W
  static_assert(W % R == 0);
  constexpr int64_t kDepth = 128;  // rows at a time, which stay in the first cache
  const int64_t out_stride = hidden.blocks() * W * W;
  for (int64_t i = 0; i < V * out_stride; i += W) store<T>(out + i, Vector<T>{});
  for (int64_t k = 0; k < depth; k += kDepth) {
    const int64_t count = smaller(kDepth, depth - k);
    const Blocked<const T> l = left.from_row(k), r = right.from_row(k);
    for (int64_t i = 0; i < hidden.hidden; i += R) {
      const T* ahead = r.block(V + i / R % V);  // a tile fetches a block of the next V
      outer_tile<T, R, V>(l.block(i / W) + i % W, r.data, r.block_stride, count, ahead, out + i * W, out_stride);
    }
  }
}

// The same for one or two vectors, whichever is asked for.
template <typename T>
WENET_INLINE void outer_vectors(int64_t count, Blocked<const T> left, Blocked<const T> right, int64_t depth,
                                const Layout<T>& hidden, T* out) {
  if (count == 2) return outer_product<T, 2>(left, right, depth, hidden, out);
  outer_product<T, 1>(left, right, depth, hidden, out);
}

}  // namespace WENET_ISA
}  // namespace wenet
