#include "droppeft/configurator.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <boost/random/normal_distribution.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "droppeft/bandit/thompson.hpp"
#include "droppeft/bandit/ucb.hpp"
#include "droppeft/random/stream.hpp"

using namespace droppeft;

namespace {

using UcbConfigurator = SelectorConfigurator<UcbSelector>;
using ThompsonConfigurator = SelectorConfigurator<ThompsonSelector>;

template <class C>
C make(std::uint64_t seed) {
  const Stream stream(seed);
  if constexpr (std::is_same_v<C, UcbConfigurator>)
    return C(UcbSelector(7, {.stream = stream, .policy = {.exploration = 0.1}}));
  else if constexpr (std::is_same_v<C, ThompsonConfigurator>)
    return C(ThompsonSelector(7, {.stream = stream, .policy = {.noise_sd = 0.2}}));
  else
    return C({.stream = stream});
}

static_assert(Configurator<UcbConfigurator> && Configurator<ThompsonConfigurator> &&
              Configurator<PopulationConfigurator>);

// A simulated federation: the gain of a round falls as 1 / (round + 3), a configuration keeps the
// share benefit(configuration) of it, and each device adds noise of 0.3 times the level of the
// round. A device takes 0.2 + 0.8 (1 - mean rate) seconds.
enum class World { dropout_pays, dropout_hurts };

double benefit(World world, const Configuration& configuration) {
  const double p = configuration.mean_rate;
  if (world == World::dropout_hurts) return 1 - 1.6 * p;
  return 1 - (configuration.shape == RateShape::incremental ? 1.2 : 2.5) * p * p * p;
}

double seconds(const Configuration& configuration) {
  return 0.2 + 0.8 * (1 - configuration.mean_rate);
}

double worth(World world, const Configuration& configuration) {
  return benefit(world, configuration) / seconds(configuration);
}

double gain(World world, const Configuration& configuration, std::uint64_t round, Stream& noise) {
  const double level = 1 / (static_cast<double>(round) + 3);
  return level * (benefit(world, configuration) +
                  boost::random::normal_distribution<double>(0, 0.3)(noise));
}

// What the devices played in each of `rounds` rounds of five.
std::vector<std::vector<Configuration>> simulate(Configurator auto& configurator, World world,
                                                 std::uint64_t rounds, std::uint64_t seed) {
  Stream noise = Stream(seed).fold(77);
  std::vector<std::vector<Configuration>> played;
  for (std::uint64_t round = 0; round < rounds; ++round) {
    played.emplace_back();
    for (const Assignment& each : configurator.assign(5)) {
      played.back().push_back(each.configuration);
      configurator.report(each, gain(world, each.configuration, round, noise),
                          seconds(each.configuration));
    }
    configurator.finish_round();
  }
  return played;
}

// Mean over the devices of the last 30 rounds.
template <class F>
double late_mean(const std::vector<std::vector<Configuration>>& played, F&& value) {
  double sum = 0;
  double count = 0;
  for (std::size_t round = played.size() - 30; round < played.size(); ++round)
    for (const Configuration& configuration : played[round]) {
      sum += static_cast<double>(value(configuration));
      ++count;
    }
  return sum / count;
}

// The worth that only a third of `space` reaches.
double best_third(World world, const std::vector<Configuration>& space) {
  std::vector<double> worths;
  for (const Configuration& each : space) worths.push_back(worth(world, each));
  std::ranges::sort(worths, std::ranges::greater{});
  return worths[worths.size() / 3 - 1];
}

std::vector<Configuration> continuous_space() {
  std::vector<Configuration> space;
  for (const RateShape shape : rate_shapes)
    for (int i = 0; i < 1000; ++i) space.push_back({shape, 0.8 * i / 1000});
  return space;
}

}  // namespace

TEST_CASE("the grid has every mean with every shape and no dropout exactly once") {
  const auto grid = configurations({0.3, 0, 0.6, 0}, {RateShape::decay, RateShape::normal});
  const std::vector<Configuration> expected{{},
                                            {RateShape::decay, 0.3},
                                            {RateShape::normal, 0.3},
                                            {RateShape::decay, 0.6},
                                            {RateShape::normal, 0.6}};
  CHECK(grid == expected);
  CHECK(configurations().size() == 7);
  CHECK_THROWS_WITH_AS(configurations({1.5}),
                       doctest::Contains("means must be in [0, 0.95], got 1.5"),
                       std::invalid_argument);
}

