#pragma once

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <optional>
#include <type_traits>

#include "droppeft/core/kernel_tensors.hpp"
#include "droppeft/kernels/cpu/attention.hpp"

namespace droppeft {

namespace detail {

/// softmax(q k^T / sqrt(d) + bias), added up and normalised in fp32, in q's dtype.
inline at::Tensor attention_weights(const at::Tensor& q, const at::Tensor& k,
                                    const at::Tensor& bias) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const auto floats = [](const at::Tensor& x) {
    return x.to(at::kFloat, /*non_blocking=*/false, /*copy=*/false, at::MemoryFormat::Contiguous);
  };
  at::Tensor scores = at::matmul(floats(q), floats(k).transpose(-2, -1));
  scores.mul_(1 / std::sqrt(static_cast<double>(q.size(-1))));
  if (bias.defined()) scores.add_(bias);
  scores = at::softmax(scores, -1);
  return scores.to(q.scalar_type());
}

/// The most scores of a head that stay near a core.
inline constexpr std::int64_t most_scores = 256 * 256;

/// What cpu::AttentionHead needs of q [B, a, L, d], k and v [B, a, S, d] and bias [B or 1, 1, 1,
/// S].
class AttentionHeads {
 public:
  /// Are these fp32 on the CPU, with at most most_scores a head?
  static bool fit(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                  const at::Tensor& bias) {
    const auto floats = [](const at::Tensor& x) {
      return x.is_cpu() && has_kernel(x) && x.scalar_type() == at::kFloat && x.dim() == 4;
    };
    if (!floats(q) || !floats(k) || !floats(v) || at::autocast::is_autocast_enabled(at::kCPU))
      return false;
    const std::int64_t keys = k.size(2);
    const bool same = k.sizes() == v.sizes() && q.size(0) == k.size(0) && q.size(1) == k.size(1) &&
                      q.size(3) == k.size(3);
    const bool of_keys =
        !bias.defined() || (floats(bias) && (bias.size(0) == 1 || bias.size(0) == q.size(0)) &&
                            bias.size(1) == 1 && bias.size(2) == 1 && bias.size(3) == keys);
    return same && of_keys && q.numel() > 0 && keys > 0 && q.size(2) * keys <= most_scores;
  }

  AttentionHeads(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                 const at::Tensor& bias)
      : q_(rows(q)), k_(rows(k)), v_(rows(v)) {
    if (bias.defined()) bias_ = bias.expand({q.size(0), 1, 1, k.size(2)}).contiguous();
  }

  at::Tensor forward() const {
    const at::Tensor y = like(q_);
    for_heads(head(0, 0).forward_scratch(), [&](std::int64_t b, std::int64_t a, float* scratch) {
      cpu::attention(head(b, a), of_head<float>(y, b, a), scratch);
    });
    return y;
  }

  /// Gradients of q, k and v.
  std::array<at::Tensor, 3> backward(const at::Tensor& gradient) const {
    const at::Tensor gy = rows(gradient), gq = like(q_), gk = like(k_), gv = like(v_);
    for_heads(head(0, 0).backward_scratch(), [&](std::int64_t b, std::int64_t a, float* scratch) {
      cpu::attention_backward(head(b, a), of_head<const float>(gy, b, a), of_head<float>(gq, b, a),
                              of_head<float>(gk, b, a), of_head<float>(gv, b, a), scratch);
    });
    return {gq, gk, gv};
  }

 private:
  static at::Tensor rows(const at::Tensor& x) { return x.stride(3) == 1 ? x : x.contiguous(); }

  /// Of x's shape, the heads of a row side by side, as linear maps give and take them.
  static at::Tensor like(const at::Tensor& x) {
    return at::empty({x.size(0), x.size(2), x.size(1), x.size(3)}, x.options()).transpose(1, 2);
  }

  template <class T>
  static cpu::HeadRows<T> of_head(const at::Tensor& x, std::int64_t b, std::int64_t a) {
    const std::int64_t offset = b * x.stride(0) + a * x.stride(1);
    if constexpr (std::is_const_v<T>)
      return {x.const_data_ptr<float>() + offset, x.stride(2)};
    else
      return {x.mutable_data_ptr<float>() + offset, x.stride(2)};
  }

