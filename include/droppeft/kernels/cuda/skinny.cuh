#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "droppeft/core/check.hpp"
#include "droppeft/kernels/cuda/lanes.cuh"
#include "droppeft/kernels/keep_mask.hpp"

/// The products of a low-rank adapter with matrices of `rows` rows, `width` columns, of type T, of
/// which each is read or written once for eight ranks, its dropout made anew:
///
///     to_low_rank          z = (x * mask) a^T        z [rows, rank], a [rank, width]
///     add_from_low_rank    y += mask * (z a)
///     low_rank_gradient    g = z^T (x * mask)        g [rank, width]
///
/// So y += scale (x * mask) A^T B^T is to_low_rank with A, add_from_low_rank with B^T; and of its
/// gradients that of z is to_low_rank of dy with B^T, those of A and B^T are low_rank_gradient,
/// that of x is add_from_low_rank with A. All but x and y are floats, and sums are. Contiguous, in
/// device memory, of any alignment, but rows of whole vectors of 16 bytes are fastest.
///
/// The first and the last multiply on matrix units in TF32, floats as sums of two such numbers, so
/// that products are right to 2^-22; infinite numbers give NaN. The units round sums towards zero,
/// so only short ones are left to them.
///
/// Each function returns what its launch returned, does not wait, and throws std::invalid_argument
/// for sizes out of range.
namespace droppeft::cuda {

namespace detail {

// On matrix units a warp works on one block of KeepMask, 128 columns, of some rows, and a lane on
// columns that whole Philox blocks tell of, so that nobody needs another's bits; with g = lane / 4,
// t = lane % 4 and h < 8 these are
//
//     to_low_rank          rows g, g + 8     columns 16 h + 4 t + i, i < 4
//     low_rank_gradient    rows t, t + 4     columns 16 h + 2 g + i, i < 2
//
// Which of them is which column of the unit's operands is free: what a lane has is what it gives.
constexpr int tile_rows = 16;
constexpr int tile_ranks = 8;
constexpr int tile_columns = static_cast<int>(KeepMask::block_size);
constexpr int tile_halves = tile_columns / 16;
constexpr int most_warps = 8;
constexpr int gradient_warps = 4;
// Adding, without them: a warp works on four rows and a chunk of columns.
constexpr int skinny_rows = 4;
constexpr int skinny_warps = 4;
/// How many of the sixteens of columns are loaded before they are worked on.
template <class T>
constexpr int loaded_halves = sizeof(T) == sizeof(float) ? tile_halves / 2 : tile_halves;

/// A float as the sum of two numbers of TF32, to 2^-23.
struct Tf32Pair {
  std::uint32_t high, low;
};

__device__ inline Tf32Pair split(float number) {
  Tf32Pair pair;
#if defined(__CUDA_ARCH__)
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(pair.high) : "f"(number));
#else
  pair.high = (__float_as_uint(number) + 0x1000) & 0xFFFFE000;
#endif
  pair.low = __float_as_uint(number - __uint_as_float(pair.high));
  return pair;
}

/// d += a b for a [16, 8], b [8, 8], which lanes have as mma.m16n8k8 says.
__device__ inline void multiply_tiles(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                      std::uint32_t b1) {
#if defined(__CUDA_ARCH__)
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  __shared__ std::uint32_t of_lanes[warp_size][warp_size][6];
  auto& given = of_lanes[threadIdx.y];
  const int lane = static_cast<int>(threadIdx.x), g = lane / 4, t = lane % 4;
  std::copy_n(a, 4, given[lane]);
  given[lane][4] = b0, given[lane][5] = b1;
  __ballot_sync(all_lanes, true);
  const auto number = [&](int its_lane, int i) {
    return __uint_as_float(given[its_lane][i] & 0xFFFFE000);
  };
  for (int k = 0; k < 8; ++k)
    for (int i = 0; i < 4; ++i)
      d[i] +=
          number(4 * g + k % 4, k / 4 * 2 + i / 2) * number(4 * (2 * t + i % 2) + k % 4, 4 + k / 4);
  __ballot_sync(all_lanes, true);
#endif
}

/// The same for floats; `Exact`: those of a are numbers of TF32, as those of BFloat16 are.
template <bool Exact>
__device__ inline void multiply_floats(float (&d)[4], const float (&a)[4], Tf32Pair b0,
                                       Tf32Pair b1) {
  std::uint32_t high[4], low[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const Tf32Pair pair = split(a[i]);
    high[i] = Exact ? __float_as_uint(a[i]) : pair.high;
    low[i] = pair.low;
  }
  if constexpr (!Exact) multiply_tiles(d, low, b0.high, b1.high);
  multiply_tiles(d, high, b0.low, b1.low);
  multiply_tiles(d, high, b0.high, b1.high);
}

/// Count numbers that lie in a row, as they are in memory.
template <class T, int Count>
struct alignas(Count * sizeof(T)) Few {
  std::uint32_t word[Count * sizeof(T) / 4];

