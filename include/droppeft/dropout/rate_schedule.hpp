#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "droppeft/core/check.hpp"

namespace droppeft {

/// How drop rates are spread over the depth, l = 1 .. L from input to output.
///
/// uniform: every layer alike. incremental: proportional to l, deeper layers dropped more; at mean
/// p it is P_l = 2 p l / (L + 1). decay: its mirror. normal: proportional to a Gaussian bump
/// centred in the middle of the depth, exp(-(l - (L + 1) / 2)^2 / (2 (L / 4)^2)).
///
/// The four names are DropPEFT's (arXiv 2503.10217); the width L / 4 of the bump is our choice.
enum class RateShape { uniform, incremental, decay, normal };

/// All shapes, in the order of the enumeration.
inline constexpr std::array rate_shapes{RateShape::uniform, RateShape::incremental,
                                        RateShape::decay, RateShape::normal};

/// The name of a shape, as in the enumeration.
inline std::string_view to_string(RateShape shape) {
  constexpr std::array<std::string_view, 4> names{"uniform", "incremental", "decay", "normal"};
  return names.at(static_cast<std::size_t>(shape));
}

/// The shape called `name`; throws std::invalid_argument for any other name.
inline RateShape parse_rate_shape(std::string_view name) {
  const auto found = std::ranges::find(rate_shapes, name, to_string);
  check(found != rate_shapes.end(),
        "parse_rate_shape: name must be uniform, incremental, decay or normal, got '", name, "'");
  return *found;
}

/// Checks that there is at least one rate and that each is in [0, 1). `who` begins the message of
/// the std::invalid_argument.
inline void check_drop_rates(std::span<const double> rates, std::string_view who) {
  check(!rates.empty(), who, ": drop_rates must hold at least one layer, got none");
  for (std::size_t layer = 0; layer < rates.size(); ++layer)
    check(rates[layer] >= 0 && rates[layer] < 1, who, ": drop_rates[", layer,
          "] must be in [0, 1), got ", rates[layer]);
}

/// A rate schedule: depth and mean in, one drop rate a layer out, each in [0, 1), their mean as
/// asked. Any callable will do; `scheduled_rates` checks what it returns.
template <class Schedule>
concept RateSchedule = requires(const Schedule& schedule, std::size_t layers, double mean) {
  { schedule(layers, mean) } -> std::convertible_to<std::vector<double>>;
};

/// The rates of a schedule, checked: one a layer, each in [0, 1), their mean within 1e-9 of `mean`.
/// Throws std::invalid_argument otherwise.
std::vector<double> scheduled_rates(const RateSchedule auto& schedule, std::size_t layers,
                                    double mean) {
  std::vector<double> rates = schedule(layers, mean);
  check(rates.size() == layers, "scheduled_rates: the schedule must give one rate a layer, asked ",
        layers, ", got ", rates.size());
  check_drop_rates(rates, "scheduled_rates");
  const double given =
      std::accumulate(rates.begin(), rates.end(), 0.0) / static_cast<double>(layers);
  check(std::abs(given - mean) <= 1e-9, "scheduled_rates: the rates must have the mean ", mean,
        ", got ", given);
  return rates;
}

/// Rates in proportion to weights, one a layer: P_l = min(max_rate, c w_l) with the c > 0 at which
/// their mean is `mean`, to rounding: what clipping takes from one layer goes to the others in
/// proportion to their weights. So rates never exceed max_rate, and keep the order of the weights.
///
/// At least one weight, each positive and finite; max_rate in [0, 1); mean in [0, max_rate]. Throws
/// std::invalid_argument otherwise.
inline std::vector<double> spread_rates(std::span<const double> weights, double mean,
                                        double max_rate = 0.95) {
  const std::size_t layers = weights.size();
  check(layers >= 1, "spread_rates: weights must hold at least one layer, got none");
  for (const double weight : weights)
    check(std::isfinite(weight) && weight > 0,
          "spread_rates: weights must be positive and finite, got ", weight);
  check(max_rate >= 0 && max_rate < 1, "spread_rates: max_rate must be in [0, 1), got ", max_rate);
  check(mean >= 0 && mean <= max_rate, "spread_rates: mean must be in [0, max_rate = ", max_rate,
        "], got ", mean);
  // Clip the heaviest layers, one more at a time, until the heaviest that is left stays below the
  // limit when the others share what remains of the total.
  std::vector<double> sorted(weights.begin(), weights.end());
  std::ranges::sort(sorted);
  std::vector<double> weight_up_to(layers);
  std::partial_sum(sorted.begin(), sorted.end(), weight_up_to.begin());
  double factor = std::numeric_limits<double>::infinity();
  for (std::size_t clipped = 0; clipped < layers; ++clipped) {
    const std::size_t heaviest = layers - 1 - clipped;
    const double share =
        (static_cast<double>(layers) * mean - static_cast<double>(clipped) * max_rate) /
        weight_up_to[heaviest];
    if (sorted[heaviest] * share > max_rate) continue;
    factor = share;
    break;
  }
  std::vector<double> rates(layers);
  for (std::size_t layer = 0; layer < layers; ++layer)
    rates[layer] = std::min(max_rate, weights[layer] * factor);
  return rates;
}

/// Drop rates of `layers` layers with the given shape and mean, by spread_rates: monotone shapes
/// stay monotone.
///
/// layers >= 1; max_rate in [0, 1); mean in [0, max_rate]. Throws std::invalid_argument otherwise.
inline std::vector<double> drop_rates(RateShape shape, std::size_t layers, double mean,
                                      double max_rate = 0.95) {
  check(layers >= 1, "drop_rates: layers must be at least 1, got ", layers);
  check(max_rate >= 0 && max_rate < 1, "drop_rates: max_rate must be in [0, 1), got ", max_rate);
  check(mean >= 0 && mean <= max_rate, "drop_rates: mean must be in [0, max_rate = ", max_rate,
        "], got ", mean);
  if (shape == RateShape::uniform) return std::vector<double>(layers, mean);
  const auto depth = static_cast<double>(layers);
  std::vector<double> weights(layers);
  for (std::size_t layer = 0; layer < layers; ++layer) {
    const auto position = static_cast<double>(layer + 1);
    const double offset = (position - (depth + 1) / 2) / (depth / 4);
    weights[layer] = shape == RateShape::incremental ? position
                     : shape == RateShape::decay     ? depth + 1 - position
                                                     : std::exp(-offset * offset / 2);
  }
  return spread_rates(weights, mean, max_rate);
}

}  // namespace droppeft
