#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "droppeft/core/check.hpp"
#include "droppeft/core/parallel.hpp"
#include "droppeft/core/state.hpp"
#include "droppeft/kernels/cpu/weighted_sum.hpp"

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
/// Throws std::invalid_argument for a weight that is not positive and finite, a tensor whose shape,
/// dtype or device differs from that of the clients before, one that is not of floating point, or
/// one with a number that is not finite, since a single client that diverged would spoil the whole
/// mean; the average stays as it was. One thread at a time.
///
/// Source: McMahan et al., AISTATS 2017; per-tensor participation: PTLS of DropPEFT
/// (arXiv 2503.10217). Averaging LoRA's A and B separately is not averaging their products.
class FedAvg {
 public:
  /// weight: the client's number of examples, or any other positive number.
  void add(const State& state, double weight) {
    add(std::span(&state, 1), std::span<const double>(&weight, 1));
  }

  /// Many clients at once: the same sums, with what each client sent read once.
  void add(std::span<const State> states, std::span<const double> weights) {
    check(states.size() == weights.size(), "FedAvg::add: ", states.size(),
          " states need as many weights, got ", weights.size());
    at::NoGradGuard no_grad;
    std::map<std::string_view, Sent> all_sent;
    for (std::size_t state = 0; state < states.size(); ++state) {
      const double weight = weights[state];
      check(std::isfinite(weight) && weight > 0,
            "FedAvg::add: weight must be positive and finite, got ", weight);
      auto next = all_sent.begin();  // both are ordered by name
      for (const auto& [name, tensor] : states[state]) {
        check(tensor.is_floating_point(), "FedAvg::add: '", name,
              "' must be of floating point, got ", tensor.scalar_type());
        const auto place = all_sent.try_emplace(next, name);
        next = std::next(place);
        Sent& sent = place->second;
        if (sent.tensors.empty()) {
          const auto sum = sums_.find(name);
          sent.sum = sum != sums_.end() ? sum->second : Sum{{}, 0, tensor.scalar_type()};
          sent.tensors.reserve(states.size());
          sent.weights.reserve(states.size());
          sent.states.reserve(states.size());
        }
        const at::Tensor& other = !sent.tensors.empty()      ? sent.tensors.front()
                                  : sent.sum.total.defined() ? sent.sum.total
                                                             : tensor;
        check(tensor.sizes() == other.sizes(), "FedAvg::add: '", name, "' has shape ",
              tensor.sizes(), ", but other clients sent ", other.sizes());
        check(tensor.scalar_type() == sent.sum.dtype, "FedAvg::add: '", name, "' is ",
              tensor.scalar_type(), ", but other clients sent ", sent.sum.dtype);
        check(tensor.device() == other.device(), "FedAvg::add: '", name, "' is on ",
              tensor.device(), ", but other clients sent it on ", other.device());
        sent.tensors.push_back(tensor);
        sent.weights.push_back(weight);
        sent.states.push_back(state);
        sent.sum.weight += weight;
        check(std::isfinite(sent.sum.weight), "FedAvg::add: the sum of the weights of '", name,
              "' must be finite, got ", sent.sum.weight);
      }
    }

    // Into new tensors: a number that is not finite must leave the old sums as they were.
    for (auto& [name, sent] : all_sent) sent.before = std::exchange(sent.sum.total, {});
    add_up(all_sent);
    for (auto& [name, sent] : all_sent) sums_[std::string(name)] = std::move(sent.sum);
    clients_ += states.size();
  }

  /// The mean of every tensor that somebody sent. Empty before the first client.
  State value() const {
    at::NoGradGuard no_grad;
    State mean;
    std::vector<at::Tensor> totals, means;
    std::vector<double> weights;
    for (const auto& [name, sum] : sums_) {
      if (sum.dtype == at::kFloat && sum.total.is_cpu()) {
        means.push_back(at::empty(sum.total.sizes(), at::kFloat));
        totals.push_back(sum.total);
        weights.push_back(sum.weight);
        mean.insert(name, means.back());
      } else {
        mean.insert(name, (sum.total / sum.weight).to(sum.dtype));
      }
    }
    in_stretches(totals, [&](std::size_t i, std::int64_t first, std::size_t count) {
      cpu::divide(means[i].data_ptr<float>() + first, totals[i].data_ptr<double>() + first,
                  weights[i], count);
    });
    return mean;
  }