TEST_CASE("a configuration gives the rates of its shape and has a name") {
  CHECK(Configuration{RateShape::incremental, 0.4}.drop_rates(6) ==
        drop_rates(RateShape::incremental, 6, 0.4));
  CHECK(Configuration{}.drop_rates(3) == std::vector<double>(3, 0.0));
  CHECK(to_string(Configuration{RateShape::incremental, 0.6}) == "incremental 0.6");
  CHECK(to_string(Configuration{RateShape::decay, 0}) == "none");
}

TEST_CASE("the reward is pooled and scaled as documented") {
  RoundRewards rewards(2);
  const auto play = [&](std::uint64_t id, std::size_t arm, double gain, double time) {
    rewards.open({id, arm});
    rewards.report({id, arm}, gain, time);
  };
  play(0, 0, 1, 1);
  play(1, 0, 5, 3);  // arm 0: 6 / 4
  play(2, 1, 1, 2);  // arm 1: 1 / 2
  // m = 7 / 6, deviations 1/3 and -2/3, s = sqrt(5 / 18).
  auto given = rewards.finish();
  CHECK(given.size() == 3);
  CHECK(given[0].second == doctest::Approx(0.5 + 1 / (12 * std::sqrt(5.0 / 18))));
  CHECK(given[1].second == given[0].second);
  CHECK(given[2].second == doctest::Approx(0.5 - 2 / (12 * std::sqrt(5.0 / 18))));

  // A round with one arm tells nothing.
  play(3, 1, -4, 2);
  CHECK(rewards.finish()[0].second == 0.5);

  // The window has forgotten the first round: m = 1, deviations 1 and -1.
  play(4, 1, 2, 1);
  play(5, 0, 0, 1);
  given = rewards.finish();
  CHECK(given[0].second == 0.75);
  CHECK(given[1].second == 0.25);

  // No spread, no opinion.
  play(6, 1, 1, 1);
  rewards.finish();
  play(7, 1, 1, 1);
  play(8, 0, 1, 1);
  CHECK(rewards.finish()[0].second == 0.5);
  CHECK(rewards.finish().empty());
}

TEST_CASE("rewards are clipped to [0, 1]") {
  RoundRewards rewards(9);
  for (std::uint64_t id = 0; id < 9; ++id) {
    rewards.open({id, id});
    rewards.report({id, id}, id == 8 ? 100 : 0, 1);
  }
  // m = 100/9, s = 100 sqrt(8)/9: 1/2 + 8/(4 sqrt(8)) > 1.
  CHECK(rewards.finish()[8].second == 1);
}

TEST_CASE("rewards do not depend on the unit of gain or time") {
  auto plain = make<ThompsonConfigurator>(3);
  auto scaled = make<ThompsonConfigurator>(3);
  Stream noise(4);
  for (int round = 0; round < 20; ++round) {
    const auto a = plain.assign(5);
    const auto b = scaled.assign(5);
    for (std::size_t i = 0; i < 5; ++i) {
      CHECK(a[i].ticket == b[i].ticket);
      const double gained = noise.uniform() - 0.3;
      plain.report(a[i], gained, 1.5);
      scaled.report(b[i], 1024 * gained, 0.25 * 1.5);
    }
    plain.finish_round();
    scaled.finish_round();
  }
}

#define EVERY_CONFIGURATOR UcbConfigurator, ThompsonConfigurator, PopulationConfigurator

TEST_CASE_TEMPLATE("the order of the reports does not change a bit", C, EVERY_CONFIGURATOR) {
  const auto state_after = [](const std::vector<std::size_t>& order) {
    C configurator = make<C>(5);
    const auto assignments = configurator.assign(5);
    for (const std::size_t i : order)
      configurator.report(assignments[i], 0.1 * static_cast<double>(i), 0.3);
    configurator.finish_round();
    return configurator.save().dump();
  };
  CHECK(state_after({0, 1, 2, 3, 4}) == state_after({3, 1, 4, 0, 2}));
}

TEST_CASE_TEMPLATE("every candidate is tried before one is tried again", C, EVERY_CONFIGURATOR) {
  C configurator = make<C>(6);
  const std::size_t count = configurator.estimates().size();
  std::set<std::size_t> arms;
  for (const Assignment& each : configurator.assign(count)) arms.insert(each.ticket.arm);
  CHECK(arms.size() == count);
}

