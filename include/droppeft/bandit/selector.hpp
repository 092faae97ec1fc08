#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <nlohmann/json.hpp>
#include <span>
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

/// A bandit that chooses which arm to play next.
///
/// select() opens a ticket; any number may be open at once. update(ticket, reward) closes it with
/// its reward, in any order and however late; expire(ticket) closes it when no reward will come. A
/// ticket that is not open, because it was closed before or never issued here, is refused with
/// std::invalid_argument, as is a reward that is not a number. record(arm) tells what is known of
/// an arm. load(save()) restores every bit; a state that does not fit is refused with
/// std::runtime_error and changes nothing.
template <class S>
concept Selector = requires(S selector, const S& settled, Ticket ticket, double reward,
                            std::size_t arm, const nlohmann::json& saved) {
  { selector.select() } -> std::same_as<Ticket>;
  selector.update(ticket, reward);
  selector.expire(ticket);
  { settled.arms() } -> std::same_as<std::size_t>;
  { settled.record(arm) } -> std::same_as<ArmRecord>;
  { settled.save() } -> std::same_as<nlohmann::json>;
  selector.load(saved);
};

/// A Selector whose arms come and go, and that can be told which of them may be played now: a
/// number of active arms in ascending order.
template <class S>
concept OpenSelector = Selector<S> &&
    requires(S selector, const S& settled, std::size_t arm, std::span<const std::size_t> among) {
  { selector.select(among) } -> std::same_as<Ticket>;
  { selector.add_arm() } -> std::same_as<std::size_t>;
  selector.retire(arm);
  { settled.active(arm) } -> std::same_as<bool>;
};

/// Settings of a BanditSelector.
template <BanditPolicy Policy>
struct SelectorOptions {
  /// Source of all its random numbers. The default is the same stream every time.
  Stream stream{};
  /// Count only the last `window` rewards of the whole selector, for rewards that drift; 0 counts
  /// all. An arm whose rewards have all left is played again as if new, so choose the window
  /// several times the number of arms. (SW-UCB and its like: Garivier, Moulines, ALT 2011.)
  std::size_t window = 0;
  /// Or let each reward count for `discount` of what it did, in (0, 1], at each later one of the
  /// whole selector: about the last 1 / (1 - discount) count. (D-UCB, discounted Thompson
  /// sampling.)
  double discount = 1;
  /// Rewards are r = low + (high - low) x; the policy sees x. With RewardRange::unknown() all that
  /// is known is scaled anew by each reward that is outside of those before;
  /// but what BetaThompson and Exp3 have counted stays as it was.
  RewardRange range{};
  Policy policy{};
};

/// A Selector that plays the arm that its policy chooses.
///
/// Arms without a visit come first, in random order; ties are broken by the stream. A play whose
/// reward is still out is a visit, so that plays chosen before any answer differ: at the start all
/// arms are tried, and UCB1 lowers the bonus of an arm as if the reward out were its present mean.
/// Sampling policies vary by themselves. An arm that has visits but no reward takes the mean of
/// all. Arms may be added and retired at any time; each keeps its number for ever.
///
/// A value: a copy goes on as the original would. select takes O(arms) time, update O(1), with a
/// window on average, with a discount O(arms); nothing is allocated once the most tickets have been
/// open. No locks: one thread at a time (LockedSelector for more).
template <BanditPolicy Policy>
class BanditSelector {
 public:
  using Options = SelectorOptions<Policy>;

  /// arms >= 1; the options in their ranges; else std::invalid_argument.
  explicit BanditSelector(std::size_t arms, Options options = Options())
      : chooser_("BanditSelector", arms, options.policy, options.stream),
        given_(options.range),
        range_(options.range),
        records_(arms, options.window, options.discount) {
    given_.validate("BanditSelector: range");
  }

  /// Arms that ever were, the retired ones too.
  std::size_t arms() const { return chooser_.arms(); }

  /// What is known of an arm; throws std::invalid_argument unless arm < arms().
  ArmRecord record(std::size_t arm) const {
    chooser_.check_arm(arm);
    return records_[arm];
  }

