#pragma once

#include <algorithm>
#include <boost/random/normal_distribution.hpp>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "droppeft/bandit/selector.hpp"
#include "droppeft/core/check.hpp"

namespace droppeft {

namespace detail {

/// A number distributed as Gamma(shape, 1), shape > 0, by Marsaglia and Tsang, "A simple method for
/// generating gamma variables", ACM TOMS 26, 2000: several times faster than Boost.Random's.
inline double gamma(double shape, Stream& stream) {
  if (shape < 1) {
    const double below = 1 - stream.uniform();
    return gamma(shape + 1, stream) * std::pow(below, 1 / shape);
  }
  const double d = shape - 1.0 / 3;
  const double c = 1 / std::sqrt(9 * d);
  boost::random::normal_distribution<double> normal;
  for (;;) {
    const double x = normal(stream);
    const double root = 1 + c * x;
    if (root <= 0) continue;
    const double v = root * root * root;
    const double u = 1 - stream.uniform();
    if (u < 1 - 0.0331 * (x * x) * (x * x)) return d * v;
    if (std::log(u) < 0.5 * x * x + d * (1 - v + std::log(v))) return d * v;
  }
}

}  // namespace detail

/// Thompson sampling for rewards in [0, 1]: each arm draws from Beta(a + successes, b + failures),
/// the highest draw is played. A reward r counts as a success with probability r and as a failure
/// otherwise, so the records hold successes, not rewards.
///
/// For rewards that are 0 or 1. Real rewards that vary little lose much to the trial: there
/// GaussianThompson learns faster.
///
/// Source: Agrawal, Goyal, "Analysis of Thompson sampling for the multi-armed bandit problem", COLT
/// 2012 (algorithm 2 for the trial).
struct BetaThompson {
  /// a and b, finite and >= 0.01; 1 and 1 is the uniform prior.
  double prior_successes = 1;
  double prior_failures = 1;

  static constexpr std::string_view name = "beta_thompson";
  static constexpr double min_reward = 0;
  static constexpr double max_reward = 1;

  void validate() const {
    check(prior_successes >= 0.01 && std::isfinite(prior_successes),
          "BetaThompson: prior_successes must be finite and >= 0.01, got ", prior_successes);
    check(prior_failures >= 0.01 && std::isfinite(prior_failures),
          "BetaThompson: prior_failures must be finite and >= 0.01, got ", prior_failures);
  }

  nlohmann::json settings() const {
    return {{"prior_successes", prior_successes}, {"prior_failures", prior_failures}};
  }

  double observe(double reward, const Ticket&, Stream& stream) const {
    return stream.uniform() < reward ? 1 : 0;
  }

  auto scorer(const ArmTotals&, Stream& stream) const {
    return [this, &stream](const ArmRecord& arm) {
      const double successes = detail::gamma(prior_successes + std::max(arm.sum, 0.0), stream);
      const double failures =
          detail::gamma(prior_failures + std::max(arm.plays - arm.sum, 0.0), stream);
      return successes / (successes + failures);
    };
  }
};

/// Thompson sampling for real rewards with normal noise of known standard deviation s: with a prior
/// N(m, d^2) for each arm's mean, each arm draws from its posterior N(v (m / d^2 + sum / s^2), v),
/// v = 1 / (1 / d^2 + n / s^2), and the highest draw is played.
///
/// The defaults are for rewards in [0, 1], whose standard deviation is at most 1/2; a smaller
/// noise_sd explores less. Rewards of another scale need all three settings in that scale: with a r
/// + b for r (a > 0), a m + b, a d and a s, the choices are the same.
///
/// Source: Agrawal, Goyal, "Further optimal regret bounds for Thompson sampling", AISTATS 2013
/// (Gaussian priors; theirs is s = d = 1, m = 0).
struct GaussianThompson {
  /// m, finite.
  double prior_mean = 0.5;
  /// d, in [1e-50, 1e50].
  double prior_sd = 0.5;
  /// s, in [1e-50, 1e50].
  double noise_sd = 0.5;

  static constexpr std::string_view name = "gaussian_thompson";
  static constexpr double min_reward = -1e100;
  static constexpr double max_reward = 1e100;

