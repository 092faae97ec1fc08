#pragma once

#include <algorithm>
#include <boost/random/uniform_int_distribution.hpp>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <iomanip>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "droppeft/bandit/saved.hpp"
#include "droppeft/bandit/selector.hpp"
#include "droppeft/core/check.hpp"
#include "droppeft/dropout/rate_schedule.hpp"
#include "droppeft/random/stream.hpp"

namespace droppeft {

/// What a device is told about layer dropout: how much, and where in the depth.
struct Configuration {
  RateShape shape = RateShape::uniform;
  double mean_rate = 0;

  /// One rate a layer; ranges and errors as droppeft::drop_rates.
  std::vector<double> drop_rates(std::size_t layers, double max_rate = 0.95) const {
    return droppeft::drop_rates(shape, layers, mean_rate, max_rate);
  }

  friend bool operator==(const Configuration&, const Configuration&) = default;
};

/// "incremental 0.4"; "none" for a mean rate of zero.
inline std::string to_string(const Configuration& configuration) {
  if (configuration.mean_rate == 0) return "none";
  std::ostringstream text;
  text << to_string(configuration.shape) << ' ' << std::setprecision(3) << configuration.mean_rate;
  return text.str();
}

/// No dropout, then every mean above zero with every shape. Zero is there exactly once, asked for
/// or not: no bandit can help where dropout does not pay, if it may not choose none.
///
/// Means in [0, 0.95], else std::invalid_argument. The default grid is ours: small, since a
/// federated run has few rounds to learn it in.
inline std::vector<Configuration> configurations(
    const std::vector<double>& means = {1.0 / 3, 2.0 / 3, 5.0 / 6},
    const std::vector<RateShape>& shapes = {RateShape::uniform, RateShape::incremental}) {
  std::vector<Configuration> grid{Configuration{}};
  for (const double mean : means) {
    check(mean >= 0 && mean <= 0.95, "configurations: means must be in [0, 0.95], got ", mean);
    for (const RateShape shape : shapes)
      if (mean > 0) grid.push_back({shape, mean});
  }
  return grid;
}

/// A configuration handed to one device for one round.
struct Assignment {
  Ticket ticket;
  Configuration configuration;
};

/// What a configurator believes of a configuration: how many reports it still counts, and the mean
/// of their rewards in [0, 1], where 1/2 is what the rounds gave on average.
struct Estimate {
  Configuration configuration;
  std::uint64_t plays = 0;
  double mean_reward = 0;

  /// The mean with one more play of reward 1/2, so that one lucky report does not outrank many good
  /// ones. What configurations are ranked by.
  double merit() const {
    const auto count = static_cast<double>(plays);
    return (count * mean_reward + 0.5) / (count + 1);
  }
};

/// Finds out online which dropout configuration pays.
///
/// In each round assign(devices) gives every device a configuration; report(assignment, gain,
/// seconds) brings back what the device gained and the time it took, in any order and from late
/// devices in any later round; expire(assignment) tells that nothing will come; finish_round()
/// learns from what was reported since the last one. The same reports in another order give the
/// same bits. best() is the configuration with the highest merit (no dropout before any
/// report), estimates() all that is believed. load(save()) restores every bit, in the middle of a
/// round too; a state that does not fit is refused with std::runtime_error and changes nothing. An
/// assignment that is not open is refused with std::invalid_argument.
template <class C>
concept Configurator = requires(C configurator, const C& settled, std::size_t devices,
                                const Assignment& assignment, double gain, double seconds,
                                const nlohmann::json& saved) {
  { configurator.assign(devices) } -> std::same_as<std::vector<Assignment>>;
  configurator.report(assignment, gain, seconds);
  configurator.expire(assignment);
  configurator.finish_round();
  { settled.best() } -> std::same_as<Configuration>;
  { settled.estimates() } -> std::same_as<std::vector<Estimate>>;
  { settled.save() } -> std::same_as<nlohmann::json>;
  configurator.load(saved);
};

/// From the reports of a round to rewards in [0, 1]: the part that all configurators share.
///
/// The raw reward of an arm in a round is pooled over the devices that played it, R = sum of gains
/// / sum of seconds: a mean of ratios would let the noise of the fastest device decide. Gains
/// shrink as training converges, so raw rewards of different rounds do not compare, and an arm is
/// judged beside those of its own round only: with m the same ratio over all devices of the round,
/// and s the root mean square of R - m over the rounds and arms of the last `window` rounds, this
/// one included, in which several arms were played, the reward is
///
///   1/2 + (R - m) / (4 s), clipped to [0, 1]; 1/2 where s = 0.
///
/// Every report of the arm in the round gets that reward. A round in which all play the same gives
/// 1/2, as much as it tells. So where a round has one device, let finish() end a few rounds at
/// once. Gain per second of the round is DropPEFT's reward (as recalled); pooling, pairing and
/// scaling are ours.
class RoundRewards {
 public:
  /// window >= 1, else std::invalid_argument.
  explicit RoundRewards(std::size_t window) : window_(window) {
    check(window >= 1, "RoundRewards: window must be at least 1 round, got ", window);
  }

