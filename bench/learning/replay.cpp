// Choosers of dropout rates, hundreds of runs of each, on recorded runs of fixed configurations
// (sweep.py). Needs no LibTorch.
//
// Each data set and seed is a world. In it, a configuration's run is a curve: the progress
// (smoothed accuracy over the target) after each of its rounds, made to rise (the highest so far,
// linear in between; past its end, if that came before the target, with the slope of its last
// third). Two rounds of a run are taken to differ by how far it had come, and not by what was
// played before: a round at progress x with configuration c brings what c's curve brings in one
// round from x, the mean of that over the devices where they play several; its gains are those that
// c's run reported there. Which devices a round has, and what they cost, is as recorded; so is the
// time that a pace takes. What the learning rate's decay by time does is not replayed.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <droppeft/bandit/epsilon_greedy.hpp>
#include <droppeft/bandit/kl_ucb.hpp>
#include <droppeft/bandit/thompson.hpp>
#include <droppeft/bandit/ucb.hpp>
#include <droppeft/configurator.hpp>
#include <droppeft/federated/pace.hpp>
#include <droppeft/pace_configurator.hpp>
#include <exception>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <numeric>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "bandit/command_line.hpp"

namespace {

using namespace droppeft;

constexpr const char* usage =
    R"(usage: replay --table FILE.csv [--runs N] [--seed S] [--out FILE.csv]

--table: what sweep.py wrote. --runs: of each chooser in each world, 200. --out: set, number of the
seed, chooser, kind (fixed, fixed replayed, replayed, live), time to the target over fedlora's whole
time, over that of the set's best fixed configuration, and the seed's median fixed one over it.
)";

/// A round of a recorded run.
struct Round {
  double end = 0;  // simulated seconds
  double progress = 0;
  std::vector<double> rates, gains;
  std::vector<RoundCost> costs;
};

/// A run of one method in one world.
struct Run {
  std::vector<Round> rounds;

  std::optional<double> seconds_to_target() const {
    for (const Round& round : rounds)
      if (round.progress >= 1) return round.end;
    return std::nullopt;
  }

  /// The progress that `more` rounds bring from progress x, and the round recorded there.
  std::pair<double, const Round*> after(double x, double more) const {
    // Knots of the rising curve: rounds played and progress.
    std::vector<std::pair<double, double>> knots{{0, 0}};
    for (std::size_t i = 0; i < rounds.size(); ++i)
      if (rounds[i].progress > knots.back().second)
        knots.emplace_back(static_cast<double>(i + 1), rounds[i].progress);
    const auto length = static_cast<double>(rounds.size());
    const auto at = [&](double place) {
      return interpolate(knots, place, [](const auto& knot) { return knot; });
    };
    const double slope = std::max(0.0, (knots.back().second - at(length * 2 / 3)) * 3 / length);
    const double end = knots.back().first;
    const double place =
        (x > knots.back().second
             ? end + (slope > 0 ? (x - knots.back().second) / slope : 0)
             : interpolate(knots, x,
                           [](const auto& knot) { return std::pair(knot.second, knot.first); })) +
        more;
    const double reached = place > end ? knots.back().second + slope * (place - end) : at(place);
    const auto index = static_cast<std::size_t>(std::clamp(std::ceil(place), 1.0, length)) - 1;
    return {std::max(x, reached), &rounds[index]};
  }

 private:
  template <class Knots, class Axes>
  static double interpolate(const Knots& knots, double x, const Axes& axes) {
    for (std::size_t i = 1; i < knots.size(); ++i) {
      const auto [x0, y0] = axes(knots[i - 1]);
      const auto [x1, y1] = axes(knots[i]);
      if (x <= x1) return y0 + (y1 - y0) * (x - x0) / (x1 - x0);
    }
    return axes(knots.back()).second;
  }
};

/// The runs of one data set and seed, by method.
struct World {
  std::map<std::string, Run> fixed, live;
  std::vector<const Round*> devices;  // a round each: who takes part and what it costs them

  /// The simulated seconds that all had at most.
  double limit() const { return fixed.at("none").rounds.back().end; }
};

using Worlds = std::map<std::pair<std::string, std::uint64_t>, World>;

/// What a method of the table names, if it is a fixed configuration.
std::optional<Configuration> configuration_of(const std::string& method) {
  if (method == "none") return Configuration{};
  Configuration found;
  std::istringstream text(method);
  std::string shape, more;
  if (!(text >> found.mean_rate)) return std::nullopt;
  if (text.get() == ':' && text >> shape) found.shape = parse_rate_shape(shape);
  return text >> more ? std::nullopt : std::optional(found);
}

std::vector<double> numbers(const std::string& list) {
  std::istringstream text(list);
  return {std::istream_iterator<double>(text), {}};
}

