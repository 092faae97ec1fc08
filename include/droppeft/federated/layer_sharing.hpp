#pragma once

#include <ATen/ATen.h>
#include <torch/nn/module.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "droppeft/core/check.hpp"
#include "droppeft/core/state.hpp"

namespace droppeft {

/// Which layer a parameter belongs to, read off its name: the number behind `prefix`.
///
/// LayerNames("encoder.layer.") takes "encoder.layer.3.attention.query.lora.A" to 3, and
/// "classifier.weight" to nothing. The prefix counts at the start of the name or behind a dot. An
/// empty one is for a Sequential or LayerStack itself: "3.layer.weight" belongs to layer 3.
class LayerNames {
 public:
  /// Throws std::invalid_argument unless the prefix is empty or ends in a dot.
  explicit LayerNames(std::string prefix) : prefix_(std::move(prefix)) {
    check(prefix_.empty() || prefix_.ends_with('.'),
          "LayerNames: the prefix must be empty or end in a dot, got '", prefix_, "'");
  }

  std::optional<std::size_t> operator()(std::string_view name) const {
    for (auto at = name.find(prefix_); at != std::string_view::npos;
         at = name.find(prefix_, at + 1)) {
      if (at > 0 && (prefix_.empty() || name[at - 1] != '.')) continue;
      const std::string_view rest = name.substr(at + prefix_.size());
      std::size_t layer = 0;
      const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), layer);
      if (error == std::errc() && (end == rest.data() + rest.size() || *end == '.')) return layer;
    }
    return std::nullopt;
  }

 private:
  std::string prefix_;
};

/// How much each layer of a device wants to change: the root mean square, over the steps in which
/// the layer was active, of the norm of its trained parameters' gradient.
///
///     importance.add(*model);                    // after each backward, before the next zero_grad
///     const auto shared = top_layers(importance.value(), k);
///
/// I_l = sqrt(sum_{t: l active} ||g_{l,t}||^2 / #{t: l active}). A layer counts as active in a step
/// when one of its trained parameters has a gradient, so clear gradients with zero_grad() as it is
/// by default, to none. A layer that never ran has importance 0.
///
/// Source: PTLS of DropPEFT (arXiv 2503.10217): importance from accumulated gradient norms of the
/// steps in which a layer was active. The mean over those steps is ours: a sum would punish layers
/// for having been dropped.
class LayerImportance {
 public:
  LayerImportance(LayerNames names, std::size_t layers)
      : names_(std::move(names)), squares_(layers, 0.0), steps_(layers, 0) {}

  /// Throws std::invalid_argument for a parameter of a layer beyond the last.
  void add(const torch::nn::Module& model) {
    std::vector<double> squares(squares_.size(), -1);
    for (const auto& entry : model.named_parameters()) {
      const at::Tensor& gradient = entry.value().grad();
      if (!entry.value().requires_grad() || !gradient.defined()) continue;
      const auto layer = names_(entry.key());
      if (!layer) continue;
      check(*layer < squares.size(), "LayerImportance: '", entry.key(),
            "' belongs to a layer beyond the last, ", squares.size() - 1);
      const double norm = at::linalg_vector_norm(gradient).item<double>();
      squares[*layer] = std::max(squares[*layer], 0.0) + norm * norm;
    }
    for (std::size_t layer = 0; layer < squares.size(); ++layer) {
      if (squares[layer] < 0) continue;
      squares_[layer] += squares[layer];
      ++steps_[layer];
    }
  }

  std::vector<double> value() const {
    std::vector<double> importance(squares_.size(), 0.0);
    for (std::size_t layer = 0; layer < importance.size(); ++layer)
      if (steps_[layer] > 0)
        importance[layer] = std::sqrt(squares_[layer] / static_cast<double>(steps_[layer]));
    return importance;
  }

  /// In how many of the steps each layer was active.
  std::span<const std::size_t> active_steps() const { return steps_; }

 private:
  LayerNames names_;
  std::vector<double> squares_;
  std::vector<std::size_t> steps_;
};

/// The k layers of greatest importance, in ascending order; of equals the shallower one. Layers of
/// importance 0 were never trained and are left out, so there may be fewer than k.
///
/// Throws std::invalid_argument when k is larger than the number of layers, or for an importance
/// that is negative or NaN.
inline std::vector<std::size_t> top_layers(std::span<const double> importance, std::size_t k) {
  check(k <= importance.size(), "top_layers: k must be in [0, ", importance.size(), "], got ", k);
  for (const double value : importance)
    check(value >= 0, "top_layers: importance must be at least 0, got ", value);
  std::vector<std::size_t> order(importance.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [importance](std::size_t a, std::size_t b) {
    return importance[a] > importance[b];
  });
  order.resize(k);
  std::erase_if(order, [importance](std::size_t layer) { return !(importance[layer] > 0); });
  std::sort(order.begin(), order.end());
  return order;
}

/// The tensors of `state` that belong to one of `layers`, which is sorted; with `outside`, also
/// those that belong to no layer (a head, say).
///
/// What a device sends under PTLS: each layer is then averaged over the devices that shared it
/// (FedAvg), and the device keeps the rest as its own: global.updated(personal).
inline State layer_part(const State& state, const LayerNames& names,
                        std::span<const std::size_t> layers, bool outside) {
  return state.select([&](std::string_view name) {
    const auto layer = names(name);
    return layer ? std::binary_search(layers.begin(), layers.end(), *layer) : outside;
  });
}

}  // namespace droppeft
