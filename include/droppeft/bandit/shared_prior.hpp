#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>
#include <vector>

#include "droppeft/bandit/arm_chooser.hpp"
#include "droppeft/bandit/arm_record.hpp"
#include "droppeft/bandit/arm_records.hpp"
#include "droppeft/bandit/policy.hpp"
#include "droppeft/bandit/saved.hpp"
#include "droppeft/bandit/ticket.hpp"
#include "droppeft/core/check.hpp"
#include "droppeft/random/stream.hpp"

namespace droppeft {

/// Settings of a SharedPriorSelector.
template <ScoringPolicy Policy>
struct SharedPriorOptions {
  /// Source of all its random numbers. The default is the same stream every time.
  Stream stream{};
  /// n0: plays that what the class knows is worth to one of its devices; finite, >= 0.
  double prior_plays = 8;
  /// Count only the last `window` rewards of a device, and of a class; 0 counts all. Or let each
  /// count for `discount` of what it did, in (0, 1], at each later one of the device, of the class.
  std::size_t window = 0;
  double discount = 1;
  Policy policy{};
};

/// A bandit for each device, whose prior is what the devices of its class have learned.
///
/// Devices of one class (of one speed, say) mostly like the same arms, but not quite. Each arm is
/// scored by the policy on the record
///
///   own + min(1, n0 / plays of the class) * class,
///
/// the rewards that the device had of it, and those of all devices of its class, its own included,
/// as if they were at most n0 = prior_plays plays. So a device that was never asked begins where
/// its class is, and one that is asked often trusts itself: a partially pooled, or empirical Bayes,
/// estimate. n0 = 0 is a bandit for each device alone, a large one a bandit for each class. Plays
/// whose reward is out are counted over the class: a batch of its devices spreads over the arms,
/// and each arm is tried once in each class first (with n0 = 0 once by each device).
///
/// As BanditSelector otherwise: tickets, arms that come and go, ties; rewards in [Policy::
/// min_reward, Policy::max_reward]. Ours; DropPEFT (arXiv 2503.10217) is silent on what its devices
/// share. Not for policies that draw (EXP3: its weights do not pool), nor where all devices are
/// alike: a BanditSelector learns from all of them at once. A value; one thread at a time. Select
/// takes O(arms).
template <ScoringPolicy Policy>
class SharedPriorSelector {
 public:
  using Options = SharedPriorOptions<Policy>;

  /// arms >= 1; classes[i] is the class of device i, a small number, devices >= 1; the options in
  /// their ranges; else std::invalid_argument.
  SharedPriorSelector(std::size_t arms, std::vector<std::size_t> classes,
                      Options options = Options())
      : chooser_("SharedPriorSelector", arms, options.policy, options.stream),
        prior_plays_(options.prior_plays),
        classes_(std::move(classes)) {
    check(std::isfinite(prior_plays_) && prior_plays_ >= 0,
          "SharedPriorSelector: prior_plays must be finite and at least 0, got ", prior_plays_);
    check(!classes_.empty(), "SharedPriorSelector: classes must hold at least one device");
    for (const std::size_t each : classes_)
      check(each < max_classes, "SharedPriorSelector: a class must be below ", max_classes,
            ", got ", each);
    const ArmRecords records(arms, options.window, options.discount);
    of_class_.assign(*std::ranges::max_element(classes_) + 1, records);
    of_device_.assign(classes_.size(), records);
  }

  std::size_t arms() const { return chooser_.arms(); }
  std::size_t devices() const { return classes_.size(); }

  /// The rewards of an arm over all devices, arm < arms(); or, for device < devices(), what the
  /// policy is told. Else std::invalid_argument.
  ArmRecord record(std::size_t arm) const {
    chooser_.check_arm(arm);
    ArmRecord all;
    for (const ArmRecords& each : of_class_) {
      all.add(each[arm]);
      all.pending += each[arm].pending;
    }
    return all;
  }
  ArmRecord record(std::size_t arm, std::size_t device) const {
    chooser_.check_arm(arm);
    check_device(device);
    return pooled(arm, device);
  }

  std::size_t add_arm() {
    chooser_.add_arm();
    for (ArmRecords& each : of_class_) each.add_arm();
    for (ArmRecords& each : of_device_) each.add_arm();
    return arms() - 1;
  }
  void retire(std::size_t arm) { chooser_.retire(arm); }
  bool active(std::size_t arm) const { return chooser_.active(arm); }

  /// Opens a ticket for the arm that a device is to play now, device < devices(); all active arms,
  /// or `among` these. Else std::invalid_argument.
  Ticket select(std::size_t device) {
    return open(device, [&](const auto& seen) { return chooser_.select(seen); });
  }
  Ticket select(std::size_t device, std::span<const std::size_t> among) {
    return open(device, [&](const auto& seen) { return chooser_.select(among, seen); });
  }

