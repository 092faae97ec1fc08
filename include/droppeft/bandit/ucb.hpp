#pragma once

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>

#include "droppeft/bandit/selector.hpp"
#include "droppeft/bandit/upper_bound.hpp"
#include "droppeft/core/check.hpp"

namespace droppeft {

/// UCB1: plays the arm with the highest mean + sqrt(c ln t / n), n the visits of the arm, t those
/// of all arms.
///
/// For rewards in [0, 1] and c = 2 the expected regret is at most 8 sum_a ln t / Delta_a + (1 +
/// pi^2 / 3) sum_a Delta_a. That c covers the worst case and explores for hundreds of plays; in
/// general c = 8 sigma^2 for rewards with standard deviation sigma, so c = 0.5 for 1/4. KL-UCB and
/// Thompson sampling do better on the same assumptions; UCB1 is the one that takes least time. With
/// a discount it is D-UCB of Garivier and Moulines (c = 4 xi), with a window their SW-UCB (c = xi).
///
/// Source: Auer, Cesa-Bianchi, Fischer, "Finite-time analysis of the multiarmed bandit problem",
/// Machine Learning 47, 2002; Garivier, Moulines, "On upper-confidence bound policies for switching
/// bandit problems", ALT 2011.
struct Ucb1 {
  /// c, finite and >= 0. With 0 it is greedy.
  double exploration = 2;

  static constexpr std::string_view name = "ucb1";
  static constexpr double min_reward = 0;
  static constexpr double max_reward = 1;

  void validate() const {
    check(exploration >= 0 && std::isfinite(exploration),
          "Ucb1: exploration must be finite and >= 0, got ", exploration);
  }

  nlohmann::json settings() const { return {{"exploration", exploration}}; }

  auto scorer(const ArmTotals& totals, Stream&) const {
    return [mean = totals.mean(), spread = exploration * std::log(std::max(totals.visits(), 1.0)),
            score = UpperBound()](const ArmRecord& arm) mutable {
      return score(arm.mean(mean), spread, arm.visits());
    };
  }
};

using UcbSelector = BanditSelector<Ucb1>;

}  // namespace droppeft
