#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "droppeft/kernels/cpu/dropout.hpp"
#include "droppeft/kernels/cpu/simd.hpp"
#include "droppeft/kernels/keep_mask.hpp"

namespace droppeft::cpu {

namespace detail {

// What is worked on at once lies in the first caches.
inline constexpr std::int64_t tile_rows = 16;
inline constexpr std::int64_t tile_columns = 3 * KeepMask::block_size;

/// A part of a matrix with `width` columns, of rows up to `end` - 1.
struct Place {
  std::int64_t width, end, row, column = 0;

  bool exists() const { return row < end; }
  Place next() const {
    return column + tile_columns < width ? Place{width, end, row, column + tile_columns}
                                         : Place{width, end, row + tile_rows};
  }
  std::int64_t rows() const { return std::min(tile_rows, end - row); }
  std::int64_t columns() const { return std::min(tile_columns, width - column); }
  std::int64_t offset() const { return row * width + column; }
  /// From a number to the one in the tile below, which is to be fetched meanwhile.
  std::int64_t ahead() const { return tile_rows * width; }
};

/// Fetches at[ahead], which need not exist, into the second-level cache: the first one has too few
/// requests under way.
template <class T>
[[gnu::always_inline]] inline void prefetch(const T* at, std::int64_t ahead) {
  const auto bytes = static_cast<std::uintptr_t>(ahead) * sizeof(T);
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(at) + bytes), 0,
                     2);
}

/// A matrix whose number (i, j) lies at i row + j column; ahead 0: nothing is to be fetched.
struct Strided {
  const float* at;
  std::int64_t row, column = 1, ahead = 0;

  Strided from(std::int64_t i, std::int64_t j) const {
    return {at + i * row + j * column, row, column, ahead};
  }
};

template <class T>
struct Output {
  T* at;
  std::int64_t row, ahead = 0;
};

/// What the numbers of an output's row i are multiplied by: at[i row + j].
struct Factors {
  const float* at;
  std::int64_t row;
};

inline Factors ones() {
  alignas(64) static const auto numbers = [] {
    std::array<float, tile_columns> all;
    all.fill(1);
    return all;
  }();
  return {numbers.data(), 0};
}

struct Tile {
  alignas(64) float numbers[tile_rows * tile_columns];
  alignas(64) float factors[tile_rows * tile_columns];
};

/// tile.numbers = x * mask, at `place`; with `mask` they are multiplied by tile.factors.
template <class T>
void read_tile(Tile& tile, const T* x, const KeepMask& mask, const Place& place, Isa isa) {
  Tile* const to = &tile;
  dispatch(isa, [=]<int W>() DROPPEFT_INLINE {
    constexpr auto line = static_cast<std::int64_t>(64 / sizeof(T));
    const T* in = x + place.offset();
    const std::int64_t columns = place.columns(), ahead = place.ahead();
    KeepFactors<W> next_factors(mask, 0);
    for (std::int64_t i = 0; i < place.rows(); ++i, in += place.width) {
      const T* const row = in;
      float* const out = to->numbers + i * tile_columns;
      float* const factors = to->factors + i * tile_columns;
      for (std::int64_t j = 0; j < columns; j += line) prefetch(row + j, ahead);
      if (mask.keeps_all()) {
        for_packs<W>(columns, [=]<int N>(std::int64_t j) DROPPEFT_INLINE {
          Pack<float, N> value;
          load(value, row + j);
          store(out + j, value);
        });
        continue;
      }
      next_factors.seek((place.row + i) * KeepMask::blocks(place.width) +
                        place.column / KeepMask::block_size);
      for (std::int64_t j = 0; j < columns; j += KeepMask::block_size) next_factors(factors + j);
      for_packs<W>(columns, [=]<int N>(std::int64_t j) DROPPEFT_INLINE {
        Pack<float, N> value, factor;
        load(value, row + j);
        load(factor, factors + j);
        store(out + j, Pack<float, N>(value * factor));
      });
    }
  });
}

