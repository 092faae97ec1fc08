#include "droppeft/kernels/cpu/weighted_sum.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "droppeft/random/stream.hpp"

namespace {

using droppeft::cpu::weighted_sum;

template <class T>
struct Problem {
  Problem(std::size_t rows, std::size_t count) : before(count), sums(count, -1) {
    droppeft::Stream stream(rows * 10007 + count);
    for (double& number : before) number = stream.uniform() - 0.5;
    for (std::size_t row = 0; row < rows; ++row) {
      weights.push_back(stream.uniform());
      auto& numbers = data.emplace_back(count);
      for (T& number : numbers) number = static_cast<T>(stream.uniform() - 0.5);
    }
    for (const auto& row : data) pointers.push_back(row.data());
  }

  bool run(const double* first) {
    return weighted_sum<T>(sums.data(), first, pointers, weights, sums.size());
  }

  /// In the order that is promised: what is added is rounded at most as often as here.
  double expected(std::size_t i, bool with_before) const {
    double sum = with_before ? before[i] : 0;
    for (std::size_t row = 0; row < data.size(); ++row)
      sum += weights[row] * static_cast<double>(data[row][i]);
    return sum;
  }

  std::vector<std::vector<T>> data;
  std::vector<const T*> pointers;
  std::vector<double> weights, before, sums;
};

}  // namespace

TEST_CASE_TEMPLATE("the sum is that of double arithmetic, for any number of rows and numbers", T,
                   float, double) {
  for (const std::size_t rows : {0U, 1U, 7U, 8U, 9U, 16U, 21U})
    for (const std::size_t count : {0U, 1U, 3U, 4095U, 4096U, 4097U, 9000U}) {
      CAPTURE(rows);
      CAPTURE(count);
      Problem<T> problem(rows, count);
      for (const bool with_before : {false, true}) {
        CHECK(problem.run(with_before ? problem.before.data() : nullptr));
        // Each of the rows + 1 terms is below 1, and a sum rounds each by at most 2^-53 of itself.
        const double bound = static_cast<double>((rows + 1) * (rows + 1)) * 0x1p-53;
        double worst = 0;
        for (std::size_t i = 0; i < count; ++i)
          worst = std::max(worst, std::abs(problem.sums[i] - problem.expected(i, with_before)));
        CHECK(worst <= bound);
      }
    }
}

TEST_CASE("the sums so far may be the sums themselves") {
  Problem<float> apart(11, 6000), in_place(11, 6000);
  apart.run(apart.before.data());
  in_place.sums = in_place.before;
  in_place.run(in_place.sums.data());
  CHECK(apart.sums == in_place.sums);
}

TEST_CASE_TEMPLATE("a number that is not finite is noticed wherever it stands", T, float, double) {
  for (const T bad : {std::numeric_limits<T>::quiet_NaN(), std::numeric_limits<T>::infinity(),
                      -std::numeric_limits<T>::infinity()})
    for (const std::size_t row : {0U, 8U, 9U})
      for (const std::size_t place : {0U, 4095U, 4096U, 8999U}) {
        Problem<T> problem(10, 9000);
        problem.data[row][place] = bad;
        CHECK_FALSE(problem.run(nullptr));
      }
  Problem<T> large(10, 9000);
  for (auto& row : large.data) row[1234] = std::numeric_limits<T>::max() / 16;
  CHECK(large.run(nullptr));
}

TEST_CASE("infinities of both signs do not cancel") {
  Problem<float> problem(2, 10);
  problem.data[0][3] = std::numeric_limits<float>::infinity();
  problem.data[1][3] = -std::numeric_limits<float>::infinity();
  CHECK_FALSE(problem.run(nullptr));
}

TEST_CASE("divide rounds the quotient once") {
  const std::vector<double> sums{1, 2, -10, 1e300, 0};
  std::vector<float> out(sums.size());
  droppeft::cpu::divide(out.data(), sums.data(), 3.0, sums.size());
  for (std::size_t i = 0; i < sums.size(); ++i) CHECK(out[i] == static_cast<float>(sums[i] / 3));
}