  /// Adds an arm, to be tried next, and returns its number.
  std::size_t add_arm() {
    chooser_.add_arm();
    records_.add_arm();
    return arms() - 1;
  }

  /// Never plays an arm again. Its open tickets remain. std::invalid_argument unless it is active.
  void retire(std::size_t arm) { chooser_.retire(arm); }

  bool active(std::size_t arm) const { return chooser_.active(arm); }

  /// Opens a ticket for the arm to play now. std::invalid_argument when all arms are retired.
  Ticket select() {
    return open([this](const auto& seen) { return chooser_.select(seen); });
  }

  /// The same among some arms, for what may not be played now: at least one, active, ascending,
  /// else std::invalid_argument. The policy is told of these alone.
  Ticket select(std::span<const std::size_t> among) {
    return open([&](const auto& seen) { return chooser_.select(among, seen); });
  }

  /// Closes an open ticket with its reward, which must be within the range that the options and the
  /// policy allow.
  void update(const Ticket& ticket, double reward) {
    const double low = lowest(), high = highest();
    check(reward >= low && reward <= high, "BanditSelector::update (", Policy::name,
          "): reward must be in [", low, ", ", high, "], got ", reward);
    chooser_.close(ticket, "BanditSelector::update");
    records_.close(ticket.arm);
    if (!given_.known()) range_.include(reward);
    if constexpr (detail::Observing<Policy>)
      records_.add(ticket.arm, chooser_.observe((reward - range_.low) * range_.scale(), ticket));
    else
      records_.add(ticket.arm, reward);
  }

  /// Closes an open ticket whose reward will never come, as if it had not been played.
  void expire(const Ticket& ticket) {
    chooser_.close(ticket, "BanditSelector::expire");
    records_.close(ticket.arm);
  }

  nlohmann::json save() const {
    return {{"version", 2},
            {"chooser", chooser_.save()},
            {"range", given_.save()},
            {"range_so_far", range_.save()},
            {"rewards", records_.save()}};
  }

  /// Goes on from a saved state of a selector that was made with the same options, the stream
  /// aside, and as many arms. It has all arms of that one then, those added and retired since, too.
  void load(const nlohmann::json& state) {
    const Saved saved(state, "BanditSelector");
    saved["version"].expect(2);
    saved["range"].expect(given_.save());
    BanditSelector loaded(*this);
    loaded.chooser_.load(saved["chooser"]);
    loaded.range_ = RewardRange::load(saved["range_so_far"], given_);
    loaded.records_.load(saved["rewards"], loaded.arms(), least_counted(), most_counted());
    for (const Ticket& ticket : loaded.chooser_.open_tickets()) loaded.records_.open(ticket.arm);
    *this = std::move(loaded);
  }

 private:
  template <class Choose>
  Ticket open(const Choose& choose) {
    // What an observing policy counted is in its own unit already.
    const bool own_unit = detail::Observing<Policy> || !range_.known();
    const double low = own_unit ? 0 : range_.low;
    const double scale = own_unit ? 1 : range_.scale();
    const Ticket ticket = choose([&](std::size_t arm) { return records_[arm].scaled(low, scale); });
    records_.open(ticket.arm);
    return ticket;
  }

  double lowest() const {
    return given_.known() ? in_own_unit(Policy::min_reward) : -RewardRange::limit;
  }
  double highest() const {
    return given_.known() ? in_own_unit(Policy::max_reward) : RewardRange::limit;
  }

  double in_own_unit(double x) const {
    const double reward = x == 1 ? given_.high : given_.low + (given_.high - given_.low) * x;
    return std::clamp(reward, -RewardRange::limit, RewardRange::limit);
  }

  double least_counted() const {
    return detail::Observing<Policy> ? static_cast<double>(Policy::min_reward) : lowest();
  }

  double most_counted() const {
    if constexpr (requires { Policy::max_counted; }) return Policy::max_counted;
    return detail::Observing<Policy> ? static_cast<double>(Policy::max_reward) : highest();
  }

  ArmChooser<Policy> chooser_;
  RewardRange given_, range_;  // as asked for; as known now
  ArmRecords records_;
};

}  // namespace droppeft
