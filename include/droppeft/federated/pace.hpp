#pragma once

#include <algorithm>
#include <span>

#include "droppeft/core/check.hpp"

namespace droppeft {

/// What a round costs one device, in seconds of its clock.
///
/// layer_seconds: its steps' layers, all of them active; above 0. other_seconds: what dropping
/// layers does not shorten (transfer, evaluation); at least 0. Both finite. least_rate: the lowest
/// mean drop rate that it can hold (least_drop_rate in budget.hpp), in [0, 0.95].
struct RoundCost {
  double layer_seconds = 0;
  double other_seconds = 0;
  double least_rate = 0;

  /// other_seconds + (1 - mean_rate) layer_seconds. mean_rate in [0, 1), else
  /// std::invalid_argument.
  double seconds(double mean_rate) const {
    check_fields();
    check(mean_rate >= 0 && mean_rate < 1, "RoundCost::seconds: mean_rate must be in [0, 1), got ",
          mean_rate);
    return other_seconds + (1 - mean_rate) * layer_seconds;
  }

  /// The lowest mean drop rate at which the device ends by `deadline`: the inverse of seconds,
  /// (seconds(0) - deadline) / layer_seconds, clipped to [least_rate, max_rate]. So a device that
  /// no permitted rate makes fast enough gets max_rate. deadline is a number, max_rate in
  /// [least_rate, 1), else std::invalid_argument.
  double drop_rate(double deadline, double max_rate = 0.95) const {
    check_fields();
    check(deadline == deadline, "RoundCost::drop_rate: deadline must be a number, got ", deadline);
    check(max_rate >= least_rate && max_rate < 1,
          "RoundCost::drop_rate: max_rate must be in [least_rate = ", least_rate, ", 1), got ",
          max_rate);
    return std::clamp((seconds(0) - deadline) / layer_seconds, least_rate, max_rate);
  }

 private:
  void check_fields() const {
    constexpr double longest = 1e50;  // keeps ratios finite
    check(layer_seconds >= 1 / longest && layer_seconds <= longest,
          "RoundCost: layer_seconds must be finite and above 0, got ", layer_seconds);
    check(other_seconds >= 0 && other_seconds <= longest,
          "RoundCost: other_seconds must be finite and at least 0, got ", other_seconds);
    check(least_rate >= 0 && least_rate <= 0.95, "RoundCost: least_rate must be in [0, 0.95], got ",
          least_rate);
  }
};

/// The pace of a round: the seconds until the slowest device ends when all drop at `mean_rate`, or
/// at their own least_rate if that is higher: max over i of costs[i].seconds(mean_rate).
///
/// A synchronous round waits for its slowest device, so a layer that a faster one drops saves no
/// time. Take this as the deadline of all: costs[i].drop_rate(deadline) lets the slowest drop at
/// mean_rate and each other one only as much as it must to keep up, often nothing. On average the
/// round takes as long as with one rate for all, and more layers are trained. Fitting the depth to
/// the device is to layer dropout what FjORD (Horvath et al., NeurIPS 2021) is to width; that the
/// round's configuration sets the deadline is ours. A faster one may be asked to run at full
/// depth: where it is short of memory, least_rate says so; not for devices short of energy.
///
/// At least one device, mean_rate in [0, 1), else std::invalid_argument.
inline double round_seconds(std::span<const RoundCost> costs, double mean_rate) {
  check(!costs.empty(), "round_seconds: costs must hold at least one device, got none");
  check(mean_rate >= 0 && mean_rate < 1, "round_seconds: mean_rate must be in [0, 1), got ",
        mean_rate);
  double slowest = 0;
  for (const RoundCost& cost : costs)
    slowest = std::max(slowest, cost.seconds(std::max(mean_rate, cost.least_rate)));
  return slowest;
}

}  // namespace droppeft
