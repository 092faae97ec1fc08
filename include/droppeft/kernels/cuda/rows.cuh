#pragma once

#include <algorithm>
#include <cstdint>

#include "droppeft/core/check.hpp"
#include "droppeft/kernels/cuda/lanes.cuh"

/// The functions of kernels/cpu/rows.hpp on the device: between a matrix x and a matrix y of
/// `count` rows, of which row i belongs to x's row rows[i]. `rows` ascends without repetition and
/// stays within x, which is not checked. Matrices of rows of `width` numbers lie in device memory
/// and do not overlap; any alignment, but rows of whole vectors of 16 bytes are fastest. Each
/// function returns what the launch returned, does not wait, and throws std::invalid_argument for
/// negative sizes.
namespace droppeft::cuda {

namespace detail {

enum class Move { gather, put, add, merge };

/// A warp has 1024 columns of one row, all in flight together.
constexpr int row_chunks = 4;
constexpr std::int64_t row_piece = row_chunks * chunk_columns;

/// How many of the ascending numbers are below `bound`.
__device__ inline std::int64_t count_below(const std::int64_t* numbers, std::int64_t count,
                                           std::int64_t bound) {
  std::int64_t first = 0;
  while (count > 0) {
    const std::int64_t half = count / 2;
    const bool below = numbers[first + half] < bound;
    if (below) first += half + 1;
    count = below ? count - half - 1 : half;
  }
  return first;
}

/// gather: out = y; put, add: out = x; merge: `written` rows of out.
template <class T, bool Whole, Move move>
__global__ void __launch_bounds__(256)
    move_rows_kernel(T* out, const T* x, const T* y, const std::int64_t* rows, float scale,
                     std::int64_t count, std::int64_t written, std::int64_t width) {
  const int lane = static_cast<int>(threadIdx.x);
  const std::int64_t pieces = (width + row_piece - 1) / row_piece;
  const std::int64_t stride = std::int64_t{gridDim.x} * blockDim.y;
  for (std::int64_t task = std::int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
       task < written * pieces; task += stride) {
    const std::int64_t i = task / pieces, column = row_piece * (task - pieces * i);
    const int left = static_cast<int>(row_piece < width - column ? row_piece : width - column);
    const T* from = move == Move::gather ? x : y;
    std::int64_t from_row = i, to_row = i;
    if constexpr (move == Move::gather) from_row = rows[i];
    if constexpr (move == Move::put || move == Move::add) to_row = rows[i];
    if constexpr (move == Move::merge) {
      const std::int64_t named = count_below(rows, count, i);
      const bool is_named = named < count && rows[named] == i;
      from = is_named ? y : x;
      from_row = is_named ? named : i;
    }
    const int to_load = from == nullptr ? 0 : left;
    const T* const in = from + (from == nullptr ? 0 : from_row * width + column);
    T* const to = out + to_row * width + column;
    Packed<T> moved[row_chunks];
#pragma unroll
    for (int c = 0; c < row_chunks; ++c)
      load_chunk<Whole>(moved[c], in, c * chunk_columns, to_load, lane);
    if constexpr (move == Move::add) {
      Packed<T> before[row_chunks];
#pragma unroll
      for (int c = 0; c < row_chunks; ++c)
        load_chunk<Whole>(before[c], to, c * chunk_columns, left, lane);
#pragma unroll
      for (int c = 0; c < row_chunks; ++c) {
        float numbers[lane_numbers];
#pragma unroll
        for (int n = 0; n < lane_numbers; ++n)
          numbers[n] = number(before[c], n) + scale * number(moved[c], n);
        pack(moved[c], numbers);
      }
    }
#pragma unroll
    for (int c = 0; c < row_chunks; ++c)
      store_chunk<Whole>(to, moved[c], c * chunk_columns, left, lane);
  }
}

template <Move move, class T>
cudaError_t move_rows(const char* function, T* out, const T* x, const T* y,
                      const std::int64_t* rows, float scale, std::int64_t count,
                      std::int64_t written, std::int64_t width, cudaStream_t stream) {
  check(count >= 0 && written >= 0 && width >= 0, "cuda::", function,
        ": numbers of rows and width must not be negative, got ", count, ", ", written, " and ",
        width);
  if (written == 0 || width == 0) return cudaSuccess;
  constexpr unsigned warps = 8;
  constexpr std::int64_t most_groups = std::int64_t{1} << 20;
  const std::int64_t tasks = written * ((width + row_piece - 1) / row_piece);
  const auto groups = static_cast<unsigned>(std::min((tasks + warps - 1) / warps, most_groups));
  auto* const kernel = takes_vectors<T>(width, out, x, y) ? move_rows_kernel<T, true, move>
                                                          : move_rows_kernel<T, false, move>;
  return launch(kernel, groups, {warp_size, warps}, stream, out, x, y, rows, scale, count, written,
                width);
}

}  // namespace detail

/// y[i] = x[rows[i]].
template <class T>
cudaError_t gather_rows(T* y, const T* x, const std::int64_t* rows, std::int64_t count,
                        std::int64_t width, cudaStream_t stream) {
  const T* const none = nullptr;
  return detail::move_rows<detail::Move::gather>("gather_rows", y, x, none, rows, 1, count, count,
                                                 width, stream);
}

/// x[rows[i]] = y[i].
template <class T>
cudaError_t put_rows(T* x, const T* y, const std::int64_t* rows, std::int64_t count,
                     std::int64_t width, cudaStream_t stream) {
  const T* const none = nullptr;
  return detail::move_rows<detail::Move::put>("put_rows", x, none, y, rows, 1, count, count, width,
                                              stream);
}

/// out[r] = y[i] where r = rows[i], and x[r] elsewhere, for r < all_rows; null x or y stand for
/// zeros.
template <class T>
cudaError_t merge_rows(T* out, const T* x, const T* y, const std::int64_t* rows, std::int64_t count,
                       std::int64_t all_rows, std::int64_t width, cudaStream_t stream) {
  return detail::move_rows<detail::Move::merge>("merge_rows", out, x, y, rows, 1, count, all_rows,
                                                width, stream);
}

/// x[rows[i]] += scale y[i]. T: float or BFloat16, which is rounded once.
template <class T>
cudaError_t scatter_add_rows(T* x, const T* y, const std::int64_t* rows, float scale,
                             std::int64_t count, std::int64_t width, cudaStream_t stream) {
  const T* const none = nullptr;
  return detail::move_rows<detail::Move::add>("scatter_add_rows", x, none, y, rows, scale, count,
                                              count, width, stream);
}

}  // namespace droppeft::cuda
