#pragma once

#include <algorithm>
#include <boost/random/uniform_int_distribution.hpp>
#include <concepts>
#include <cstddef>
#include <iomanip>
#include <nlohmann/json.hpp>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "droppeft/bandit/saved.hpp"
#include "droppeft/core/check.hpp"
#include "droppeft/dropout/rate_schedule.hpp"
#include "droppeft/random/stream.hpp"

namespace droppeft {

/// What a device is told about layer dropout: one drop rate a layer, drop_rates(layers), of the
/// mean mean(). A configurator asks for names (to_string) and for bits that come back (save, load).
template <class C>
concept DropoutConfiguration = std::equality_comparable<C> && std::copyable<C> &&
    requires(const C& configuration, std::size_t layers, const Saved& saved) {
  { configuration.drop_rates(layers) } -> std::same_as<std::vector<double>>;
  { configuration.mean() } -> std::same_as<double>;
  { to_string(configuration) } -> std::same_as<std::string>;
  { configuration.save() } -> std::same_as<nlohmann::json>;
  { C::load(saved) } -> std::same_as<C>;
};

/// A mean drop rate and where in the depth it falls: DropPEFT's (arXiv 2503.10217), as recalled.
struct Configuration {
  RateShape shape = RateShape::uniform;
  double mean_rate = 0;

  /// One rate a layer; ranges and errors as droppeft::drop_rates.
  std::vector<double> drop_rates(std::size_t layers, double max_rate) const {
    return droppeft::drop_rates(shape, layers, mean_rate, max_rate);
  }
  std::vector<double> drop_rates(std::size_t layers) const { return drop_rates(layers, 0.95); }
  double mean() const { return mean_rate; }

