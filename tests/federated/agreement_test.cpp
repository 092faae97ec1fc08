#include "droppeft/federated/agreement.hpp"

#include <cmath>
#include <limits>
#include <span>
#include <stdexcept>
#include <vector>

#include "support.hpp"

namespace {

using droppeft::agreement;
using droppeft::State;

State state_of(const at::Tensor& tensor) {
  State state;
  state.insert("w", tensor);
  return state;
}

std::vector<State> random_updates(std::int64_t clients) {
  std::vector<State> updates;
  for (std::int64_t i = 0; i < clients; ++i) {
    updates.push_back(state_of(torch::randn({4, 3})));
    updates.back().insert("b", torch::randn({2}));
  }
  return updates;
}

}  // namespace

TEST_CASE("the length of an update along the weighted sum of the others, by hand") {
  const std::vector<State> updates{state_of(torch::tensor({3.0F, 4.0F})),
                                   state_of(torch::tensor({1.0F, 0.0F})),
                                   state_of(torch::tensor({0.0F, 2.0F}))};
  const std::vector<double> weights{1, 3, 2};
  // v_0 = (3, 4), v_1 = (3, 8), v_2 = (6, 4).
  const auto given = agreement(updates, weights);
  CHECK(given[0] == doctest::Approx(5));
  CHECK(given[1] == doctest::Approx(3 / std::sqrt(73)));
  CHECK(given[2] == doctest::Approx(8 / std::sqrt(52)));
}

TEST_CASE("a common factor of the weights changes nothing, one of an update scales its own") {
  torch::manual_seed(1);
  auto updates = random_updates(4);
  const std::vector<double> weights{1, 2, 3, 4}, scaled{10, 20, 30, 40};
  const auto before = agreement(updates, weights), after = agreement(updates, scaled);
  for (std::size_t i = 0; i < 4; ++i) CHECK(after[i] == doctest::Approx(before[i]));
  updates[2] = 0.5 * updates[2];
  CHECK(agreement(updates, weights)[2] == doctest::Approx(0.5 * before[2]));
}

TEST_CASE("equal updates agree by their whole length, opposed ones by its negative, none by 0") {
  torch::manual_seed(2);
  const State update = state_of(torch::randn({50}));
  const double length = update.at("w").norm().item<double>();
  const std::vector<double> ones(3, 1);
  for (const double each : agreement(std::vector<State>(3, update), ones))
    CHECK(each == doctest::Approx(length));
  const auto given = agreement(std::vector<State>{update, update, -1.0 * update}, ones);
  CHECK(given[2] == doctest::Approx(-length));
  CHECK(agreement(std::vector<State>{update, 0.0 * update}, std::vector<double>(2, 1)) ==
        std::vector<double>{0, 0});
}

TEST_CASE("what a client does not send counts as a zero update") {
  torch::manual_seed(3);
  auto updates = random_updates(3);
  const std::vector<double> weights{1, 2, 3};
  auto padded = updates;
  updates[1] = updates[1].select([](auto name) { return name != "b"; });
  padded[1] = updates[1];
  padded[1].insert("b", torch::zeros({2}));
  CHECK(agreement(updates, weights) == agreement(padded, weights));
  updates[1] = State();
  CHECK(agreement(updates, weights)[1] == 0);
}

// The inner product of two independent updates has the mean |E u|^2 and, in d dimensions with noise
// of standard deviation s, the variance 2 s^2 |E u|^2 + d s^4: here 1 and 0.02 + 0.1.
TEST_CASE("noise of its own does not make a client agree") {
  torch::manual_seed(4);
  const std::int64_t size = 1000;
  const at::Tensor direction = torch::full({size}, 1 / std::sqrt(static_cast<double>(size)));
  double mean = 0;
  const int trials = 400;
  for (int trial = 0; trial < trials; ++trial) {
    const std::vector<State> updates{state_of(direction + 0.1 * torch::randn({size})),
                                     state_of(direction + 0.1 * torch::randn({size}))};
    const double length = updates[1].at("w").norm().item<double>();
    mean += agreement(updates, std::vector<double>(2, 1))[0] * length / trials;
  }
  CHECK(std::abs(mean - 1) < 5 * std::sqrt(0.12 / trials));
}

TEST_CASE("what does not fit is refused by name") {
  const State update = state_of(torch::ones({2}));
  const std::vector<State> two{update, update};
  using Weights = std::vector<double>;
  CHECK_THROWS_AS(agreement(std::vector<State>{update}, Weights{1}), std::invalid_argument);
  CHECK_THROWS_AS(agreement(two, Weights{1}), std::invalid_argument);
  for (const double bad : {0.0, -1.0, std::numeric_limits<double>::quiet_NaN()})
    CHECK_THROWS_AS(agreement(two, Weights{1, bad}), std::invalid_argument);
  CHECK_THROWS_WITH_AS(
      agreement(std::vector<State>{update, update, std::nan("") * update}, Weights{1, 1, 1}),
      "agreement: updates[2] must hold finite numbers", std::invalid_argument);
  CHECK_THROWS_WITH_AS(
      agreement(std::vector<State>{update, state_of(torch::ones({3}))}, Weights{1, 1}),
      "agreement: the tensor 'w' has shape [2] in one update and [3] in another",
      std::invalid_argument);
}