/// function(place, part, tile) for the tiles of rows first to end - 1 of x * mask, from left to
/// right, then down: `part` are the tile's numbers, where x holds them already in their own place.
template <class T, class Function>
void for_tiles(const T* x, std::int64_t width, const KeepMask& mask, std::int64_t first,
               std::int64_t end, Isa isa, const Function& function) {
  Tile tile;
  for (Place place{width, end, first}; place.exists(); place = place.next()) {
    if constexpr (sizeof(T) == sizeof(float))
      if (mask.keeps_all()) {
        function(place, Strided{x + place.offset(), width, 1, place.ahead()}, tile);
        continue;
      }
    read_tile(tile, x, mask, place, isa);
    function(place, Strided{tile.numbers, tile_columns}, tile);
  }
}

template <int First, std::size_t... Lane, class P>
[[gnu::always_inline]] inline void every_second(P& out, const P& a, const P& b,
                                                std::index_sequence<Lane...>) {
  out = __builtin_shufflevector(a, b, (First + 2 * static_cast<int>(Lane))...);
}

/// packs[0][i] = the sum of packs[i], for as many packs as numbers in each.
template <int Count, class P>
[[gnu::always_inline]] inline void sum_each(P* packs) {
  if constexpr (Count > 1) {
    using Lanes = std::make_index_sequence<static_cast<std::size_t>(pack_size<P>)>;
#pragma GCC unroll 8
    for (int i = 0; i < Count / 2; ++i) {
      P even, odd;
      every_second<0>(even, packs[2 * i], packs[2 * i + 1], Lanes());
      every_second<1>(odd, packs[2 * i], packs[2 * i + 1], Lanes());
      packs[i] = even + odd;
    }
    sum_each<Count / 2>(packs);
  }
}

/// sums[i][k] += sum_j a[i][j] b[k][j] for R rows of a and K of b.
template <int W, int R, int K>
[[gnu::always_inline]] inline void block_of_dots(float* sums, std::int64_t sums_row,
                                                 const Strided& a, const Strided& b,
                                                 std::int64_t columns) {
  Pack<float, W> dots[R * K];
#pragma GCC unroll 16
  for (auto& dot : dots) dot = Pack<float, W>{};
  std::int64_t j = 0;
  for (; j + W <= columns; j += W) {
    Pack<float, W> left[R];
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i) {
      const float* const at = a.at + i * a.row + j;
      load(left[i], at);
      if (a.ahead != 0) prefetch(at, a.ahead);
    }
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) {
      Pack<float, W> right;
      load(right, b.at + k * b.row + j);
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) dots[i * K + k] += left[i] * right;
    }
  }
  float found[R * K];
  if constexpr (R * K % W == 0) {
#pragma GCC unroll 4
    for (int first = 0; first < R * K; first += W) {
      sum_each<W>(dots + first);
      store(found + first, dots[first]);
    }
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < R * K; ++i) found[i] = sum(dots[i]);
  }
  for (; j < columns; ++j)
    for (int i = 0; i < R; ++i)
      for (int k = 0; k < K; ++k) found[i * K + k] += a.at[i * a.row + j] * b.at[k * b.row + j];
  for (int i = 0; i < R; ++i)
    for (int k = 0; k < K; ++k) sums[i * sums_row + k] += found[i * K + k];
}

/// sums[i][k] += sum_j a[i][j] b[k][j]; sums [rows, rank], rows of a and b without gaps.
inline void add_dots(float* sums, const Strided& a, const Strided& b, std::int64_t rows,
                     std::int64_t rank, std::int64_t columns, Isa isa) {
  dispatch(isa, [=]<int W>() DROPPEFT_INLINE {
    constexpr int R = W == 16 ? 4 : 2, K = 4;
    const auto some_rows = [=]<int r>(std::int64_t i) DROPPEFT_INLINE {
      Strided left = a.from(i, 0);
      const auto some = [&]<int c>(std::int64_t k) DROPPEFT_INLINE {
        block_of_dots<W, r, c>(sums + i * rank + k, rank, left, b.from(k, 0), columns);
        left.ahead = 0;
      };
      std::int64_t k = 0;
      for (; k + K <= rank; k += K) some.template operator()<K>(k);
      for (; k < rank; ++k) some.template operator()<1>(k);
    };
    std::int64_t i = 0;
    for (; i + R <= rows; i += R) some_rows.template operator()<R>(i);
    for (; i < rows; ++i) some_rows.template operator()<1>(i);
  });
}

