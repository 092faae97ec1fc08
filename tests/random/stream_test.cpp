#include "droppeft/random/stream.hpp"

#include <doctest/doctest.h>

#include <array>
#include <boost/random/normal_distribution.hpp>
#include <boost/random/uniform_int_distribution.hpp>
#include <cmath>
#include <cstdint>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "droppeft/random/philox.hpp"

using droppeft::Stream;

static_assert(std::uniform_random_bit_generator<Stream>);

namespace {

std::vector<std::uint32_t> words(Stream stream, int count) {
  std::vector<std::uint32_t> drawn;
  for (int i = 0; i < count; ++i) drawn.push_back(stream());
  return drawn;
}

}  // namespace

TEST_CASE("the words of a stream are Philox blocks in order") {
  const std::uint64_t seed = 0x299f31d0a4093822;
  const auto drawn = words(Stream(seed), 12);
  for (std::uint32_t block = 0; block < 3; ++block) {
    const auto expected = droppeft::philox4x32({{block, 0, 0, 0}}, seed);
    for (std::uint32_t lane = 0; lane < 4; ++lane)
      CHECK(drawn[4 * block + lane] == expected.word[lane]);
  }
}

TEST_CASE("a stream is a value: its copy repeats it") {
  Stream stream(7);
  stream();
  Stream copy = stream;
  CHECK(copy == stream);
  CHECK(words(copy, 9) == words(stream, 9));
  copy();
  CHECK_FALSE(copy == stream);
}

TEST_CASE("the state restores a stream at every position") {
  Stream stream = Stream(3).fold(5);
  for (int drawn = 0; drawn < 10; ++drawn) {
    CHECK(words(Stream(stream.state()), 9) == words(stream, 9));
    stream();
  }
}

TEST_CASE("folding depends on the name alone, not on what was drawn") {
  Stream parent(11);
  const Stream before = parent.fold(4);
  for (int i = 0; i < 5; ++i) parent();
  CHECK(parent.fold(4) == before);
}

TEST_CASE("streams of different names differ") {
  std::set<Stream::State> states;
  std::set<std::vector<std::uint32_t>> starts;
  int count = 0;
  const auto add = [&](const Stream& stream) {
    states.insert(stream.state());
    starts.insert(words(stream, 4));
    ++count;
  };
  for (std::uint64_t seed = 0; seed < 4; ++seed) {
    add(Stream(seed));
    for (std::uint64_t round = 0; round < 8; ++round) {
      add(Stream(seed).fold(round));
      for (std::uint64_t client = 0; client < 8; ++client)
        add(Stream(seed).fold(round).fold(client));
    }
  }
  CHECK(states.size() == static_cast<std::size_t>(count));
  CHECK(starts.size() == static_cast<std::size_t>(count));
}

TEST_CASE("folding does not commute") {
  CHECK_FALSE(Stream(0).fold(1).fold(2) == Stream(0).fold(2).fold(1));
}

TEST_CASE("a stream is known at compile time") {
  constexpr Stream stream = Stream(1).fold(2);
  static_assert(stream == Stream(stream.state()));
}

TEST_CASE("uniform numbers are in [0, 1), multiples of 2^-53, with mean 1/2 and variance 1/12") {
  Stream stream = Stream(19).fold(0);
  const int count = 100000;
  double sum = 0;
  double squares = 0;
  bool in_range = true;
  bool on_grid = true;
  for (int i = 0; i < count; ++i) {
    const double u = stream.uniform();
    in_range = in_range && u >= 0 && u < 1;
    on_grid = on_grid && std::floor(u * 0x1p53) == u * 0x1p53;
    sum += u - 0.5;
    squares += (u - 0.5) * (u - 0.5) - 1.0 / 12;
  }
  CHECK(in_range);
  CHECK(on_grid);
  // Var(u) = 1/12; Var((u - 1/2)^2) = 1/80 - 1/144 = 1/180.
  CHECK(std::abs(sum / std::sqrt(count / 12.0)) <= 5);
  CHECK(std::abs(squares / std::sqrt(count / 180.0)) <= 5);
}

TEST_CASE("streams of neighbouring names are not correlated") {
  const int count = 20000;
  const Stream parent(23);
  for (const auto& [a, b] : {std::pair{parent, parent.fold(0)},
                             {parent.fold(0), parent.fold(1)},
                             {Stream(0), Stream(1)}}) {
    Stream first = a;
    Stream second = b;
    double product = 0;
    for (int i = 0; i < count; ++i) product += (first.uniform() - 0.5) * (second.uniform() - 0.5);
    CHECK(std::abs(product / (std::sqrt(count) / 12)) <= 5);
  }
}

TEST_CASE("the first words of folded streams are uniform over the names") {
  // 16 cells, 64,000 names: chi-square with 15 degrees of freedom, sd sqrt(30).
  std::array<int, 16> cells{};
  const Stream parent(29);
  for (std::uint64_t name = 0; name < 64000; ++name) {
    Stream child = parent.fold(name);
    ++cells[child() >> 28];
  }
  double chi_square = 0;
  for (const int cell : cells) chi_square += (cell - 4000.0) * (cell - 4000.0) / 4000.0;
  CHECK(std::abs(chi_square - 15) / std::sqrt(30.0) <= 5);
}

TEST_CASE("golden numbers: the same on every machine and standard library") {
  // The words also came out of an independent implementation in Python.
  CHECK(words(Stream(42).fold(1).fold(2), 5) ==
        std::vector<std::uint32_t>{0x63fbf07a, 0xf45e4653, 0x749f515e, 0xdbc09256, 0xf0b551f0});
  Stream stream(42);
  CHECK(stream.uniform() == 0x1.dfd524ee73abcp-2);
  CHECK(boost::random::uniform_int_distribution<int>(1, 1000)(stream) == 74);
  CHECK(boost::random::normal_distribution<double>()(stream) == 0x1.a5f94657e9687p-1);
}
