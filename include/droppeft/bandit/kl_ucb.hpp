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

/// 1 - q for the largest q in [p, 1] with kl(p, q) <= d, where kl(p, q) = p ln(p / q) + (1 - p)
/// ln((1
/// - p) / (1 - q)); p in [0, 1], d >= 0. As 1 - q, since many q are next to 1. Newton's method, kl
/// being convex, from a q above the root: each step stays above it.
inline double bernoulli_kl_rest(double p, double d) {
  if (p >= 1) return 0;
  if (d <= 0) return 1 - p;
  if (p <= 0) return std::exp(-d);
  const double rest = 1 - p;
  const double entropy = -p * std::log(p) - rest * std::log(rest);
  // Two bounds from below: Pinsker's, and kl(p, q) >= -entropy - (1 - p) ln(1 - q).
  double r = std::max(rest - std::sqrt(d / 2), std::exp(-(d + entropy) / rest));
  for (int i = 0; i < 50; ++i) {
    const double excess = -entropy - p * std::log1p(-r) - rest * std::log(r) - d;
    const double step = excess * (1 - r) * r / (rest - r);
    if (!(step > 0)) break;
    r += step;
    if (step < 1e-12 * r) break;
  }
  return std::min(r, rest);
}

/// Whether bernoulli_kl_rest(p, d) is above r by more than rounding, for which this takes no or few
/// logarithms.
inline bool kl_rest_above(double p, double d, double r) {
  const double rest = 1 - p;
  if (rest - std::sqrt(d / 2) > r + 1e-9) return true;  // Pinsker
  if (p <= 0 || r <= 0 || r >= rest) return false;
  return rest * std::log(rest / r) + p * (std::log(p) - std::log1p(-r)) > d * (1 + 1e-9) + 1e-14;
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
    // Scores are q - 1. An arm whose q is below one that was seen gets its mean, which is lower.
    return [mean = totals.mean(), e = detail::kl_exploration(totals.visits(), exploration),
            least = 1.0](const ArmRecord& arm) mutable {
      const double p = std::clamp(arm.mean(mean), 0.0, 1.0), d = e / arm.visits();
      if (detail::kl_rest_above(p, d, least)) return p - 1;
      const double rest = detail::bernoulli_kl_rest(p, d);
      least = std::min(least, rest);
      return -rest;
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
  /// s, in [1e-50, 1e50].
  double noise_sd = 0.5;
  /// c, finite and >= 0.
  double exploration = 0;

  static constexpr std::string_view name = "gaussian_kl_ucb";
  static constexpr double min_reward = -1e100;
  static constexpr double max_reward = 1e100;

  void validate() const {
    check(noise_sd >= 1e-50 && noise_sd <= 1e50,
          "GaussianKlUcb: noise_sd must be in [1e-50, 1e50], got ", noise_sd);
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
