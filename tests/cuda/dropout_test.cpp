#include "droppeft/kernels/cpu/dropout.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "droppeft/kernels/cuda/slots.hpp"
#include "on_device.hpp"

using droppeft::KeepMask;
using droppeft::Stream;
using droppeft::cpu::BFloat16;

namespace {

template <class T>
void run(T* out, const T* x, std::int64_t rows, std::int64_t width, const KeepMask& mask) {
  droppeft::cuda::slots.of<T>().dropout(out, x, rows, width, mask, nullptr);
}

}  // namespace

TEST_CASE_TEMPLATE("dropout has the CPU's bits at any width and alignment", T, float, BFloat16) {
  Stream stream(11);
  for (const std::int64_t width :
       {1, 2, 4, 8, 15, 16, 17, 64, 100, 127, 128, 129, 136, 200, 256, 384, 1000, 1024})
    for (const std::int64_t rows : {1, 2, 5})
      for (const std::size_t shift : {0U, 1U}) {
        CAPTURE(width);
        CAPTURE(rows);
        CAPTURE(shift);
        const KeepMask mask(stream.fold(static_cast<std::uint64_t>(width)), 0.3);
        const auto x = random_numbers<T>(stream, rows * width);
        auto expected = x;
        droppeft::cpu::dropout(expected.data(), x.data(), width, mask, 0,
                               rows * KeepMask::blocks(width));
        const OnDevice<T> in(x, shift), out(x.size(), shift);
        run<T>(out.data(), in.data(), rows, width, mask);
        CHECK(same(out.numbers(), expected));
        CHECK(same(in.numbers(), x));
        run<T>(in.data(), in.data(), rows, width, mask);
        CHECK(same(in.numbers(), expected));
      }
}

TEST_CASE("rates of nothing, nearly nothing and nearly all") {
  const std::int64_t rows = 3, width = 512;
  for (const double rate : {0.0, 1e-5, 0.5, 0.99999}) {
    const KeepMask mask(Stream(7), rate);
    std::vector<float> ones(static_cast<std::size_t>(rows * width), 1), expected(ones);
    for (std::int64_t i = 0; i < rows * width; ++i)
      expected[static_cast<std::size_t>(i)] = mask.factor(i / width, i % width, width);
    const OnDevice<float> x(ones);
    run<float>(x.data(), x.data(), rows, width, mask);
    CHECK(same(x.numbers(), expected));
  }
}

TEST_CASE("more groups than one, and matrices without numbers") {
  const std::int64_t rows = 301, width = 384;
  const KeepMask mask(Stream(8), 0.1);
  const std::vector<float> ones(static_cast<std::size_t>(rows * width), 1);
  auto expected = ones;
  droppeft::cpu::dropout(expected.data(), ones.data(), width, mask, 0,
                         rows * KeepMask::blocks(width));
  const OnDevice<float> x(ones);
  run<float>(x.data(), x.data(), 0, width, mask);
  run<float>(x.data(), x.data(), rows, 0, mask);
  CHECK(same(x.numbers(), ones));
  run<float>(x.data(), x.data(), rows, width, mask);
  CHECK(same(x.numbers(), expected));
  CHECK_THROWS_AS(run<float>(x.data(), x.data(), -1, width, mask), std::invalid_argument);
}
