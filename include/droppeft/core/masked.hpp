#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "droppeft/core/kernel_tensors.hpp"
#include "droppeft/kernels/cpu/dropout.hpp"
#include "droppeft/kernels/keep_mask.hpp"

/// A mask times a tensor, for the parts that drop numbers out.
namespace droppeft::detail {

/// x * mask by the kernel: has_kernel(x) must hold. No gradient.
inline at::Tensor masked(const at::Tensor& x, const KeepMask& mask) {
  const at::Tensor in = x.contiguous(), out = at::empty_like(in);
  if (in.numel() == 0) return out;
  const std::int64_t width = row_width(in), rows = in.numel() / width;
  const std::int64_t blocks = rows * KeepMask::blocks(width);
  with_kernel_type(in, [&]<class T>() {
    if (in.is_cuda()) {
      const OnGpu gpu(in);
      cuda::slots.of<T>().dropout(kernel_data<T>(out), kernel_data<const T>(in), rows, width, mask,
                                  gpu.stream);
      return;
    }
    for_rows(blocks, KeepMask::block_size, [&](std::int64_t first, std::int64_t end) {
      cpu::dropout(kernel_data<T>(out), kernel_data<const T>(in), width, mask, first, end);
    });
  });
  return out;
}

/// x * mask made of ATen's operations, with the same numbers dropped: any dtype and device.
inline at::Tensor times_mask(const at::Tensor& x, const KeepMask& mask) {
  if (mask.keeps_all()) return x;
  const at::Device device = on_kernel_device(x) ? x.device() : at::kCPU;
  const at::Tensor ones = at::ones(x.sizes(), x.options().dtype(at::kFloat).device(device));
  return x * masked(ones, mask).to(x.options());
}

}  // namespace droppeft::detail
