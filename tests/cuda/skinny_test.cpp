#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "droppeft/kernels/cuda/slots.hpp"
#include "droppeft/kernels/keep_mask.hpp"
#include "on_device.hpp"

using droppeft::KeepMask;
using droppeft::Stream;
using droppeft::cpu::BFloat16;

namespace {

/// |got - expected| / |expected| as vectors; not a number if `got` holds one that is none.
template <class T>
double error(const std::vector<T>& got, const std::vector<double>& expected) {
  REQUIRE(got.size() == expected.size());
  double off = 0, norm = 1e-30;
  for (std::size_t i = 0; i < got.size(); ++i) {
    off += (value_of(got[i]) - expected[i]) * (value_of(got[i]) - expected[i]);
    norm += expected[i] * expected[i];
  }
  return std::sqrt(off / norm);
}

template <class T>
void compare(std::int64_t rows, std::int64_t width, std::int64_t rank, double rate,
             std::size_t shift, std::int64_t pieces) {
  CAPTURE(rows);
  CAPTURE(width);
  CAPTURE(rank);
  CAPTURE(rate);
  CAPTURE(shift);
  Stream stream(static_cast<std::uint64_t>(rows + 100 * width + rank));
  const KeepMask mask(stream.fold(1), rate);
  const auto x = random_numbers<T>(stream, rows * width);
  const auto a = random_numbers<float>(stream, rank * width);
  const auto z = random_numbers<float>(stream, rows * rank);
  std::vector<double> down(z.size()), up, gradient(a.size());
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t c = 0; c < width; ++c) {
      const double number = value_of(x[static_cast<std::size_t>(i * width + c)]);
      const auto factor = static_cast<double>(mask.factor(i, c, width));
      up.push_back(number);
      for (std::int64_t k = 0; k < rank; ++k) {
        const auto of_z = static_cast<std::size_t>(i * rank + k);
        const auto of_a = static_cast<std::size_t>(k * width + c);
        down[of_z] += factor * number * value_of(a[of_a]);
        gradient[of_a] += factor * number * value_of(z[of_z]);
        up.back() += factor * value_of(z[of_z]) * value_of(a[of_a]);
      }
    }

  auto& slots = droppeft::cuda::slots;
  auto& typed = slots.of<T>();
  const OnDevice<T> its_x(x, shift);
  const OnDevice<float> its_a(a, shift), its_z(z, shift), out(z.size(), shift),
      parts(static_cast<std::size_t>(pieces) * a.size(), shift), its_gradient(a.size());
  typed.to_low_rank(out.data(), its_x.data(), its_a.data(), rows, width, rank, mask, nullptr);
  CHECK(error(out.numbers(), down) < 1e-6);
  typed.low_rank_gradient(parts.data(), its_z.data(), its_x.data(), rows, width, rank, pieces, mask,
                          nullptr);
  slots.sum_of_rows(its_gradient.data(), parts.data(), pieces, rank * width, nullptr);
  parts.numbers();
  CHECK(error(its_gradient.numbers(), gradient) < 1e-6);
  typed.add_from_low_rank(its_x.data(), its_z.data(), its_a.data(), rows, width, rank, mask,
                          nullptr);
  CHECK(error(its_x.numbers(), up) < (sizeof(T) == 4 ? 1e-6 : 3e-3));
}

}  // namespace

TEST_CASE_TEMPLATE("low-rank products are those of double arithmetic", T, float, BFloat16) {
  for (const std::int64_t width : {1, 8, 100, 256, 384, 1024, 1100})
    for (const double rate : {0.0, 0.3}) {
      compare<T>(5, width, 8, rate, 0, 2);
      compare<T>(9, width, 3, rate, 1, 1);
    }
  for (const std::int64_t rank : {1, 2, 9, 16, 20}) compare<T>(70, 264, rank, 0.2, 0, 3);
}

TEST_CASE("low-rank products of nothing, and sizes out of range") {
  compare<float>(0, 16, 8, 0.1, 0, 2);
  compare<float>(3, 0, 8, 0.1, 0, 2);
  compare<float>(3, 16, 0, 0.1, 0, 2);
  auto& slots = droppeft::cuda::slots.of<float>();
  float number = 0;
  float* const x = &number;
  CHECK_THROWS_AS(slots.to_low_rank(x, x, x, -1, 1, 1, {}, nullptr), std::invalid_argument);
  CHECK_THROWS_AS(slots.add_from_low_rank(x, x, x, 1, 1, -1, {}, nullptr), std::invalid_argument);
  CHECK_THROWS_AS(slots.low_rank_gradient(x, x, x, 1, 1, 1, 0, {}, nullptr), std::invalid_argument);
}
