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

/// Epsilon-greedy: with probability e any arm, all alike, else the one with the highest mean (one
/// of them, if several have it); e = min(1, epsilon / t^decay), t the visits of all arms.
///
/// Rewards of any unit. decay = 0 keeps exploring for ever, for rewards that drift slowly; decay =
/// 1 with epsilon = c K / d^2, K arms, d at most the gap of the second best, c large enough, has
/// regret of order ln t, but needs d. Else UCB and Thompson sampling explore where it is of use.
/// What it is chosen for: it is simple, and it tells the probability of each choice.
///
/// Source: Auer, Cesa-Bianchi, Fischer, "Finite-time analysis of the multiarmed bandit problem",
/// Machine Learning 47, 2002, section 3 (epsilon_n-greedy).
struct EpsilonGreedy {
  /// Finite, >= 0.
  double epsilon = 0.1;
  /// Finite, >= 0.
  double decay = 0;

  static constexpr std::string_view name = "epsilon_greedy";
  static constexpr double min_reward = -1e100;
  static constexpr double max_reward = 1e100;

  void validate() const {
    check(epsilon >= 0 && std::isfinite(epsilon),
          "EpsilonGreedy: epsilon must be finite and >= 0, got ", epsilon);
    check(decay >= 0 && std::isfinite(decay), "EpsilonGreedy: decay must be finite and >= 0, got ",
          decay);
  }

  nlohmann::json settings() const { return {{"epsilon", epsilon}, {"decay", decay}}; }

  void weigh(const ArmTotals& totals, std::span<const ArmRecord> records,
             std::span<double> weights) const {
    const double visits = std::max(totals.visits(), 1.0);
    const double explore = std::min(1.0, decay == 0 ? epsilon : epsilon / std::pow(visits, decay));
    const double mean = totals.mean();
    double highest = records[0].mean(mean);
    for (const ArmRecord& record : records) highest = std::max(highest, record.mean(mean));
    double best = 0;
    for (const ArmRecord& record : records) best += record.mean(mean) == highest;
    for (std::size_t i = 0; i < records.size(); ++i)
      weights[i] = explore / static_cast<double>(records.size()) +
                   (records[i].mean(mean) == highest ? (1 - explore) / best : 0);
  }
};

using EpsilonGreedySelector = BanditSelector<EpsilonGreedy>;

}  // namespace droppeft
