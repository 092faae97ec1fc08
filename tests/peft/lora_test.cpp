#include "droppeft/peft/lora.hpp"

#include <cmath>
#include <limits>
#include <stdexcept>

#include "support.hpp"

namespace {

using droppeft::Lora;
using droppeft::LoraOptions;
using Throws = std::invalid_argument;

void randomize(Lora& lora) {
  torch::NoGradGuard no_grad;
  lora->B.normal_();
}

}  // namespace

TEST_CASE("a new adapter has A uniform in +-1/sqrt(in), B zero and peft's names and shapes") {
  torch::manual_seed(1);
  const Lora lora(400, 30, 50);
  const auto parameters = lora->named_parameters();
  REQUIRE(parameters.size() == 2);
  CHECK(parameters["A"].sizes() == torch::IntArrayRef{50, 400});
  CHECK(parameters["B"].sizes() == torch::IntArrayRef{30, 50});
  CHECK(lora->B.eq(0).all().item<bool>());
  // 20,000 numbers uniform in +-1/20: mean 0, variance 1/1200, and of squares mean 1/1200 and
  // variance (1/5 - 1/9) / 20^4.
  CHECK(lora->A.abs().max().item<double>() <= 1 / 20.0);
  const double n = 20000;
  const double mean = lora->A.mean().item<double>() / std::sqrt(1 / 1200.0 / n);
  const double square = (lora->A.square().mean().item<double>() - 1 / 1200.0) /
                        std::sqrt((1 / 5.0 - 1 / 9.0) / 160000 / n);
  CHECK_MESSAGE(std::abs(mean) < 5, "mean off by ", mean, " sigmas");
  CHECK_MESSAGE(std::abs(square) < 5, "variance off by ", square, " sigmas");
}

TEST_CASE("the update is scaled by alpha / r, rank-stabilised by alpha / sqrt(r)") {
  CHECK(LoraOptions(4).scaling() == 2);
  CHECK(LoraOptions(4).alpha(3).scaling() == 0.75);
  CHECK(LoraOptions(4).alpha(3).rslora(true).scaling() == 1.5);
}

TEST_CASE("forward is x delta^T") {
  torch::manual_seed(2);
  Lora lora(6, 4, LoraOptions(3).alpha(5));
  randomize(lora);
  lora->to(torch::kDouble);
  const auto x = torch::randn({2, 7, 6}, torch::kDouble);
  CHECK(torch::allclose(lora->forward(x), torch::matmul(x, lora->delta().t()), 1e-13, 1e-13));
  CHECK(torch::allclose(lora->delta(), 5.0 / 3 * torch::matmul(lora->B, lora->A), 1e-13, 1e-13));
}

TEST_CASE("dropout zeroes inputs at its rate, scales the others, and rests in eval mode") {
  torch::manual_seed(3);
  const double rate = 0.3;
  const std::int64_t n = 40000;
  Lora lora(1, 1, LoraOptions(1).alpha(1).dropout(rate));
  {
    torch::NoGradGuard no_grad;
    lora->A.fill_(1);
    lora->B.fill_(1);
  }
  const auto y = lora->forward(torch::ones({n, 1}));
  const auto zero = y.eq(0);
  CHECK(torch::allclose(y.masked_select(~zero), torch::full({1}, 1 / (1 - rate))));
  const double expected = rate * static_cast<double>(n);
  const double sigmas = (zero.sum().item<double>() - expected) / std::sqrt(expected * (1 - rate));
  CHECK_MESSAGE(std::abs(sigmas) < 5, "zeros off by ", sigmas, " sigmas");
  lora->eval();
  CHECK(lora->forward(torch::ones({n, 1})).eq(1).all().item<bool>());
}

TEST_CASE("values out of range are refused with the value") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_WITH_AS(Lora(2, 2, 0), "LoraOptions: rank must be at least 1, got 0", Throws);
  CHECK_THROWS_WITH_AS(Lora(2, 2, -3), "LoraOptions: rank must be at least 1, got -3", Throws);
  CHECK_THROWS_WITH_AS(Lora(2, 2, LoraOptions(1).alpha(nan)),
                       "LoraOptions: alpha must be positive and finite, got nan", Throws);
  CHECK_THROWS_WITH_AS(Lora(2, 2, LoraOptions(1).alpha(0)),
                       "LoraOptions: alpha must be positive and finite, got 0", Throws);
  CHECK_THROWS_WITH_AS(Lora(2, 2, LoraOptions(1).dropout(1)),
                       "LoraOptions: dropout must be in [0, 1), got 1", Throws);
  CHECK_THROWS_WITH_AS(Lora(2, 2, LoraOptions(1).dropout(nan)),
                       "LoraOptions: dropout must be in [0, 1), got nan", Throws);
}
