#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <span>
#include <string_view>
#include <vector>

#include "droppeft/bandit/saved.hpp"
#include "droppeft/core/check.hpp"
#include "droppeft/random/stream.hpp"

namespace droppeft {

/// The arms of a selector that come and go, each with its number for ever: a part for those who
/// write one. `who` begins the messages.
class ActiveArms {
 public:
  /// arms >= 1, else std::invalid_argument.
  ActiveArms(std::string_view who, std::size_t arms) : who_(who), first_(arms), all_(arms) {
    check(arms >= 1, who, ": arms must be at least 1, got ", arms);
    for (std::size_t arm = 0; arm < arms; ++arm) active_.push_back(arm);
  }

  /// Arms that ever were, the retired ones too.
  std::size_t all() const { return all_; }

  /// Those that are not retired, ascending.
  const std::vector<std::size_t>& active() const { return active_; }
  bool contains(std::size_t arm) const { return std::ranges::binary_search(active_, arm); }

  void add() { active_.push_back(all_++); }

  /// Throws std::invalid_argument unless the arm is active.
  void retire(std::size_t arm) {
    check(contains(arm), who_, "::retire: arm ", arm,
          " is not active: it was retired before, or never added");
    active_.erase(std::ranges::lower_bound(active_, arm));
  }

  /// Throws std::invalid_argument when all arms are retired.
  void check_any() const { check(!active_.empty(), who_, "::select: all arms are retired"); }

  /// Throws std::invalid_argument unless these are at least one, ascending, and all active.
  void check_among(std::span<const std::size_t> arms) const {
    check(!arms.empty(), who_, "::select: arms to choose among must be at least one, got none");
    for (std::size_t i = 0; i < arms.size(); ++i)
      check(contains(arms[i]) && (i == 0 || arms[i - 1] < arms[i]), who_,
            "::select: arms to choose among must be active and ascend, got ", arms[i]);
  }

  /// The active arm with the highest score(arm); among equals, a random one.
  template <class Score>
  std::size_t highest(Stream& stream, Score&& score) const {
    return highest(stream, active_, score);
  }

  /// The same among some arms, at least one.
  template <class Score>
  static std::size_t highest(Stream& stream, std::span<const std::size_t> arms, Score&& score) {
    std::size_t best = arms.front();
    double best_score = -std::numeric_limits<double>::infinity();
    std::uint32_t ties = 0;
    for (const std::size_t arm : arms) {
      const double arm_score = score(arm);
      if (arm_score > best_score) {
        best = arm;
        best_score = arm_score;
        ties = 1;
      } else if (arm_score == best_score) {
        ++ties;
        if (stream.uniform() * ties < 1) best = arm;
      }
    }
    return best;
  }

  /// Adds "arms", those at the start, "all_arms" and "active" to an object.
  void save_into(nlohmann::json& object) const {
    object["arms"] = first_;
    object["all_arms"] = all_;
    object["active"] = active_;
  }

  /// From an object that has them; the number of arms at the start must be the same.
  void load(const Saved& saved) {
    saved["arms"].expect(first_);
    ActiveArms loaded(*this);
    loaded.all_ = static_cast<std::size_t>(saved["all_arms"].integer());
    require(loaded.all_ >= first_, who_, ".all_arms must be at least ", first_, ", got ",
            loaded.all_);
    const Saved active = saved["active"];
    loaded.active_.clear();
    for (std::size_t i = 0; i < active.size(); ++i) {
      loaded.active_.push_back(static_cast<std::size_t>(active.at(i).integer(loaded.all_ - 1)));
      require(i == 0 || loaded.active_[i - 1] < loaded.active_[i], who_,
              ".active must ascend, got ", loaded.active_[i]);
    }
    *this = loaded;
  }

 private:
  std::string_view who_;
  std::size_t first_, all_;
  std::vector<std::size_t> active_;
};

}  // namespace droppeft
