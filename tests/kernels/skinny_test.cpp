#include "droppeft/kernels/cpu/skinny.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "droppeft/random/stream.hpp"
#include "kernels/isas.hpp"

using droppeft::KeepMask;
using droppeft::Stream;
namespace cpu = droppeft::cpu;

namespace {

float to_float(float number) { return number; }
float to_float(cpu::BFloat16 number) {
  cpu::Pack<float, 1> pack;
  cpu::load(pack, &number);
  return pack[0];
}
template <class T>
T from_float(float number) {
  const cpu::Pack<float, 1> pack{number};
  T to;
  cpu::store(&to, pack);
  return to;
}

/// Random numbers in [-1/2, 1/2) of type T.
template <class T>
std::vector<T> numbers(std::int64_t count, Stream stream) {
  std::vector<T> made;
  for (std::int64_t i = 0; i < count; ++i)
    made.push_back(from_float<T>(static_cast<float>(stream.uniform() - 0.5)));
  return made;
}

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](T x, T y) { return to_float(x) == to_float(y); });
}

/// A number and the sum of the absolute values of what was added to make it.
struct Exact {
  double value = 0, size = 0;
  void add(double term) {
    value += term;
    size += std::abs(term);
  }
};

template <class T>
struct Problem {
  Problem(std::int64_t row_count, std::int64_t columns, std::int64_t inner, double rate)
      : rows(row_count), width(columns), rank(inner), mask(seed().fold(9), rate) {}

  Stream seed() const {
    return Stream(5)
        .fold(static_cast<std::uint64_t>(rows))
        .fold(static_cast<std::uint64_t>(width))
        .fold(static_cast<std::uint64_t>(rank));
  }

  std::int64_t rows, width, rank;
  KeepMask mask;
  std::vector<T> x = numbers<T>(rows * width, seed().fold(0));
  std::vector<T> y = numbers<T>(rows * width, seed().fold(1));
  std::vector<float> z = numbers<float>(rows * rank, seed().fold(2));
  std::vector<float> a = numbers<float>(rank * width, seed().fold(3));
  std::vector<float> more = numbers<float>(rank * width, seed().fold(4));

  double factor(std::int64_t i, std::int64_t j) const {
    return static_cast<double>(mask.factor(i, j, width));
  }
  static double at(const auto& matrix, std::int64_t place) {
    return static_cast<double>(to_float(matrix[static_cast<std::size_t>(place)]));
  }

  /// (x * mask) A^T, or that of y without a mask.
  Exact down(std::int64_t i, std::int64_t k, bool of_y) const {
    Exact sum;
    for (std::int64_t j = 0; j < width; ++j)
      sum.add((of_y ? at(y, i * width + j) : at(x, i * width + j) * factor(i, j)) *
              at(a, k * width + j));
    return sum;
  }
  /// before + z A, or before + mask * (z A).
  Exact up(const std::vector<T>& before, std::int64_t i, std::int64_t j, bool masked) const {
    Exact sum;
    sum.add(at(before, i * width + j));
    for (std::int64_t k = 0; k < rank; ++k)
      sum.add((masked ? factor(i, j) : 1) * at(z, i * rank + k) * at(a, k * width + j));
    return sum;
  }
  /// more + z^T (x * mask), or more + z^T y.
  Exact outer(std::int64_t k, std::int64_t j, bool of_y) const {
    Exact sum;
    sum.add(at(more, k * width + j));
    for (std::int64_t i = 0; i < rows; ++i)
      sum.add(at(z, i * rank + k) *
              (of_y ? at(y, i * width + j) : at(x, i * width + j) * factor(i, j)));
    return sum;
  }
};

/// Whether got[i columns + j] is exact(i, j) but for what rounding each term and each sum in float,
/// and the result in U, can do.
template <class U, class Function>
bool right(const std::vector<U>& got, std::int64_t columns, std::int64_t terms,
           const Function& exact) {
  bool all = true;
  for (std::size_t place = 0; place < got.size(); ++place) {
    const auto at = static_cast<std::int64_t>(place);
    const Exact wanted = exact(at / columns, at % columns);
    double bound = static_cast<double>(terms + 3) * 0x1p-24 * wanted.size;
    if (sizeof(U) < sizeof(float)) bound += 0x1p-8 * std::abs(wanted.value);
    all = all && std::abs(static_cast<double>(to_float(got[place])) - wanted.value) <= bound;
  }
  return all;
}

