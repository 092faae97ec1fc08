#include "droppeft/federated/pace.hpp"

#include <limits>
#include <stdexcept>
#include <vector>

#include "droppeft/random/stream.hpp"
#include "support.hpp"

namespace {

using droppeft::round_seconds;
using droppeft::RoundCost;

std::vector<RoundCost> some_costs(droppeft::Stream& stream) {
  std::vector<RoundCost> costs;
  for (int device = 0; device < 6; ++device)
    costs.push_back(
        {.layer_seconds = 1 + 20 * stream.uniform(), .other_seconds = 3 * stream.uniform()});
  return costs;
}

}  // namespace

TEST_CASE("three devices, by hand: only the slowest drops, until the next one sets the pace") {
  const std::vector<RoundCost> costs{{90, 0}, {30, 0}, {10, 0}};
  CHECK(round_seconds(costs, 0) == 90);
  CHECK(round_seconds(costs, 0.5) == 45);
  CHECK(costs[0].drop_rate(45) == doctest::Approx(0.5));
  CHECK(costs[1].drop_rate(45) == 0);
  CHECK(round_seconds(costs, 0.8) == doctest::Approx(18));
  CHECK(costs[1].drop_rate(18) == doctest::Approx(0.4));
  CHECK(costs[2].drop_rate(18) == 0);
  CHECK(RoundCost{10, 5}.drop_rate(4) == 0.95);
  CHECK(RoundCost{10, 5}.drop_rate(4, 0.5) == 0.5);
}

TEST_CASE("at the pace of a rate nobody drops more than that, all end in time, the slowest just") {
  droppeft::Stream stream(3);
  for (int trial = 0; trial < 200; ++trial) {
    const auto costs = some_costs(stream);
    const double asked = 0.95 * stream.uniform();
    const double deadline = round_seconds(costs, asked);
    double latest = 0, least = 1;
    for (const RoundCost& cost : costs) {
      const double rate = cost.drop_rate(deadline);
      CHECK(rate <= asked + 1e-12);
      CHECK(cost.seconds(rate) <= deadline * (1 + 1e-12));
      CHECK((rate == 0 || cost.seconds(rate) == doctest::Approx(deadline)));
      latest = std::max(latest, cost.seconds(rate));
      least = std::min(least, asked - rate);
    }
    CHECK(latest == doctest::Approx(deadline));
    CHECK(least == doctest::Approx(0).epsilon(1e-9));
  }
}

TEST_CASE("drop_rate is the inverse of seconds, and more time never asks for more dropping") {
  const RoundCost cost{12, 2};
  for (double rate = 0; rate < 0.95; rate += 0.05)
    CHECK(cost.drop_rate(cost.seconds(rate)) == doctest::Approx(rate));
  for (double deadline = 0; deadline < 20; deadline += 0.5)
    CHECK(cost.drop_rate(deadline) >= cost.drop_rate(deadline + 0.5));
  constexpr double infinity = std::numeric_limits<double>::infinity();
  CHECK(cost.drop_rate(infinity) == 0);
  CHECK(cost.drop_rate(-infinity) == 0.95);
}

TEST_CASE("what is out of range is refused") {
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  constexpr double infinity = std::numeric_limits<double>::infinity();
  const RoundCost cost{10, 1};
  for (const double rate : {-0.1, 1.0, nan})
    CHECK_THROWS_AS(cost.seconds(rate), std::invalid_argument);
  for (const double rate : {-0.1, 1.0, nan})
    CHECK_THROWS_AS(cost.drop_rate(1, rate), std::invalid_argument);
  CHECK_THROWS_WITH_AS(cost.drop_rate(nan),
                       "RoundCost::drop_rate: deadline must be a number, got nan",
                       std::invalid_argument);
  for (const RoundCost bad : {RoundCost{0, 1}, RoundCost{-1, 1}, RoundCost{nan, 1},
                              RoundCost{infinity, 1}, RoundCost{1, -1}, RoundCost{1, nan}}) {
    CHECK_THROWS_AS(bad.seconds(0), std::invalid_argument);
    CHECK_THROWS_AS(bad.drop_rate(1), std::invalid_argument);
  }
  CHECK_THROWS_AS(round_seconds({}, 0), std::invalid_argument);
}
