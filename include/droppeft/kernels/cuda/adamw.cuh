#pragma once

#include <algorithm>
#include <cstdint>

#include "droppeft/core/check.hpp"
#include "droppeft/kernels/cpu/adamw.hpp"
#include "droppeft/kernels/cuda/lanes.cuh"
#include "droppeft/kernels/cuda/slots.hpp"

namespace droppeft::cuda {

namespace detail {

/// What a launch steps. It travels with the launch itself, so that nothing is copied to the device
/// before: 14 of the 32 kB that a launch may take (4 kB before CUDA 12.1).
struct AdamWTable {
  static constexpr int most = 256;
  static constexpr std::int64_t group_numbers = 1024;

  float decay, keep1, add1, keep2, add2;
  int tensors = 0;
  float *param[most], *exp_avg[most], *exp_avg_sq[most];
  const float* grad[most];
  std::int64_t count[most];
  float rate[most], eps[most];
  unsigned first_group[most + 1];  // of each tensor; the last is how many groups there are
};

struct AdamWNumber {
  float param, exp_avg, exp_avg_sq;
};

__device__ inline void adamw_number(AdamWNumber& x, float g, const AdamWTable& table, float rate,
                                    float eps) {
  x.exp_avg = table.keep1 * x.exp_avg + table.add1 * g;
  x.exp_avg_sq = table.keep2 * x.exp_avg_sq + table.add2 * g * g;
  x.param = table.decay * x.param - rate * x.exp_avg / (sqrtf(x.exp_avg_sq) + eps);
}

}  // namespace detail

/// A group of threads has 1024 numbers of one tensor, a thread four in a row.
template <int Threads>
__global__ void __launch_bounds__(Threads)
    adamw_kernel(const __grid_constant__ detail::AdamWTable table) {
  static_assert(4 * Threads == detail::AdamWTable::group_numbers);
  int tensor = 0;  // the last whose first group is not behind this one
  for (int step = detail::AdamWTable::most / 2; step > 0; step /= 2)
    if (tensor + step < table.tensors && table.first_group[tensor + step] <= blockIdx.x)
      tensor += step;
  const std::int64_t first =
      detail::AdamWTable::group_numbers * (blockIdx.x - table.first_group[tensor]) +
      4 * threadIdx.x;
  const std::int64_t left = table.count[tensor] - first;
  if (left <= 0) return;
  float* const param = table.param[tensor] + first;
  float* const exp_avg = table.exp_avg[tensor] + first;
  float* const exp_avg_sq = table.exp_avg_sq[tensor] + first;
  const float* const grad = table.grad[tensor] + first;
  const float rate = table.rate[tensor], eps = table.eps[tensor];
  const auto address = [](const float* at) { return reinterpret_cast<std::uintptr_t>(at); };
  if (left >= 4 &&
      (address(param) | address(exp_avg) | address(exp_avg_sq) | address(grad)) % 16 == 0) {
    float4 p = *reinterpret_cast<const float4*>(param);
    float4 m = *reinterpret_cast<const float4*>(exp_avg);
    float4 v = *reinterpret_cast<const float4*>(exp_avg_sq);
    const float4 g = *reinterpret_cast<const float4*>(grad);
    const auto step = [&](float& its_p, float& its_m, float& its_v, float its_g) {
      detail::AdamWNumber x{its_p, its_m, its_v};
      detail::adamw_number(x, its_g, table, rate, eps);
      its_p = x.param, its_m = x.exp_avg, its_v = x.exp_avg_sq;
    };
    step(p.x, m.x, v.x, g.x);
    step(p.y, m.y, v.y, g.y);
    step(p.z, m.z, v.z, g.z);
    step(p.w, m.w, v.w, g.w);
    *reinterpret_cast<float4*>(param) = p;
    *reinterpret_cast<float4*>(exp_avg) = m;
    *reinterpret_cast<float4*>(exp_avg_sq) = v;
  } else {
    for (int i = 0; i < 4 && i < left; ++i) {
      detail::AdamWNumber x{param[i], exp_avg[i], exp_avg_sq[i]};
      detail::adamw_number(x, grad[i], table, rate, eps);
      param[i] = x.param, exp_avg[i] = x.exp_avg, exp_avg_sq[i] = x.exp_avg_sq;
    }
  }
}

/// One step of AdamW, as cpu::adamw says, for the `count` tensors that `tensors` (in host memory)
/// names, in one launch for each 256 of them. Tensors that are not named, those of dropped layers,
/// are not touched. Any alignment, but 16 bytes are fastest. Returns what the launches returned;
/// does not wait. Throws std::invalid_argument for a negative count or size, or a step below 1.
inline cudaError_t adamw(const AdamWTensor* tensors, std::int64_t count,
                         const cpu::AdamWSettings& settings, cudaStream_t stream) {
  check(count >= 0, "cuda::adamw: the number of tensors must not be negative, got ", count);
  for (std::int64_t i = 0; i < count; ++i)
    check(tensors[i].count >= 0 && tensors[i].step >= 1, "cuda::adamw: tensor ", i,
          " must have a count of at least 0 and a step of at least 1, got ", tensors[i].count,
          " and ", tensors[i].step);
  detail::AdamWTable table{};
  for (std::int64_t first = 0; first < count; first += detail::AdamWTable::most) {
    table.tensors =
        static_cast<int>(std::min<std::int64_t>(count - first, detail::AdamWTable::most));
    std::int64_t groups = 0;
    for (int i = 0; i < table.tensors; ++i) {
      const AdamWTensor& tensor = tensors[first + i];
      const cpu::AdamWFactors factors(settings, tensor.step);
      table.decay = factors.decay;  // this and the next four are the same for all
      table.keep1 = factors.keep1, table.add1 = factors.add1;
      table.keep2 = factors.keep2, table.add2 = factors.add2;
      table.param[i] = tensor.param, table.grad[i] = tensor.grad;
      table.exp_avg[i] = tensor.exp_avg, table.exp_avg_sq[i] = tensor.exp_avg_sq;
      table.count[i] = tensor.count;
      table.rate[i] = factors.rate, table.eps[i] = factors.eps;
      table.first_group[i] = static_cast<unsigned>(groups);
      groups += (tensor.count + detail::AdamWTable::group_numbers - 1) /
                detail::AdamWTable::group_numbers;
    }
    check(groups <= 0x7FFFFFFF, "cuda::adamw: 256 tensors must have fewer than 2^41 numbers, got ",
          groups, " times 1024");
    table.first_group[table.tensors] = static_cast<unsigned>(groups);
    if (groups == 0) continue;
    const cudaError_t status =
        launch(adamw_kernel<256>, static_cast<unsigned>(groups), 256, stream, table);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

}  // namespace droppeft::cuda
