#include "droppeft/bandit/thompson.hpp"

#include <doctest/doctest.h>

#include <array>
#include <boost/math/distributions/gamma.hpp>
#include <boost/math/distributions/normal.hpp>
#include <boost/math/distributions/students_t.hpp>
#include <cmath>
#include <cstddef>
#include <limits>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <vector>

#include "droppeft/random/stream.hpp"
#include "laws.hpp"

using namespace droppeft;

namespace {

ArmRecord record_of(const std::vector<double>& rewards) {
  ArmRecord record;
  for (const double reward : rewards) record.add(reward);
  return record;
}

// The share of the next choices that are arm 0, of a selector that holds the given records.
template <class S>
double share_of_first(S selector, const std::vector<ArmRecord>& records, int draws) {
  auto state = selector.save();
  for (std::size_t arm = 0; arm < records.size(); ++arm)
    state["rewards"]["records"][arm] = records[arm].save();
  selector.load(state);
  int first = 0;
  for (int i = 0; i < draws; ++i) {
    const Ticket ticket = selector.select();
    first += ticket.arm == 0;
    selector.expire(ticket);
  }
  return static_cast<double>(first) / draws;
}

double sigmas(double share, double probability, int draws) {
  return (share - probability) / std::sqrt(probability * (1 - probability) / draws);
}

}  // namespace

TEST_CASE("Beta sampling chooses with the probability that one posterior beats the other") {
  // P(Beta(1 + 2, 1 + 0) > Beta(1 + 0, 1 + 1)): the integral of 3 x^2 (1 - (1 - x)^2) = 3/2 - 3/5.
  const int draws = 40000;
  const double share =
      share_of_first(BetaThompsonSelector(2), {record_of({1, 1}), record_of({0})}, draws);
  CHECK(std::abs(sigmas(share, 0.9, draws)) <= 5);
}

TEST_CASE("Gaussian sampling chooses with the probability that one posterior beats the other") {
  // Prior N(.2, .3^2), noise .4: precisions 1/.09 + n/.16.
  const int draws = 40000;
  const GaussianThompson policy{.prior_mean = 0.2, .prior_sd = 0.3, .noise_sd = 0.4};
  const double v0 = 1 / (1 / 0.09 + 3 / 0.16);
  const double v1 = 1 / (1 / 0.09 + 1 / 0.16);
  const double m0 = v0 * (0.2 / 0.09 + 1.5 / 0.16);
  const double m1 = v1 * (0.2 / 0.09 + 0.7 / 0.16);
  const double expected = boost::math::cdf(boost::math::normal(), (m0 - m1) / std::sqrt(v0 + v1));
  const double share = share_of_first(GaussianThompsonSelector(2, {.policy = policy}),
                                      {record_of({0.4, 0.5, 0.6}), record_of({0.7})}, draws);
  CHECK(std::abs(sigmas(share, expected, draws)) <= 5);
}

TEST_CASE("normal-inverse-gamma sampling draws from Student's t around the posterior mean") {
  // With one arm certain, the share of the other is a value of its posterior's distribution
  // function: Student's t with 2 a' degrees of freedom, scale sqrt(b' / (a' k')).
  const int draws = 40000;
  const NormalInverseGammaThompson policy{
      .prior_mean = 0.2, .prior_plays = 2, .shape = 1.5, .scale = 0.3};
  const double mean = (2 * 0.2 + 1.8) / 5;
  const double b = 0.3 + (0.04 + 0.01 + 0.09) / 2 + 2 * 3 * 0.16 / (2 * 5);
  const double width = std::sqrt(b / (3 * 5));
  const double certain = 0.6;
  const double expected = boost::math::cdf(
      boost::math::complement(boost::math::students_t(6), (certain - mean) / width));
  ArmRecord sure;  // so many plays of .6 that the prior is nothing
  sure.plays = 1e15;
  sure.sum = 0.6e15;
  const double share = share_of_first(NormalInverseGammaThompsonSelector(2, {.policy = policy}),
                                      {record_of({0.4, 0.5, 0.9}), sure}, draws);
  CHECK(std::abs(sigmas(share, expected, draws)) <= 5);
}

TEST_CASE("gamma numbers have the mean, the variance and the share below the mean of their law") {
  Stream stream(11);
  const int count = 40000;
  for (const double shape : {0.3, 0.9, 1.0, 2.5, 40.0}) {
    CAPTURE(shape);
    double sum = 0;
    double squares = 0;
    double below = 0;
    for (int i = 0; i < count; ++i) {
      const double off = detail::gamma(shape, stream) - shape;
      sum += off;
      squares += off * off - shape;
      below += off < 0;
    }
    // Variance a; fourth central moment 3 a^2 + 6 a; P(x < a) from the distribution function.
    CHECK(std::abs(sum / std::sqrt(count * shape)) <= 5);
    CHECK(std::abs(squares / std::sqrt(count * (2 * shape * shape + 6 * shape))) <= 5);
    const double probability = boost::math::cdf(boost::math::gamma_distribution<>(shape), shape);
    CHECK(std::abs(sigmas(below / count, probability, count)) <= 5);
  }
}

TEST_CASE("a real reward r counts as a success with probability r") {
  BetaThompsonSelector selector(1, {.stream = Stream(3)});
  const int plays = 20000;
  for (int i = 0; i < plays; ++i) selector.update(selector.select(), 0.3);
  CHECK(std::abs(sigmas(selector.record(0).mean(), 0.3, plays)) <= 5);
}

