#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>
#include <vector>

#include "droppeft/bandit/saved.hpp"
#include "droppeft/bandit/ticket.hpp"
#include "droppeft/core/check.hpp"

namespace droppeft {

/// What a device reported: its gain, in [-1e50, 1e50], and its seconds, in [1e-50, 1e50].
struct GainReport {
  Ticket ticket;
  double gain = 0;
  double seconds = 0;
};

/// From the reports of a round, by ascending tickets, to a reward for each: rule(round, reports).
/// Rounds ascend. Has a state that save() and load(saved, round) restore, for the round that is
/// next.
template <class R>
concept RewardRule = std::copyable<R> &&
    requires(R rule, const R& settled, std::uint64_t round, std::span<const GainReport> reports,
             const Saved& saved) {
  { rule(round, reports) } -> std::same_as<std::vector<double>>;
  { settled.save() } -> std::same_as<nlohmann::json>;
  rule.load(saved, round);
};

/// DropPEFT's reward (arXiv 2503.10217), as recalled: a device's gain (there, of accuracy) over the
/// seconds of its clock.
///
/// Unbounded, so for selectors that take any reward (RewardRange::unknown(), GaussianThompson in
/// the unit of the gains). Gains shrink as training converges: give the selector a window. Mostly
/// noise where the gain is; PairedReward learns from the same reports sooner.
struct GainPerSecond {
  std::vector<double> operator()(std::uint64_t, std::span<const GainReport> reports) const {
    std::vector<double> rewards;
    for (const GainReport& report : reports) rewards.push_back(report.gain / report.seconds);
    return rewards;
  }
  nlohmann::json save() const { return {{"rule", "gain_per_second"}}; }
  void load(const Saved& saved, std::uint64_t) { saved["rule"].expect("gain_per_second"); }
};

/// Rewards in [0, 1] that compare the configurations of a round with one another.
///
/// The raw reward of an arm in a round is pooled over the devices that played it, R = sum of gains
/// / sum of seconds: a mean of ratios would let the noise of the fastest device decide. Gains
/// shrink as training converges, so raw rewards of different rounds do not compare, and an arm is
/// judged beside those of its own round only: with m the same ratio over all devices of the round,
/// and s the root mean square of R - m over the rounds and arms of the last `window` rounds, this
/// one included, in which several arms were played, the reward is
///
///   1/2 + (R - m) / (4 s), clipped to [0, 1]; 1/2 where s = 0.
///
/// Every report of the arm in the round gets that reward. A round in which all play the same gives
/// 1/2, as much as it tells. So where a round has one device, let finish_round end a few rounds at
/// once. Gain per second of the round is DropPEFT's reward (as recalled); pooling, pairing and
/// scaling are ours. m is a control variate: what a round gains whatever is played.
class PairedReward {
 public:
  /// window >= 1, else std::invalid_argument.
  explicit PairedReward(std::size_t window = 5) : window_(window) {
    check(window >= 1, "PairedReward: window must be at least 1 round, got ", window);
  }

  std::vector<double> operator()(std::uint64_t round, std::span<const GainReport> reports) {
    struct Arm {
      std::size_t arm;
      double gain = 0;
      double seconds = 0;
      double raw() const { return gain / seconds; }
    };
    std::vector<Arm> arms;
    const auto find = [&arms](std::size_t arm) { return std::ranges::find(arms, arm, &Arm::arm); };
    for (const auto& [ticket, gain, seconds] : reports) {
      if (find(ticket.arm) == arms.end()) arms.push_back({ticket.arm});
      find(ticket.arm)->gain += gain;
      find(ticket.arm)->seconds += seconds;
    }
    Arm all{};
    for (const Arm& arm : arms) {
      all.gain += arm.gain;
      all.seconds += arm.seconds;
    }
    const auto deviation = [&](const Arm& arm) {
      return arms.size() > 1 ? arm.raw() - all.raw() : 0.0;
    };
    if (arms.size() > 1)
      for (const Arm& arm : arms) recent_.push_back({round, deviation(arm)});
    std::erase_if(recent_, [&](const Deviation& each) { return round - each.round >= window_; });

    double variance = 0;
    for (const Deviation& each : recent_)
      variance += each.value * each.value / static_cast<double>(recent_.size());
    const double spread = std::sqrt(variance);

    std::vector<double> rewards;
    for (const GainReport& report : reports) {
      const double scaled = spread > 0 ? deviation(*find(report.ticket.arm)) / (4 * spread) : 0;
      rewards.push_back(std::clamp(0.5 + scaled, 0.0, 1.0));
    }
    return rewards;
  }

  nlohmann::json save() const {
    auto recent = nlohmann::json::array();
    for (const auto& [round, value] : recent_) recent.push_back({round, value});
    return {{"rule", "paired"}, {"window", window_}, {"recent", recent}};
  }

  void load(const Saved& saved, std::uint64_t round) {
    saved["rule"].expect("paired");
    saved["window"].expect(window_);
    const Saved recent = saved["recent"];
    std::vector<Deviation> loaded;
    for (std::size_t i = 0; i < recent.size(); ++i)
      loaded.push_back(
          {recent.at(i).at(0).integer(round), recent.at(i).at(1).number(-2e100, 2e100)});
    recent_ = std::move(loaded);
  }

 private:
  struct Deviation {
    std::uint64_t round;
    double value;
  };

  std::size_t window_;
  std::vector<Deviation> recent_;
};

}  // namespace droppeft
