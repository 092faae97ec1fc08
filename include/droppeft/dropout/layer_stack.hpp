#pragma once

#include <ATen/ATen.h>
#include <torch/arg.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "droppeft/dropout/layer_dropout.hpp"

namespace droppeft {

/// Settings of LayerStack.
struct LayerStackOptions {
  /// One drop rate in [0, 1) for each layer; empty: zero for all.
  TORCH_ARG(std::vector<double>, rates) = {};
  TORCH_ARG(DropScaling, scaling) = DropScaling::none;
  /// Where the layers draw from when no plan is in force; by default a stream of the stack's own.
  TORCH_ARG(std::optional<Stream>, stream) = std::nullopt;
};

template <class Block, class Extra = detail::ExtraArguments<Block>>
class LayerStackImpl;

/// The module behind LayerStack.
template <class Block, class... Extra>
class LayerStackImpl<Block, void(Extra...)> : public torch::nn::Module, public Droppable {
 public:
  explicit LayerStackImpl(std::vector<Block> blocks, const LayerStackOptions& options = {})
      : Droppable(
            "LayerStack",
            options.rates().empty() ? std::vector<double>(blocks.size(), 0.0) : options.rates(),
            options.scaling(), options.stream()),
        layers(std::move(blocks)) {
    check(drop_rates().size() == layers.size(), "LayerStack: ", layers.size(),
          " layers need as many rates, got ", drop_rates().size());
    for (std::size_t layer = 0; layer < layers.size(); ++layer)
      register_module(std::to_string(layer), layers[layer]);
  }

  /// x: any shape. Runs the active layers in order, each as layer(x, extra...); a dropped one hands
  /// its input on (see DropScaling). Without a single active layer it returns x itself.
  at::Tensor forward(at::Tensor x, Extra... extra) {
    for (std::size_t layer = 0; layer < layers.size(); ++layer)
      x = run(layer, is_training(), x, [&] { return layers[layer]->forward(x, extra...); });
    return x;
  }

  std::shared_ptr<torch::nn::Module> clone(
      const std::optional<at::Device>& device = std::nullopt) const override {
    auto copy = std::make_shared<LayerStackImpl>(*this);
    for (std::size_t layer = 0; layer < layers.size(); ++layer) {
      auto child = std::dynamic_pointer_cast<detail::ImplOf<Block>>(layers[layer]->clone(device));
      copy->layers[layer] = copy->replace_module(std::to_string(layer), Block(std::move(child)));
    }
    return copy;
  }

  void pretty_print(std::ostream& stream) const override {
    stream << "droppeft::LayerStack(layers=" << layers.size() << ")";
  }

  /// The layers, first to last; also children "0", "1", ...
  std::vector<Block> layers;

 private:
  void clone_(torch::nn::Module& other, const std::optional<at::Device>& device) override {
    *this = dynamic_cast<LayerStackImpl&>(*other.clone(device));
  }
};

/// A list of layers of one type, of which a random part is absent from each training step.
///
///     LayerStack<EncoderLayer> encoder(layers);
///     encoder->set_drop_rates(drop_rates(RateShape::incremental, layers.size(), 0.5));
///     PlanScope scope(*encoder, FixedGate()(encoder->drop_rates(), stream.fold(step)));
///     auto y = encoder->forward(x, mask);
///
/// What LayerDropout says of one layer holds for each. In eval mode all layers run.
///
/// Throws std::invalid_argument for a rate outside [0, 1), a wrong number of rates, and in forward
/// when a layer changes the shape.
template <class Block>
class LayerStack : public torch::nn::ModuleHolder<LayerStackImpl<Block>> {
 public:
  using torch::nn::ModuleHolder<LayerStackImpl<Block>>::ModuleHolder;
};

}  // namespace droppeft