  std::uint64_t round() const { return round_; }

  /// How many plays of `arm` are open, or reported and not yet rewarded.
  std::uint64_t pending(std::size_t arm) const {
    return static_cast<std::uint64_t>(
        std::ranges::count(open_.tickets(), arm, &Ticket::arm) +
        std::ranges::count(reports_, arm, [](const Report& report) { return report.ticket.arm; }));
  }

  /// The tickets that are open, or reported and not yet rewarded.
  std::vector<Ticket> unrewarded() const {
    std::vector<Ticket> tickets = open_.tickets();
    for (const Report& report : reports_) tickets.push_back(report.ticket);
    return tickets;
  }

  void open(Ticket ticket) { open_.open(ticket, "Configurator::assign"); }

  /// Closes an open ticket. gain in [-1e50, 1e50], seconds in [1e-50, 1e50], else
  /// std::invalid_argument.
  void report(Ticket ticket, double gain, double seconds) {
    check(gain >= -limit && gain <= limit,
          "Configurator::report: gain must be a finite number of at most 1e50 either way, got ",
          gain);
    check(seconds >= 1 / limit && seconds <= limit,
          "Configurator::report: seconds must be finite and above 0 (1e-50 to 1e50), got ",
          seconds);
    open_.close(ticket, "Configurator::report");
    reports_.push_back({ticket, gain, seconds});
  }

  void expire(Ticket ticket) { open_.close(ticket, "Configurator::expire"); }

  /// Ends the round: the tickets reported in it, by id, each with its reward.
  std::vector<std::pair<Ticket, double>> finish() {
    struct Arm {
      std::size_t arm;
      double gain = 0;
      double seconds = 0;
      double raw() const { return gain / seconds; }
    };
    std::ranges::sort(reports_, {}, [](const Report& report) { return report.ticket.id; });
    std::vector<Arm> arms;
    const auto find = [&arms](std::size_t arm) { return std::ranges::find(arms, arm, &Arm::arm); };
    for (const auto& [ticket, gain, seconds] : reports_) {
      if (find(ticket.arm) == arms.end()) arms.push_back({ticket.arm});
      find(ticket.arm)->gain += gain;
      find(ticket.arm)->seconds += seconds;
    }
    Arm all{};
    for (const Arm& arm : arms) {
      all.gain += arm.gain;
      all.seconds += arm.seconds;
    }
    const auto deviation = [&](const Arm& arm) {
      return arms.size() > 1 ? arm.raw() - all.raw() : 0.0;
    };
    if (arms.size() > 1)
      for (const Arm& arm : arms) recent_.push_back({round_, deviation(arm)});
    std::erase_if(recent_,
                  [this](const Deviation& each) { return round_ - each.round >= window_; });

    double variance = 0;
    for (const Deviation& each : recent_)
      variance += each.value * each.value / static_cast<double>(recent_.size());
    const double spread = std::sqrt(variance);

    std::vector<std::pair<Ticket, double>> rewards;
    for (const Report& report : reports_) {
      const double scaled = spread > 0 ? deviation(*find(report.ticket.arm)) / (4 * spread) : 0;
      rewards.emplace_back(report.ticket, std::clamp(0.5 + scaled, 0.0, 1.0));
    }
    reports_.clear();
    ++round_;
    return rewards;
  }

