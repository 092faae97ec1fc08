#pragma once

#include <algorithm>
#include <cstdint>

#include "droppeft/core/check.hpp"
#include "droppeft/kernels/cuda/lanes.cuh"
#include "droppeft/kernels/keep_mask.hpp"

/// The products of a low-rank adapter with matrices of `rows` rows, `width` columns, of type T, of
/// which each is read or written once, its dropout made anew:
///
///     to_low_rank          z = (x * mask) a^T        z [rows, rank], a [rank, width]
///     add_from_low_rank    y += mask * (z a)
///     low_rank_gradient    g = z^T (x * mask)        g [rank, width]
///
/// So y += scale (x * mask) A^T B^T is to_low_rank with A, add_from_low_rank with B^T; and of its
/// gradients that of z is to_low_rank of dy with B^T, those of A and B^T are low_rank_gradient,
/// that of x is add_from_low_rank with A. All but x and y are floats, and sums are. Contiguous, in
/// device memory, of any alignment, but rows of whole vectors of 16 bytes are fastest. For ranks of
/// at most about 16: above, arithmetic takes longer than memory, and matrix units (cuBLAS) are
/// faster.
///
/// Each function returns what its launch returned, does not wait, and throws std::invalid_argument
/// for sizes out of range.
namespace droppeft::cuda {

namespace detail {

constexpr int skinny_rows = 4;   // of x or y, that a warp works on at once
constexpr int skinny_ranks = 8;  // of a, likewise
constexpr int skinny_warps = 4;

/// Floats of a chunk of a row, in the columns that a lane has of rows of type T.
template <class T, bool Whole>
__device__ void load_floats(float (&numbers)[lane_numbers], const float* row, int first, int width,
                            int lane) {
#pragma unroll
  for (int v = 0; v < lane_numbers; v += 4) {
    const int column = first + lane_column<T>(lane, v);
    if constexpr (Whole) {
      const float4 four =
          column < width ? *reinterpret_cast<const float4*>(row + column) : make_float4(0, 0, 0, 0);
      numbers[v] = four.x;
      numbers[v + 1] = four.y;
      numbers[v + 2] = four.z;
      numbers[v + 3] = four.w;
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) numbers[v + i] = column + i < width ? row[column + i] : 0;
    }
  }
}

/// x * mask of a chunk of a row; zeros for width 0. All lanes of a warp must call it together.
template <class T>
__device__ void load_masked(float (&numbers)[lane_numbers], const Packed<T>& eight,
                            const KeepMask& mask, std::uint64_t block, int lane) {
  const unsigned kept = mask.keeps_all() ? ~0U : keep_bits<T>(mask, block, lane);
#pragma unroll
  for (int i = 0; i < lane_numbers; ++i)
    numbers[i] = number(eight, i) * ((kept >> i & 1) != 0 ? mask.scale : 0.0F);
}

__device__ inline std::uint64_t mask_block(std::int64_t row, int first, std::int64_t width) {
  return static_cast<std::uint64_t>(row * KeepMask::blocks(width)) +
         static_cast<unsigned>(first) / static_cast<unsigned>(KeepMask::block_size);
}

/// sums[0] of lane l becomes the sum over the warp of sums[l].
template <int Step = warp_size / 2>
__device__ void sum_each_of_warp(float (&sums)[warp_size], int lane) {
  const bool upper = (lane & Step) != 0;
#pragma unroll
  for (int i = 0; i < Step; ++i) {
    const float given = upper ? sums[i] : sums[i + Step];
    const float own = upper ? sums[i + Step] : sums[i];
    sums[i] = own + __shfl_xor_sync(all_lanes, given, Step);
  }
  if constexpr (Step > 1) sum_each_of_warp<Step / 2>(sums, lane);
}

}  // namespace detail

