#include "droppeft/federated/length_along.hpp"

#include <cmath>
#include <limits>
#include <stdexcept>

#include "support.hpp"

namespace {

using droppeft::length_along;
using droppeft::State;

State state_of(const at::Tensor& a, const at::Tensor& b = {}) {
  State state;
  state.insert("a", a);
  if (b.defined()) state.insert("b", b);
  return state;
}

}  // namespace

TEST_CASE("the length of an update along a direction, by hand") {
  const State direction = state_of(torch::tensor({3.0F}), torch::tensor({0.0F, 4.0F}));
  CHECK(length_along(state_of(torch::tensor({1.0F}), torch::tensor({7.0F, 2.0F})), direction) ==
        doctest::Approx(11.0 / 5));
  // A tensor that the update lacks is zero; one that the direction lacks is left out.
  CHECK(length_along(state_of(torch::tensor({1.0F})), direction) == doctest::Approx(3.0 / 5));
  State more = state_of(torch::tensor({1.0F}));
  more.insert("head", torch::tensor({100.0F}));
  CHECK(length_along(more, direction) == doctest::Approx(3.0 / 5));
}

TEST_CASE("along itself an update is as long as it is, against itself minus that, across it 0") {
  torch::manual_seed(1);
  const State update = state_of(torch::randn({40, 3}));
  const double length = update.at("a").norm().item<double>();
  CHECK(length_along(update, update) == doctest::Approx(length));
  CHECK(length_along(update, -0.5 * update) == doctest::Approx(-length));
  CHECK(length_along(0.25 * update, 8.0 * update) == doctest::Approx(0.25 * length));
  CHECK(length_along(state_of(torch::tensor({1.0F, 0.0F})),
                     state_of(torch::tensor({0.0F, 2.0F}))) == 0);
}

TEST_CASE("without a direction nothing is gained") {
  CHECK(length_along(state_of(torch::ones({2})), State()) == 0);
  CHECK(length_along(state_of(torch::ones({2})), state_of(torch::zeros({2}))) == 0);
}

TEST_CASE("half precision does not overflow, and shapes and numbers that do not fit are refused") {
  const State half = state_of(torch::full({4}, 60000.0F).to(at::kHalf));
  CHECK(length_along(half, half) == doctest::Approx(120000).epsilon(1e-3));
  CHECK_THROWS_WITH_AS(length_along(state_of(torch::ones({2})), state_of(torch::ones({3}))),
                       doctest::Contains("the tensor 'a' has shape [2] in the update and [3]"),
                       std::invalid_argument);
  const auto infinity = std::numeric_limits<float>::infinity();
  CHECK_THROWS_WITH_AS(
      length_along(state_of(torch::full({2}, infinity)), state_of(torch::ones({2}))),
      doctest::Contains("must hold finite numbers"), std::invalid_argument);
}
