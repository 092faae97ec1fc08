// The regret of every selector over time, on problems whose arms are known: sums of the gaps
// between the best arm and the arm played, means over runs. Needs no LibTorch.
//
// Rewards come from a table that is a pure function of seed, run, time and arm, so that all
// policies, and other programs through --table, meet the same ones; the numbers do not depend on
// the threads.
//
//   bernoulli2   means .9 and .8
//   bernoulli10  means .1, three .05, three .02, three .01 (Garivier, Cappe, COLT 2011)
//   gaussian     normal rewards of sd .25, means .6 .5 .45 .4 .3; what needs [0, 1] scales the
//   rewards
//                by the lowest and highest so far, and what is told the sd knows it
//   many         100 Bernoulli arms, means from .1 to .9
//   drifting     Bernoulli, means .8 .5 .3, moved on by one arm at T / 3 and at 2 T / 3
//   delayed      bernoulli10; rewards come after 1 + a geometric number of plays, 100 in the mean
//   batch        bernoulli10; 1,000 plays are chosen, then their rewards come
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <droppeft/bandit/epsilon_greedy.hpp>
#include <droppeft/bandit/exp3.hpp>
#include <droppeft/bandit/kl_ucb.hpp>
#include <droppeft/bandit/moss.hpp>
#include <droppeft/bandit/softmax.hpp>
#include <droppeft/bandit/thompson.hpp>
#include <droppeft/bandit/ucb.hpp>
#include <droppeft/bandit/ucb_tuned.hpp>
#include <droppeft/bandit/ucb_v.hpp>
#include <exception>
#include <fstream>
#include <functional>
#include <iostream>
#include <numbers>
#include <queue>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "command_line.hpp"

namespace {

using namespace droppeft;

constexpr const char* usage =
    R"(usage: regret [--problem NAME|all] [--policy NAME|all] [--horizon T] [--runs N] [--seed S]
              [--threads N] [--out FILE.csv] [--each FILE.csv] [--table FILE]

--out: problem, policy, t, mean regret, half of its 95 % interval (normal over runs), and the bound
of Lai and Robbins, empty where it does not apply. --each: regret at T and nanoseconds per play of
each run. --table: the rewards of a Bernoulli problem as bytes, [run][t][arm]; plays nothing.
Problems: bernoulli2, bernoulli10, gaussian, many, drifting, delayed, batch.
)";

struct Settings {
  std::string problem = "all", policy = "all", out, each, table;
  std::uint64_t horizon = 10000, runs = 20, seed = 0, threads = 1;
};

Settings read_settings(int count, char** arguments) {
  Settings settings;
  bench::read_options(count, arguments, usage,
                      {{"--problem", &settings.problem},
                       {"--policy", &settings.policy},
                       {"--out", &settings.out},
                       {"--each", &settings.each},
                       {"--table", &settings.table}},
                      {{"--horizon", &settings.horizon},
                       {"--runs", &settings.runs},
                       {"--seed", &settings.seed},
                       {"--threads", &settings.threads}});
  check(settings.horizon >= 2 && settings.runs >= 2 && settings.threads >= 1,
        "regret: --horizon and --runs must be at least 2, --threads at least 1");
  check(settings.table.empty() || settings.problem != "all", "regret: --table is of one --problem");
  return settings;
}

enum class Feedback { at_once, delayed, batch };

struct Problem {
  std::string name;
  std::vector<double> means;
  double sd = 0;                  // of normal rewards; 0: Bernoulli
  std::uint64_t moves_after = 0;  // plays after which the means move on by one arm; 0: never
  Feedback feedback = Feedback::at_once;

  std::size_t arms() const { return means.size(); }
  double best() const { return std::ranges::max(means); }
  double mean(std::size_t arm, std::uint64_t t) const {
    const std::size_t moved = moves_after == 0 ? 0 : static_cast<std::size_t>(t / moves_after);
    return means[(arm + moved) % arms()];
  }