/// A group has four rows and eight ranks; its warps take the chunks in turn.
template <class T, bool Whole>
__global__ void __launch_bounds__(warp_size* detail::skinny_warps)
    to_low_rank_kernel(float* z, const T* x, const float* a, std::int64_t rows, std::int64_t width,
                       std::int64_t rank, KeepMask mask) {
  using namespace detail;
  mask = in_this_run(mask);
  static_assert(skinny_rows * skinny_ranks == warp_size);
  __shared__ float shared[skinny_warps][warp_size];
  const int lane = static_cast<int>(threadIdx.x), columns = static_cast<int>(width);
  const std::int64_t row = std::int64_t{blockIdx.x} * skinny_rows;
  const std::int64_t first_rank = std::int64_t{blockIdx.y} * skinny_ranks;
  float sums[warp_size];
#pragma unroll
  for (int i = 0; i < warp_size; ++i) sums[i] = 0;
  for (int first = chunk_columns * static_cast<int>(threadIdx.y); first < columns;
       first += chunk_columns * skinny_warps) {
    Packed<T> eight[skinny_rows];
    float numbers[skinny_rows][lane_numbers];
#pragma unroll
    for (int r = 0; r < skinny_rows; ++r)
      load_chunk<Whole>(eight[r], x + (row + r) * width, first, row + r < rows ? columns : 0, lane);
#pragma unroll
    for (int r = 0; r < skinny_rows; ++r)
      load_masked(numbers[r], eight[r], mask, mask_block(row + r, first, width), lane);
#pragma unroll
    for (int k = 0; k < skinny_ranks; ++k) {
      float factors[lane_numbers];
      load_floats<T, Whole>(factors, a + (first_rank + k) * width, first,
                            first_rank + k < rank ? columns : 0, lane);
#pragma unroll
      for (int r = 0; r < skinny_rows; ++r)
#pragma unroll
        for (int i = 0; i < lane_numbers; ++i)
          sums[r * skinny_ranks + k] += numbers[r][i] * factors[i];
    }
  }
  sum_each_of_warp(sums, lane);
  shared[threadIdx.y][threadIdx.x] = sums[0];
  __syncthreads();
  const std::int64_t its_row = row + lane / skinny_ranks;
  const std::int64_t its_rank = first_rank + lane % skinny_ranks;
  if (threadIdx.y != 0 || its_row >= rows || its_rank >= rank) return;
  float sum = sums[0];
  for (int warp = 1; warp < skinny_warps; ++warp) sum += shared[warp][threadIdx.x];
  z[its_row * rank + its_rank] = sum;
}

/// A warp has a chunk of four rows.
template <class T, bool Whole>
__global__ void __launch_bounds__(warp_size* detail::skinny_warps)
    add_from_low_rank_kernel(T* y, const float* z, const float* a, std::int64_t rows,
                             std::int64_t width, std::int64_t rank, KeepMask mask) {
  using namespace detail;
  mask = in_this_run(mask);
  const int lane = static_cast<int>(threadIdx.x), columns = static_cast<int>(width);
  const std::int64_t row = skinny_rows * (std::int64_t{blockIdx.x} * skinny_warps + threadIdx.y);
  const int first = chunk_columns * static_cast<int>(blockIdx.y);
  if (row >= rows) return;
  Packed<T> eight[skinny_rows];
  unsigned kept[skinny_rows];
  float sums[skinny_rows][lane_numbers];
#pragma unroll
  for (int r = 0; r < skinny_rows; ++r) {
    load_chunk<Whole>(eight[r], y + (row + r) * width, first, row + r < rows ? columns : 0, lane);
    kept[r] = ~0U;
#pragma unroll
    for (int i = 0; i < lane_numbers; ++i) sums[r][i] = 0;
  }
  if (!mask.keeps_all()) {
#pragma unroll
    for (int r = 0; r < skinny_rows; ++r)
      kept[r] = keep_bits<T>(mask, mask_block(row + r, first, width), lane);
  }
  for (std::int64_t k = 0; k < rank; ++k) {
    float factors[lane_numbers];
    load_floats<T, Whole>(factors, a + k * width, first, columns, lane);
#pragma unroll
    for (int r = 0; r < skinny_rows; ++r) {
      const float factor = row + r < rows ? z[(row + r) * rank + k] : 0;
#pragma unroll
      for (int i = 0; i < lane_numbers; ++i) sums[r][i] += factor * factors[i];
    }
  }
#pragma unroll
  for (int r = 0; r < skinny_rows; ++r) {
    float numbers[lane_numbers];
#pragma unroll
    for (int i = 0; i < lane_numbers; ++i)
      numbers[i] = number(eight[r], i) + sums[r][i] * ((kept[r] >> i & 1) != 0 ? mask.scale : 0.0F);
    pack(eight[r], numbers);
    store_chunk<Whole>(y + (row + r) * width, eight[r], first, row + r < rows ? columns : 0, lane);
  }
}

