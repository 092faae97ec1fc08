#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "droppeft/kernels/cpu/simd.hpp"

/// Kernels between a matrix x and a matrix y that has a row for some of x's: y's row i belongs to
/// x's row rows[i]. Rows are `width` numbers, one after the other. `rows` ascends without
/// repetition and stays within x, which is not checked; neighbours are moved as one. The matrices
/// do not overlap. Serial: threads get positions first to end - 1, in numbers from the start, of y
/// (of out, for merge_rows). Numbers that are only moved may be given as bytes.
namespace droppeft::cpu {

namespace detail {

/// function(x_at, y_at, size) for the stretches that lie in a row in both x and y.
template <class Function>
[[gnu::always_inline]] inline void for_stretches(const std::int64_t* rows, std::int64_t width,
                                                 std::int64_t first, std::int64_t end,
                                                 const Function& function) {
  if (first >= end) return;
  std::int64_t i = first / width, column = first % width;
  while (first < end) {
    const std::int64_t x_at = rows[i] * width + column;
    std::int64_t size = width - column;
    for (++i; size < end - first && rows[i] == rows[i - 1] + 1; ++i) size += width;
    size = std::min(size, end - first);
    function(x_at, first, size);
    first += size;
    column = 0;
  }
}

/// to[c] = from[c] for c < count, a register at a time: for rows of 1 to 2 kB the C library's
/// memcpy takes a quarter longer.
template <int W, class T>
[[gnu::always_inline]] inline void move(T* to, const T* from, std::int64_t count) {
  Pack<char, 4 * W> pack;
  constexpr std::int64_t step = sizeof pack;
  auto* const out = reinterpret_cast<char*>(to);
  const auto* const in = reinterpret_cast<const char*>(from);
  const auto size = count * static_cast<std::int64_t>(sizeof(T));
  if (size < step) {
    std::memcpy(out, in, static_cast<std::size_t>(size));
    return;
  }
  for (std::int64_t at = 0; at + step <= size; at += step) {
    load(pack, in + at);
    store(out + at, pack);
  }
  load(pack, in + size - step);
  store(out + size - step, pack);
}

}  // namespace detail

/// y[i] = x[rows[i]].
template <class T>
void gather_rows(T* y, const T* x, const std::int64_t* rows, std::int64_t width, std::int64_t first,
                 std::int64_t end, Isa isa = best_isa()) {
  dispatch(isa, [=]<int W>() DROPPEFT_INLINE {
    detail::for_stretches(rows, width, first, end,
                          [=](std::int64_t x_at, std::int64_t y_at, std::int64_t size)
                              DROPPEFT_INLINE { detail::move<W>(y + y_at, x + x_at, size); });
  });
}

/// x[rows[i]] = y[i].
template <class T>
void put_rows(T* x, const T* y, const std::int64_t* rows, std::int64_t width, std::int64_t first,
              std::int64_t end, Isa isa = best_isa()) {
  dispatch(isa, [=]<int W>() DROPPEFT_INLINE {
    detail::for_stretches(rows, width, first, end,
                          [=](std::int64_t x_at, std::int64_t y_at, std::int64_t size)
                              DROPPEFT_INLINE { detail::move<W>(x + x_at, y + y_at, size); });
  });
}

/// out[r] = y[i] where r = rows[i], i < count, and x[r] elsewhere; null x or y stand for zeros.
template <class T>
void merge_rows(T* out, const T* x, const T* y, const std::int64_t* rows, std::int64_t count,
                std::int64_t width, std::int64_t first, std::int64_t end, Isa isa = best_isa()) {
  if (first >= end) return;
  dispatch(isa, [=]<int W>() DROPPEFT_INLINE {
    const auto set = [=](std::int64_t at, const T* from, std::int64_t size) DROPPEFT_INLINE {
      if (from == nullptr)
        std::memset(static_cast<void*>(out + at), 0, static_cast<std::size_t>(size) * sizeof(T));
      else
        detail::move<W>(out + at, from, size);
    };
    std::int64_t i = std::lower_bound(rows, rows + count, first / width) - rows;
    for (std::int64_t at = first; at < end;) {
      const std::int64_t row_at = i < count ? rows[i] * width : end;
      std::int64_t size = row_at - at;
      if (size > 0) {
        size = std::min(size, end - at);
        set(at, x == nullptr ? x : x + at, size);
      } else {
        const std::int64_t y_at = i * width - size;
        size += width;
        for (++i; i < count && rows[i] == rows[i - 1] + 1; ++i) size += width;
        size = std::min(size, end - at);
        set(at, y == nullptr ? y : y + y_at, size);
      }
      at += size;
    }
  });
}

/// x[rows[i]] += scale y[i]. T: float or BFloat16, which is rounded once.
template <class T>
void scatter_add_rows(T* x, const T* y, const std::int64_t* rows, float scale, std::int64_t width,
                      std::int64_t first, std::int64_t end, Isa isa = best_isa()) {
  dispatch(isa, [=]<int W>() DROPPEFT_INLINE {
    Pack<float, W> scales;
    fill(scales, scale);
    detail::for_stretches(rows, width, first, end,
                          [&](std::int64_t x_at, std::int64_t y_at, std::int64_t size)
                              DROPPEFT_INLINE {
                                for_packs<W>(size, [&]<int N>(std::int64_t i) DROPPEFT_INLINE {
                                  Pack<float, N> sum, added;
                                  load(sum, x + x_at + i);
                                  load(added, y + y_at + i);
                                  if constexpr (N == W)
                                    sum += scales * added;
                                  else
                                    sum += scale * added;
                                  store(x + x_at + i, sum);
                                });
                              });
  });
}

}  // namespace droppeft::cpu