  nlohmann::json save() const {
    auto reports = nlohmann::json::array();
    for (const auto& [ticket, gain, seconds] : reports_)
      reports.push_back({ticket.id, ticket.arm, ticket.probability, gain, seconds});
    auto recent = nlohmann::json::array();
    for (const auto& [round, value] : recent_) recent.push_back({round, value});
    return {{"window", window_},
            {"round", round_},
            {"open", open_.save()},
            {"reports", reports},
            {"recent", recent}};
  }

  /// Arms must stay below `arm_limit`.
  void load(const Saved& saved, std::uint64_t arm_limit) {
    saved["window"].expect(window_);
    RoundRewards loaded(window_);
    loaded.round_ = saved["round"].integer();
    loaded.open_.load(saved["open"], max_id, arm_limit);
    const Saved reports = saved["reports"];
    for (std::size_t i = 0; i < reports.size(); ++i) {
      const Saved report = reports.at(i);
      loaded.reports_.push_back({{report.at(0).integer(max_id),
                                  static_cast<std::size_t>(report.at(1).integer(arm_limit - 1)),
                                  report.at(2).number(0, 1)},
                                 report.at(3).number(-limit, limit),
                                 report.at(4).number(1 / limit, limit)});
    }
    const Saved recent = saved["recent"];
    for (std::size_t i = 0; i < recent.size(); ++i)
      loaded.recent_.push_back(
          {recent.at(i).at(0).integer(loaded.round_), recent.at(i).at(1).number(-2e100, 2e100)});
    *this = std::move(loaded);
  }

 private:
  struct Report {
    Ticket ticket;
    double gain;
    double seconds;
  };
  struct Deviation {
    std::uint64_t round;
    double value;
  };

  // Keeps ratios and their squares finite.
  static constexpr double limit = 1e50;
  static constexpr std::uint64_t max_id = std::numeric_limits<std::uint64_t>::max();

  std::size_t window_;
  std::uint64_t round_ = 0;
  OpenTickets open_;
  std::vector<Report> reports_;
  std::vector<Deviation> recent_;
};

namespace detail {

inline nlohmann::json save_configuration(const Configuration& configuration) {
  return {{"shape", to_string(configuration.shape)}, {"mean_rate", configuration.mean_rate}};
}

inline Configuration load_configuration(const Saved& saved) {
  const auto shape = std::ranges::find(rate_shapes, saved["shape"].text(),
                                       [](RateShape each) { return to_string(each); });
  require(shape != rate_shapes.end(), "Configuration: unknown shape '", saved["shape"].text(), "'");
  return {*shape, saved["mean_rate"].number(0, 0.95)};
}

/// The configuration with the highest merit; the default one when nothing was played.
inline Configuration best_of(const std::vector<Estimate>& estimates) {
  const auto best = std::ranges::max_element(estimates, {}, [](const Estimate& estimate) {
    return std::pair(estimate.plays > 0, estimate.merit());
  });
  return best->plays > 0 ? best->configuration : Configuration{};
}

}  // namespace detail

/// A Configurator with a bandit over a grid: each configuration is an arm of a Selector.
///
/// For a few rounds and a small grid. Rewards are in [0, 1] with a standard deviation of 1/4 and
/// less, and a report shares its reward with the others of its arm and round, so selectors made for
/// the worst case explore too long: GaussianThompson with noise_sd = 0.2, or Ucb1 with exploration
/// = 0.1, are better than their defaults here.
template <Selector S>
requires std::copyable<S>
class SelectorConfigurator {
 public:
  /// As many arms as configurations, each with a mean rate in [0, 0.95]; rewards scaled by the last
  /// `window` >= 1 rounds; else std::invalid_argument. The selector should be new.
  explicit SelectorConfigurator(S selector, std::vector<Configuration> grid = configurations(),
                                std::size_t window = 5)
      : selector_(std::move(selector)), grid_(std::move(grid)), rewards_(window) {
    check(selector_.arms() == grid_.size(), "SelectorConfigurator: the selector must have ",
          grid_.size(), " arms, one a configuration, got ", selector_.arms());
    for (const Configuration& configuration : grid_)
      check(configuration.mean_rate >= 0 && configuration.mean_rate <= 0.95,
            "SelectorConfigurator: mean rates must be in [0, 0.95], got ", configuration.mean_rate);
  }

