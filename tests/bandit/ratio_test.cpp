#include "droppeft/bandit/ratio.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "droppeft/bandit/kl_ucb.hpp"
#include "droppeft/bandit/thompson.hpp"
#include "droppeft/bandit/ucb.hpp"
#include "droppeft/bandit/ucb_tuned.hpp"
#include "laws.hpp"

using namespace droppeft;

namespace {

struct World {
  std::vector<double> gains, costs;  // means

  GainAndCost play(std::size_t arm, Stream& stream) const {
    // Costs are a short or a long play; gains go with neither.
    const double cost = stream.uniform() < 0.5 ? 0.2 * costs[arm] : 1.8 * costs[arm];
    return {stream.uniform() < gains[arm] ? 1.0 : 0.0, cost};
  }
};

// The share of the second half of `plays` plays that went to each arm.
template <class S>
std::vector<double> shares(S selector, const World& world, int plays, std::uint64_t seed) {
  Stream stream(seed);
  std::vector<double> shares(world.gains.size());
  for (int t = 0; t < plays; ++t) {
    const Ticket ticket = selector.select();
    const GainAndCost reward = world.play(ticket.arm, stream);
    if (t >= plays / 2) shares[ticket.arm] += 2.0 / plays;
    selector.update(ticket, reward.gain, reward.cost);
  }
  return shares;
}

}  // namespace

TEST_CASE("a record against a rate is the record of gain - rate * cost") {
  RatioRecord record;
  ArmRecord plain;
  Stream stream(1);
  for (int i = 0; i < 20; ++i) {
    const GainAndCost reward{stream.uniform(), 1 + stream.uniform()};
    record.add(reward);
    plain.add(reward.gain - 0.3 * reward.cost);
  }
  CHECK(record.against(0.3).plays == 20);
  CHECK(record.against(0.3).sum == doctest::Approx(plain.sum).epsilon(1e-12));
  CHECK(record.against(0.3).deviations == doctest::Approx(plain.deviations).epsilon(1e-12));
  CHECK(record.ratio() == doctest::Approx(record.gain / record.cost));
}

TEST_CASE("the arm with the highest gain per second is found, not that of the highest mean ratio") {
  // Gains per second .5, .4, .1. A single play's gain over its cost has mean gain * (1 / .2 + 1 /
  // 1.8) / (2 cost): the same order here, but the last arm gains most a play.
  const World world{{0.5, 0.2, 0.9}, {1, 0.5, 9}};
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    const Stream stream(seed);
    CHECK(shares(RatioSelector<UcbTuned>(3, {.stream = stream}), world, 4000, seed)[0] > 0.6);
    CHECK(
        shares(RatioSelector<GaussianThompson>(3, {.stream = stream, .policy = {.noise_sd = 0.1}}),
               world, 4000, seed)[0] > 0.6);
  }
  // Averaging ratios would take the arm whose costs vary: gains do not depend on the cost.
  std::vector<double> played(2);
  RatioSelector<UcbTuned> selector(2, {.stream = Stream(3)});
  Stream stream(4);
  for (int t = 0; t < 4000; ++t) {
    const Ticket ticket = selector.select();
    const double cost = ticket.arm == 1 ? 1 : stream.uniform() < 0.5 ? 0.05 : 2.35;
    const double gain = stream.uniform() < 0.5 ? 1 : 0;
    if (t >= 2000) played[ticket.arm] += 1;
    selector.update(ticket, gain, cost);
  }
  CHECK(played[1] > 2 * played[0]);
}

TEST_CASE("with costs all alike it plays as a plain selector on the gains") {
  RatioSelector<GaussianKlUcb> ratio(4, {.stream = Stream(2), .gains = {0, 1}, .costs = {1, 2}});
  BanditSelector<GaussianKlUcb> plain(4, {.stream = Stream(2), .policy = {.noise_sd = 0.5}});
  int same = 0;
  for (std::size_t i = 0; i < 400; ++i) {
    const Ticket a = ratio.select();
    ratio.update(a, laws::reward_of(a.arm, i) / 2 + 0.1 * static_cast<double>(a.arm), 1);
    const Ticket b = plain.select();
    plain.update(b, laws::reward_of(b.arm, i) / 2 + 0.1 * static_cast<double>(b.arm));
    if (i >= 200) same += a.arm == 3 && b.arm == 3;
  }
  CHECK(same > 100);
}

TEST_CASE("units of gain and cost do not matter: factors of powers of two are exact") {
  RatioSelector<KlUcb> plain(3, {.stream = Stream(5)});
  RatioSelector<KlUcb> scaled(3, {.stream = Stream(5)});
  const World world{{0.5, 0.4, 0.9}, {1, 0.5, 4}};
  Stream stream(6);
  for (int i = 0; i < 500; ++i) {
    const Ticket ticket = plain.select();
    REQUIRE(scaled.select() == ticket);
    const GainAndCost reward = world.play(ticket.arm, stream);
    plain.update(ticket, reward.gain, reward.cost);
    scaled.update(ticket, 64 * reward.gain, reward.cost / 1024);
  }
}

