#include "droppeft/kernels/cpu/dropout_add_norm.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include "droppeft/kernels/cuda/slots.hpp"
#include "on_device.hpp"

using droppeft::KeepMask;
using droppeft::Stream;
using droppeft::cpu::BFloat16;
using droppeft::cpu::DropoutAddNorm;
using droppeft::cpu::Norm;

namespace {

struct Setting {
  std::int64_t rows, width;
  Norm norm = Norm::layer;
  double rate = 0;
  std::vector<std::int64_t> branch_row{};
  std::size_t shift = 0;
  bool all = true;  // else no weight, bias, residual, dsum and no gradients of weight and bias
  std::int64_t pieces = 3;
};

template <class T>
struct Outputs {
  std::vector<T> y, sum, dbranch, dresidual;
  std::vector<float> mean, rstd, dweight, dbias;
};

/// A call with random numbers, made on the CPU and on the device.
template <class T>
class Problem {
 public:
  explicit Problem(Setting its_setting) : setting(std::move(its_setting)) {
    Stream stream(static_cast<std::uint64_t>(setting.rows * 10007 + setting.width));
    branch_rows_ = setting.branch_row.empty() ? setting.rows : 0;
    for (const std::int64_t row : setting.branch_row)
      branch_rows_ = std::max(branch_rows_, row + 1);
    const std::int64_t count = setting.rows * setting.width;
    branch = random_numbers<T>(stream, branch_rows_ * setting.width);
    residual = random_numbers<T>(stream, count), dy = random_numbers<T>(stream, count);
    dsum = random_numbers<T>(stream, count), weight = random_numbers<T>(stream, setting.width);
    bias = random_numbers<T>(stream, setting.width);
    mask = KeepMask(stream.fold(1), setting.rate);
  }

  DropoutAddNorm<T> call(const T* its_weight, const std::int64_t* branch_row) const {
    return {.norm = setting.norm,
            .epsilon = 1e-3,
            .width = setting.width,
            .weight = setting.all ? its_weight : nullptr,
            .scale = 1.5F,
            .mask = mask,
            .branch_row = setting.branch_row.empty() ? nullptr : branch_row};
  }

  Outputs<T> on_cpu() const {
    Outputs<T> out;
    out.y = out.sum = out.dresidual = residual, out.dbranch = branch;
    out.mean.resize(rows()), out.rstd.resize(rows());
    out.dweight.assign(width(), 0), out.dbias.assign(width(), 0);
    const auto its_call = call(weight.data(), setting.branch_row.data());
    droppeft::cpu::dropout_add_norm<T>(its_call, branch.data(), if_all(residual.data()),
                                       if_all(bias.data()), out.y.data(), out.sum.data(),
                                       out.mean.data(), out.rstd.data(), 0, setting.rows);
    droppeft::cpu::dropout_add_norm_backward(
        its_call, dy.data(), if_all(dsum.data()),
        droppeft::cpu::KeptSum<T>{out.sum.data(), out.mean.data(), out.rstd.data()},
        out.dbranch.data(), out.dresidual.data(), out.dweight.data(), out.dbias.data(), 0,
        setting.rows);
    return out;
  }

