#pragma once

#include <ATen/record_function.h>

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "support.hpp"

/// x + down(gelu(up(norm(x)))): what the tests drop.
struct BlockImpl : torch::nn::Cloneable<BlockImpl> {
  explicit BlockImpl(std::int64_t features) : width(features) { reset(); }

  void reset() override {
    norm = register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({width})));
    up = register_module("up", torch::nn::Linear(width, 2 * width));
    down = register_module("down", torch::nn::Linear(2 * width, width));
  }

  torch::Tensor forward(const torch::Tensor& x) {
    ++calls;
    return x + down->forward(torch::gelu(up->forward(norm->forward(x))));
  }

  std::int64_t width;
  int calls = 0;
  torch::nn::LayerNorm norm{nullptr};
  torch::nn::Linear up{nullptr}, down{nullptr};
};
TORCH_MODULE(Block);

/// `count` blocks, the same ones for the same seed.
inline std::vector<Block> make_blocks(std::size_t count, std::int64_t width = 4,
                                      std::uint64_t seed = 1) {
  torch::manual_seed(seed);
  std::vector<Block> blocks;
  for (std::size_t i = 0; i < count; ++i) blocks.emplace_back(width);
  return blocks;
}

/// The operators that a piece of code calls on this thread.
class OpCounter {
 public:
  OpCounter() : previous_(current()), handle_(at::addThreadLocalCallback(callback())) {
    current() = &names_;
  }
  ~OpCounter() {
    at::removeCallback(handle_);
    current() = previous_;
  }
  OpCounter(const OpCounter&) = delete;
  OpCounter& operator=(const OpCounter&) = delete;

  std::size_t count() const { return names_.size(); }

 private:
  static std::vector<std::string>*& current() {
    static thread_local std::vector<std::string>* names = nullptr;
    return names;
  }
  static at::RecordFunctionCallback callback() {
    return at::RecordFunctionCallback(
               [](const at::RecordFunction& function) -> std::unique_ptr<at::ObserverContext> {
                 current()->emplace_back(function.name());
                 return nullptr;
               })
        .scopes({at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION});
  }

  std::vector<std::string> names_;
  std::vector<std::string>* previous_;
  at::CallbackHandle handle_;
};

/// Nodes of the autograd graph behind `y`.
inline std::size_t graph_nodes(const torch::Tensor& y) {
  std::set<const torch::autograd::Node*> seen;
  std::vector<const torch::autograd::Node*> open{y.grad_fn().get()};
  while (!open.empty()) {
    const auto* node = open.back();
    open.pop_back();
    if (node == nullptr || !seen.insert(node).second) continue;
    for (const auto& edge : node->next_edges()) open.push_back(edge.function.get());
  }
  return seen.size();
}