  /// What the bound of Lai and Robbins has in front of ln t; 0 where it does not apply.
  double lai_robbins() const {
    if (moves_after > 0) return 0;
    double sum = 0;
    for (const double mean : means) {
      const double gap = best() - mean;
      if (gap == 0) continue;
      const double divergence = sd > 0 ? gap * gap / (2 * sd * sd)
                                       : mean * std::log(mean / best()) +
                                             (1 - mean) * std::log((1 - mean) / (1 - best()));
      sum += gap / divergence;
    }
    return sum;
  }
};

std::vector<Problem> problems(std::uint64_t horizon) {
  const std::vector<double> ten{.1, .05, .05, .05, .02, .02, .02, .01, .01, .01};
  std::vector<double> hundred;
  for (int i = 0; i < 100; ++i) hundred.push_back(.1 + .8 * i / 99);
  return {{.name = "bernoulli2", .means = {.9, .8}},
          {.name = "bernoulli10", .means = ten},
          {.name = "gaussian", .means = {.6, .5, .45, .4, .3}, .sd = .25},
          {.name = "many", .means = hundred},
          {.name = "drifting", .means = {.8, .5, .3}, .moves_after = horizon / 3 + 1},
          {.name = "delayed", .means = ten, .feedback = Feedback::delayed},
          {.name = "batch", .means = ten, .feedback = Feedback::batch}};
}

/// The rewards of a run, and the delays: word t (arms + 1) + arm of SplitMix64, the last one of
/// each t for the delay.
class Table {
 public:
  Table(const Problem& problem, std::uint64_t seed, std::uint64_t run) : problem_(problem) {
    Stream stream = Stream(seed).fold(run);
    key_ = (std::uint64_t{stream()} << 32) | stream();
  }

  double reward(std::uint64_t t, std::size_t arm) const {
    const std::uint64_t random = word(t, arm);
    const double mean = problem_.mean(arm, t);
    const double high = (static_cast<double>(random >> 32) + 0.5) * 0x1p-32;
    if (problem_.sd == 0) return high < mean ? 1 : 0;
    const double low = static_cast<double>(random & 0xFFFFFFFF) * 0x1p-32;
    return mean +
           problem_.sd * std::sqrt(-2 * std::log(high)) * std::cos(2 * std::numbers::pi * low);
  }

  std::uint64_t delay(std::uint64_t t) const {
    const double random = (static_cast<double>(word(t, problem_.arms()) >> 32) + 0.5) * 0x1p-32;
    return static_cast<std::uint64_t>(std::log(random) / std::log1p(-1.0 / 101));
  }

 private:
  std::uint64_t word(std::uint64_t t, std::size_t arm) const {
    std::uint64_t z = key_ + (t * (problem_.arms() + 1) + arm + 1) * 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
  }

  const Problem& problem_;
  std::uint64_t key_;
};

/// Five a decade, and the last.
std::vector<std::uint64_t> checkpoints(std::uint64_t horizon) {
  std::vector<std::uint64_t> times;
  for (int i = 0;; ++i) {
    const auto t = static_cast<std::uint64_t>(std::llround(std::pow(10, i / 5.0)));
    if (t >= horizon) break;
    if (times.empty() || t > times.back()) times.push_back(t);
  }
  times.push_back(horizon);
  return times;
}

struct Run {
  std::vector<double> regret;  // at each checkpoint
  double nanoseconds = 0;      // of a play
};

template <class S>
Run simulate(const Problem& problem, const Table& table, S selector,
             const std::vector<std::uint64_t>& times) {
  Run run;
  double regret = 0;
  std::vector<std::pair<Ticket, double>> batch;
  struct Due {
    std::uint64_t time;
    Ticket ticket;
    double reward;
    bool operator>(const Due& other) const {
      return std::pair(time, ticket.id) > std::pair(other.time, other.ticket.id);
    }
  };
  std::priority_queue<Due, std::vector<Due>, std::greater<>> due;
  const auto start = std::chrono::steady_clock::now();
  for (std::uint64_t t = 0; t < times.back(); ++t) {
    const Ticket ticket = selector.select();
    const double reward = table.reward(t, ticket.arm);
    regret += problem.best() - problem.mean(ticket.arm, t);
    if (problem.feedback == Feedback::at_once) {
      selector.update(ticket, reward);
    } else if (problem.feedback == Feedback::delayed) {
      due.push({t + table.delay(t), ticket, reward});
      for (; !due.empty() && due.top().time <= t; due.pop())
        selector.update(due.top().ticket, due.top().reward);
    } else {
      batch.emplace_back(ticket, reward);
      if (batch.size() == 1000) {
        for (const auto& [its_ticket, its_reward] : batch) selector.update(its_ticket, its_reward);
        batch.clear();
      }
    }
    if (t + 1 == times[run.regret.size()]) run.regret.push_back(regret);
  }
  const std::chrono::duration<double, std::nano> taken = std::chrono::steady_clock::now() - start;
  run.nanoseconds = taken.count() / static_cast<double>(times.back());
  return run;
}

