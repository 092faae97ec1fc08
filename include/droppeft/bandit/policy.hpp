#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string_view>

#include "droppeft/bandit/arm_record.hpp"
#include "droppeft/bandit/ticket.hpp"
#include "droppeft/random/stream.hpp"

namespace droppeft {

/// What a policy is told of all arms together that may be played now.
struct ArmTotals {
  /// How many there are.
  std::size_t arms = 0;
  double plays = 0;
  std::uint64_t pending = 0;
  double sum = 0;

  double visits() const { return plays + static_cast<double>(static_cast<std::int64_t>(pending)); }
  double mean(double otherwise = 0) const { return plays == 0 ? otherwise : sum / plays; }
};

namespace detail {

template <class P>
concept PolicyBase = std::copyable<P> && requires(const P& policy) {
  { P::name } -> std::convertible_to<std::string_view>;
  { P::min_reward } -> std::convertible_to<double>;
  { P::max_reward } -> std::convertible_to<double>;
  policy.validate();
  { policy.settings() } -> std::same_as<nlohmann::json>;
};

/// A policy that counts something else than the reward.
template <class P>
concept Observing = requires(const P& policy, const Ticket& ticket, Stream& stream) {
  { policy.observe(0.0, ticket, stream) } -> std::same_as<double>;
};

}  // namespace detail

/// What makes a BanditSelector one bandit or another: a policy that scores the arms, the highest
/// being played. A policy is a struct of settings with
/// - name: under which its state is saved; min_reward, max_reward: the rewards that it takes;
/// - validate(): throws std::invalid_argument for a setting out of range;
/// - settings(): the settings as JSON, compared on load;
/// - scorer(totals, stream): a callable from an arm's record to its score in this choice. Called
///   only when every arm has visits; an arm may have no reward yet;
/// - if it needs, observe(reward, ticket, stream): what is counted for a reward, in [min_reward,
///   max_reward], or up to max_counted if there is one.
template <class P>
concept ScoringPolicy = detail::PolicyBase<P> &&
    requires(const P& policy, const ArmTotals& totals, const ArmRecord& record, Stream& stream) {
  { policy.scorer(totals, stream)(record) } -> std::same_as<double>;
};

/// A policy that draws the arm from a distribution: as a ScoringPolicy, but instead of scorer it
/// has
/// - weigh(totals, records, weights): one weight in [0, inf) for each record, with a finite sum
///   above 0; an arm is played with its share of the sum.
template <class P>
concept DrawingPolicy = detail::PolicyBase<P> &&
    requires(const P& policy, const ArmTotals& totals, std::span<const ArmRecord> records,
             std::span<double> weights) {
  policy.weigh(totals, records, weights);
};

template <class P>
concept BanditPolicy = ScoringPolicy<P> || DrawingPolicy<P>;

}  // namespace droppeft
