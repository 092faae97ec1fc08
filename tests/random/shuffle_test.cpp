#include "droppeft/random/shuffle.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <span>
#include <vector>

#include "droppeft/random/stream.hpp"

using droppeft::shuffle;
using droppeft::Stream;

namespace {

std::vector<int> shuffled(int size, Stream& stream) {
  std::vector<int> items(static_cast<std::size_t>(size));
  std::iota(items.begin(), items.end(), 0);
  shuffle(std::span(items), stream);
  return items;
}

}  // namespace

TEST_CASE("shuffling permutes, and the same stream permutes alike") {
  Stream stream(5);
  Stream same(5);
  auto items = shuffled(100, stream);
  CHECK(items == shuffled(100, same));
  CHECK(items != shuffled(100, stream));
  std::ranges::sort(items);
  for (int i = 0; i < 100; ++i) CHECK(items[static_cast<std::size_t>(i)] == i);
}

TEST_CASE("shuffling none or one item draws nothing") {
  Stream stream(5);
  shuffled(0, stream);
  shuffled(1, stream);
  CHECK(stream == Stream(5));
}

TEST_CASE("all orders are equally likely") {
  Stream stream(6);
  std::map<std::vector<int>, int> seen;
  const int count = 48000;
  for (int i = 0; i < count; ++i) ++seen[shuffled(4, stream)];
  CHECK(seen.size() == 24);
  const double mean = count / 24.0;
  for (const auto& [order, times] : seen) {
    const double sigmas = (times - mean) / std::sqrt(mean * (1 - 1 / 24.0));
    CHECK(std::abs(sigmas) <= 5);
  }
}

TEST_CASE("golden order: the same on every machine and standard library") {
  Stream stream(42);
  CHECK(shuffled(8, stream) == std::vector<int>{2, 7, 5, 6, 1, 0, 3, 4});
}
