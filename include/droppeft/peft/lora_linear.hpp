#pragma once

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "droppeft/core/check.hpp"
#include "droppeft/core/kernel_tensors.hpp"
#include "droppeft/core/masked.hpp"
#include "droppeft/core/sum_of_parts.hpp"
#include "droppeft/kernels/cpu/skinny.hpp"
#include "droppeft/kernels/keep_mask.hpp"
#include "droppeft/peft/lora_kernels.hpp"

namespace droppeft {

/// What a low-rank adapter adds to y = x W^T: scaling B (A (x * mask)).
struct LowRank {
  at::Tensor A;  // [r, in]
  at::Tensor B;  // [out, r]
  double scaling = 1;
  /// Of the rows that the adapter is used for, the first of which is row 0.
  KeepMask mask{};
};

namespace detail {

/// lora_linear_grouped of ATen's operations, for what the kernels do not do. AB: A0, B0, A1, ...
inline at::Tensor composed_lora_linear(const at::Tensor& x, const at::Tensor& weight,
                                       const std::optional<at::Tensor>& bias, at::TensorList AB,
                                       std::span<const Segment> segments) {
  const at::Tensor y = at::linear(x.to(weight.scalar_type()), weight, bias);
  for (std::size_t i = 0; i < segments.size(); ++i) {
    const at::Tensor &A = AB[2 * i], &B = AB[2 * i + 1];
    const auto& [first, end, scaling, mask] = segments[i];
    const bool all = first == 0 && end == x.size(0);
    const at::Tensor rows = all ? x : x.narrow(0, first, end - first);
    at::Tensor part = all ? y : y.narrow(0, first, end - first);
    const at::Tensor inner = at::linear(times_mask(rows.to(A.scalar_type()), mask), A);
    if (inner.scalar_type() == y.scalar_type() && B.scalar_type() == y.scalar_type())
      part.addmm_(inner, B.t(), 1, scaling);
    else
      part.add_((at::linear(inner, B) * scaling).to(y.scalar_type()));
  }
  return y;
}

struct LoraLinearFunction : torch::autograd::Function<LoraLinearFunction> {
  using Context = torch::autograd::AutogradContext;
  using Tensors = torch::autograd::variable_list;
  using Segments = std::vector<Segment>;

  /// x [T, in] and weight [out, in]: fp32 or bf16, each; A and B: fp32; all contiguous. y has the
  /// weight's dtype.
  static at::Tensor forward(Context* context, const at::Tensor& x, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias, at::TensorList AB,
                            const Segments& segments) {
    Tensors z;
    const at::Tensor y = compute(x, weight, bias, AB, segments, z);
    Tensors saved{x, weight};
    saved.insert(saved.end(), AB.begin(), AB.end());
    saved.insert(saved.end(), z.begin(), z.end());
    context->save_for_backward(std::move(saved));
    keep(*context, std::pair(segments, bias.has_value()));
    return y;
  }

  /// y, and z = A (x * mask) of each segment.
  static at::Tensor compute(const at::Tensor& x, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias, at::TensorList AB,
                            const Segments& segments, Tensors& z) {
    const at::Tensor y = at::linear(x.to(weight.scalar_type()), weight, bias);
    std::vector<AdapterCall> calls;
    for (std::size_t i = 0; i < segments.size(); ++i) {
      const at::Tensor& A = AB[2 * i];
      z.push_back(at::empty({segments[i].rows(), A.size(0)}, A.options()));
      calls.push_back({segments[i], A, scaled_transpose(AB[2 * i + 1], segments[i].scaling), z[i]});
    }
    add_adapters(y, x, calls);
    return y;
  }

  static Tensors backward(Context* context, const Tensors& gradients) {
    const Tensors saved = context->get_saved_variables();
    const auto [segments, has_bias] = kept<std::pair<Segments, bool>>(*context);
    const at::TensorList inputs = at::TensorList(saved).slice(0, 2 + 2 * segments.size());
    const at::TensorList z = at::TensorList(saved).slice(inputs.size());
    const std::size_t at_bias = 2;
    std::vector<bool> needed;
    for (std::size_t i = 0; i < inputs.size(); ++i)
      needed.push_back(context->needs_input_grad(i + (has_bias && i >= at_bias)));

    const at::Tensor gy = gradients[0].contiguous();
    Tensors found = at::GradMode::is_enabled()
                        ? differentiate_composed(needed, inputs, segments, gy)
                        : compute_gradients(needed, inputs, z, segments, gy);
    const bool bias_needed = has_bias && context->needs_input_grad(at_bias);
    found.insert(found.begin() + at_bias, bias_needed ? gy.sum(0) : at::Tensor());
    found.emplace_back();  // of the segments
    return found;
  }

