#pragma once

#include <array>
#include <cstdint>
#include <limits>

#include "droppeft/random/philox.hpp"

namespace droppeft {

/// A stream of random numbers that is a value: copied, it repeats itself; folded, it is
/// independent.
///
/// `Stream(seed).fold(round).fold(client).fold(step)` names one stream among 2^128, whatever was
/// drawn before and elsewhere, so that the numbers of a step depend on nothing but its name: not
/// on the thread count, the order of the clients, or a restart. Word i of a stream is word i mod 4
/// of Philox4x32-10 at counter (i / 4, name); see philox.hpp.
///
/// Meets UniformRandomBitGenerator. Use it with the distributions of Boost.Random, whose values are
/// the same on every standard library; those of <random> are not. A stream has no lock: give each
/// thread its own, by folding. Not for cryptography.
class Stream {
 public:
  using result_type = std::uint32_t;

  /// What a stream is made of: key, name and the number of words drawn. Restores every bit.
  using State = std::array<std::uint64_t, 3>;

  explicit constexpr Stream(std::uint64_t seed = 0) : key_(seed) {}

  explicit constexpr Stream(const State& state)
      : key_(state[0]), name_(state[1]), drawn_(state[2]) {
    if (drawn_ % 4 != 0) block_ = block(drawn_ / 4);
  }

  constexpr State state() const { return {key_, name_, drawn_}; }

  /// The stream that belongs to `key` under this one: independent of it, of how much was drawn from
  /// it, and of the streams of all other keys. `fold` does not commute.
  constexpr Stream fold(std::uint64_t key) const {
    // The tag keeps the names of children apart from the numbers that the parent draws.
    constexpr std::uint64_t tag = 0x666F6C646B657973;
    const PhiloxBlock child = philox4x32(counter(key), key_ ^ tag);
    Stream stream(join(child.word[0], child.word[1]));
    stream.name_ = join(child.word[2], child.word[3]);
    return stream;
  }

  static constexpr result_type min() { return 0; }
  static constexpr result_type max() { return std::numeric_limits<result_type>::max(); }

  constexpr result_type operator()() {
    const auto lane = drawn_ % 4;
    if (lane == 0) block_ = block(drawn_ / 4);
    ++drawn_;
    return block_.word[lane];
  }

  /// A double in [0, 1), a multiple of 2^-53; takes two words.
  constexpr double uniform() {
    const std::uint32_t low = (*this)();
    const std::uint32_t high = (*this)();
    return static_cast<double>(join(low, high) >> 11) * 0x1p-53;
  }

  friend constexpr bool operator==(const Stream& a, const Stream& b) {
    return a.state() == b.state();
  }

 private:
  static constexpr std::uint64_t join(std::uint32_t low, std::uint32_t high) {
    return (std::uint64_t{high} << 32) | low;
  }

  constexpr PhiloxBlock counter(std::uint64_t low) const {
    return {{static_cast<std::uint32_t>(low), static_cast<std::uint32_t>(low >> 32),
             static_cast<std::uint32_t>(name_), static_cast<std::uint32_t>(name_ >> 32)}};
  }

  constexpr PhiloxBlock block(std::uint64_t index) const {
    return philox4x32(counter(index), key_);
  }

  std::uint64_t key_;
  std::uint64_t name_ = 0;
  std::uint64_t drawn_ = 0;
  PhiloxBlock block_{};
};

}  // namespace droppeft