struct Player {
  std::string name;
  std::function<Run(const Table&, const Stream&, const std::vector<std::uint64_t>&)> play;
};

template <class Policy>
Player player(const Problem& problem, const std::string& name,
              SelectorOptions<Policy> options = {}) {
  if (problem.sd > 0 && Policy::min_reward == 0) options.range = RewardRange::unknown();
  return {name, [=, &problem](const Table& table, const Stream& stream,
                              const std::vector<std::uint64_t>& times) {
            auto its_options = options;
            its_options.stream = stream;
            return simulate(problem, table, BanditSelector<Policy>(problem.arms(), its_options),
                            times);
          }};
}

std::vector<Player> players(const Problem& problem, std::uint64_t horizon) {
  const auto plays = static_cast<double>(horizon), arms = static_cast<double>(problem.arms());
  const double sd = problem.sd > 0 ? problem.sd : 0.5;
  const double exp3 = std::sqrt(arms * std::log(arms) / ((std::numbers::e - 1) * plays));
  std::vector<Player> all{
      player<Ucb1>(problem, "UCB1"),
      player<Ucb1>(problem, "UCB1 c=0.5", {.policy = {.exploration = 0.5}}),
      player<UcbV>(problem, "UCB-V"),
      player<UcbTuned>(problem, "UCB-tuned"),
      player<Moss>(problem, "MOSS"),
      player<Moss>(problem, "MOSS T", {.policy = {.horizon = plays}}),
      player<KlUcb>(problem, "KL-UCB"),
      player<GaussianKlUcb>(problem, "Gaussian KL-UCB", {.policy = {.noise_sd = sd}}),
      player<BetaThompson>(problem, "Beta Thompson"),
      player<GaussianThompson>(problem, "Gaussian Thompson", {.policy = {.noise_sd = sd}}),
      player<NormalInverseGammaThompson>(problem, "NIG Thompson"),
      player<EpsilonGreedy>(problem, "epsilon-greedy"),
      player<Softmax>(problem, "softmax"),
      player<Exp3>(problem, "EXP3", {.policy = {.exploration = std::min(1.0, exp3)}})};
  if (problem.moves_after == 0) return all;

  // The window and the discount of Garivier, Moulines, ALT 2011, for two changes in T plays.
  const auto window = static_cast<std::size_t>(2 * std::sqrt(plays * std::log(plays) / 2)) + 1;
  const double discount = 1 - std::sqrt(2 / plays) / 4;
  all.push_back(
      player<Ucb1>(problem, "window UCB1", {.window = window, .policy = {.exploration = 0.5}}));
  all.push_back(player<KlUcb>(problem, "window KL-UCB", {.window = window}));
  all.push_back(player<BetaThompson>(problem, "window Beta Thompson", {.window = window}));
  all.push_back(player<Ucb1>(problem, "discounted UCB1", {.discount = discount}));
  all.push_back(player<KlUcb>(problem, "discounted KL-UCB", {.discount = discount}));
  all.push_back(player<BetaThompson>(problem, "discounted Beta Thompson", {.discount = discount}));
  return all;
}