/// A group has a chunk of columns, eight ranks and some rows, which its warps take in turn.
template <class T, bool Whole>
__global__ void __launch_bounds__(warp_size* detail::skinny_warps)
    low_rank_gradient_kernel(float* g, const float* z, const T* x, std::int64_t rows,
                             std::int64_t width, std::int64_t rank, std::int64_t pieces,
                             KeepMask mask) {
  using namespace detail;
  mask = in_this_run(mask);
  // Number i of lane l lies at 32 i + l.
  __shared__ float shared[skinny_warps - 1][warp_size * skinny_ranks * lane_numbers];
  const int lane = static_cast<int>(threadIdx.x), columns = static_cast<int>(width);
  const std::int64_t piece = blockIdx.x % pieces;
  const std::int64_t first_rank = blockIdx.x / pieces * skinny_ranks;
  const int first = chunk_columns * static_cast<int>(blockIdx.y);
  float sums[skinny_ranks][lane_numbers];
#pragma unroll
  for (int k = 0; k < skinny_ranks; ++k)
#pragma unroll
    for (int i = 0; i < lane_numbers; ++i) sums[k][i] = 0;
  const std::int64_t stride = pieces * skinny_warps * skinny_rows;
  for (std::int64_t row = (piece * skinny_warps + threadIdx.y) * skinny_rows; row < rows;
       row += stride) {
    Packed<T> eight[skinny_rows];
#pragma unroll
    for (int r = 0; r < skinny_rows; ++r)
      load_chunk<Whole>(eight[r], x + (row + r) * width, first, row + r < rows ? columns : 0, lane);
#pragma unroll
    for (int r = 0; r < skinny_rows; ++r) {
      float numbers[lane_numbers];
      load_masked(numbers, eight[r], mask, mask_block(row + r, first, width), lane);
#pragma unroll
      for (int k = 0; k < skinny_ranks; ++k) {
        const bool inside = row + r < rows && first_rank + k < rank;
        const float factor = inside ? z[(row + r) * rank + first_rank + k] : 0;
#pragma unroll
        for (int i = 0; i < lane_numbers; ++i) sums[k][i] += factor * numbers[i];
      }
    }
  }
  if (threadIdx.y > 0) {
#pragma unroll
    for (int k = 0; k < skinny_ranks; ++k)
#pragma unroll
      for (int i = 0; i < lane_numbers; ++i)
        shared[threadIdx.y - 1][warp_size * (k * lane_numbers + i) + lane] = sums[k][i];
  }
  __syncthreads();
  if (threadIdx.y > 0) return;
#pragma unroll
  for (int k = 0; k < skinny_ranks; ++k) {
    if (first_rank + k >= rank) break;
    float* const to = g + (piece * rank + first_rank + k) * width;
#pragma unroll
    for (int v = 0; v < lane_numbers; v += 4) {
      float all[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        all[i] = sums[k][v + i];
        for (int warp = 0; warp < skinny_warps - 1; ++warp)
          all[i] += shared[warp][warp_size * (k * lane_numbers + v + i) + lane];
      }
      const int column = first + lane_column<T>(lane, v);
      if constexpr (Whole) {
        if (column < columns)
          *reinterpret_cast<float4*>(to + column) = make_float4(all[0], all[1], all[2], all[3]);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (column + i < columns) to[column + i] = all[i];
      }
    }
  }
}

