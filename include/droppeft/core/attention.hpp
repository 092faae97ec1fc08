#pragma once

#include <ATen/ATen.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <optional>

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

struct AttentionFunction : torch::autograd::Function<AttentionFunction> {
  using Context = torch::autograd::AutogradContext;
  using Tensors = torch::autograd::variable_list;

  static at::Tensor forward(Context* context, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, const std::optional<at::Tensor>& its_bias) {
    const at::Tensor bias = its_bias.value_or(at::Tensor());
    context->save_for_backward({q, k, v, bias});
    return at::matmul(attention_weights(q, k, bias), v);
  }

  static Tensors backward(Context* context, const Tensors& gradients) {
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const Tensors saved = context->get_saved_variables();
    const at::Tensor &q = saved[0], &k = saved[1], &v = saved[2], &gy = gradients[0];
    const at::Tensor weights = attention_weights(q, k, saved[3]);
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
/// It is at::scaled_dot_product_attention but for bf16 on the CPU, where that one's backward
/// multiplies block by block and takes several times as long as the model's linear maps: there the
/// products are whole ones, the weights made anew in backward. So it keeps q, k and v, and needs 8
/// L S bytes a head and sequence for a while; not for sequences of thousands. A bias that is
/// trained, or of bools (which LibTorch masks by), is left to LibTorch.
inline at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const at::Tensor& bias = {}) {
  const auto given = bias.defined() ? std::optional(bias) : std::nullopt;
  const bool ours = q.is_cpu() && q.scalar_type() == at::kBFloat16 &&
                    (!bias.defined() || (bias.is_floating_point() && !bias.requires_grad()));
  return ours ? detail::AttentionFunction::apply(q, k, v, given)
              : at::scaled_dot_product_attention(q, k, v, given);
}

}  // namespace droppeft
