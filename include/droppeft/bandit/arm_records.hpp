#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "droppeft/bandit/arm_record.hpp"
#include "droppeft/bandit/saved.hpp"
#include "droppeft/core/check.hpp"

namespace droppeft {

/// The records of all arms of a selector, over all rewards, over the last `window` of them, or with
/// old ones discounted: a part for those who write a selector.
///
/// A reward takes O(1) time, with a window on average, with a discount O(arms); nothing is
/// allocated once a window is full. What left a window leaves no rounding error: each arm's rewards
/// are a queue of two stacks (a running record of the new ones, and for the old ones the record of
/// each and all newer), so that nothing is ever subtracted. Record is ArmRecord or has the same
/// members.
template <class Record>
class Records {
 public:
  using Reward = typename Record::Reward;

  /// window: 0 counts all rewards; discount in (0, 1], 1 counts them for ever; not both. Else
  /// std::invalid_argument.
  Records(std::size_t arms, std::size_t window, double discount)
      : window_(window), discount_(discount), records_(arms), queues_(window > 0 ? arms : 0) {
    check(discount > 0 && discount <= 1, "ArmRecords: discount must be in (0, 1], got ", discount);
    check(window == 0 || discount == 1, "ArmRecords: window and discount exclude each other, got ",
          window, " and ", discount);
  }

  std::size_t size() const { return records_.size(); }
  const Record& operator[](std::size_t arm) const { return records_[arm]; }

  void add_arm() {
    records_.emplace_back();
    if (window_ > 0) queues_.emplace_back();
  }

  void open(std::size_t arm) { ++records_[arm].pending; }
  void close(std::size_t arm) { --records_[arm].pending; }

  /// Counts a reward of an arm, the newest of all.
  void add(std::size_t arm, const Reward& reward) {
    if (window_ > 0) {
      push(arm, reward);
      return;
    }
    if (discount_ < 1)
      for (Record& record : records_) record.discount(discount_);
    records_[arm].add(reward);
  }

  nlohmann::json save() const {
    auto records = nlohmann::json::array();
    auto rewards = nlohmann::json::array();
    if (window_ == 0) {
      for (const Record& record : records_) records.push_back(record.save());
    } else {
      for (const Queue& queue : queues_) records.push_back(queue.old);
      for (std::size_t i = 0; i < rewards_.size(); ++i) {
        const Counted& reward = rewards_[(oldest_ + i) % rewards_.size()];
        rewards.push_back({reward.arm, Record::save(reward.value)});
      }
    }
    return {
        {"window", window_}, {"discount", discount_}, {"records", records}, {"rewards", rewards}};
  }

  /// As saved with the same window and discount, of so many arms, each reward in [low, high]. No
  /// play is pending afterwards.
  void load(const Saved& saved, std::size_t arms, const Reward& low, const Reward& high) {
    saved["window"].expect(window_);
    saved["discount"].expect(discount_);
    const Saved records = saved["records"], rewards = saved["rewards"];
    require(records.size() == arms, "ArmRecords.records must have ", arms, " elements, got ",
            records.size());
    require(rewards.size() <= window_, "ArmRecords.rewards must have at most ", window_,
            " elements, got ", rewards.size());
    Records loaded(arms, window_, discount_);
    for (std::size_t i = 0; i < rewards.size(); ++i)
      loaded.push(static_cast<std::size_t>(rewards.at(i).at(0).integer(arms - 1)),
                  Record::load(rewards.at(i).at(1), low, high));
    for (std::size_t arm = 0; arm < arms; ++arm) {
      if (window_ > 0)
        loaded.make_old(arm, records.at(arm).integer(loaded.queues_[arm].size));
      else
        loaded.records_[arm] = Record(records.at(arm), low, high);
    }
    *this = std::move(loaded);
  }

 private:
  struct Counted {
    std::size_t arm = 0;
    Reward value{};
    std::size_t older = 0, newer = 0;  // places of the neighbours of the same arm
    Record and_newer{};                // of an old reward: the record from it to the last old one
  };

  /// Rewards of one arm, the oldest `old` of which have their and_newer.
  struct Queue {
    std::size_t first = 0, last = 0, size = 0, old = 0;
    Record recent{};  // of the others
  };

  void push(std::size_t arm, const Reward& value) {
    std::size_t place = rewards_.size();
    if (place == window_) {
      place = oldest_;
      pop(rewards_[place].arm);
      oldest_ = (oldest_ + 1) % window_;
    } else {
      rewards_.emplace_back();
    }
    Queue& queue = queues_[arm];
    rewards_[place] = {arm, value, queue.last, 0, {}};
    if (queue.size == 0)
      queue.first = place;
    else
      rewards_[queue.last].newer = place;
    queue.last = place;
    ++queue.size;
    queue.recent.add(value);
    refresh(arm);
  }

  /// Lets the oldest reward of an arm go.
  void pop(std::size_t arm) {
    Queue& queue = queues_[arm];
    if (queue.old == 0) make_old(arm, queue.size);
    queue.first = rewards_[queue.first].newer;
    --queue.old;
    --queue.size;
    refresh(arm);
  }

  /// Makes the oldest `count` rewards of an arm its old ones.
  void make_old(std::size_t arm, std::size_t count) {
    Queue& queue = queues_[arm];
    std::size_t place = queue.first;
    for (std::size_t i = 1; i < count; ++i) place = rewards_[place].newer;
    Record record;
    for (std::size_t i = 0, at = place; i < count; ++i, at = rewards_[at].older) {
      Record with;
      with.add(rewards_[at].value);
      with.add(record);
      record = rewards_[at].and_newer = with;
    }
    queue.old = count;
    queue.recent = {};
    if (count > 0) place = rewards_[place].newer;
    for (std::size_t i = count; i < queue.size; ++i, place = rewards_[place].newer)
      queue.recent.add(rewards_[place].value);
    refresh(arm);
  }

  void refresh(std::size_t arm) {
    const Queue& queue = queues_[arm];
    Record record = queue.old > 0 ? rewards_[queue.first].and_newer : Record{};
    record.add(queue.recent);
    record.pending = records_[arm].pending;
    records_[arm] = record;
  }

  std::size_t window_;
  double discount_;
  std::vector<Record> records_;
  std::vector<Queue> queues_;     // with a window, one an arm
  std::vector<Counted> rewards_;  // with a window: a ring, else empty
  std::size_t oldest_ = 0;
};

using ArmRecords = Records<ArmRecord>;

}  // namespace droppeft