  Outputs<T> on_device() const {
    auto& slots = droppeft::cuda::slots;
    const std::size_t shift = setting.shift;
    const OnDevice<T> its_branch(branch, shift), its_residual(residual, shift), its_dy(dy, shift),
        its_dsum(dsum, shift), its_weight(weight, shift), its_bias(bias, shift),
        y(residual.size(), shift), sum(residual.size(), shift), dresidual(residual.size(), shift),
        dbranch(branch.size(), shift);
    const OnDevice<std::int64_t> branch_row(setting.branch_row);
    const OnDevice<float> mean(rows()), rstd(rows());
    const auto pieces = static_cast<std::size_t>(setting.pieces);
    const OnDevice<float> dweights(pieces * width(), shift), dbiases(pieces * width(), shift),
        dweight(width()), dbias(width());
    const auto its_call = call(its_weight.data(), branch_row.data());
    slots.of<T>().dropout_add_norm(its_call, its_branch.data(), if_all(its_residual.data()),
                                   if_all(its_bias.data()), y.data(), sum.data(), mean.data(),
                                   rstd.data(), setting.rows, nullptr);
    slots.of<T>().dropout_add_norm_backward(
        its_call, its_dy.data(), if_all(its_dsum.data()), sum.data(), mean.data(), rstd.data(),
        dbranch.data(), dresidual.data(), if_all(dweights.data()), if_all(dbiases.data()),
        setting.pieces, setting.rows, nullptr);
    if (setting.all) {
      slots.sum_of_rows(dweight.data(), dweights.data(), setting.pieces, setting.width, nullptr);
      slots.sum_of_rows(dbias.data(), dbiases.data(), setting.pieces, setting.width, nullptr);
    }
    for (const OnDevice<T>* in : {&its_branch, &its_residual, &its_dy, &its_dsum}) in->numbers();
    return {y.numbers(),    sum.numbers(),  dbranch.numbers(), dresidual.numbers(),
            mean.numbers(), rstd.numbers(), dweight.numbers(), dbias.numbers()};
  }

  void compare() const {
    CAPTURE(setting.rows);
    CAPTURE(setting.width);
    CAPTURE(static_cast<int>(setting.norm));
    CAPTURE(setting.rate);
    CAPTURE(setting.branch_row.size());
    CAPTURE(setting.shift);
    CAPTURE(setting.all);
    // Sums of numbers of the order of one in another order; a bfloat16 may round the other way.
    const double tolerance = std::is_same_v<T, float> ? 64 * 0x1p-24 : 0x1p-7;
    const Outputs<T> expected = on_cpu(), got = on_device();
    CHECK(worst_error(got.sum, expected.sum) < tolerance);
    CHECK(worst_error(got.y, expected.y) < tolerance);
    CHECK(worst_error(got.mean, expected.mean) < tolerance);
    CHECK(worst_error(got.rstd, expected.rstd) < tolerance);
    CHECK(worst_error(got.dresidual, expected.dresidual) < tolerance);
    CHECK(worst_error(got.dbranch, expected.dbranch) < tolerance);
    if (!setting.all) return;
    CHECK(worst_error(got.dweight, expected.dweight) < tolerance);
    CHECK(worst_error(got.dbias, expected.dbias) < tolerance);
  }

  Setting setting;
  std::vector<T> branch, residual, weight, bias, dy, dsum;
  KeepMask mask;

 private:
  template <class Number>
  Number* if_all(Number* numbers) const {
    return setting.all ? numbers : nullptr;
  }
  std::size_t rows() const { return static_cast<std::size_t>(setting.rows); }
  std::size_t width() const { return static_cast<std::size_t>(setting.width); }

  std::int64_t branch_rows_;
};

}  // namespace

TEST_CASE_TEMPLATE("outputs and gradients are the CPU's", T, float, BFloat16) {
  for (const Norm norm : {Norm::layer, Norm::rms})
    for (const std::int64_t width : {1, 2, 8, 15, 17, 128, 130, 256, 384, 640, 1024})
      for (const double rate : {0.0, 0.3}) {
        Problem<T>({5, width, norm, rate}).compare();
        Problem<T>({6, width, norm, rate, {2, -1, 0, -1, -1, 1}}).compare();
      }
}

TEST_CASE_TEMPLATE("rows of many widths, each in as many warps as it needs", T, float, BFloat16) {
  for (const std::int64_t width : {768, 1028, 1280, 1536, 2048, 2304, 4096, 4608, 8184, 8192})
    Problem<T>({3, width, Norm::layer, 0.1}).compare();
}

TEST_CASE_TEMPLATE("addresses that take no vectors", T, float, BFloat16) {
  for (const std::int64_t width : {8, 256, 1024, 2000, 5000})
    Problem<T>({4, width, Norm::layer, 0.2, {}, 1}).compare();
}

