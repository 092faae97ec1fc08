#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

namespace droppeft::cpu {

namespace detail {

// Numbers that a loop takes at once: a constant, so that compilers vectorise it at -O2 too.
inline constexpr std::size_t stride = 16;

/// sums[i] += sum_k weights[k] rows[k][i] for a few rows at once, which spares the sums many ways
/// to the cache and back.
template <class T, std::size_t... Row>
void add_rows(double* __restrict sums, const T* const* rows, const double* weights,
              std::size_t count, std::index_sequence<Row...>) {
  const T* const __restrict row[] = {rows[Row]...};
  const double weight[] = {weights[Row]...};
  const auto add = [&](std::size_t i) {
    double sum = sums[i];
    ((sum += weight[Row] * static_cast<double>(row[Row][i])), ...);
    sums[i] = sum;
  };
  std::size_t first = 0;
  for (; first + stride <= count; first += stride)
    for (std::size_t i = 0; i < stride; ++i) add(first + i);
  for (; first < count; ++first) add(first);
}

}  // namespace detail

/// sums[i] = before[i] + sum_k weights[k] rows[k][i] for i < count, in double, k ascending; a null
/// `before` counts as zeros, and may be `sums`. Reads each row once. Returns whether all sums are
/// finite, which they are not when a number of a row is not.
///
/// T: a floating-point type that converts to double. As many weights as rows, each row of `count`
/// numbers; neither is checked. Serial: give threads stretches of their own.
template <class T>
bool weighted_sum(double* sums, const double* before, std::span<const T* const> rows,
                  std::span<const double> weights, std::size_t count) {
  // Long enough for the prefetcher, short enough for the second-level cache.
  constexpr std::size_t block = 4096;
  constexpr std::uint64_t exponent = 0x7ff0'0000'0000'0000;
  constexpr std::uint64_t lowest_exponent_bit = exponent & -exponent;
  alignas(64) double part[block];
  std::uint64_t overflow = 0;
  for (std::size_t first = 0; first < count; first += block) {
    const std::size_t size = std::min(block, count - first);
    if (before != nullptr)
      std::copy_n(before + first, size, part);
    else
      std::fill_n(part, size, 0.0);
    const auto add = [&]<std::size_t many>(std::size_t row) {
      const T* at[many];
      for (std::size_t i = 0; i < many; ++i) at[i] = rows[row + i] + first;
      detail::add_rows(part, at, weights.data() + row, size, std::make_index_sequence<many>());
    };
    std::size_t row = 0;
    for (; row + 8 <= rows.size(); row += 8) add.template operator()<8>(row);
    for (; row < rows.size(); ++row) add.template operator()<1>(row);
    for (std::size_t i = 0; i < size; ++i) {
      // The exponent of infinity and NaN is all ones: one more carries into the sign's place.
      overflow |= (std::bit_cast<std::uint64_t>(part[i]) & exponent) + lowest_exponent_bit;
      sums[first + i] = part[i];
    }
  }
  return (overflow >> 63) == 0;
}

/// out[i] = sums[i] / weight for i < count, rounded once to T. Serial.
template <class T>
void divide(T* out, const double* sums, double weight, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) out[i] = static_cast<T>(sums[i] / weight);
}

}  // namespace droppeft::cpu
