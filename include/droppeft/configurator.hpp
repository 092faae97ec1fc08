#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <stdexcept>
#include <string_view>
#include <utility>
#include <vector>

#include "droppeft/bandit/epsilon_greedy.hpp"
#include "droppeft/bandit/saved.hpp"
#include "droppeft/bandit/selector.hpp"
#include "droppeft/bandit/ticket.hpp"
#include "droppeft/configuration.hpp"
#include "droppeft/core/check.hpp"
#include "droppeft/random/stream.hpp"
#include "droppeft/round_rewards.hpp"

namespace droppeft {

/// A device that asks for a configuration.
struct DeviceRequest {
  /// Its number, for selectors that tell devices apart (SharedPriorSelector).
  std::size_t device = 0;
  /// The lowest mean drop rate that it can hold, in [0, 0.95]: see least_drop_rate in
  /// federated/budget.hpp. Nothing below is assigned to it.
  double least_rate = 0;
};

/// A configuration handed to one device for one round.
template <DropoutConfiguration C>
struct Assignment {
  Ticket ticket;
  C configuration;
};

/// What a configurator believes of a configuration.
template <DropoutConfiguration C>
struct Estimate {
  std::size_t arm = 0;  // its number for ever
  C configuration;
  /// Reports that it still counts, a whole number unless they are discounted; and the mean and
  /// standard deviation of their rewards, 0 without any.
  double plays = 0;
  double mean_reward = 0;
  double reward_sd = 0;
  /// The mean with one more play of the mean of all, so that one lucky report does not outrank many
  /// good ones. What configurations are ranked by.
  double merit = 0;
};

/// Finds out online which dropout configuration pays.
///
/// In each round assign(devices) gives every device a configuration, devices being how many there
/// are, or a DeviceRequest of each; report(assignment, gain, seconds) brings back what the device
/// gained and the time it took, in any order and from late devices in any later round;
/// expire(assignment) tells that nothing will come; finish_round() learns from what was reported
/// since the last one. The same reports in another order give the same bits. best() is the
/// configuration with the highest merit (the first candidate before any report), estimates() all
/// that is believed of those that may be played. load(save()) restores every bit, in the middle of
/// a round too; a state that does not fit is refused with std::runtime_error and changes nothing.
/// An assignment that is not open is refused with std::invalid_argument.
template <class C>
concept Configurator = requires(C configurator, const C& settled, std::size_t devices,
                                std::span<const DeviceRequest> requests,
                                const Assignment<typename C::Configuration>& assignment,
                                double gain, double seconds, const nlohmann::json& saved) {
  {
    configurator.assign(devices)
    } -> std::same_as<std::vector<Assignment<typename C::Configuration>>>;
  {
    configurator.assign(requests)
    } -> std::same_as<std::vector<Assignment<typename C::Configuration>>>;
  configurator.report(assignment, gain, seconds);
  configurator.expire(assignment);
  configurator.finish_round();
  { settled.best() } -> std::same_as<typename C::Configuration>;
  { settled.estimates() } -> std::same_as<std::vector<Estimate<typename C::Configuration>>>;
  { settled.save() } -> std::same_as<nlohmann::json>;
  configurator.load(saved);
};

/// A selector with a bandit for each device: select takes the device's number.
template <class S>
concept DeviceSelector = requires(S selector, std::size_t device, std::size_t arm,
                                  std::span<const std::size_t> among) {
  { selector.select(device, among) } -> std::same_as<Ticket>;
};

/// What a SelectorConfigurator can learn with.
template <class S>
concept ConfiguringSelector = std::copyable<S> &&(Selector<S> || DeviceSelector<S>);

/// Settings of a SelectorConfigurator.
struct ConfiguratorOptions {
  /// Source of its fresh candidates; a selector has its own stream. The default is the same stream
  /// every time.
  Stream stream{};
  /// The share of the candidates that is replaced by fresh ones, in [0, 1), rounded to a whole
  /// number of them; 0: none ever.
  double epsilon = 0;
};

/// A Configurator with a bandit: each configuration of a space is an arm of a selector, each
/// round's reports are turned into rewards by a rule.
///
///     SelectorConfigurator grid(ThompsonSelector(7), configurations());
///     SelectorConfigurator renewed(ThompsonSelector(8), RateSpace(), {.epsilon = 0.25});
///
/// With epsilon > 0, after a round by which as many reports were rewarded since the last time as
/// there are candidates, the share epsilon with the lowest merit is replaced by fresh random ones;
/// no dropout always stays, so does the highest mean rate (whoever can hold a candidate can hold
/// one for ever), and so do those without a reward.
///
/// Whose idea is what: a bandit that gives each device of a round its configuration, gain per
/// second as the reward, the best kept and a share epsilon fresh, a sliding window against drift
/// are DropPEFT's (arXiv 2503.10217), as recalled. Ours: which selectors there are, and that a
/// fixed grid is one way; PairedReward; when candidates are replaced, and what stays; what a device
/// cannot hold; a prior that devices of a class share (SharedPriorSelector as S).
///
/// For a few rounds and a small grid. PairedReward's rewards are in [0, 1] with a standard
/// deviation of 1/4 and less, and a report shares its reward with the others of its arm and round,
/// so selectors made for the worst case explore too long: GaussianThompson with noise_sd = 0.2, or
/// Ucb1 with exploration = 0.1, are better than their defaults here.
template <ConfiguringSelector S, ConfigurationSpace Space, RewardRule Rule = PairedReward>
class SelectorConfigurator {
 public:
  using Configuration = typename Space::Configuration;