template <class T>
void check_all(std::int64_t rows, std::int64_t width, std::int64_t rank, double rate,
               cpu::Isa isa) {
  CAPTURE(rows);
  CAPTURE(width);
  CAPTURE(rank);
  CAPTURE(rate);
  CAPTURE(static_cast<int>(isa));
  const Problem<T> p(rows, width, rank, rate);

  auto z = p.z;
  cpu::to_low_rank(z.data(), p.x.data(), p.a.data(), width, rank, p.mask, 0, rows, isa);
  CHECK(right(z, rank, width, [&](auto i, auto k) { return p.down(i, k, false); }));

  auto y = p.y;
  cpu::add_from_low_rank(y.data(), p.z.data(), p.a.data(), width, rank, 0, rows, isa);
  CHECK(right(y, width, rank, [&](auto i, auto j) { return p.up(p.y, i, j, false); }));

  auto gz = p.z;
  auto gb = p.more;
  cpu::add_from_low_rank_backward(gz.data(), gb.data(), p.y.data(), p.z.data(), p.a.data(), width,
                                  rank, 0, rows, isa);
  CHECK(right(gz, rank, width, [&](auto i, auto k) { return p.down(i, k, true); }));
  CHECK(right(gb, width, rows, [&](auto k, auto j) { return p.outer(k, j, true); }));

  auto ga = p.more;
  auto gx = p.y;
  cpu::to_low_rank_backward(ga.data(), gx.data(), p.x.data(), p.z.data(), p.a.data(), width, rank,
                            p.mask, 0, rows, isa);
  CHECK(right(ga, width, rows, [&](auto k, auto j) { return p.outer(k, j, false); }));
  CHECK(right(gx, width, rank, [&](auto i, auto j) { return p.up(p.y, i, j, true); }));
}

}  // namespace

TEST_CASE_TEMPLATE("products and gradients are those of double arithmetic, at any size", T, float,
                   cpu::BFloat16) {
  for (const cpu::Isa isa : isas())
    for (const double rate : {0.0, 0.3}) {
      for (const std::int64_t rank : {1, 2, 3, 4, 5, 7, 8, 12, 16, 33, 64})
        check_all<T>(21, 50, rank, rate, isa);
      for (const std::int64_t width : {1, 2, 15, 16, 17, 31, 127, 128, 129, 384, 385, 800})
        check_all<T>(5, width, 5, rate, isa);
      for (const std::int64_t rows : {0, 1, 2, 3, 4, 15, 16, 17, 32, 33, 70})
        check_all<T>(rows, 19, 4, rate, isa);
    }
}

TEST_CASE_TEMPLATE("pieces of whole tiles make the whole, bit for bit; other rows stay", T, float,
                   cpu::BFloat16) {
  for (const cpu::Isa isa : isas()) {
    const std::int64_t rows = 100, width = 400, rank = 6;
    const Problem<T> p(rows, width, rank, 0.1);
    struct Results {
      std::vector<float> z, gz, gb, ga;
      std::vector<T> y, gx;
    };
    const Results before{p.z, p.z, p.more, p.more, p.y, p.y};
    const auto run = [&](Results& r, std::int64_t first, std::int64_t end) {
      cpu::to_low_rank(r.z.data(), p.x.data(), p.a.data(), width, rank, p.mask, first, end, isa);
      cpu::add_from_low_rank(r.y.data(), p.z.data(), p.a.data(), width, rank, first, end, isa);
      cpu::add_from_low_rank_backward(r.gz.data(), r.gb.data(), p.y.data(), p.z.data(), p.a.data(),
                                      width, rank, first, end, isa);
      cpu::to_low_rank_backward(r.ga.data(), r.gx.data(), p.x.data(), p.z.data(), p.a.data(), width,
                                rank, p.mask, first, end, isa);
    };
    const auto equal = [](const Results& a, const Results& b) {
      return same(a.z, b.z) && same(a.gz, b.gz) && same(a.gb, b.gb) && same(a.ga, b.ga) &&
             same(a.y, b.y) && same(a.gx, b.gx);
    };
    Results whole = before, parts = before, none = before;
    run(whole, 0, rows);
    for (const auto& [first, end] : {std::pair{0, 16}, {16, 64}, {64, 64}, {64, 100}})
      run(parts, first, end);
    CHECK(equal(whole, parts));
    run(none, 40, 40);
    CHECK(equal(none, before));

    Results middle = before;
    run(middle, 32, 48);
    for (std::int64_t i = 0; i < rows; ++i) {
      const auto at = static_cast<std::size_t>(i * width);
      const bool inside = i >= 32 && i < 48;
      CHECK(to_float(middle.y[at]) == to_float((inside ? whole : before).y[at]));
      CHECK(to_float(middle.gx[at]) == to_float((inside ? whole : before).gx[at]));
    }
  }
}

