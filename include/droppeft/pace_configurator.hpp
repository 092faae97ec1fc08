#pragma once

#include <algorithm>
#include <boost/random/normal_distribution.hpp>
#include <cmath>
#include <cstddef>
#include <limits>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>
#include <vector>

#include "droppeft/bandit/saved.hpp"
#include "droppeft/core/check.hpp"
#include "droppeft/federated/pace.hpp"
#include "droppeft/random/stream.hpp"

namespace droppeft {

/// Settings of a PaceConfigurator.
struct PaceOptions {
  /// Source of all its random numbers. The default is the same stream every time.
  Stream stream{};
  /// The mean drop rates among which it chooses: ascending, in [0, 0.95], the first being 0.
  std::vector<double> rates{0, 1.0 / 3, 2.0 / 3, 5.0 / 6};
  /// Standard deviation of a device's gain, in units of the gain at full depth: finite, above 0.
  double noise_sd = 0.6;
  /// Reports that the prior is worth: finite, above 0.
  double prior_reports = 2;
  /// What an old report counts for after each further round, in (0, 1]: gains drift.
  double discount = 0.98;
};

/// Finds the pace of synchronous rounds that gains the most per second, knowing what a pace costs
/// and learning what it gains.
///
///     PaceConfigurator chooser;
///     const double deadline = round_seconds(costs, chooser.choose(costs));
///     ... each device i trains with the mean drop rate costs[i].drop_rate(deadline) ...
///     chooser.report(rates, agreement(updates, examples));
///
/// A round whose devices drop at rates r_i gains in proportion to sum_i g(r_i), g falling from g(0)
/// = 1, and lasts T(p) = round_seconds(costs, p) at the pace p. T is known before the round; only g
/// is learned. choose() draws g from what is believed of it (Thompson sampling) and takes the p of
/// `rates` with the highest sum_i g(r_i(p)) / T(p). So even the first rounds are spent well: a
/// bandit that learns gains per second from nothing pays for its exploring in rounds that wait for
/// slow devices.
///
/// Belief: g at each of `rates` is normal with mean (n0 (1 - r) + sum x) / (n0 + n) and standard
/// deviation noise_sd / sqrt(n0 + n), where n reports x count for the nearest rate, discounted, and
/// n0 = prior_reports; linear in between, and on beyond the last. x is a gain over that at full
/// depth, (sum of gains) / (sum of believed g, where above 0), clipped to [-2, 4]; the sums are
/// those of this round and, by halves, of the ones before. For gains shrink over the rounds:
/// devices that drop little are the yardstick for those that drop much in the same round, and where
/// all drop alike the last rounds are. The prior 1 - r says that a gain is worth the layers that
/// were trained for it.
///
/// Units of gains and seconds are free. A value: a copy goes on as the original would. One thread
/// at a time. Ours; DropPEFT (arXiv 2503.10217) gives each device a configuration of its own and
/// learns gain per second as a whole: SelectorConfigurator, PopulationConfigurator. Not for devices
/// that do not wait for one another, nor where fast devices are short of memory or energy: they are
/// asked to run at full depth.
class PaceConfigurator {
 public:
  /// Throws std::invalid_argument for options out of range.
  explicit PaceConfigurator(PaceOptions options = {})
      : options_(std::move(options)),
        stream_(options_.stream),
        sums_(options_.rates.size()),
        counts_(options_.rates.size()) {
    const auto& rates = options_.rates;
    check(!rates.empty(), "PaceConfigurator: rates must begin with 0, got none");
    check(rates.front() == 0, "PaceConfigurator: rates must begin with 0, got ", rates.front());
    for (std::size_t i = 1; i < rates.size(); ++i)
      check(rates[i] > rates[i - 1] && rates[i] <= 0.95,
            "PaceConfigurator: rates must ascend in [0, 0.95], got ", rates[i], " after ",
            rates[i - 1]);
    check(std::isfinite(options_.noise_sd) && options_.noise_sd > 0,
          "PaceConfigurator: noise_sd must be finite and above 0, got ", options_.noise_sd);
    check(std::isfinite(options_.prior_reports) && options_.prior_reports > 0,
          "PaceConfigurator: prior_reports must be finite and above 0, got ",
          options_.prior_reports);
    check(options_.discount > 0 && options_.discount <= 1,
          "PaceConfigurator: discount must be in (0, 1], got ", options_.discount);
  }

  /// The mean drop rate that is to set the pace of a round of these devices, at least one.
  double choose(std::span<const RoundCost> costs) {
    std::vector<double> deadlines;
    for (const double pace : options_.rates) deadlines.push_back(round_seconds(costs, pace));
    std::vector<double> gains = believed();
    for (std::size_t i = 0; i < gains.size(); ++i)
      gains[i] += boost::random::normal_distribution<double>(0, sd(i))(stream_);
    double best = 0, highest = -std::numeric_limits<double>::infinity();
    for (std::size_t i = 0; i < deadlines.size(); ++i) {
      const double deadline = deadlines[i];
      double gain = 0;
      for (const RoundCost& cost : costs) gain += at(gains, cost.drop_rate(deadline));
      if (gain / deadline > highest) {
        highest = gain / deadline;
        best = options_.rates[i];
      }
    }
    return best;
  }

