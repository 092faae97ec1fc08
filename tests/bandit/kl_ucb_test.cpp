#include "droppeft/bandit/kl_ucb.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <set>
#include <stdexcept>
#include <vector>

#include "laws.hpp"

using namespace droppeft;

namespace {

double kl(double p, double q) {
  return (p > 0 ? p * std::log(p / q) : 0) + (p < 1 ? (1 - p) * std::log((1 - p) / (1 - q)) : 0);
}

// 1 - q for the largest q with kl(p, q) <= d, by bisection over its logarithm.
double rest(double p, double d) {
  if (p == 1) return 0;
  double low = -800, high = std::log1p(-p);
  for (int i = 0; i < 200; ++i) {
    const double middle = (low + high) / 2, r = std::exp(middle);
    const double kl =
        (p > 0 ? p * (std::log(p) - std::log1p(-r)) : 0) + (1 - p) * (std::log1p(-p) - middle);
    (kl <= d ? high : low) = middle;
  }
  return std::exp(high);
}

}  // namespace

TEST_CASE("the bound of KL-UCB is the largest q with kl(p, q) <= d") {
  for (const double p : {0.0, 1e-12, 1e-3, 0.1, 0.5, 0.8, 0.999, 1 - 1e-9, 1.0})
    for (const double d : {1e-8, 1e-4, 0.01, 0.3, 1.0, 5.0, 20.0}) {
      CAPTURE(p);
      CAPTURE(d);
      CHECK(detail::bernoulli_kl_rest(p, d) == doctest::Approx(rest(p, d)).epsilon(1e-7));
    }
  CHECK(detail::bernoulli_kl_rest(0.4, 0) == 0.6);
  CHECK(detail::bernoulli_kl_rest(0, 0) == 1);
}

TEST_CASE("bounds that are next to 1 keep their order, and arms that are alike their ties") {
  // One reward each: .99 has the highest bound, all of them within 1e-16 of 1.
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    KlUcbSelector selector(12, {.stream = Stream(seed)});
    for (int i = 0; i < 12; ++i) {
      const Ticket ticket = selector.select();
      selector.update(ticket, ticket.arm == 3 ? 0.99 : ticket.arm == 7 ? 0.97 : 0.95);
    }
    CHECK(selector.select().arm == 3);
  }
  for (const double reward : {0.8, 0.9, 0.92, 0.93}) {
    std::set<std::size_t> arms;
    for (std::uint64_t seed = 0; seed < 60; ++seed) {
      KlUcbSelector selector(10, {.stream = Stream(seed)});
      for (int i = 0; i < 10; ++i) selector.update(selector.select(), reward);
      arms.insert(selector.select().arm);
    }
    CHECK(arms.size() == 10);
  }
}

TEST_CASE("KL-UCB plays the arm with the highest sup {q : n kl(mean, q) <= ln t + c ln ln t}") {
  for (const double c : {0.0, 3.0})
    laws::plays_the_highest(KlUcbSelector(4, {.policy = {.exploration = c}}),
                            [&](const std::vector<double>& rewards, double t, double) {
                              const double e = std::log(t) + c * std::log(std::log(t));
                              return -rest(laws::mean(rewards),
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
