#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>

#include "droppeft/bandit/saved.hpp"
#include "droppeft/core/check.hpp"

namespace droppeft {

/// Between which numbers rewards lie: what a policy sees as 0 and as 1.
struct RewardRange {
  double low = 0;
  double high = 1;

  /// No reward is beyond this, so that sums and squares stay finite.
  static constexpr double limit = 1e100;

  /// Not known beforehand: the lowest and the highest so far.
  static constexpr RewardRange unknown() {
    return {std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity()};
  }

  /// Throws std::invalid_argument unless low < high, both in [-1e100, 1e100], or it is unknown().
  void validate(std::string_view who) const {
    const bool fits = low >= -limit && low < high && high <= limit;
    check(fits || *this == unknown(), who,
          " must be two numbers in [-1e100, 1e100], the first below the second, got ", low, " and ",
          high);
  }

  /// Some reward is known to be possible.
  bool known() const { return low <= high; }

  /// 1 / (high - low); 0 where all rewards so far were alike, or nearly so.
  double scale() const { return high - low > 1e-100 ? 1 / (high - low) : 0; }

  void include(double reward) {
    low = std::min(low, reward);
    high = std::max(high, reward);
  }

  nlohmann::json save() const {
    return known() ? nlohmann::json{low, high} : nlohmann::json::array();
  }

  /// One that grew out of `given`.
  static RewardRange load(const Saved& saved, const RewardRange& given) {
    RewardRange range = given;
    if (given.known()) {
      saved.expect(given.save());
    } else if (saved.size() > 0) {
      range.low = saved.at(0).number(-limit, limit);
      range.high = saved.at(1).number(range.low, limit);
    }
    return range;
  }

  friend bool operator==(const RewardRange&, const RewardRange&) = default;
};

}  // namespace droppeft
