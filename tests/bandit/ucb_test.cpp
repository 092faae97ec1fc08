#include "droppeft/bandit/ucb.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <limits>
#include <numbers>
#include <stdexcept>
#include <vector>

#include "droppeft/random/stream.hpp"
#include "laws.hpp"

using namespace droppeft;

TEST_CASE("UCB1 plays the arm with the highest mean + sqrt(c ln t / n)") {
  laws::plays_the_highest(
      UcbSelector(4, {.policy = {.exploration = 0.7}}),
      [](const std::vector<double>& rewards, double t, double) {
        return laws::mean(rewards) +
               std::sqrt(0.7 * std::log(t) / static_cast<double>(rewards.size()));
      });
}

TEST_CASE("an open ticket counts as a play with the present mean") {
  UcbSelector selector(2, {.policy = {.exploration = 0.1}});
  for (int i = 0; i < 2; ++i) {
    const Ticket ticket = selector.select();
    selector.update(ticket, ticket.arm == 0 ? 0.6 : 0.5);
  }
  CHECK(selector.select().arm == 0);
  // Visits (2, 1): .6 + sqrt(.1 ln 3 / 2) = .834 against .5 + sqrt(.1 ln 3) = .831.
  CHECK(selector.select().arm == 0);
  // Visits (3, 1): .6 + sqrt(.1 ln 4 / 3) = .815 against .5 + sqrt(.1 ln 4) = .872.
  CHECK(selector.select().arm == 1);
  CHECK(selector.record(0).pending == 2);
  CHECK(selector.record(0).mean() == 0.6);
}

TEST_CASE("UCB1 obeys the laws of names and ranges") {
  laws::follows_renaming<UcbSelector>();
  laws::follows_the_range<UcbSelector>();
}

TEST_CASE("without exploration UCB1 is greedy") {
  UcbSelector selector(3, {.policy = {.exploration = 0}});
  for (int i = 0; i < 30; ++i) {
    const Ticket ticket = selector.select();
    if (i >= 3) CHECK(ticket.arm == 1);
    selector.update(ticket, ticket.arm == 1 ? 0.9 : 0.8);
  }
}

TEST_CASE("the regret of UCB1 stays below the bound of its authors, and is far below chance") {
  const std::array means{0.9, 0.6, 0.5};
  const int horizon = 20000;
  double bound = 0;
  for (const double mean : {0.6, 0.5})
    bound += 8 * std::log(horizon) / (0.9 - mean) +
             (1 + std::numbers::pi * std::numbers::pi / 3) * (0.9 - mean);
  double sum = 0;
  double squares = 0;
  const int runs = 10;
  for (std::uint64_t seed = 0; seed < runs; ++seed) {
    UcbSelector selector(3, {.stream = Stream(seed)});
    Stream world = Stream(seed).fold(1);
    double regret = 0;
    for (int t = 0; t < horizon; ++t) {
      const Ticket ticket = selector.select();
      regret += 0.9 - means[ticket.arm];
      selector.update(ticket, world.uniform() < means[ticket.arm] ? 1 : 0);
    }
    sum += regret;
    squares += regret * regret;
  }
  const double mean = sum / runs;
  const double error = std::sqrt((squares / runs - mean * mean) / (runs - 1));
  CAPTURE(bound);
  CHECK((mean - bound) / error <= 5);
  CHECK(mean < 0.1 * horizon * (0.3 + 0.4) / 3);
}

TEST_CASE("wrong settings of UCB1 are refused") {
  for (const double bad :
       {-1.0, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()})
    CHECK_THROWS_WITH_AS(UcbSelector(2, {.policy = {.exploration = bad}}),
                         doctest::Contains("Ucb1: exploration must be finite and >= 0, got"),
                         std::invalid_argument);
}

TEST_CASE("golden choices of UCB1: the same on every machine and standard library") {
  CHECK(laws::golden<UcbSelector>() == "10220012101202121020012101220121");
}
