// A selector of your own: a type with the members of the concept Selector, no base class. It goes
// wherever a droppeft selector goes, here into the configurator of layer dropout.
#include <cmath>
#include <droppeft/bandit/arm_records.hpp>
#include <droppeft/bandit/selector.hpp>
#include <droppeft/configurator.hpp>
#include <iostream>

namespace dp = droppeft;

// Plays the arms by turns.
class Turns {
 public:
  explicit Turns(std::size_t arms) : records_(arms, /*window=*/0, /*discount=*/1) {}
  dp::Ticket select() {
    const dp::Ticket ticket{next_, next_ % arms()};
    open_.open(ticket, "Turns");
    records_.open(ticket.arm);
    ++next_;
    return ticket;
  }
  void update(const dp::Ticket& ticket, double reward) {
    dp::check(std::abs(reward) <= 1e100, "Turns: the reward must be in [-1e100, 1e100], got ",
              reward);
    expire(ticket);
    records_.add(ticket.arm, reward);
  }
  void expire(const dp::Ticket& ticket) {
    open_.close(ticket, "Turns");
    records_.close(ticket.arm);
  }
  std::size_t arms() const { return records_.size(); }
  dp::ArmRecord record(std::size_t arm) const { return records_[arm]; }
  nlohmann::json save() const {
    return {{"next", next_}, {"open", open_.save()}, {"rewards", records_.save()}};
  }
  void load(const nlohmann::json& state) {
    const dp::Saved saved(state, "Turns");
    Turns loaded(arms());
    loaded.next_ = saved["next"].integer();
    loaded.open_.load(saved["open"], loaded.next_, arms());
    loaded.records_.load(saved["rewards"], arms(), -1e100, 1e100);
    for (const dp::Ticket& ticket : loaded.open_.tickets()) loaded.records_.open(ticket.arm);
    *this = loaded;
  }

 private:
  std::uint64_t next_ = 0;
  dp::OpenTickets open_;
  dp::ArmRecords records_;
};
static_assert(dp::Selector<Turns>);

int main() {
  dp::SelectorConfigurator configurator(Turns(7), dp::configurations());
  dp::Stream device(/*seed=*/0);
  for (int round = 0; round < 20; ++round) {
    for (const auto& each : configurator.assign(/*devices=*/5)) {
      const double rate = each.configuration.mean_rate;  // here two thirds dropped pay best
      configurator.report(each, 1 - rate * rate + 0.1 * device.uniform(), 1.2 - rate);
    }
    configurator.finish_round();
  }
  std::cout << "best: " << to_string(configurator.best()) << "\n";
}
