// Policies that draw from a distribution which they know.
#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <stdexcept>
#include <vector>

#include "droppeft/bandit/epsilon_greedy.hpp"
#include "droppeft/bandit/exp3.hpp"
#include "droppeft/bandit/softmax.hpp"
#include "laws.hpp"

using namespace droppeft;

namespace {

// The weights of a policy for arms with these rewards, as shares.
template <class Policy>
std::vector<double> shares(const Policy& policy, const std::vector<std::vector<double>>& rewards) {
  std::vector<ArmRecord> records(rewards.size());
  ArmTotals totals{rewards.size()};
  for (std::size_t i = 0; i < rewards.size(); ++i) {
    for (const double reward : rewards[i]) records[i].add(reward);
    totals.plays += records[i].plays;
    totals.sum += records[i].sum;
  }
  std::vector<double> weights(rewards.size());
  policy.weigh(totals, records, weights);
  double sum = 0;
  for (const double weight : weights) sum += weight;
  for (double& weight : weights) weight /= sum;
  return weights;
}

void check_close(const std::vector<double>& shares, const std::vector<double>& expected) {
  REQUIRE(shares.size() == expected.size());
  for (std::size_t i = 0; i < shares.size(); ++i)
    CHECK(shares[i] == doctest::Approx(expected[i]).epsilon(1e-12));
}

}  // namespace

TEST_CASE("epsilon-greedy plays any arm with probability e, else one of the best") {
  check_close(shares(EpsilonGreedy{.epsilon = 0.3}, {{0.5}, {0.2, 0.3}, {0.5}}), {0.45, 0.1, 0.45});
  // Four plays: e = 0.8 / 4^.5.
  check_close(shares(EpsilonGreedy{.epsilon = 0.8, .decay = 0.5}, {{0.5}, {0.2, 0.3}, {0.4}}),
              {0.6 + 0.4 / 3, 0.4 / 3, 0.4 / 3});
  check_close(shares(EpsilonGreedy{.epsilon = 9}, {{1}, {0}}), {0.5, 0.5});
  // An arm without a reward takes the mean of all.
  check_close(shares(EpsilonGreedy{.epsilon = 0}, {{0.2}, {}, {0.6}}), {0, 0, 1});
}

TEST_CASE("softmax plays an arm with probability proportional to exp(mean / temperature)") {
  const double a = std::exp(0.5 / 0.2), b = std::exp(0.25 / 0.2), c = std::exp(-1 / 0.2);
  check_close(shares(Softmax{.temperature = 0.2}, {{0.5}, {0.2, 0.3}, {-1}}),
              {a / (a + b + c), b / (a + b + c), c / (a + b + c)});
  check_close(shares(Softmax{.temperature = 1e-3}, {{1e6}, {0}}), {1, 0});
}

TEST_CASE("EXP3 plays an arm with probability (1 - g) exp(g G / K) / sum + g / K") {
  const double g = 0.2;
  const double a = std::exp(g * 3 / 2), b = std::exp(g * 0.5 / 2);
  check_close(shares(Exp3{.exploration = g}, {{1, 2}, {0.5}}),
              {(1 - g) * a / (a + b) + g / 2, (1 - g) * b / (a + b) + g / 2});
}

TEST_CASE("EXP3 counts a reward over the probability of its play") {
  Exp3Selector selector(3, {.stream = Stream(2)});
  std::array<double, 3> sums{};
  for (int i = 0; i < 200; ++i) {
    const Ticket ticket = selector.select();
    if (i < 3) CHECK(ticket.probability == doctest::Approx(1.0 / 3));
    const double reward = laws::reward_of(ticket.arm, static_cast<std::size_t>(i));
    sums[ticket.arm] += reward / ticket.probability;
    selector.update(ticket, reward);
  }
  for (std::size_t arm = 0; arm < 3; ++arm)
    CHECK(selector.record(arm).sum == doctest::Approx(sums[arm]).epsilon(1e-12));
}