  /// As many candidates as the selector, which should be new, has arms; options in their ranges,
  /// epsilon being 0 unless space and selector can renew; else std::invalid_argument.
  SelectorConfigurator(S selector, Space space, ConfiguratorOptions options = {},
                       Rule rule = Rule())
      : selector_(std::move(selector)),
        space_(std::move(space)),
        epsilon_(options.epsilon),
        stream_(options.stream),
        rule_(std::move(rule)) {
    check(epsilon_ >= 0 && epsilon_ < 1, "SelectorConfigurator: epsilon must be in [0, 1), got ",
          epsilon_);
    check(epsilon_ == 0 || (renewable && chooses_among()),
          "SelectorConfigurator: epsilon must be 0 with a space that "
          "has no fresh configurations, or a selector whose arms cannot be replaced, got ",
          epsilon_);
    candidates_ = space_.candidates(selector_.arms(), stream_);
    check(candidates_.size() == selector_.arms(),
          "SelectorConfigurator: the space must give as many candidates as the selector has arms, ",
          selector_.arms(), ", got ", candidates_.size());
    check(any_active(), "SelectorConfigurator: the selector must have an arm that is not retired");
  }

  SelectorConfigurator(S selector, Space space, Rule rule)
      : SelectorConfigurator(std::move(selector), std::move(space), {}, std::move(rule)) {}

  /// A grid.
  SelectorConfigurator(S selector, std::vector<Configuration> grid, Rule rule = Rule())
      : SelectorConfigurator(std::move(selector), Space(std::move(grid)), {}, std::move(rule)) {}

  /// One configuration for each of so many devices, at most 2^32, that can hold all: numbers 0, 1
  /// and so on, where the selector tells them apart.
  std::vector<Assignment<Configuration>> assign(std::size_t devices) {
    check(devices <= std::size_t{1} << 32,
          "Configurator::assign: devices must be at most 2^32, got ", devices);
    std::vector<DeviceRequest> requests(devices);
    for (std::size_t device = 0; device < devices; ++device) requests[device].device = device;
    return assign(requests);
  }

  /// One for each of these. Throws std::invalid_argument, with nothing assigned, for a device that
  /// can hold no candidate, or whose number the selector does not know, and for any least_rate
  /// above 0 if the selector cannot choose among some.
  std::vector<Assignment<Configuration>> assign(std::span<const DeviceRequest> requests) {
    std::vector<std::vector<std::size_t>> permitted;
    for (const DeviceRequest& request : requests) permitted.push_back(permitted_arms(request));
    std::vector<Assignment<Configuration>> assignments;
    S selector = selector_;
    OpenTickets open = open_;
    for (std::size_t i = 0; i < requests.size(); ++i) {
      const Ticket ticket = select(selector, requests[i], permitted[i]);
      open.open(ticket, "Configurator::assign");
      assignments.push_back({ticket, candidates_[ticket.arm]});
    }
    selector_ = std::move(selector);
    open_ = std::move(open);
    return assignments;
  }
  std::vector<Assignment<Configuration>> assign(const std::vector<DeviceRequest>& requests) {
    return assign(std::span(requests));
  }

