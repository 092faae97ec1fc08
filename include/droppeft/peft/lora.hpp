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
#include "droppeft/core/masked.hpp"
#include "droppeft/core/module.hpp"
#include "droppeft/kernels/keep_mask.hpp"
#include "droppeft/peft/lora_linear.hpp"

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
class LoraImpl : public torch::nn::Cloneable<LoraImpl>, public Randomized {
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
  at::Tensor forward(const at::Tensor& x) {
    const auto [a, b, scaling, mask] = adapter();
    return at::linear(at::linear(detail::times_mask(x.to(a.scalar_type()), mask), a), b) * scaling;
  }

  /// What lora_linear takes for one forward pass; in training its mask is a fresh one.
  LowRank adapter() {
    return {A, B, options.scaling(),
            KeepMask::next(stream_, is_training() ? options.dropout() : 0)};
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
/// changes nothing. Parameters "A" and "B", in the default dtype. Which inputs are dropped comes
/// from a stream of its own (see Randomized) and their place: the same for any number of threads.
/// Each forward pass in training draws anew, a recomputation too.
///
/// Throws std::invalid_argument for rank < 1, alpha not positive, dropout outside [0, 1).
///
/// Source: Hu et al., "LoRA", arXiv 2106.09685; initialisation and scaling as in Hugging Face peft.
/// Most programs want droppeft::Linear and add_lora, which put it in its place.
TORCH_MODULE(Lora);

}  // namespace droppeft
