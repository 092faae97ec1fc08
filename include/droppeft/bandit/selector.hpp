#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "droppeft/bandit/saved.hpp"
#include "droppeft/core/check.hpp"
#include "droppeft/random/stream.hpp"

namespace droppeft {

/// One play of an arm. The reward that belongs to it is given back with the ticket.
struct Ticket {
  std::uint64_t id = 0;
  std::size_t arm = 0;

  friend bool operator==(const Ticket&, const Ticket&) = default;
};

/// What a selector holds of an arm, or of all of them: rewards that it has and still counts, and
/// plays whose reward is out.
struct ArmRecord {
  std::uint64_t plays = 0;
  std::uint64_t pending = 0;
  double sum = 0;

  /// Plays with and without a reward.
  double visits() const { return static_cast<double>(plays + pending); }

  /// Mean reward; `otherwise` when there is none yet.
  double mean(double otherwise = 0) const {
    return plays == 0 ? otherwise : sum / static_cast<double>(plays);
  }
};

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

/// The tickets that are open: a part for those who write a selector. Finding one among n takes
/// O(log n); in a steady state nothing is allocated.
class OpenTickets {
 public:
  const std::vector<Ticket>& tickets() const { return tickets_; }

  /// Opens a ticket; `who` begins the message of the std::invalid_argument when its id is open.
  void open(Ticket ticket, std::string_view who) {
    const auto place = find(ticket.id);
    check(place == tickets_.end() || place->id != ticket.id, who, ": ticket ", ticket.id,
          " is open already");
    tickets_.insert(place, ticket);
  }

  /// Throws std::invalid_argument unless the ticket is open.
  void check_open(Ticket ticket, std::string_view who) const {
    const auto place = std::ranges::lower_bound(tickets_, ticket.id, {}, &Ticket::id);
    check(place != tickets_.end() && *place == ticket, who, ": ticket ", ticket.id, " of arm ",
          ticket.arm, " is not open: it was closed before, or never issued here");
  }

  /// Closes a ticket; throws std::invalid_argument unless it is open.
  void close(Ticket ticket, std::string_view who) {
    check_open(ticket, who);
    tickets_.erase(find(ticket.id));
  }

  nlohmann::json save() const {
    auto saved = nlohmann::json::array();
    for (const auto& [id, arm] : tickets_) saved.push_back({id, arm});
    return saved;
  }

  /// Ids must ascend and stay below `id_limit`, arms below `arm_limit`.
  void load(const Saved& saved, std::uint64_t id_limit, std::uint64_t arm_limit) {
    std::vector<Ticket> tickets;
    for (std::size_t i = 0; i < saved.size(); ++i) {
      require(id_limit > 0 && arm_limit > 0, "OpenTickets: a ticket is open, but none was issued");
      const Ticket ticket{saved.at(i).at(0).integer(id_limit - 1),
                          static_cast<std::size_t>(saved.at(i).at(1).integer(arm_limit - 1))};
      require(tickets.empty() || tickets.back().id < ticket.id,
              "OpenTickets: ids must ascend, got ", ticket.id);
      tickets.push_back(ticket);
    }
    tickets_ = std::move(tickets);
  }

 private:
  std::vector<Ticket>::iterator find(std::uint64_t id) {
    return std::ranges::lower_bound(tickets_, id, {}, &Ticket::id);
  }

