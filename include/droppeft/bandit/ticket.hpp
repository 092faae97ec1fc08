#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "droppeft/bandit/saved.hpp"
#include "droppeft/core/check.hpp"

namespace droppeft {

/// One play of an arm. The reward that belongs to it is given back with the ticket.
struct Ticket {
  std::uint64_t id = 0;
  std::size_t arm = 0;
  /// With which the arm was chosen, in (0, 1], where the selector draws from a distribution that it
  /// knows (epsilon-greedy, softmax, EXP3) or by lot; 0 where it does not tell.
  double probability = 0;

  friend bool operator==(const Ticket&, const Ticket&) = default;
};

/// The tickets that are open: a part for those who write a selector. Closing one of n takes O(log
/// n), and moves those that are younger; in a steady state nothing is allocated.
class OpenTickets {
 public:
  /// More are never issued.
  static constexpr std::uint64_t max_id = std::uint64_t{1} << 63;

  const std::vector<Ticket>& tickets() const { return tickets_; }

  /// Opens a ticket; `who` begins the message of the std::invalid_argument when its id is open.
  void open(Ticket ticket, std::string_view who) {
    const auto place = find(ticket.id);
    check(place == tickets_.end() || place->id != ticket.id, who, ": ticket ", ticket.id,
          " is open already");
    tickets_.insert(place, ticket);
  }

  /// Closes a ticket; throws std::invalid_argument unless it is open. Returns the place that it had
  /// among the open ones.
  std::size_t close(const Ticket& ticket, std::string_view who) {
    const auto place = find(ticket.id);
    check(place != tickets_.end() && *place == ticket, who, ": ticket ", ticket.id, " of arm ",
          ticket.arm, " is not open: it was closed before, or never issued here");
    const auto index = static_cast<std::size_t>(place - tickets_.begin());
    tickets_.erase(place);
    return index;
  }

  nlohmann::json save() const {
    auto saved = nlohmann::json::array();
    for (const auto& [id, arm, probability] : tickets_) saved.push_back({id, arm, probability});
    return saved;
  }

  /// Ids must ascend and stay below `id_limit`, arms below `arm_limit`.
  void load(const Saved& saved, std::uint64_t id_limit, std::uint64_t arm_limit) {
    std::vector<Ticket> tickets;
    for (std::size_t i = 0; i < saved.size(); ++i) {
      require(id_limit > 0 && arm_limit > 0, "OpenTickets: a ticket is open, but none was issued");
      const Ticket ticket{saved.at(i).at(0).integer(id_limit - 1),
                          static_cast<std::size_t>(saved.at(i).at(1).integer(arm_limit - 1)),
                          saved.at(i).at(2).number(0, 1)};
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

}  // namespace droppeft
