#include "droppeft/dropout/rate_schedule.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

using namespace droppeft;

namespace {

double mean_of(const std::vector<double>& rates) {
  return std::accumulate(rates.begin(), rates.end(), 0.0) / static_cast<double>(rates.size());
}

// A schedule written by a user: the first layers always run, the others share the mean.
struct KeepFirst {
  std::size_t kept;

  std::vector<double> operator()(std::size_t layers, double mean) const {
    std::vector<double> rates(layers, 0.0);
    const double rate = mean * static_cast<double>(layers) / static_cast<double>(layers - kept);
    std::fill(rates.begin() + static_cast<std::ptrdiff_t>(kept), rates.end(), rate);
    return rates;
  }
};
static_assert(RateSchedule<KeepFirst>);

}  // namespace

TEST_CASE("every shape has the exact mean, and rates within the limit, at every depth") {
  for (const RateShape shape : rate_shapes)
    for (const std::size_t layers : {1U, 2U, 3U, 6U, 12U, 24U, 97U})
      for (const double limit : {0.3, 0.8, 0.95, 1 - 0x1p-53})
        for (const double share : {0.0, 1e-9, 0.1, 0.5, 0.77, 0.99, 1.0}) {
          CAPTURE(to_string(shape));
          CAPTURE(layers);
          CAPTURE(limit);
          CAPTURE(share);
          const double mean = share * limit;
          const auto rates = drop_rates(shape, layers, mean, limit);
          CHECK(rates.size() == layers);
          CHECK(std::ranges::all_of(rates, [=](double p) { return p >= 0 && p <= limit; }));
          CHECK(std::abs(mean_of(rates) - mean) <= 4e-16 * static_cast<double>(layers));
        }
}

TEST_CASE("unclipped incremental rates are 2 p l / (L + 1)") {
  const auto rates = drop_rates(RateShape::incremental, 6, 0.5);
  for (std::size_t l = 1; l <= 6; ++l)
    CHECK(rates[l - 1] == doctest::Approx(2 * 0.5 * static_cast<double>(l) / 7).epsilon(1e-15));
}

TEST_CASE("unclipped normal rates are a Gaussian bump of width L / 4") {
  const auto rates = drop_rates(RateShape::normal, 8, 0.3);
  for (std::size_t l = 1; l < 8; ++l) {
    const auto log_bump = [](double x) { return -(x - 4.5) * (x - 4.5) / (2 * 2.0 * 2.0); };
    const auto x = static_cast<double>(l);
    CHECK(std::log(rates[l] / rates[l - 1]) ==
          doctest::Approx(log_bump(x + 1) - log_bump(x)).epsilon(1e-12));
  }
}

TEST_CASE("what clipping takes goes to the other layers in proportion") {
  // Weights 1..4 with mean 0.8: layers 3 and 4 clip at 0.95, the rest share 3.2 - 1.9 as 1 : 2.
  const auto rates = drop_rates(RateShape::incremental, 4, 0.8, 0.95);
  CHECK(rates[3] == 0.95);
  CHECK(rates[2] == 0.95);
  CHECK(rates[1] == doctest::Approx(1.3 * 2 / 3).epsilon(1e-15));
  CHECK(rates[0] == doctest::Approx(1.3 / 3).epsilon(1e-15));
}

TEST_CASE("monotone shapes stay monotone, symmetric ones symmetric") {
  for (const std::size_t layers : {2U, 5U, 24U})
    for (double mean = 0; mean <= 0.95; mean += 0.05) {
      const auto up = drop_rates(RateShape::incremental, layers, mean);
      CHECK(std::ranges::is_sorted(up));
      auto down = drop_rates(RateShape::decay, layers, mean);
      std::ranges::reverse(down);
      CHECK(up == down);
      const auto bump = drop_rates(RateShape::normal, layers, mean);
      for (std::size_t l = 0; l < layers / 2; ++l) {
        CHECK(bump[l] == bump[layers - 1 - l]);
        CHECK(bump[l] <= bump[l + 1]);
      }
    }
}

