#include "droppeft/bandit/kl_ucb.hpp"

#include <doctest/doctest.h>

#include <boost/math/tools/roots.hpp>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "laws.hpp"

using namespace droppeft;

namespace {

double kl(double p, double q) {
  return (p > 0 ? p * std::log(p / q) : 0) + (p < 1 ? (1 - p) * std::log((1 - p) / (1 - q)) : 0);
}

// The largest q with kl(p, q) <= d, by bisection over the smaller of q - p and 1 - q.
double bound(double p, double d) {
  if (p == 1) return 1;
  double low = p, high = 1;
  for (int i = 0; i < 200; ++i) {
    const double middle = (low + high) / 2;
    (kl(p, middle) <= d ? low : high) = middle;
  }
  return low;
}

}  // namespace

TEST_CASE("the bound of KL-UCB is the largest q with kl(p, q) <= d") {
  for (const double p : {0.0, 1e-12, 1e-3, 0.1, 0.5, 0.8, 0.999, 1 - 1e-9, 1.0})
    for (const double d : {1e-8, 1e-4, 0.01, 0.3, 1.0, 5.0, 20.0}) {
      CAPTURE(p);
      CAPTURE(d);
      CHECK(detail::bernoulli_kl_bound(p, d) == doctest::Approx(bound(p, d)).epsilon(1e-9));
    }
  CHECK(detail::bernoulli_kl_bound(0.4, 0) == 0.4);
  CHECK(detail::bernoulli_kl_bound(0, 0) == 0);
}

TEST_CASE("KL-UCB plays the arm with the highest sup {q : n kl(mean, q) <= ln t + c ln ln t}") {
  for (const double c : {0.0, 3.0})
    laws::plays_the_highest(KlUcbSelector(4, {.policy = {.exploration = c}}),
                            [&](const std::vector<double>& rewards, double t, double) {
                              const double e = std::log(t) + c * std::log(std::log(t));
                              return bound(laws::mean(rewards),
                                           e / static_cast<double>(rewards.size()));
                            });
}

TEST_CASE(
    "Gaussian KL-UCB plays the arm with the highest mean + s sqrt(2 (ln t + c ln ln t) / n)") {
  laws::plays_the_highest(GaussianKlUcbSelector(4, {.policy = {.noise_sd = 0.3, .exploration = 3}}),
                          [](const std::vector<double>& rewards, double t, double) {
                            const double e = std::log(t) + 3 * std::log(std::log(t));
                            return laws::mean(rewards) +
                                   0.3 * std::sqrt(2 * e / static_cast<double>(rewards.size()));
                          });
}

TEST_CASE("KL-UCB obeys the laws of names and ranges") {
  laws::follows_renaming<KlUcbSelector>();
  laws::follows_the_range<KlUcbSelector>();
  laws::follows_renaming<GaussianKlUcbSelector>();
  laws::follows_the_range<GaussianKlUcbSelector>();
}

TEST_CASE("KL-UCB loses at most twice what Lai and Robbins say must be lost") {
  const double least = 0.2 * std::log(10000) / kl(0.6, 0.8);
  CHECK(laws::regret<KlUcbSelector>({0.8, 0.6}, 10000, 10) < 2 * least);
}

TEST_CASE("wrong settings of KL-UCB are refused") {
  for (const double bad :
       {-1.0, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    CHECK_THROWS_WITH_AS(KlUcbSelector(2, {.policy = {.exploration = bad}}),
                         doctest::Contains("KlUcb: exploration must be finite and >= 0, got"),
                         std::invalid_argument);
    CHECK_THROWS_WITH_AS(GaussianKlUcbSelector(2, {.policy = {.exploration = bad}}),
                         doctest::Contains("GaussianKlUcb: exploration"), std::invalid_argument);
    CHECK_THROWS_WITH_AS(GaussianKlUcbSelector(2, {.policy = {.noise_sd = bad}}),
                         doctest::Contains("GaussianKlUcb: noise_sd"), std::invalid_argument);
  }
}

TEST_CASE("golden choices of KL-UCB: the same on every machine and standard library") {
  CHECK(laws::golden<KlUcbSelector>() == "10220002012211212100021022011212");
  CHECK(laws::golden<GaussianKlUcbSelector>() == "10220020102211121200021022011212");
}