 private:
  /// Of x, weight, A0, B0, A1, ...; those that are not needed stay undefined.
  static Tensors compute_gradients(const std::vector<bool>& needed, at::TensorList inputs,
                                   at::TensorList z, const Segments& segments,
                                   const at::Tensor& gy) {
    const at::Tensor &x = inputs[0], &weight = inputs[1];
    const at::TensorList AB = inputs.slice(2);
    Tensors found(inputs.size());
    if (needed[0]) found[0] = at::mm(gy, weight).to(x.scalar_type());
    if (needed[1]) found[1] = at::mm(gy.t(), x.to(gy.scalar_type()));

    std::vector<AdapterCall> calls;
    for (std::size_t i = 0; i < segments.size(); ++i) {
      AdapterCall call{segments[i], AB[2 * i], scaled_transpose(AB[2 * i + 1], segments[i].scaling),
                       z[i]};
      const auto sums = [&](bool wanted, std::int64_t width) {
        return wanted ? at::empty({call.parts(), call.rank(), width}, z[i].options())
                      : at::Tensor();
      };
      if (needed[0] || needed[2 + 2 * i]) call.gz = at::empty_like(z[i]);
      call.ga = sums(needed[2 + 2 * i], call.in());
      call.gb = sums(needed[3 + 2 * i], call.out());
      calls.push_back(std::move(call));
    }
    adapter_gradients(found[0], x, gy, calls);
    for (std::size_t i = 0; i < calls.size(); ++i) {
      if (calls[i].ga.defined()) found[2 + 2 * i] = sum_of_parts(calls[i].ga);
      if (calls[i].gb.defined())
        found[3 + 2 * i] = scaled_transpose(sum_of_parts(calls[i].gb), segments[i].scaling);
    }
    return found;
  }