  std::vector<Assignment> assign(std::size_t devices) {
    std::vector<Assignment> assignments;
    for (std::size_t device = 0; device < devices; ++device) {
      const Ticket ticket = selector_.select();
      rewards_.open(ticket);
      assignments.push_back({ticket, grid_[ticket.arm]});
    }
    return assignments;
  }

  /// What a device gained and the seconds it took. Any measure of gain that grows with progress
  /// will do, in [-1e50, 1e50]: the agreement of its update with the others', or the fall of the
  /// loss on rows held back on the device, which is far noisier. Mostly above 0, or a ratio to
  /// seconds punishes the fast.
  /// seconds > 0: where devices differ in speed, divide by what the device would take without
  /// dropout, or the rewards tell fast devices from slow ones. Else std::invalid_argument.
  void report(const Assignment& assignment, double gain, double seconds) {
    rewards_.report(assignment.ticket, gain, seconds);
  }

  void expire(const Assignment& assignment) {
    rewards_.expire(assignment.ticket);
    selector_.expire(assignment.ticket);
  }

  void finish_round() {
    for (const auto& [ticket, reward] : rewards_.finish()) selector_.update(ticket, reward);
  }

  Configuration best() const { return detail::best_of(estimates()); }

  /// One estimate a configuration, in the order of the grid.
  std::vector<Estimate> estimates() const {
    std::vector<Estimate> estimates;
    for (std::size_t arm = 0; arm < grid_.size(); ++arm) {
      const ArmRecord record = selector_.record(arm);
      estimates.push_back({grid_[arm], static_cast<std::uint64_t>(record.plays), record.mean()});
    }
    return estimates;
  }

  nlohmann::json save() const {
    return {{"version", 3},
            {"grid", save_grid()},
            {"selector", selector_.save()},
            {"rewards", rewards_.save()}};
  }

  /// Goes on from a saved state with the same grid, window and kind of selector.
  void load(const nlohmann::json& state) {
    const Saved saved(state, "SelectorConfigurator");
    saved["version"].expect(3);
    saved["grid"].expect(save_grid());
    S selector = selector_;
    selector.load(saved["selector"].json());
    RoundRewards rewards = rewards_;
    rewards.load(saved["rewards"], grid_.size());
    S probe = selector;
    const auto agree = [&](bool same) {
      require(same, "SelectorConfigurator: selector and rewards do not agree on the open plays");
    };
    for (const Ticket& ticket : rewards.unrewarded()) try {
        probe.expire(ticket);
      } catch (const std::invalid_argument&) {
        agree(false);
      }
    for (std::size_t arm = 0; arm < grid_.size(); ++arm) agree(probe.record(arm).pending == 0);
    selector_ = std::move(selector);
    rewards_ = std::move(rewards);
  }

 private:
  nlohmann::json save_grid() const {
    auto grid = nlohmann::json::array();
    for (const Configuration& configuration : grid_)
      grid.push_back(detail::save_configuration(configuration));
    return grid;
  }

