#pragma once

#include <ATen/ATen.h>
#include <torch/arg.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "droppeft/dropout/droppable.hpp"

namespace droppeft {

/// Settings of LayerDropout.
struct LayerDropoutOptions {
  LayerDropoutOptions(double rate) : rate_(rate) {}  // NOLINT: a bare rate is how users write it

  /// Probability, in [0, 1), that the layer is absent from a training step.
  TORCH_ARG(double, rate);
  TORCH_ARG(DropScaling, scaling) = DropScaling::none;
  /// Where the layer draws from when no plan is in force; by default a stream of its own.
  TORCH_ARG(std::optional<Stream>, stream) = std::nullopt;
};

namespace detail {

template <class Function>
struct ForwardArguments;
template <class Result, class Class, class Input, class... Rest>
struct ForwardArguments<Result (Class::*)(Input, Rest...)> {
  static_assert(std::is_same_v<Result, at::Tensor> &&
                    std::is_same_v<std::remove_cvref_t<Input>, at::Tensor>,
                "droppeft: the forward of a layer that may be dropped takes a Tensor first and "
                "returns a Tensor of the same shape");
  using type = void(Rest...);
};
template <class Result, class Class, class... Arguments>
struct ForwardArguments<Result (Class::*)(Arguments...) const>
    : ForwardArguments<Result (Class::*)(Arguments...)> {};

/// The module type behind a holder such as torch::nn::Linear.
template <class Holder>
using ImplOf = typename Holder::ContainedType;

/// `void(Rest...)` for a module whose forward is Tensor(Tensor, Rest...).
template <class Holder>
using ExtraArguments = typename ForwardArguments<decltype(&ImplOf<Holder>::forward)>::type;

/// Lets a wrapper hand on the default arguments that its child's forward has in a Sequential.
struct DefaultArguments : torch::nn::Module {
  static bool any(torch::nn::Module& module) {
    return (module.*&DefaultArguments::_forward_has_default_args)();
  }
  static unsigned required(torch::nn::Module& module) {
    return (module.*&DefaultArguments::_forward_num_required_args)();
  }
  static std::vector<torch::nn::AnyValue> populate(torch::nn::Module& module,
                                                   std::vector<torch::nn::AnyValue>&& arguments) {
    return (module.*&DefaultArguments::_forward_populate_default_args)(std::move(arguments));
  }
};

}  // namespace detail

template <class Block, class Extra = detail::ExtraArguments<Block>>
class LayerDropoutImpl;

/// The module behind LayerDropout.
template <class Block, class... Extra>
class LayerDropoutImpl<Block, void(Extra...)> : public torch::nn::Module, public Droppable {
 public:
  LayerDropoutImpl(Block block, const LayerDropoutOptions& options)
      : Droppable("LayerDropout", {options.rate()}, options.scaling(), options.stream()),
        layer(register_module("layer", std::move(block))) {}

  /// x: any shape. Returns layer(x, extra...) of that shape, scaled (see DropScaling), or, when the
  /// layer is dropped, x itself.
  at::Tensor forward(const at::Tensor& x, Extra... extra) {
    return run(0, is_training(), x,
               [&] { return layer->forward(x, std::forward<Extra>(extra)...); });
  }

  std::shared_ptr<torch::nn::Module> clone(
      const std::optional<at::Device>& device = std::nullopt) const override {
    auto copy = std::make_shared<LayerDropoutImpl>(*this);
    auto child = std::dynamic_pointer_cast<detail::ImplOf<Block>>(layer->clone(device));
    copy->layer = copy->replace_module("layer", Block(std::move(child)));
    return copy;
  }

  void pretty_print(std::ostream& stream) const override {
    stream << "droppeft::LayerDropout(rate=" << drop_rates()[0] << ")";
  }

  /// The wrapped layer.
  Block layer;

 private:
  template <class, class...>
  friend struct torch::nn::AnyModuleHolder;

  bool _forward_has_default_args() override { return detail::DefaultArguments::any(*layer); }
  unsigned int _forward_num_required_args() override {
    return detail::DefaultArguments::required(*layer);
  }
  std::vector<torch::nn::AnyValue> _forward_populate_default_args(
      std::vector<torch::nn::AnyValue>&& arguments) override {
    return detail::DefaultArguments::populate(*layer, std::move(arguments));
  }

  void clone_(torch::nn::Module& other, const std::optional<at::Device>& device) override {
    *this = dynamic_cast<LayerDropoutImpl&>(*other.clone(device));
  }
};

/// A layer that is absent from a random part of the training steps: stochastic layer dropout.
///
/// With probability `rate` the layer is dropped: nothing of it is computed, remembered or trained,
/// and its input is returned as it is (the very tensor). Else it runs. In eval mode it always runs.
/// Optimisers leave a dropped layer's parameters and moments alone as long as its gradients are
/// undefined, which `zero_grad()` sees to by default; `zero_grad(false)` defeats it.
///
///     auto block = LayerDropout(TransformerEncoderLayer(options), 0.3);
///     torch::nn::Sequential model(block, ...);
///
/// `Block` is a module holder whose `forward` takes a Tensor first, returns one of the same shape,
/// and is neither overloaded nor templated; its other arguments (masks) pass through. Default
/// arguments of the block work inside Sequential, not in a direct call. Which layers run: the plan
/// in force (PlanScope), else the layer's own stream; see Droppable.
///
/// Throws std::invalid_argument for a rate outside [0, 1), NaN included, and in forward when the
/// block changes the shape.
///
/// Source: STLD of DropPEFT (arXiv 2503.10217); stochastic depth (Huang et al., ECCV 2016). Not for
/// layers without a residual connection inside: dropping those removes the signal's only path.
template <class Block>
class LayerDropout : public torch::nn::ModuleHolder<LayerDropoutImpl<Block>> {
 public:
  using torch::nn::ModuleHolder<LayerDropoutImpl<Block>>::ModuleHolder;
  LayerDropout(Block block, const LayerDropoutOptions& options)
      : torch::nn::ModuleHolder<LayerDropoutImpl<Block>>(
            std::make_shared<LayerDropoutImpl<Block>>(std::move(block), options)) {}
};

template <class Block, class Options>
LayerDropout(Block, Options) -> LayerDropout<Block>;

}  // namespace droppeft