  /// The same, to be differentiated again.
  static Tensors differentiate_composed(const std::vector<bool>& needed, at::TensorList inputs,
                                        const Segments& segments, const at::Tensor& gy) {
    const at::Tensor y =
        composed_lora_linear(inputs[0], inputs[1], std::nullopt, inputs.slice(2), segments);
    Tensors wanted, found(inputs.size());
    for (std::size_t i = 0; i < inputs.size(); ++i)
      if (needed[i]) wanted.push_back(inputs[i]);
    if (wanted.empty()) return found;
    const Tensors gradients = torch::autograd::grad({y}, wanted, {gy}, /*retain_graph=*/true,
                                                    /*create_graph=*/true);
    for (std::size_t i = 0, next = 0; i < inputs.size(); ++i)
      if (needed[i]) found[i] = gradients[next++];
    return found;
  }
};

}  // namespace detail

/// One linear map for the rows of several adapters, of several devices for one: x [T, in], weight W
/// [out, in], bias b [out] or undefined -> y [T, out],
///
///     y = x W^T + b, and for rows offsets[i] to offsets[i + 1] - 1 also s_i B_i (A_i (x * mask_i))
///
/// Rows before the first and after the last offset get no adapter. The weight is multiplied once,
/// with all rows; but for the rounding of that product, a row's result is what lora_linear gives
/// for the rows of its adapter alone.
///
/// For fp32 or bf16 on the CPU or, with droppeft::cuda, on a GPU, with fp32 adapters of rank <= 64:
/// reads x and y once more for the adapters in forward, and the gradient of y (a GPU: twice), x and
/// its gradient in backward, on all threads. For backward it keeps x (itself: maps of one x share
/// it) and A (x * mask), T r floats, but no mask; allocates nothing of size T but y and the
/// gradient of x; and computes only gradients that are needed, those of weight and bias too. Under
/// autocast weight, bias and y get its dtype; x and the adapters stay as they are. Everything else
/// is composed of LibTorch's operations, and so are gradients that are differentiated again: right,
/// but with temporaries of x's and y's sizes. But for LibTorch's products the bits do not depend on
/// the number of threads.
///
/// Throws std::invalid_argument for shapes that do not fit, and for offsets that are not one more
/// than the adapters, ascending, in [0, T].
///
/// Sources: Hu et al., "LoRA", arXiv 2106.09685. Cherniuk et al., "RunLoRA", arXiv 2312.03415, let
/// the shapes choose the order of the products; for r far below T, in and out it is this one.
inline at::Tensor lora_linear_grouped(const at::Tensor& x, const at::Tensor& weight,
                                      const at::Tensor& bias, std::span<const LowRank> adapters,
                                      at::IntArrayRef offsets) {
  check(weight.dim() == 2, "lora_linear: weight must be [out, in], got ", weight.sizes());
  const std::int64_t out = weight.size(0), in = weight.size(1);
  check(x.dim() == 2 && x.size(1) == in, "lora_linear: x must be [T, ", in, "], got ", x.sizes());
  check(!bias.defined() || bias.sizes() == at::IntArrayRef{out}, "lora_linear: bias must be [", out,
        "], got ", bias.sizes());
  check(offsets.size() == adapters.size() + 1, "lora_linear: ", adapters.size(),
        " adapters need one offset more, got ", offsets.size());

  const auto has_kernel = [&](const at::Tensor& one) {
    return detail::has_kernel(one) && one.device() == x.device();
  };
  bool kernels = has_kernel(x);
  std::vector<at::Tensor> AB;
  std::vector<detail::Segment> segments;
  for (std::size_t i = 0; i < adapters.size(); ++i) {
    const auto& [A, B, scaling, mask] = adapters[i];
    check(A.dim() == 2 && A.size(0) >= 1 && A.size(1) == in, "lora_linear: A must be [r, ", in,
          "] with r >= 1, got ", A.sizes());
    check(B.dim() == 2 && B.size(0) == out && B.size(1) == A.size(0), "lora_linear: B must be [",
          out, ", ", A.size(0), "], got ", B.sizes());
    check(0 <= offsets[i] && offsets[i] <= offsets[i + 1] && offsets[i + 1] <= x.size(0),
          "lora_linear: offsets must ascend in [0, ", x.size(0), "], got ", offsets);
    for (const at::Tensor& one : {A, B})
      kernels = kernels && has_kernel(one) && one.scalar_type() == at::kFloat;
    kernels = kernels && A.size(0) <= cpu::max_rank;
    AB.insert(AB.end(), {A, B});
    segments.push_back({offsets[i], offsets[i + 1], scaling, mask});
  }

  const bool autocast =
      (x.is_cpu() || x.is_cuda()) && at::autocast::is_autocast_enabled(x.device().type());
  check(autocast || x.scalar_type() == weight.scalar_type(),
        "lora_linear: x must have the weight's dtype ", weight.scalar_type(), ", got ",
        x.scalar_type());
  at::Tensor used_weight = weight;
  std::optional<at::Tensor> used_bias;
  if (bias.defined()) used_bias = bias;
  if (kernels && autocast) {
    const auto device = x.device().type();
    const auto type = at::autocast::get_autocast_dtype(device);
    used_weight = at::autocast::cached_cast(type, weight, device);
    if (used_bias) used_bias = at::autocast::cached_cast(type, bias, device);
  }
  if (!kernels || !has_kernel(used_weight))
    return detail::composed_lora_linear(x, weight, used_bias, AB, segments);

  for (at::Tensor& one : AB) one = one.contiguous();
  return detail::LoraLinearFunction::apply(x.contiguous(), used_weight, used_bias,
                                           at::TensorList(AB), segments);
}

/// x W^T + bias + scaling B (A (x * mask)): x [..., in] -> [..., out]; see lora_linear_grouped.
inline at::Tensor lora_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                              const LowRank& adapter) {
  check(weight.dim() == 2 && x.dim() >= 1 && x.size(-1) == weight.size(1),
        "lora_linear: the last dimension of x must be that of the weight ", weight.sizes(),
        ", got the shape ", x.sizes());
  const at::Tensor rows = x.dim() == 2 ? x : x.reshape({-1, weight.size(1)});
  const at::Tensor y = lora_linear_grouped(rows, weight, bias, std::span(&adapter, 1),
                                           {std::int64_t{0}, rows.size(0)});
  if (x.dim() == 2) return y;
  auto shape = x.sizes().vec();
  shape.back() = weight.size(0);
  return y.view(shape);
}

}  // namespace droppeft
