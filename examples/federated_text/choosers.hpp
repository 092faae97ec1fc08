#pragma once

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <droppeft/bandit/any_selector.hpp>
#include <droppeft/bandit/epsilon_greedy.hpp>
#include <droppeft/bandit/exp3.hpp>
#include <droppeft/bandit/kl_ucb.hpp>
#include <droppeft/bandit/moss.hpp>
#include <droppeft/bandit/shared_prior.hpp>
#include <droppeft/bandit/softmax.hpp>
#include <droppeft/bandit/thompson.hpp>
#include <droppeft/bandit/ucb.hpp>
#include <droppeft/bandit/ucb_tuned.hpp>
#include <droppeft/bandit/ucb_v.hpp>
#include <droppeft/configurator.hpp>
#include <droppeft/core/check.hpp>
#include <droppeft/pace_configurator.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

/// Who decides the drop rates of the devices.
using Configurator = std::variant<
    droppeft::PaceConfigurator,
    droppeft::SelectorConfigurator<droppeft::AnySelector,
                                   droppeft::ConfigurationGrid<droppeft::Configuration>>,
    droppeft::SelectorConfigurator<droppeft::SharedPriorSelector<droppeft::GaussianThompson>,
                                   droppeft::ConfigurationGrid<droppeft::Configuration>>,
    droppeft::PopulationConfigurator>;
using Assignment = droppeft::Assignment<droppeft::Configuration>;

/// A bandit by the name that --selector gives it. A configurator's rewards are in [0, 1] with a
/// standard deviation of 1/4 and less: those that can be told so are.
struct NamedSelector {
  std::string_view name;
  droppeft::AnySelector (*make)(std::size_t arms, const droppeft::Stream& stream);
};

template <class Policy>
droppeft::AnySelector make_selector(std::size_t arms, const droppeft::Stream& stream,
                                    const Policy& policy = {}) {
  return droppeft::BanditSelector<Policy>(arms, {.stream = stream, .policy = policy});
}

inline constexpr NamedSelector named_selectors[] = {
    {"thompson",
     [](auto arms, auto& stream) {
       return make_selector(arms, stream, droppeft::GaussianThompson{.noise_sd = 0.2});
     }},
    {"beta-thompson",
     [](auto arms, auto& stream) { return make_selector<droppeft::BetaThompson>(arms, stream); }},
    {"nig-thompson",
     [](auto arms, auto& stream) {
       return make_selector<droppeft::NormalInverseGammaThompson>(arms, stream);
     }},
    {"ucb",
     [](auto arms, auto& stream) {
       return make_selector(arms, stream, droppeft::Ucb1{.exploration = 0.1});
     }},
    {"ucb-v", [](auto arms, auto& stream) { return make_selector<droppeft::UcbV>(arms, stream); }},
    {"ucb-tuned",
     [](auto arms, auto& stream) { return make_selector<droppeft::UcbTuned>(arms, stream); }},
    {"moss", [](auto arms, auto& stream) { return make_selector<droppeft::Moss>(arms, stream); }},
    {"kl-ucb",
     [](auto arms, auto& stream) { return make_selector<droppeft::KlUcb>(arms, stream); }},
    {"gaussian-kl-ucb",
     [](auto arms, auto& stream) {
       return make_selector(arms, stream, droppeft::GaussianKlUcb{.noise_sd = 0.2});
     }},
    {"epsilon-greedy",
     [](auto arms, auto& stream) { return make_selector<droppeft::EpsilonGreedy>(arms, stream); }},
    {"softmax",
     [](auto arms, auto& stream) { return make_selector<droppeft::Softmax>(arms, stream); }},
    {"exp3", [](auto arms, auto& stream) { return make_selector<droppeft::Exp3>(arms, stream); }},
};

/// What --selector may be.
inline std::vector<std::string> selector_names() {
  std::vector<std::string> names{"pace", "paper", "shared-thompson"};
  for (const NamedSelector& each : named_selectors) names.emplace_back(each.name);
  return names;
}

