#pragma once

#include <ATen/ATen.h>
#include <ATen/core/ivalue.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#include "droppeft/core/parallel.hpp"
#include "droppeft/kernels/cpu/simd.hpp"

/// What stands between tensors and the kernels of kernels/cpu: for those who write a front.
namespace droppeft::detail {

/// Do the CPU kernels work on x's numbers (float, BFloat16) where they lie?
inline bool has_kernel(const at::Tensor& x) {
  return x.is_cpu() && x.layout() == at::kStrided && !x.is_neg() &&
         (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16);
}

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
