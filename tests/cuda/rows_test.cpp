#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "droppeft/kernels/cuda/slots.hpp"
#include "on_device.hpp"

using droppeft::Stream;
using droppeft::cpu::BFloat16;

namespace {

template <class T>
T rounded(double number) {
  T result;
  droppeft::cpu::store(&result, droppeft::cpu::Pack<float, 1>{static_cast<float>(number)});
  return result;
}

}  // namespace

TEST_CASE_TEMPLATE("rows are gathered, put, merged and added", T, float, BFloat16) {
  Stream stream(6);
  auto& slots = droppeft::cuda::slots.of<T>();
  const std::int64_t all_rows = 9;
  for (const std::int64_t width : {1, 3, 8, 100, 256, 1000, 1024, 1032, 5000})
    for (const std::size_t shift : {0U, 1U})
      for (const auto& rows : {std::vector<std::int64_t>{}, {4}, {0, 2, 5, 8}}) {
        CAPTURE(width);
        CAPTURE(shift);
        CAPTURE(rows.size());
        const auto count = static_cast<std::int64_t>(rows.size());
        const auto x = random_numbers<T>(stream, all_rows * width);
        const auto y = random_numbers<T>(stream, count * width);
        std::vector<T> gathered, put = x, sum = x, alone(x.size(), rounded<T>(0));
        for (std::size_t i = 0; i < rows.size(); ++i)
          for (std::int64_t c = 0; c < width; ++c) {
            const auto at = static_cast<std::size_t>(rows[i] * width + c);
            const T added = y[gathered.size()];
            gathered.push_back(x[at]);
            put[at] = alone[at] = added;
            // Exact in double, so that one rounding is left, as of a fused multiply-add.
            sum[at] = rounded<T>(value_of(x[at]) + 0.5 * value_of(added));
          }
        const OnDevice<T> in(x, shift), its_y(y, shift), out(y.size(), shift);
        const OnDevice<T> merged(x.size(), shift), to_put(x, shift);
        const OnDevice<std::int64_t> index(rows);
        slots.gather_rows(out.data(), in.data(), index.data(), count, width, nullptr);
        CHECK(same(out.numbers(), gathered));
        slots.merge_rows(merged.data(), in.data(), its_y.data(), index.data(), count, all_rows,
                         width, nullptr);
        CHECK(same(merged.numbers(), put));
        slots.merge_rows(merged.data(), nullptr, its_y.data(), index.data(), count, all_rows, width,
                         nullptr);
        CHECK(same(merged.numbers(), alone));
        slots.put_rows(to_put.data(), its_y.data(), index.data(), count, width, nullptr);
        CHECK(same(to_put.numbers(), put));
        slots.scatter_add_rows(in.data(), its_y.data(), index.data(), 0.5F, count, width, nullptr);
        CHECK(worst_error(in.numbers(), sum) <= (sizeof(T) == 4 ? 0x1p-24 : 0x1p-8));
      }
}

TEST_CASE("rows of many numbers, zeros for a y that is not there, and sizes out of range") {
  Stream stream(7);
  auto& slots = droppeft::cuda::slots.of<float>();
  const auto x = random_numbers<float>(stream, 3 * 50000);
  const OnDevice<float> in(x), out(std::size_t{50000}), all(x.size());
  const OnDevice<std::int64_t> index(std::vector<std::int64_t>{2});
  slots.gather_rows(out.data(), in.data(), index.data(), 1, 50000, nullptr);
  CHECK(same(out.numbers(), std::vector<float>(x.begin() + 100000, x.end())));
  slots.merge_rows(all.data(), in.data(), nullptr, index.data(), 1, 3, 50000, nullptr);
  auto expected = x;
  std::fill(expected.begin() + 100000, expected.end(), 0.0F);
  CHECK(same(all.numbers(), expected));
  CHECK_THROWS_AS(slots.gather_rows(out.data(), in.data(), index.data(), -1, 4, nullptr),
                  std::invalid_argument);
  CHECK_THROWS_AS(slots.scatter_add_rows(in.data(), out.data(), index.data(), 1, 1, -4, nullptr),
                  std::invalid_argument);
}
