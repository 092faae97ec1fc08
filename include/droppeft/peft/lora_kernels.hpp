#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "droppeft/core/kernel_tensors.hpp"
#include "droppeft/core/parallel.hpp"
#include "droppeft/kernels/cpu/skinny.hpp"
#include "droppeft/kernels/cuda/slots.hpp"
#include "droppeft/kernels/keep_mask.hpp"

/// What low-rank adapters add to a linear map, by the kernels of the device that all tensors lie
/// on: for lora_linear.hpp.
namespace droppeft::detail {

/// The rows of a call that one adapter is used for.
struct Segment {
  std::int64_t first, end;
  double scaling;
  KeepMask mask;

  std::int64_t rows() const { return end - first; }
};

/// An adapter in a call, with T the rows of its segment. All floats, contiguous.
struct AdapterCall {
  Segment segment;
  at::Tensor a, b;  // A [r, in] and scaling B^T [r, out]
  at::Tensor z;     // A (x * mask): [T, r]
  // Gradients, undefined if not wanted: of z [T, r]; of a and b [parts(), r, in or out], to be
  // added up. gz is wanted wherever ga or x's gradient is.
  at::Tensor gz{}, ga{}, gb{};

  std::int64_t rank() const { return z.size(1); }
  std::int64_t in() const { return a.size(1); }
  std::int64_t out() const { return b.size(1); }

  /// Parts of the rows, which depend neither on the threads nor on the GPU; each is worked on by
  /// one thread or group of threads.
  std::int64_t parts() const {
    constexpr std::int64_t gpu_parts = 64;
    return z.is_cuda() ? gpu_parts : (segment.rows() + part_rows() - 1) / part_rows();
  }
  std::int64_t part_rows() const {
    return std::max<std::int64_t>(128, (segment.rows() + 1023) / 1024 * 16);
  }

