#pragma once

#include <ATen/ATen.h>
#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/init.h>
#include <torch/nn/pimpl.h>

#include <cmath>
#include <cstdint>
#include <ostream>

#include "droppeft/core/check.hpp"

namespace droppeft {

/// Settings of a low-rank adapter.
struct LoraOptions {
  LoraOptions(std::int64_t rank) : rank_(rank) {}  // NOLINT: a bare rank is how users write it

  /// r: the inner width, at least 1.
  TORCH_ARG(std::int64_t, rank);
  /// The update is scaled by alpha / r; with rslora by alpha / sqrt(r).
  TORCH_ARG(double, alpha) = 8;
  /// Probability, in [0, 1), that an input of the adapter is zeroed in training.
  TORCH_ARG(double, dropout) = 0;
  /// Rank-stabilised scaling (Kalajdzievski, arXiv 2312.03732).
  TORCH_ARG(bool, rslora) = false;

 public:
  /// s: what the low-rank product is multiplied by.
  double scaling() const {
    const auto r = static_cast<double>(rank_);
    return alpha_ / (rslora_ ? std::sqrt(r) : r);
  }
};

/// The module behind Lora.
class LoraImpl : public torch::nn::Cloneable<LoraImpl> {
 public:
  LoraImpl(std::int64_t in_features, std::int64_t out_features, const LoraOptions& settings)
      : options(settings), in_features_(in_features), out_features_(out_features) {
    check(options.rank() >= 1, "LoraOptions: rank must be at least 1, got ", options.rank());
    check(std::isfinite(options.alpha()) && options.alpha() > 0,
          "LoraOptions: alpha must be positive and finite, got ", options.alpha());
    check(options.dropout() >= 0 && options.dropout() < 1,
          "LoraOptions: dropout must be in [0, 1), got ", options.dropout());
    reset();
  }

  void reset() override {
    A = register_parameter("A", at::empty({options.rank(), in_features_}));
    B = register_parameter("B", at::zeros({out_features_, options.rank()}));
    torch::nn::init::kaiming_uniform_(A, std::sqrt(5.0));
  }

  /// x: [..., in_features] -> s B (A dropout(x)): [..., out_features], computed in A's dtype.
  at::Tensor forward(const at::Tensor& x) const {
    return at::linear(low_rank(x), B) * options.scaling();
  }

  /// A dropout(x): [..., r], in A's dtype.
  at::Tensor low_rank(const at::Tensor& x) const {
    return at::linear(at::dropout(x.to(A.scalar_type()), options.dropout(), is_training()), A);
  }

  /// s B A: [out_features, in_features], what the adapter adds to the weight.
  at::Tensor delta() const { return at::mm(B, A) * options.scaling(); }

  void pretty_print(std::ostream& stream) const override {
    stream << "droppeft::Lora(rank=" << options.rank() << ", alpha=" << options.alpha()
           << ", dropout=" << options.dropout() << ", rslora=" << options.rslora() << ")";
  }

  LoraOptions options;
  at::Tensor A, B;

 private:
  std::int64_t in_features_, out_features_;
};

/// A low-rank update of a frozen linear map: y += s B (A dropout(x)), with A [r, in], B [out, r].
///
/// A starts uniform in +-1/sqrt(in) (from LibTorch's generator), B at zero, so that a new adapter
/// changes nothing. Parameters "A" and "B", in the default dtype.
///
/// Throws std::invalid_argument for rank < 1, alpha not positive, dropout outside [0, 1).
///
/// Source: Hu et al., "LoRA", arXiv 2106.09685; initialisation and scaling as in Hugging Face peft.
/// Most programs want droppeft::Linear and add_lora, which put it in its place.
TORCH_MODULE(Lora);

}  // namespace droppeft