Worlds read(const std::string& file) {
  std::ifstream in(file);
  require(in.is_open(), "cannot read ", file);
  std::string line;
  std::getline(in, line);
  check(line.starts_with("set,seed,method,round,sim_seconds,accuracy,test_loss,progress,"), file,
        " must be a table of sweep.py, got the columns ", line);
  Worlds worlds;
  while (std::getline(in, line)) {
    std::vector<std::string> cells(1);
    for (const char letter : line)
      if (letter == ',')
        cells.emplace_back();
      else
        cells.back() += letter;
    check(cells.size() == 12, file, ": a row must have 12 cells, got ", line);
    Round round{std::stod(cells[4]), std::stod(cells[7]), numbers(cells[8]), numbers(cells[9]), {}};
    const auto layer = numbers(cells[10]), other = numbers(cells[11]);
    for (std::size_t i = 0; i < layer.size(); ++i)
      round.costs.push_back({.layer_seconds = layer[i], .other_seconds = other.at(i)});
    World& world = worlds[{cells[0], std::stoull(cells[1])}];
    auto& runs = configuration_of(cells[2]) ? world.fixed : world.live;
    runs[cells[2]].rounds.push_back(std::move(round));
  }
  for (auto& [key, world] : worlds) {
    check(world.fixed.contains("none"), file, ": ", key.first, " ", key.second,
          " has no run 'none'");
    const auto longest = std::ranges::max_element(
        world.fixed, {}, [](const auto& each) { return each.second.rounds.size(); });
    for (const Round& round : longest->second.rounds) world.devices.push_back(&round);
  }
  return worlds;
}

/// Plays a chooser until the target, or for fedlora's whole time, as the recorded runs; the
/// seconds. play(world, costs, progress) plays one round: its seconds and the progress after it.
using Play = std::function<std::pair<double, double>(const World&, const std::vector<RoundCost>&,
                                                     double progress)>;
double seconds_to_target(const World& world, const Play& play) {
  double seconds = 0, progress = 0;
  for (std::size_t round = 0; progress < 1 && seconds < world.limit(); ++round) {
    const auto [took, reached] =
        play(world, world.devices[round % world.devices.size()]->costs, progress);
    seconds += took;
    progress = reached;
  }
  return std::min(seconds, world.limit());
}

Play fixed(const std::string& method) {
  return [method](const World& world, const std::vector<RoundCost>& costs, double progress) {
    return std::pair(round_seconds(costs, configuration_of(method)->mean_rate),
                     world.fixed.at(method).after(progress, 1).first);
  };
}

/// The fixed configuration of a world with this mean rate and the plainest shape.
const Run& run_at(const World& world, double rate) {
  for (const auto& [method, run] : world.fixed)
    if (const auto found = *configuration_of(method);
        found.shape == RateShape::uniform && std::abs(found.mean_rate - rate) < 0.01)
      return run;
  throw std::invalid_argument("replay: the table has no run at rate " + std::to_string(rate));
}

Play pace(const PaceOptions& options) {
  return [chooser = PaceConfigurator(options)](
             const World& world, const std::vector<RoundCost>& costs, double progress) mutable {
    const double rate = chooser.choose(costs);
    const auto [reached, round] = run_at(world, rate).after(progress, 1);
    chooser.report(round->rates, round->gains);
    return std::pair(round_seconds(costs, rate), reached);
  };
}

/// A bandit on the world's fixed configurations, one for each device, each setting its own pace.
template <class S>
Play bandit(const World& world, const std::function<S(std::size_t arms)>& make) {
  std::vector<std::string> methods;
  std::vector<Configuration> grid;
  for (const auto& [method, run] : world.fixed) {
    methods.push_back(method);
    grid.push_back(*configuration_of(method));
  }
  return [methods, chooser = SelectorConfigurator(make(grid.size()), grid)](
             const World& here, const std::vector<RoundCost>& costs, double progress) mutable {
    double slowest = 0, reached = 0;
    const auto assignments = chooser.assign(costs.size());
    for (std::size_t i = 0; i < costs.size(); ++i) {
      const double deadline = round_seconds(costs, assignments[i].configuration.mean_rate);
      slowest = std::max(slowest, costs[i].seconds(costs[i].drop_rate(deadline)));
      const auto [after, round] =
          here.fixed.at(methods[assignments[i].ticket.arm]).after(progress, 1);
      reached += after / static_cast<double>(costs.size());
      chooser.report(assignments[i], round->gains.at(i), deadline / round_seconds(costs, 0));
    }
    chooser.finish_round();
    return std::pair(slowest, reached);
  };
}

const std::map<std::string, std::function<Play(const World&, const Stream&)>> choosers{
    {"pace", [](const World&, const Stream& stream) { return pace({.stream = stream}); }},
    {"pace by its prior",
     [](const World&, const Stream& stream) {
       return pace({.stream = stream, .prior_reports = 1e9});
     }},
    {"thompson",
     [](const World& world, const Stream& stream) {
       return bandit<ThompsonSelector>(world, [&](std::size_t arms) {
         return ThompsonSelector(arms, {.stream = stream, .policy = {.noise_sd = 0.2}});
       });
     }},
    {"ucb",
     [](const World& world, const Stream& stream) {
       return bandit<UcbSelector>(world, [&](std::size_t arms) {
         return UcbSelector(arms, {.stream = stream, .policy = {.exploration = 0.1}});
       });
     }},
    {"by lot",
     [](const World& world, const Stream& stream) {
       return bandit<EpsilonGreedySelector>(world, [&](std::size_t arms) {
         return EpsilonGreedySelector(arms, {.stream = stream, .policy = {.epsilon = 1}});
       });
     }},
};

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