/// A mean rate as written in an option, in (0, 0.95] or, if `zero` may be, [0, 0.95].
inline double parse_mean_rate(const std::string& text, const char* option, bool zero) {
  double mean = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), mean);
  droppeft::check(error == std::errc() && end == text.data() + text.size() && mean <= 0.95 &&
                      (mean > 0 || (zero && mean == 0)),
                  option, ": a mean rate must be a number in ", zero ? '[' : '(', "0, 0.95], got '",
                  text, "'");
  return mean;
}

inline droppeft::RateShape parse_shape(const std::string& text, const char* option) {
  try {
    return droppeft::parse_rate_shape(text);
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(std::string(option) + ": " + error.what());
  }
}

/// The configuration that --drop-rate names if it is not auto: "MEAN" or "MEAN:SHAPE".
inline droppeft::Configuration fixed_configuration(const std::string& text) {
  const std::size_t colon = std::min(text.find(':'), text.size());
  droppeft::Configuration fixed{.mean_rate =
                                    parse_mean_rate(text.substr(0, colon), "--drop-rate", true)};
  if (colon < text.size()) fixed.shape = parse_shape(text.substr(colon + 1), "--drop-rate");
  return fixed;
}

/// The configurations that --space names, "MEANS" or "MEANS:SHAPES": no dropout, and each of the
/// mean rates with each of the shapes. Empty: the library's own grid.
inline std::vector<droppeft::Configuration> configurations_of(const std::string& space) {
  using droppeft::check;
  if (space.empty()) return droppeft::configurations();
  const auto parts = [](const std::string& text) {
    std::vector<std::string> found(1);
    for (const char letter : text)
      if (letter == ',')
        found.emplace_back();
      else
        found.back() += letter;
    return found;
  };
  const std::size_t colon = std::min(space.find(':'), space.size());
  std::vector<double> means;
  for (const std::string& part : parts(space.substr(0, colon))) {
    const double mean = parse_mean_rate(part, "--space", false);
    check(means.empty() || mean > means.back(), "--space: mean rates must ascend, got ", mean,
          " after ", means.empty() ? 0 : means.back());
    means.push_back(mean);
  }
  std::vector<droppeft::RateShape> shapes;
  if (colon < space.size())
    for (const std::string& part : parts(space.substr(colon + 1)))
      shapes.push_back(parse_shape(part, "--space"));
  const auto grid =
      shapes.empty() ? droppeft::configurations(means) : droppeft::configurations(means, shapes);
  for (std::size_t i = 1; i < grid.size(); ++i)
    for (std::size_t j = 0; j < i; ++j)
      check(to_string(grid[i]) != to_string(grid[j]), "--space: two configurations are called ",
            to_string(grid[i]));
  return grid;
}

/// The chooser that --selector and --space name, which must be right, for devices of these classes.
inline Configurator make_configurator(const std::string& selector, const std::string& space,
                                      const std::vector<std::size_t>& classes,
                                      const droppeft::Stream& stream) {
  if (selector == "paper") return droppeft::population_configurator({.stream = stream});
  const auto grid = configurations_of(space);
  if (selector == "pace") {
    droppeft::PaceOptions options{.stream = stream};
    options.rates.clear();
    for (const droppeft::Configuration& each : grid)
      if (options.rates.empty() || each.mean_rate > options.rates.back())
        options.rates.push_back(each.mean_rate);
    return droppeft::PaceConfigurator(options);
  }
  if (selector == "shared-thompson")
    return droppeft::SelectorConfigurator(
        droppeft::SharedPriorSelector<droppeft::GaussianThompson>(
            grid.size(), classes, {.stream = stream, .policy = {.noise_sd = 0.2}}),
        grid);
  const auto named = std::ranges::find(named_selectors, selector, &NamedSelector::name);
  return droppeft::SelectorConfigurator(named->make(grid.size(), stream), grid);
}
