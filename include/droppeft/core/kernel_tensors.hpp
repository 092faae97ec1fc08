#pragma once

#include <ATen/ATen.h>
#include <ATen/core/ivalue.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#include "droppeft/core/parallel.hpp"
#include "droppeft/kernels/cpu/simd.hpp"
#include "droppeft/kernels/cuda/slots.hpp"

/// What stands between tensors and the kernels: for those who write a front.
namespace droppeft::detail {

/// Has this program kernels for tensors on x's device: the CPU or, with droppeft::cuda, a GPU?
inline bool on_kernel_device(const at::Tensor& x) {
  return x.is_cpu() || (x.is_cuda() && cuda::slots.sum_of_rows != nullptr);
}

/// Do they work on x's numbers (float, BFloat16) where they lie?
inline bool has_kernel(const at::Tensor& x) {
  return on_kernel_device(x) && x.layout() == at::kStrided && !x.is_neg() &&
         (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16);
}

/// Makes x's GPU the current one while it lives; `stream` is its current stream, for cuda::slots.
struct OnGpu {
  explicit OnGpu(const at::Tensor& x)
      : guard(x.device()),
        stream(c10::impl::getDeviceGuardImpl(x.device().type())
                   ->getStream(x.device())
                   .native_handle()) {}

  c10::DeviceGuard guard;
  void* stream;
};

/// function.operator()<T>() with T what the kernels call x's numbers; has_kernel(x) must hold.
template <class Function>
void with_kernel_type(const at::Tensor& x, const Function& function) {
  if (x.scalar_type() == at::kFloat)
    function.template operator()<float>();
  else
    function.template operator()<cpu::BFloat16>();
}

/// The numbers of a contiguous tensor of that type; null for one that is not defined.
template <class T>
T* kernel_data(const at::Tensor& x) {
  return x.defined() ? static_cast<T*>(x.data_ptr()) : nullptr;
}

/// at::parallel_for over rows of `width` numbers, enough of them in each piece to pay for a thread.
template <class Function>
void for_rows(std::int64_t rows, std::int64_t width, const Function& function) {
  constexpr std::int64_t numbers = 16384;
  at::parallel_for(0, rows, std::max<std::int64_t>(1, numbers / std::max<std::int64_t>(1, width)),
                   function);
}

/// The size of the last dimension, of which a row is made.
inline std::int64_t row_width(const at::Tensor& x) { return x.dim() == 0 ? 1 : x.size(-1); }

template <class T>
struct Kept : torch::CustomClassHolder {
  explicit Kept(T its_value) : value(std::move(its_value)) {}
  T value;
};

/// Keeps a value that is no tensor from an autograd function's forward for its backward.
template <class T>
void keep(torch::autograd::AutogradContext& context, T value) {
  context.saved_data["kept"] =
      at::IValue::make_capsule(c10::make_intrusive<Kept<T>>(std::move(value)));
}
template <class T>
T kept(torch::autograd::AutogradContext& context) {
  return static_cast<const Kept<T>&>(*context.saved_data.at("kept").toCapsule()).value;
}

}  // namespace droppeft::detail
