// Dense products on blocked matrices, and the packing of weights for them.
#pragma once

#include "cpu/recurrence.h"
#include "cpu/vector.h"

namespace wenet {
namespace WENET_ISA {

// How numbers of type P are multiplied as factors of a product: `kTogether` neighbours along its depth at once, which a
// packed matrix holds beside each other. Here, one at a time, and the sums are of the same type.
template <typename P>
struct Factors {
  using Sum = P;
  static constexpr int kTogether = 1;
  using Columns = Vector<P>;  // a vector of columns of so many rows

  static WENET_INLINE Vector<P> round(Vector<P> v) { return v; }
  static WENET_INLINE Columns join(const Vector<P>* rows) { return rows[0]; }
  static WENET_INLINE Columns columns(const P* from) { return load(from); }
  static WENET_INLINE P spread(const P* from) { return *from; }
  static WENET_INLINE void multiply_add(Vector<P>& total, P factor, Columns columns) { total += factor * columns; }
};

template <typename P>
using SumOf = typename Factors<P>::Sum;
template <typename P>
constexpr int kTogether = Factors<P>::kTogether;

// Rows of a packed matrix: zeros fill the last of those that are multiplied together.
template <typename P>
WENET_INLINE int64_t packed_rows(int64_t rows) {
  return ceil_div(rows, kTogether<P>) * kTogether<P>;
}

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
  // Rows of a packed matrix that is multiplied by these columns.
  template <typename P>
  int64_t depth() const {
    return per * packed_rows<P>(hidden);
  }
  // First column of a vector in a row-major weight, whose first H columns are gates.
  int64_t column(int64_t vector) const { return (vector % per) * hidden + (vector / per) * kWidth<T>; }
};

// Packed weights [rows, G]: for each vector of columns all rows, [vectors, rows, W], those that are multiplied together
// beside each other. `late` says that they are read when the caches have forgotten them.
template <typename T, typename P>
void pack(const T* weight, int64_t rows, const Layout<T>& layout, int64_t first, int64_t last, bool late, P* packed) {
  constexpr int W = kWidth<T>;
  constexpr int64_t kRows = 16;  // at a time, so that lines of the weights that two vectors share are read once
  for (int64_t row = 0; row < rows; row += kRows) {
    const int64_t end = smaller(row + kRows, rows);
    for (int64_t v = first; v < last; ++v) {
      const T* from = weight + layout.column(v);
      P* to = packed + v * packed_rows<P>(rows) * W;
      const int count = layout.count(v / layout.per);
      for (int64_t k = row; k < end; k += kTogether<P>) {
        Vector<T> together[kTogether<P>] = {};
        for (int i = 0; i < smaller(kTogether<P>, end - k); ++i) {
          __builtin_prefetch(from + (k + i + kRows) * layout.width());
          together[i] = load_part(from + (k + i) * layout.width(), count);
        }
        put(to + k * W, Factors<P>::join(together), late);
      }
    }
  }
}

// A square of W vectors becomes its transpose: in turn, squares of half, a quarter, ... of its size change places
// across the diagonal of theirs.
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

// A square of weights, `lanes` rows of `count` numbers, becomes columns of a packed transposed matrix.
template <typename T, typename P>
WENET_INLINE void pack_square(const T* from, int64_t width, int lanes, int count, bool late, P* to) {
  constexpr int W = kWidth<T>;
  Vector<T> square[W] = {};
  for (int row = 0; row < lanes; ++row) {
    __builtin_prefetch(from + row * width + 4 * W);
    square[row] = load_part(from + row * width, count);
  }
  transpose<T>(square);
  for (int column = 0; column < count; column += kTogether<P>) {
    put(to + column * W, Factors<P>::join(square + column), late);
  }
}

// Packed transposed weights [G, rows]: for each vector of rows all G columns in the order of the vectors of a product,
// [blocks, G, W].
template <typename T, typename P>
void pack_transposed(const T* weight, const Layout<T>& rows, const Layout<T>& layout, int64_t first, int64_t last,
                     bool late, P* packed) {
  constexpr int W = kWidth<T>;
  const int64_t width = layout.width();
  for (int64_t b = first; b < last; ++b) {
    P* to = packed + b * layout.template depth<P>() * W;
    for (int64_t v = 0; v < layout.vectors(); ++v) {
      const int count = layout.count(v / layout.per);
      pack_square<T, P>(weight + b * W * width + layout.column(v), width, rows.count(b), count, late, to);
      to += packed_rows<P>(count) * W;
    }
  }
}

// R x V sums of the products of factors of type P.
template <typename P, int R, int V>
using Totals = Vector<SumOf<P>>[R][V];

template <typename P, int R, int V>
WENET_INLINE void accumulate(Totals<P, R, V>& total, const P* left, const P* right, int64_t right_stride, int depth,
                             const P* ahead) {
  constexpr int W = kWidth<P>;
#pragma GCC unroll 4
  for (int k = 0; k < depth; k += kTogether<P>) {
    __builtin_prefetch(ahead + k * W, 0, 2);
    typename Factors<P>::Columns columns[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) columns[v] = Factors<P>::columns(right + v * right_stride + k * W);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const auto factor = Factors<P>::spread(left + r * W + k);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) Factors<P>::multiply_add(total[r][v], factor, columns[v]);
    }
  }
}