TEST_CASE("uniform rates are the mean itself") {
  for (const double rate : drop_rates(RateShape::uniform, 3, 0.1)) CHECK(rate == 0.1);
}

TEST_CASE("rates are spread in proportion to weights, and what is clipped goes to the others") {
  const std::vector<double> weights{1, 2, 5};
  CHECK(spread_rates(weights, 0.2)[2] == doctest::Approx(0.375));
  const auto rates = spread_rates(weights, 0.5, 0.9);
  CHECK(rates[0] == doctest::Approx(0.2));
  CHECK(rates[1] == doctest::Approx(0.4));
  CHECK(rates[2] == 0.9);
  for (const std::vector<double>& bad :
       {std::vector<double>{}, {1.0, 0.0}, {1.0, std::nan("")}, {-1.0}})
    CHECK_THROWS_WITH_AS(spread_rates(bad, 0.5), doctest::Contains("spread_rates: weights"),
                         std::invalid_argument);
  CHECK_THROWS_AS(spread_rates(weights, 0.96), std::invalid_argument);
  CHECK_THROWS_AS(spread_rates(weights, 0.5, 1), std::invalid_argument);
}

TEST_CASE("wrong arguments of drop_rates are refused by name and value") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const auto shape = RateShape::uniform;
  CHECK_THROWS_WITH_AS(drop_rates(shape, 0, 0.5), doctest::Contains("layers must be at least 1"),
                       std::invalid_argument);
  for (const double mean : {-0.1, 0.96, 1.5, nan})
    CHECK_THROWS_WITH_AS(drop_rates(shape, 6, mean), doctest::Contains("mean must be in [0"),
                         std::invalid_argument);
  for (const double limit : {-0.1, 1.0, nan})
    CHECK_THROWS_WITH_AS(drop_rates(shape, 6, 0, limit), doctest::Contains("max_rate must be in"),
                         std::invalid_argument);
}

TEST_CASE("a rate that is not in [0, 1) is refused by index and value") {
  CHECK_NOTHROW(check_drop_rates(std::vector{0.0, 0.5, 1 - 0x1p-53}, "Here"));
  CHECK_THROWS_WITH_AS(check_drop_rates(std::vector{0.1, 1.5}, "Here"),
                       "Here: drop_rates[1] must be in [0, 1), got 1.5", std::invalid_argument);
  for (const double bad : {1.0, -0.25, std::numeric_limits<double>::quiet_NaN()})
    CHECK_THROWS_AS(check_drop_rates(std::vector{bad}, "Here"), std::invalid_argument);
  CHECK_THROWS_AS(check_drop_rates({}, "Here"), std::invalid_argument);
}

TEST_CASE("shapes have names and are found by them") {
  for (const RateShape shape : rate_shapes) CHECK(parse_rate_shape(to_string(shape)) == shape);
  CHECK(to_string(RateShape::decay) == "decay");
  CHECK_THROWS_WITH_AS(parse_rate_shape("linear"), doctest::Contains("got 'linear'"),
                       std::invalid_argument);
}

TEST_CASE("a user's schedule is used when it keeps its word and refused when not") {
  const auto rates = scheduled_rates(KeepFirst{2}, 6, 0.4);
  CHECK(rates[1] == 0);
  CHECK(rates[2] == doctest::Approx(0.6));
  CHECK_THROWS_WITH_AS(scheduled_rates(KeepFirst{3}, 6, 0.6), doctest::Contains("drop_rates[3]"),
                       std::invalid_argument);
  const auto forgets_the_mean = [](std::size_t layers, double) {
    return std::vector<double>(layers, 0.5);
  };
  CHECK_THROWS_WITH_AS(scheduled_rates(forgets_the_mean, 6, 0.4),
                       doctest::Contains("must have the mean"), std::invalid_argument);
  const auto forgets_a_layer = [](std::size_t layers, double mean) {
    return std::vector<double>(layers - 1, mean);
  };
  CHECK_THROWS_WITH_AS(scheduled_rates(forgets_a_layer, 6, 0.4),
                       doctest::Contains("one rate a layer"), std::invalid_argument);
}