  void validate() const {
    check(std::isfinite(prior_mean), "GaussianThompson: prior_mean must be finite, got ",
          prior_mean);
    check(prior_sd >= 1e-50 && prior_sd <= 1e50,
          "GaussianThompson: prior_sd must be in [1e-50, 1e50], got ", prior_sd);
    check(noise_sd >= 1e-50 && noise_sd <= 1e50,
          "GaussianThompson: noise_sd must be in [1e-50, 1e50], got ", noise_sd);
  }

  nlohmann::json settings() const {
    return {{"prior_mean", prior_mean}, {"prior_sd", prior_sd}, {"noise_sd", noise_sd}};
  }

  auto scorer(const ArmTotals&, Stream& stream) const {
    // The posterior in units of the prior, with `doubt` plays' worth of prior.
    return [this, &stream, doubt = std::pow(noise_sd / prior_sd, 2)](const ArmRecord& arm) {
      const double mean = (prior_mean * doubt + arm.sum) / (doubt + arm.plays);
      const double sd = noise_sd / std::sqrt(doubt + arm.plays);
      return boost::random::normal_distribution<double>(mean, sd)(stream);
    };
  }
};

/// Thompson sampling for real rewards with normal noise of unknown standard deviation, which may
/// differ from arm to arm: with a normal-inverse-gamma prior (m, k, a, b) and n rewards with mean x
/// and sum of squared deviations S, each arm draws
///
///   v = b' / Gamma(a + n / 2),  b' = b + S / 2 + k n (x - m)^2 / (2 (k + n)),
///   a mean from N((k m + n x) / (k + n), v / (k + n)),
///
/// and the highest draw is played.
///
/// The defaults are for rewards in [0, 1] or SelectorOptions::range. With rewards a r + c (a > 0),
/// a m + c and a^2 b the choices are the same. Where the noise is known GaussianThompson learns
/// faster.
///
/// Source: Honda, Takemura, "Optimality of Thompson sampling for Gaussian bandits depends on
/// priors", AISTATS 2014. What they prove to be optimal are improper priors, which this is not.
struct NormalInverseGammaThompson {
  /// m, finite.
  double prior_mean = 0.5;
  /// k: plays that the prior mean is worth; finite, > 0.
  double prior_plays = 1;
  /// a, finite, > 0.
  double shape = 0.5;
  /// b, finite, > 0.
  double scale = 0.0625;

  static constexpr std::string_view name = "normal_inverse_gamma_thompson";
  static constexpr double min_reward = -1e100;
  static constexpr double max_reward = 1e100;

  void validate() const {
    check(std::isfinite(prior_mean), "NormalInverseGammaThompson: prior_mean must be finite, got ",
          prior_mean);
    for (const auto& [setting, value] : {std::pair("prior_plays", prior_plays),
                                         std::pair("shape", shape), std::pair("scale", scale)})
      check(value > 0 && std::isfinite(value), "NormalInverseGammaThompson: ", setting,
            " must be finite and > 0, got ", value);
  }

  nlohmann::json settings() const {
    return {{"prior_mean", prior_mean},
            {"prior_plays", prior_plays},
            {"shape", shape},
            {"scale", scale}};
  }

  auto scorer(const ArmTotals&, Stream& stream) const {
    return [this, &stream](const ArmRecord& arm) {
      const double plays = prior_plays + arm.plays;
      const double apart = arm.mean(prior_mean) - prior_mean;
      const double b =
          scale + arm.deviations / 2 + apart * apart * prior_plays * (arm.plays / plays) / 2;
      const double variance = b / detail::gamma(shape + arm.plays / 2, stream);
      const double mean = (prior_plays * prior_mean + arm.sum) / plays;
      return boost::random::normal_distribution<double>(mean, std::sqrt(variance / plays))(stream);
    };
  }
};

using BetaThompsonSelector = BanditSelector<BetaThompson>;
using GaussianThompsonSelector = BanditSelector<GaussianThompson>;
using NormalInverseGammaThompsonSelector = BanditSelector<NormalInverseGammaThompson>;

/// Takes any finite reward, and noise that is not of two values.
using ThompsonSelector = GaussianThompsonSelector;

}  // namespace droppeft
