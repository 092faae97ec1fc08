#pragma once

#include <ATen/ATen.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/init.h>
#include <torch/nn/options/linear.h>
#include <torch/nn/pimpl.h>

#include <cmath>
#include <cstdint>
#include <ostream>
#include <vector>

#include "droppeft/core/check.hpp"
#include "droppeft/peft/lora.hpp"
#include "droppeft/peft/lora_linear.hpp"

namespace droppeft {

/// The module behind Linear.
class LinearImpl : public torch::nn::Cloneable<LinearImpl> {
 public:
  LinearImpl(std::int64_t in_features, std::int64_t out_features)
      : LinearImpl(torch::nn::LinearOptions(in_features, out_features)) {}
  explicit LinearImpl(const torch::nn::LinearOptions& settings) : options(settings) {
    check(options.in_features() >= 1 && options.out_features() >= 1,
          "droppeft::Linear: in_features and out_features must be at least 1, got ",
          options.in_features(), " and ", options.out_features());
    reset();
  }

  /// Registers weight, bias and adapter anew, as torch::nn::Linear would initialise them.
  void reset() override {
    weight =
        register_parameter("weight", at::empty({options.out_features(), options.in_features()}));
    torch::nn::init::kaiming_uniform_(weight, std::sqrt(5.0));
    if (options.bias()) {
      bias = register_parameter("bias", at::empty({options.out_features()}));
      const double bound = 1 / std::sqrt(static_cast<double>(options.in_features()));
      torch::nn::init::uniform_(bias, -bound, bound);
    }
    if (lora)
      lora = register_module("lora",
                             Lora(options.in_features(), options.out_features(), lora->options));
    if (unmerged_weight_.defined()) unmerged_weight_ = unmerged_weight_.clone();
  }

  /// x: [..., in_features] -> x W^T + b + s B (A dropout(x)): [..., out_features]. Throws
  /// std::invalid_argument for another width when there is an adapter, and when one that is to be
  /// trained is merged in training mode, with gradients.
  at::Tensor forward(const at::Tensor& x) {
    check(!merged() || !is_training() || !at::GradMode::is_enabled() ||
              !(lora->A.requires_grad() || lora->B.requires_grad()),
          "droppeft::Linear: merged, its adapter would not be trained: unmerge() first, or eval()");
    if (!lora || merged()) return at::linear(x, weight, bias);
    check(x.dim() >= 1 && x.size(-1) == options.in_features(),
          "droppeft::Linear: the last dimension of the input must be ", options.in_features(),
          ", got the shape ", x.sizes());
    return lora_linear(x, weight, bias, lora->adapter());
  }

  /// Adds a fresh low-rank adapter, on the weight's device, as child "lora". Throws
  /// std::invalid_argument when there is one.
  void add_lora(const LoraOptions& settings) {
    check(!lora, "droppeft::Linear: there is an adapter already");
    lora = register_module("lora", Lora(options.in_features(), options.out_features(), settings));
    lora->to(weight.device());
    lora->train(is_training());
  }

  /// Adds s B A to the weight, so that the adapter costs nothing in forward. A copy of the weight
  /// is kept (as many bytes again), from which unmerge() restores every bit. Merged, the adapter
  /// gets no gradient: unmerge() before training, saving or loading. The sum is rounded once.
  /// Does nothing when merged; throws std::invalid_argument, with nothing changed, without an
  /// adapter or when the merged weight would not be finite.
  void merge() {
    if (merged()) return;
    check(static_cast<bool>(lora), "droppeft::Linear::merge: there is no adapter");
    at::NoGradGuard no_grad;
    const at::Tensor sum = (weight + lora->delta()).to(weight.scalar_type());
    check(at::isfinite(sum).all().item<bool>(),
          "droppeft::Linear::merge: the merged weight would hold NaN or infinity");
    unmerged_weight_ = weight.clone();
    weight.copy_(sum);
  }

  /// Takes merge() back, to the bit.
  void unmerge() {
    if (!merged()) return;
    at::NoGradGuard no_grad;
    weight.copy_(unmerged_weight_);
    unmerged_weight_.reset();
  }

  bool merged() const { return unmerged_weight_.defined(); }

  void pretty_print(std::ostream& stream) const override {
    stream << std::boolalpha << "droppeft::Linear(in_features=" << options.in_features()
           << ", out_features=" << options.out_features() << ", bias=" << options.bias() << ")";
  }

  torch::nn::LinearOptions options;
  at::Tensor weight, bias;
  Lora lora{nullptr};

 private:
  at::Tensor unmerged_weight_;
};

/// A drop-in torch::nn::Linear that can carry an adapter: y = x W^T + b, plus, once add_lora was
/// called, s B (A dropout(x)).
///
/// Same parameters, names, options and initialisation as torch::nn::Linear; weights load from its
/// files. Without an adapter it is at::linear, bit for bit: what Python's torch.nn.Linear computes,
/// and for matrices torch::nn::Linear too (which rounds once more before it adds the bias to other
/// shapes). A fresh adapter changes no bit of it, for contiguous input. `merge` and `unmerge` keep
/// base weights bit-identical. The adapter works in its own dtype (fp32 unless moved) when the base
/// is bf16 or fp16, and follows autocast.
///
/// Throws std::invalid_argument for sizes < 1 and, with an adapter, an input of another width or a
/// merged one that is to be trained.
/// Freezing is not its business: see add_lora.hpp. Clone with droppeft::clone.
TORCH_MODULE(Linear);

}  // namespace droppeft
