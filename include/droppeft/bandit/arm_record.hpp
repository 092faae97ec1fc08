#pragma once

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>

#include "droppeft/bandit/saved.hpp"

namespace droppeft {

/// What a selector holds of an arm: rewards that it has and still counts, and plays whose reward is
/// out.
struct ArmRecord {
  using Reward = double;

  /// Rewards counted: a whole number, unless old ones are discounted.
  double plays = 0;
  std::uint64_t pending = 0;
  double sum = 0;
  /// Sum of squared deviations from the mean.
  double deviations = 0;

  ArmRecord() = default;

  /// As saved, of rewards in [low, high].
  ArmRecord(const Saved& saved, double low, double high) {
    const double largest = std::max(-low, high);
    plays = saved.at(0).number(0, 0x1p53);  // counts up to there are exact
    const double rounding = 1e-9 * plays * largest;
    sum = saved.at(1).number(plays * low - rounding, plays * high + rounding);
    deviations = saved.at(2).number(0, 8 * plays * largest * largest);
  }

  nlohmann::json save() const { return {plays, sum, deviations}; }
  static nlohmann::json save(double reward) { return reward; }
  static double load(const Saved& saved, double low, double high) {
    return saved.number(low, high);
  }

  /// Plays with and without a reward.
  double visits() const { return plays + static_cast<double>(static_cast<std::int64_t>(pending)); }

  /// Mean reward; `otherwise` when there is none yet.
  double mean(double otherwise = 0) const { return plays == 0 ? otherwise : sum / plays; }

  /// Mean squared deviation from the mean; 0 when there is no reward yet.
  double variance() const { return plays == 0 ? 0 : std::max(deviations / plays, 0.0); }

  /// The same rewards r as (r - low) * scale.
  ArmRecord scaled(double low, double scale) const {
    ArmRecord record = *this;
    record.sum = (sum - plays * low) * scale;
    record.deviations *= scale * scale;
    return record;
  }

  /// Counts one more reward.
  void add(double reward) {
    const double apart = reward - mean(reward);
    deviations += apart * apart * (plays / (plays + 1));
    plays += 1;
    sum += reward;
  }

  /// Counts the rewards of another record, too; pending plays aside. By Chan, Golub, LeVeque,
  /// "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
  void add(const ArmRecord& other) {
    if (other.plays == 0) return;
    const double apart = mean(other.mean()) - other.mean();
    deviations += other.deviations + apart * apart * plays / (plays + other.plays) * other.plays;
    plays += other.plays;
    sum += other.sum;
  }

  /// Lets each reward count for `factor` of what it did. What is next to nothing is forgotten.
  void discount(double factor) {
    if (plays < 1e-100) factor = 0;
    plays *= factor;
    sum *= factor;
    deviations *= factor;
  }
};

}  // namespace droppeft
