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

/// EXP3: an arm is played with probability p = (1 - g) exp(g G / K) / sum exp(g G / K) + g / K,
/// where G is the sum of the arm's rewards, each divided by the probability with which it was
/// played, K the number of arms, g the exploration.
///
/// For rewards in [0, 1] of which nothing else is known, an adversary's even: with g = min(1,
/// sqrt(K ln K / ((e - 1) T))) the regret against the best single arm is at most 2.63 sqrt(T K ln
/// K) over T plays. Where rewards are drawn from distributions that stay, UCB and Thompson sampling
/// lose far less. An arm that is added later starts from a sum of nothing, behind all others, and
/// is found through g alone, unless a discount makes the others forget.
///
/// Source: Auer, Cesa-Bianchi, Freund, Schapire, "The nonstochastic multiarmed bandit problem",
/// SIAM Journal on Computing 32, 2002.
struct Exp3 {
  /// g, in (0, 1].
  double exploration = 0.1;

  static constexpr std::string_view name = "exp3";
  static constexpr double min_reward = 0;
  static constexpr double max_reward = 1;
  static constexpr double max_counted = 1e100;

  void validate() const {
    check(exploration > 0 && exploration <= 1, "Exp3: exploration must be in (0, 1], got ",
          exploration);
  }

  nlohmann::json settings() const { return {{"exploration", exploration}}; }

  double observe(double reward, const Ticket& ticket, Stream&) const {
    return reward / ticket.probability;
  }

  void weigh(const ArmTotals&, std::span<const ArmRecord> records,
             std::span<double> weights) const {
    const double arms = static_cast<double>(records.size());
    double highest = 0, sum = 0;
    for (const ArmRecord& record : records) highest = std::max(highest, record.sum);
    for (std::size_t i = 0; i < records.size(); ++i)
      sum += weights[i] = std::exp(exploration / arms * (records[i].sum - highest));
    for (double& weight : weights) weight = (1 - exploration) * weight / sum + exploration / arms;
  }
};

using Exp3Selector = BanditSelector<Exp3>;

}  // namespace droppeft