TEST_CASE_TEMPLATE("without residual, weight, bias and what else may be left out", T, float,
                   BFloat16) {
  for (const Norm norm : {Norm::layer, Norm::rms})
    for (const std::int64_t width : {7, 384, 1024})
      for (const std::size_t shift : {0U, 1U}) {
        Setting setting{5, width, norm, 0.2, {}, shift};
        setting.all = false;
        Problem<T>(setting).compare();
      }
}

TEST_CASE("rows are shared out among pieces: fewer, more, one") {
  for (const std::int64_t pieces : {1, 2, 7, 40})
    for (const std::int64_t width : {64, 512, 1280}) {
      Setting setting{37, width, Norm::layer, 0.1};
      setting.pieces = pieces;
      Problem<float>(setting).compare();
    }
}

TEST_CASE("a call repeated has the same bits") {
  const Problem<float> problem({50, 1024, Norm::layer, 0.1});
  const auto first = problem.on_device(), second = problem.on_device();
  CHECK(same(first.y, second.y));
  CHECK(same(first.dresidual, second.dresidual));
  CHECK(same(first.dweight, second.dweight));
  CHECK(same(first.dbias, second.dbias));
}

TEST_CASE("y over the residual, nothing else written") {
  const Problem<float> problem({9, 384, Norm::layer, 0.1});
  const OnDevice<float> branch(problem.branch), in_place(problem.residual), weight(problem.weight),
      bias(problem.bias);
  droppeft::cuda::slots.of<float>().dropout_add_norm(
      problem.call(weight.data(), nullptr), branch.data(), in_place.data(), bias.data(),
      in_place.data(), nullptr, nullptr, nullptr, 9, nullptr);
  CHECK(same(in_place.numbers(), problem.on_device().y));
}

TEST_CASE("the mask of a far row, whose Philox blocks are counted beyond 32 bits") {
  const std::int64_t width = 256, far = (std::int64_t{1} << 28) + 5;
  const KeepMask mask(Stream(5).fold(9), 0.5);
  const std::vector<float> ones(256, 1);
  const OnDevice<float> branch(ones), y(256U), sum(256U);
  const OnDevice<std::int64_t> branch_row(std::vector<std::int64_t>{far});
  const DropoutAddNorm<float> call{.width = width, .mask = mask, .branch_row = branch_row.data()};
  droppeft::cuda::slots.of<float>().dropout_add_norm(call, branch.data() - far * width, nullptr,
                                                     nullptr, y.data(), sum.data(), nullptr,
                                                     nullptr, 1, nullptr);
  std::vector<float> expected;
  for (std::int64_t c = 0; c < width; ++c) expected.push_back(mask.factor(far, c, width));
  CHECK(same(sum.numbers(), expected));
}

TEST_CASE("no rows, and sizes out of range") {
  auto& slots = droppeft::cuda::slots.of<float>();
  const OnDevice<float> numbers(std::vector<float>(64, 1)), sums(std::vector<float>(64, 1));
  DropoutAddNorm<float> call{.width = 32};
  float* const x = numbers.data();
  slots.dropout_add_norm(call, x, x, nullptr, x, x, nullptr, nullptr, 0, nullptr);
  slots.dropout_add_norm_backward(call, x, x, x, x, x, x, x, sums.data(), nullptr, 2, 0, nullptr);
  CHECK(same(numbers.numbers(), std::vector<float>(64, 1)));
  CHECK(same(sums.numbers(), std::vector<float>(64, 0)));
  for (const std::int64_t width : {std::int64_t{0}, droppeft::cuda::widest_normed_row + 1}) {
    call.width = width;
    CHECK_THROWS_AS(slots.dropout_add_norm(call, x, x, nullptr, x, x, nullptr, nullptr, 1, nullptr),
                    std::invalid_argument);
  }
  call.width = 32;
  CHECK_THROWS_AS(slots.dropout_add_norm_backward(call, x, x, x, x, x, x, x, sums.data(), nullptr,
                                                  0, 1, nullptr),
                  std::invalid_argument);
}
