#include "droppeft/dropout/plan_codebook.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <set>
#include <stdexcept>
#include <vector>

namespace {

using droppeft::Plan;
using droppeft::PlanCodebook;
using droppeft::Stream;
using Rates = std::vector<double>;

TEST_CASE("each layer is in its share of the plans, and all plans have as many layers") {
  for (const Rates& rates :
       {Rates(24, 0.5), Rates(7, 0.3), Rates{0, 0.1, 0.2, 0.4, 0.8, 0.99}, Rates{0.5}, Rates(6, 0)})
    for (const std::size_t size : {1, 2, 3, 16, 64, 101}) {
      const PlanCodebook codebook(rates, size, Stream(size));
      REQUIRE(codebook.plans().size() == size);
      const auto plans = static_cast<double>(size);
      double total = 0;
      for (std::size_t layer = 0; layer < rates.size(); ++layer) {
        const double kept = plans * (1 - codebook.marginal_rates()[layer]);
        CHECK(std::abs(kept - std::max(1.0, std::round(plans * (1 - rates[layer])))) < 1e-9);
        total += kept;
      }
      for (const Plan& plan : codebook.plans()) {
        CHECK(static_cast<double>(plan.active_count()) >= std::floor(total / plans + 1e-9));
        CHECK(static_cast<double>(plan.active_count()) <= std::ceil(total / plans - 1e-9));
      }
    }
}

TEST_CASE("plans differ, and pairs of layers meet as often as in random plans") {
  constexpr std::size_t layers = 12, size = 2000;
  const PlanCodebook codebook(Rates(layers, 0.5), size, Stream(1));
  std::set<std::vector<bool>> different;
  std::vector<std::vector<int>> together(layers, std::vector<int>(layers));
  for (const Plan& plan : codebook.plans()) {
    std::vector<bool> active;
    for (std::size_t i = 0; i < layers; ++i) active.push_back(plan.active(i));
    different.insert(active);
    for (std::size_t i = 0; i < layers; ++i)
      for (std::size_t j = 0; j < i; ++j) together[i][j] += plan.active(i) && plan.active(j);
  }
  // Of 924 plans with 6 of 12 layers each is missed with probability (1 - 1 / 924)^2000 = 0.115:
  // 818 are expected, with a standard deviation below sqrt(924 0.115) = 10.3.
  CHECK(different.size() > 818 - 6 * 11);
  // Both of a pair: with probability 6/12 5/11 = 0.2273, so 454.5 times; deviation 18.7 if plans
  // are independent.
  for (std::size_t i = 0; i < layers; ++i)
    for (std::size_t j = 0; j < i; ++j) CHECK(std::abs(together[i][j] - 454.5) < 5 * 18.7);
}

TEST_CASE("a codebook repeats itself, and draws each of its plans") {
  const Rates rates{0.1, 0.5, 0.9, 0.5};
  CHECK(PlanCodebook(rates, 9, Stream(4)).plans() == PlanCodebook(rates, 9, Stream(4)).plans());
  CHECK(PlanCodebook(rates, 9, Stream(4)).plans() != PlanCodebook(rates, 9, Stream(5)).plans());

  const PlanCodebook codebook(rates, 5, Stream(2));
  Stream stream(3);
  std::vector<int> drawn(5);
  for (int i = 0; i < 5000; ++i)
    ++drawn[static_cast<std::size_t>(&codebook.draw(stream) - codebook.plans().data())];
  for (const int count : drawn) CHECK(std::abs(count - 1000) < 5 * 28.3);  // sqrt(5000 0.2 0.8)
}

TEST_CASE("bad rates and sizes are refused") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const Rates& rates : {Rates{}, Rates{1}, Rates{-0.1}, Rates{0.5, nan}})
    CHECK_THROWS_AS(PlanCodebook(rates, 4, Stream()), std::invalid_argument);
  CHECK_THROWS_AS(PlanCodebook(Rates{0.5}, 0, Stream()), std::invalid_argument);
}

}  // namespace
