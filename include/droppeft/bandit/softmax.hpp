#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <nlohmann/json.hpp>
#include <span>
#include <string_view>

#include "droppeft/bandit/selector.hpp"
#include "droppeft/core/check.hpp"

namespace droppeft {

/// Softmax, or Boltzmann exploration: an arm is played with probability proportional to exp(mean /
/// temperature).
///
/// Rewards and temperature are in one unit. It knows no uncertainty: with a fixed temperature its
/// regret grows with t for ever, and falling ones are hard to choose (Cesa-Bianchi, Gentile,
/// Lugosi, Neu, "Boltzmann exploration done right", NeurIPS 2017). For a mixture of arms rather
/// than the best one, and where the probability of each choice must be known.
///
/// Source: Sutton, Barto, "Reinforcement learning", 1998, section 2.3.
struct Softmax {
  /// Finite, > 0.
  double temperature = 0.1;

  static constexpr std::string_view name = "softmax";
  static constexpr double min_reward = -1e100;
  static constexpr double max_reward = 1e100;

  void validate() const {
    check(temperature > 0 && std::isfinite(temperature),
          "Softmax: temperature must be finite and > 0, got ", temperature);
  }

  nlohmann::json settings() const { return {{"temperature", temperature}}; }

  void weigh(const ArmTotals& totals, std::span<const ArmRecord> records,
             std::span<double> weights) const {
    const double mean = totals.mean();
    double highest = records[0].mean(mean);
    for (const ArmRecord& record : records) highest = std::max(highest, record.mean(mean));
    for (std::size_t i = 0; i < records.size(); ++i)
      weights[i] = std::exp((records[i].mean(mean) - highest) / temperature);
  }
};

using SoftmaxSelector = BanditSelector<Softmax>;

}  // namespace droppeft
