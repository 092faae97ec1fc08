#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "droppeft/bandit/arm_chooser.hpp"
#include "droppeft/bandit/arm_record.hpp"
#include "droppeft/bandit/arm_records.hpp"
#include "droppeft/bandit/policy.hpp"
#include "droppeft/bandit/reward_range.hpp"
#include "droppeft/bandit/saved.hpp"
#include "droppeft/bandit/ticket.hpp"
#include "droppeft/core/check.hpp"
#include "droppeft/random/stream.hpp"

namespace droppeft {

/// What a play gained, and the seconds, or bytes, that it cost.
struct GainAndCost {
  double gain = 0;
  double cost = 0;
};

/// What a RatioSelector holds of an arm: as ArmRecord, of two numbers at a time.
struct RatioRecord {
  using Reward = GainAndCost;

  double plays = 0;
  std::uint64_t pending = 0;
  double gain = 0, cost = 0;
  /// Sums of squared deviations from the means, and of their products.
  double gain_deviations = 0, cost_deviations = 0, codeviations = 0;

  RatioRecord() = default;

  /// As saved, of rewards between low and high.
  RatioRecord(const Saved& saved, const GainAndCost& low, const GainAndCost& high) {
    const double most = std::max(-low.gain, high.gain);
    plays = saved.at(0).number(0, 0x1p53);
    // Twice the bounds, for rounding. None lets a ratio, or what is seen against it, overflow.
    gain = saved.at(1).number(-2 * plays * most, 2 * plays * most);
    const double cheapest = std::max(plays * low.cost / 2, std::numeric_limits<double>::min());
    cost = saved.at(2).number(plays > 0 ? cheapest : 0, 2 * plays * high.cost);
    gain_deviations = saved.at(3).number(0, 8 * plays * most * most);
    cost_deviations = saved.at(4).number(0, 2 * high.cost * cost);
    const double largest = 8 * plays * most * high.cost;
    codeviations = saved.at(5).number(-largest, largest);
  }

  nlohmann::json save() const {
    return {plays, gain, cost, gain_deviations, cost_deviations, codeviations};
  }
  static nlohmann::json save(const GainAndCost& reward) { return {reward.gain, reward.cost}; }
  static GainAndCost load(const Saved& saved, const GainAndCost& low, const GainAndCost& high) {
    return {saved.at(0).number(low.gain, high.gain), saved.at(1).number(low.cost, high.cost)};
  }

  double visits() const { return plays + static_cast<double>(pending); }

  /// Sum of gains over sum of costs; `otherwise` when there is none yet.
  double ratio(double otherwise = 0) const { return plays == 0 ? otherwise : gain / cost; }

  /// The record of the rewards gain - rate * cost.
  ArmRecord against(double rate) const {
    ArmRecord record;
    record.plays = plays;
    record.pending = pending;
    record.sum = gain - rate * cost;
    record.deviations =
        std::max(gain_deviations - 2 * rate * codeviations + rate * rate * cost_deviations, 0.0);
    return record;
  }

  void add(const GainAndCost& reward) {
    RatioRecord one;
    one.plays = 1;
    one.gain = reward.gain;
    one.cost = reward.cost;
    add(one);
  }

  void add(const RatioRecord& other) {
    if (other.plays == 0) return;
    if (plays > 0) {
      const double gains_apart = gain / plays - other.gain / other.plays;
      const double costs_apart = cost / plays - other.cost / other.plays;
      const double weight = plays / (plays + other.plays) * other.plays;
      gain_deviations += gains_apart * gains_apart * weight;
      cost_deviations += costs_apart * costs_apart * weight;
      codeviations += gains_apart * costs_apart * weight;
    }
    gain_deviations += other.gain_deviations;
    cost_deviations += other.cost_deviations;
    codeviations += other.codeviations;
    plays += other.plays;
    gain += other.gain;
    cost += other.cost;
  }

