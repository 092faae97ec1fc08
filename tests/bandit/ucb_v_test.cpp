#include "droppeft/bandit/ucb_v.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "laws.hpp"

using namespace droppeft;

TEST_CASE("UCB-V plays the arm with the highest mean + sqrt(2 V e / n) + 3 e / n, e = zeta ln t") {
  laws::plays_the_highest(UcbVSelector(4, {.policy = {.exploration = 0.3}}),
                          [](const std::vector<double>& rewards, double t, double) {
                            const auto n = static_cast<double>(rewards.size());
                            const double e = 0.3 * std::log(t);
                            return laws::mean(rewards) +
                                   std::sqrt(2 * laws::variance(rewards) * e / n) + 3 * e / n;
                          });
}

TEST_CASE("UCB-V obeys the laws of names and ranges") {
  laws::follows_renaming<UcbVSelector>();
  laws::follows_the_range<UcbVSelector>();
}

TEST_CASE("UCB-V stays below the bound of its authors, and profits from rewards that vary little") {
  // 10 sum (V / Delta + 2) ln t with zeta slightly above 1: theorem 4 of the paper.
  const int horizon = 10000;
  const double bound = 10 * (0.25 / 0.4 + 2) * std::log(horizon);
  CHECK(laws::regret<UcbVSelector>({0.9, 0.5}, horizon, 5, {.policy = {.exploration = 1.2}}) <
        bound);
  const auto plays_of_worse = [](auto selector) {
    Stream world(5);
    int plays = 0;
    for (int t = 0; t < 5000; ++t) {
      const Ticket ticket = selector.select();
      plays += ticket.arm == 1;
      selector.update(ticket, (ticket.arm == 0 ? 0.6 : 0.4) + 0.02 * (world.uniform() - 0.5));
    }
    return plays;
  };
  // Without the variance, UCB1 plays the worse arm 2 ln t / .2^2 times: 426. With it: 3 e / .2 +
  // ...
  CHECK(plays_of_worse(UcbVSelector(2)) < 250);
}

TEST_CASE("wrong settings of UCB-V are refused") {
  for (const double bad :
       {-1.0, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()})
    CHECK_THROWS_WITH_AS(UcbVSelector(2, {.policy = {.exploration = bad}}),
                         doctest::Contains("UcbV: exploration must be finite and >= 0, got"),
                         std::invalid_argument);
}

TEST_CASE("golden choices of UCB-V: the same on every machine and standard library") {
  CHECK(laws::golden<UcbVSelector>() == "10220102110220120120102101220120");
}