// Where the vectors of columns of a product go, and whether they are added to what is there.
template <typename T>
struct Products {
  T* data;
  int64_t stride;  // of two vectors of columns
  bool add;
};

// R rows times V vectors of columns. `ahead` is where the weights lie that are wanted soon: memory answers too late if
// it is only asked when they are.
template <typename P, int R, int V>
void tile(Blocked<const P> left, const Layout<SumOf<P>>& depth, const P* right, int64_t right_stride, const P* ahead,
          Products<SumOf<P>> out) {
  constexpr int W = kWidth<P>;
  Totals<P, R, V> total = {};
  if (out.add) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) total[r][v] = load(out.data + v * out.stride + r * W);
    }
  }
  const int64_t vectors = depth.vectors();
  const int64_t whole = depth.hidden / W * depth.per;
  for (int64_t b = 0; b < whole; ++b) {
    accumulate<P, R, V>(total, left.block(b), right, right_stride, W, ahead);
    right += W * W;
    ahead += W * W;
  }
  for (int64_t b = whole; b < vectors; ++b) {
    const int count = depth.count(b / depth.per);
    accumulate<P, R, V>(total, left.block(b), right, right_stride, count, ahead);
    right += packed_rows<P>(count) * W;
    ahead += packed_rows<P>(count) * W;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) store(out.data + v * out.stride + r * W, total[r][v]);
  }
}

template <typename P, int V, int R = WENET_TILE_ROWS>
WENET_INLINE void tile_of(int64_t rows, Blocked<const P> left, const Layout<SumOf<P>>& depth, const P* right,
                          int64_t right_stride, const P* ahead, const Products<SumOf<P>>& out) {
  if (rows == R) return tile<P, R, V>(left, depth, right, right_stride, ahead, out);
  if constexpr (R > 1) tile_of<P, V, R - 1>(rows, left, depth, right, right_stride, ahead, out);
}

// out [V, rows, W] = left [rows, depth] times V vectors of columns from packed weights.
template <typename P, int V>
void multiply(Blocked<const P> left, const Layout<SumOf<P>>& depth, const P* right, int64_t right_stride, int64_t rows,
              const Products<SumOf<P>>& out) {
  constexpr int W = kWidth<P>;
  const int64_t tiles = ceil_div(rows, WENET_TILE_ROWS);
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t first = rows * i / tiles, last = rows * (i + 1) / tiles;
    const P* ahead = right + (V + i) * right_stride;  // each tile fetches a vector of the next V
    tile_of<P, V>(last - first, left.from_row(first), depth, right, right_stride, ahead,
                  {out.data + first * W, out.stride, out.add});
  }
}