/// out[i][j] += factors[i][j] sum_k a[i][k] b[k][j] for R rows and C packs of W columns.
template <int W, int R, int C, class T>
[[gnu::always_inline]] inline void block_of_product(const Output<T>& out, const Factors& factors,
                                                    const Strided& a, const Strided& b,
                                                    std::int64_t depth) {
  Pack<float, W> sums[R][C];
#pragma GCC unroll 4
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      sums[i][c] = Pack<float, W>{};
      if (out.ahead != 0) prefetch(out.at + i * out.row + c * W, out.ahead);
    }
  for (std::int64_t k = 0; k < depth; ++k) {
    Pack<float, W> right[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      const float* const at = b.at + k * b.row + c * W;
      load(right[c], at);
      if (b.ahead != 0) prefetch(at, b.ahead);
    }
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i) {
      Pack<float, W> left;
      fill(left, a.at[i * a.row + k * a.column]);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) sums[i][c] += left * right[c];
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      T* const at = out.at + i * out.row + c * W;
      Pack<float, W> before, factor;
      load(before, at);
      load(factor, factors.at + i * factors.row + c * W);
      store(at, Pack<float, W>(before + factor * sums[i][c]));
    }
}

/// out[i][j] += factors[i][j] sum_k a[i][k] b[k][j]; rows of b and out without gaps.
template <class T>
void add_product(const Output<T>& out, const Factors& factors, const Strided& a, const Strided& b,
                 std::int64_t rows, std::int64_t depth, std::int64_t columns, Isa isa) {
  dispatch(isa, [=]<int W>() DROPPEFT_INLINE {
    constexpr int R = 4, C = W == 16 ? 4 : 2;
    Strided right = b;
    const auto some_rows = [&]<int r>(std::int64_t i) DROPPEFT_INLINE {
      const auto some = [&]<int N, int c>(std::int64_t j) DROPPEFT_INLINE {
        block_of_product<N, r, c>(Output<T>{out.at + i * out.row + j, out.row, out.ahead},
                                  {factors.at + i * factors.row + j, factors.row}, a.from(i, 0),
                                  right.from(0, j), depth);
      };
      std::int64_t j = 0;
      for (; j + C * W <= columns; j += C * W) some.template operator()<W, C>(j);
      for (; j + W <= columns; j += W) some.template operator()<W, 1>(j);
      for (; j < columns; ++j) some.template operator()<1, 1>(j);
      right.ahead = 0;
    };
    std::int64_t i = 0;
    for (; i + R <= rows; i += R) some_rows.template operator()<R>(i);
    for (; i < rows; ++i) some_rows.template operator()<1>(i);
  });
}

}  // namespace detail

// Products of a large matrix with a low-rank adapter, at the speed at which the large one is read:
// each is read once, whole rows at a time. x [n, width] and y [n, width] (another width) are of T,
// float or BFloat16; z [n, rank], A [rank, width] and B [width, rank], which the functions take as
// its transpose b [rank, width], are floats, and so are all sums. Any rank. Rows are contiguous.
// All functions work on rows first to end - 1, serially. x * mask is never written to memory, nor
// is the mask.

/// Beyond this rank the matrices are no longer skinny, and a BLAS does as well.
inline constexpr std::int64_t max_rank = 64;

/// z = (x * mask) A^T.
template <class T>
void to_low_rank(float* z, const T* x, const float* a, std::int64_t width, std::int64_t rank,
                 const KeepMask& mask, std::int64_t first, std::int64_t end, Isa isa = best_isa()) {
  using namespace detail;
  std::fill(z + first * rank, z + end * rank, 0.0F);
  for_tiles(x, width, mask, first, end, isa,
            [&](const Place& place, const Strided& part, const Tile&) {
              add_dots(z + place.row * rank, part, {a + place.column, width}, place.rows(), rank,
                       place.columns(), isa);
            });
}

