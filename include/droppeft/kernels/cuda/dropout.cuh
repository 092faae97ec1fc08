#pragma once

#include <algorithm>
#include <cstdint>

#include "droppeft/core/check.hpp"
#include "droppeft/kernels/cuda/lanes.cuh"
#include "droppeft/kernels/keep_mask.hpp"

namespace droppeft::cuda {

/// A warp takes two blocks of the mask at a time, which need not lie in one row, and two such pairs
/// before it works on the first. `Flat`: rows are whole blocks, so that all are one row of `width`
/// numbers.
template <class T, bool Flat, bool Whole>
__global__ void __launch_bounds__(256)
    dropout_kernel(T* out, const T* x, std::int64_t width, std::int64_t blocks, KeepMask mask) {
  constexpr int n = vector_numbers<T>, vectors = lane_numbers / n, pairs = 2;
  constexpr std::int64_t size = KeepMask::block_size;
  mask = in_this_run(mask);
  const int lane = static_cast<int>(threadIdx.x);
  const std::int64_t in_a_row = KeepMask::blocks(width);
  const std::int64_t stride = std::int64_t{2 * pairs} * gridDim.x * blockDim.y;
  std::int64_t pair = 2 * pairs * (std::int64_t{blockIdx.x} * blockDim.y + threadIdx.y);
  for (; pair < blocks; pair += stride) {
    Packed<T> eight[pairs];
    std::int64_t start[pairs][vectors];
    int left[pairs][vectors];
#pragma unroll
    for (int p = 0; p < pairs; ++p)
#pragma unroll
      for (int v = 0; v < vectors; ++v) {
        const auto column = static_cast<unsigned>(lane_column<T>(lane, n * v));
        const std::int64_t block = pair + 2 * p + column / size;
        start[p][v] = size * (pair + 2 * p) + column;
        std::int64_t to_end = width - start[p][v];
        if constexpr (!Flat) {
          const std::int64_t row = block / in_a_row;
          const std::int64_t in_row = start[p][v] - size * in_a_row * row;
          start[p][v] = row * width + in_row;
          to_end = block < blocks ? width - in_row : 0;
        }
        left[p][v] = static_cast<int>(to_end < n ? to_end : n);
        load_vector<Whole>(eight[p], v, x + start[p][v], left[p][v], 0);
      }
#pragma unroll
    for (int p = 0; p < pairs; ++p) {
      const unsigned kept = keep_bits<T>(mask, static_cast<std::uint64_t>(pair + 2 * p), lane);
      float numbers[lane_numbers];
#pragma unroll
      for (int i = 0; i < lane_numbers; ++i)
        numbers[i] = number(eight[p], i) * ((kept >> i & 1) != 0 ? mask.scale : 0.0F);
      pack(eight[p], numbers);
#pragma unroll
      for (int v = 0; v < vectors; ++v)
        store_vector<Whole>(out + start[p][v], eight[p], v, left[p][v]);
    }
  }
}

/// out[r, c] = x[r, c] mask.factor(r, c, width) for a contiguous [rows, width] matrix in device
/// memory; in place too. Its own backward. T: float or BFloat16; any alignment, but rows of whole
/// vectors of 16 bytes are fastest. Returns what the launch returned; does not wait. Throws
/// std::invalid_argument for negative sizes.
template <class T>
cudaError_t dropout(T* out, const T* x, std::int64_t rows, std::int64_t width, const KeepMask& mask,
                    cudaStream_t stream) {
  check(rows >= 0 && width >= 0, "cuda::dropout: rows and width must not be negative, got ", rows,
        " and ", width);
  if (rows == 0 || width == 0) return cudaSuccess;
  constexpr unsigned warps = 8;
  constexpr std::int64_t of_group = 4 * warps, most_groups = std::int64_t{1} << 20;
  const std::int64_t blocks = rows * KeepMask::blocks(width);
  const auto groups =
      static_cast<unsigned>(std::min((blocks + of_group - 1) / of_group, most_groups));
  const bool whole = takes_vectors<T>(width, out, x);
  const bool flat = whole && width % KeepMask::block_size == 0;
  auto* const kernel = flat    ? dropout_kernel<T, true, true>
                       : whole ? dropout_kernel<T, false, true>
                               : dropout_kernel<T, false, false>;
  return launch(kernel, groups, {warp_size, warps}, stream, out, x, flat ? rows * width : width,
                blocks, mask);
}

}  // namespace droppeft::cuda