TEST_CASE_TEMPLATE("devices may fail, or answer rounds later", C, EVERY_CONFIGURATOR) {
  C configurator = make<C>(7);
  const auto first = configurator.assign(3);
  configurator.expire(first[0]);
  configurator.report(first[1], 1, 1);
  configurator.finish_round();
  const auto second = configurator.assign(2);
  configurator.report(second[0], 2, 1);
  configurator.report(first[2], 3, 1);
  configurator.finish_round();
  std::uint64_t plays = 0;
  for (const Estimate& estimate : configurator.estimates()) plays += estimate.plays;
  CHECK(plays == 3);
  CHECK(configurator.best() == first[2].configuration);
}

TEST_CASE_TEMPLATE("an assignment counts once", C, EVERY_CONFIGURATOR) {
  C configurator = make<C>(8);
  const auto assignments = configurator.assign(2);
  configurator.report(assignments[0], 1, 1);
  CHECK_THROWS_WITH_AS(configurator.report(assignments[0], 1, 1),
                       doctest::Contains("Configurator::report: ticket "), std::invalid_argument);
  CHECK_THROWS_WITH_AS(configurator.expire(assignments[0]),
                       doctest::Contains("Configurator::expire: ticket "), std::invalid_argument);
  configurator.finish_round();
  CHECK_THROWS_AS(configurator.report(assignments[0], 1, 1), std::invalid_argument);
  configurator.expire(assignments[1]);
  CHECK_THROWS_AS(configurator.expire(assignments[1]), std::invalid_argument);
  CHECK_THROWS_AS(configurator.report({{999, 0}, {}}, 1, 1), std::invalid_argument);
}

TEST_CASE_TEMPLATE("gains and seconds that are no numbers are refused and change nothing", C,
                   EVERY_CONFIGURATOR) {
  C configurator = make<C>(9);
  const auto assignments = configurator.assign(1);
  const auto before = configurator.save();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double infinity = std::numeric_limits<double>::infinity();
  for (const double bad : {nan, infinity, -infinity})
    CHECK_THROWS_WITH_AS(configurator.report(assignments[0], bad, 1),
                         doctest::Contains("gain must be a finite number"), std::invalid_argument);
  for (const double bad : {0.0, -1.0, nan, infinity})
    CHECK_THROWS_WITH_AS(configurator.report(assignments[0], 1, bad),
                         doctest::Contains("seconds must be finite and above 0"),
                         std::invalid_argument);
  CHECK(configurator.save() == before);
}

TEST_CASE_TEMPLATE("rounds without devices or reports are harmless", C, EVERY_CONFIGURATOR) {
  C configurator = make<C>(10);
  CHECK(configurator.best() == Configuration{});
  CHECK(configurator.assign(0).empty());
  configurator.finish_round();
  configurator.finish_round();
  CHECK(configurator.best() == Configuration{});
}

TEST_CASE_TEMPLATE("a configurator that was saved and loaded goes on bit for bit", C,
                   EVERY_CONFIGURATOR) {
  C undisturbed = make<C>(11);
  simulate(undisturbed, World::dropout_pays, 23, 1);
  // In the middle of a round: one device answered, one failed, two are out.
  const auto open = undisturbed.assign(4);
  undisturbed.report(open[1], 0.1, 0.7);
  undisturbed.expire(open[2]);
  const auto state = undisturbed.save();
  C resumed = make<C>(99);
  resumed.load(nlohmann::json::parse(state.dump()));
  CHECK(resumed.save().dump() == state.dump());
  for (C* each : {&undisturbed, &resumed}) {
    each->report(open[3], -1.0 / 3, 0.9);
    each->finish_round();
  }
  CHECK(simulate(undisturbed, World::dropout_pays, 40, 2) ==
        simulate(resumed, World::dropout_pays, 40, 2));
  CHECK(resumed.save().dump() == undisturbed.save().dump());
}

