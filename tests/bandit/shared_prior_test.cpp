#include "droppeft/bandit/shared_prior.hpp"

#include <doctest/doctest.h>

#include <boost/random/normal_distribution.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>
#include <vector>

#include "droppeft/bandit/thompson.hpp"
#include "droppeft/bandit/ucb.hpp"
#include "droppeft/random/stream.hpp"

using namespace droppeft;

namespace {

using SharedUcb = SharedPriorSelector<Ucb1>;
using SharedThompson = SharedPriorSelector<GaussianThompson>;
using SharedBeta = SharedPriorSelector<BetaThompson>;

// Plays an arm of a device until it comes, and rewards every play with `reward`.
template <class S>
void play_arm(S& selector, std::size_t device, std::size_t arm, double reward) {
  const std::size_t only[] = {arm};
  selector.update(selector.select(device, only), reward);
}

}  // namespace

TEST_CASE("a device is told its own rewards and its class's, up to a number of plays") {
  SharedUcb selector(2, {0, 0, 1}, {.prior_plays = 2});
  for (const double reward : {0.0, 1.0, 0.5, 0.5}) play_arm(selector, 0, 0, reward);
  play_arm(selector, 2, 0, 1);

  // Device 1: nothing of its own, four plays of the class that count for two.
  ArmRecord seen = selector.record(0, 1);
  CHECK(seen.plays == 2);
  CHECK(seen.mean() == 0.5);
  CHECK(seen.variance() == doctest::Approx(0.125));
  // Device 0: its own four beside these.
  seen = selector.record(0, 0);
  CHECK(seen.plays == 6);
  CHECK(seen.mean() == 0.5);
  // Device 2: its one, and the one of its class, which is less than two.
  seen = selector.record(0, 2);
  CHECK(seen.plays == 2);
  CHECK(seen.mean() == 1);
  // All.
  CHECK(selector.record(0).plays == 5);
  CHECK(selector.record(0).mean() == doctest::Approx(0.6));
}

TEST_CASE("without a prior each device is a bandit alone") {
  SharedUcb selector(2, {0, 0}, {.prior_plays = 0});
  play_arm(selector, 0, 0, 1);
  CHECK(selector.record(0, 1).plays == 0);
  CHECK(selector.record(0, 0).plays == 1);
}

TEST_CASE("the devices of a class try all arms together, each class for itself") {
  SharedThompson selector(4, {0, 0, 0, 0, 1, 1, 1, 1}, {.stream = Stream(2)});
  std::set<std::size_t> first, second;
  for (std::size_t device = 0; device < 4; ++device) {
    first.insert(selector.select(device).arm);
    second.insert(selector.select(device + 4).arm);
  }
  CHECK(first.size() == 4);
  CHECK(second.size() == 4);
  CHECK(selector.record(0, 0).pending == 1);
  CHECK(selector.record(0).pending == 2);
}

TEST_CASE("classes that like different arms find them, and a new device begins there") {
  // Class 0 likes arm 1, class 1 arm 3, by 0.3 at a noise of 0.2; device 9 of class 1 never plays.
  std::vector<std::size_t> classes;
  for (std::size_t device = 0; device < 10; ++device) classes.push_back(device % 2);
  double right = 0, count = 0;
  int beginning = 0;
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    SharedThompson selector(5, classes, {.stream = Stream(seed), .policy = {.noise_sd = 0.2}});
    Stream noise = Stream(seed).fold(1);
    for (int round = 0; round < 40; ++round)
      for (std::size_t device = 0; device < 9; ++device) {
        const Ticket ticket = selector.select(device);
        const std::size_t best = device % 2 == 0 ? 1 : 3;
        selector.update(ticket, (ticket.arm == best ? 0.7 : 0.4) +
                                    boost::random::normal_distribution<double>(0, 0.2)(noise));
        if (round < 20) continue;
        right += ticket.arm == best;
        ++count;
      }
    beginning += selector.select(9).arm == 3;
  }
  CHECK(right / count >= 0.7);  // chance: 0.2
  CHECK(beginning >= 10);       // chance: 4
}

TEST_CASE("a device that differs from its class goes its own way") {
  // Device 0 likes arm 0, the nine others of its class arm 1.
  SharedThompson selector(2, std::vector<std::size_t>(10, 0),
                          {.stream = Stream(5), .prior_plays = 4, .policy = {.noise_sd = 0.2}});
  int own = 0, others = 0;
  for (int round = 0; round < 60; ++round)
    for (std::size_t device = 0; device < 10; ++device) {
      const Ticket ticket = selector.select(device);
      selector.update(ticket, ticket.arm == (device == 0 ? 0 : 1) ? 0.8 : 0.2);
      if (round >= 30) (device == 0 ? own : others) += ticket.arm == (device == 0 ? 0 : 1);
    }
  CHECK(own >= 24);         // of 30
  CHECK(others >= 9 * 27);  // of 270
}

