// The regret of the selectors with a linear model an arm, where rewards are linear in a context,
// and what one without contexts loses there. Needs no LibTorch.
//
// 10 arms, contexts of 8 numbers: a constant 1 and seven normal ones. Each run draws the arms'
// weights from N(0, 1 / 8), the noise has sd .5 and is the same for all arms. Regret: sum of the
// gaps between the best arm for the context and the arm played. All policies, and other programs
// through --table, meet the same contexts and rewards.
#include <algorithm>
#include <boost/random/normal_distribution.hpp>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <droppeft/bandit/linear.hpp>
#include <droppeft/bandit/thompson.hpp>
#include <exception>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "command_line.hpp"

namespace {

using namespace droppeft;

constexpr const char* usage =
    R"(usage: contextual [--horizon T] [--runs N] [--seed S] [--each FILE.csv] [--table FILE]

--each: regret at T and nanoseconds per play of each run. --table: what the runs meet as doubles,
[run][t][the context, rewards of the arms, gaps of the arms]; plays nothing.
)";

struct Settings {
  std::string each, table;
  std::uint64_t horizon = 10000, runs = 200, seed = 0;
};

Settings read_settings(int count, char** arguments) {
  Settings settings;
  bench::read_options(
      count, arguments, usage, {{"--each", &settings.each}, {"--table", &settings.table}},
      {{"--horizon", &settings.horizon}, {"--runs", &settings.runs}, {"--seed", &settings.seed}});
  check(settings.horizon >= 10 && settings.runs >= 2,
        "contextual: --horizon must be at least 10, --runs at least 2");
  return settings;
}

constexpr std::size_t arms = 10, dimension = 8;
constexpr double noise = 0.5;

/// What a play meets.
struct Row {
  double context[dimension], reward[arms], gap[arms];
};
static_assert(sizeof(Row) == (dimension + 2 * arms) * sizeof(double));

std::vector<Row> rows_of(const Settings& settings, std::uint64_t run) {
  Stream stream = Stream(settings.seed).fold(run);
  const auto normal = [&] { return boost::random::normal_distribution<double>()(stream); };
  double weights[arms][dimension];
  for (auto& its_weights : weights)
    for (double& weight : its_weights)
      weight = normal() / std::sqrt(static_cast<double>(dimension));
  std::vector<Row> rows(settings.horizon);
  for (Row& row : rows) {
    row.context[0] = 1;
    for (std::size_t i = 1; i < dimension; ++i) row.context[i] = normal();
    for (std::size_t arm = 0; arm < arms; ++arm) {
      row.reward[arm] = 0;
      for (std::size_t i = 0; i < dimension; ++i)
        row.reward[arm] += weights[arm][i] * row.context[i];
    }
    const double best = std::ranges::max(row.reward), its_noise = noise * normal();
    for (std::size_t arm = 0; arm < arms; ++arm) {
      row.gap[arm] = best - row.reward[arm];
      row.reward[arm] += its_noise;
    }
  }
  return rows;
}

void write_table(const Settings& settings) {
  std::ofstream file = bench::create(settings.table, "");
  for (std::uint64_t run = 0; run < settings.runs; ++run) {
    const auto rows = rows_of(settings, run);
    file.write(reinterpret_cast<const char*>(rows.data()),
               static_cast<std::streamsize>(rows.size() * sizeof(Row)));
  }
  require(file.good(), "contextual: cannot write ", settings.table);
}

/// make(stream) is a new selector; prints the regret at a tenth of the horizon and at the horizon.
template <class Make>
void study(const std::string& name, std::uint64_t index, const Make& make, const Settings& settings,
           std::ostream& each) {
  const auto runs = static_cast<double>(settings.runs),
             plays = static_cast<double>(settings.horizon);
  double sums[2] = {}, squares[2] = {}, nanoseconds = 0;
  for (std::uint64_t run = 0; run < settings.runs; ++run) {
    const auto rows = rows_of(settings, run);
    auto selector = make(Stream(settings.seed).fold(run).fold(index));
    double regret = 0, early_regret = 0;
    const auto start = std::chrono::steady_clock::now();
    for (std::uint64_t t = 0; t < settings.horizon; ++t) {
      const Row& row = rows[t];
      if (t == settings.horizon / 10) early_regret = regret;
      Ticket ticket;
      if constexpr (ContextualSelector<decltype(selector)>)
        ticket = selector.select(row.context);
      else
        ticket = selector.select();
      regret += row.gap[ticket.arm];
      selector.update(ticket, row.reward[ticket.arm]);
    }
    const std::chrono::duration<double, std::nano> taken = std::chrono::steady_clock::now() - start;
    nanoseconds += taken.count() / plays / runs;
    each << name << ',' << run << ',' << regret << ',' << taken.count() / plays << '\n';
    for (const int place : {0, 1}) {
      const double its_regret = place == 0 ? early_regret : regret;
      sums[place] += its_regret;
      squares[place] += its_regret * its_regret;
    }
  }
  std::printf("%-36s", name.c_str());
  for (const int place : {0, 1}) {
    const double mean = sums[place] / runs;
    const double variance = (squares[place] / runs - mean * mean) * runs / (runs - 1);
    std::printf(" %9.1f +- %6.1f", mean, 1.96 * std::sqrt(variance / runs));
  }
  std::printf(" %7.0f\n", nanoseconds);
  std::fflush(stdout);
}

void study_all(const Settings& settings) {
  std::ofstream each = bench::create(settings.each, "policy,run,regret,ns_per_play\n");
  std::cout << settings.runs << " runs; regret after " << settings.horizon / 10 << " and "
            << settings.horizon << " plays, 95 % interval; ns a play" << std::endl;
  std::uint64_t index = 0;
  for (const char* alpha : {"1", "0.5", "0.25"})
    study(
        std::string("LinUCB alpha=") + alpha, index++,
        [&](Stream stream) {
          return LinUcbSelector(arms, dimension,
                                {.stream = stream, .policy = {.alpha = std::stod(alpha)}});
        },
        settings, each);
  study(
      "linear Thompson", index++,
      [&](Stream stream) {
        return LinThompsonSelector(arms, dimension,
                                   {.stream = stream, .policy = {.noise_sd = noise}});
      },
      settings, each);
  const auto without_contexts = [](double noise_sd) {
    return [=](Stream stream) {
      return ThompsonSelector(
          arms,
          {.stream = stream, .policy = {.prior_mean = 0, .prior_sd = 1, .noise_sd = noise_sd}});
    };
  };
  study("Gaussian Thompson without contexts", index++, without_contexts(1.1), settings, each);
  study("any arm", index++, without_contexts(1e9), settings, each);
}

}  // namespace

int main(int count, char** arguments) try {
  const Settings settings = read_settings(count, arguments);
  if (settings.table.empty())
    study_all(settings);
  else
    write_table(settings);
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