namespace detail {

inline void check_skinny(const char* function, std::int64_t rows, std::int64_t width,
                         std::int64_t rank) {
  constexpr std::int64_t widest = std::int64_t{chunk_columns} * 65535;  // groups along y
  check(rows >= 0 && width >= 0 && width <= widest && rank >= 0 && rank <= widest,
        "cuda::", function, ": rows must not be negative, width and rank in [0, ", widest,
        "], got ", rows, ", ", width, " and ", rank);
}

inline unsigned groups_of(std::int64_t count, std::int64_t size) {
  return static_cast<unsigned>((count + size - 1) / size);
}

}  // namespace detail

template <class T>
cudaError_t to_low_rank(float* z, const T* x, const float* a, std::int64_t rows, std::int64_t width,
                        std::int64_t rank, const KeepMask& mask, cudaStream_t stream) {
  using namespace detail;
  check_skinny("to_low_rank", rows, width, rank);
  if (rows == 0 || rank == 0) return cudaSuccess;
  auto* const kernel =
      takes_vectors<T>(width, x, a) ? to_low_rank_kernel<T, true> : to_low_rank_kernel<T, false>;
  return launch(kernel, {groups_of(rows, skinny_rows), groups_of(rank, skinny_ranks)},
                {warp_size, skinny_warps}, stream, z, x, a, rows, width, rank, mask);
}

template <class T>
cudaError_t add_from_low_rank(T* y, const float* z, const float* a, std::int64_t rows,
                              std::int64_t width, std::int64_t rank, const KeepMask& mask,
                              cudaStream_t stream) {
  using namespace detail;
  check_skinny("add_from_low_rank", rows, width, rank);
  if (rows == 0 || width == 0 || rank == 0) return cudaSuccess;
  auto* const kernel = takes_vectors<T>(width, y, a) ? add_from_low_rank_kernel<T, true>
                                                     : add_from_low_rank_kernel<T, false>;
  return launch(kernel,
                {groups_of(rows, skinny_rows * skinny_warps), groups_of(width, chunk_columns)},
                {warp_size, skinny_warps}, stream, y, z, a, rows, width, rank, mask);
}

/// Writes gradients [pieces, rank, width], of which each sums some of the rows, to be added up by
/// sum_of_rows() as a matrix of `pieces` rows: always in the same order, which `pieces` >= 1 alone
/// settles.
template <class T>
cudaError_t low_rank_gradient(float* gradients, const float* z, const T* x, std::int64_t rows,
                              std::int64_t width, std::int64_t rank, std::int64_t pieces,
                              const KeepMask& mask, cudaStream_t stream) {
  using namespace detail;
  check_skinny("low_rank_gradient", rows, width, rank);
  check(pieces >= 1 && pieces <= 65535,
        "cuda::low_rank_gradient: pieces must be in [1, 65535], got ", pieces);
  if (width == 0 || rank == 0) return cudaSuccess;
  auto* const kernel = takes_vectors<T>(width, x, gradients) ? low_rank_gradient_kernel<T, true>
                                                             : low_rank_gradient_kernel<T, false>;
  const auto groups = static_cast<unsigned>(pieces * groups_of(rank, skinny_ranks));
  return launch(kernel, {groups, groups_of(width, chunk_columns)}, {warp_size, skinny_warps},
                stream, gradients, z, x, rows, width, rank, pieces, mask);
}

}  // namespace droppeft::cuda