  /// What a device gained and the seconds it took. Any measure of gain that grows with progress
  /// will do, in [-1e50, 1e50]: the agreement of its update with the others', its length_along the
  /// server's last step, or the fall of the loss on rows held back on the device, which is far
  /// noisier. Mostly above 0, or a ratio to seconds punishes the fast.
  /// seconds in [1e-50, 1e50]: where devices differ in speed, divide by what the device would take
  /// without dropout, or the rewards tell fast devices from slow ones. Else std::invalid_argument.
  void report(const Assignment<Configuration>& assignment, double gain, double seconds) {
    check(gain >= -limit && gain <= limit,
          "Configurator::report: gain must be a finite number of at most 1e50 either way, got ",
          gain);
    check(seconds >= 1 / limit && seconds <= limit,
          "Configurator::report: seconds must be finite and above 0 (1e-50 to 1e50), got ",
          seconds);
    open_.close(assignment.ticket, "Configurator::report");
    reports_.push_back({assignment.ticket, gain, seconds});
  }

  void expire(const Assignment<Configuration>& assignment) {
    open_.close(assignment.ticket, "Configurator::expire");
    selector_.expire(assignment.ticket);
  }

  /// Throws std::invalid_argument, with nothing learned, when the rule gives a reward that the
  /// selector does not take (GainPerSecond to one that wants [0, 1]), or not one a report.
  void finish_round() {
    std::ranges::sort(reports_, {}, [](const GainReport& report) { return report.ticket.id; });
    S selector = selector_;
    Rule rule = rule_;
    const std::vector<double> rewards = rule(round_, reports_);
    check(rewards.size() == reports_.size(),
          "Configurator::finish_round: the rule must give one reward a report, ", reports_.size(),
          ", got ", rewards.size());
    for (std::size_t i = 0; i < reports_.size(); ++i)
      selector.update(reports_[i].ticket, rewards[i]);
    selector_ = std::move(selector);
    rule_ = std::move(rule);
    rewarded_ += reports_.size();
    reports_.clear();
    ++round_;
    if constexpr (renewable)
      if (epsilon_ > 0) renew();
  }

  /// What learns: for what it knows beside the estimates, as of single devices.
  const S& selector() const { return selector_; }

  Configuration best() const {
    const auto all = estimates();
    const auto best = std::ranges::max_element(all, {}, [](const auto& estimate) {
      return std::pair(estimate.plays > 0, estimate.merit);
    });
    return best->plays > 0 ? best->configuration : candidates_.front();
  }

  /// One estimate a candidate, in the order in which they came.
  std::vector<Estimate<Configuration>> estimates() const {
    std::vector<Estimate<Configuration>> estimates;
    double sum = 0, plays = 0;
    for (std::size_t arm = 0; arm < candidates_.size(); ++arm) {
      if (!active(arm)) continue;
      const ArmRecord record = selector_.record(arm);
      sum += record.sum;
      plays += record.plays;
      estimates.push_back(
          {arm, candidates_[arm], record.plays, record.mean(), std::sqrt(record.variance()), 0});
    }
    const double mean = plays > 0 ? sum / plays : 0;
    for (auto& each : estimates)
      each.merit = (each.plays * each.mean_reward + mean) / (each.plays + 1);
    return estimates;
  }

  nlohmann::json save() const {
    auto candidates = nlohmann::json::array(), reports = nlohmann::json::array();
    for (const Configuration& each : candidates_) candidates.push_back(each.save());
    for (const auto& [ticket, gain, seconds] : reports_)
      reports.push_back({ticket.id, ticket.arm, ticket.probability, gain, seconds});
    return {{"version", 4},
            {"space", space_.settings()},
            {"epsilon", epsilon_},
            {"stream", stream_.state()},
            {"selector", selector_.save()},
            {"rule", rule_.save()},
            {"candidates", candidates},
            {"round", round_},
            {"rewarded", rewarded_},
            {"open", open_.save()},
            {"reports", reports}};
  }

