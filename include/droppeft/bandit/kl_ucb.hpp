#pragma once

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>

#include "droppeft/bandit/selector.hpp"
#include "droppeft/bandit/upper_bound.hpp"
#include "droppeft/core/check.hpp"

namespace droppeft {

namespace detail {

/// The largest q in [p, 1] with kl(p, q) <= d, where kl(p, q) = p ln(p / q) + (1 - p) ln((1 - p) /
/// (1
/// - q)); p in [0, 1], d >= 0. Newton's method on 1 - q, kl being convex, from a q above the root:
/// each step stays above it. Within a few units in the last place of 1 - q where d is not tiny.
inline double bernoulli_kl_bound(double p, double d) {
  if (p >= 1) return 1;
  if (d <= 0) return p;
  if (p <= 0) return -std::expm1(-d);
  const double rest = 1 - p;
  const double entropy = -p * std::log(p) - rest * std::log(rest);
  // Two bounds from above: Pinsker's, and kl(p, q) >= -entropy - (1 - p) ln(1 - q).
  double r = std::max(rest - std::sqrt(d / 2), std::exp(-(d + entropy) / rest));
  for (int i = 0; i < 50; ++i) {
    const double q = 1 - r;
    const double excess = -entropy - p * std::log(q) - rest * std::log(r) - d;
    const double step = excess * q * r / (rest - r);
    if (!(step > 0)) break;
    r += step;
    if (step < 1e-12 * r) break;
  }
  return 1 - std::min(r, rest);
}

/// Whether the bound of p and d is surely below q, for which this takes no or few logarithms.
inline bool kl_bound_below(double p, double d, double q) {
  if (p + std::sqrt(d / 2) < q - 1e-9) return true;  // Pinsker
  if (p <= 0 || p >= q || q >= 1) return false;
  return p * std::log(p / q) + (1 - p) * std::log((1 - p) / (1 - q)) > d * (1 + 1e-9);
}

inline double kl_exploration(double visits, double c) {
  const double log = std::log(std::max(visits, 1.0));
  return c > 0 && log > 1 ? log + c * std::log(log) : log;
}

}  // namespace detail

/// KL-UCB for Bernoulli rewards: plays the arm with the highest sup {q : n kl(mean, q) <= ln t + c
/// ln ln t}, kl(p, q) = p ln(p / q) + (1 - p) ln((1 - p) / (1 - q)), n the visits of the arm, t
/// those of all arms.
///
/// Its regret reaches the bound of Lai and Robbins for rewards that are 0 or 1, sum_a Delta_a /
/// kl(mean_a, best) ln t. It holds for any rewards in [0, 1], but there it is loose if they vary
/// less than coin tosses: UcbTuned, UcbV or GaussianThompson with a small noise_sd then explore
/// less. c = 3 is what the proof takes, 0 what its authors advise.
///
/// Source: Garivier, Cappe, "The KL-UCB algorithm for bounded stochastic bandits and beyond", COLT
/// 2011.
struct KlUcb {
  /// c, finite and >= 0.
  double exploration = 0;

  static constexpr std::string_view name = "kl_ucb";
  static constexpr double min_reward = 0;
  static constexpr double max_reward = 1;

  void validate() const {
    check(exploration >= 0 && std::isfinite(exploration),
          "KlUcb: exploration must be finite and >= 0, got ", exploration);
  }

  nlohmann::json settings() const { return {{"exploration", exploration}}; }

  auto scorer(const ArmTotals& totals, Stream&) const {
    // An arm whose bound is below one that was seen gets its mean, which is lower still.
    return [mean = totals.mean(), e = detail::kl_exploration(totals.visits(), exploration),
            highest = 0.0](const ArmRecord& arm) mutable {
      const double p = arm.mean(mean), d = e / arm.visits();
      if (detail::kl_bound_below(p, d, highest)) return p;
      const double bound = detail::bernoulli_kl_bound(p, d);
      highest = std::max(highest, bound);
      return bound;
    };
  }
};

/// KL-UCB for normal rewards of known standard deviation s: plays the arm with the highest mean + s
/// sqrt(2 (ln t + c ln ln t) / n), n the visits of the arm, t those of all arms.
///
/// Its regret reaches the bound of Lai and Robbins for such rewards, sum_a 2 s^2 / Delta_a ln t; it
/// holds for all whose tails are no heavier. For rewards in [0, 1] s = 1/2 is always enough.
///
/// Source: as KlUcb; Cappe, Garivier, Maillard, Munos, Stoltz, "Kullback-Leibler upper confidence
/// bounds for optimal sequential allocation", Annals of Statistics 41, 2013.
struct GaussianKlUcb {
  /// s, finite and > 0.
  double noise_sd = 0.5;
  /// c, finite and >= 0.
  double exploration = 0;

  static constexpr std::string_view name = "gaussian_kl_ucb";
  static constexpr double min_reward = -1e100;
  static constexpr double max_reward = 1e100;

  void validate() const {
    check(noise_sd > 0 && std::isfinite(noise_sd),
          "GaussianKlUcb: noise_sd must be finite and > 0, got ", noise_sd);
    check(exploration >= 0 && std::isfinite(exploration),
          "GaussianKlUcb: exploration must be finite and >= 0, got ", exploration);
  }

  nlohmann::json settings() const { return {{"noise_sd", noise_sd}, {"exploration", exploration}}; }

  auto scorer(const ArmTotals& totals, Stream&) const {
    return [mean = totals.mean(),
            spread = 2 * noise_sd * noise_sd * detail::kl_exploration(totals.visits(), exploration),
            score = UpperBound()](const ArmRecord& arm) mutable {
      return score(arm.mean(mean), spread, arm.visits());
    };
  }
};

using KlUcbSelector = BanditSelector<KlUcb>;
using GaussianKlUcbSelector = BanditSelector<GaussianKlUcb>;

}  // namespace droppeft
