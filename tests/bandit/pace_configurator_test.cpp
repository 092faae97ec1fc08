#include "droppeft/pace_configurator.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <boost/random/normal_distribution.hpp>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

#include "droppeft/random/stream.hpp"

using namespace droppeft;

namespace {

using Throws = std::invalid_argument;

/// Devices of three speeds, 1 : 3 : 9.
const std::vector<RoundCost> unlike{{9, 0.3}, {3, 0.2}, {1, 0.4}, {9, 0.1}, {3, 0.1}};
const std::vector<RoundCost> alike(5, RoundCost{9, 0.3});

template <class Benefit>
double gain_of(double deadline, const std::vector<RoundCost>& costs, const Benefit& benefit) {
  double gain = 0;
  for (const RoundCost& cost : costs) gain += benefit(cost.drop_rate(deadline));
  return gain;
}

/// Plays 100 rounds: a device at drop rate r gains benefit(r), with noise of 0.5, times the level
/// of the round, which falls. What the last half of the rounds gained a second, levels apart, as a
/// share of what the best of the four paces would have.
template <class Benefit>
double efficiency(const std::vector<RoundCost>& costs, const Benefit& benefit, std::uint64_t seed,
                  double unit = 1) {
  PaceConfigurator chooser({.stream = Stream(seed)});
  Stream noise = Stream(seed).fold(1);
  double gained = 0, seconds = 0, best = 0;
  for (const double pace : PaceOptions().rates) {
    const double deadline = round_seconds(costs, pace);
    best = std::max(best, gain_of(deadline, costs, benefit) / deadline);
  }
  for (int round = 0; round < 100; ++round) {
    const double deadline = round_seconds(costs, chooser.choose(costs));
    std::vector<double> rates, gains;
    for (const RoundCost& cost : costs) {
      rates.push_back(cost.drop_rate(deadline));
      gains.push_back(
          unit / (round + 3) *
          (benefit(rates.back()) + boost::random::normal_distribution<double>(0, 0.5)(noise)));
    }
    chooser.report(rates, gains);
    if (round < 50) continue;
    gained += gain_of(deadline, costs, benefit);
    seconds += deadline;
  }
  return gained / seconds / best;
}

template <class Benefit>
double mean_efficiency(const std::vector<RoundCost>& costs, const Benefit& benefit) {
  double mean = 0;
  for (std::uint64_t seed = 0; seed < 20; ++seed) mean += efficiency(costs, benefit, seed) / 20;
  return mean;
}

}  // namespace

TEST_CASE("where dropping costs nothing little is lost against the fastest pace") {
  const auto free = [](double) { return 1.0; };  // no dropout would reach 0.2 and 0.19
  CHECK(mean_efficiency(unlike, free) >= 0.95);
  CHECK(mean_efficiency(alike, free) >= 0.8);
}

TEST_CASE(
    "where dropping undoes what others learn, and all are slow, little is lost against none") {
  // The paces 1/3, 2/3 and 5/6 would reach 0.69, -0.18 and -1.7.
  CHECK(mean_efficiency(alike, [](double rate) { return 1 - 1.6 * rate; }) >= 0.8);
}

TEST_CASE("where a pace in between is the best little is lost against it") {
  // The others would reach 0.36, 0.52 and 0.
  CHECK(mean_efficiency(alike, [](double rate) { return rate < 0.7 ? 1.0 : 0.0; }) >= 0.8);
}

TEST_CASE("slow devices drop from the first round on: the cost is known, only the gain is not") {
  int dropped = 0;
  for (std::uint64_t seed = 0; seed < 100; ++seed)
    dropped += PaceConfigurator({.stream = Stream(seed)}).choose(unlike) > 0.5;
  CHECK(dropped >= 80);
}

TEST_CASE("units of gains and seconds change nothing") {
  const auto benefit = [](double rate) { return 1 - rate * rate; };
  auto minutes = unlike;
  for (RoundCost& cost : minutes) {
    cost.layer_seconds /= 64;
    cost.other_seconds /= 64;
  }
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    const double share = efficiency(unlike, benefit, seed);
    CHECK(share == efficiency(unlike, benefit, seed, 1024));
    CHECK(share == efficiency(minutes, benefit, seed));
  }
}