  S selector_;
  std::vector<Configuration> grid_;
  RoundRewards rewards_;
};

/// Settings of a PopulationConfigurator.
struct PopulationOptions {
  /// Source of all its random numbers. The default is the same stream every time.
  Stream stream{};
  /// Candidates at a time, >= 2.
  std::size_t population = 8;
  /// Share of the candidates that is replaced, in [0, 1); rounded to a whole number of them.
  double epsilon = 0.25;
  /// Rounds for which a reward counts, >= 1.
  std::size_t window = 20;
  /// Fresh mean rates are uniform in [0, max_mean_rate], at most 0.95.
  double max_mean_rate = 0.8;
  /// Fresh shapes are drawn from these, at least one.
  std::vector<RateShape> shapes{rate_shapes.begin(), rate_shapes.end()};
};

/// DropPEFT's Configurator: a population of configurations from the continuous space, of which the
/// best survive.
///
/// The devices of a round play candidates: those without a reward first, then the others by turns.
/// After a round by which every candidate was rewarded at least once since the last replacement,
/// the share epsilon with the lowest merit is replaced by fresh random ones. No dropout is among
/// the first; once it was replaced, a fresh candidate is no dropout with probability 1 /
/// population. Rewards as in RoundRewards.
///
/// From the paper (arXiv 2503.10217), as recalled: candidates for the devices of a round, gain per
/// second as reward, the best kept, a share epsilon fresh, a sliding window. Ours: all numbers,
/// when to replace, playing by turns, no dropout among the candidates, pooling and scaling. For a
/// long run and many devices a round; a short run learns more with a SelectorConfigurator on a
/// small grid, since here a share of the plays always goes to fresh candidates.
class PopulationConfigurator {
 public:
  /// Throws std::invalid_argument for options out of range.
  explicit PopulationConfigurator(PopulationOptions options = {})
      : options_(std::move(options)), stream_(options_.stream), rewards_(scale_window) {
    check(options_.population >= 2, "PopulationConfigurator: population must be at least 2, got ",
          options_.population);
    check(options_.epsilon >= 0 && options_.epsilon < 1,
          "PopulationConfigurator: epsilon must be in [0, 1), got ", options_.epsilon);
    check(options_.window >= 1, "PopulationConfigurator: window must be at least 1 round, got ",
          options_.window);
    check(options_.max_mean_rate >= 0 && options_.max_mean_rate <= 0.95,
          "PopulationConfigurator: max_mean_rate must be in [0, 0.95], got ",
          options_.max_mean_rate);
    check(!options_.shapes.empty(), "PopulationConfigurator: shapes must hold at least one shape");
    candidates_.push_back({born_++, Configuration{}, 0, {}});
    while (candidates_.size() < options_.population) candidates_.push_back(fresh());
  }

  std::vector<Assignment> assign(std::size_t devices) {
    std::vector<Assignment> assignments;
    for (std::size_t device = 0; device < devices; ++device) {
      Candidate& next = *std::ranges::min_element(candidates_, {}, [this](const Candidate& each) {
        const bool tried = !each.rewards.empty() || rewards_.pending(each.number) > 0;
        return std::pair(tried, each.turn);
      });
      next.turn = ++turns_;
      const Ticket ticket{turns_, next.number, 0};
      rewards_.open(ticket);
      assignments.push_back({ticket, next.configuration});
    }
    return assignments;
  }

  /// As SelectorConfigurator::report.
  void report(const Assignment& assignment, double gain, double seconds) {
    rewards_.report(assignment.ticket, gain, seconds);
  }

  void expire(const Assignment& assignment) { rewards_.expire(assignment.ticket); }

  void finish_round() {
    const std::uint64_t round = rewards_.round();
    for (const auto& [ticket, reward] : rewards_.finish()) {
      const auto played = std::ranges::find(candidates_, ticket.arm, &Candidate::number);
      // A report that came after its candidate was replaced only helped to scale the others.
      if (played != candidates_.end()) played->rewards.push_back({round, reward});
    }
    for (Candidate& candidate : candidates_)
      std::erase_if(candidate.rewards, [this, round](const Reward& reward) {
        return round - reward.round >= options_.window;
      });
    const bool all_played = std::ranges::all_of(candidates_, [this](const Candidate& candidate) {
      return !candidate.rewards.empty() && candidate.rewards.back().round >= generation_;
    });
    if (!all_played) return;

    generation_ = rewards_.round();
    std::ranges::stable_sort(candidates_, std::ranges::greater{}, [](const Candidate& candidate) {
      return candidate.estimate().merit();
    });
    const auto replaced = static_cast<std::size_t>(
        std::lround(options_.epsilon * static_cast<double>(options_.population)));
    candidates_.resize(std::max<std::size_t>(1, options_.population - replaced));
    while (candidates_.size() < options_.population) candidates_.push_back(fresh());
  }

  Configuration best() const { return detail::best_of(estimates()); }

  /// One estimate a candidate.
  std::vector<Estimate> estimates() const {
    std::vector<Estimate> estimates;
    for (const Candidate& candidate : candidates_) estimates.push_back(candidate.estimate());
    return estimates;
  }

  nlohmann::json save() const {
    auto candidates = nlohmann::json::array();
    for (const Candidate& candidate : candidates_) {
      auto rewards = nlohmann::json::array();
      for (const auto& [round, reward] : candidate.rewards) rewards.push_back({round, reward});
      candidates.push_back({{"number", candidate.number},
                            {"configuration", detail::save_configuration(candidate.configuration)},
                            {"turn", candidate.turn},
                            {"rewards", rewards}});
    }
    return {{"version", 3},
            {"settings", settings()},
            {"stream", stream_.state()},
            {"turns", turns_},
            {"born", born_},
            {"generation", generation_},
            {"candidates", candidates},
            {"rewards", rewards_.save()}};
  }

