#include "droppeft/kernels/cpu/dropout_add_norm.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "droppeft/random/stream.hpp"
#include "kernels/isas.hpp"

using droppeft::KeepMask;
using droppeft::Stream;
using droppeft::cpu::BFloat16;
using droppeft::cpu::DropoutAddNorm;
using droppeft::cpu::Isa;
using droppeft::cpu::KeptSum;
using droppeft::cpu::KeptY;
using droppeft::cpu::Norm;

namespace {

double value(float number) { return number; }
double value(BFloat16 number) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(number.bits) << 16);
}
template <class T>
T make(double number) {
  T result;
  droppeft::cpu::Pack<float, 1> pack{static_cast<float>(number)};
  droppeft::cpu::store(&result, pack);
  return result;
}

/// A call, and what doubles say of it. `branch_rows`: some rows of the residual, in any order.
template <class T>
struct Problem {
  Problem(Norm norm, std::int64_t rows, std::int64_t columns, double rate,
          std::vector<std::int64_t> branch_rows = {})
      : n(rows), width(columns), branch_row(std::move(branch_rows)) {
    Stream stream(static_cast<std::uint64_t>(rows * 1009 + columns));
    const auto numbers = [&](std::int64_t count) {
      std::vector<T> all(static_cast<std::size_t>(count));
      for (T& number : all) number = make<T>(stream.uniform() - 0.4);
      return all;
    };
    m = branch_row.empty() ? n : 0;
    for (const std::int64_t row : branch_row) m = std::max(m, row + 1);
    branch = numbers(m * width), residual = numbers(n * width), weight = numbers(width);
    bias = numbers(width), dy = numbers(n * width), dsum = numbers(n * width);
    call = {.norm = norm,
            .epsilon = 1e-3,
            .width = width,
            .weight = weight.data(),
            .scale = 1.5F,
            .mask = KeepMask(stream.fold(1), rate),
            .branch_row = branch_row.empty() ? nullptr : branch_row.data()};
    y.resize(residual.size()), sum.resize(residual.size()), dresidual.resize(residual.size());
    dbranch.resize(branch.size());
    mean.resize(static_cast<std::size_t>(n)), rstd.resize(mean.size());
    dweight.assign(weight.size(), 0), dbias.assign(weight.size(), 0);
  }

  /// Backward from the sum, or from y.
  void run(Isa isa, const std::vector<std::int64_t>& cuts, bool from_y = false) {
    for (std::size_t i = 0; i + 1 < cuts.size(); ++i)
      droppeft::cpu::dropout_add_norm<T>(call, branch.data(), residual.data(), bias.data(),
                                         y.data(), sum.data(), mean.data(), rstd.data(), cuts[i],
                                         cuts[i + 1], isa);
    const auto backward = [&](const auto& kept) {
      for (std::size_t i = 0; i + 1 < cuts.size(); ++i)
        droppeft::cpu::dropout_add_norm_backward(call, dy.data(), dsum.data(), kept, dbranch.data(),
                                                 dresidual.data(), dweight.data(), dbias.data(),
                                                 cuts[i], cuts[i + 1], isa);
    };
    if constexpr (std::is_same_v<T, float>) {
      std::vector<float> inverse;
      for (const float number : weight) inverse.push_back(1 / number);
      if (from_y) return backward(KeptY{y.data(), bias.data(), inverse.data(), rstd.data()});
    }
    backward(KeptSum<T>{sum.data(), mean.data(), rstd.data()});
  }

  /// The largest error in units of `tolerance`: of outputs and gradients.
  double worst(double tolerance) const {
    double most = 0;
    std::vector<double> its_dweight(weight.size()), its_dbias(weight.size());
    const auto compare = [&](double expected, double got) {
      most = std::max(most, std::abs(expected - got) / (tolerance * (1 + std::abs(expected))));
    };
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t row = branch_row.empty() ? i : branch_row[static_cast<std::size_t>(i)];
      const auto at = [&](const std::vector<T>& all, std::int64_t of, std::int64_t c) {
        return value(all[static_cast<std::size_t>(of * width + c)]);
      };
      std::vector<double> s;
      double mu = 0, variance = 0, g_mean = 0, gh_mean = 0;
      const auto size = static_cast<double>(width);
      for (std::int64_t c = 0; c < width; ++c) {
        double number = at(residual, i, c);
        if (row >= 0) number += 1.5 * call.mask.factor(row, c, width) * at(branch, row, c);
        compare(number, at(sum, i, c));
        s.push_back(at(sum, i, c));  // the norm is that of what is stored
        if (call.norm == Norm::layer) mu += s.back() / size;
      }
      for (const double number : s) variance += (number - mu) * (number - mu) / size;
      const double deviation = 1 / std::sqrt(variance + call.epsilon);
      for (std::int64_t c = 0; c < width; ++c) {
        const auto column = static_cast<std::size_t>(c);
        const double h = (s[column] - mu) * deviation;
        compare(h * value(weight[column]) + value(bias[column]), at(y, i, c));
        const double g = at(dy, i, c) * value(weight[column]);
        if (call.norm == Norm::layer) g_mean += g / size;
        gh_mean += g * h / size;
        its_dweight[column] += at(dy, i, c) * h;
        its_dbias[column] += at(dy, i, c);
      }
      for (std::int64_t c = 0; c < width; ++c) {
        const auto column = static_cast<std::size_t>(c);
        const double h = (s[column] - mu) * deviation;
        const double g = at(dy, i, c) * value(weight[column]);
        const double gradient = deviation * (g - g_mean - h * gh_mean) + at(dsum, i, c);
        compare(gradient, at(dresidual, i, c));
        if (row >= 0)
          compare(1.5 * call.mask.factor(row, c, width) * gradient, at(dbranch, row, c));
      }
    }
    for (std::size_t c = 0; c < weight.size(); ++c) {
      compare(its_dweight[c], dweight[c]);
      compare(its_dbias[c], dbias[c]);
    }
    return most;
  }

  std::int64_t n, m, width;
  std::vector<std::int64_t> branch_row;
  std::vector<T> branch, residual, weight, bias, dy, dsum, y, sum, dbranch, dresidual;
  std::vector<float> mean, rstd, dweight, dbias;
  DropoutAddNorm<T> call;
};

