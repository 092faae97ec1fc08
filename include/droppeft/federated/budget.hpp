#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

#include "droppeft/core/check.hpp"
#include "droppeft/federated/pace.hpp"

namespace droppeft {

/// Bytes that a training step holds: those of each layer that is active, and of all else. Both
/// finite, layer_bytes > 0, other_bytes >= 0.
struct StepBytes {
  double layer_bytes = 0;
  double other_bytes = 0;

  /// other_bytes + active layer_bytes.
  double bytes(std::size_t active) const {
    check(std::isfinite(layer_bytes) && layer_bytes > 0,
          "StepBytes: layer_bytes must be finite and above 0, got ", layer_bytes);
    check(std::isfinite(other_bytes) && other_bytes >= 0,
          "StepBytes: other_bytes must be finite and at least 0, got ", other_bytes);
    return other_bytes + static_cast<double>(active) * layer_bytes;
  }
};

/// What a device may use: seconds of its clock for a round, bytes for a step. Above 0.
struct Budget {
  double seconds = std::numeric_limits<double>::infinity();
  double bytes = std::numeric_limits<double>::infinity();
};

/// The lowest mean drop rate with which a device keeps to its budget: the lowest r >= 0 with, to
/// rounding,
///
///   cost.seconds(r) <= seconds,  and  ceil(L (1 - r)) layers within bytes,
///
/// L = layers >= 1, whatever least_rate cost has; `step` is not looked at while bytes are
/// unlimited. A FixedGate has at most so many layers active; a BernoulliGate may have all, so for
/// it the bytes hold on average only. What a configurator is told of a device
/// (DeviceRequest::least_rate), and a round (RoundCost::least_rate). Throws std::invalid_argument
/// for arguments out of range, and when no r <= max_rate, in [0, 0.95], keeps to the budget: such a
/// device cannot take part. DropPEFT's devices are said to be bounded by memory; how is ours.
inline double least_drop_rate(const Budget& budget, RoundCost cost, const StepBytes& step,
                              std::size_t layers, double max_rate = 0.95) {
  cost.least_rate = 0;
  check(layers >= 1, "least_drop_rate: layers must be at least 1, got ", layers);
  check(max_rate >= 0 && max_rate <= 0.95, "least_drop_rate: max_rate must be in [0, 0.95], got ",
        max_rate);
  check(budget.seconds > 0, "Budget: seconds must be above 0, got ", budget.seconds);
  check(budget.bytes > 0, "Budget: bytes must be above 0, got ", budget.bytes);
  check(cost.seconds(max_rate) <= budget.seconds, "least_drop_rate: no drop rate up to ", max_rate,
        " keeps to ", budget.seconds, " seconds; that one takes ", cost.seconds(max_rate));
  const double by_seconds = cost.drop_rate(budget.seconds, max_rate);
  if (budget.bytes == std::numeric_limits<double>::infinity()) return by_seconds;
  const auto depth = static_cast<double>(layers);
  const auto fewest = static_cast<std::size_t>(std::ceil(depth * (1 - max_rate) - 1e-9));
  check(step.bytes(fewest) <= budget.bytes, "least_drop_rate: no drop rate up to ", max_rate,
        " keeps to ", budget.bytes, " bytes; ", fewest, " of ", layers, " layers take ",
        step.bytes(fewest));
  std::size_t most = fewest;
  while (most < layers && step.bytes(most + 1) <= budget.bytes) ++most;
  const double by_bytes = std::min(1 - static_cast<double>(most) / depth, max_rate);
  return std::max(by_bytes, by_seconds);
}

}  // namespace droppeft