/// Half of the 95 % interval of a mean, Student's t.
double half_interval(const std::vector<double>& values) {
  constexpr double t95[] = {12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306,
                            2.262,  2.228, 2.201, 2.179, 2.160, 2.145, 2.131};
  if (values.size() < 2) return std::nan("");
  double squares = 0;
  for (const double value : values) squares += std::pow(value - mean(values), 2);
  const auto n = static_cast<double>(values.size());
  const double t = values.size() - 2 < std::size(t95) ? t95[values.size() - 2] : 1.96;
  return t * std::sqrt(squares / (n - 1) / n);
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  const std::size_t n = values.size();
  return (values[(n - 1) / 2] + values[n / 2]) / 2;
}

/// The times of one method in the worlds of a set, in shares of fedlora's whole time.
using Times = std::map<std::string, std::vector<double>>;

void replay(const Worlds& worlds, std::uint64_t runs, std::uint64_t seed, std::ostream& out) {
  std::map<std::string, std::vector<const World*>> sets;
  for (const auto& [key, world] : worlds) sets[key.first].push_back(&world);
  std::map<std::string, std::vector<double>> to_best, to_median;
  for (const auto& [set, members] : sets) {
    // A run that did not get there is counted with the whole time that it had.
    Times recorded, again, live;
    for (const World* world : members) {
      for (const auto& [method, run] : world->fixed) {
        recorded[method].push_back(run.seconds_to_target().value_or(world->limit()) /
                                   world->limit());
        again[method].push_back(seconds_to_target(*world, fixed(method)) / world->limit());
      }
      for (const auto& [method, run] : world->live)
        live[method].push_back(run.seconds_to_target().value_or(world->limit()) / world->limit());
    }
    Times replayed;
    for (const auto& [name, make] : choosers)
      for (std::size_t i = 0; i < members.size(); ++i) {
        std::vector<double> times;
        for (std::uint64_t run = 0; run < runs; ++run)
          times.push_back(
              seconds_to_target(*members[i], make(*members[i], Stream(seed).fold(i).fold(run))) /
              members[i]->limit());
        replayed[name].push_back(mean(times));
      }

    const auto mean_time = [](const auto& each) { return mean(each.second); };
    const auto best = std::ranges::min_element(recorded, {}, mean_time);
    std::vector<double> medians;
    for (std::size_t i = 0; i < members.size(); ++i) {
      std::vector<double> all;
      for (const auto& [method, times] : recorded) all.push_back(times[i]);
      medians.push_back(median(all));
    }
    std::printf(
        "\n### %s, %zu seeds; best fixed: %s\n\n| | time to the target / fedlora's whole time | "
        "/ best fixed | median fixed / this |\n|---|---|---|---|\n",
        set.c_str(), members.size(), best->first.c_str());
    const auto rows = [&](const Times& times, const char* kind) {
      for (const auto& [name, values] : times) {
        std::vector<double> over_best, under_median;
        for (std::size_t i = 0; i < values.size(); ++i) {
          over_best.push_back(values[i] / best->second[i]);
          under_median.push_back(medians[i] / values[i]);
          out << set << ',' << i << ',' << name << ',' << kind << ',' << values[i] << ','
              << over_best.back() << ',' << under_median.back() << '\n';
        }
        std::printf("| %s, %s | %.2f ± %.2f | %.2f ± %.2f | %.2f ± %.2f |\n", name.c_str(), kind,
                    mean(values), half_interval(values), mean(over_best), half_interval(over_best),
                    mean(under_median), half_interval(under_median));
        auto& all_best = to_best[name + ", " + kind];
        auto& all_median = to_median[name + ", " + kind];
        all_best.insert(all_best.end(), over_best.begin(), over_best.end());
        all_median.insert(all_median.end(), under_median.begin(), under_median.end());
      }
    };
    rows(recorded, "fixed");
    rows(again, "fixed replayed");
    rows(replayed, "replayed");
    rows(live, "live");
  }
  std::printf(
      "\n### all worlds\n\n| | / best fixed | median fixed / this | worlds |\n|---|---|---|---|\n");
  for (const auto& [name, values] : to_best)
    std::printf("| %s | %.2f ± %.2f | %.2f ± %.2f | %zu |\n", name.c_str(), mean(values),
                half_interval(values), mean(to_median.at(name)), half_interval(to_median.at(name)),
                values.size());
}

}  // namespace

int main(int count, char** arguments) try {
  std::string table, out;
  std::uint64_t runs = 200, seed = 0;
  bench::read_options(count, arguments, usage, {{"--table", &table}, {"--out", &out}},
                      {{"--runs", &runs}, {"--seed", &seed}});
  droppeft::check(!table.empty() && runs >= 2, usage);
  std::ofstream file = bench::create(out, "set,world,chooser,kind,time,over_best,median_over\n");
  replay(read(table), runs, seed, file);
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