TEST_CASE_TEMPLATE("a state that is corrupted is refused and the configurator stays as it was", C,
                   EVERY_CONFIGURATOR) {
  C configurator = make<C>(12);
  simulate(configurator, World::dropout_pays, 9, 1);
  configurator.report(configurator.assign(2)[0], 1, 1);
  const auto good = configurator.save();
  C other = make<C>(13);
  const auto before = other.save();
  const auto refuses = [&](const char* path, const nlohmann::json& value) {
    auto bad = good;
    bad[nlohmann::json::json_pointer(path)] = value;
    CAPTURE(path);
    CHECK_THROWS_AS(other.load(bad), std::runtime_error);
    CHECK(other.save() == before);
  };
  refuses("/version", 2);
  refuses("/rewards/window", 99);
  refuses("/rewards/round", "one");
  refuses("/rewards/open/0/0", -1);
  refuses("/rewards/reports/0/4", 0);
  refuses("/rewards/reports/0/3", nullptr);
  refuses("/rewards/recent/0", nlohmann::json::array());
  if constexpr (std::is_same_v<C, PopulationConfigurator>) {
    refuses("/settings/epsilon", 0.5);
    refuses("/stream", "none");
    refuses("/candidates", nlohmann::json::array());
    refuses("/candidates/0/number", 1000000);
    refuses("/candidates/0/configuration/shape", "linear");
    refuses("/candidates/0/configuration/mean_rate", 1.5);
    refuses("/candidates/0/rewards/0/1", 2);
    refuses("/candidates/1/number", good["candidates"][0]["number"]);
    refuses("/turns", 1);
    refuses("/born", 0);
    refuses("/generation", 1000);
  } else {
    refuses("/grid/0/mean_rate", 0.1);
    refuses("/selector/chooser/arms", 9);
    refuses("/selector/chooser/stream/0", -3);
    refuses("/rewards/open", nlohmann::json::array());
    refuses("/rewards/open/0/0", good["rewards"]["open"][0][0].template get<int>() + 1);
  }
  for (const auto& [key, value] : good.items()) {
    auto bad = good;
    bad.erase(key);
    CHECK_THROWS_AS(other.load(bad), std::runtime_error);
  }
  CHECK(other.save() == before);
}

TEST_CASE("wrong arguments of the configurators are refused") {
  CHECK_THROWS_WITH_AS(SelectorConfigurator(UcbSelector(3)),
                       doctest::Contains("the selector must have 7 arms"), std::invalid_argument);
  CHECK_THROWS_AS(SelectorConfigurator(UcbSelector(1), {{RateShape::uniform, 0.99}}),
                  std::invalid_argument);
  CHECK_THROWS_AS(SelectorConfigurator(UcbSelector(7), configurations(), 0), std::invalid_argument);
  for (const PopulationOptions& bad :
       {PopulationOptions{.population = 1}, PopulationOptions{.epsilon = 1},
        PopulationOptions{.epsilon = std::nan("")}, PopulationOptions{.window = 0},
        PopulationOptions{.max_mean_rate = 0.96}, PopulationOptions{.max_mean_rate = -1},
        PopulationOptions{.shapes = {}}})
    CHECK_THROWS_WITH_AS(PopulationConfigurator{bad}, doctest::Contains("PopulationConfigurator: "),
                         std::invalid_argument);
}

TEST_CASE("a population begins with no dropout and candidates from the whole space") {
  const auto estimates =
      PopulationConfigurator({.population = 200, .max_mean_rate = 0.6}).estimates();
  CHECK(estimates[0].configuration == Configuration{});
  std::set<RateShape> shapes;
  double highest = 0;
  double sum = 0;
  for (const Estimate& estimate : estimates) {
    shapes.insert(estimate.configuration.shape);
    highest = std::max(highest, estimate.configuration.mean_rate);
    sum += estimate.configuration.mean_rate;
  }
  CHECK(shapes.size() == 4);
  CHECK(highest <= 0.6);
  // 199 means uniform in [0, 0.6].
  CHECK(std::abs((sum - 199 * 0.3) / (0.6 * std::sqrt(199 / 12.0))) <= 5);
}

TEST_CASE("the worst share of a population is replaced, once every candidate has a reward") {
  PopulationConfigurator configurator({.stream = Stream(14), .population = 8, .epsilon = 0.25});
  const auto before = configurator.estimates();
  const auto play = [&](std::size_t devices) {
    for (const Assignment& each : configurator.assign(devices)) {
      // A gain that ranks the candidates as they were listed.
      const auto place = std::ranges::find(before, each.configuration, &Estimate::configuration);
      configurator.report(each, static_cast<double>(before.end() - place), 1);
    }
    configurator.finish_round();
  };
  const auto kept = [&] {
    std::size_t count = 0;
    for (const Estimate& estimate : configurator.estimates())
      count += static_cast<std::size_t>(
          std::ranges::count(before, estimate.configuration, &Estimate::configuration));
    return count;
  };
  play(5);
  CHECK(kept() == 8);
  play(3);
  CHECK(kept() == 6);
  const auto after = configurator.estimates();
  CHECK(after[6].plays == 0);
  CHECK(after[7].plays == 0);
}

