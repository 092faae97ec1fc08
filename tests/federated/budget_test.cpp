#include "droppeft/federated/budget.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <stdexcept>

#include "droppeft/dropout/gate.hpp"
#include "droppeft/federated/pace.hpp"
#include "droppeft/random/stream.hpp"

using namespace droppeft;

namespace {
const RoundCost cost{.layer_seconds = 10, .other_seconds = 2};
const StepBytes step{.layer_bytes = 4, .other_bytes = 3};
}  // namespace

TEST_CASE("without a limit nothing need be dropped") {
  CHECK(least_drop_rate({}, cost, step, 6) == 0);
  CHECK(least_drop_rate({.seconds = 12, .bytes = 27}, cost, step, 6) == 0);
}

TEST_CASE("seconds alone need no bytes, and an old least rate is no floor") {
  RoundCost bound = cost;
  bound.least_rate = 0.9;
  CHECK(least_drop_rate({.seconds = 7}, bound, {}, 6) == doctest::Approx(0.5));
}

TEST_CASE("the lowest rate keeps to the seconds, to the bytes, to both") {
  CHECK(least_drop_rate({.seconds = 7}, cost, step, 6) == doctest::Approx(0.5));
  // 15 bytes hold 3 layers, 14.9 hold 2.
  CHECK(least_drop_rate({.bytes = 15}, cost, step, 6) == doctest::Approx(0.5));
  CHECK(least_drop_rate({.bytes = 14.9}, cost, step, 6) == doctest::Approx(2.0 / 3));
  CHECK(least_drop_rate({.seconds = 7, .bytes = 14.9}, cost, step, 6) == doctest::Approx(2.0 / 3));
  CHECK(least_drop_rate({.seconds = 4, .bytes = 15}, cost, step, 6) == doctest::Approx(0.8));
}

TEST_CASE("no step of a fixed gate at the lowest rate needs more bytes than there are") {
  Stream stream(1);
  for (const double bytes : {7.5, 11.0, 12.0, 15.0, 20.0, 26.9, 27.0})
    for (const double seconds : {3.0, 7.3, 12.0}) {
      const double rate = least_drop_rate({.seconds = seconds, .bytes = bytes}, cost, step, 6);
      CHECK(cost.seconds(rate) <= seconds + 1e-9);
      for (const RateShape shape : rate_shapes)
        for (int i = 0; i < 100; ++i)
          CHECK(step.bytes(FixedGate()(drop_rates(shape, 6, rate), stream).active_count()) <=
                bytes);
    }
}

TEST_CASE("a round waits for what its devices can hold") {
  RoundCost bound = cost;
  bound.least_rate = 0.5;
  CHECK(bound.drop_rate(100) == 0.5);
  CHECK(bound.drop_rate(4) == doctest::Approx(0.8));
  CHECK(round_seconds(std::vector{bound}, 0) == 7);
  CHECK(round_seconds(std::vector{bound}, 0.8) == doctest::Approx(4));
  bound.least_rate = 0.96;
  CHECK_THROWS_WITH_AS(bound.drop_rate(1),
                       doctest::Contains("least_rate must be in [0, 0.95], got 0.96"),
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(round_seconds(std::vector{bound}, 0),
                       doctest::Contains("least_rate must be in [0, 0.95], got 0.96"),
                       std::invalid_argument);
}

TEST_CASE("budgets that cannot be kept, and numbers that are none, are refused") {
  CHECK_THROWS_WITH_AS(least_drop_rate({.seconds = 2.4}, cost, step, 6),
                       doctest::Contains("no drop rate up to 0.95 keeps to 2.4 seconds"),
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(
      least_drop_rate({.bytes = 6.9}, cost, step, 6),
      doctest::Contains("no drop rate up to 0.95 keeps to 6.9 bytes; 1 of 6 layers take 7"),
      std::invalid_argument);
  const double nan = std::nan("");
  CHECK_THROWS_AS(least_drop_rate({.seconds = nan}, cost, step, 6), std::invalid_argument);
  CHECK_THROWS_AS(least_drop_rate({.bytes = nan}, cost, step, 6), std::invalid_argument);
  CHECK_THROWS_AS(least_drop_rate({}, {.layer_seconds = nan}, step, 6), std::invalid_argument);
  CHECK_THROWS_AS(least_drop_rate({.bytes = 9}, cost, {.layer_bytes = 0}, 6),
                  std::invalid_argument);
  CHECK_THROWS_AS(least_drop_rate({.bytes = 9}, cost, {.layer_bytes = 1, .other_bytes = -1}, 6),
                  std::invalid_argument);
  CHECK_THROWS_AS(least_drop_rate({}, cost, step, 0), std::invalid_argument);
  CHECK_THROWS_AS(least_drop_rate({}, cost, step, 6, 1), std::invalid_argument);
}
