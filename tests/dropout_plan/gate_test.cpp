#include "droppeft/dropout/gate.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <limits>
#include <map>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "droppeft/dropout/rate_schedule.hpp"
#include "droppeft/random/stream.hpp"

using namespace droppeft;

static_assert(Gate<BernoulliGate> && Gate<FixedGate>);

namespace {

// A gate written by a user: an early exit at a random depth; layers after it are dropped.
struct EarlyExit {
  Plan operator()(std::span<const double> drop_rates, Stream stream) const {
    Plan plan(drop_rates.size());
    const double depth = stream.uniform();
    for (std::size_t layer = 0; layer < drop_rates.size(); ++layer)
      plan.set(layer, depth >= drop_rates[layer]);
    return plan;
  }
};
static_assert(Gate<EarlyExit>);

std::string text(const Plan& plan) {
  std::string letters;
  for (std::size_t layer = 0; layer < plan.layers(); ++layer)
    letters += plan.active(layer) ? '1' : '0';
  return letters;
}

double sigmas(double hits, double trials, double probability) {
  const double sd = std::sqrt(trials * probability * (1 - probability));
  const double off = hits - trials * probability;
  return sd > 0 ? off / sd : off == 0 ? 0 : std::numeric_limits<double>::infinity();
}

constexpr int trials = 40000;

template <class G>
std::map<std::string, int> histogram(const G& gate, const std::vector<double>& rates,
                                     std::uint64_t seed) {
  std::map<std::string, int> seen;
  for (std::uint64_t i = 0; i < trials; ++i) ++seen[text(gate(rates, Stream(seed).fold(i)))];
  return seen;
}

template <class G>
void check_marginals(const G& gate, const std::vector<double>& rates, std::uint64_t seed) {
  const auto marginal = gate.marginal_rates(rates);
  std::vector<double> dropped(rates.size(), 0.0);
  for (const auto& [plan, times] : histogram(gate, rates, seed))
    for (std::size_t layer = 0; layer < rates.size(); ++layer)
      if (plan[layer] == '0') dropped[layer] += times;
  for (std::size_t layer = 0; layer < rates.size(); ++layer) {
    CAPTURE(layer);
    CHECK(std::abs(sigmas(dropped[layer], trials, marginal[layer])) <= 5);
  }
}

const std::vector<std::vector<double>> rate_lists{drop_rates(RateShape::uniform, 6, 0.5),
                                                  drop_rates(RateShape::incremental, 6, 0.5),
                                                  drop_rates(RateShape::decay, 12, 0.3),
                                                  drop_rates(RateShape::normal, 5, 0.8),
                                                  {0.0, 0.37, 0.9, 0.11, 0.62},
                                                  {0.9, 0.95, 0.8},
                                                  {0.99},
                                                  {0.5, 0.99, 0.0}};

}  // namespace

TEST_CASE("a plan begins with all layers active and remembers what is set") {
  Plan plan(3);
  CHECK(plan.layers() == 3);
  CHECK(plan.active_count() == 3);
  plan.set(1, false);
  plan.set(1, false);
  CHECK_FALSE(plan.active(1));
  CHECK(plan.active_count() == 2);
  CHECK_FALSE(plan == Plan(3));
  plan.set(1, true);
  CHECK(plan == Plan(3));
  CHECK_FALSE(plan == Plan(4));
  CHECK_THROWS_WITH_AS(plan.active(3), "Plan: layer must be below 3, got 3", std::invalid_argument);
  CHECK_THROWS_AS(plan.set(7, true), std::invalid_argument);
}

TEST_CASE("each layer is dropped at the rate that marginal_rates tells, within 5 sigma") {
  std::uint64_t seed = 100;
  for (const auto& rates : rate_lists)
    for (const bool keep_one : {false, true}) {
      CAPTURE(seed);
      CAPTURE(keep_one);
      check_marginals(BernoulliGate{.keep_one = keep_one}, rates, ++seed);
      check_marginals(FixedGate{.keep_one = keep_one}, rates, ++seed);
    }
}