  /// The mean drop rates at which the devices of a round trained, each in [0, 1), and what each
  /// gained, in [-1e50, 1e50]; devices that failed are left out. Else std::invalid_argument.
  /// Teaches nothing before a round whose gains sum to more than 0; later such rounds lower what is
  /// believed, but are no yardstick.
  void report(std::span<const double> rates, std::span<const double> gains) {
    check(rates.size() == gains.size(), "PaceConfigurator::report: ", rates.size(),
          " rates need as many gains, got ", gains.size());
    const std::vector<double> belief = believed();
    double all = 0, expected = 0;
    for (std::size_t i = 0; i < rates.size(); ++i) {
      check(rates[i] >= 0 && rates[i] < 1,
            "PaceConfigurator::report: a rate must be in [0, 1), got ", rates[i]);
      check(gains[i] >= -1e50 && gains[i] <= 1e50,
            "PaceConfigurator::report: a gain must be in [-1e50, 1e50], got ", gains[i]);
      all += gains[i];
      expected += std::max(at(belief, rates[i]), 0.0);
    }
    if (all > 0 && expected > 0) {
      gained_ = gained_ / 2 + all;
      expected_ = expected_ / 2 + expected;
    }
    if (gained_ == 0) return;
    for (std::size_t i = 0; i < sums_.size(); ++i) {
      sums_[i] *= options_.discount;
      counts_[i] *= options_.discount;
    }
    for (std::size_t i = 0; i < rates.size(); ++i) {
      const std::size_t nearest = nearest_to(rates[i]);
      sums_[nearest] += std::clamp(gains[i] / gained_ * expected_, -2.0, 4.0);
      counts_[nearest] += 1;
    }
  }

  /// g at each of the options' rates: its mean and standard deviation, and how many reports it
  /// rests on.
  struct Belief {
    double rate, gain, sd, reports;
  };
  std::vector<Belief> beliefs() const {
    const std::vector<double> gains = believed();
    std::vector<Belief> beliefs;
    for (std::size_t i = 0; i < gains.size(); ++i)
      beliefs.push_back({options_.rates[i], gains[i], sd(i), counts_[i]});
    return beliefs;
  }

  nlohmann::json save() const {
    return {{"version", 1},         {"settings", settings()}, {"stream", stream_.state()},
            {"sums", sums_},        {"counts", counts_},      {"gained", gained_},
            {"expected", expected_}};
  }

  /// Goes on from a saved state with the same options, the stream aside. A state that does not fit
  /// is refused with std::runtime_error and changes nothing.
  void load(const nlohmann::json& state) {
    const Saved saved(state, "PaceConfigurator");
    saved["version"].expect(1);
    saved["settings"].expect(settings());
    PaceConfigurator loaded(options_);
    loaded.stream_ = saved["stream"].stream();
    loaded.gained_ = saved["gained"].number(0, 1e300);
    loaded.expected_ = saved["expected"].number(0, 1e300);
    for (const auto& [key, numbers] :
         {std::pair("sums", &loaded.sums_), std::pair("counts", &loaded.counts_)}) {
      const Saved from = saved[key];
      require(from.size() == numbers->size(), "PaceConfigurator.", key, " must have ",
              numbers->size(), " elements, got ", from.size());
      for (std::size_t i = 0; i < numbers->size(); ++i)
        (*numbers)[i] = from.at(i).number(numbers == &loaded.counts_ ? 0 : -1e100, 1e100);
    }
    *this = std::move(loaded);
  }

 private:
  std::vector<double> believed() const {
    std::vector<double> gains;
    for (std::size_t i = 0; i < sums_.size(); ++i)
      gains.push_back((options_.prior_reports * (1 - options_.rates[i]) + sums_[i]) /
                      (options_.prior_reports + counts_[i]));
    return gains;
  }

  double sd(std::size_t i) const {
    return options_.noise_sd / std::sqrt(options_.prior_reports + counts_[i]);
  }

  /// g at a rate, linear between those of the options and beyond the last.
  double at(const std::vector<double>& gains, double rate) const {
    const auto& rates = options_.rates;
    if (rates.size() == 1) return gains[0];
    std::size_t above = 1;
    while (above + 1 < rates.size() && rates[above] < rate) ++above;
    const double share = (rate - rates[above - 1]) / (rates[above] - rates[above - 1]);
    return gains[above - 1] + share * (gains[above] - gains[above - 1]);
  }

  std::size_t nearest_to(double rate) const {
    const auto distance = [rate](double each) { return std::abs(each - rate); };
    return static_cast<std::size_t>(std::ranges::min_element(options_.rates, {}, distance) -
                                    options_.rates.begin());
  }

  nlohmann::json settings() const {
    return {{"rates", options_.rates},
            {"noise_sd", options_.noise_sd},
            {"prior_reports", options_.prior_reports},
            {"discount", options_.discount}};
  }

  PaceOptions options_;
  Stream stream_;
  std::vector<double> sums_, counts_;  // of the reports nearest to each rate, discounted
  double gained_ = 0, expected_ = 0;   // sums of the last rounds
};

}  // namespace droppeft
