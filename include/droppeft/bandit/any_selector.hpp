#pragma once

#include <concepts>
#include <cstddef>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>

#include "droppeft/bandit/arm_record.hpp"
#include "droppeft/bandit/selector.hpp"
#include "droppeft/bandit/ticket.hpp"

namespace droppeft {

/// A Selector whose kind is chosen at run time: holds any one.
///
///     AnySelector selector = name == "ucb" ? AnySelector(UcbSelector(5)) : ThompsonSelector(5);
///
/// A value: a copy goes on as the original would; one that was moved from can be assigned or
/// destroyed only. load wants a state of the kind that it holds. An OpenSelector if that is one,
/// else select(among), add_arm and retire throw std::invalid_argument. Each call costs a virtual
/// one more.
class AnySelector {
 public:
  template <class S>
  requires(!std::same_as<S, AnySelector> && requires(S selector) { selector.select(); })
      AnySelector(S selector)
      : held_(std::make_unique<Held<S>>(std::move(selector))) {
    static_assert(Selector<S> && std::copyable<S>, "AnySelector holds a Selector that is a value");
  }

  AnySelector(const AnySelector& other) : held_(other.held_->clone()) {}
  AnySelector(AnySelector&&) noexcept = default;
  AnySelector& operator=(const AnySelector& other) { return *this = AnySelector(other); }
  AnySelector& operator=(AnySelector&&) noexcept = default;
  ~AnySelector() = default;

  Ticket select() { return held_->select(); }
  Ticket select(std::span<const std::size_t> among) { return held_->select(among); }
  std::size_t add_arm() { return held_->add_arm(); }
  void retire(std::size_t arm) { held_->retire(arm); }
  bool active(std::size_t arm) const { return held_->active(arm); }
  /// Whether it holds an OpenSelector.
  bool open() const { return held_->open(); }
  void update(const Ticket& ticket, double reward) { held_->update(ticket, reward); }
  void expire(const Ticket& ticket) { held_->expire(ticket); }
  std::size_t arms() const { return held_->arms(); }
  ArmRecord record(std::size_t arm) const { return held_->record(arm); }
  nlohmann::json save() const { return held_->save(); }
  void load(const nlohmann::json& state) { held_->load(state); }

 private:
  struct Interface {
    virtual ~Interface() = default;
    virtual std::unique_ptr<Interface> clone() const = 0;
    virtual Ticket select() = 0;
    virtual Ticket select(std::span<const std::size_t> among) = 0;
    virtual std::size_t add_arm() = 0;
    virtual void retire(std::size_t arm) = 0;
    virtual bool active(std::size_t arm) const = 0;
    virtual bool open() const = 0;
    virtual void update(const Ticket& ticket, double reward) = 0;
    virtual void expire(const Ticket& ticket) = 0;
    virtual std::size_t arms() const = 0;
    virtual ArmRecord record(std::size_t arm) const = 0;
    virtual nlohmann::json save() const = 0;
    virtual void load(const nlohmann::json& state) = 0;
  };

  template <class S>
  struct Held final : Interface {
    explicit Held(S selector) : inside(std::move(selector)) {}
    std::unique_ptr<Interface> clone() const override { return std::make_unique<Held>(inside); }
    Ticket select() override { return inside.select(); }
    Ticket select(std::span<const std::size_t> among) override {
      if constexpr (OpenSelector<S>) return inside.select(among);
      refuse("select among some arms");
    }
    std::size_t add_arm() override {
      if constexpr (OpenSelector<S>) return inside.add_arm();
      refuse("add_arm");
    }
    void retire(std::size_t arm) override {
      if constexpr (OpenSelector<S>)
        inside.retire(arm);
      else
        refuse("retire");
    }
    bool active(std::size_t arm) const override {
      if constexpr (OpenSelector<S>) return inside.active(arm);
      return arm < inside.arms();
    }
    void update(const Ticket& ticket, double reward) override { inside.update(ticket, reward); }
    void expire(const Ticket& ticket) override { inside.expire(ticket); }
    std::size_t arms() const override { return inside.arms(); }
    ArmRecord record(std::size_t arm) const override { return inside.record(arm); }
    nlohmann::json save() const override { return inside.save(); }
    void load(const nlohmann::json& state) override { inside.load(state); }

    bool open() const override { return OpenSelector<S>; }

    [[noreturn]] static void refuse(const char* call) {
      throw std::invalid_argument(std::string("AnySelector: the selector that it holds has no ") +
                                  call);
    }

    S inside;
  };

  std::unique_ptr<Interface> held_;
};

}  // namespace droppeft