TEST_CASE("without keep_one the marginal rates are the rates") {
  for (const auto& rates : rate_lists) {
    CHECK(BernoulliGate{}.marginal_rates(rates)[0] == doctest::Approx(rates[0]).epsilon(1e-15));
    CHECK(FixedGate{}.marginal_rates(rates)[0] == doctest::Approx(rates[0]).epsilon(1e-15));
  }
}

TEST_CASE("keep_one changes the marginal rates as stated") {
  // P(none) = 0.9 x 0.95 x 0.8 = 0.684; the keep rates sum to 0.35.
  const std::vector<double> rates{0.9, 0.95, 0.8};
  const auto bernoulli = BernoulliGate{.keep_one = true}.marginal_rates(rates);
  CHECK(bernoulli[0] == doctest::Approx(1 - 0.1 / 0.316).epsilon(1e-14));
  CHECK(bernoulli[2] == doctest::Approx(1 - 0.2 / 0.316).epsilon(1e-14));
  const auto fixed = FixedGate{.keep_one = true}.marginal_rates(rates);
  CHECK(fixed[1] == doctest::Approx(1 - 0.05 / 0.35).epsilon(1e-14));
}

TEST_CASE("keep_one never drops all layers, however high the rates") {
  const double highest = 1 - 0x1p-53;
  for (const std::vector<double>& rates :
       {std::vector{highest}, std::vector(4, highest), std::vector{0.99, highest, 0.999},
        std::vector(24, 0.95)}) {
    for (std::uint64_t i = 0; i < 2000; ++i) {
      const Stream stream = Stream(8).fold(i);
      CHECK(BernoulliGate{.keep_one = true}(rates, stream).active_count() >= 1);
      const auto kept = FixedGate{.keep_one = true}(rates, stream).active_count();
      CHECK(kept >= 1);
      if (rates.size() <= 4) CHECK(kept == 1);
    }
  }
}

TEST_CASE("without keep_one all layers may be dropped") {
  CHECK(histogram(BernoulliGate{}, {0.9, 0.95, 0.8}, 9).count("000") == 1);
  CHECK(histogram(FixedGate{}, {0.9, 0.95, 0.8}, 9).count("000") == 1);
}

TEST_CASE("Bernoulli layers are independent: every plan has the product of its odds") {
  const std::vector<double> rates{0.2, 0.5, 0.7, 0.9};
  double none = 1;
  for (const double rate : rates) none *= rate;
  for (const bool keep_one : {false, true}) {
    const auto seen = histogram(BernoulliGate{.keep_one = keep_one}, rates, 10);
    for (const auto& [plan, times] : seen) {
      double odds = keep_one ? 1 / (1 - none) : 1;
      for (std::size_t l = 0; l < 4; ++l) odds *= plan[l] == '1' ? 1 - rates[l] : rates[l];
      const std::string& shown = plan;
      CAPTURE(shown);
      CHECK(std::abs(sigmas(times, trials, odds)) <= 5);
    }
    CHECK(seen.size() == (keep_one ? 15 : 16));
  }
}

TEST_CASE("a fixed gate keeps exactly k layers when the keep rates sum to k, to rounding") {
  for (const std::size_t layers : {3U, 6U, 7U, 12U, 24U, 96U})
    for (std::size_t k = 1; k <= layers; ++k)
      for (const RateShape shape : rate_shapes) {
        const double mean = static_cast<double>(layers - k) / static_cast<double>(layers);
        if (mean > 0.95) continue;
        const auto rates = drop_rates(shape, layers, mean);
        for (std::uint64_t i = 0; i < 20; ++i)
          CHECK(FixedGate{}(rates, Stream(k).fold(i)).active_count() == k);
      }
}

TEST_CASE("rates off by a rounding error do not change k in any of many draws") {
  // 10 x 0.1 and 3 x 0.7 miss their whole number in binary; so do shares written with 10 digits.
  for (const auto& [rates, k] : {std::pair{std::vector(10, 0.1), std::size_t{9}},
                                 {std::vector(10, 0.7), std::size_t{3}},
                                 {std::vector(3, 0.6666666667), std::size_t{1}},
                                 {std::vector(3, 0.3333333333), std::size_t{2}}})
    for (std::uint64_t i = 0; i < 5000; ++i)
      CHECK(FixedGate{}(rates, Stream(12).fold(i)).active_count() == k);
}