  cpu::AttentionHead head(std::int64_t b, std::int64_t a) const {
    return {.queries = q_.size(2),
            .keys = k_.size(2),
            .width = q_.size(3),
            .scale = static_cast<float>(1 / std::sqrt(static_cast<double>(q_.size(3)))),
            .q = of_head<const float>(q_, b, a),
            .k = of_head<const float>(k_, b, a),
            .v = of_head<const float>(v_, b, a),
            .bias = bias_.defined() ? bias_.const_data_ptr<float>() + b * k_.size(2) : nullptr};
  }

  /// function(sequence, head, scratch) for all, on all threads.
  template <class Function>
  void for_heads(std::int64_t floats, const Function& function) const {
    const std::int64_t heads = q_.size(1);
    const at::Tensor scratch = at::empty({at::get_num_threads(), floats}, q_.options());
    at::parallel_for(0, q_.size(0) * heads, 1, [&](std::int64_t first, std::int64_t end) {
      float* const own = scratch.mutable_data_ptr<float>() + at::get_thread_num() * floats;
      for (std::int64_t i = first; i < end; ++i) function(i / heads, i % heads, own);
    });
  }

  at::Tensor q_, k_, v_, bias_;
};

struct AttentionFunction : torch::autograd::Function<AttentionFunction> {
  using Context = torch::autograd::AutogradContext;
  using Tensors = torch::autograd::variable_list;

  static at::Tensor forward(Context* context, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, const std::optional<at::Tensor>& its_bias) {
    const at::Tensor bias = its_bias.value_or(at::Tensor());
    context->save_for_backward({q, k, v, bias});
    if (AttentionHeads::fit(q, k, v, bias)) return AttentionHeads(q, k, v, bias).forward();
    return at::matmul(attention_weights(q, k, bias), v);
  }

  static Tensors backward(Context* context, const Tensors& gradients) {
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const Tensors saved = context->get_saved_variables();
    const at::Tensor &q = saved[0], &k = saved[1], &v = saved[2], &bias = saved[3],
                     &gy = gradients[0];
    if (!at::GradMode::is_enabled() && AttentionHeads::fit(q, k, v, bias)) {
      const auto [gq, gk, gv] = AttentionHeads(q, k, v, bias).backward(gy);
      return {gq, gk, gv, at::Tensor()};
    }
    const at::Tensor weights = attention_weights(q, k, bias);
    const at::Tensor gscores = at::_softmax_backward_data(at::matmul(gy, v.transpose(-2, -1)),
                                                          weights, -1, weights.scalar_type()) *
                               (1 / std::sqrt(static_cast<double>(q.size(-1))));
    return {at::matmul(gscores, k), at::matmul(gscores.transpose(-2, -1), q),
            at::matmul(weights.transpose(-2, -1), gy), at::Tensor()};
  }
};

}  // namespace detail

/// Scaled dot-product attention, softmax(q k^T / sqrt(d) + bias) v: q [..., L, d], k [..., S, d], v
/// [..., S, d_v], bias that broadcasts to [..., L, S] or undefined -> [..., L, d_v]. Throws what
/// LibTorch's operations throw for shapes that do not fit.
///
/// It is at::scaled_dot_product_attention but on the CPU in two cases, which keep q, k and v alone
/// (LibTorch: its result too) and make the weights anew in backward:
/// - fp32, four dimensions, L S <= 2^16, a bias for the keys alone, [B or 1, 1, 1, S]: a head at a
///   time, in one core's cache (kernels/cpu/attention.hpp);
/// - bf16, where LibTorch multiplies block by block and takes several times as long as the model's
///   linear maps: whole products. They need 8 L S bytes a head and sequence for a while; not for
///   sequences of thousands.
/// A row whose scores are all -infinity gives zeros, in bf16 NaN.
/// A bias that is trained, or of bools (which LibTorch masks by), is left to LibTorch.
inline at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const at::Tensor& bias = {}) {
  const auto given = bias.defined() ? std::optional(bias) : std::nullopt;
  const bool fixed_bias = !bias.defined() || (bias.is_floating_point() && !bias.requires_grad());
  const bool ours = fixed_bias && ((q.is_cpu() && q.scalar_type() == at::kBFloat16) ||
                                   detail::AttentionHeads::fit(q, k, v, bias));
  return ours ? detail::AttentionFunction::apply(q, k, v, given)
              : at::scaled_dot_product_attention(q, k, v, given);
}

}  // namespace droppeft
