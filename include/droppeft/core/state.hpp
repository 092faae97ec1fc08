#pragma once

#include <ATen/ATen.h>
#include <torch/nn/module.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "droppeft/core/check.hpp"

namespace droppeft {

/// Named tensors: what devices and servers exchange, and what a checkpoint holds.
///
/// Ordered by name. Names are the module's own paths ("encoder.layer.0.query.lora.A"). Copying a
/// State copies the map and shares the tensors, as copying an at::Tensor does; arithmetic never
/// writes to its arguments. Not safe to change from several threads; reading is.
class State {
 public:
  using Map = std::map<std::string, at::Tensor, std::less<>>;

  /// Throws std::invalid_argument for an undefined tensor or a name that is already there.
  void insert(std::string name, at::Tensor tensor) {
    check(tensor.defined(), "State::insert: the tensor '", name, "' is undefined");
    const auto [place, inserted] = tensors_.emplace(std::move(name), std::move(tensor));
    check(inserted, "State::insert: the name '", place->first, "' is already there");
  }

  /// Throws std::invalid_argument when there is no tensor of that name.
  const at::Tensor& at(std::string_view name) const {
    const auto found = tensors_.find(name);
    check(found != tensors_.end(), "State::at: no tensor is named '", name, "'");
    return found->second;
  }

  bool contains(std::string_view name) const { return tensors_.find(name) != tensors_.end(); }
  bool empty() const { return tensors_.empty(); }
  std::size_t size() const { return tensors_.size(); }
  Map::const_iterator begin() const { return tensors_.begin(); }
  Map::const_iterator end() const { return tensors_.end(); }

  /// Numbers in all tensors together.
  std::int64_t numel() const {
    std::int64_t count = 0;
    for (const auto& [name, tensor] : tensors_) count += tensor.numel();
    return count;
  }

  /// Bytes of all tensors together, as they would be sent.
  std::int64_t nbytes() const {
    std::int64_t bytes = 0;
    for (const auto& [name, tensor] : tensors_)
      bytes += tensor.numel() * static_cast<std::int64_t>(tensor.element_size());
    return bytes;
  }

  /// The tensors for whose names `wanted` is true; shared, not copied.
  State select(const std::function<bool(std::string_view)>& wanted) const {
    State chosen;
    for (const auto& [name, tensor] : tensors_)
      if (wanted(name)) chosen.tensors_.emplace_hint(chosen.tensors_.end(), name, tensor);
    return chosen;
  }

  /// A copy that shares no memory with this one.
  State clone() const {
    return map([](const at::Tensor& tensor) { return tensor.clone(); });
  }

  /// This state with the tensors of `newer` put in place of, or beside, its own; shared, not
  /// copied.
  State updated(const State& newer) const {
    State merged = newer;
    merged.tensors_.insert(tensors_.begin(), tensors_.end());
    return merged;
  }

  /// Element by element. Throws std::invalid_argument unless both have the same names and shapes.
  friend State operator+(const State& a, const State& b) {
    return combine(a, b, [](const at::Tensor& x, const at::Tensor& y) { return x + y; });
  }
  friend State operator-(const State& a, const State& b) {
    return combine(a, b, [](const at::Tensor& x, const at::Tensor& y) { return x - y; });
  }
  friend State operator*(double factor, const State& a) {
    return a.map([factor](const at::Tensor& tensor) { return tensor * factor; });
  }

  /// Throws std::invalid_argument, naming the first difference, unless `other` has the same names
  /// and shapes.
  void check_same_layout(const State& other) const {
    for (const auto& [name, tensor] : tensors_) {
      check(other.contains(name), "State: the tensor '", name, "' is missing from the other state");
      check(other.at(name).sizes() == tensor.sizes(), "State: the tensor '", name, "' has shape ",
            tensor.sizes(), " in one state and ", other.at(name).sizes(), " in the other");
    }
    for (const auto& [name, tensor] : other)
      check(contains(name), "State: the tensor '", name, "' is only in the other state");
  }

 private:
  template <class Function>
  State map(const Function& function) const {
    at::NoGradGuard no_grad;
    State result;
    for (const auto& [name, tensor] : tensors_)
      result.tensors_.emplace_hint(result.tensors_.end(), name, function(tensor));
    return result;
  }

  template <class Function>
  static State combine(const State& a, const State& b, const Function& function) {
    a.check_same_layout(b);
    at::NoGradGuard no_grad;
    State result;
    for (const auto& [name, tensor] : a)
      result.tensors_.emplace_hint(result.tensors_.end(), name, function(tensor, b.at(name)));
    return result;
  }

  Map tensors_;
};

/// Copies of all parameters and buffers of `module`, trained or not.
inline State full_state(const torch::nn::Module& module) {
  State state;
  for (const auto& entry : module.named_parameters())
    state.insert(entry.key(), entry.value().detach().clone());
  for (const auto& entry : module.named_buffers())
    if (entry.value().defined()) state.insert(entry.key(), entry.value().detach().clone());
  return state;
}

/// Copies of the parameters of `module` that are trained (requires_grad), under their own names.
inline State trainable_state(const torch::nn::Module& module) {
  State state;
  for (const auto& entry : module.named_parameters())
    if (entry.value().requires_grad()) state.insert(entry.key(), entry.value().detach().clone());
  return state;
}

/// Copies the tensors of `state` into the parameters and buffers of `module` of the same names; the
/// others stay as they are. Values are converted to the module's dtype and device.
///
/// Throws std::invalid_argument, before anything is written, for a name that the module does not
/// have or a shape that differs.
inline void load_state(torch::nn::Module& module, const State& state) {
  at::NoGradGuard no_grad;
  auto parameters = module.named_parameters();
  auto buffers = module.named_buffers();
  std::vector<std::pair<at::Tensor, at::Tensor>> copies;
  for (const auto& [name, tensor] : state) {
    at::Tensor* target = parameters.find(name);
    if (target == nullptr) target = buffers.find(name);
    check(target != nullptr && target->defined(), "load_state: ", module.name(),
          " has no tensor named '", name, "'");
    check(target->sizes() == tensor.sizes(), "load_state: '", name, "' has shape ", tensor.sizes(),
          ", but that of the module is ", target->sizes());
    copies.emplace_back(*target, tensor);
  }
  for (auto& [target, source] : copies) target.copy_(source);
}

}  // namespace droppeft