  std::vector<Ticket> tickets_;  // ascending ids
};

/// What makes a BanditSelector one bandit or another. A policy is a struct of settings with
/// - name: under which its state is saved; min_reward, max_reward: the rewards that it takes;
/// - validate(): throws std::invalid_argument for a setting out of range;
/// - settings(): the settings as JSON, compared on load;
/// - observe(reward, stream): what is counted for a reward, again in [min_reward, max_reward];
/// - scorer(total, stream): a callable from an arm's record to its score in this round, `total`
///   being the sum of all records. The arm with the highest score is played. Called only when every
///   arm has visits; an arm may have no reward yet.
template <class P>
concept BanditPolicy = std::copyable<P> &&
    requires(const P& policy, const ArmRecord& record, Stream& stream) {
  { P::name } -> std::convertible_to<std::string_view>;
  { P::min_reward } -> std::convertible_to<double>;
  { P::max_reward } -> std::convertible_to<double>;
  policy.validate();
  { policy.settings() } -> std::same_as<nlohmann::json>;
  { policy.observe(0.0, stream) } -> std::same_as<double>;
  { policy.scorer(record, stream)(record) } -> std::same_as<double>;
};

/// Settings of a BanditSelector.
template <BanditPolicy Policy>
struct SelectorOptions {
  /// Source of all its random numbers. The default is the same stream every time.
  Stream stream{};
  /// Count only the last `window` rewards of the whole selector, for rewards that drift; 0 counts
  /// all. An arm whose rewards have all left is played again as if new, so choose the window
  /// several times the number of arms.
  std::size_t window = 0;
  Policy policy{};
};

/// A Selector that plays the arm with the highest score of its policy.
///
/// Arms without a visit come first, in random order; ties are broken by the stream. A play whose
/// reward is still out is a visit, so that plays chosen before any answer differ: at the start all
/// arms are tried, and UCB1 lowers the bonus of an arm as if the reward out were its present mean.
/// Sampling policies vary by themselves. An arm that has visits but no reward takes the mean of
/// all.
///
/// A value: a copy goes on as the original would. select and update take O(arms) time (with a
/// window, update takes O(arms + window)) and allocate nothing once the most tickets have been
/// open. No locks: one thread at a time.
template <BanditPolicy Policy>
class BanditSelector {
 public:
  using Options = SelectorOptions<Policy>;

  /// arms >= 1; the policy's settings in their ranges; else std::invalid_argument.
  explicit BanditSelector(std::size_t arms, Options options = Options())
      : policy_(options.policy), window_(options.window), stream_(options.stream), records_(arms) {
    check(arms >= 1, "BanditSelector: arms must be at least 1, got ", arms);
    policy_.validate();
  }

  std::size_t arms() const { return records_.size(); }

  /// What is known of an arm; throws std::invalid_argument unless arm < arms().
  ArmRecord record(std::size_t arm) const {
    check(arm < arms(), "BanditSelector: arm must be below ", arms(), ", got ", arm);
    return records_[arm];
  }

  /// Opens a ticket for the arm to play now.
  Ticket select() {
    ArmRecord total;
    bool all_visited = true;
    for (const ArmRecord& record : records_) {
      total.plays += record.plays;
      total.pending += record.pending;
      total.sum += record.sum;
      all_visited = all_visited && record.plays + record.pending > 0;
    }
    const std::size_t arm = all_visited ? highest(policy_.scorer(total, stream_))
                                        : highest([](const ArmRecord& record) {
                                            return record.plays + record.pending > 0 ? 0.0 : 1.0;
                                          });
    const Ticket ticket{next_id_++, arm};
    open_.open(ticket, "BanditSelector::select");
    ++records_[arm].pending;
    return ticket;
  }

  /// Closes an open ticket with its reward, which must be within the policy's limits.
  void update(Ticket ticket, double reward) {
    check(reward >= Policy::min_reward && reward <= Policy::max_reward, "BanditSelector::update (",
          Policy::name, "): reward must be in [", Policy::min_reward, ", ", Policy::max_reward,
          "], got ", reward);
    open_.close(ticket, "BanditSelector::update");
    --records_[ticket.arm].pending;
    count({ticket.arm, policy_.observe(reward, stream_)});
  }

  /// Closes an open ticket whose reward will never come, as if it had not been played.
  void expire(Ticket ticket) {
    open_.close(ticket, "BanditSelector::expire");
    --records_[ticket.arm].pending;
  }

  nlohmann::json save() const {
    auto records = nlohmann::json::array();
    for (const ArmRecord& record : records_) records.push_back({record.plays, record.sum});
    auto rewards = nlohmann::json::array();
    for (std::size_t i = 0; i < rewards_.size(); ++i) {
      const Reward& reward = rewards_[(oldest_ + i) % rewards_.size()];
      rewards.push_back({reward.arm, reward.value});
    }
    return {{"version", 1},        {"policy", Policy::name}, {"settings", policy_.settings()},
            {"arms", arms()},      {"window", window_},      {"stream", stream_.state()},
            {"next_id", next_id_}, {"open", open_.save()},   {"records", records},
            {"rewards", rewards}};
  }