TEST_CASE("a ratio selector that was saved and loaded goes on bit for bit") {
  for (const std::size_t window : {0U, 20U}) {
    RatioSelector<UcbTuned> undisturbed(3, {.stream = Stream(8), .window = window});
    const World world{{0.5, 0.4, 0.9}, {1, 0.5, 4}};
    Stream stream(9);
    std::vector<Ticket> open;
    const auto play = [&](RatioSelector<UcbTuned>& selector, Stream& random,
                          std::vector<Ticket>& tickets) {
      std::string arms;
      for (int i = 0; i < 100; ++i) {
        tickets.push_back(selector.select());
        arms += std::to_string(tickets.back().arm);
        if (tickets.size() < 4) continue;
        const GainAndCost reward = world.play(tickets.front().arm, random);
        selector.update(tickets.front(), reward.gain, reward.cost);
        tickets.erase(tickets.begin());
      }
      return arms;
    };
    play(undisturbed, stream, open);
    undisturbed.add_arm();
    undisturbed.retire(1);
    undisturbed.expire(open.back());
    open.pop_back();
    RatioSelector<UcbTuned> resumed(3, {.window = window});
    resumed.load(nlohmann::json::parse(undisturbed.save().dump()));
    const World larger{{0.5, 0.4, 0.9, 0.3}, {1, 0.5, 4, 1}};
    const auto go_on = [&](RatioSelector<UcbTuned>& selector, Stream random,
                           std::vector<Ticket> tickets) {
      std::string arms;
      for (int i = 0; i < 100; ++i) {
        tickets.push_back(selector.select());
        arms += std::to_string(tickets.back().arm);
        const GainAndCost reward = larger.play(tickets.front().arm, random);
        selector.update(tickets.front(), reward.gain, reward.cost);
        tickets.erase(tickets.begin());
      }
      return arms;
    };
    CHECK(go_on(undisturbed, stream, open) == go_on(resumed, stream, open));
    CHECK(resumed.save().dump() == undisturbed.save().dump());
  }
}

TEST_CASE("wrong gains, costs, ranges and states are refused and change nothing") {
  RatioSelector<Ucb1> selector(2, {.costs = {0.5, 9}});
  const Ticket ticket = selector.select();
  const auto before = selector.save();
  const double nan = std::nan("");
  for (const double bad : {nan, 0.0, 10.0, -1.0})
    CHECK_THROWS_WITH_AS(selector.update(ticket, 1, bad),
                         doctest::Contains("RatioSelector::update: cost must be in [0.5, 9], got"),
                         std::invalid_argument);
  CHECK_THROWS_WITH_AS(selector.update(ticket, nan, 1), doctest::Contains("gain must be in"),
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(RatioSelector<Ucb1>(2, {.costs = {0, 1}}),
                       "RatioSelector: costs must be in [1e-50, 1e50], got 0 and 1",
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(RatioSelector<Ucb1>(2, {.gains = {1, 0}}),
                       doctest::Contains("RatioSelector: gains must be two numbers"),
                       std::invalid_argument);
  for (const auto& [key, value] : before.items()) {
    auto bad = before;
    bad.erase(key);
    CHECK_THROWS_AS(selector.load(bad), std::runtime_error);
  }
  CHECK(selector.save() == before);
  CHECK(selector.rate() == 0);
}

TEST_CASE("a state that no plays lead to, and whose ratios would overflow, is refused") {
  RatioSelector<UcbTuned> selector(2);
  for (int i = 0; i < 4; ++i) selector.update(selector.select(), 1, 2);
  const auto good = selector.save();
  const auto refuses = [&](const char* path, double value) {
    auto bad = good;
    bad[nlohmann::json::json_pointer(path)] = value;
    CAPTURE(path);
    CAPTURE(value);
    CHECK_THROWS_AS(selector.load(bad), std::runtime_error);
    CHECK(selector.save() == good);
  };
  // Two plays that cost nothing, or less than any two; deviations above what such costs allow.
  refuses("/rewards/records/0/2", 0);
  refuses("/rewards/records/0/2", 5e-51);
  refuses("/rewards/records/0/4", 1e51);
  refuses("/gains_so_far/0", -1e51);
  refuses("/gains_so_far/1", 1e51);
  refuses("/costs_so_far/0", 0);
  refuses("/costs_so_far/0", -5);
  refuses("/costs_so_far/1", 1e51);
  selector.load(good);
}

TEST_CASE("an arm whose plays are forgotten has no cost and no ratio left") {
  RatioSelector<UcbTuned> selector(2, {.discount = 1e-300});
  for (int i = 0; i < 2; ++i) selector.update(selector.select(), 1e50, 1e-50);
  double ratios = 0;
  for (std::size_t arm = 0; arm < 2; ++arm) ratios += selector.record(arm).ratio();
  CHECK(ratios == doctest::Approx(1e100));
  selector.load(selector.save());
}