  /// The numbers of x, y or their gradients where the segment begins.
  template <class T>
  T* rows_of(const at::Tensor& x) const {
    return x.defined() ? kernel_data<T>(x) + segment.first * x.size(1) : nullptr;
  }
};

/// function(call, part, first, end) for all parts of all calls, on all threads: its rows are first
/// to end - 1 of the segment.
template <class Function>
void for_parts(std::span<const AdapterCall> calls, const Function& function) {
  struct Part {
    const AdapterCall* call;
    std::int64_t number;
  };
  std::vector<Part> all;
  for (const AdapterCall& call : calls)
    for (std::int64_t i = 0; i < call.parts(); ++i) all.push_back({&call, i});
  at::parallel_for(0, static_cast<std::int64_t>(all.size()), 1,
                   [&](std::int64_t i, std::int64_t end) {
                     for (; i < end; ++i) {
                       const auto [call, number] = all[static_cast<std::size_t>(i)];
                       const std::int64_t size = call->part_rows();
                       function(*call, number, number * size,
                                std::min(call->segment.rows(), (number + 1) * size));
                     }
                   });
}

/// Writes z and adds z b to y.
inline void add_adapters(const at::Tensor& y, const at::Tensor& x,
                         std::span<const AdapterCall> calls) {
  if (y.is_cuda()) {
    const OnGpu gpu(y);
    for (const AdapterCall& call : calls) {
      const std::int64_t rows = call.segment.rows();
      auto* const z = kernel_data<float>(call.z);
      with_kernel_type(x, [&]<class T>() {
        cuda::slots.of<T>().to_low_rank(z, call.rows_of<T>(x), kernel_data<float>(call.a), rows,
                                        call.in(), call.rank(), call.segment.mask, gpu.stream);
      });
      with_kernel_type(y, [&]<class T>() {
        cuda::slots.of<T>().add_from_low_rank(call.rows_of<T>(y), z, kernel_data<float>(call.b),
                                              rows, call.out(), call.rank(), KeepMask(),
                                              gpu.stream);
      });
    }
    return;
  }
  for_parts(calls,
            [&](const AdapterCall& call, std::int64_t, std::int64_t first, std::int64_t end) {
              auto* const z = kernel_data<float>(call.z);
              with_kernel_type(x, [&]<class T>() {
                cpu::to_low_rank(z, call.rows_of<const T>(x), kernel_data<float>(call.a), call.in(),
                                 call.rank(), call.segment.mask, first, end);
              });
              with_kernel_type(y, [&]<class T>() {
                cpu::add_from_low_rank(call.rows_of<T>(y), z, kernel_data<float>(call.b),
                                       call.out(), call.rank(), first, end);
              });
            });
}

/// Writes gz, ga and gb, and adds what the adapters make of them to gx, which may be undefined. gy:
/// the gradient of y.
inline void adapter_gradients(const at::Tensor& gx, const at::Tensor& x, const at::Tensor& gy,
                              std::span<const AdapterCall> calls) {
  if (gy.is_cuda()) {
    const OnGpu gpu(gy);
    for (const AdapterCall& call : calls) {
      const std::int64_t rows = call.segment.rows(), rank = call.rank();
      auto* const gz = kernel_data<float>(call.gz);
      with_kernel_type(gy, [&]<class T>() {
        auto& slots = cuda::slots.of<T>();
        if (gz != nullptr)
          slots.to_low_rank(gz, call.rows_of<T>(gy), kernel_data<float>(call.b), rows, call.out(),
                            rank, KeepMask(), gpu.stream);
        if (call.gb.defined())
          slots.low_rank_gradient(kernel_data<float>(call.gb), kernel_data<float>(call.z),
                                  call.rows_of<T>(gy), rows, call.out(), rank, call.parts(),
                                  KeepMask(), gpu.stream);
      });
      with_kernel_type(x, [&]<class T>() {
        auto& slots = cuda::slots.of<T>();
        if (call.ga.defined())
          slots.low_rank_gradient(kernel_data<float>(call.ga), gz, call.rows_of<T>(x), rows,
                                  call.in(), rank, call.parts(), call.segment.mask, gpu.stream);
        if (gx.defined())
          slots.add_from_low_rank(call.rows_of<T>(gx), gz, kernel_data<float>(call.a), rows,
                                  call.in(), rank, call.segment.mask, gpu.stream);
      });
    }
    return;
  }
  for_parts(
      calls, [&](const AdapterCall& call, std::int64_t part, std::int64_t first, std::int64_t end) {
        const auto zeros = [&](const at::Tensor& parts) -> float* {
          if (!parts.defined()) return nullptr;
          const std::int64_t size = parts.stride(0);
          auto* const start = kernel_data<float>(parts) + part * size;
          std::fill_n(start, size, 0.0F);
          return start;
        };
        auto* const gz = kernel_data<float>(call.gz);
        with_kernel_type(gy, [&]<class T>() {
          cpu::add_from_low_rank_backward(gz, zeros(call.gb), call.rows_of<const T>(gy),
                                          kernel_data<float>(call.z), kernel_data<float>(call.b),
                                          call.out(), call.rank(), first, end);
        });
        if (gz == nullptr) return;
        with_kernel_type(x, [&]<class T>() {
          cpu::to_low_rank_backward(zeros(call.ga), call.rows_of<T>(gx), call.rows_of<const T>(x),
                                    gz, kernel_data<float>(call.a), call.in(), call.rank(),
                                    call.segment.mask, first, end);
        });
      });
}

/// scaling matrix^T.
inline at::Tensor scaled_transpose(const at::Tensor& matrix, double scaling) {
  at::Tensor made = at::empty({matrix.size(1), matrix.size(0)}, matrix.options());
  if (matrix.is_cuda())
    at::mul_out(made, matrix.t(), at::scalar_tensor(scaling));
  else
    cpu::transpose(kernel_data<float>(made), kernel_data<const float>(matrix), matrix.size(0),
                   matrix.size(1), static_cast<float>(scaling));
  return made;
}

}  // namespace droppeft::detail
