#pragma once

#include <ATen/ATen.h>

#include "droppeft/core/kernel_tensors.hpp"
#include "droppeft/kernels/cpu/skinny.hpp"
#include "droppeft/kernels/cuda/slots.hpp"

namespace droppeft::detail {

/// parts [n, ...] -> [...], contiguous floats, added up in order; zeros for none.
inline at::Tensor sum_of_parts(const at::Tensor& parts) {
  const at::Tensor sum = at::empty(parts.sizes().slice(1), parts.options());
  if (parts.is_cuda()) {
    const OnGpu gpu(parts);
    cuda::slots.sum_of_rows(kernel_data<float>(sum), kernel_data<float>(parts), parts.size(0),
                            sum.numel(), gpu.stream);
  } else {
    cpu::add_up(kernel_data<float>(sum), kernel_data<float>(parts), parts.size(0), sum.numel());
  }
  return sum;
}

}  // namespace droppeft::detail
