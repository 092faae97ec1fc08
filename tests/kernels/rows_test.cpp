#include "droppeft/kernels/cpu/rows.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "droppeft/random/stream.hpp"

namespace {

using droppeft::cpu::BFloat16;
using droppeft::cpu::Isa;
using Rows = std::vector<std::int64_t>;

std::vector<Isa> isas() {
  std::vector<Isa> all;
  for (const Isa isa : {Isa::plain, Isa::avx2, Isa::avx512})
    if (isa <= droppeft::cpu::best_isa()) all.push_back(isa);
  return all;
}

template <class T>
T rounded(double value) {
  const auto number = static_cast<float>(value);
  if constexpr (std::is_same_v<T, float>) return number;
  T result;
  droppeft::cpu::store(&result, droppeft::cpu::Pack<float, 1>{number});
  return result;
}

double value_of(float number) { return static_cast<double>(number); }
double value_of(BFloat16 number) {
  droppeft::cpu::Pack<float, 1> pack;
  droppeft::cpu::load(pack, &number);
  return static_cast<double>(pack[0]);
}

template <class T>
std::vector<T> numbers(std::int64_t count, std::uint64_t seed) {
  droppeft::Stream stream(seed);
  std::vector<T> made(static_cast<std::size_t>(count));
  for (T& number : made) number = rounded<T>(stream.uniform() - 0.5);
  return made;
}

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

/// function(first, end) for pieces of 0 to `count`, and for an empty one.
template <class Function>
void for_parts(std::int64_t count, std::int64_t piece, const Function& function) {
  for (std::int64_t first = 0; first < count; first += piece)
    function(first, std::min(count, first + piece));
  function(count, count);
}

constexpr std::int64_t all = 9;  // rows of x
const std::vector<Rows> choices{
    {}, {0}, {4}, {8}, {0, 8}, {2, 3, 4, 7}, {0, 1, 2, 3, 4, 5, 6, 7, 8}};
const std::vector<std::int64_t> widths{1, 2, 15, 16, 17, 33, 100, 384};

template <class T, class Function>
void for_cases(const Function& function) {
  for (const auto& rows : choices)
    for (const std::int64_t width : widths)
      for (const std::int64_t piece : {std::int64_t{1} << 40, width, std::int64_t{7}}) {
        CAPTURE(rows.size());
        CAPTURE(width);
        CAPTURE(piece);
        const auto count = static_cast<std::int64_t>(rows.size());
        function(rows, count, width, piece, numbers<T>(all * width, 1),
                 numbers<T>(count * width, 2));
      }
}

}  // namespace

TEST_CASE_TEMPLATE("rows are gathered and put back, in pieces as in one", T, float, BFloat16) {
  for (const Isa isa : isas())
    for_cases<T>([=](const Rows& rows, std::int64_t count, std::int64_t width, std::int64_t piece,
                     const std::vector<T>& x, const std::vector<T>& y) {
      auto gathered = numbers<T>(count * width, 3), put = x;
      std::vector<T> expected_gathered, expected_put = x;
      for (std::int64_t i = 0; i < count; ++i)
        for (std::int64_t c = 0; c < width; ++c) {
          const auto at = static_cast<std::size_t>(rows[static_cast<std::size_t>(i)] * width + c);
          expected_put[at] = y[expected_gathered.size()];
          expected_gathered.push_back(x[at]);
        }
      for_parts(count * width, piece, [&](std::int64_t first, std::int64_t end) {
        droppeft::cpu::gather_rows(gathered.data(), x.data(), rows.data(), width, first, end, isa);
        droppeft::cpu::put_rows(put.data(), y.data(), rows.data(), width, first, end, isa);
      });
      CHECK(same(gathered, expected_gathered));
      CHECK(same(put, expected_put));
    });
}

TEST_CASE_TEMPLATE("rows are merged, with zeros for what is not there", T, float, BFloat16) {
  for (const Isa isa : isas())
    for_cases<T>([=](const Rows& rows, std::int64_t count, std::int64_t width, std::int64_t piece,
                     const std::vector<T>& x, const std::vector<T>& y) {
      for (const bool has_x : {true, false})
        for (const bool has_y : {true, false}) {
          auto out = numbers<T>(all * width, 3);
          auto expected = has_x ? x : std::vector<T>(x.size(), T{});
          for (std::int64_t i = 0; i < count; ++i)
            for (std::int64_t c = 0; c < width; ++c)
              expected[static_cast<std::size_t>(rows[static_cast<std::size_t>(i)] * width + c)] =
                  has_y ? y[static_cast<std::size_t>(i * width + c)] : T{};
          for_parts(all * width, piece, [&](std::int64_t first, std::int64_t end) {
            droppeft::cpu::merge_rows(out.data(), has_x ? x.data() : nullptr,
                                      has_y ? y.data() : nullptr, rows.data(), count, width, first,
                                      end, isa);
          });
          CHECK(same(out, expected));
        }
    });
}

TEST_CASE_TEMPLATE("rows are added with one rounding, in pieces as in one", T, float, BFloat16) {
  for (const Isa isa : isas())
    for (const float scale : {1.0F, 0.5F, -1.7F, 0.0F})
      for_cases<T>([=](const Rows& rows, std::int64_t count, std::int64_t width, std::int64_t piece,
                       const std::vector<T>& x, const std::vector<T>& y) {
        auto sum = x, whole = x;
        for_parts(count * width, piece, [&](std::int64_t first, std::int64_t end) {
          droppeft::cpu::scatter_add_rows(sum.data(), y.data(), rows.data(), scale, width, first,
                                          end, isa);
        });
        droppeft::cpu::scatter_add_rows(whole.data(), y.data(), rows.data(), scale, width, 0,
                                        count * width, isa);
        // Plain code rounds the product, too, and that to float; all are below 1.5.
        const double bound = sizeof(T) == 4 ? 0x1p-23 : 0x1p-8 + 0x1p-23;
        double worst = 0;
        std::vector<T> others = x;
        for (std::int64_t i = 0; i < count; ++i)
          for (std::int64_t c = 0; c < width; ++c) {
            const auto at = static_cast<std::size_t>(rows[static_cast<std::size_t>(i)] * width + c);
            const double added = value_of(y[static_cast<std::size_t>(i * width + c)]);
            worst = std::max(
                worst, std::abs(value_of(sum[at]) - (value_of(x[at]) + value_of(scale) * added)));
            others[at] = sum[at];
          }
        CHECK(worst <= bound);
        CHECK(same(sum, whole));
        CHECK(same(sum, others));
      });
}

TEST_CASE("what is added may be infinite or NaN") {
  const float infinity = std::numeric_limits<float>::infinity();
  std::vector<float> x(40, 1), y(20, 1);
  y[3] = infinity;
  y[17] = std::numeric_limits<float>::quiet_NaN();
  const Rows rows{1};
  for (const Isa isa : isas()) {
    auto sum = x;
    droppeft::cpu::scatter_add_rows(sum.data(), y.data(), rows.data(), 2.0F, 20, 0, 20, isa);
    for (std::size_t i = 0; i < 40; ++i) {
      if (i == 23)
        CHECK(sum[i] == infinity);
      else if (i == 37)
        CHECK(std::isnan(sum[i]));
      else
        CHECK(sum[i] == (i < 20 ? 1.0F : 3.0F));
    }
  }
}