  /// Goes on from a saved state with the same space, epsilon, rule and kind of selector.
  void load(const nlohmann::json& state) {
    const Saved saved(state, "SelectorConfigurator");
    saved["version"].expect(4);
    saved["space"].expect(space_.settings());
    saved["epsilon"].expect(epsilon_);
    SelectorConfigurator loaded(*this);
    loaded.stream_ = saved["stream"].stream();
    loaded.selector_.load(saved["selector"].json());
    loaded.round_ = saved["round"].integer();
    loaded.rewarded_ = saved["rewarded"].integer();
    loaded.rule_.load(saved["rule"], loaded.round_);
    const Saved candidates = saved["candidates"];
    require(candidates.size() == loaded.selector_.arms(),
            "SelectorConfigurator.candidates must have ", loaded.selector_.arms(),
            " elements, got ", candidates.size());
    loaded.candidates_.clear();
    for (std::size_t i = 0; i < candidates.size(); ++i)
      loaded.candidates_.push_back(space_.load(candidates.at(i)));
    require(loaded.any_active(), "SelectorConfigurator.selector: all arms are retired");
    loaded.open_.load(saved["open"], OpenTickets::max_id, candidates.size());
    loaded.reports_.clear();
    const Saved reports = saved["reports"];
    for (std::size_t i = 0; i < reports.size(); ++i) {
      const Saved report = reports.at(i);
      loaded.reports_.push_back(
          {{report.at(0).integer(OpenTickets::max_id),
            static_cast<std::size_t>(report.at(1).integer(candidates.size() - 1)),
            report.at(2).number(0, 1)},
           report.at(3).number(-limit, limit),
           report.at(4).number(1 / limit, limit)});
    }
    loaded.require_same_plays();
    *this = std::move(loaded);
  }

 private:
  // Keeps ratios and their squares finite.
  static constexpr double limit = 1e50;
  static constexpr bool has_active = OpenSelector<S> || DeviceSelector<S>;
  static constexpr bool renewable = RenewableSpace<Space> && has_active;

  /// Whether the selector can choose among some arms, which come and go.
  bool chooses_among() const {
    if constexpr (requires { selector_.open(); }) return selector_.open();
    return has_active;
  }

  bool active(std::size_t arm) const {
    if constexpr (has_active) return selector_.active(arm);
    return true;
  }

  bool any_active() const {
    for (std::size_t arm = 0; arm < selector_.arms(); ++arm)
      if (active(arm)) return true;
    return false;
  }

  std::vector<std::size_t> permitted_arms(const DeviceRequest& request) const {
    check(request.least_rate >= 0 && request.least_rate <= 0.95,
          "Configurator::assign: least_rate must be in [0, 0.95], got ", request.least_rate);
    check(
        chooses_among() || request.least_rate == 0,
        "Configurator::assign: least_rate must be 0 with a selector that cannot choose among some "
        "arms, got ",
        request.least_rate);
    std::vector<std::size_t> permitted;
    double highest = 0;
    for (std::size_t arm = 0; arm < candidates_.size(); ++arm) {
      if (!active(arm)) continue;
      const double mean = candidates_[arm].mean();
      highest = std::max(highest, mean);
      if (mean >= request.least_rate - 1e-9) permitted.push_back(arm);
    }
    check(!permitted.empty(), "Configurator::assign: device ", request.device,
          " can hold mean drop rates of at least ", request.least_rate,
          ", but the highest of the candidates is ", highest);
    return permitted;
  }

  static Ticket select(S& selector, const DeviceRequest& request,
                       std::span<const std::size_t> among) {
    if constexpr (DeviceSelector<S>)
      return selector.select(request.device, among);
    else if constexpr (OpenSelector<S>)
      if (request.least_rate > 0) return selector.select(among);
    if constexpr (!DeviceSelector<S>) return selector.select();
  }