// The product of one or two vectors of columns, whichever is asked for.
template <typename P>
WENET_INLINE void multiply_vectors(int64_t count, Blocked<const P> left, const Layout<SumOf<P>>& depth, const P* right,
                                   int64_t rows, const Products<SumOf<P>>& out) {
  const int64_t stride = depth.template depth<P>() * kWidth<P>;
  if (count == 2) return multiply<P, 2>(left, depth, right, stride, rows, out);
  multiply<P, 1>(left, depth, right, stride, rows, out);
}

// The same to one vector of columns behind the other.
template <typename P>
WENET_INLINE void multiply_vectors(int64_t count, Blocked<const P> left, const Layout<SumOf<P>>& depth, const P* right,
                                   int64_t rows, SumOf<P>* out) {
  multiply_vectors<P>(count, left, depth, right, rows, Products<SumOf<P>>{out, rows * kWidth<P>, false});
}

constexpr int64_t kOuterDepth = 128;  // rows of an outer product at a time, which stay in the first cache

// R columns of `left`, transposed, times V blocks of `right`, both with the rows that are multiplied together beside
// each other: out [V, R, W] += their product over `depth` rows. `ahead` is as in `tile`.
template <typename P, int R, int V>
void outer_tile(const P* left, const P* right, int64_t right_stride, int64_t depth, const P* ahead, SumOf<P>* out,
                int64_t out_stride) {
  constexpr int W = kWidth<P>;
  Totals<P, R, V> total;
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) total[r][v] = load(out + v * out_stride + r * W);
  }
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; k += kTogether<P>) {
    __builtin_prefetch(ahead + k * W, 0, 2);
    typename Factors<P>::Columns columns[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) columns[v] = Factors<P>::columns(right + v * right_stride + k * W);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const auto factor = Factors<P>::spread(left + k * W + r * kTogether<P>);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) Factors<P>::multiply_add(total[r][v], factor, columns[v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) store(out + v * out_stride + r * W, total[r][v]);
  }
}

// out [V, blocks * W, W] += left [depth, H] transposed times V blocks of right [depth, W].
template <typename P, int V>
void add_outer_product(Blocked<const P> left, Blocked<const P> right, int64_t depth, const Layout<SumOf<P>>& hidden,
                       SumOf<P>* out) {
  constexpr int W = kWidth<P>;
  constexpr int R = W < 4 ? W : WENET_TILE_ROWS < 12 ? 4 : 8;  // as many as the registers hold; must divide W
  static_assert(W % R == 0);
  constexpr int64_t kDepth = kOuterDepth * kTogether<P>;
  const int64_t out_stride = hidden.blocks() * W * W;
  for (int64_t k = 0; k < depth; k += kDepth) {
    const int64_t count = smaller(kDepth, depth - k);
    const Blocked<const P> l = left.from_row(k), r = right.from_row(k);
    for (int64_t i = 0; i < hidden.hidden; i += R) {
      const P* ahead = r.block(V + i / R % V);  // a tile fetches a block of the next V
      outer_tile<P, R, V>(l.block(i / W) + i % W * kTogether<P>, r.data, r.block_stride, count, ahead, out + i * W,
                          out_stride);
    }
  }
}

// The same for one or two vectors, whichever is asked for.
template <typename P>
void add_outer_vectors(int64_t count, Blocked<const P> left, Blocked<const P> right, int64_t depth,
                       const Layout<SumOf<P>>& hidden, SumOf<P>* out) {
  if (count == 2) return add_outer_product<P, 2>(left, right, depth, hidden, out);
  add_outer_product<P, 1>(left, right, depth, hidden, out);
}

// The same where nothing was before.
template <typename P>
void outer_vectors(int64_t count, Blocked<const P> left, Blocked<const P> right, int64_t depth,
                   const Layout<SumOf<P>>& hidden, SumOf<P>* out) {
  using T = SumOf<P>;
  constexpr int W = kWidth<P>;
  for (int64_t i = 0; i < count * hidden.blocks() * W * W; i += W) store<T>(out + i, Vector<T>{});
  add_outer_vectors<P>(count, left, right, depth, hidden, out);
}

}  // namespace WENET_ISA
}  // namespace wenet