TEST_CASE("when the keep rates sum to no whole number, k is its floor or ceiling with the odds") {
  const std::vector<double> rates{0.0, 0.37, 0.9, 0.11, 0.62};  // the keep rates sum to 3
  CHECK(histogram(FixedGate{}, rates, 13).size() > 1);
  const std::vector<double> uneven{0.3, 0.3, 0.3, 0.3};  // 2.8
  std::map<std::size_t, int> counts;
  for (std::uint64_t i = 0; i < trials; ++i)
    ++counts[FixedGate{}(uneven, Stream(14).fold(i)).active_count()];
  CHECK(counts.size() == 2);
  CHECK(std::abs(sigmas(counts[3], trials, 0.8)) <= 5);
}

TEST_CASE("with equal rates all k-subsets come up, each with the same odds") {
  const auto seen = histogram(FixedGate{}, std::vector<double>(6, 0.5), 15);
  CHECK(seen.size() == 20);
  for (const auto& [plan, times] : seen) {
    const std::string& shown = plan;
    CAPTURE(shown);
    CHECK(std::abs(sigmas(times, trials, 1 / 20.0)) <= 5);
  }
}

TEST_CASE("with equal rates two layers are kept together with k (k - 1) / (L (L - 1))") {
  double both = 0;
  for (const auto& [plan, times] : histogram(FixedGate{}, std::vector<double>(8, 0.625), 16))
    if (plan[2] == '1' && plan[5] == '1') both += times;
  CHECK(std::abs(sigmas(both, trials, 3 * 2 / (8.0 * 7.0))) <= 5);
}

TEST_CASE("the same stream gives the same plan, another stream another") {
  const auto rates = drop_rates(RateShape::incremental, 12, 0.5);
  const Stream stream = Stream(1).fold(2);
  CHECK(FixedGate{}(rates, stream) == FixedGate{}(rates, stream));
  CHECK(BernoulliGate{}(rates, stream) == BernoulliGate{}(rates, stream));
  CHECK_FALSE(FixedGate{}(rates, stream) == FixedGate{}(rates, Stream(1).fold(3)));
}

TEST_CASE("rates of zero keep everything") {
  const std::vector<double> none(6, 0.0);
  for (std::uint64_t i = 0; i < 100; ++i) {
    const Stream stream = Stream(17).fold(i);
    CHECK(BernoulliGate{}(none, stream) == Plan(6));
    CHECK(FixedGate{}(none, stream) == Plan(6));
  }
}

TEST_CASE("rates out of range are refused by name, index and value") {
  const Stream stream(18);
  for (const double bad : {1.0, 1.5, -0.1, std::numeric_limits<double>::quiet_NaN()}) {
    const std::vector<double> rates{0.1, bad};
    CHECK_THROWS_WITH_AS(BernoulliGate{}(rates, stream),
                         doctest::Contains("BernoulliGate: drop_rates[1] must be in [0, 1), got "),
                         std::invalid_argument);
    CHECK_THROWS_WITH_AS(FixedGate{}(rates, stream),
                         doctest::Contains("FixedGate: drop_rates[1] must be in [0, 1), got "),
                         std::invalid_argument);
    CHECK_THROWS_AS(FixedGate{}.marginal_rates(rates), std::invalid_argument);
  }
  CHECK_THROWS_AS(BernoulliGate{}(std::vector<double>{}, stream), std::invalid_argument);
}

TEST_CASE("golden plans: the same on every machine and standard library") {
  const auto rates = drop_rates(RateShape::incremental, 12, 0.5);
  const auto golden = [&](const auto& gate) {
    std::string plans;
    for (std::uint64_t step = 0; step < 3; ++step) {
      plans += text(gate(rates, Stream(42).fold(step))) + ' ';
    }
    return plans;
  };
  CHECK(golden(BernoulliGate{}) == "111100000110 001011100000 110010010000 ");
  CHECK(golden(BernoulliGate{.keep_one = true}) == "111100000110 101011100000 110010010000 ");
  CHECK(golden(FixedGate{}) == "111110000010 111110100000 110111000010 ");
  CHECK(text(FixedGate{.keep_one = true}(std::vector(6, 0.9), Stream(42))) == "000001");
}