  void renew() {
    auto judged = estimates();
    const std::size_t count = judged.size();
    if (rewarded_ < count) return;
    rewarded_ = 0;
    auto left = static_cast<std::size_t>(std::lround(epsilon_ * static_cast<double>(count)));
    double highest = 0;
    for (const auto& each : judged) highest = std::max(highest, each.configuration.mean());
    std::erase_if(judged, [&](const auto& each) {
      const double mean = each.configuration.mean();
      return each.plays == 0 || mean == 0 || mean == highest;
    });
    std::ranges::stable_sort(judged, {}, [](const auto& each) { return each.merit; });
    for (const auto& each : judged) {
      if (left-- == 0) break;
      selector_.retire(each.arm);
      selector_.add_arm();
      candidates_.push_back(space_.fresh(stream_));
    }
  }

  /// That each play which the selector awaits is open here, or reported.
  void require_same_plays() const {
    S probe = selector_;
    const auto agree = [&](bool same) {
      require(same, "SelectorConfigurator: selector and reports do not agree on the open plays");
    };
    const auto expect = [&](const Ticket& ticket) {
      try {
        probe.expire(ticket);
      } catch (const std::invalid_argument&) {
        agree(false);
      }
    };
    for (const Ticket& ticket : open_.tickets()) expect(ticket);
    for (const GainReport& report : reports_) expect(report.ticket);
    for (std::size_t arm = 0; arm < candidates_.size(); ++arm)
      agree(probe.record(arm).pending == 0);
  }

  S selector_;
  Space space_;
  double epsilon_;
  Stream stream_;
  Rule rule_;
  std::vector<Configuration> candidates_;  // one an arm, the retired ones too
  OpenTickets open_;
  std::vector<GainReport> reports_;
  std::uint64_t round_ = 0;
  std::uint64_t rewarded_ = 0;  // reports since candidates were replaced
};

template <class S, DropoutConfiguration C>
SelectorConfigurator(S, std::vector<C>) -> SelectorConfigurator<S, ConfigurationGrid<C>>;
template <class S, ConfigurationSpace Space, RewardRule Rule>
SelectorConfigurator(S, Space, Rule) -> SelectorConfigurator<S, Space, Rule>;
template <class S, DropoutConfiguration C, class Rule>
SelectorConfigurator(S, std::vector<C>, Rule)
    -> SelectorConfigurator<S, ConfigurationGrid<C>, Rule>;

/// DropPEFT's configurator (arXiv 2503.10217), as recalled: a population of configurations, of
/// which the best survive.
using PopulationConfigurator = SelectorConfigurator<EpsilonGreedySelector, RateSpace>;

/// Settings of a population. All numbers are ours.
struct PopulationOptions {
  Stream stream{};
  /// Candidates at a time, >= 2.
  std::size_t population = 8;
  /// Share of them that is replaced, in [0, 1).
  double epsilon = 0.25;
  /// Share of the plays in [0, 1] for which a candidate is drawn by lot; the others play the best
  /// one. 1: all by lot, nearest to what is known of the paper; 1/2 finds more (docs).
  double exploration = 0.5;
  /// Rewards that count, >= 1.
  std::size_t window = 100;
  RateSpace space{};
};

/// Throws std::invalid_argument for options out of range. For a long run and many devices a round;
/// a short run learns more with a bandit on a small grid, since here a share of the plays always
/// goes to fresh candidates.
inline PopulationConfigurator population_configurator(const PopulationOptions& options = {}) {
  check(options.population >= 2, "PopulationOptions: population must be at least 2, got ",
        options.population);
  check(options.exploration >= 0 && options.exploration <= 1,
        "PopulationOptions: exploration must be in [0, 1], got ", options.exploration);
  check(options.window >= 1, "PopulationOptions: window must be at least 1 reward, got ",
        options.window);
  return {EpsilonGreedySelector(options.population, {.stream = options.stream.fold(0),
                                                     .window = options.window,
                                                     .policy = {.epsilon = options.exploration}}),
          options.space,
          {.stream = options.stream.fold(1), .epsilon = options.epsilon}};
}

}  // namespace droppeft