/// Calls function(i) for all i below count, from several threads; rethrows one of the exceptions.
template <class Function>
void in_parallel(std::size_t count, std::size_t threads, const Function& function) {
  std::atomic<std::size_t> next = 0;
  std::vector<std::exception_ptr> failures(threads);
  std::vector<std::thread> workers;
  for (std::exception_ptr& failure : failures)
    workers.emplace_back([&] {
      try {
        for (std::size_t i; (i = next++) < count;) function(i);
      } catch (...) {
        failure = std::current_exception();
      }
    });
  for (std::thread& worker : workers) worker.join();
  for (const std::exception_ptr& failure : failures)
    if (failure) std::rethrow_exception(failure);
}

void write_table(const Problem& problem, const Settings& settings) {
  check(problem.sd == 0, "regret: --table is for Bernoulli problems, not ", problem.name);
  std::ofstream file = bench::create(settings.table, "");
  std::string bytes(settings.horizon * problem.arms(), '\0');
  for (std::uint64_t run = 0; run < settings.runs; ++run) {
    const Table table(problem, settings.seed, run);
    auto byte = bytes.begin();
    for (std::uint64_t t = 0; t < settings.horizon; ++t)
      for (std::size_t arm = 0; arm < problem.arms(); ++arm)
        *byte++ = static_cast<char>(table.reward(t, arm));
    file << bytes;
  }
  require(file.good(), "regret: cannot write ", settings.table);
}

/// False when none of the problem's policies has the name asked for.
bool study(const Problem& problem, const Settings& settings, std::ostream& out,
           std::ostream& each) {
  const auto times = checkpoints(settings.horizon);
  const auto all = players(problem, settings.horizon);
  bool known = false;
  for (std::size_t index = 0; index < all.size(); ++index) {
    const Player& player = all[index];
    if (settings.policy != "all" && settings.policy != player.name) continue;
    known = true;
    std::vector<Run> runs(settings.runs);
    in_parallel(runs.size(), settings.threads, [&](std::size_t run) {
      runs[run] = player.play(Table(problem, settings.seed, run),
                              Stream(settings.seed).fold(run).fold(index), times);
    });
    const auto count = static_cast<double>(runs.size());
    double nanoseconds = 0, mean = 0, half = 0;
    for (const Run& run : runs) nanoseconds += run.nanoseconds / count;
    for (std::size_t i = 0; i < times.size(); ++i) {
      mean = 0;
      double variance = 0;
      for (const Run& run : runs) mean += run.regret[i] / count;
      for (const Run& run : runs) variance += std::pow(run.regret[i] - mean, 2) / (count - 1);
      half = 1.96 * std::sqrt(variance / count);
      out << problem.name << ',' << player.name << ',' << times[i] << ',' << mean << ',' << half
          << ',';
      if (problem.lai_robbins() > 0)
        out << problem.lai_robbins() * std::log(static_cast<double>(times[i]));
      out << '\n';
    }
    for (std::size_t run = 0; run < runs.size(); ++run)
      each << problem.name << ',' << player.name << ',' << run << ',' << runs[run].regret.back()
           << ',' << runs[run].nanoseconds << '\n';
    std::printf("%-12s %-25s %9.1f +- %6.1f  %7.0f ns per play\n", problem.name.c_str(),
                player.name.c_str(), mean, half, nanoseconds);
    std::fflush(stdout);
  }
  if (problem.lai_robbins() > 0)
    std::printf("%-12s %-25s %9.1f\n", problem.name.c_str(), "bound of Lai and Robbins",
                problem.lai_robbins() * std::log(static_cast<double>(settings.horizon)));
  return known;
}

}  // namespace

int main(int count, char** arguments) try {
  const Settings settings = read_settings(count, arguments);
  std::ofstream out =
      bench::create(settings.out, "problem,policy,t,regret,half_interval,lai_robbins\n");
  std::ofstream each = bench::create(settings.each, "problem,policy,run,regret,ns_per_play\n");
  bool known = false;
  for (const Problem& problem : problems(settings.horizon)) {
    if (settings.problem != "all" && settings.problem != problem.name) continue;
    if (settings.table.empty()) {
      known = study(problem, settings, out, each) || known;
    } else {
      write_table(problem, settings);
      known = true;
    }
  }
  check(known, "regret: there is no problem ", settings.problem, " with policy ", settings.policy);
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