  /// What is next to nothing is forgotten, before its cost is 0.
  void discount(double factor) {
    if (plays * factor < 1e-100) factor = 0;
    for (double* each : {&plays, &gain, &cost, &gain_deviations, &cost_deviations, &codeviations})
      *each *= factor;
  }
};

/// Settings of a RatioSelector; stream, window and discount as SelectorOptions.
template <BanditPolicy Policy>
struct RatioOptions {
  Stream stream{};
  std::size_t window = 0;
  double discount = 1;
  /// Between which numbers gains and costs lie, costs above 0. What is not known beforehand is that
  /// of the plays so far.
  RewardRange gains = RewardRange::unknown();
  RewardRange costs = RewardRange::unknown();
  Policy policy{};
};

/// Finds the arm with the highest gain per second, E[gain] / E[cost], by any policy made for plain
/// rewards.
///
/// The mean of the ratios gain / cost of single plays is not that: it lets quick plays count for
/// more than the time that they fill, and its noise is unbounded as costs fall. Instead an arm is
/// rewarded with gain - rate * cost, rate = sum of all gains / sum of all costs so far: what it
/// gains beyond what the same time brings on average. An arm is above 0 there exactly if its
/// E[gain] / E[cost] is above the rate, and as the better arms are played the rate rises to the
/// highest one (Dinkelbach's iteration for ratios). The records hold both numbers and their
/// products, so that all old plays are seen against the present rate. The policy sees that reward
/// scaled to [0, 1] by what the ranges of gain and cost allow.
///
/// As BanditSelector, but for update(ticket, gain, cost) and record(arm). For policies that count
/// rewards themselves, so not BetaThompson and Exp3. Source: Dinkelbach, "On nonlinear fractional
/// programming", Management Science 13, 1967; as a bandit, ours. Not where costs are alike for all
/// arms: a BanditSelector on the gains learns faster.
template <BanditPolicy Policy>
requires(!detail::Observing<Policy>) class RatioSelector {
 public:
  using Options = RatioOptions<Policy>;

  /// arms >= 1; the options in their ranges; else std::invalid_argument.
  explicit RatioSelector(std::size_t arms, Options options = Options())
      : chooser_("RatioSelector", arms, options.policy, options.stream),
        given_{options.gains, options.costs},
        so_far_(given_),
        records_(arms, options.window, options.discount) {
    given_.gains.validate("RatioSelector: gains");
    given_.costs.validate("RatioSelector: costs");
    check(!given_.gains.known() || (given_.gains.low >= -limit && given_.gains.high <= limit),
          "RatioSelector: gains must be in [-1e50, 1e50], got ", given_.gains.low, " and ",
          given_.gains.high);
    check(!given_.costs.known() || (given_.costs.low >= 1 / limit && given_.costs.high <= limit),
          "RatioSelector: costs must be in [1e-50, 1e50], got ", given_.costs.low, " and ",
          given_.costs.high);
  }

  std::size_t arms() const { return chooser_.arms(); }

  RatioRecord record(std::size_t arm) const {
    chooser_.check_arm(arm);
    return records_[arm];
  }

  std::size_t add_arm() {
    chooser_.add_arm();
    records_.add_arm();
    return arms() - 1;
  }
  void retire(std::size_t arm) { chooser_.retire(arm); }
  bool active(std::size_t arm) const { return chooser_.active(arm); }

  /// Sum of gains over sum of costs of all plays that count; 0 before the first.
  double rate() const {
    double gain = 0, cost = 0;
    for (std::size_t arm = 0; arm < arms(); ++arm) {
      gain += records_[arm].gain;
      cost += records_[arm].cost;
    }
    return cost > 0 ? gain / cost : 0;
  }

  Ticket select() {
    const double rate = this->rate();
    const RewardRange rewards = against(rate);
    const Ticket ticket = chooser_.select([&](std::size_t arm) {
      return records_[arm].against(rate).scaled(rewards.low, rewards.scale());
    });
    records_.open(ticket.arm);
    return ticket;
  }

  /// gain and cost in their ranges, in [-1e50, 1e50] and [1e-50, 1e50] where those are not
  /// known, else std::invalid_argument.
  void update(const Ticket& ticket, double gain, double cost) {
    const GainAndCost low = lowest(), high = highest();
    check(gain >= low.gain && gain <= high.gain, "RatioSelector::update: gain must be in [",
          low.gain, ", ", high.gain, "], got ", gain);
    check(cost >= low.cost && cost <= high.cost, "RatioSelector::update: cost must be in [",
          low.cost, ", ", high.cost, "], got ", cost);
    chooser_.close(ticket, "RatioSelector::update");
    records_.close(ticket.arm);
    if (!given_.gains.known()) so_far_.gains.include(gain);
    if (!given_.costs.known()) so_far_.costs.include(cost);
    records_.add(ticket.arm, {gain, cost});
  }

  void expire(const Ticket& ticket) {
    chooser_.close(ticket, "RatioSelector::expire");
    records_.close(ticket.arm);
  }

  nlohmann::json save() const {
    return {{"version", 1},
            {"chooser", chooser_.save()},
            {"gains", given_.gains.save()},
            {"costs", given_.costs.save()},
            {"gains_so_far", so_far_.gains.save()},
            {"costs_so_far", so_far_.costs.save()},
            {"rewards", records_.save()}};
  }

  void load(const nlohmann::json& state) {
    const Saved saved(state, "RatioSelector");
    saved["version"].expect(1);
    saved["gains"].expect(given_.gains.save());
    saved["costs"].expect(given_.costs.save());
    RatioSelector loaded(*this);
    loaded.chooser_.load(saved["chooser"]);
    const GainAndCost low = lowest(), high = highest();
    loaded.so_far_.gains = load_range(saved["gains_so_far"], given_.gains, low.gain, high.gain);
    loaded.so_far_.costs = load_range(saved["costs_so_far"], given_.costs, low.cost, high.cost);
    loaded.records_.load(saved["rewards"], loaded.arms(), low, high);
    for (const Ticket& ticket : loaded.chooser_.open_tickets()) loaded.records_.open(ticket.arm);
    *this = std::move(loaded);
  }

 private:
  struct Ranges {
    RewardRange gains, costs;
  };

  // Keeps ratios, and the squares of what is gained against them, finite.
  static constexpr double limit = 1e50;

  GainAndCost lowest() const {
    return {given_.gains.known() ? given_.gains.low : -limit,
            given_.costs.known() ? given_.costs.low : 1 / limit};
  }
  GainAndCost highest() const {
    return {given_.gains.known() ? given_.gains.high : limit,
            given_.costs.known() ? given_.costs.high : limit};
  }

  /// One that grew out of `given`, of numbers in [low, high].
  static RewardRange load_range(const Saved& saved, const RewardRange& given, double low,
                                double high) {
    const RewardRange range = RewardRange::load(saved, given);
    require(!range.known() || (range.low >= low && range.high <= high),
            "RatioSelector: gains and costs so far must be in [", low, ", ", high, "], got ",
            range.low, " and ", range.high);
    return range;
  }

  /// The range of gain - rate * cost.
  RewardRange against(double rate) const {
    if (!so_far_.gains.known() || !so_far_.costs.known()) return {};
    const double at_low = rate * so_far_.costs.low, at_high = rate * so_far_.costs.high;
    return {so_far_.gains.low - std::max(at_low, at_high),
            so_far_.gains.high - std::min(at_low, at_high)};
  }

  ArmChooser<Policy> chooser_;
  Ranges given_, so_far_;
  Records<RatioRecord> records_;
};

}  // namespace droppeft