/// y += z B^T, in place.
template <class T>
void add_from_low_rank(T* y, const float* z, const float* b, std::int64_t width, std::int64_t rank,
                       std::int64_t first, std::int64_t end, Isa isa = best_isa()) {
  using namespace detail;
  for (Place place{width, end, first}; place.exists(); place = place.next())
    add_product(Output<T>{y + place.offset(), width, place.ahead()}, ones(),
                {z + place.row * rank, rank}, {b + place.column, width}, place.rows(), rank,
                place.columns(), isa);
}

/// The gradients of y += z B^T from that of y: gz = gy B and, added to what is there, the transpose
/// gb += z^T gy [rank, width] of B's, in one pass over gy. gz or gb may be null.
template <class T>
void add_from_low_rank_backward(float* gz, float* gb, const T* gy, const float* z, const float* b,
                                std::int64_t width, std::int64_t rank, std::int64_t first,
                                std::int64_t end, Isa isa = best_isa()) {
  using namespace detail;
  if (gz != nullptr) std::fill(gz + first * rank, gz + end * rank, 0.0F);
  for_tiles(gy, width, KeepMask(), first, end, isa,
            [&](const Place& place, const Strided& part, const Tile&) {
              const std::int64_t rows = place.rows(), columns = place.columns();
              Strided again = part;
              if (gz != nullptr) {
                add_dots(gz + place.row * rank, part, {b + place.column, width}, rows, rank,
                         columns, isa);
                again.ahead = 0;
              }
              if (gb != nullptr)
                add_product(Output<float>{gb + place.column, width}, ones(),
                            {z + place.row * rank, 1, rank}, again, rank, rows, columns, isa);
            });
}

/// The gradients of z = (x * mask) A^T from that of z, added to what is there: gx += mask * (gz A)
/// and ga += gz^T (x * mask) [rank, width], in one pass over x and gx. ga or gx may be null.
template <class T>
void to_low_rank_backward(float* ga, T* gx, const T* x, const float* gz, const float* a,
                          std::int64_t width, std::int64_t rank, const KeepMask& mask,
                          std::int64_t first, std::int64_t end, Isa isa = best_isa()) {
  using namespace detail;
  for_tiles(x, width, mask, first, end, isa,
            [&](const Place& place, const Strided& part, const Tile& tile) {
              const std::int64_t rows = place.rows(), columns = place.columns();
              const float* const g = gz + place.row * rank;
              if (ga != nullptr)
                add_product(Output<float>{ga + place.column, width}, ones(), {g, 1, rank}, part,
                            rank, rows, columns, isa);
              if (gx != nullptr)
                add_product(Output<T>{gx + place.offset(), width, place.ahead()},
                            mask.keeps_all() ? ones() : Factors{tile.factors, tile_columns},
                            {g, rank}, {a + place.column, width}, rows, rank, columns, isa);
            });
}

/// sum[i] = parts[0][i] + parts[1][i] + ..., in that order, for i < size; zeros for no parts. The
/// first part may be the sum.
inline void add_up(float* sum, const float* parts, std::int64_t count, std::int64_t size,
                   Isa isa = best_isa()) {
  dispatch(isa, [=]<int W>() DROPPEFT_INLINE {
    for_packs<W>(size, [=]<int N>(std::int64_t i) DROPPEFT_INLINE {
      Pack<float, N> total{};
      for (std::int64_t part = 0; part < count; ++part) {
        Pack<float, N> more;
        load(more, parts + part * size + i);
        total += more;
      }
      store(sum + i, total);
    });
  });
}

/// out[j][i] = scale in[i][j], for in [rows, columns].
inline void transpose(float* out, const float* in, std::int64_t rows, std::int64_t columns,
                      float scale) {
  for (std::int64_t j = 0; j < columns; ++j)
    for (std::int64_t i = 0; i < rows; ++i) out[j * rows + i] = scale * in[i * columns + j];
}

}  // namespace droppeft::cpu
