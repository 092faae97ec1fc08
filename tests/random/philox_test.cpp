#include "droppeft/random/philox.hpp"

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstdint>

using droppeft::philox4x32;
using droppeft::PhiloxBlock;

namespace {

constexpr bool equal(PhiloxBlock a, PhiloxBlock b) {
  for (int i = 0; i < 4; ++i)
    if (a.word[i] != b.word[i]) return false;
  return true;
}

constexpr PhiloxBlock zeros{{0, 0, 0, 0}};
constexpr PhiloxBlock ones{{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}};
constexpr PhiloxBlock pi{{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}};
constexpr std::uint64_t pi_key = 0x299f31d0a4093822;

}  // namespace

// The known answers that the authors publish with Random123 (kat_vectors, philox4x32).
TEST_CASE("Philox4x32-10 gives the published numbers") {
  CHECK(equal(philox4x32(zeros, 0), {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}));
  CHECK(equal(philox4x32(ones, ~std::uint64_t{0}),
              {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}));
  CHECK(equal(philox4x32(pi, pi_key), {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}));
}

TEST_CASE("Philox4x32-7 gives the published numbers") {
  CHECK(equal(philox4x32(zeros, 0, 7), {{0x5f6fb709, 0x0d893f64, 0x4f121f81, 0x4f730a48}}));
  CHECK(equal(philox4x32(ones, ~std::uint64_t{0}, 7),
              {{0x5207ddc2, 0x45165e59, 0x4d8ee751, 0x8c52f662}}));
  CHECK(equal(philox4x32(pi, pi_key, 7), {{0x4dfccaba, 0x190a87f0, 0xc47362ba, 0xb6b5242a}}));
}

TEST_CASE("Philox is known at compile time") {
  static_assert(equal(philox4x32(zeros, 0), {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}));
}

TEST_CASE("flipping any one bit of counter or key flips half of the output bits") {
  int flipped = 0;
  int total = 0;
  for (int bit = 0; bit < 192; ++bit) {
    PhiloxBlock counter = pi;
    std::uint64_t key = pi_key;
    if (bit < 128)
      counter.word[bit / 32] ^= std::uint32_t{1} << (bit % 32);
    else
      key ^= std::uint64_t{1} << (bit - 128);
    const PhiloxBlock before = philox4x32(pi, pi_key);
    const PhiloxBlock after = philox4x32(counter, key);
    for (int i = 0; i < 4; ++i) flipped += std::popcount(before.word[i] ^ after.word[i]);
    total += 128;
  }
  const double sigmas = (flipped - total / 2.0) / std::sqrt(total / 4.0);
  CHECK(std::abs(sigmas) <= 5);
}
