#include "droppeft/bandit/ucb.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numbers>
#include <stdexcept>
#include <string>
#include <vector>

#include "droppeft/random/stream.hpp"

using namespace droppeft;

namespace {

// Deterministic rewards, different for every play, so that no two scores tie.
double reward_of(std::size_t arm, std::uint64_t play) {
  return std::fmod(0.618 * static_cast<double>(arm + 1) + 0.377 * static_cast<double>(play), 1.0);
}

std::vector<std::size_t> play_all_then(UcbSelector& selector, const std::vector<std::size_t>& names,
                                       int steps, double scale, double shift) {
  std::vector<std::size_t> arms;
  for (int i = 0; i < steps; ++i) {
    const Ticket ticket = selector.select();
    const std::size_t name = names[ticket.arm];
    selector.update(ticket, scale * reward_of(name, selector.record(ticket.arm).plays) + shift);
    if (i >= static_cast<int>(names.size())) arms.push_back(name);
  }
  return arms;
}

}  // namespace

TEST_CASE("UCB1 plays the arm with the highest mean + sqrt(c ln t / n)") {
  const double c = 0.7;
  UcbSelector selector(4, {.policy = {.exploration = c}});
  std::vector<double> sums(4, 0.0);
  std::vector<double> plays(4, 0.0);
  for (int t = 0; t < 300; ++t) {
    const Ticket ticket = selector.select();
    if (t >= 4) {
      std::size_t best = 0;
      const auto score = [&](std::size_t arm) {
        return sums[arm] / plays[arm] + std::sqrt(c * std::log(t) / plays[arm]);
      };
      for (std::size_t arm = 1; arm < 4; ++arm)
        if (score(arm) > score(best)) best = arm;
      CHECK(ticket.arm == best);
    }
    const double reward = reward_of(ticket.arm, static_cast<std::uint64_t>(plays[ticket.arm]));
    selector.update(ticket, reward);
    sums[ticket.arm] += reward;
    ++plays[ticket.arm];
  }
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

TEST_CASE("renaming the arms renames the choices") {
  UcbSelector plain(4, {.stream = Stream(1)});
  UcbSelector renamed(4, {.stream = Stream(2)});
  CHECK(play_all_then(plain, {0, 1, 2, 3}, 200, 1, 0) ==
        play_all_then(renamed, {2, 0, 3, 1}, 200, 1, 0));
}

TEST_CASE("with rewards a r + b and exploration a^2 c the choices are the same") {
  UcbSelector plain(4, {.policy = {.exploration = 0.5}});
  UcbSelector scaled(4, {.policy = {.exploration = 8}});
  CHECK(play_all_then(plain, {0, 1, 2, 3}, 200, 1, 0) ==
        play_all_then(scaled, {0, 1, 2, 3}, 200, 4, -3));
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
  UcbSelector selector(3, {.stream = Stream(42)});
  std::string arms;
  for (int i = 0; i < 16; ++i) {
    const Ticket ticket = selector.select();
    arms += std::to_string(ticket.arm);
    selector.update(ticket, ticket.arm == 1 ? 1 : 0);
  }
  CHECK(arms == "1201111201111111");
}
