#include "droppeft/bandit/moss.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "laws.hpp"

using namespace droppeft;

TEST_CASE("MOSS plays the arm with the highest mean + sqrt(max(0, ln(T / (K n))) / n)") {
  for (const double horizon : {0.0, 300.0, 5000.0})
    laws::plays_the_highest(MossSelector(4, {.policy = {.horizon = horizon}}),
                            [&](const std::vector<double>& rewards, double t, double arms) {
                              const auto n = static_cast<double>(rewards.size());
                              const double share = (horizon > 0 ? horizon : t) / (arms * n);
                              return laws::mean(rewards) +
                                     std::sqrt(std::max(0.0, std::log(share)) / n);
                            });
}

TEST_CASE("MOSS obeys the laws of names and ranges") {
  laws::follows_renaming<MossSelector>();
  laws::follows_the_range<MossSelector>();
}

TEST_CASE("MOSS stays below 25 sqrt(K T) where arms are as close as is worst") {
  const int horizon = 10000;
  std::vector<double> means(10, 0.5);
  means[0] += std::sqrt(10.0 / horizon);
  const double regret =
      laws::regret<MossSelector>(means, horizon, 5, {.policy = {.horizon = horizon}});
  CHECK(regret < 25 * std::sqrt(10.0 * horizon));
  CHECK(regret < 0.9 * horizon * (means[0] - 0.5));
}

TEST_CASE("wrong settings of MOSS are refused") {
  for (const double bad :
       {-1.0, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()})
    CHECK_THROWS_WITH_AS(MossSelector(2, {.policy = {.horizon = bad}}),
                         doctest::Contains("Moss: horizon must be finite and >= 0, got"),
                         std::invalid_argument);
}

TEST_CASE("golden choices of MOSS: the same on every machine and standard library") {
  CHECK(laws::golden<MossSelector>() == "10220102101202121020102101220121");
}