  __device__ float number(int i) const {
    if constexpr (sizeof(T) == 4)
      return __uint_as_float(word[i]);
    else
      return __uint_as_float(i % 2 == 0 ? word[i / 2] << 16 : word[i / 2] & 0xFFFF0000);
  }
};

/// Of the numbers at `at` the first `left`; zeros for the others. `Whole`: all or none, in one
/// load.
template <bool Whole, class T, int Count>
__device__ inline void load_few(Few<T, Count>& few, const T* at, int left) {
  if constexpr (Whole) {
    few = left > 0 ? *reinterpret_cast<const Few<T, Count>*>(at) : Few<T, Count>{};
  } else {
#pragma unroll
    for (unsigned& word : few.word) word = 0;
#pragma unroll
    for (int i = 0; i < Count; ++i)
      if (i < left) few.word[i * sizeof(T) / 4] |= bits_of(at[i]) << i * 8 * sizeof(T) % 32;
  }
}

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

/// What tells of the numbers that this lane has of a row: Philox blocks `first` to first + Count -
/// 1 of the mask's block; ones where nothing is dropped.
template <int Count>
__device__ inline void mask_of_row(PhiloxBlock (&words)[Count], const KeepMask& mask,
                                   std::uint64_t block, int first) {
#pragma unroll
  for (int i = 0; i < Count; ++i)
    words[i] = mask.keeps_all() ? PhiloxBlock{{~0U, ~0U, ~0U, ~0U}}
                                : mask_words(mask, 16 * block + static_cast<unsigned>(first + i));
}

/// Does the mask keep the number that half `h` of these words tells of?
__device__ inline bool keeps(const PhiloxBlock& words, int h, std::uint32_t least) {
  const std::uint32_t word = words.word[h / 2];
  return (h % 2 == 0 ? word << 16 : word) >= least;
}

__device__ inline std::uint64_t mask_block(std::int64_t row, int first, std::int64_t width) {
  return static_cast<std::uint64_t>(row * KeepMask::blocks(width)) +
         static_cast<unsigned>(first) / static_cast<unsigned>(tile_columns);
}

}  // namespace detail