  /// Goes on from a saved state with the same options, the stream aside.
  void load(const nlohmann::json& state) {
    const Saved saved(state, "PopulationConfigurator");
    saved["version"].expect(3);
    saved["settings"].expect(settings());
    PopulationConfigurator loaded(options_);
    loaded.stream_ = saved["stream"].stream();
    loaded.turns_ = saved["turns"].integer();
    loaded.born_ = static_cast<std::size_t>(saved["born"].integer());
    require(loaded.born_ >= options_.population,
            "PopulationConfigurator.born must be at least the population, got ", loaded.born_);
    loaded.rewards_.load(saved["rewards"], loaded.born_);
    for (const Ticket& ticket : loaded.rewards_.unrewarded())
      require(ticket.id <= loaded.turns_, "PopulationConfigurator.rewards: ticket ", ticket.id,
              " was never issued, turns being ", loaded.turns_);
    loaded.generation_ = saved["generation"].integer(loaded.rewards_.round());
    const Saved candidates = saved["candidates"];
    require(candidates.size() == options_.population,
            "PopulationConfigurator.candidates must have ", options_.population, " elements, got ",
            candidates.size());
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      const Saved from = candidates.at(i);
      Candidate& candidate = loaded.candidates_[i];
      candidate = {static_cast<std::size_t>(from["number"].integer(loaded.born_ - 1)),
                   detail::load_configuration(from["configuration"]),
                   from["turn"].integer(loaded.turns_),
                   {}};
      for (std::size_t j = 0; j < i; ++j)
        require(loaded.candidates_[j].number != candidate.number,
                "PopulationConfigurator.candidates: the number ", candidate.number,
                " is there twice");
      const Saved rewards = from["rewards"];
      for (std::size_t j = 0; j < rewards.size(); ++j) {
        candidate.rewards.push_back({rewards.at(j).at(0).integer(loaded.rewards_.round()),
                                     rewards.at(j).at(1).number(0, 1)});
        require(j == 0 || candidate.rewards[j - 1].round <= candidate.rewards[j].round,
                "PopulationConfigurator.candidates: rounds must ascend");
      }
    }
    *this = std::move(loaded);
  }

 private:
  struct Reward {
    std::uint64_t round;
    double reward;
  };

  struct Candidate {
    std::size_t number;  // never used again; the arm of its tickets
    Configuration configuration;
    std::uint64_t turn;  // the last one in which it was assigned, 0 before
    std::vector<Reward> rewards;

    Estimate estimate() const {
      double mean = 0;
      for (const Reward& reward : rewards)
        mean += reward.reward / static_cast<double>(rewards.size());
      return {configuration, rewards.size(), mean};
    }
  };

  static constexpr std::size_t scale_window = 5;

  Candidate fresh() {
    const bool with_none = std::ranges::any_of(
        candidates_, [](const Candidate& each) { return each.configuration.mean_rate == 0; });
    Configuration configuration;
    if (with_none || stream_.uniform() * static_cast<double>(options_.population) >= 1) {
      boost::random::uniform_int_distribution<std::size_t> shape(0, options_.shapes.size() - 1);
      configuration.shape = options_.shapes[shape(stream_)];
      configuration.mean_rate = stream_.uniform() * options_.max_mean_rate;
    }
    return {born_++, configuration, 0, {}};
  }

  nlohmann::json settings() const {
    auto shapes = nlohmann::json::array();
    for (const RateShape shape : options_.shapes) shapes.push_back(to_string(shape));
    return {{"population", options_.population},
            {"epsilon", options_.epsilon},
            {"window", options_.window},
            {"max_mean_rate", options_.max_mean_rate},
            {"shapes", shapes}};
  }

  PopulationOptions options_;
  Stream stream_;
  RoundRewards rewards_;
  std::uint64_t turns_ = 0;
  std::uint64_t generation_ = 0;  // the round in which it began
  std::size_t born_ = 0;
  std::vector<Candidate> candidates_;
};

}  // namespace droppeft
