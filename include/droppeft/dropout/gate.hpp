#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "droppeft/core/check.hpp"
#include "droppeft/dropout/rate_schedule.hpp"
#include "droppeft/random/shuffle.hpp"
#include "droppeft/random/stream.hpp"

namespace droppeft {

/// Which layers are active in a step. A value; layers count from 0.
class Plan {
 public:
  /// All of `layers` layers active.
  explicit Plan(std::size_t layers = 0) : active_(layers, true), active_count_(layers) {}

  std::size_t layers() const { return active_.size(); }
  std::size_t active_count() const { return active_count_; }

  /// Whether `layer` is active; throws std::invalid_argument unless layer < layers().
  bool active(std::size_t layer) const {
    check_layer(layer);
    return active_[layer];
  }

  /// Makes `layer` active or not; throws std::invalid_argument unless layer < layers().
  void set(std::size_t layer, bool active) {
    check_layer(layer);
    active_count_ += static_cast<std::size_t>(active);
    active_count_ -= static_cast<std::size_t>(active_[layer]);
    active_[layer] = active;
  }

  friend bool operator==(const Plan&, const Plan&) = default;

 private:
  void check_layer(std::size_t layer) const {
    check(layer < layers(), "Plan: layer must be below ", layers(), ", got ", layer);
  }

  std::vector<bool> active_;
  std::size_t active_count_;
};

/// A gate draws the plan of a step: a callable (drop rate of each layer, stream) -> Plan with as
/// many layers as rates. The same stream gives the same plan; the call leaves the stream further
/// on.
template <class T>
concept Gate = requires(const T& gate, std::span<const double> drop_rates, Stream stream) {
  { gate(drop_rates, stream) } -> std::same_as<Plan>;
};

/// Drops each layer by itself with its own rate: active_l ~ Bernoulli(1 - P_l), as in DropPEFT
/// (arXiv 2503.10217). The number of active layers varies from step to step, and with it time and
/// memory; where that matters use FixedGate.
///
/// Rates in [0, 1), at least one; else std::invalid_argument.
struct BernoulliGate {
  /// Never drop all layers: plans without a layer are redrawn, which raises each keep rate from q_l
  /// to q_l / (1 - prod_j (1 - q_j)). See marginal_rates.
  bool keep_one = false;

  Plan operator()(std::span<const double> drop_rates, Stream stream) const {
    check_drop_rates(drop_rates, "BernoulliGate");
    Plan plan(drop_rates.size());
    std::size_t layer = 0;
    if (keep_one) {
      // The law of redrawing, without its unbounded loop: the first active layer is l with
      // probability prod_{j < l} P_j (1 - P_l) / any_active, and those after it are independent.
      double left = stream.uniform() * any_active(drop_rates);
      double none_before = 1;
      for (; layer + 1 < drop_rates.size(); ++layer) {
        left -= none_before * (1 - drop_rates[layer]);
        if (left < 0) break;
        none_before *= drop_rates[layer];
        plan.set(layer, false);
      }
      ++layer;
    }
    for (; layer < drop_rates.size(); ++layer)
      plan.set(layer, stream.uniform() >= drop_rates[layer]);
    return plan;
  }

  /// The rates at which this gate in fact drops each layer.
  std::vector<double> marginal_rates(std::span<const double> drop_rates) const {
    check_drop_rates(drop_rates, "BernoulliGate");
    std::vector<double> marginal(drop_rates.begin(), drop_rates.end());
    const double any = keep_one ? any_active(drop_rates) : 1;
    for (double& rate : marginal) rate = std::max(0.0, 1 - (1 - rate) / any);
    return marginal;
  }

 private:
  /// 1 - prod_l P_l, without cancellation.
  static double any_active(std::span<const double> drop_rates) {
    double any = 0;
    for (const double rate : drop_rates) any = (1 - rate) + rate * any;
    return any;
  }
};

/// Keeps a fixed number of layers: k = sum_l (1 - P_l) when that is a whole number (to within
/// 2^-30), else its floor or ceiling with the odds that keep the mean. Each layer keeps its own
/// rate P_l exactly, whatever the others are.
///
/// Systematic sampling (Madow 1949): the keep rates are laid end to end and the layers are kept in
/// whose interval one of the points u, u + 1, u + 2, ... falls, u uniform in [0, 1). The layers are
/// laid in a freshly permuted order, so that with equal rates all k-subsets are equally likely; in
/// one fixed order only L / k different plans would ever occur. Keep rates are multiples of 2^-53
/// and are added up as integers, so nothing is lost to rounding.
///
/// Rates in [0, 1), at least one; else std::invalid_argument.
struct FixedGate {
  /// Never drop all layers. That can happen only when the keep rates q_l sum to less than 1; then
  /// exactly one layer is kept, l with probability q_l / sum_j q_j. See marginal_rates.
  bool keep_one = false;

  Plan operator()(std::span<const double> drop_rates, Stream stream) const {
    check_drop_rates(drop_rates, "FixedGate");
    std::uint64_t whole = 0;
    std::uint64_t fraction = 0;
    for (const double rate : drop_rates) {
      fraction += units(1 - rate);
      whole += fraction / unit;
      fraction %= unit;
    }
    const double draw = stream.uniform();
    std::uint64_t phase = units(draw);
    if (keep_one && whole == 0) {
      // Only a phase in [unit - fraction, unit) keeps a layer.
      phase = unit - 1 - static_cast<std::uint64_t>(draw * static_cast<double>(fraction));
    } else if (fraction <= tolerance) {
      phase = std::min(phase, unit - 1 - fraction);
    } else if (unit - fraction <= tolerance) {
      phase = std::max(phase, unit - fraction);
    }

    std::vector<std::size_t> order(drop_rates.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    shuffle(std::span(order), stream);
    Plan plan(drop_rates.size());
    for (const std::size_t layer : order) {
      phase += units(1 - drop_rates[layer]);
      plan.set(layer, phase >= unit);
      phase %= unit;
    }
    return plan;
  }

  /// The rates at which this gate in fact drops each layer.
  std::vector<double> marginal_rates(std::span<const double> drop_rates) const {
    check_drop_rates(drop_rates, "FixedGate");
    std::vector<double> marginal(drop_rates.begin(), drop_rates.end());
    double kept = 0;
    for (const double rate : drop_rates) kept += 1 - rate;
    const double any = keep_one ? std::min(1.0, kept) : 1;
    for (double& rate : marginal) rate = std::max(0.0, 1 - (1 - rate) / any);
    return marginal;
  }

 private:
  static constexpr std::uint64_t unit = std::uint64_t{1} << 53;
  static constexpr std::uint64_t tolerance = unit >> 30;

  static std::uint64_t units(double share) { return static_cast<std::uint64_t>(share * 0x1p53); }
};

}  // namespace droppeft