/// A group has 16 rows and eight ranks; its warps take the blocks of columns in turn.
template <class T, bool Whole>
__global__ void __launch_bounds__(warp_size* detail::most_warps, 2)
    to_low_rank_kernel(float* z, const T* x, const float* a, std::int64_t rows, std::int64_t width,
                       std::int64_t rank, KeepMask mask) {
  using namespace detail;
  mask = in_this_run(mask);
  __shared__ float shared[most_warps][tile_rows][tile_ranks];
  const int lane = static_cast<int>(threadIdx.x), g = lane / 4, t = lane % 4;
  const int columns = static_cast<int>(width);
  const std::uint32_t least = mask.threshold << 16;
  const std::int64_t row = std::int64_t{blockIdx.x} * tile_rows + g;
  const std::int64_t first_rank = std::int64_t{blockIdx.y} * tile_ranks;
  const float* const factors = a + (first_rank + g) * width;
  const int factor_columns = first_rank + g < rank ? columns : 0;
  float sums[4] = {};
  for (int first = tile_columns * static_cast<int>(threadIdx.y); first < columns;
       first += tile_columns * static_cast<int>(blockDim.y)) {
    PhiloxBlock words[2][4];
    float of_block[4] = {};
#pragma unroll
    for (int start = 0; start < tile_halves; start += loaded_halves<T>) {
      Few<T, 4> few[2][loaded_halves<T>];
#pragma unroll
      for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int h = 0; h < loaded_halves<T>; ++h) {
          const int column = first + 16 * (start + h) + 4 * t;
          const int left = row + 8 * r < rows ? columns - column : 0;
          load_few<Whole>(few[r][h], x + (row + 8 * r) * width + column, left);
        }
      if (start == 0)
#pragma unroll
        for (int r = 0; r < 2; ++r)
          mask_of_row(words[r], mask, mask_block(row + 8 * r, first, width), 4 * t);
#pragma unroll
      for (int h = 0; h < loaded_halves<T>; h += 2) {
        Few<float, 4> factor[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int column = first + 16 * (start + h + j) + 4 * t;
          load_few<Whole>(factor[j], factors + column, factor_columns - column);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float numbers[4];
#pragma unroll
          for (int r = 0; r < 2; ++r)
#pragma unroll
            for (int j = 0; j < 2; ++j)
              numbers[r + 2 * j] =
                  keeps(words[r][i], start + h + j, least) ? few[r][h + j].number(i) : 0;
          multiply_floats<sizeof(T) == 2>(of_block, numbers, split(factor[0].number(i)),
                                          split(factor[1].number(i)));
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] += of_block[i];
  }
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int n = 0; n < 2; ++n) shared[threadIdx.y][g + 8 * r][2 * t + n] = sums[2 * r + n];
  __syncthreads();
  const int threads = warp_size * static_cast<int>(blockDim.y);
  for (int i = warp_size * static_cast<int>(threadIdx.y) + lane; i < tile_rows * tile_ranks;
       i += threads) {
    const std::int64_t its_row = std::int64_t{blockIdx.x} * tile_rows + i / tile_ranks;
    const std::int64_t its_rank = first_rank + i % tile_ranks;
    if (its_row >= rows || its_rank >= rank) continue;
    float sum = 0;
    for (unsigned warp = 0; warp < blockDim.y; ++warp)
      sum += shared[warp][i / tile_ranks][i % tile_ranks];
    z[its_row * rank + its_rank] = sum * mask.scale;
  }
}

