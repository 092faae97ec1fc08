#include "droppeft/bandit/replay.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <stdexcept>
#include <vector>

#include "droppeft/bandit/softmax.hpp"
#include "droppeft/bandit/ucb.hpp"
#include "laws.hpp"

using namespace droppeft;

namespace {

constexpr std::array means{0.8, 0.5, 0.2};

// A log of a softmax selector with Bernoulli rewards.
std::vector<LoggedPlay> logged(int plays, std::uint64_t seed, double temperature = 0.5) {
  SoftmaxSelector selector(3, {.stream = Stream(seed), .policy = {.temperature = temperature}});
  Stream world = Stream(seed).fold(1);
  std::vector<LoggedPlay> log;
  for (int i = 0; i < plays; ++i) {
    const Ticket ticket = selector.select();
    const double reward = world.uniform() < means[ticket.arm] ? 1 : 0;
    selector.update(ticket, reward);
    // The first three plays are one of each: their probabilities are not independent.
    if (i >= 3) log.push_back({ticket.arm, reward, ticket.probability});
  }
  return log;
}

// Plays the arms with .1, .2 and .7.
double target(std::size_t, std::size_t arm) { return std::array{0.1, 0.2, 0.7}[arm]; }
constexpr double truth = 0.1 * 0.8 + 0.2 * 0.5 + 0.7 * 0.2;

double sigmas(const LoggedValue& value) { return (value.mean - truth) / value.standard_error; }

}  // namespace

TEST_CASE("the value of another policy is found from a log, without playing it") {
  const auto log = logged(20000, 1);
  CHECK(std::abs(sigmas(inverse_propensity(log, target))) <= 5);
  CHECK(std::abs(sigmas(self_normalized(log, target))) <= 5);
  const auto good = [](std::size_t, std::size_t arm) { return means[arm]; };
  const auto bad = [](std::size_t, std::size_t arm) { return static_cast<double>(arm); };
  CHECK(std::abs(sigmas(doubly_robust(log, 3, target, good))) <= 5);
  CHECK(std::abs(sigmas(doubly_robust(log, 3, target, bad))) <= 5);
  CHECK(doubly_robust(log, 3, target, good).standard_error <
        inverse_propensity(log, target).standard_error);
}

TEST_CASE("a standard error is what the estimates vary by") {
  double sum = 0, squares = 0, claimed = 0;
  const int runs = 200;
  for (int run = 0; run < runs; ++run) {
    const LoggedValue value =
        inverse_propensity(logged(500, static_cast<std::uint64_t>(run)), target);
    sum += value.mean;
    squares += value.mean * value.mean;
    claimed += value.standard_error / runs;
  }
  const double sd = std::sqrt(squares / runs - sum / runs * sum / runs);
  // A standard deviation of 200 numbers has a relative error of 1 / sqrt(400).
  CHECK(std::abs(claimed / sd - 1) <= 5.0 / 20);
}

TEST_CASE("a policy that is the log's own has the log's mean and all its plays") {
  std::vector<LoggedPlay> log;
  for (int i = 0; i < 10; ++i) log.push_back({static_cast<std::size_t>(i % 2), 0.1 * i, 0.5});
  const auto even = [](std::size_t, std::size_t) { return 0.5; };
  for (const LoggedValue& value : {inverse_propensity(log, even), self_normalized(log, even),
                                   doubly_robust(log, 2, even, [](auto, auto) { return 3.0; })}) {
    CHECK(value.mean == doctest::Approx(0.45).epsilon(1e-12));
    CHECK(value.effective_plays == doctest::Approx(10).epsilon(1e-12));
    CHECK(value.standard_error == doctest::Approx(std::sqrt(0.825 / 9 / 10)).epsilon(1e-9));
  }
}

TEST_CASE("a selector replayed on an even log does as it does live") {
  // Every reward is a function of the arm and its play, so that both are compared exactly.
  std::vector<LoggedPlay> log;
  Stream random(3);
  std::array<std::size_t, 4> plays{};
  UcbSelector live(4, {.stream = Stream(5)});
  UcbSelector replayed(4, {.stream = Stream(5)});
  // The log asks each time for what the live one plays, among others that it does not.
  double reward = 0;
  for (int i = 0; i < 100; ++i) {
    const Ticket ticket = live.select();
    const double gain = laws::reward_of(ticket.arm, plays[ticket.arm]++);
    log.push_back({ticket.arm, gain, 0.25});
    live.update(ticket, gain);
    reward += gain;
  }
  const Replayed result = replay(replayed, log, random);
  CHECK(result.plays == 100);
  CHECK(result.reward == doctest::Approx(reward));
  CHECK(replayed.save() == live.save());
}

TEST_CASE("an uneven log is thinned until it is even") {
  // A selector that plays evenly: its mean reward is the mean of the arms.
  const auto log = logged(60000, 7);
  SoftmaxSelector even(3, {.stream = Stream(8), .policy = {.temperature = 1e6}});
  const Replayed result = replay(even, log, Stream(9));
  CHECK(result.plays > 1000);
  const double sd = 0.5 / std::sqrt(static_cast<double>(result.plays));
  CHECK(std::abs(result.mean() - 0.5) / sd <= 5);
  // Without thinning the log's own preference would show.
  double plain = 0;
  for (const LoggedPlay& play : log) plain += play.reward / static_cast<double>(log.size());
  CHECK(plain > 0.55);
}

TEST_CASE("a reward that the selector refuses leaves no play open") {
  UcbSelector selector(1);
  const std::vector<LoggedPlay> log{{0, 0.5, 1}, {0, 7, 1}};
  CHECK_THROWS_AS(replay(selector, log, Stream(1)), std::invalid_argument);
  CHECK(selector.record(0).pending == 0);
  CHECK(selector.record(0).plays == 1);
}

TEST_CASE("wrong logs and policies are refused") {
  const auto even = [](std::size_t, std::size_t) { return 0.5; };
  UcbSelector selector(2);
  CHECK_THROWS_WITH_AS(inverse_propensity({}, even),
                       "inverse_propensity: the log must hold at least one play",
                       std::invalid_argument);
  for (const double bad : {0.0, -0.5, 1.5, std::nan("")}) {
    const std::vector<LoggedPlay> log{{0, 1, bad}};
    CHECK_THROWS_WITH_AS(self_normalized(log, even),
                         doctest::Contains("the probability of play 0 must be in (0, 1], got"),
                         std::invalid_argument);
    CHECK_THROWS_AS(replay(selector, log, Stream(1)), std::invalid_argument);
  }
  const std::vector<LoggedPlay> good{{1, 1, 0.5}}, infinite{{1, INFINITY, 0.5}};
  CHECK_THROWS_AS(inverse_propensity(infinite, even), std::invalid_argument);
  CHECK_THROWS_WITH_AS(inverse_propensity(good, [](auto, auto) { return 2.0; }),
                       doctest::Contains("must be in [0, 1], got 2"), std::invalid_argument);
  CHECK_THROWS_WITH_AS(self_normalized(good, [](auto, auto) { return 0.0; }),
                       "self_normalized: the policy plays no arm that the log plays",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(doubly_robust(good, 1, even, even),
                       "doubly_robust: the arm of play 0 must be below 1, got 1",
                       std::invalid_argument);
  UcbSelector one(1);
  CHECK_THROWS_WITH_AS(replay(one, good, Stream(1)),
                       "replay: an arm of the log must be below 1, got 1", std::invalid_argument);
}
