#pragma once

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>

#include "droppeft/bandit/selector.hpp"
#include "droppeft/bandit/upper_bound.hpp"
#include "droppeft/core/check.hpp"

namespace droppeft {

/// UCB-V: plays the arm with the highest mean + sqrt(2 V e / n) + 3 e / n, V the variance of the
/// arm's rewards, n its visits, e = zeta ln t, t the visits of all arms.
///
/// For rewards in a known range, [0, 1] or SelectorOptions::range, in whose unit all of it is. Its
/// expected regret is at most 10 sum_a (V_a / Delta_a + 2) ln t for zeta slightly above 1: better
/// than UCB1 where rewards vary little, worse where they do not, since the last term rules at
/// first.
///
/// Source: Audibert, Munos, Szepesvari, "Exploration-exploitation tradeoff using variance estimates
/// in multi-armed bandits", Theoretical Computer Science 410, 2009 (c = 1).
struct UcbV {
  /// zeta, finite and >= 0.
  double exploration = 1;

  static constexpr std::string_view name = "ucb_v";
  static constexpr double min_reward = 0;
  static constexpr double max_reward = 1;

  void validate() const {
    check(exploration >= 0 && std::isfinite(exploration),
          "UcbV: exploration must be finite and >= 0, got ", exploration);
  }

  nlohmann::json settings() const { return {{"exploration", exploration}}; }

  auto scorer(const ArmTotals& totals, Stream&) const {
    return [mean = totals.mean(), e = exploration * std::log(std::max(totals.visits(), 1.0)),
            score = UpperBound()](const ArmRecord& arm) mutable {
      const double each = e / arm.visits();
      return score(arm.mean(mean) + 3 * each, 2 * arm.variance() * each, 1);
    };
  }
};

using UcbVSelector = BanditSelector<UcbV>;

}  // namespace droppeft
