#pragma once

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>

#include "droppeft/bandit/selector.hpp"
#include "droppeft/bandit/upper_bound.hpp"

namespace droppeft {

/// UCB-tuned: plays the arm with the highest mean + sqrt(min(1/4, V + sqrt(2 ln t / n)) ln t / n),
/// V the variance of the arm's rewards, n its visits, t those of all arms.
///
/// For rewards in [0, 1]: 1/4 is the largest variance there. No bound on its regret was proven; it
/// is found far better than UCB1 in practice. UcbV has a proof.
///
/// Source: Auer, Cesa-Bianchi, Fischer, "Finite-time analysis of the multiarmed bandit problem",
/// Machine Learning 47, 2002, section 4.
struct UcbTuned {
  static constexpr std::string_view name = "ucb_tuned";
  static constexpr double min_reward = 0;
  static constexpr double max_reward = 1;

  void validate() const {}

  nlohmann::json settings() const { return nlohmann::json::object(); }

  auto scorer(const ArmTotals& totals, Stream&) const {
    return [mean = totals.mean(), log = std::log(std::max(totals.visits(), 1.0)),
            score = UpperBound()](const ArmRecord& arm) mutable {
      const double own = arm.mean(mean), n = arm.visits();
      if (score.below(own, log / 4, n)) return own;
      return score(own, log * std::min(0.25, arm.variance() + std::sqrt(2 * log / n)), n);
    };
  }
};

using UcbTunedSelector = BanditSelector<UcbTuned>;

}  // namespace droppeft