TEST_CASE("a late report of a candidate that is gone is taken and credited to nobody") {
  PopulationConfigurator configurator({.stream = Stream(15), .population = 2, .epsilon = 0.5});
  const auto assignments = configurator.assign(4);
  configurator.report(assignments[0], 2, 1);
  configurator.report(assignments[1], 1, 1);
  configurator.finish_round();
  const auto estimates = configurator.estimates();
  CHECK(estimates[0].configuration == assignments[0].configuration);
  CHECK(estimates[1].plays == 0);
  REQUIRE(assignments[3].ticket.arm == assignments[1].ticket.arm);
  configurator.report(assignments[3], 5, 1);
  configurator.finish_round();
  CHECK(configurator.estimates()[0].plays == 1);
  CHECK(configurator.estimates()[1].plays == 0);
}

TEST_CASE("one lucky report does not outrank many good ones") {
  CHECK(Estimate{{}, 1, 0.9}.merit() == doctest::Approx(0.7));
  CHECK(Estimate{{}, 9, 0.8}.merit() == doctest::Approx(0.77));
  CHECK(Estimate{}.merit() == 0.5);
}

TEST_CASE("rewards older than the window are forgotten") {
  PopulationConfigurator configurator(
      {.stream = Stream(16), .population = 4, .epsilon = 0, .window = 2});
  const auto plays = [&] {
    std::uint64_t sum = 0;
    for (const Estimate& estimate : configurator.estimates()) sum += estimate.plays;
    return sum;
  };
  for (int round = 0; round < 5; ++round) {
    for (const Assignment& each : configurator.assign(3)) configurator.report(each, 1, 1);
    configurator.finish_round();
    CHECK(plays() == (round == 0 ? 3 : 6));
  }
  configurator.finish_round();
  CHECK(plays() == 3);
  configurator.finish_round();
  CHECK(plays() == 0);
}

// Chance would put 2/7 of the plays in the best third of the grid.
TEST_CASE_TEMPLATE("a bandit on the grid finds its best third in 100 rounds of 5 devices", C,
                   UcbConfigurator, ThompsonConfigurator) {
  const World world = World::dropout_pays;
  const double third = best_third(world, configurations());
  double share = 0;
  int found = 0;
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    C configurator = make<C>(seed);
    const auto played = simulate(configurator, world, 100, seed);
    share += late_mean(played, [&](const auto& each) { return worth(world, each) >= third; }) / 20;
    found += worth(world, configurator.best()) >= third;
  }
  CHECK(share >= 0.6);
  CHECK(found >= 16);
}

TEST_CASE_TEMPLATE("where no dropout is best a bandit on the grid goes there", C, UcbConfigurator,
                   ThompsonConfigurator) {
  double share = 0;
  int found = 0;
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    C configurator = make<C>(seed);
    const auto played = simulate(configurator, World::dropout_hurts, 100, seed);
    share += late_mean(played, [](const auto& each) { return each.mean_rate == 0; }) / 20;
    found += configurator.best().mean_rate == 0;
  }
  CHECK(share >= 0.7);
  CHECK(found >= 18);
}

// Chance would put a third of the plays, and of the best candidates, in the best third of the
// space.
TEST_CASE("a population finds the best third of the continuous space in 100 rounds of 5 devices") {
  const World world = World::dropout_pays;
  const double third = best_third(world, continuous_space());
  double share = 0;
  int found = 0;
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    auto configurator = make<PopulationConfigurator>(seed);
    const auto played = simulate(configurator, world, 100, seed);
    share += late_mean(played, [&](const auto& each) { return worth(world, each) >= third; }) / 20;
    found += worth(world, configurator.best()) >= third;
  }
  CHECK(share >= 0.5);
  CHECK(found >= 17);
}

TEST_CASE("where no dropout is best a population goes to low rates") {
  double rate = 0;
  double best = 0;
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    auto configurator = make<PopulationConfigurator>(seed);
    const auto played = simulate(configurator, World::dropout_hurts, 100, seed);
    rate += late_mean(played, [](const auto& each) { return each.mean_rate; }) / 20;
    best += configurator.best().mean_rate / 20;
  }
  // Chance has 0.4; a quarter of the candidates are always fresh.
  CHECK(rate <= 0.25);
  CHECK(best <= 0.1);
}
