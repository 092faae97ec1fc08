#include "droppeft/kernels/cpu/adamw.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "droppeft/random/stream.hpp"

namespace {

using droppeft::cpu::adamw;
using droppeft::cpu::AdamWSettings;
using droppeft::cpu::Isa;

std::vector<Isa> isas() {
  std::vector<Isa> all;
  for (const Isa isa : {Isa::plain, Isa::avx2, Isa::avx512})
    if (isa <= droppeft::cpu::best_isa()) all.push_back(isa);
  return all;
}

std::vector<float> normal(std::size_t count, std::uint64_t seed) {
  droppeft::Stream stream(seed);
  std::vector<float> numbers(count);
  for (float& number : numbers)
    number = static_cast<float>(std::sqrt(-2 * std::log(1 - stream.uniform())) *
                                std::cos(6.283185307179586 * stream.uniform()));
  return numbers;
}

template <class T>
struct Tensor {
  explicit Tensor(std::size_t count) : Tensor(normal(count, 1)) {}
  explicit Tensor(const std::vector<float>& values)
      : p(values.begin(), values.end()), m(p.size()), v(p.size()) {}

  std::vector<T> p, m, v;
};

void step(Tensor<float>& tensor, const std::vector<float>& grad, const AdamWSettings& settings,
          std::int64_t t, Isa isa, std::size_t first, std::size_t end) {
  adamw(tensor.p.data(), grad.data(), tensor.m.data(), tensor.v.data(), settings, t,
        static_cast<std::int64_t>(first), static_cast<std::int64_t>(end), isa);
}

void step(Tensor<double>& tensor, const std::vector<float>& grad, const AdamWSettings& settings,
          int t) {
  const auto& [lr, beta1, beta2, eps, weight_decay] = settings;
  for (std::size_t i = 0; i < grad.size(); ++i) {
    const auto g = static_cast<double>(grad[i]);
    double &p = tensor.p[i], &m = tensor.m[i], &v = tensor.v[i];
    m = beta1 * m + (1 - beta1) * g;
    v = beta2 * v + (1 - beta2) * g * g;
    const double m_hat = m / (1 - std::pow(beta1, t)), v_hat = v / (1 - std::pow(beta2, t));
    p = p - lr * weight_decay * p - lr * m_hat / (std::sqrt(v_hat) + eps);
  }
}

double worst(const std::vector<float>& got, const std::vector<double>& expected) {
  double largest = 0;
  for (std::size_t i = 0; i < got.size(); ++i)
    largest = std::max(largest, std::abs(static_cast<double>(got[i]) - expected[i]));
  return largest;
}

}  // namespace

TEST_CASE("thirty steps are those of double arithmetic, for any number of numbers") {
  const int steps = 30;
  const AdamWSettings decayed{.lr = 1e-2, .weight_decay = 0.1},
      plain{.lr = 1e-2, .weight_decay = 0},
      short_memory{.lr = 1e-2, .beta1 = 0, .beta2 = 0.5, .eps = 1e-3};
  for (const Isa isa : isas())
    for (const AdamWSettings& settings : {decayed, plain, short_memory})
      for (const std::size_t count : {0U, 1U, 3U, 4U, 15U, 16U, 17U, 33U, 1000U}) {
        CAPTURE(count);
        Tensor<float> got(count);
        Tensor<double> expected(count);
        for (int t = 1; t <= steps; ++t) {
          const auto grad = normal(count, static_cast<std::uint64_t>(100 + t));
          step(got, grad, settings, t, isa, 0, count);
          step(expected, grad, settings, t);
        }
        // Gradients and values are below 5. Each step rounds m, v and p a few times, and the
        // factors once; an update is about lr, and errs by twice what m does or half what v does.
        CHECK(worst(got.m, expected.m) <= steps * 4 * 5 * 0x1p-24);
        CHECK(worst(got.v, expected.v) <= steps * 4 * 25 * 0x1p-24);
        CHECK(worst(got.p, expected.p) <= steps * (3 * 5 + settings.lr * 4 * steps) * 0x1p-24);
      }
}

