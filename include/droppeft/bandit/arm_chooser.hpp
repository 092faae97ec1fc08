#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "droppeft/bandit/active_arms.hpp"
#include "droppeft/bandit/arm_record.hpp"
#include "droppeft/bandit/policy.hpp"
#include "droppeft/bandit/saved.hpp"
#include "droppeft/bandit/ticket.hpp"
#include "droppeft/core/check.hpp"
#include "droppeft/random/stream.hpp"

namespace droppeft {

/// The part of a selector that chooses: a policy, its random numbers, the arms that are active and
/// the tickets that are open. For those who write a selector; `who` begins the messages.
template <BanditPolicy Policy>
class ArmChooser {
 public:
  /// arms >= 1, the policy's settings in their ranges; else std::invalid_argument.
  ArmChooser(std::string_view who, std::size_t arms, const Policy& policy, Stream stream)
      : who_(who), policy_(policy), stream_(stream), arms_(who, arms) {
    policy_.validate();
  }

  std::size_t arms() const { return arms_.all(); }
  bool active(std::size_t arm) const { return arms_.contains(arm); }
  const std::vector<Ticket>& open_tickets() const { return open_.tickets(); }

  void check_arm(std::size_t arm) const {
    check(arm < arms(), who_, ": arm must be below ", arms(), ", got ", arm);
  }

  void add_arm() { arms_.add(); }
  void retire(std::size_t arm) { arms_.retire(arm); }

  /// Opens a ticket for the arm to play; seen(arm) is its record in the unit of the policy.
  template <class Seen>
  Ticket select(const Seen& seen) {
    arms_.check_any();
    return choose_among(arms_.active(), seen);
  }

  /// The same among some arms, which must be active and ascend, else std::invalid_argument.
  template <class Seen>
  Ticket select(std::span<const std::size_t> among, const Seen& seen) {
    arms_.check_among(among);
    return choose_among(among, seen);
  }

  /// Returns the place that the ticket had among the open ones.
  std::size_t close(const Ticket& ticket, std::string_view call) {
    return open_.close(ticket, call);
  }

  /// What the policy counts for a reward in its own unit.
  double observe(double reward, const Ticket& ticket) requires detail::Observing<Policy> {
    return policy_.observe(reward, ticket, stream_);
  }

  nlohmann::json save() const {
    nlohmann::json saved{{"policy", Policy::name},
                         {"settings", policy_.settings()},
                         {"stream", stream_.state()},
                         {"next_id", next_id_},
                         {"open", open_.save()}};
    arms_.save_into(saved);
    return saved;
  }

  /// As saved by one with the same policy, settings and number of arms at the start.
  void load(const Saved& saved) {
    saved["policy"].expect(Policy::name);
    saved["settings"].expect(policy_.settings());
    ArmChooser loaded(*this);
    loaded.arms_.load(saved);
    loaded.stream_ = saved["stream"].stream();
    loaded.next_id_ = saved["next_id"].integer(OpenTickets::max_id);
    loaded.open_.load(saved["open"], loaded.next_id_, loaded.arms());
    if constexpr (DrawingPolicy<Policy>)
      for (const Ticket& ticket : loaded.open_.tickets())
        require(ticket.probability > 0, who_, ".open: the probability of ticket ", ticket.id,
                " must be above 0, got ", ticket.probability);
    *this = std::move(loaded);
  }

 private:
  template <class Seen>
  Ticket choose_among(std::span<const std::size_t> arms, const Seen& seen) {
    ArmTotals totals{arms.size()};
    std::size_t unvisited = 0;
    for (const std::size_t arm : arms) {
      const ArmRecord record = seen(arm);
      totals.plays += record.plays;
      totals.pending += record.pending;
      totals.sum += record.sum;
      unvisited += record.visits() == 0;
    }
    Ticket ticket{next_id_, 0, 0};
    if (unvisited > 0)
      try_unvisited(ticket, arms, unvisited, totals, seen);
    else
      choose(ticket, arms, totals, seen);
    open_.open(ticket, who_);
    ++next_id_;
    return ticket;
  }

  /// One of the arms without a visit, by lot. While all arms are tried for the first time, in
  /// random order, each play counts as if all had been possible; later ones as what they are.
  template <class Seen>
  void try_unvisited(Ticket& ticket, std::span<const std::size_t> arms, std::size_t unvisited,
                     const ArmTotals& totals, const Seen& seen) {
    auto skip = static_cast<std::size_t>(stream_.uniform() * static_cast<double>(unvisited));
    ticket.arm = *std::ranges::find_if(
        arms, [&](std::size_t arm) { return seen(arm).visits() == 0 && skip-- == 0; });
    const bool first_pass = totals.visits() == static_cast<double>(totals.arms - unvisited);
    ticket.probability = 1 / static_cast<double>(first_pass ? totals.arms : unvisited);
  }

  template <class Seen>
  void choose(Ticket& ticket, std::span<const std::size_t> arms, const ArmTotals& totals,
              const Seen& seen) {
    if constexpr (ScoringPolicy<Policy>) {
      auto&& score = policy_.scorer(totals, stream_);
      ticket.arm =
          ActiveArms::highest(stream_, arms, [&](std::size_t arm) { return score(seen(arm)); });
    } else {
      seen_.clear();
      for (const std::size_t arm : arms) seen_.push_back(seen(arm));
      weights_.resize(seen_.size());
      policy_.weigh(totals, std::span<const ArmRecord>(seen_), std::span<double>(weights_));
      draw(ticket, arms);
    }
  }

  void draw(Ticket& ticket, std::span<const std::size_t> arms) {
    double sum = 0;
    for (const double weight : weights_) sum += weight;
    double left = stream_.uniform() * sum;
    std::size_t chosen = 0;
    for (std::size_t i = 0; i < weights_.size(); ++i) {
      if (weights_[i] == 0) continue;
      chosen = i;
      if ((left -= weights_[i]) < 0) break;
    }
    ticket.arm = arms[chosen];
    ticket.probability = weights_[chosen] / sum;
  }

  std::string_view who_;
  Policy policy_;
  Stream stream_;
  ActiveArms arms_;
  std::uint64_t next_id_ = 0;
  OpenTickets open_;
  std::vector<ArmRecord> seen_;  // scratch of a drawing policy
  std::vector<double> weights_;
};

}  // namespace droppeft
