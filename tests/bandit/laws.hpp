#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "droppeft/bandit/selector.hpp"
#include "droppeft/random/stream.hpp"

namespace laws {

using droppeft::Stream;
using droppeft::Ticket;

/// Rewards in [0, 1], different for every play, so that no two scores tie.
inline double reward_of(std::size_t arm, std::size_t play) {
  return std::fmod(0.618 * static_cast<double>(arm + 1) + 0.377 * static_cast<double>(play), 1.0);
}

/// The score of an arm in the words of its paper: all its rewards, the plays of all arms, and how
/// many arms there are.
using Score = std::function<double(const std::vector<double>&, double, double)>;

inline double mean(const std::vector<double>& rewards) {
  double sum = 0;
  for (const double reward : rewards) sum += reward;
  return sum / static_cast<double>(rewards.size());
}

inline double variance(const std::vector<double>& rewards) {
  double sum = 0;
  for (const double reward : rewards) sum += std::pow(reward - mean(rewards), 2);
  return sum / static_cast<double>(rewards.size());
}

/// The arm that is played has the highest score, for 300 plays of 4 arms.
template <class S>
void plays_the_highest(S selector, const Score& score) {
  std::vector<std::vector<double>> rewards(4);
  for (int t = 0; t < 300; ++t) {
    const Ticket ticket = selector.select();
    if (t >= 4) {
      std::size_t best = 0;
      const auto of = [&](std::size_t arm) { return score(rewards[arm], t, 4); };
      for (std::size_t arm = 1; arm < 4; ++arm)
        if (of(arm) > of(best)) best = arm;
      CHECK(ticket.arm == best);
    }
    auto& own = rewards[ticket.arm];
    own.push_back(reward_of(ticket.arm, own.size()));
    selector.update(ticket, own.back());
  }
}

/// What is played in 200 plays after each arm was tried once, arm i being called names[i], with
/// rewards scale r + shift.
template <class S>
std::vector<std::size_t> choices(S selector, const std::vector<std::size_t>& names,
                                 double scale = 1, double shift = 0) {
  std::vector<std::size_t> arms, plays(names.size());
  for (std::size_t i = 0; i < 200 + names.size(); ++i) {
    const Ticket ticket = selector.select();
    const std::size_t name = names[ticket.arm];
    selector.update(ticket, scale * reward_of(name, plays[name]++) + shift);
    if (i >= names.size()) arms.push_back(name);
  }
  return arms;
}

/// Renamed arms, for policies that draw nothing: the choices are renamed.
template <class S>
void follows_renaming() {
  CHECK(choices(S(4, {.stream = Stream(1)}), {0, 1, 2, 3}) ==
        choices(S(4, {.stream = Stream(2)}), {2, 0, 3, 1}));
}

/// Rewards 4 r - 3 in the range [-3, 1] are played as r in [0, 1]; factor and shift are exact.
template <class S>
void follows_the_range(typename S::Options options = {}) {
  options.stream = Stream(3);
  S plain(4, options);
  options.range = {-3, 1};
  CHECK(choices(plain, {0, 1, 2, 3}) == choices(S(4, options), {0, 1, 2, 3}, 4, -3));
}

/// The mean regret of `runs` runs on Bernoulli arms.
template <class S>
double regret(const std::vector<double>& means, int horizon, int runs,
              typename S::Options options = {}) {
  double best = 0, total = 0;
  for (const double each : means) best = std::max(best, each);
  for (int run = 0; run < runs; ++run) {
    options.stream = Stream(static_cast<std::uint64_t>(run));
    S selector(means.size(), options);
    Stream world = options.stream.fold(1);
    for (int t = 0; t < horizon; ++t) {
      const Ticket ticket = selector.select();
      total += best - means[ticket.arm];
      selector.update(ticket, world.uniform() < means[ticket.arm] ? 1 : 0);
    }
  }
  return total / runs;
}

/// The first 32 arms played.
template <class S>
std::string golden() {
  S selector(3, {.stream = Stream(42)});
  std::string arms;
  std::vector<std::size_t> plays(3);
  for (int i = 0; i < 32; ++i) {
    const Ticket ticket = selector.select();
    arms += std::to_string(ticket.arm);
    selector.update(ticket, reward_of(ticket.arm, plays[ticket.arm]++));
  }
  return arms;
}

}  // namespace laws