TEST_CASE_TEMPLATE("a gradient that is not asked for changes nothing in the other", T, float,
                   cpu::BFloat16) {
  const std::int64_t rows = 20, width = 150, rank = 8;
  for (const double rate : {0.0, 0.5}) {
    const Problem<T> p(rows, width, rank, rate);
    auto gz = p.z, gz_alone = p.z, gb = p.more, gb_alone = p.more, ga = p.more, ga_alone = p.more;
    auto gx = p.y, gx_alone = p.y;
    const auto up = [&](float* to_z, float* to_b) {
      cpu::add_from_low_rank_backward(to_z, to_b, p.y.data(), p.z.data(), p.a.data(), width, rank,
                                      0, rows);
    };
    up(gz.data(), gb.data());
    up(gz_alone.data(), nullptr);
    up(nullptr, gb_alone.data());
    CHECK(gz == gz_alone);
    CHECK(gb == gb_alone);
    const auto down = [&](float* to_a, T* to_x) {
      cpu::to_low_rank_backward(to_a, to_x, p.x.data(), p.z.data(), p.a.data(), width, rank, p.mask,
                                0, rows);
    };
    down(ga.data(), gx.data());
    down(ga_alone.data(), nullptr);
    down(nullptr, gx_alone.data());
    CHECK(ga == ga_alone);
    CHECK(same(gx, gx_alone));
  }
}

TEST_CASE_TEMPLATE("zeros from the adapter change no bit", T, float, cpu::BFloat16) {
  const std::int64_t rows = 30, width = 77, rank = 4;
  for (const cpu::Isa isa : isas()) {
    const Problem<T> p(rows, width, rank, 0);
    const std::vector<float> zeros(p.a.size());
    auto y = p.y;
    cpu::add_from_low_rank(y.data(), p.z.data(), zeros.data(), width, rank, 0, rows, isa);
    CHECK(same(y, p.y));
  }
}

TEST_CASE("parts are added up in order, into the first of them too") {
  for (const cpu::Isa isa : isas())
    for (const std::int64_t size : {1, 15, 16, 17, 100}) {
      auto parts = numbers<float>(3 * size, Stream(7));
      const auto n = static_cast<std::size_t>(size);
      std::vector<float> wanted(n), sum(n, -1);
      for (std::size_t i = 0; i < n; ++i) wanted[i] = (parts[i] + parts[n + i]) + parts[2 * n + i];
      cpu::add_up(sum.data(), parts.data(), 3, size, isa);
      CHECK(sum == wanted);
      cpu::add_up(parts.data(), parts.data(), 3, size, isa);
      parts.resize(n);
      CHECK(parts == wanted);
      cpu::add_up(sum.data(), nullptr, 0, size, isa);
      CHECK(sum == std::vector<float>(n));
    }
}

TEST_CASE("transpose scales, too") {
  std::vector<float> out(6);
  cpu::transpose(out.data(), std::vector<float>{1, 2, 3, 4, 5, 6}.data(), 2, 3, 0.5F);
  CHECK(out == std::vector<float>{0.5, 2, 1, 2.5, 1.5, 3});
}