TEST_CASE("a belief is the prior, then the mean of relative gains with it") {
  PaceConfigurator chooser({.rates = {0, 0.5}, .prior_reports = 2, .discount = 0.5});
  CHECK(chooser.beliefs()[0].gain == 1);
  CHECK(chooser.beliefs()[1].gain == 0.5);
  // Believed 1 + 0.9 + 0.5, gained 12 in all: full depth gains 5.
  chooser.report(std::vector{0.0, 0.1, 0.5}, std::vector{6.0, 4.0, 2.0});
  CHECK(chooser.beliefs()[0].gain == doctest::Approx((2 * 1 + 6.0 / 5 + 4.0 / 5) / 4));
  CHECK(chooser.beliefs()[1].gain == doctest::Approx((2 * 0.5 + 2.0 / 5) / 3));
  CHECK(chooser.beliefs()[1].reports == 1);
  chooser.report(std::vector{0.0}, std::vector{1.0});
  CHECK(chooser.beliefs()[1].reports == 0.5);
}

TEST_CASE("a round without any gain teaches nothing") {
  PaceConfigurator chooser;
  const auto before = chooser.save();
  chooser.report(std::vector{0.0, 0.5}, std::vector{-1.0, 0.5});
  chooser.report(std::vector<double>{}, std::vector<double>{});
  CHECK(chooser.save() == before);
}

TEST_CASE("a chooser that was saved and loaded goes on bit for bit, and a bad state is refused") {
  PaceConfigurator chooser({.stream = Stream(5)}), other;
  for (int round = 0; round < 7; ++round) {
    chooser.choose(unlike);
    chooser.report(std::vector{0.0, 0.3, 0.9}, std::vector{1.0 / 3, 0.2, 0.1});
  }
  const auto saved = nlohmann::json::parse(chooser.save().dump());
  const auto before = other.save();
  for (const auto& [key, value] : saved.items()) {
    auto bad = saved;
    bad[key] = "torn";
    CHECK_THROWS_AS(other.load(bad), std::runtime_error);
    bad.erase(key);
    CHECK_THROWS_AS(other.load(bad), std::runtime_error);
    CHECK(other.save() == before);
  }
  other.load(saved);
  for (int round = 0; round < 20; ++round) {
    CHECK(chooser.choose(unlike) == other.choose(unlike));
    for (PaceConfigurator* each : {&chooser, &other})
      each->report(std::vector{0.0, 0.6}, std::vector{1.0, 0.7});
  }
  CHECK(chooser.save() == other.save());
}

TEST_CASE("options, rates and gains out of range are refused with their value") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_WITH_AS(PaceConfigurator({.rates = {0.1}}),
                       "PaceConfigurator: rates must begin with 0, got 0.1", Throws);
  CHECK_THROWS_WITH_AS(PaceConfigurator({.rates = {0, 1.5}}),
                       "PaceConfigurator: rates must ascend in [0, 0.95], got 1.5 after 0", Throws);
  CHECK_THROWS_WITH_AS(PaceConfigurator({.noise_sd = nan}),
                       "PaceConfigurator: noise_sd must be finite and above 0, got nan", Throws);
  CHECK_THROWS_AS(PaceConfigurator({.prior_reports = 0}), Throws);
  CHECK_THROWS_AS(PaceConfigurator({.discount = 0}), Throws);
  PaceConfigurator chooser;
  const auto before = chooser.save();
  CHECK_THROWS_AS(chooser.choose({}), Throws);
  CHECK_THROWS_WITH_AS(chooser.report(std::vector{1.5}, std::vector{1.0}),
                       "PaceConfigurator::report: a rate must be in [0, 1), got 1.5", Throws);
  CHECK_THROWS_WITH_AS(chooser.report(std::vector{0.5}, std::vector{nan}),
                       "PaceConfigurator::report: a gain must be in [-1e50, 1e50], got nan",
                       Throws);
  CHECK_THROWS_AS(chooser.report(std::vector{0.5}, std::vector<double>{}), Throws);
}