/// function(isa, norm, width, rate) for all of them.
template <class Function>
void for_settings(const Function& function) {
  for (const Isa isa : isas())
    for (const Norm norm : {Norm::layer, Norm::rms})
      for (const std::int64_t width : {1, 2, 15, 17, 128, 130, 384})
        for (const double rate : {0.0, 0.3}) {
          CAPTURE(static_cast<int>(isa));
          CAPTURE(static_cast<int>(norm));
          CAPTURE(width);
          CAPTURE(rate);
          function(isa, norm, width, rate);
        }
}

}  // namespace

TEST_CASE_TEMPLATE("outputs and gradients are those of double arithmetic", T, float, BFloat16) {
  // Numbers are of the order of one: a few roundings of each.
  const double tolerance = std::is_same_v<T, float> ? 16 * 0x1p-24 : 3 * 0x1p-9;
  for_settings([=](Isa isa, Norm norm, std::int64_t width, double rate) {
    Problem<T> all(norm, 5, width, rate);
    all.run(isa, {0, 5});
    CHECK(all.worst(tolerance) < 1);
    Problem<T> some(norm, 6, width, rate, {2, -1, 0, -1, -1, 1});
    some.run(isa, {0, 6});
    CHECK(some.worst(tolerance) < 1);
  });
}

TEST_CASE("gradients from y are those from the sum, to the rounding of y") {
  for_settings([](Isa isa, Norm norm, std::int64_t width, double rate) {
    Problem<float> problem(norm, 6, width, rate, {2, -1, 0, -1, -1, 1});
    // |bias / weight| <= 2.4: what is known of h is worth (1 + 2.4) roundings, not 1.
    for (float& number : problem.weight) number += number < 0 ? -0.25F : 0.25F;
    problem.run(isa, {0, 6}, /*from_y=*/true);
    CHECK(problem.worst(3.4 * 16 * 0x1p-24) < 1);
  });
}

TEST_CASE_TEMPLATE("pieces of rows make the bits of the whole", T, float, BFloat16) {
  for (const Isa isa : isas()) {
    Problem<T> whole(Norm::layer, 9, 200, 0.3), pieces(Norm::layer, 9, 200, 0.3);
    whole.run(isa, {0, 9});
    pieces.run(isa, {0, 1, 1, 4, 9});
    const auto bits = [](const std::vector<T>& numbers) {
      std::vector<double> all;
      for (const T number : numbers) all.push_back(value(number));
      return all;
    };
    CHECK(bits(whole.y) == bits(pieces.y));
    CHECK(bits(whole.dbranch) == bits(pieces.dbranch));
    CHECK(bits(whole.dresidual) == bits(pieces.dresidual));
    CHECK(whole.dweight == pieces.dweight);
  }
}

TEST_CASE("nothing but y is written when nothing else is asked for, also over the residual") {
  Problem<float> problem(Norm::layer, 4, 70, 0.2);
  problem.run(droppeft::cpu::best_isa(), {0, 4});
  std::vector<float> in_place = problem.residual;
  droppeft::cpu::dropout_add_norm<float>(problem.call, problem.branch.data(), in_place.data(),
                                         problem.bias.data(), in_place.data(), nullptr, nullptr,
                                         nullptr, 0, 4);
  CHECK(in_place == problem.y);
}

TEST_CASE("large means do not cost digits of the variance") {
  const std::int64_t width = 384;
  std::vector<float> x(static_cast<std::size_t>(width)), y(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = 1000.0F + (i % 2 == 0 ? 1.0F : -1.0F);
  for (const Isa isa : isas()) {
    const DropoutAddNorm<float> call{.epsilon = 0, .width = width};
    droppeft::cpu::dropout_add_norm<float>(call, x.data(), nullptr, nullptr, y.data(), nullptr,
                                           nullptr, nullptr, 0, 1, isa);
    for (std::size_t i = 0; i < x.size(); ++i)
      CHECK(y[i] == doctest::Approx(i % 2 == 0 ? 1.0 : -1.0).epsilon(1e-5));
  }
}