/// A warp has a chunk of four rows.
template <class T, bool Whole>
__global__ void __launch_bounds__(warp_size* detail::skinny_warps)
    add_from_low_rank_kernel(T* y, const float* z, const float* a, std::int64_t rows,
                             std::int64_t width, std::int64_t rank, KeepMask mask) {
  using namespace detail;
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
    const KeepMask its_mask = in_this_run(mask);
#pragma unroll
    for (int r = 0; r < skinny_rows; ++r)
      kept[r] = keep_bits<T>(its_mask, mask_block(row + r, first, width), lane);
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

/// A group has a block of columns, eight ranks and some rows, which its warps take in turn.
template <class T, bool Whole>
__global__ void __launch_bounds__(warp_size* detail::gradient_warps, 4)
    low_rank_gradient_kernel(float* g, const float* z, const T* x, std::int64_t rows,
                             std::int64_t width, std::int64_t rank, std::int64_t pieces,
                             KeepMask mask) {
  using namespace detail;
  mask = in_this_run(mask);
  constexpr int warps = gradient_warps;
  __shared__ float shared[warps][tile_ranks][tile_columns + 4];
  const int lane = static_cast<int>(threadIdx.x), group = lane / 4, t = lane % 4;
  const int columns = static_cast<int>(width);
  const std::uint32_t least = mask.threshold << 16;
  const std::int64_t piece = blockIdx.x % pieces;
  const std::int64_t first_rank = blockIdx.x / pieces * tile_ranks;
  const int first = tile_columns * static_cast<int>(blockIdx.y);
  float sums[tile_halves][4] = {};
  const std::int64_t stride = pieces * warps * 8;
  for (std::int64_t start = (piece * warps + threadIdx.y) * 8; start < rows; start += stride) {
    Few<T, 2> few[2][tile_halves];
    PhiloxBlock words[2][2];
    Tf32Pair inner[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const std::int64_t row = start + t + 4 * r;
      const bool inside = row < rows;
#pragma unroll
      for (int h = 0; h < tile_halves; ++h) {
        const int column = first + 16 * h + 2 * group;
        load_few<Whole>(few[r][h], x + row * width + column, inside ? columns - column : 0);
      }
      const bool wanted = inside && first_rank + group < rank;
      inner[r] = split(wanted ? z[row * rank + first_rank + group] : 0);
      mask_of_row(words[r], mask, mask_block(row, first, width), 2 * group);
    }
#pragma unroll
    for (int h = 0; h < tile_halves; ++h) {
      float numbers[4];
#pragma unroll
      for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int i = 0; i < 2; ++i)
          numbers[i + 2 * r] = keeps(words[r][i], h, least) ? few[r][h].number(i) : 0;
      float of_rows[4] = {};
      multiply_floats<sizeof(T) == 2>(of_rows, numbers, inner[0], inner[1]);
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[h][i] += of_rows[i];
    }
  }
  // Row m of the unit's is column 2 (m % 8) + m / 8 of the sixteen.
#pragma unroll
  for (int h = 0; h < tile_halves; ++h)
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int n = 0; n < 2; ++n)
        shared[threadIdx.y][2 * t + n][16 * h + 2 * group + i] = sums[h][2 * i + n];
  __syncthreads();
  for (int k = static_cast<int>(threadIdx.y); k < tile_ranks && first_rank + k < rank; k += warps)
    for (int c = lane; c < tile_columns && first + c < columns; c += warp_size) {
      float sum = 0;
#pragma unroll
      for (int warp = 0; warp < warps; ++warp) sum += shared[warp][k][c];
      g[(piece * rank + first_rank + k) * width + first + c] = sum * mask.scale;
    }
}

namespace detail {

inline void check_skinny(const char* function, std::int64_t rows, std::int64_t width,
                         std::int64_t rank) {
  constexpr std::int64_t most_groups = 65535;  // along y
  constexpr std::int64_t widest = tile_columns * most_groups, highest = tile_ranks * most_groups;
  check(rows >= 0 && width >= 0 && width <= widest && rank >= 0 && rank <= highest,
        "cuda::", function, ": rows must not be negative, width in [0, ", widest,
        "] and rank in [0, ", highest, "], got ", rows, ", ", width, " and ", rank);
}

inline unsigned groups_of(std::int64_t count, std::int64_t size) {
  return static_cast<unsigned>((count + size - 1) / size);
}

/// Warps for the blocks of columns of a row.
inline unsigned warps_of(std::int64_t width) {
  return std::min<unsigned>(most_warps, groups_of(width, tile_columns));
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
  return launch(kernel, {groups_of(rows, tile_rows), groups_of(rank, tile_ranks)},
                {warp_size, std::max(warps_of(width), 1U)}, stream, z, x, a, rows, width, rank,
                mask);
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
  check(pieces >= 1 && pieces <= 16384,  // times groups of ranks
        "cuda::low_rank_gradient: pieces must be in [1, 16384], got ", pieces);
  if (width == 0 || rank == 0) return cudaSuccess;
  auto* const kernel = takes_vectors<T>(width, x) ? low_rank_gradient_kernel<T, true>
                                                  : low_rank_gradient_kernel<T, false>;
  const auto groups = static_cast<unsigned>(pieces * groups_of(rank, tile_ranks));
  return launch(kernel, {groups, groups_of(width, tile_columns)}, {warp_size, gradient_warps},
                stream, gradients, z, x, rows, width, rank, pieces, mask);
}

}  // namespace droppeft::cuda