  nlohmann::json save() const { return {{"shape", to_string(shape)}, {"mean_rate", mean_rate}}; }
  static Configuration load(const Saved& saved) {
    const auto shape = std::ranges::find(rate_shapes, saved["shape"].text(),
                                         [](RateShape each) { return to_string(each); });
    require(shape != rate_shapes.end(), "Configuration: unknown shape '", saved["shape"].text(),
            "'");
    return {*shape, saved["mean_rate"].number(0, 0.95)};
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

/// One drop rate a layer, each in [0, 0.95].
struct LayerRates {
  std::vector<double> rates;

  /// The rates; std::invalid_argument unless there are so many layers, and each is in its range.
  std::vector<double> drop_rates(std::size_t layers) const {
    check(rates.size() == layers, "LayerRates: there are rates for ", rates.size(),
          " layers, asked for ", layers);
    for (const double rate : rates)
      check(rate >= 0 && rate <= 0.95, "LayerRates: rates must be in [0, 0.95], got ", rate);
    return rates;
  }
  double mean() const {
    return rates.empty() ? 0
                         : std::accumulate(rates.begin(), rates.end(), 0.0) /
                               static_cast<double>(rates.size());
  }

  nlohmann::json save() const { return rates; }
  static LayerRates load(const Saved& saved) {
    LayerRates loaded;
    for (std::size_t layer = 0; layer < saved.size(); ++layer)
      loaded.rates.push_back(saved.at(layer).number(0, 0.95));
    return loaded;
  }

  friend bool operator==(const LayerRates&, const LayerRates&) = default;
};

/// "0.1 0.25 0.6"; "none" when all are zero.
inline std::string to_string(const LayerRates& configuration) {
  if (configuration.mean() == 0) return "none";
  std::ostringstream text;
  text << std::setprecision(3);
  for (std::size_t layer = 0; layer < configuration.rates.size(); ++layer)
    text << (layer ? " " : "") << configuration.rates[layer];
  return text.str();
}

/// No dropout, then every mean above zero with every shape. Zero is there exactly once, asked for
/// or not: no bandit can help where dropout does not pay, if it may not choose none.
///
/// Means in [0, 0.95], none but zero twice, no shape twice, else std::invalid_argument. The default
/// grid is ours: small, since a federated run has few rounds to learn it in.
inline std::vector<Configuration> configurations(
    const std::vector<double>& means = {1.0 / 3, 2.0 / 3, 5.0 / 6},
    const std::vector<RateShape>& shapes = {RateShape::uniform, RateShape::incremental}) {
  std::vector<Configuration> grid{Configuration{}};
  for (const double mean : means) {
    check(mean >= 0 && mean <= 0.95, "configurations: means must be in [0, 0.95], got ", mean);
    for (const RateShape shape : shapes) {
      const Configuration next{shape, mean};
      check(mean == 0 || std::ranges::find(grid, next) == grid.end(),
            "configurations: no mean and no shape may be there twice, got ", to_string(next));
      if (mean > 0) grid.push_back(next);
    }
  }
  return grid;
}

/// The configurations among which a configurator chooses.
///
/// candidates(count, stream) gives those that it begins with, std::invalid_argument if there are
/// not so many; load(saved) one that was saved, std::runtime_error if it is not of this space;
/// settings() what must agree on load. A RenewableSpace has also fresh(stream), one at random, for
/// a share of candidates that is replaced.
template <class Space>
concept ConfigurationSpace = std::copyable<Space> &&
    DropoutConfiguration<typename Space::Configuration> &&
    requires(const Space& space, std::size_t count, Stream& stream, const Saved& saved) {
  { space.candidates(count, stream) } -> std::same_as<std::vector<typename Space::Configuration>>;
  { space.load(saved) } -> std::same_as<typename Space::Configuration>;
  { space.settings() } -> std::same_as<nlohmann::json>;
};

template <class Space>
concept RenewableSpace = ConfigurationSpace<Space> && requires(const Space& space, Stream& stream) {
  { space.fresh(stream) } -> std::same_as<typename Space::Configuration>;
};

/// These configurations and no others.
template <DropoutConfiguration C>
class ConfigurationGrid {
 public:
  using Configuration = C;

  /// At least one, all different, each with a mean rate in [0, 0.95] and coming back from what it
  /// saves, else std::invalid_argument.
  ConfigurationGrid(std::vector<C> grid) : grid_(std::move(grid)) {  // NOLINT: a list is a grid
    check(!grid_.empty(), "ConfigurationGrid: there must be at least one configuration, got none");
    for (const C& each : grid_) {
      check(each.mean() >= 0 && each.mean() <= 0.95,
            "ConfigurationGrid: mean rates must be in [0, 0.95], got ", each.mean());
      check(std::ranges::count(grid_, each) == 1, "ConfigurationGrid: '", to_string(each),
            "' is there twice");
      try {
        const nlohmann::json saved = each.save();
        check(C::load({saved, "configuration"}) == each, "it is another when it is loaded");
      } catch (const std::exception& error) {
        throw std::invalid_argument("ConfigurationGrid: '" + to_string(each) +
                                    "': " + error.what());
      }
    }
  }

  std::vector<C> candidates(std::size_t count, Stream&) const {
    check(count == grid_.size(), "ConfigurationGrid: the selector must have ", grid_.size(),
          " arms, one a configuration, got ", count);
    return grid_;
  }

  C load(const Saved& saved) const {
    C loaded = C::load(saved);
    require(std::ranges::find(grid_, loaded) != grid_.end(), "ConfigurationGrid: '",
            to_string(loaded), "' is not of the grid");
    return loaded;
  }

  nlohmann::json settings() const {
    auto grid = nlohmann::json::array();
    for (const C& each : grid_) grid.push_back(each.save());
    return grid;
  }

 private:
  std::vector<C> grid_;
};

/// All mean rates up to a highest one, with all of some shapes: the first candidates are no dropout
/// and the highest rate, a fresh one has a mean uniform in [0, max_mean_rate] and any of the
/// shapes. Numbers ours.
class RateSpace {
 public:
  using Configuration = droppeft::Configuration;

  /// max_mean_rate in [0, 0.95], at least one shape, else std::invalid_argument.
  explicit RateSpace(double max_mean_rate = 0.8,
                     std::vector<RateShape> shapes = {rate_shapes.begin(), rate_shapes.end()})
      : max_mean_rate_(max_mean_rate), shapes_(std::move(shapes)) {
    check(max_mean_rate_ >= 0 && max_mean_rate_ <= 0.95,
          "RateSpace: max_mean_rate must be in [0, 0.95], got ", max_mean_rate_);
    check(!shapes_.empty(), "RateSpace: shapes must hold at least one shape, got none");
  }

  std::vector<Configuration> candidates(std::size_t count, Stream& stream) const {
    std::vector<Configuration> candidates{Configuration{}, {shapes_.front(), max_mean_rate_}};
    while (candidates.size() < count) candidates.push_back(fresh(stream));
    candidates.resize(count);
    return candidates;
  }

  Configuration fresh(Stream& stream) const {
    boost::random::uniform_int_distribution<std::size_t> shape(0, shapes_.size() - 1);
    const RateShape chosen = shapes_[shape(stream)];
    return {chosen, stream.uniform() * max_mean_rate_};
  }

  Configuration load(const Saved& saved) const {
    const Configuration loaded = Configuration::load(saved);
    require(loaded.mean_rate <= max_mean_rate_, "RateSpace: mean_rate must be at most ",
            max_mean_rate_, ", got ", loaded.mean_rate);
    require(loaded.mean_rate == 0 || std::ranges::find(shapes_, loaded.shape) != shapes_.end(),
            "RateSpace: the shape ", to_string(loaded.shape), " is not of the space");
    return loaded;
  }

  nlohmann::json settings() const {
    auto shapes = nlohmann::json::array();
    for (const RateShape shape : shapes_) shapes.push_back(to_string(shape));
    return {{"max_mean_rate", max_mean_rate_}, {"shapes", shapes}};
  }

 private:
  double max_mean_rate_;
  std::vector<RateShape> shapes_;
};

/// One rate for each of `layers` layers: the first candidates are no dropout and the highest rate
/// for all, a fresh one has a mean uniform in [0, max_mean_rate], spread over the layers in
/// proportion to uniform random weights (rates drawn each by itself would all have a mean near the
/// middle, where there are many layers); none exceeds 0.95. Ours.
///
/// For a long run: there is a number a layer to find out. Where layers differ by their depth alone
/// a RateSpace learns sooner.
class LayerRateSpace {
 public:
  using Configuration = LayerRates;

  /// layers in [1, 10000], max_mean_rate in [0, 0.95], else std::invalid_argument.
  explicit LayerRateSpace(std::size_t layers, double max_mean_rate = 0.8)
      : layers_(layers), max_mean_rate_(max_mean_rate) {
    check(layers_ >= 1 && layers_ <= 10000, "LayerRateSpace: layers must be in [1, 10000], got ",
          layers_);
    check(max_mean_rate_ >= 0 && max_mean_rate_ <= 0.95,
          "LayerRateSpace: max_mean_rate must be in [0, 0.95], got ", max_mean_rate_);
  }

  std::vector<LayerRates> candidates(std::size_t count, Stream& stream) const {
    std::vector<LayerRates> candidates{LayerRates{std::vector<double>(layers_, 0.0)},
                                       LayerRates{std::vector<double>(layers_, max_mean_rate_)}};
    while (candidates.size() < count) candidates.push_back(fresh(stream));
    candidates.resize(count);
    return candidates;
  }

  LayerRates fresh(Stream& stream) const {
    const double mean = stream.uniform() * max_mean_rate_;
    std::vector<double> weights(layers_);
    for (double& weight : weights) weight = 1e-9 + stream.uniform();
    return {spread_rates(weights, mean, 0.95)};
  }

  LayerRates load(const Saved& saved) const {
    LayerRates loaded = LayerRates::load(saved);
    require(loaded.rates.size() == layers_, "LayerRateSpace: there must be rates for ", layers_,
            " layers, got ", loaded.rates.size());
    require(loaded.mean() <= max_mean_rate_ + 1e-9,
            "LayerRateSpace: the mean rate must be at most ", max_mean_rate_, ", got ",
            loaded.mean());
    return loaded;
  }

  nlohmann::json settings() const {
    return {{"layers", layers_}, {"max_mean_rate", max_mean_rate_}};
  }

 private:
  std::size_t layers_;
  double max_mean_rate_;
};

}  // namespace droppeft
