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
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "droppeft/bandit/any_selector.hpp"
#include "droppeft/bandit/exp3.hpp"
#include "droppeft/bandit/shared_prior.hpp"
#include "droppeft/bandit/thompson.hpp"
#include "droppeft/bandit/ucb.hpp"
#include "droppeft/random/stream.hpp"

using namespace droppeft;

namespace {

using Grid = ConfigurationGrid<Configuration>;
using UcbConfigurator = SelectorConfigurator<UcbSelector, Grid>;
using ThompsonConfigurator = SelectorConfigurator<ThompsonSelector, Grid>;

template <class C>
C make(std::uint64_t seed) {
  const Stream stream(seed);
  if constexpr (std::is_same_v<C, UcbConfigurator>)
    return C(UcbSelector(7, {.stream = stream, .policy = {.exploration = 0.1}}), configurations());
  else if constexpr (std::is_same_v<C, ThompsonConfigurator>)
    return C(ThompsonSelector(7, {.stream = stream, .policy = {.noise_sd = 0.2}}),
             configurations());
  else
    return population_configurator({.stream = stream});
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
    for (const auto& each : configurator.assign(5)) {
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
  PairedReward rule(2);
  std::uint64_t round = 0;
  const auto rewards = [&](std::vector<GainReport> reports) { return rule(round++, reports); };
  // Arm 0: 6 / 4, arm 1: 1 / 2; m = 7 / 6, deviations 1/3 and -2/3, s = sqrt(5 / 18).
  auto given = rewards({{{0, 0}, 1, 1}, {{1, 0}, 5, 3}, {{2, 1}, 1, 2}});
  CHECK(given.size() == 3);
  CHECK(given[0] == doctest::Approx(0.5 + 1 / (12 * std::sqrt(5.0 / 18))));
  CHECK(given[1] == given[0]);
  CHECK(given[2] == doctest::Approx(0.5 - 2 / (12 * std::sqrt(5.0 / 18))));

  // A round with one arm tells nothing.
  CHECK(rewards({{{3, 1}, -4, 2}})[0] == 0.5);

  // The window has forgotten the first round: m = 1, deviations 1 and -1.
  given = rewards({{{4, 1}, 2, 1}, {{5, 0}, 0, 1}});
  CHECK(given[0] == 0.75);
  CHECK(given[1] == 0.25);

  // No spread, no opinion.
  rewards({{{6, 1}, 1, 1}});
  CHECK(rewards({{{7, 1}, 1, 1}, {{8, 0}, 1, 1}})[0] == 0.5);
  CHECK(rewards({}).empty());
}

TEST_CASE("rewards are clipped to [0, 1]") {
  std::vector<GainReport> reports;
  for (std::uint64_t id = 0; id < 9; ++id) reports.push_back({{id, id}, id == 8 ? 100.0 : 0, 1});
  // m = 100/9, s = 100 sqrt(8)/9: 1/2 + 8/(4 sqrt(8)) > 1.
  CHECK(PairedReward()(0, reports)[8] == 1);
}

TEST_CASE("gain per second is just that") {
  const std::vector<GainReport> reports{{{0, 0}, 3, 2}, {{1, 1}, -1, 4}};
  CHECK(GainPerSecond()(0, reports) == std::vector{1.5, -0.25});
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
  for (const auto& each : configurator.assign(count)) arms.insert(each.ticket.arm);
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
  double plays = 0;
  for (const auto& estimate : configurator.estimates()) plays += estimate.plays;
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
  refuses("/version", 3);
  refuses("/epsilon", 0.5);
  refuses("/stream", "none");
  refuses("/round", "one");
  refuses("/rewarded", -1);
  refuses("/open/0/0", -1);
  refuses("/open/0/0", good["open"][0][0].template get<int>() + 1);
  refuses("/open", nlohmann::json::array());
  refuses("/reports", nlohmann::json::array());
  refuses("/reports/0/4", 0);
  refuses("/reports/0/3", nullptr);
  refuses("/rule/rule", "gain_per_second");
  refuses("/rule/window", 99);
  refuses("/rule/recent/0", nlohmann::json::array());
  refuses("/candidates", nlohmann::json::array());
  refuses("/candidates/0/shape", "linear");
  refuses("/candidates/0/mean_rate", 1.5);
  refuses("/candidates/0/mean_rate", 0.9);
  refuses("/selector/chooser/arms", 9);
  refuses("/selector/chooser/stream/0", -3);
  refuses(std::is_same_v<C, PopulationConfigurator> ? "/space/max_mean_rate" : "/space/0/mean_rate",
          0.1);
  for (const auto& [key, value] : good.items()) {
    auto bad = good;
    bad.erase(key);
    CHECK_THROWS_AS(other.load(bad), std::runtime_error);
  }
  CHECK(other.save() == before);
}

TEST_CASE("wrong arguments of the configurators are refused") {
  CHECK_THROWS_WITH_AS(SelectorConfigurator(UcbSelector(3), configurations()),
                       doctest::Contains("the selector must have 7 arms"), std::invalid_argument);
  CHECK_THROWS_AS(
      SelectorConfigurator(UcbSelector(1), std::vector{Configuration{RateShape::uniform, 0.99}}),
      std::invalid_argument);
  CHECK_THROWS_AS(PairedReward(0), std::invalid_argument);
  for (const PopulationOptions& bad :
       {PopulationOptions{.population = 1}, PopulationOptions{.epsilon = 1},
        PopulationOptions{.epsilon = std::nan("")}, PopulationOptions{.window = 0},
        PopulationOptions{.exploration = 1.1}})
    CHECK_THROWS_AS(population_configurator(bad), std::invalid_argument);
  for (const double bad : {0.96, -1.0, std::nan("")}) {
    CHECK_THROWS_AS(RateSpace{bad}, std::invalid_argument);
    CHECK_THROWS_AS(LayerRateSpace(4, bad), std::invalid_argument);
  }
  CHECK_THROWS_AS(RateSpace(0.5, {}), std::invalid_argument);
  CHECK_THROWS_AS(LayerRateSpace(0), std::invalid_argument);
  CHECK_THROWS_WITH_AS((SelectorConfigurator<UcbSelector, Grid>(UcbSelector(7), configurations(),
                                                                {.epsilon = 0.25})),
                       doctest::Contains("epsilon must be 0 with a space that has no fresh"),
                       std::invalid_argument);
}

TEST_CASE("a population begins with no dropout and candidates from the whole space") {
  const auto estimates =
      population_configurator({.population = 200, .space = RateSpace(0.6)}).estimates();
  CHECK(estimates[0].configuration == Configuration{});
  std::set<RateShape> shapes;
  double highest = 0;
  double sum = 0;
  for (const auto& estimate : estimates) {
    shapes.insert(estimate.configuration.shape);
    highest = std::max(highest, estimate.configuration.mean_rate);
    sum += estimate.configuration.mean_rate;
  }
  CHECK(shapes.size() == 4);
  CHECK(highest <= 0.6);
  // 198 means uniform in [0, 0.6].
  CHECK(std::abs((sum - 0.6 - 198 * 0.3) / (0.6 * std::sqrt(198 / 12.0))) <= 5);
}

TEST_CASE("rates of single layers have the mean that was drawn, uniform, and differ") {
  const LayerRateSpace space(12, 0.9);
  Stream stream(18);
  const auto candidates = space.candidates(400, stream);
  CHECK(candidates[0].drop_rates(12) == std::vector<double>(12, 0.0));
  CHECK(to_string(candidates[0]) == "none");
  double sum = 0;
  for (const LayerRates& each : candidates) {
    const auto rates = each.drop_rates(12);
    CHECK(*std::ranges::max_element(rates) <= 0.95);
    sum += each.mean();
  }
  CHECK(candidates[2].rates[0] != candidates[2].rates[1]);
  // 398 means uniform in [0, 0.9].
  CHECK(std::abs((sum - 0.9 - 398 * 0.45) / (0.9 * std::sqrt(398 / 12.0))) <= 5);
  CHECK_THROWS_WITH_AS(candidates[1].drop_rates(6),
                       doctest::Contains("there are rates for 12 layers, asked for 6"),
                       std::invalid_argument);
}

TEST_CASE("the worst share is replaced, once as many reports came as there are candidates") {
  auto configurator = population_configurator({.stream = Stream(14)});
  const auto before = configurator.estimates();
  const auto play = [&](std::size_t devices) {
    for (const auto& each : configurator.assign(devices))
      // A gain that ranks the candidates as they were listed.
      configurator.report(each, 10 - static_cast<double>(each.ticket.arm), 1);
    configurator.finish_round();
  };
  const auto kept = [&] {
    std::set<std::size_t> arms;
    for (const auto& estimate : configurator.estimates()) arms.insert(estimate.arm);
    return arms;
  };
  play(5);
  CHECK(kept() == std::set<std::size_t>{0, 1, 2, 3, 4, 5, 6, 7});
  play(3);
  // Two of eight are gone, two fresh ones there. Who is worst is judged within a round, by chance.
  CHECK(kept().size() == 8);
  CHECK(kept().contains(8));
  CHECK(kept().contains(9));
  CHECK(kept().contains(0));
  CHECK(configurator.estimates()[6].plays == 0);
  CHECK(configurator.estimates()[7].plays == 0);
}

TEST_CASE("in one round of all the worst go, but no dropout and the highest rate stay") {
  auto configurator = population_configurator({.stream = Stream(19)});  // tries all first
  for (const auto& each : configurator.assign(8))
    configurator.report(each, static_cast<double>(each.ticket.arm), 1);
  configurator.finish_round();
  std::vector<std::size_t> arms;
  for (const auto& estimate : configurator.estimates()) arms.push_back(estimate.arm);
  CHECK(arms == std::vector<std::size_t>{0, 1, 4, 5, 6, 7, 8, 9});
}

TEST_CASE("a late report of a candidate that is gone is taken and credited to nobody else") {
  auto configurator =
      population_configurator({.stream = Stream(15), .population = 3, .epsilon = 0.4});
  const auto assignments = configurator.assign(30);
  for (std::size_t i = 0; i < 3; ++i)  // the first three try the three candidates
    configurator.report(assignments[i], assignments[i].ticket.arm == 2 ? 0 : 1, 1);
  configurator.finish_round();
  REQUIRE(configurator.estimates()[2].arm == 3);
  std::size_t late = 0;
  for (std::size_t i = 3; i < 30; ++i)
    if (assignments[i].ticket.arm == 2) {
      configurator.report(assignments[i], 5, 1);
      ++late;
    }
  REQUIRE(late > 0);
  configurator.finish_round();
  for (const auto& each : configurator.estimates()) CHECK(each.plays == (each.arm == 3 ? 0 : 1));
}

TEST_CASE("one lucky report does not outrank many good ones") {
  SelectorConfigurator configurator(UcbSelector(3),
                                    configurations({0.5}, {RateShape::uniform, RateShape::decay}),
                                    GainPerSecond());
  const auto merits = [&] {
    std::vector<double> found;
    for (const auto& each : configurator.estimates()) found.push_back(each.merit);
    return found;
  };
  CHECK(merits() == std::vector<double>{0, 0, 0});
  for (const auto& each : configurator.assign(3))
    configurator.report(each, each.ticket.arm == 0 ? 0.9 : 0.3, 1);
  configurator.finish_round();
  // The mean of all is 0.5.
  CHECK(merits()[0] == doctest::Approx(0.7));
  CHECK(merits()[1] == doctest::Approx(0.4));
  CHECK(configurator.best() == Configuration{});
}

TEST_CASE("rewards older than the window are forgotten") {
  auto configurator =
      population_configurator({.stream = Stream(16), .population = 4, .epsilon = 0, .window = 6});
  for (int round = 0; round < 5; ++round) {
    for (const auto& each : configurator.assign(3)) configurator.report(each, 1, 1);
    configurator.finish_round();
    double plays = 0;
    for (const auto& estimate : configurator.estimates()) plays += estimate.plays;
    CHECK(plays == (round == 0 ? 3 : 6));
  }
}

TEST_CASE_TEMPLATE("a device is assigned nothing that it cannot hold", C, EVERY_CONFIGURATOR) {
  C configurator = make<C>(17);
  const std::vector<DeviceRequest> devices{{0, 0.5}, {1, 0}, {2, 0.6}};
  for (int round = 0; round < 30; ++round) {
    const auto assignments = configurator.assign(devices);
    for (std::size_t i = 0; i < devices.size(); ++i) {
      CHECK(assignments[i].configuration.mean() >= devices[i].least_rate);
      configurator.report(assignments[i], 1, 1);
    }
    configurator.finish_round();
  }
  const auto before = configurator.save();
  CHECK_THROWS_WITH_AS(configurator.assign(std::vector<DeviceRequest>{{0, 0}, {4, 0.94}}),
                       doctest::Contains("device 4 can hold mean drop rates of at least 0.94, but "
                                         "the highest of the candidates is "),
                       std::invalid_argument);
  for (const double bad : {-0.1, 0.96, std::nan("")})
    CHECK_THROWS_WITH_AS(configurator.assign(std::vector<DeviceRequest>{{0, bad}}),
                         doctest::Contains("least_rate must be in [0, 0.95]"),
                         std::invalid_argument);
  CHECK(configurator.save() == before);
}

TEST_CASE("what a rule or a selector refuses changes nothing") {
  SelectorConfigurator strict(UcbSelector(7), configurations(), GainPerSecond());
  const auto assignments = strict.assign(3);
  for (std::size_t i = 0; i < 3; ++i) strict.report(assignments[i], i == 1 ? 5 : 0.5, 1);
  const auto before = strict.save();
  for (int again = 0; again < 2; ++again)
    CHECK_THROWS_WITH_AS(strict.finish_round(),
                         doctest::Contains("reward must be in [0, 1], got 5"),
                         std::invalid_argument);
  CHECK(strict.save() == before);
  SelectorConfigurator(UcbSelector(7), configurations(), GainPerSecond()).load(before);

  struct Silent {
    std::vector<double> operator()(std::uint64_t, std::span<const GainReport>) const { return {}; }
    nlohmann::json save() const { return {}; }
    void load(const Saved&, std::uint64_t) {}
  };
  SelectorConfigurator silent(UcbSelector(7), configurations(), Silent());
  silent.report(silent.assign(1)[0], 1, 1);
  CHECK_THROWS_WITH_AS(silent.finish_round(), doctest::Contains("one reward a report, 1, got 0"),
                       std::invalid_argument);
}

TEST_CASE("a device that is not known opens nothing") {
  SelectorConfigurator configurator(SharedPriorSelector<GaussianThompson>(7, {0, 0}),
                                    configurations());
  const auto before = configurator.save();
  CHECK_THROWS_WITH_AS(configurator.assign({{.device = 0}, {.device = 5}}),
                       doctest::Contains("device must be below 2, got 5"), std::invalid_argument);
  CHECK_THROWS_AS(configurator.assign(3), std::invalid_argument);
  CHECK(configurator.save() == before);
  configurator.assign(2);
  for (const std::size_t device : {0U, 1U}) {
    double pending = 0;
    for (std::size_t arm = 0; arm < 7; ++arm)
      pending += static_cast<double>(configurator.selector().record(arm, device).pending);
    CHECK(pending == 2);
  }
}

TEST_CASE("grids hold different configurations that come back, and a state has arms to play") {
  CHECK_THROWS_WITH_AS(configurations({0.5, 0.5}), doctest::Contains("got uniform 0.5"),
                       std::invalid_argument);
  CHECK_THROWS_WITH_AS(ConfigurationGrid<Configuration>({{}, {}}),
                       doctest::Contains("'none' is there twice"), std::invalid_argument);
  CHECK_THROWS_WITH_AS(ConfigurationGrid<LayerRates>({LayerRates{{0.99, 0.1}}}),
                       doctest::Contains("[0, 0.95]"), std::invalid_argument);
  auto configurator = make<ThompsonConfigurator>(3);
  auto state = configurator.save();
  state["selector"]["chooser"]["active"] = nlohmann::json::array();
  CHECK_THROWS_WITH_AS(configurator.load(state), doctest::Contains("all arms are retired"),
                       std::runtime_error);
}

TEST_CASE("saved rates of another number of layers are refused") {
  SelectorConfigurator configurator(UcbSelector(4), LayerRateSpace(3), {.epsilon = 0.25});
  auto state = configurator.save();
  state["candidates"][2].push_back(0.5);
  CHECK_THROWS_WITH_AS(configurator.load(state),
                       doctest::Contains("there must be rates for 3 layers, got 4"),
                       std::runtime_error);
}

TEST_CASE("any space goes with any selector and any rule, and comes back bit for bit") {
  const auto check_all = [](auto make) {
    auto configurator = make();
    static_assert(Configurator<decltype(configurator)>);
    Stream noise(20);
    const auto play = [&](auto& each, Stream& stream) {
      for (const auto& assignment : each.assign(std::vector<DeviceRequest>{{0}, {1, 0.2}, {2}}))
        each.report(assignment, stream.uniform(), 1 - 0.5 * assignment.configuration.mean());
      each.finish_round();
    };
    for (int round = 0; round < 25; ++round) play(configurator, noise);
    const auto late = configurator.assign(2);
    auto resumed = make();
    resumed.load(nlohmann::json::parse(configurator.save().dump()));
    for (auto* each : {&configurator, &resumed}) {
      Stream stream(21);
      each->expire(late[0]);
      each->report(late[1], 0.5, 1);
      for (int round = 0; round < 25; ++round) play(*each, stream);
    }
    CHECK(configurator.save().dump() == resumed.save().dump());
    CHECK(configurator.estimates().size() == 6);
  };
  const auto shared = [] {
    return SharedPriorSelector<GaussianThompson>(6, {0, 0, 1}, {.discount = 0.95});
  };
  check_all([&] {
    return SelectorConfigurator(shared(), LayerRateSpace(4), {.epsilon = 0.2}, GainPerSecond());
  });
  check_all([&] { return SelectorConfigurator(shared(), RateSpace(), {.epsilon = 0.5}); });
  check_all([] {
    return SelectorConfigurator(AnySelector(UcbSelector(6, {.window = 40})), LayerRateSpace(3),
                                {.epsilon = 0.2});
  });
  check_all([] { return SelectorConfigurator(Exp3Selector(6), RateSpace(), {.epsilon = 0.2}); });
}

TEST_CASE("a selector that cannot choose among some serves devices that can hold all") {
  struct First {
    OpenTickets open;
    ArmRecord seen;
    std::uint64_t next = 0;
    Ticket select() {
      open.open({next, 0}, "First");
      ++seen.pending;
      return {next++, 0};
    }
    void update(const Ticket& ticket, double reward) {
      expire(ticket);
      seen.add(reward);
    }
    void expire(const Ticket& ticket) {
      open.close(ticket, "First");
      --seen.pending;
    }
    std::size_t arms() const { return 7; }
    ArmRecord record(std::size_t) const { return seen; }
    nlohmann::json save() const { return {}; }
    void load(const nlohmann::json&) {}
  };
  SelectorConfigurator configurator(First(), configurations());
  CHECK(configurator.assign(2).size() == 2);
  CHECK_THROWS_WITH_AS(configurator.assign(std::vector<DeviceRequest>{{0, 0.5}}),
                       doctest::Contains("cannot choose among some"), std::invalid_argument);
  CHECK_THROWS_AS(SelectorConfigurator(First(), RateSpace(), {.epsilon = 0.25}),
                  std::invalid_argument);
  CHECK_THROWS_WITH_AS(SelectorConfigurator(AnySelector(First()), RateSpace(), {.epsilon = 0.25}),
                       doctest::Contains("whose arms cannot be replaced"), std::invalid_argument);
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
