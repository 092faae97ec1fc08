#pragma once

#include <algorithm>
#include <cstdint>

#include "droppeft/core/check.hpp"
#include "droppeft/kernels/cuda/lanes.cuh"
#include "droppeft/kernels/cuda/slots.hpp"

namespace droppeft::cuda {

using cpu::DropoutAddNorm;
using cpu::Norm;

namespace detail {

/// A row is worked on by blockDim.y warps, a group of threads works on blockDim.z rows at once. All
/// threads of a group must call this together; `shared` takes `Sums` numbers for each of at most 16
/// warps. The sums are the same bits in each of a row's threads.
template <int Sums>
__device__ void sum_of_row(float (&sums)[Sums], float (*shared)[Sums]) {
#pragma unroll
  for (int i = 0; i < Sums; ++i) sums[i] = sum_of_warp(sums[i]);
  if (blockDim.y == 1) return;
  __syncthreads();  // what was written here before has been read
  if (threadIdx.x == 0) {
#pragma unroll
    for (int i = 0; i < Sums; ++i) shared[threadIdx.z * blockDim.y + threadIdx.y][i] = sums[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < Sums; ++i) {
    sums[i] = 0;
    for (unsigned warp = 0; warp < blockDim.y; ++warp)
      sums[i] += shared[threadIdx.z * blockDim.y + warp][i];
  }
}

/// The mask block in which this warp's columns of the branch's row `row` begin; any for row < 0.
template <int Chunks>
__device__ std::uint64_t first_block(std::int64_t row, std::int64_t width) {
  return static_cast<std::uint64_t>(row * KeepMask::blocks(width)) + 2 * Chunks * threadIdx.y;
}

/// keep_bits of each of a warp's chunks of the branch, from mask block `block` on. All lanes of a
/// warp must call it together.
template <int Chunks, class T>
__device__ void keep_bits_of_row(unsigned (&kept)[Chunks], const DropoutAddNorm<T>& call,
                                 std::uint64_t block, int lane) {
#pragma unroll
  for (int c = 0; c < Chunks; ++c) kept[c] = ~0U;
  if (call.mask.keeps_all()) return;
#pragma unroll
  for (int c = 0; c < Chunks; ++c)
    kept[c] = keep_bits<T>(call.mask, block + 2 * static_cast<unsigned>(c), lane);
}

/// Is number i of a lane before the end of the row? Where vectors end with it, their first number
/// tells.
template <bool Whole, class T>
__device__ bool in_row(int first, int lane, int i, int width) {
  return first + lane_column<T>(lane, Whole ? i - i % vector_numbers<T> : i) < width;
}

/// The threads of a group: warps for a row of `chunks` chunks with at most `most` for each warp,
/// and as many rows as make eight warps of them.
inline dim3 norm_group(std::int64_t chunks, std::int64_t most) {
  const auto warps = static_cast<unsigned>((chunks + most - 1) / most);
  return {warp_size, warps, std::max(8 / warps, 1U)};
}

template <class T>
std::int64_t norm_chunks(const char* function, const DropoutAddNorm<T>& call, std::int64_t rows) {
  check(rows >= 0, "cuda::", function, ": rows must not be negative, got ", rows);
  check(call.width >= 1 && call.width <= widest_normed_row, "cuda::", function,
        ": the width must be in [1, ", widest_normed_row, "], got ", call.width);
  return (call.width + chunk_columns - 1) / chunk_columns;
}

}  // namespace detail

/// Chunks: how many of its row a warp has, all in registers.
template <class T, int Chunks, bool Whole>
__global__ void __launch_bounds__(256)
    dropout_add_norm_kernel(DropoutAddNorm<T> call, const T* branch, const T* residual,
                            const T* bias, T* y, T* sum, float* mean, float* rstd,
                            std::int64_t rows) {
  __shared__ float shared[16][1];
  call.mask = in_this_run(call.mask);
  const int lane = static_cast<int>(threadIdx.x);
  const int width = static_cast<int>(call.width);
  const auto inverse_width = 1 / static_cast<float>(width);
  const bool centred = call.norm == Norm::layer;
  const std::int64_t row = std::int64_t{blockIdx.x} * blockDim.z + threadIdx.z;
  const bool inside = row < rows;
  const auto first = [](int chunk) {
    return chunk_columns * (static_cast<int>(threadIdx.y) * Chunks + chunk);
  };

  const std::int64_t added_row = !inside                      ? -1
                                 : call.branch_row == nullptr ? row
                                                              : call.branch_row[row];
  const std::uint64_t block = detail::first_block<Chunks>(added_row, width);
  const int branch_width = added_row < 0 ? 0 : width;
  const int residual_width = inside && residual != nullptr ? width : 0;
  const int out_width = inside ? width : 0, sum_width = sum == nullptr ? 0 : out_width;
  Packed<T> value[Chunks], added[Chunks];
#pragma unroll
  for (int c = 0; c < Chunks; ++c) {
    load_chunk<Whole>(added[c], branch + added_row * branch_width, first(c), branch_width, lane);
    load_chunk<Whole>(value[c], residual + row * residual_width, first(c), residual_width, lane);
  }

  unsigned kept[Chunks];
  detail::keep_bits_of_row(kept, call, block, lane);
  const float scale = call.scale * call.mask.scale;
#pragma unroll
  for (int c = 0; c < Chunks; ++c) {
    float numbers[lane_numbers];
#pragma unroll
    for (int i = 0; i < lane_numbers; ++i)
      numbers[i] =
          number(added[c], i) * ((kept[c] >> i & 1) != 0 ? scale : 0.0F) + number(value[c], i);
    pack(value[c], numbers);
    store_chunk<Whole>(sum + row * sum_width, value[c], first(c), sum_width, lane);
  }

  // As stored; numbers behind the end of the row are zero.
  float total[1] = {0};
  const auto sum_up = [&](const auto& function) {
#pragma unroll
    for (int c = 0; c < Chunks; ++c)
#pragma unroll
      for (int i = 0; i < lane_numbers; ++i) total[0] += function(number(value[c], i));
  };
  if (centred)
    sum_up([](float stored) { return stored; });
  else
    sum_up([](float stored) { return stored * stored; });
  detail::sum_of_row(total, shared);

  float middle = 0, variance = total[0] * inverse_width;
  if (centred) {
    middle = variance;
    total[0] = 0;
#pragma unroll
    for (int c = 0; c < Chunks; ++c)
#pragma unroll
      for (int i = 0; i < lane_numbers; ++i) {
        const float away = number(value[c], i) - middle;
        if (detail::in_row<Whole, T>(first(c), lane, i, width)) total[0] += away * away;
      }
    detail::sum_of_row(total, shared);
    variance = total[0] * inverse_width;
  }
  const float deviation = 1 / sqrtf(variance + static_cast<float>(call.epsilon));
  if (inside && threadIdx.x == 0 && threadIdx.y == 0) {
    if (mean != nullptr) mean[row] = middle;
    if (rstd != nullptr) rstd[row] = deviation;
  }

  const int weight_width = call.weight == nullptr ? 0 : width;
  const int bias_width = bias == nullptr ? 0 : width;
#pragma unroll
  for (int c = 0; c < Chunks; ++c) {
    Packed<T> weights, shifts;
    load_chunk<Whole>(weights, call.weight, first(c), weight_width, lane, ones<T>);
    load_chunk<Whole>(shifts, bias, first(c), bias_width, lane);
    float numbers[lane_numbers];
#pragma unroll
    for (int i = 0; i < lane_numbers; ++i)
      numbers[i] =
          (number(value[c], i) - middle) * deviation * number(weights, i) + number(shifts, i);
    pack(value[c], numbers);
    store_chunk<Whole>(y + row * width, value[c], first(c), out_width, lane);
  }
}

/// As the function of that name on the CPU (cpu/dropout_add_norm.hpp has formulae and shapes), for
/// all rows of contiguous matrices in device memory, in one pass: a row stays in registers. The
/// mask has the CPU's bits. Any alignment, but rows of whole vectors of 16 bytes are fastest; at
/// most widest_normed_row columns. Returns what the launch returned; does not wait. Throws
/// std::invalid_argument for sizes out of range.
template <class T>
cudaError_t dropout_add_norm(const DropoutAddNorm<T>& call, const T* branch, const T* residual,
                             const T* bias, T* y, T* sum, float* mean, float* rstd,
                             std::int64_t rows, cudaStream_t stream) {
  const std::int64_t chunks = detail::norm_chunks("dropout_add_norm", call, rows);
  if (rows == 0) return cudaSuccess;
  const dim3 group = detail::norm_group(chunks, 4);
  const auto groups = static_cast<unsigned>((rows + group.z - 1) / group.z);
  auto* kernel = dropout_add_norm_kernel<T, 4, false>;
  if (takes_vectors<T>(call.width, branch, residual, call.weight, bias, y, sum))
    switch ((chunks + group.y - 1) / group.y) {
      case 1:
        kernel = dropout_add_norm_kernel<T, 1, true>;
        break;
      case 2:
        kernel = dropout_add_norm_kernel<T, 2, true>;
        break;
      case 3:
        kernel = dropout_add_norm_kernel<T, 3, true>;
        break;
      default:
        kernel = dropout_add_norm_kernel<T, 4, true>;
    }
  return launch(kernel, groups, group, stream, call, branch, residual, bias, y, sum, mean, rstd,
                rows);
}

/// A group works on row after row, `gridDim.x` groups in turn. `Sums`: the gradients of weight and
/// bias are wanted; a thread has those of its columns in registers, and the threads that share
/// columns add theirs up in the end, in a fixed order.
template <class T, int Chunks, bool Whole, bool Sums>
__global__ void __launch_bounds__(512)
    dropout_add_norm_backward_kernel(DropoutAddNorm<T> call, const T* dy, const T* dsum,
                                     const T* sum, const float* mean, const float* rstd, T* dbranch,
                                     T* dresidual, float* dweights, float* dbiases,
                                     std::int64_t rows) {
  __shared__ float shared[16][2];
  call.mask = in_this_run(call.mask);
  const int lane = static_cast<int>(threadIdx.x);
  const int width = static_cast<int>(call.width);
  const auto inverse_width = 1 / static_cast<float>(width);
  const auto first = [](int chunk) {
    return chunk_columns * (static_cast<int>(threadIdx.y) * Chunks + chunk);
  };
  const float scale = call.scale * call.mask.scale;
  const int weight_width = call.weight == nullptr ? 0 : width;
  Packed<T> weights[Chunks];
  float of_weight[Sums ? Chunks : 1][lane_numbers], of_bias[Sums ? Chunks : 1][lane_numbers];
#pragma unroll
  for (int c = 0; c < Chunks; ++c) {
    load_chunk<Whole>(weights[c], call.weight, first(c), weight_width, lane, ones<T>);
    if constexpr (Sums)
#pragma unroll
      for (int i = 0; i < lane_numbers; ++i) of_weight[c][i] = of_bias[c][i] = 0;
  }

  const std::int64_t stride = std::int64_t{gridDim.x} * blockDim.z;
  for (std::int64_t first_row = std::int64_t{blockIdx.x} * blockDim.z; first_row < rows;
       first_row += stride) {
    const std::int64_t row = first_row + threadIdx.z;
    const bool inside = row < rows;
    const int in_width = inside ? width : 0;
    const int direct_width = dsum == nullptr ? 0 : in_width;
    const int lower_width = dresidual == nullptr ? 0 : in_width;
    Packed<T> upper[Chunks], value[Chunks], direct[Chunks];
#pragma unroll
    for (int c = 0; c < Chunks; ++c) {
      load_chunk<Whole>(upper[c], dy + row * width, first(c), in_width, lane);
      load_chunk<Whole>(value[c], sum + row * width, first(c), in_width, lane);
      load_chunk<Whole>(direct[c], dsum + row * direct_width, first(c), direct_width, lane);
    }
    const std::int64_t branch_row = !inside || dbranch == nullptr || dbranch == dresidual ? -1
                                    : call.branch_row == nullptr                          ? row
                                                                 : call.branch_row[row];
    const std::uint64_t block = detail::first_block<Chunks>(branch_row, width);
    const int branch_width = branch_row < 0 ? 0 : width;
    unsigned kept[Chunks];
    detail::keep_bits_of_row(kept, call, block, lane);
    const float middle = inside ? mean[row] : 0, deviation = inside ? rstd[row] : 0;
    const auto h = [&](int c, int i) { return (number(value[c], i) - middle) * deviation; };

    float means[2] = {0, 0};  // of g and g h; beyond the row g is 0
#pragma unroll
    for (int c = 0; c < Chunks; ++c)
#pragma unroll
      for (int i = 0; i < lane_numbers; ++i) {
        const float gradient = number(upper[c], i);
        if constexpr (Sums) {
          of_weight[c][i] += gradient * h(c, i);
          of_bias[c][i] += gradient;
        }
        const float g = gradient * number(weights[c], i);
        means[0] += g;
        means[1] += g * h(c, i);
      }
    detail::sum_of_row(means, shared);
    means[0] *= call.norm == Norm::layer ? inverse_width : 0;
    means[1] *= inverse_width;

#pragma unroll
    for (int c = 0; c < Chunks; ++c) {
      float numbers[lane_numbers];
      Packed<T> out;
#pragma unroll
      for (int i = 0; i < lane_numbers; ++i)
        numbers[i] = deviation * (number(upper[c], i) * number(weights[c], i) - means[0] -
                                  h(c, i) * means[1]) +
                     number(direct[c], i);
      pack(out, numbers);
      store_chunk<Whole>(dresidual + row * lower_width, out, first(c), lower_width, lane);
#pragma unroll
      for (int i = 0; i < lane_numbers; ++i) numbers[i] *= (kept[c] >> i & 1) != 0 ? scale : 0.0F;
      pack(out, numbers);
      store_chunk<Whole>(dbranch + branch_row * branch_width, out, first(c), branch_width, lane);
    }
  }

  if constexpr (Sums) {
    // Number i of thread t lies at i * threads + t.
    __shared__ float of_threads[256 * lane_numbers * Chunks];
    const unsigned of_a_row = blockDim.x * blockDim.y, threads = of_a_row * blockDim.z;
    const unsigned column_thread = threadIdx.y * blockDim.x + threadIdx.x;
    const auto write = [&](float* sums, const float(&own)[Chunks][lane_numbers]) {
      if (blockDim.z > 1) {
        __syncthreads();
#pragma unroll
        for (int c = 0; c < Chunks; ++c)
#pragma unroll
          for (int i = 0; i < lane_numbers; ++i)
            of_threads[static_cast<unsigned>(c * lane_numbers + i) * threads +
                       threadIdx.z * of_a_row + column_thread] = own[c][i];
        __syncthreads();
      }
      if (sums == nullptr || threadIdx.z != 0) return;
#pragma unroll
      for (int c = 0; c < Chunks; ++c) {
        float all[lane_numbers];
#pragma unroll
        for (int i = 0; i < lane_numbers; ++i) {
          all[i] = own[c][i];
#pragma unroll 1
          for (unsigned z = 1; z < blockDim.z; ++z)
            all[i] += of_threads[static_cast<unsigned>(c * lane_numbers + i) * threads +
                                 z * of_a_row + column_thread];
        }
        float* const to = sums + std::int64_t{blockIdx.x} * width;
#pragma unroll
        for (int v = 0; v < lane_numbers; v += 4) {
          const int column = first(c) + lane_column<T>(lane, v);
          if constexpr (Whole) {
            if (column < width)
              *reinterpret_cast<float4*>(to + column) =
                  make_float4(all[v], all[v + 1], all[v + 2], all[v + 3]);
          } else {
            for (int i = 0; i < 4; ++i)
              if (column + i < width) to[column + i] = all[v + i];
          }
        }
      }
    };
    write(dweights, of_weight);
    write(dbiases, of_bias);
  }
}

/// As the function of that name on the CPU, for all rows; but dweights and dbiases [pieces, width]
/// are written, not added to: piece p sums those of some of the rows, which `pieces` alone settles,
/// always in the same order. sum_of_rows() adds them up. pieces in [1, 65535]; about two for each
/// multiprocessor keep all of them busy. Without dweights and dbiases it is not looked at.
template <class T>
cudaError_t dropout_add_norm_backward(const DropoutAddNorm<T>& call, const T* dy, const T* dsum,
                                      const T* sum, const float* mean, const float* rstd,
                                      T* dbranch, T* dresidual, float* dweights, float* dbiases,
                                      std::int64_t pieces, std::int64_t rows, cudaStream_t stream) {
  const std::int64_t chunks = detail::norm_chunks("dropout_add_norm_backward", call, rows);
  const bool sums = dweights != nullptr || dbiases != nullptr;
  check(!sums || (pieces >= 1 && pieces <= 65535),
        "cuda::dropout_add_norm_backward: pieces must be in [1, 65535], got ", pieces);
  if (rows == 0 && !sums) return cudaSuccess;
  const bool whole = takes_vectors<T>(call.width, call.weight, dy, dsum, sum, dbranch, dresidual,
                                      dweights, dbiases);
  // With both sums two chunks a warp are more than its registers hold; of BFloat16 one is enough to
  // keep the memory busy.
  const bool one_chunk = (sums || sizeof(T) == 2) && whole && chunks <= 16;
  const dim3 group = detail::norm_group(chunks, one_chunk ? 1 : 2);
  const auto groups = static_cast<unsigned>(sums ? pieces : (rows + group.z - 1) / group.z);
  const bool two = chunks > group.y;
  auto* const kernel = sums ? (!whole ? dropout_add_norm_backward_kernel<T, 2, false, true>
                               : two  ? dropout_add_norm_backward_kernel<T, 2, true, true>
                                      : dropout_add_norm_backward_kernel<T, 1, true, true>)
                            : (!whole ? dropout_add_norm_backward_kernel<T, 2, false, false>
                               : two  ? dropout_add_norm_backward_kernel<T, 2, true, false>
                                      : dropout_add_norm_backward_kernel<T, 1, true, false>);
  return launch(kernel, groups, group, stream, call, dy, dsum, sum, mean, rstd, dbranch, dresidual,
                dweights, dbiases, rows);
}

/// A group has 32 columns, `Threads` threads each, which take the rows in turn.
template <int Threads>
__global__ void __launch_bounds__(warp_size* Threads)
    sum_of_rows_kernel(float* out, const float* x, std::int64_t rows, std::int64_t width) {
  __shared__ float shared[Threads][warp_size];
  const std::int64_t column = std::int64_t{blockIdx.x} * warp_size + threadIdx.x;
  float sum = 0;
  if (column < width)
#pragma unroll 8
    for (std::int64_t row = threadIdx.y; row < rows; row += Threads) sum += x[row * width + column];
  shared[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= width) return;
  for (int i = 1; i < Threads; ++i) sum += shared[i][threadIdx.x];
  out[column] = sum;
}

/// out[c] = the sum of x[r, c] over the rows of a contiguous [rows, width] matrix, always in the
/// same order. Returns what the launch returned; does not wait. Throws std::invalid_argument for
/// negative sizes.
inline cudaError_t sum_of_rows(float* out, const float* x, std::int64_t rows, std::int64_t width,
                               cudaStream_t stream) {
  check(rows >= 0 && width >= 0, "cuda::sum_of_rows: rows and width must not be negative, got ",
        rows, " and ", width);
  if (width == 0) return cudaSuccess;
  return launch(sum_of_rows_kernel<8>, static_cast<unsigned>((width + warp_size - 1) / warp_size),
                {warp_size, 8}, stream, out, x, rows, width);
}

}  // namespace droppeft::cuda
