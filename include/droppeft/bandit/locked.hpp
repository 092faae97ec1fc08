#pragma once

#include <cstddef>
#include <mutex>
#include <nlohmann/json.hpp>
#include <utility>

#include "droppeft/bandit/selector.hpp"

namespace droppeft {

/// A Selector that several threads may use at once: each call holds a lock.
///
///     LockedSelector selector(UcbSelector(10));
///
/// with(f) calls f(the selector inside) under the lock, for what takes several calls or is not in
/// the concept. What comes out depends on the order in which the threads arrive. Neither copied nor
/// moved.
template <Selector S>
class LockedSelector {
 public:
  explicit LockedSelector(S selector) : selector_(std::move(selector)) {}

  Ticket select() {
    return with([](S& s) { return s.select(); });
  }
  void update(const Ticket& ticket, double reward) {
    with([&](S& s) { s.update(ticket, reward); });
  }
  void expire(const Ticket& ticket) {
    with([&](S& s) { s.expire(ticket); });
  }
  std::size_t arms() const {
    return with([](const S& s) { return s.arms(); });
  }
  ArmRecord record(std::size_t arm) const {
    return with([&](const S& s) { return s.record(arm); });
  }
  nlohmann::json save() const {
    return with([](const S& s) { return s.save(); });
  }
  void load(const nlohmann::json& state) {
    with([&](S& s) { s.load(state); });
  }

  template <class F>
  decltype(auto) with(F&& f) {
    const std::lock_guard lock(mutex_);
    return std::forward<F>(f)(selector_);
  }
  template <class F>
  decltype(auto) with(F&& f) const {
    const std::lock_guard lock(mutex_);
    return std::forward<F>(f)(selector_);
  }

 private:
  mutable std::mutex mutex_;
  S selector_;
};

}  // namespace droppeft
