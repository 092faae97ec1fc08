#pragma once

#include <ATen/ATen.h>
#include <torch/nn/module.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "droppeft/core/check.hpp"
#include "droppeft/core/module.hpp"
#include "droppeft/dropout/gate.hpp"
#include "droppeft/dropout/rate_schedule.hpp"
#include "droppeft/random/stream.hpp"

namespace droppeft {

/// How the output of a layer that may be dropped is scaled. With input x, the layer's output f(x),
/// drop rate p:
///
/// | | layer active in training | layer dropped | eval mode |
/// |---|---|---|---|
/// | none (the default; LayerDrop, torchtune) | f(x) | x | f(x) |
/// | inverse_keep_in_training (DINOv2, PLD) | x + (f(x) - x) / (1 - p) | x | f(x) |
/// | keep_at_inference (stochastic depth) | f(x) | x | x + (1 - p) (f(x) - x) |
///
/// The last two keep the expected output of a residual layer the same in training and eval mode.
/// Sources: Huang et al., "Deep networks with stochastic depth", ECCV 2016; Fan et al., "Reducing
/// transformer depth on demand with structured dropout", ICLR 2020.
enum class DropScaling { none, inverse_keep_in_training, keep_at_inference };

class PlanScope;

/// What holds layers that may be dropped: a base of LayerDropout (one layer) and LayerStack (many).
///
/// In training mode a layer is dropped when the plan in force says so (see PlanScope); without a
/// plan each layer draws for itself, at its own rate, from the holder's stream, as
/// torch::nn::Dropout does (see Randomized). In eval mode all layers run.
class Droppable : public Randomized {
 public:
  /// One rate a layer, each in [0, 1).
  std::span<const double> drop_rates() const { return rates_; }

  /// Throws std::invalid_argument unless there is one rate in [0, 1) for each layer.
  void set_drop_rates(std::span<const double> rates) {
    check(rates.size() == rates_.size(), "set_drop_rates: ", rates_.size(),
          " layers need as many rates, got ", rates.size());
    if (!rates.empty()) check_drop_rates(rates, "set_drop_rates");
    rates_.assign(rates.begin(), rates.end());
  }

 protected:
  /// `who` begins the message about a rate out of range.
  Droppable(std::string_view who, std::vector<double> rates, DropScaling scaling,
            const std::optional<Stream>& stream)
      : Randomized(stream), rates_(std::move(rates)), scaling_(scaling) {
    if (!rates_.empty()) check_drop_rates(rates_, who);
  }

  /// Is layer `layer` of this holder to run now? Asked once for each forward pass.
  bool draw(std::size_t layer, bool training);

  /// Runs `function(x)` for layer `layer` if it is active, scales it, or returns x itself.
  template <class Function>
  at::Tensor run(std::size_t layer, bool training, const at::Tensor& x, const Function& function) {
    if (!draw(layer, training)) return x;
    at::Tensor y = function();
    check(y.sizes() == x.sizes(), "a layer that may be dropped must keep the shape of its input ",
          x.sizes(), ", but gave ", y.sizes());
    const double keep = 1 - rates_[layer];
    if (keep == 1) return y;
    if (training && scaling_ == DropScaling::inverse_keep_in_training) return x + (y - x) / keep;
    if (!training && scaling_ == DropScaling::keep_at_inference) return x + (y - x) * keep;
    return y;
  }

 private:
  std::vector<double> rates_;
  DropScaling scaling_;
};

/// The holders of droppable layers in `model`, itself included, in the order of its modules; one
/// that is registered twice counts once.
inline std::vector<Droppable*> droppables(torch::nn::Module& model) {
  std::vector<Droppable*> found;
  if (auto* self = dynamic_cast<Droppable*>(&model)) found.push_back(self);
  for (const auto& module : model.modules(/*include_self=*/false))
    if (auto* droppable = dynamic_cast<Droppable*>(module.get()))
      if (std::ranges::find(found, droppable) == found.end()) found.push_back(droppable);
  return found;
}

/// The drop rates of all droppable layers of `model`, in the order of its modules: what a Gate is
/// given.
inline std::vector<double> drop_rates(torch::nn::Module& model) {
  std::vector<double> rates;
  for (const auto* droppable : droppables(model))
    rates.insert(rates.end(), droppable->drop_rates().begin(), droppable->drop_rates().end());
  return rates;
}

/// Sets the drop rates of all droppable layers of `model`, in the order of its modules.
///
/// Throws std::invalid_argument, with nothing changed, unless there is one rate in [0, 1) for each.
inline void set_drop_rates(torch::nn::Module& model, std::span<const double> rates) {
  const auto holders = droppables(model);
  std::size_t layers = 0;
  for (const auto* holder : holders) layers += holder->drop_rates().size();
  check(rates.size() == layers, "set_drop_rates: the model has ", layers,
        " droppable layers and needs as many rates, got ", rates.size());
  if (!rates.empty()) check_drop_rates(rates, "set_drop_rates");
  std::size_t first = 0;
  for (auto* holder : holders) {
    const auto count = holder->drop_rates().size();
    holder->set_drop_rates(rates.subspan(first, count));
    first += count;
  }
}

/// Puts a plan in force for the droppable layers of one model, on this thread, until it is
/// destroyed.
///
///     const Plan plan = FixedGate()(drop_rates(*model), Stream(seed).fold(step));
///     PlanScope scope(*model, plan);
///     loss_of(model->forward(x)).backward();
///
/// While it is in force nothing is drawn inside `forward`: the same plan holds for every forward
/// pass, a recomputation on this thread included. The model is not changed, so several threads may
/// run one model under plans of their own. Scopes nest; the innermost that knows a layer decides.
/// In eval mode plans are ignored and every layer runs. The model must not gain or lose layers
/// meanwhile.
///
/// The constructor throws std::invalid_argument unless the plan has as many layers as the model.
class PlanScope {
 public:
  PlanScope(torch::nn::Module& model, Plan plan) : plan_(std::move(plan)), outer_(innermost()) {
    std::size_t first = 0;
    for (const auto* holder : droppables(model)) {
      holders_.emplace_back(holder, first);
      first += holder->drop_rates().size();
    }
    check(plan_.layers() == first, "PlanScope: the model has ", first,
          " droppable layers, but the plan is for ", plan_.layers());
    innermost() = this;
  }
  ~PlanScope() { innermost() = outer_; }
  PlanScope(const PlanScope&) = delete;
  PlanScope& operator=(const PlanScope&) = delete;

 private:
  friend class Droppable;

  static const PlanScope*& innermost() {
    static thread_local const PlanScope* scope = nullptr;
    return scope;
  }

  Plan plan_;
  std::vector<std::pair<const Droppable*, std::size_t>> holders_;
  const PlanScope* outer_;
};

inline bool Droppable::draw(std::size_t layer, bool training) {
  if (!training) return true;
  for (const auto* scope = PlanScope::innermost(); scope != nullptr; scope = scope->outer_)
    for (const auto& [holder, first] : scope->holders_)
      if (holder == this) return scope->plan_.active(first + layer);
  return stream_.uniform() >= rates_[layer];
}

}  // namespace droppeft