TEST_CASE("arms come and go, and may be forbidden") {
  SharedUcb selector(2, {0, 1}, {.stream = Stream(6)});
  CHECK(selector.add_arm() == 2);
  selector.retire(0);
  CHECK(!selector.active(0));
  CHECK(selector.active(2));
  for (int i = 0; i < 20; ++i) {
    const Ticket ticket = selector.select(static_cast<std::size_t>(i % 2));
    CHECK(ticket.arm != 0);
    selector.update(ticket, 0.5);
  }
  const std::size_t only[] = {2}, retired[] = {0, 2}, nothing[] = {9};
  CHECK(selector.select(0, only).arm == 2);
  CHECK_THROWS_WITH_AS(selector.select(0, retired),
                       doctest::Contains("must be active and ascend, got 0"),
                       std::invalid_argument);
  CHECK_THROWS_AS(selector.select(0, nothing), std::invalid_argument);
  CHECK_THROWS_AS(selector.select(0, std::span<const std::size_t>()), std::invalid_argument);
}

TEST_CASE_TEMPLATE("a selector that was saved and loaded goes on bit for bit", S, SharedUcb,
                   SharedThompson, SharedBeta) {
  const auto make = [](std::uint64_t seed) {
    return S(3, {0, 1, 0}, {.stream = Stream(seed), .window = 20});
  };
  const auto play = [](S& selector, int plays) {
    Stream noise(9);
    for (int i = 0; i < plays; ++i)
      selector.update(selector.select(static_cast<std::size_t>(i % 3)), noise.uniform());
  };
  S undisturbed = make(7);
  play(undisturbed, 40);
  undisturbed.add_arm();
  undisturbed.retire(1);
  const Ticket late = undisturbed.select(1), lost = undisturbed.select(2);
  const auto state = undisturbed.save();
  S resumed = make(8);
  resumed.load(nlohmann::json::parse(state.dump()));
  for (S* each : {&undisturbed, &resumed}) {
    each->update(late, 0.25);
    each->expire(lost);
    CHECK_THROWS_AS(each->expire(lost), std::invalid_argument);
    play(*each, 50);
  }
  CHECK(undisturbed.save().dump() == resumed.save().dump());

  S other = make(8);
  const auto before = other.save();
  const auto refuses = [&](const char* path, const nlohmann::json& value) {
    auto bad = state;
    bad[nlohmann::json::json_pointer(path)] = value;
    CAPTURE(path);
    CHECK_THROWS_AS(other.load(bad), std::runtime_error);
    CHECK(other.save() == before);
  };
  refuses("/version", 2);
  refuses("/prior_plays", 3);
  refuses("/classes", {0, 0, 0});
  refuses("/playing", {0});
  refuses("/playing/0", 3);
  refuses("/of_class", nlohmann::json::array());
  refuses("/of_device/0", 1);
  refuses("/chooser/arms", 4);
}

TEST_CASE("wrong arguments of a shared prior are refused") {
  CHECK_THROWS_AS(SharedUcb(0, {0}), std::invalid_argument);
  CHECK_THROWS_WITH_AS(SharedUcb(2, {}), doctest::Contains("classes must hold at least one device"),
                       std::invalid_argument);
  CHECK_THROWS_AS(SharedUcb(2, {1 << 20}), std::invalid_argument);
  for (const double bad : {-1.0, std::nan(""), std::numeric_limits<double>::infinity()})
    CHECK_THROWS_WITH_AS(SharedUcb(2, {0}, {.prior_plays = bad}),
                         doctest::Contains("prior_plays must be finite and at least 0"),
                         std::invalid_argument);
  SharedUcb selector(2, {0, 0});
  CHECK_THROWS_WITH_AS(selector.select(2), doctest::Contains("device must be below 2, got 2"),
                       std::invalid_argument);
  const Ticket ticket = selector.select(0);
  for (const double bad : {-0.1, 1.1, std::nan("")})
    CHECK_THROWS_WITH_AS(selector.update(ticket, bad), doctest::Contains("must be in [0, 1]"),
                         std::invalid_argument);
  selector.update(ticket, 1);
  CHECK_THROWS_AS(selector.update(ticket, 1), std::invalid_argument);
  CHECK_THROWS_AS(selector.record(2, 0), std::invalid_argument);
  CHECK_THROWS_AS(selector.record(0, 2), std::invalid_argument);
}