  /// Goes on from a saved state of a selector with the same policy, settings, arms and window.
  void load(const nlohmann::json& state) {
    const Saved saved(state, "BanditSelector");
    saved["version"].expect(1);
    saved["policy"].expect(Policy::name);
    saved["settings"].expect(policy_.settings());
    saved["arms"].expect(arms());
    saved["window"].expect(window_);
    BanditSelector loaded(arms(), {saved["stream"].stream(), window_, policy_});
    loaded.next_id_ = saved["next_id"].integer();
    loaded.open_.load(saved["open"], loaded.next_id_, arms());

    const Saved rewards = saved["rewards"];
    require(rewards.size() <= window_, "BanditSelector.rewards must have at most ", window_,
            " elements, got ", rewards.size());
    for (std::size_t i = 0; i < rewards.size(); ++i)
      loaded.count({static_cast<std::size_t>(rewards.at(i).at(0).integer(arms() - 1)),
                    rewards.at(i).at(1).number(Policy::min_reward, Policy::max_reward)});
    const Saved records = saved["records"];
    require(records.size() == arms(), "BanditSelector.records must have ", arms(),
            " elements, got ", records.size());
    for (std::size_t arm = 0; arm < arms(); ++arm) {
      ArmRecord& record = loaded.records_[arm];
      const std::uint64_t plays = records.at(arm).at(0).integer(max_plays);
      const auto scale = static_cast<double>(plays);
      const double sum =
          records.at(arm).at(1).number(scale * Policy::min_reward, scale * Policy::max_reward);
      require(window_ == 0 || (plays == record.plays && sum == record.sum),
              "BanditSelector.records[", arm, "] does not agree with the rewards in the window");
      record.plays = plays;
      record.sum = sum;
    }
    for (const Ticket& ticket : loaded.open_.tickets()) ++loaded.records_[ticket.arm].pending;
    *this = std::move(loaded);
  }

 private:
  struct Reward {
    std::size_t arm;
    double value;
  };

  // Counts of this size are exact as double.
  static constexpr std::uint64_t max_plays = std::uint64_t{1} << 53;

  /// The arm with the highest score; among equals, a random one.
  std::size_t highest(auto&& score) {
    std::size_t best = 0;
    double best_score = -std::numeric_limits<double>::infinity();
    std::uint32_t ties = 0;
    for (std::size_t arm = 0; arm < arms(); ++arm) {
      const double arm_score = score(records_[arm]);
      if (arm_score > best_score) {
        best = arm;
        best_score = arm_score;
        ties = 1;
      } else if (arm_score == best_score) {
        ++ties;
        if (stream_.uniform() * ties < 1) best = arm;
      }
    }
    return best;
  }

  void count(Reward reward) {
    ArmRecord& record = records_[reward.arm];
    if (window_ != 0 && rewards_.size() == window_) {
      const std::size_t left = std::exchange(rewards_[oldest_], reward).arm;
      oldest_ = (oldest_ + 1) % window_;
      recount(left);
      if (left == reward.arm) return;
    } else if (window_ != 0) {
      rewards_.push_back(reward);
    }
    ++record.plays;
    record.sum += reward.value;
  }

  /// The record of an arm from the rewards in the window, oldest first. Subtracting what left would
  /// let rounding errors pile up.
  void recount(std::size_t arm) {
    ArmRecord& record = records_[arm];
    record.plays = 0;
    record.sum = 0;
    const std::span<const Reward> ring(rewards_);
    for (const auto part : {ring.subspan(oldest_), ring.first(oldest_)})
      for (const Reward& reward : part)
        if (reward.arm == arm) {
          ++record.plays;
          record.sum += reward.value;
        }
  }

  Policy policy_;
  std::size_t window_;
  Stream stream_;
  std::uint64_t next_id_ = 0;
  OpenTickets open_;
  std::vector<ArmRecord> records_;
  std::vector<Reward> rewards_;  // with a window: a ring of its rewards, else empty
  std::size_t oldest_ = 0;
};

}  // namespace droppeft
