#pragma once

#include <ATen/ATen.h>

#include <cmath>
#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "droppeft/core/check.hpp"
#include "droppeft/core/state.hpp"

namespace droppeft {

/// The weighted mean of what clients send: sum_k n_k w_k / sum_k n_k, tensor by tensor, over those
/// clients that sent the tensor.
///
///     FedAvg average;
///     for (auto& device : devices) average.add(trainable_state(*device.model), device.examples);
///     load_state(*global, average.value());     // what nobody sent stays as it was
///
/// A client that trained only some layers sends only those, and takes no part in the mean of the
/// others. Any order, same result: sums are kept in double and rounded once, at the end (two orders
/// may differ where a double sum lies on the edge between two floats).
///
/// Throws std::invalid_argument for a weight that is not positive and finite, a tensor whose shape
/// or dtype differs from that of the clients before, one that is not of floating point, or one with
/// a number that is not finite, since a single client that diverged would spoil the whole mean; the
/// average stays as it was. One thread at a time.
///
/// Source: McMahan et al., AISTATS 2017; per-tensor participation: PTLS of DropPEFT
/// (arXiv 2503.10217). Averaging LoRA's A and B separately is not averaging their products.
class FedAvg {
 public:
  /// weight: the client's number of examples, or any other positive number.
  void add(const State& state, double weight) {
    add(std::span(&state, 1), std::span<const double>(&weight, 1));
  }

  /// Many clients at once: the same sums, made tensor by tensor, so that each stays in the cache.
  void add(std::span<const State> states, std::span<const double> weights) {
    check(states.size() == weights.size(), "FedAvg::add: ", states.size(),
          " states need as many weights, got ", weights.size());
    at::NoGradGuard no_grad;
    std::map<std::string_view, std::vector<std::pair<at::Tensor, double>>> sent;
    for (std::size_t client = 0; client < states.size(); ++client) {
      const double weight = weights[client];
      check(std::isfinite(weight) && weight > 0,
            "FedAvg::add: weight must be positive and finite, got ", weight);
      for (const auto& [name, tensor] : states[client]) {
        check(tensor.is_floating_point(), "FedAvg::add: '", name,
              "' must be of floating point, got ", tensor.scalar_type());
        auto& parts = sent[name];
        const auto sum = sums_.find(name);
        const at::Tensor& before = !parts.empty()       ? parts.front().first
                                   : sum != sums_.end() ? sum->second.total
                                                        : tensor;
        const auto dtype = sum != sums_.end() ? sum->second.dtype : before.scalar_type();
        check(tensor.sizes() == before.sizes(), "FedAvg::add: '", name, "' has shape ",
              tensor.sizes(), ", but other clients sent ", before.sizes());
        check(tensor.scalar_type() == dtype, "FedAvg::add: '", name, "' is ", tensor.scalar_type(),
              ", but other clients sent ", dtype);
        check(std::isfinite(at::sum(tensor, at::kDouble).item<double>()), "FedAvg::add: '", name,
              "' of state ", client, " must hold finite numbers");
        parts.emplace_back(tensor, weight);
      }
    }
    for (const auto& [name, parts] : sent) {
      const at::Tensor& first = parts.front().first;
      auto& sum = sums_.try_emplace(std::string(name)).first->second;
      if (!sum.total.defined())
        sum = {at::zeros(first.sizes(), first.options().dtype(at::kDouble)), 0,
               first.scalar_type()};
      for (const auto& [tensor, weight] : parts) {
        sum.total.add_(tensor, weight);
        sum.weight += weight;
      }
    }
    clients_ += states.size();
  }

  /// The mean of every tensor that somebody sent. Empty before the first client.
  State value() const {
    at::NoGradGuard no_grad;
    State mean;
    for (const auto& [name, sum] : sums_) mean.insert(name, (sum.total / sum.weight).to(sum.dtype));
    return mean;
  }

  /// How many clients were added.
  std::size_t clients() const { return clients_; }

 private:
  struct Sum {
    at::Tensor total;
    double weight = 0;
    at::ScalarType dtype = at::kFloat;
  };
  std::map<std::string, Sum, std::less<>> sums_;
  std::size_t clients_ = 0;
};

}  // namespace droppeft
