#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <numbers>
#include <string_view>

#include "droppeft/bandit/selector.hpp"
#include "droppeft/bandit/upper_bound.hpp"
#include "droppeft/core/check.hpp"

namespace droppeft {

/// MOSS: plays the arm with the highest mean + sqrt(max(0, ln(T / (K n))) / n), n the visits of the
/// arm, K the number of arms, T the horizon or, where none is given, the visits of all arms so far.
///
/// For rewards in [0, 1]. With the horizon its regret is at most 25 sqrt(K T) whatever the arms: no
/// policy does better in the worst case, and UCB1 loses a factor sqrt(ln T). Not where arms are far
/// apart and the horizon long: there KL-UCB and Thompson sampling lose less.
///
/// Source: Audibert, Bubeck, "Minimax policies for adversarial and stochastic bandits", COLT 2009;
/// t in the place of the horizon is usual, but not proven (what Degenne, Perchet, ICML 2016, prove
/// is of a wider bonus).
struct Moss {
  /// T, plays in all; 0 if it is not known. Finite, >= 0.
  double horizon = 0;

  static constexpr std::string_view name = "moss";
  static constexpr double min_reward = 0;
  static constexpr double max_reward = 1;

  void validate() const {
    check(horizon >= 0 && std::isfinite(horizon), "Moss: horizon must be finite and >= 0, got ",
          horizon);
  }

  nlohmann::json settings() const { return {{"horizon", horizon}}; }

  auto scorer(const ArmTotals& totals, Stream&) const {
    const double plays = horizon > 0 ? horizon : totals.visits();
    return [mean = totals.mean(), share = plays / static_cast<double>(totals.arms),
            score = UpperBound()](const ArmRecord& arm) mutable {
      const double own = arm.mean(mean), n = arm.visits();
      const double x = share / n;
      if (x <= 1 || score.below(own, log_from_above(x), n)) return own;
      return score(own, std::log(x), n);
    };
  }

 private:
  /// ln x and at most 0.06 more, for x > 0: log2 is above the line between its values at powers of
  /// two, which is what exponent and mantissa are, by at most 0.0861.
  static double log_from_above(double x) {
    const auto bits = static_cast<double>(std::bit_cast<std::int64_t>(x));
    return std::numbers::ln2 * (bits * 0x1p-52 - 1023 + 0.0861);
  }
};

using MossSelector = BanditSelector<Moss>;

}  // namespace droppeft