  void update(const Ticket& ticket, double reward) {
    check(reward >= Policy::min_reward && reward <= Policy::max_reward,
          "SharedPriorSelector::update (", Policy::name, "): reward must be in [",
          Policy::min_reward, ", ", Policy::max_reward, "], got ", reward);
    const std::size_t device = close(ticket, "SharedPriorSelector::update");
    if constexpr (detail::Observing<Policy>) reward = chooser_.observe(reward, ticket);
    of_device_[device].add(ticket.arm, reward);
    of_class_[classes_[device]].add(ticket.arm, reward);
  }

  void expire(const Ticket& ticket) { close(ticket, "SharedPriorSelector::expire"); }

  nlohmann::json save() const {
    auto of_class = nlohmann::json::array(), of_device = nlohmann::json::array();
    for (const ArmRecords& each : of_class_) of_class.push_back(each.save());
    for (const ArmRecords& each : of_device_) of_device.push_back(each.save());
    return {{"version", 1},          {"chooser", chooser_.save()}, {"prior_plays", prior_plays_},
            {"classes", classes_},   {"playing", playing_},        {"of_class", of_class},
            {"of_device", of_device}};
  }

  /// Goes on from a saved state of a selector with the same options, the stream aside, devices and
  /// number of arms at the start. A state that does not fit is refused with std::runtime_error and
  /// changes nothing.
  void load(const nlohmann::json& state) {
    const Saved saved(state, "SharedPriorSelector");
    saved["version"].expect(1);
    saved["prior_plays"].expect(prior_plays_);
    saved["classes"].expect(classes_);
    SharedPriorSelector loaded(*this);
    loaded.chooser_.load(saved["chooser"]);
    const auto load_all = [&](const Saved& from, std::vector<ArmRecords>& records) {
      require(from.size() == records.size(), "SharedPriorSelector: records must be of ",
              records.size(), " devices or classes, got ", from.size());
      for (std::size_t i = 0; i < records.size(); ++i)
        records[i].load(from.at(i), loaded.arms(), Policy::min_reward, Policy::max_reward);
    };
    load_all(saved["of_class"], loaded.of_class_);
    load_all(saved["of_device"], loaded.of_device_);
    const auto& open = loaded.chooser_.open_tickets();
    const Saved playing = saved["playing"];
    require(playing.size() == open.size(), "SharedPriorSelector.playing must have ", open.size(),
            " elements, got ", playing.size());
    loaded.playing_.clear();
    for (std::size_t i = 0; i < open.size(); ++i) {
      loaded.playing_.push_back(static_cast<std::size_t>(playing.at(i).integer(devices() - 1)));
      loaded.of_device_[loaded.playing_[i]].open(open[i].arm);
      loaded.of_class_[classes_[loaded.playing_[i]]].open(open[i].arm);
    }
    *this = std::move(loaded);
  }

 private:
  static constexpr std::size_t max_classes = 1 << 16;

  void check_device(std::size_t device) const {
    check(device < devices(), "SharedPriorSelector: device must be below ", devices(), ", got ",
          device);
  }

  ArmRecord pooled(std::size_t arm, std::size_t device) const {
    ArmRecord shared = of_class_[classes_[device]][arm];
    if (shared.plays > prior_plays_) shared.discount(prior_plays_ / shared.plays);
    ArmRecord record = of_device_[device][arm];
    record.add(shared);
    record.pending = shared.pending;
    return record;
  }

  template <class Choose>
  Ticket open(std::size_t device, const Choose& choose) {
    check_device(device);
    const Ticket ticket = choose([&](std::size_t arm) { return pooled(arm, device); });
    playing_.push_back(device);
    of_device_[device].open(ticket.arm);
    of_class_[classes_[device]].open(ticket.arm);
    return ticket;
  }

  /// The device that played a ticket, which it closes.
  std::size_t close(const Ticket& ticket, std::string_view call) {
    const auto place = playing_.begin() + static_cast<std::ptrdiff_t>(chooser_.close(ticket, call));
    const std::size_t device = *place;
    playing_.erase(place);
    of_device_[device].close(ticket.arm);
    of_class_[classes_[device]].close(ticket.arm);
    return device;
  }

  ArmChooser<Policy> chooser_;
  double prior_plays_;
  std::vector<std::size_t> classes_;  // of the devices
  std::vector<std::size_t> playing_;  // the device of each open ticket
  std::vector<ArmRecords> of_class_, of_device_;
};

}  // namespace droppeft