TEST_CASE("certain rewards are certain successes and failures") {
  BetaThompsonSelector selector(1);
  for (int i = 0; i < 100; ++i) selector.update(selector.select(), 1);
  CHECK(selector.record(0).sum == 100);
  for (int i = 0; i < 100; ++i) selector.update(selector.select(), 0);
  CHECK(selector.record(0).sum == 100);
}

TEST_CASE("a state with fewer than no successes is refused") {
  BetaThompsonSelector selector(1);
  auto state = selector.save();
  state["rewards"]["records"][0] = {1e6, -1e6, 0};
  CHECK_THROWS_AS(selector.load(state), std::runtime_error);
}

TEST_CASE("Beta sampling refuses rewards outside [0, 1]") {
  BetaThompsonSelector selector(1);
  const Ticket ticket = selector.select();
  for (const double bad : {-0.01, 1.01})
    CHECK_THROWS_WITH_AS(selector.update(ticket, bad),
                         doctest::Contains("(beta_thompson): reward must be in [0, 1], got"),
                         std::invalid_argument);
}

TEST_CASE("with rewards and settings in another unit Gaussian sampling chooses the same") {
  // A factor of a power of two and no shift: every product is exact, so is the law.
  GaussianThompsonSelector plain(4, {.stream = Stream(8)});
  GaussianThompsonSelector scaled(
      4, {.stream = Stream(8), .policy = {.prior_mean = 4, .prior_sd = 4, .noise_sd = 4}});
  Stream world(9);
  for (int i = 0; i < 500; ++i) {
    const Ticket a = plain.select();
    const Ticket b = scaled.select();
    CHECK(a == b);
    const double reward = world.uniform() + 0.1 * static_cast<double>(a.arm);
    plain.update(a, reward);
    scaled.update(b, 8 * reward);
  }
}

TEST_CASE("a batch chosen before any answer is not all one arm") {
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    GaussianThompsonSelector selector(2, {.stream = Stream(seed)});
    std::array<int, 2> plays{};
    for (int i = 0; i < 50; ++i) ++plays[selector.select().arm];
    // Both arms have the same posterior: 25 each, sd sqrt(12).
    CHECK(std::abs(plays[0] - 25) / std::sqrt(12.0) <= 5);
  }
}

TEST_CASE("the regret of Beta sampling stays below the bound of its analysts") {
  // Agrawal and Goyal 2012, theorem 1, two arms: 40 ln T / D + 48 / D^3 + 18 D.
  const int horizon = 20000;
  const double gap = 0.5;
  const double bound = 40 * std::log(horizon) / gap + 48 / (gap * gap * gap) + 18 * gap;
  const double regret = laws::regret<BetaThompsonSelector>({0.8, 0.3}, horizon, 5);
  CHECK(regret <= bound);
  CHECK(bound < horizon * gap / 2);
}

TEST_CASE("sampling policies play a bad arm at most five times as often as they must") {
  // Lai and Robbins: a regret of at least .2 ln T / kl(.5, .7), here 20; chance would have 500.
  const int horizon = 5000;
  const double kl = 0.5 * std::log(0.5 / 0.7) + 0.5 * std::log(0.5 / 0.3);
  const double least = 0.2 * std::log(horizon) / kl;
  CHECK(laws::regret<BetaThompsonSelector>({0.7, 0.5}, horizon, 10) <= 5 * least);
  CHECK(laws::regret<GaussianThompsonSelector>({0.7, 0.5}, horizon, 10) <= 5 * least);
  CHECK(laws::regret<NormalInverseGammaThompsonSelector>({0.7, 0.5}, horizon, 10) <= 5 * least);
}

TEST_CASE("wrong settings of the sampling policies are refused") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const double bad : {0.0, -1.0, nan, std::numeric_limits<double>::infinity()}) {
    CHECK_THROWS_WITH_AS(BetaThompsonSelector(2, {.policy = {.prior_failures = bad}}),
                         doctest::Contains("BetaThompson: prior_failures"), std::invalid_argument);
    CHECK_THROWS_WITH_AS(BetaThompsonSelector(2, {.policy = {.prior_successes = bad}}),
                         doctest::Contains("BetaThompson: prior_successes"), std::invalid_argument);
    CHECK_THROWS_WITH_AS(GaussianThompsonSelector(2, {.policy = {.prior_sd = bad}}),
                         doctest::Contains("GaussianThompson: prior_sd"), std::invalid_argument);
    CHECK_THROWS_WITH_AS(GaussianThompsonSelector(2, {.policy = {.noise_sd = bad}}),
                         doctest::Contains("GaussianThompson: noise_sd"), std::invalid_argument);
    using Nig = NormalInverseGammaThompson;
    for (const Nig& policy : {Nig{.prior_plays = bad}, Nig{.shape = bad}, Nig{.scale = bad}})
      CHECK_THROWS_WITH_AS(NormalInverseGammaThompsonSelector(2, {.policy = policy}),
                           doctest::Contains("must be finite and > 0"), std::invalid_argument);
  }
  CHECK_THROWS_WITH_AS(GaussianThompsonSelector(2, {.policy = {.prior_mean = nan}}),
                       doctest::Contains("GaussianThompson: prior_mean"), std::invalid_argument);
}

TEST_CASE("golden choices of Thompson sampling: the same on every machine and standard library") {
  CHECK(laws::golden<BetaThompsonSelector>() == "10200002002020222002002020222210");
  CHECK(laws::golden<GaussianThompsonSelector>() == "10220022201000012202222201110110");
  CHECK(laws::golden<NormalInverseGammaThompsonSelector>() == "10202102220020100001220101200201");
}