TEST_CASE("without memory and eps a step is the sign of the gradient, however large or small") {
  const AdamWSettings settings{.lr = 0.25, .beta1 = 0, .beta2 = 0, .eps = 0, .weight_decay = 0};
  std::vector<float> grad;
  for (const float size : {1e-18F, 3e-10F, 0.1F, 1.0F, 7.0F, 1e10F, 1e18F})
    for (const float sign : {1.0F, -1.0F, -1.0F}) grad.push_back(sign * size);
  for (const Isa isa : isas()) {
    Tensor<float> tensor{std::vector<float>(grad.size(), 1)};
    step(tensor, grad, settings, 1, isa, 0, grad.size());
    for (std::size_t i = 0; i < grad.size(); ++i)
      CHECK(tensor.p[i] == doctest::Approx(grad[i] > 0 ? 0.75 : 1.25).epsilon(1e-6));
  }
}

TEST_CASE("the first step is lr times the sign of the gradient, whatever the betas") {
  const auto grad = normal(100, 3);
  for (const Isa isa : isas())
    for (const double beta : {0.0, 0.5, 0.9, 0.9999}) {
      const AdamWSettings settings{
          .lr = 0.25, .beta1 = beta, .beta2 = beta, .eps = 0, .weight_decay = 0};
      Tensor<float> tensor{std::vector<float>(grad.size(), 1)};
      step(tensor, grad, settings, 1, isa, 0, grad.size());
      for (std::size_t i = 0; i < grad.size(); ++i)
        CHECK(tensor.p[i] == doctest::Approx(grad[i] > 0 ? 0.75 : 1.25).epsilon(1e-6));
    }
}

TEST_CASE("a gradient of zero only decays") {
  const AdamWSettings settings{.lr = 0.5, .weight_decay = 0.25};
  for (const Isa isa : isas()) {
    Tensor<float> tensor(37);
    const auto before = tensor.p;
    step(tensor, std::vector<float>(37, 0.0F), settings, 1, isa, 0, 37);
    CHECK(tensor.m == std::vector<float>(37, 0.0F));
    CHECK(tensor.v == tensor.m);
    for (std::size_t i = 0; i < before.size(); ++i) CHECK(tensor.p[i] == 0.875F * before[i]);
  }
}

TEST_CASE("numbers outside the range stay as they were") {
  const auto grad = normal(64, 3);
  for (const Isa isa : isas()) {
    Tensor<float> tensor(64);
    const Tensor<float> before = tensor;
    step(tensor, grad, {}, 1, isa, 7, 44);
    for (std::size_t i = 0; i < 64; ++i) {
      const bool inside = i >= 7 && i < 44;
      CHECK((tensor.p[i] != before.p[i]) == inside);
      CHECK((tensor.m[i] != 0) == inside);
      CHECK((tensor.v[i] != 0) == inside);
    }
  }
}

TEST_CASE("a range in pieces of 1024 gives the bits of the whole") {
  const std::size_t count = 3 * 1024 + 5;
  const auto grad = normal(count, 3);
  for (const Isa isa : isas()) {
    Tensor<float> whole(count), pieces(count);
    step(whole, grad, {}, 1, isa, 0, count);
    for (std::size_t first = 0; first < count; first += 1024)
      step(pieces, grad, {}, 1, isa, first, std::min(count, first + 1024));
    CHECK(pieces.p == whole.p);
    CHECK(pieces.m == whole.m);
    CHECK(pieces.v == whole.v);
  }
}

TEST_CASE("a gradient that is not finite spoils its own number only") {
  for (const Isa isa : isas())
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      auto grad = normal(40, 3);
      grad[5] = bad;
      Tensor<float> tensor(40);
      step(tensor, grad, {}, 1, isa, 0, 40);
      for (std::size_t i = 0; i < 40; ++i) CHECK(std::isfinite(tensor.p[i]) == (i != 5));
    }
}
