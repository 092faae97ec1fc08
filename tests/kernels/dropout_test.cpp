#include "droppeft/kernels/cpu/dropout.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "droppeft/random/stream.hpp"
#include "kernels/isas.hpp"

using droppeft::KeepMask;
using droppeft::Stream;
namespace cpu = droppeft::cpu;

namespace {

std::int64_t all_blocks(std::int64_t rows, std::int64_t width) {
  return rows * KeepMask::blocks(width);
}

}  // namespace

TEST_CASE("every number is multiplied by its factor, on every instruction set and at any width") {
  const std::int64_t rows = 5;
  for (const cpu::Isa isa : isas())
    for (const std::int64_t width : {1, 2, 15, 16, 17, 127, 128, 129, 384, 1000})
      for (const double rate : {0.0, 0.1, 0.5, 0.999}) {
        CAPTURE(static_cast<int>(isa));
        CAPTURE(width);
        CAPTURE(rate);
        const KeepMask mask(Stream(11).fold(static_cast<std::uint64_t>(width)), rate);
        std::vector<float> x(static_cast<std::size_t>(rows * width)), out(x.size(), -1);
        Stream stream(3);
        for (float& number : x) number = static_cast<float>(stream.uniform());
        cpu::dropout(out.data(), x.data(), width, mask, 0, all_blocks(rows, width), isa);
        int wrong = 0;
        for (std::size_t i = 0; i < x.size(); ++i) {
          const auto at = static_cast<std::int64_t>(i);
          wrong += out[i] != x[i] * mask.factor(at / width, at % width, width);
        }
        CHECK(wrong == 0);
      }
}

TEST_CASE("pieces make the whole, in place too, and what is not asked for stays") {
  const std::int64_t rows = 7, width = 200;
  const KeepMask mask(Stream(5), 0.3);
  std::vector<float> x(static_cast<std::size_t>(rows * width), 2), whole(x.size());
  cpu::dropout(whole.data(), x.data(), width, mask, 0, all_blocks(rows, width));
  cpu::dropout(x.data(), x.data(), width, mask, 3, 3);
  CHECK(x == std::vector<float>(x.size(), 2));
  for (const auto& [first, end] : {std::pair{9, 14}, {0, 1}, {1, 9}})
    cpu::dropout(x.data(), x.data(), width, mask, first, end);
  CHECK(x == whole);
}

TEST_CASE("the mask's blocks go on after 2^32 Philox blocks") {
  const KeepMask mask(Stream(5).fold(9), 0.5);
  const std::int64_t far = (std::int64_t{1} << 28) - 1;  // 16 times it is just under 2^32
  for (const cpu::Isa isa : isas()) {
    std::vector<float> x(2 * 128, 1), out(x.size());
    // The matrix begins `far` blocks before x, of which only the last two are touched.
    cpu::dropout(out.data() - far * 128, x.data() - far * 128, 128, mask, far, far + 2, isa);
    int wrong = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const auto at = static_cast<std::int64_t>(i);
      wrong += out[i] != mask.factor(far + at / 128, at % 128, 128);
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("a rate is met, numbers are independent of their neighbours, rows and streams differ") {
  const std::int64_t rows = 200, width = 1024;
  const auto count = static_cast<double>(rows * width);
  for (const double rate : {0.1, 0.5, 0.9}) {
    CAPTURE(rate);
    const KeepMask mask(Stream(17), rate), other(Stream(17).fold(0), rate);
    std::vector<float> ones(static_cast<std::size_t>(rows * width), 1), a(ones), b(ones);
    cpu::dropout(a.data(), ones.data(), width, mask, 0, all_blocks(rows, width));
    cpu::dropout(b.data(), ones.data(), width, other, 0, all_blocks(rows, width));
    double dropped = 0;
    for (const float number : a) dropped += number == 0;
    // 5 standard deviations of a binomial law.
    CHECK(std::abs(dropped - rate * count) < 5 * std::sqrt(count * rate * (1 - rate)));
    const auto both = [&](const std::vector<float>& second, std::size_t shift) {
      double together = 0;
      for (std::size_t i = 0; i + shift < a.size(); ++i)
        together += a[i] == 0 && second[i + shift] == 0;
      const double pairs = count - static_cast<double>(shift), p = rate * rate;
      // Neighbouring pairs overlap, which at most doubles the variance.
      return std::abs(together - p * pairs) / std::sqrt(2 * pairs * p * (1 - p));
    };
    for (const std::size_t shift : {1U, 16U, 32U, 128U, 1024U}) CHECK(both(a, shift) < 5);
    CHECK(both(b, 0) < 5);
  }
}

TEST_CASE(
    "the scale keeps the mean for the rate that is drawn, and rates out of range are refused") {
  for (const double rate : {0.0, 1e-6, 0.1, 0.3, 0.999999, 1 - 0x1p-53}) {
    const KeepMask mask(Stream(), rate);
    CHECK(mask.threshold <= 65535);
    CHECK(mask.scale * static_cast<float>(65536 - mask.threshold) == doctest::Approx(65536));
    CHECK(std::abs(mask.threshold / 65536.0 - rate) <= 0x1p-16);
  }
  CHECK(KeepMask(Stream(), 0).keeps_all());
  CHECK(KeepMask().keeps_all());
  for (const double rate : {-0.1, 1.0, 2.0, std::numeric_limits<double>::quiet_NaN()})
    CHECK_THROWS_AS(KeepMask(Stream(), rate), std::invalid_argument);
}

TEST_CASE("bfloat16 is the float rounded to nearest, ties to even, and NaN stays NaN") {
  const auto convert = [](float number) {
    cpu::Pack<float, 1> pack{number};
    cpu::BFloat16 half;
    cpu::store(&half, pack);
    cpu::load(pack, &half);
    return pack[0];
  };
  CHECK(convert(1) == 1);
  CHECK(convert(1 + 0x1p-8F) == 1);                // half way, to even
  CHECK(convert(1 + 3 * 0x1p-8F) == 1 + 0x1p-6F);  // half way, to even
  CHECK(convert(1 + 0x1.1p-8F) == 1 + 0x1p-7F);
  CHECK(convert(-3.0e38F) == doctest::Approx(-3.0e38F).epsilon(0x1p-8));
  CHECK(convert(std::numeric_limits<float>::max()) == std::numeric_limits<float>::infinity());
  CHECK(convert(std::numeric_limits<float>::infinity()) == std::numeric_limits<float>::infinity());
  CHECK(std::isnan(convert(std::numeric_limits<float>::quiet_NaN())));
  CHECK(std::isnan(convert(std::bit_cast<float>(0x7F800001U))));
}
