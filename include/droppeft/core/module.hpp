#pragma once

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_set>
#include <vector>

#include "droppeft/core/check.hpp"
#include "droppeft/random/stream.hpp"

namespace droppeft {

/// A module that draws random numbers of its own, from a stream that it can be given; a base class.
///
/// One that was given none has one of its own: the n-th of the process has Stream().fold(n), n = 0,
/// 1, ...; to repeat a run whatever was built before, give it one. Drawing changes the stream: use
/// a module that draws from one thread at a time.
class Randomized {
 public:
  virtual ~Randomized() = default;
  virtual void set_stream(const Stream& stream) { stream_ = stream; }

 protected:
  explicit Randomized(const std::optional<Stream>& stream = std::nullopt)
      : stream_(stream ? *stream : next_stream()) {}
  Randomized(const Randomized&) = default;
  Randomized& operator=(const Randomized&) = default;

  Stream stream_;

 private:
  static Stream next_stream() {
    static std::atomic<std::uint64_t> modules = 0;
    return Stream().fold(modules++);
  }
};

/// Gives the i-th Randomized module in `module`, itself included, the stream `stream.fold(i)`.
inline void set_stream(torch::nn::Module& module, const Stream& stream) {
  std::uint64_t index = 0;
  for (const auto& child : module.modules(/*include_self=*/false))
    if (auto* randomized = dynamic_cast<Randomized*>(child.get()))
      randomized->set_stream(stream.fold(index++));
  if (auto* randomized = dynamic_cast<Randomized*>(&module))
    randomized->set_stream(stream.fold(index));
}

/// All parameters that are trained (requires_grad), in the module's order: what an optimiser gets.
inline std::vector<at::Tensor> trainable_parameters(const torch::nn::Module& module) {
  std::vector<at::Tensor> trainable;
  for (const auto& parameter : module.parameters())
    if (parameter.requires_grad()) trainable.push_back(parameter);
  return trainable;
}

/// Switches training of every parameter of `module` off, or on again.
inline void freeze(torch::nn::Module& module, bool frozen = true) {
  for (auto& parameter : module.parameters()) parameter.set_requires_grad(!frozen);
}

/// Numbers in all parameters of `module`.
inline std::int64_t parameter_count(const torch::nn::Module& module) {
  std::int64_t count = 0;
  for (const auto& parameter : module.parameters()) count += parameter.numel();
  return count;
}

/// Numbers in those parameters of `module` that are trained (requires_grad).
inline std::int64_t trainable_parameter_count(const torch::nn::Module& module) {
  std::int64_t count = 0;
  for (const auto& parameter : trainable_parameters(module)) count += parameter.numel();
  return count;
}

namespace detail {

/// What Module::clone leaves out: requires_grad of every tensor and the training mode of every
/// module, and the proof that nothing is shared.
inline void complete_clone(const torch::nn::Module& original, torch::nn::Module& copy) {
  const auto memory_of = [](const at::Tensor& tensor) -> const void* {
    return tensor.defined() && tensor.has_storage() ? tensor.storage().data() : nullptr;
  };
  auto tensors = original.named_parameters();
  tensors.update(original.named_buffers());
  auto copied = copy.named_parameters();
  copied.update(copy.named_buffers());

  std::unordered_set<const void*> memory;
  for (const auto& entry : tensors) memory.insert(memory_of(entry.value()));
  memory.erase(nullptr);
  for (const auto& entry : tensors) {
    at::Tensor* target = copied.find(entry.key());
    check(target != nullptr, "clone: the copy of ", original.name(), " lacks '", entry.key(),
          "'; its reset() must register it");
    check(!memory.contains(memory_of(*target)), "clone: the copy of ", original.name(), " shares '",
          entry.key(), "'; its reset() must make a new one");
    if (target->defined()) target->set_requires_grad(entry.value().requires_grad());
  }
  const auto modules = copy.named_modules();
  for (const auto& entry : original.named_modules()) {
    const auto* target = modules.find(entry.key());
    check(target != nullptr, "clone: the copy of ", original.name(), " lacks the module '",
          entry.key(), "'; its reset() must register it");
    if ((*target)->is_training() != entry.value()->is_training())
      (*target)->train(entry.value()->is_training());
  }
}

/// Path and type of the innermost part of `module` that cannot be cloned.
inline std::string unclonable(const torch::nn::Module& module) {
  std::string culprit;
  for (const auto& entry : module.named_modules()) try {
      entry.value()->clone();
    } catch (const c10::Error&) {
      culprit = "'" + entry.key() + "' (" + entry.value()->name() + ")";
    }
  return culprit;
}

}  // namespace detail

/// A copy of a module that shares no parameter or buffer with it and keeps every requires_grad and
/// training mode. Streams are copied as they stand: the copy draws what the original would draw
/// next.
///
/// Works for whatever torch's own `clone()` works for: a module's `reset()` must register all of
/// its parameters, buffers and children. Throws std::invalid_argument naming the part that cannot
/// be cloned, or the tensor that the copy lacks or shares; also for a Sequential of named modules
/// where LibTorch loses their names (2.11 does, 2.15 does not). A module registered twice is two
/// modules in the copy. Not for simulating many devices over one frozen base: load each device's
/// State into one model instead.
template <class Impl>
std::shared_ptr<Impl> clone(const std::shared_ptr<Impl>& module) {
  check(module != nullptr, "clone: the module is empty");
  std::shared_ptr<Impl> copy;
  try {
    copy = std::dynamic_pointer_cast<Impl>(module->clone());
  } catch (const c10::Error& error) {
    check(false, "clone: ", detail::unclonable(*module), ": ", error.what_without_backtrace());
  }
  check(copy != nullptr, "clone: clone() of ", module->name(), " gave another type");
  detail::complete_clone(*module, *copy);
  return copy;
}

/// The same for a module holder such as torch::nn::Linear.
template <class Holder, class Impl = typename Holder::ContainedType>
Holder clone(const Holder& module) {
  return Holder(clone(module.ptr()));
}

/// A copy whose randomised modules draw from `stream` (see set_stream), so that devices cloned from
/// one model do not all draw the same numbers.
template <class Module>
Module clone(const Module& module, const Stream& stream) {
  auto copy = clone(module);
  set_stream(*copy, stream);
  return copy;
}

}  // namespace droppeft