  /// How many clients were added.
  std::size_t clients() const { return clients_; }

 private:
  struct Sum {
    at::Tensor total;  // double
    double weight = 0;
    at::ScalarType dtype = at::kFloat;
  };

  /// What the clients of one call sent under one name.
  struct Sent {
    Sum sum;            // so far, and then with this call
    at::Tensor before;  // sum.total before this call, undefined if there was none
    std::vector<at::Tensor> tensors;
    std::vector<double> weights;
    std::vector<std::size_t> states;
  };

  /// Makes every sum: before + sum_k weights[k] tensors[k].
  static void add_up(std::map<std::string_view, Sent>& all_sent) {
    std::vector<std::pair<std::string_view, Sent*>> order;
    std::vector<at::Tensor> totals;
    for (auto& [name, sent] : all_sent) {
      at::Tensor& total = sent.sum.total;
      total = at::empty(sent.tensors.front().sizes(),
                        sent.tensors.front().options().dtype(at::kDouble));
      if (total.is_cpu()) {
        // The kernel knows float and double, to which the shorter types convert exactly.
        const auto known = sent.sum.dtype == at::kDouble ? at::kDouble : at::kFloat;
        for (at::Tensor& tensor : sent.tensors)
          if (tensor.scalar_type() != known || !tensor.is_contiguous())
            tensor = tensor.to(known).contiguous();
        order.emplace_back(name, &sent);
        totals.push_back(total);
        continue;
      }
      sent.before.defined() ? total.copy_(sent.before) : total.zero_();
      for (std::size_t i = 0; i < sent.tensors.size(); ++i)
        total.add_(sent.tensors[i], sent.weights[i]);
      if (!at::isfinite(total).all().item<bool>()) refuse(name, sent);
    }
    std::vector<std::atomic<bool>> finite(totals.size());
    for (auto& each : finite) each = true;
    in_stretches(totals, [&](std::size_t i, std::int64_t first, std::size_t count) {
      const Sent& sent = *order[i].second;
      if (!(sent.sum.dtype == at::kDouble ? add_up<double>(sent, first, count)
                                          : add_up<float>(sent, first, count)))
        finite[i] = false;
    });
    for (std::size_t i = 0; i < finite.size(); ++i)
      if (!finite[i]) refuse(order[i].first, *order[i].second);
  }

  /// The same for `count` numbers from `first` on; whether all are finite.
  template <class T>
  static bool add_up(const Sent& sent, std::int64_t first, std::size_t count) {
    std::vector<const T*> rows;
    rows.reserve(sent.tensors.size());
    for (const at::Tensor& tensor : sent.tensors) rows.push_back(tensor.data_ptr<T>() + first);
    const double* before = sent.before.defined() ? sent.before.data_ptr<double>() + first : nullptr;
    return cpu::weighted_sum<T>(sent.sum.total.data_ptr<double>() + first, before, rows,
                                sent.weights, count);
  }

  /// Calls function(tensor, first, count) for stretches of the tensors, in parallel.
  template <class Function>
  static void in_stretches(const std::vector<at::Tensor>& tensors, const Function& function) {
    constexpr std::int64_t length = 1 << 14;
    std::vector<std::pair<std::size_t, std::int64_t>> stretches;
    for (std::size_t i = 0; i < tensors.size(); ++i)
      for (std::int64_t first = 0; first < tensors[i].numel(); first += length)
        stretches.emplace_back(i, first);
    at::parallel_for(0, static_cast<std::int64_t>(stretches.size()), 1,
                     [&](std::int64_t begin, std::int64_t end) {
                       for (; begin < end; ++begin) {
                         const auto [i, first] = stretches[static_cast<std::size_t>(begin)];
                         const auto left = tensors[i].numel() - first;
                         function(i, first, static_cast<std::size_t>(std::min(left, length)));
                       }
                     });
  }

  [[noreturn]] static void refuse(std::string_view name, const Sent& sent) {
    for (std::size_t i = 0; i < sent.tensors.size(); ++i)
      check(at::isfinite(sent.tensors[i]).all().item<bool>(), "FedAvg::add: '", name, "' of state ",
            sent.states[i], " must hold finite numbers");
    throw std::invalid_argument("FedAvg::add: the weighted sum of '" + std::string(name) +
                                "' must be finite");
  }

  std::map<std::string, Sum, std::less<>> sums_;
  std::size_t clients_ = 0;
};

}  // namespace droppeft