TEST_CASE("an arm is drawn with the probability that its ticket tells") {
  SoftmaxSelector selector(3, {.stream = Stream(8), .policy = {.temperature = 0.3}});
  for (int i = 0; i < 3; ++i) {
    const Ticket ticket = selector.select();
    selector.update(ticket, 0.2 * static_cast<double>(ticket.arm));
  }
  const int draws = 40000;
  std::array<int, 3> plays{};
  std::array<double, 3> probabilities{};
  for (int i = 0; i < draws; ++i) {
    const Ticket ticket = selector.select();
    ++plays[ticket.arm];
    probabilities[ticket.arm] = ticket.probability;
    selector.expire(ticket);
  }
  CHECK(probabilities[0] + probabilities[1] + probabilities[2] == doctest::Approx(1));
  for (std::size_t arm = 0; arm < 3; ++arm) {
    const double p = probabilities[arm];
    CHECK(std::abs(plays[arm] - draws * p) / std::sqrt(draws * p * (1 - p)) <= 5);
  }
}

TEST_CASE("a play that had to be is certain, but for those of the first pass") {
  SoftmaxSelector selector(2, {.stream = Stream(2)});
  for (int i = 0; i < 6; ++i) {
    const Ticket ticket = selector.select();
    if (i < 2) CHECK(ticket.probability == 0.5);
    selector.update(ticket, 0.5);
  }
  selector.add_arm();
  CHECK(selector.select().probability == 1);

  Exp3Selector exp3(2);
  exp3.select();
  auto state = exp3.save();
  state["chooser"]["open"][0][2] = 0;
  CHECK_THROWS_AS(exp3.load(state), std::runtime_error);
}

TEST_CASE("EXP3 follows an adversary that plays against what it did last") {
  // The arm that was played more loses: a selector that draws nothing would never gain anything.
  Exp3Selector selector(2, {.stream = Stream(4)});
  std::array<int, 2> plays{};
  double gained = 0;
  for (int t = 0; t < 4000; ++t) {
    const std::size_t losing = plays[0] > plays[1] ? 0 : 1;
    const Ticket ticket = selector.select();
    ++plays[ticket.arm];
    gained += ticket.arm != losing;
    selector.update(ticket, ticket.arm != losing ? 1 : 0);
  }
  // The better single arm gains at least half of the plays; 2.63 sqrt(T K ln K) is the bound.
  CHECK(gained > 2000 - 2.63 * std::sqrt(4000 * 2 * std::log(2.0)));
}

TEST_CASE("EXP3 and epsilon-greedy obey the law of ranges") {
  laws::follows_the_range<Exp3Selector>();
  laws::follows_the_range<EpsilonGreedySelector>();
  laws::follows_the_range<SoftmaxSelector>();
}

TEST_CASE("epsilon-greedy loses in proportion to time, with decay only to its logarithm") {
  const auto growth = [](const EpsilonGreedy& policy) {
    return laws::regret<EpsilonGreedySelector>({0.9, 0.5}, 8000, 10, {.policy = policy}) /
           laws::regret<EpsilonGreedySelector>({0.9, 0.5}, 2000, 10, {.policy = policy});
  };
  CHECK(growth({.epsilon = 0.1}) > 3.5);
  CHECK(growth({.epsilon = 60, .decay = 1}) < 2);
}

TEST_CASE("wrong settings of policies that draw are refused") {
  for (const double bad :
       {-1.0, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    CHECK_THROWS_WITH_AS(EpsilonGreedySelector(2, {.policy = {.epsilon = bad}}),
                         doctest::Contains("EpsilonGreedy: epsilon"), std::invalid_argument);
    CHECK_THROWS_WITH_AS(EpsilonGreedySelector(2, {.policy = {.decay = bad}}),
                         doctest::Contains("EpsilonGreedy: decay"), std::invalid_argument);
    CHECK_THROWS_WITH_AS(SoftmaxSelector(2, {.policy = {.temperature = bad}}),
                         doctest::Contains("Softmax: temperature"), std::invalid_argument);
    CHECK_THROWS_WITH_AS(Exp3Selector(2, {.policy = {.exploration = bad}}),
                         doctest::Contains("Exp3: exploration must be in (0, 1], got"),
                         std::invalid_argument);
  }
  CHECK_THROWS_AS(SoftmaxSelector(2, {.policy = {.temperature = 0}}), std::invalid_argument);
  CHECK_THROWS_AS(Exp3Selector(2, {.policy = {.exploration = 0}}), std::invalid_argument);
}

TEST_CASE("golden choices of policies that draw: the same on every machine and standard library") {
  CHECK(laws::golden<EpsilonGreedySelector>() == "10220000000002222222222020022000");
  CHECK(laws::golden<SoftmaxSelector>() == "10220000200020200222222200102110");
  CHECK(laws::golden<Exp3Selector>() == "10211221200020100111111100102110");
}
