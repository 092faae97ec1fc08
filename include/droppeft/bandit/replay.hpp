#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <span>
#include <string_view>

#include "droppeft/bandit/selector.hpp"
#include "droppeft/core/check.hpp"
#include "droppeft/random/stream.hpp"

namespace droppeft {

/// A play of the past: the arm, its reward, and the probability with which it was chosen
/// (Ticket::probability), in (0, 1].
struct LoggedPlay {
  std::size_t arm = 0;
  double reward = 0;
  double probability = 0;
};

/// A mean that was estimated from a log.
struct LoggedValue {
  double mean = 0;
  /// Of the mean; NaN where there are fewer than two plays.
  double standard_error = 0;
  /// How many plays of the same weight would tell as much: (sum w)^2 / sum w^2.
  double effective_plays = 0;
};

namespace detail {

inline void check_log(std::span<const LoggedPlay> log, std::string_view who) {
  check(!log.empty(), who, ": the log must hold at least one play");
  for (std::size_t i = 0; i < log.size(); ++i) {
    check(log[i].probability > 0 && log[i].probability <= 1, who, ": the probability of play ", i,
          " must be in (0, 1], got ", log[i].probability);
    check(std::isfinite(log[i].reward), who, ": the reward of play ", i, " must be finite, got ",
          log[i].reward);
  }
}

/// Mean and standard error of value(i), and the effective number of weights weight(i).
inline LoggedValue mean_over(std::size_t plays, auto&& value, auto&& weight) {
  const auto n = static_cast<double>(plays);
  double sum = 0, weights = 0, weight_squares = 0;
  for (std::size_t i = 0; i < plays; ++i) {
    sum += value(i);
    weights += weight(i);
    weight_squares += weight(i) * weight(i);
  }
  const double mean = sum / n;
  double squares = 0;
  for (std::size_t i = 0; i < plays; ++i) squares += (value(i) - mean) * (value(i) - mean);
  return {mean, std::sqrt(squares / (n - 1) / n),
          weight_squares > 0 ? weights * weights / weight_squares : 0};
}

/// The weight of play i: how much likelier the policy chooses its arm than the log did.
inline auto logged_weight(std::span<const LoggedPlay> log, auto& policy, std::string_view who) {
  return [log, &policy, who](std::size_t i) {
    const double probability = policy(i, log[i].arm);
    check(probability >= 0 && probability <= 1, who, ": the policy's probability of arm ",
          log[i].arm, " in play ", i, " must be in [0, 1], got ", probability);
    return probability / log[i].probability;
  };
}

}  // namespace detail

/// The mean reward that another policy would have had on the plays of a log, by inverse propensity:
///
///   mean of w_i r_i,  w_i = policy(i, a_i) / p_i,
///
/// policy(i, arm) being the probability with which it chooses the arm in play i, the same whenever
/// it is asked. Unbiased if the log's probabilities are right and above 0 wherever the policy's
/// are. The variance grows with the weights: see effective_plays. Horvitz, Thompson 1952; Precup,
/// Sutton, Singh, ICML 2000.
///
/// At least one play, finite rewards, probabilities in range, else std::invalid_argument.
template <std::invocable<std::size_t, std::size_t> Policy>
LoggedValue inverse_propensity(std::span<const LoggedPlay> log, Policy&& policy) {
  constexpr std::string_view who = "inverse_propensity";
  detail::check_log(log, who);
  const auto weight = detail::logged_weight(log, policy, who);
  return detail::mean_over(
      log.size(), [&](std::size_t i) { return weight(i) * log[i].reward; }, weight);
}

/// As inverse_propensity, with the weights made to sum to the number of plays: sum w_i r_i / sum
/// w_i. Biased in a short log, but of far less variance where rewards are far from 0, and never
/// outside of the rewards seen. Swaminathan, Joachims, NeurIPS 2015. A log in which the policy
/// would never have played so is refused with std::invalid_argument.
template <std::invocable<std::size_t, std::size_t> Policy>
LoggedValue self_normalized(std::span<const LoggedPlay> log, Policy&& policy) {
  constexpr std::string_view who = "self_normalized";
  detail::check_log(log, who);
  const auto weight = detail::logged_weight(log, policy, who);
  double sum = 0, weights = 0;
  for (std::size_t i = 0; i < log.size(); ++i) {
    sum += weight(i) * log[i].reward;
    weights += weight(i);
  }
  check(weights > 0, who, ": the policy plays no arm that the log plays");
  const double mean = sum / weights, scale = static_cast<double>(log.size()) / weights;
  LoggedValue value = detail::mean_over(
      log.size(), [&](std::size_t i) { return scale * weight(i) * (log[i].reward - mean); },
      weight);
  value.mean = mean;
  return value;
}

/// As inverse_propensity, but only what a model of the rewards leaves is weighted:
///
///   mean of sum_a policy(i, a) model(i, a) + w_i (r_i - model(i, a_i)),
///
/// unbiased if either the probabilities or the model are right, and of less variance the better the
/// model is. model(i, arm) is the reward expected of the arm in play i; it should not have been
/// fitted to the very reward r_i. Dudik, Langford, Li, ICML 2011.
template <std::invocable<std::size_t, std::size_t> Policy,
          std::invocable<std::size_t, std::size_t> Model>
LoggedValue doubly_robust(std::span<const LoggedPlay> log, std::size_t arms, Policy&& policy,
                          Model&& model) {
  constexpr std::string_view who = "doubly_robust";
  detail::check_log(log, who);
  for (std::size_t i = 0; i < log.size(); ++i)
    check(log[i].arm < arms, who, ": the arm of play ", i, " must be below ", arms, ", got ",
          log[i].arm);
  const auto weight = detail::logged_weight(log, policy, who);
  return detail::mean_over(
      log.size(),
      [&](std::size_t i) {
        double value = weight(i) * (log[i].reward - model(i, log[i].arm));
        for (std::size_t arm = 0; arm < arms; ++arm) value += policy(i, arm) * model(i, arm);
        return value;
      },
      weight);
}

/// Plays a selector on a log: of each play that has the arm which the selector chooses it gets the
/// reward, all others are as if they had not been. Its mean reward is that of a live run of
/// `plays` plays, if the rewards of an arm do not depend on time and the log chose its arms evenly.
/// A log that did not is thinned first, by lot, until it did: play i stays with probability (least
/// p) / p_i. So K arms leave one play in K and fewer. Li, Chu, Langford, Wang, WSDM 2011.
///
/// Errors as inverse_propensity, for an arm that the selector has not, and those of its update;
/// then the plays before were played.
struct Replayed {
  std::size_t plays = 0;
  double reward = 0;  // in all

  double mean() const { return plays == 0 ? 0 : reward / static_cast<double>(plays); }
};

template <Selector S>
Replayed replay(S& selector, std::span<const LoggedPlay> log, Stream stream) {
  detail::check_log(log, "replay");
  double least = 1;
  for (const LoggedPlay& play : log) least = std::min(least, play.probability);
  Replayed replayed;
  for (const LoggedPlay& play : log) {
    check(play.arm < selector.arms(), "replay: an arm of the log must be below ", selector.arms(),
          ", got ", play.arm);
    if (stream.uniform() * play.probability >= least) continue;
    const Ticket ticket = selector.select();
    if (ticket.arm != play.arm) {
      selector.expire(ticket);
      continue;
    }
    try {
      selector.update(ticket, play.reward);
    } catch (...) {
      selector.expire(ticket);
      throw;
    }
    ++replayed.plays;
    replayed.reward += play.reward;
  }
  return replayed;
}

}  // namespace droppeft
