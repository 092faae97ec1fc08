#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "droppeft/kernels/cpu/dropout.hpp"
#include "droppeft/kernels/cpu/simd.hpp"
#include "droppeft/kernels/keep_mask.hpp"

namespace droppeft::cpu {

enum class Norm { layer, rms };

/// A residual branch and the norm of the sum, row by row, forward and backward in one pass each:
///
///     sum_i = residual_i + scale * mask_b * branch_b,  b = branch_row[i]; residual_i alone if b <
///     0 y_i = (sum_i - mean_i) * rstd_i * weight + bias,  rstd_i = 1 / sqrt(variance_i + epsilon)
///
/// For Norm::layer variance_i is that of the row (divided by the width), for Norm::rms mean_i is 0
/// and variance_i the mean square. With branch_row, a branch that ran on some of the rows (row
/// dropout, drop path) is put back in the same pass; every row of the branch must be named once.
///
/// T: float or BFloat16; sums are taken in float, of `sum` as it is stored.
///
/// Sources: Ba et al., "Layer normalization", arXiv 1607.06450; Zhang, Sennrich, "Root mean square
/// layer normalization", NeurIPS 2019.
template <class T>
struct DropoutAddNorm {
  Norm norm = Norm::layer;
  double epsilon = 1e-5;
  std::int64_t width = 0;
  const T* weight = nullptr;  // [width]; null: ones
  float scale = 1;
  KeepMask mask{};
  const std::int64_t* branch_row = nullptr;  // null: b = i
};

namespace detail {

/// function.operator()<N>(column, factor) for packs of N columns of row `row` of the branch, factor
/// being what they are multiplied by.
template <int W>
class BranchFactors {
 public:
  [[gnu::always_inline]] BranchFactors(const KeepMask& mask, float scale, std::int64_t width,
                                       std::int64_t first_row)
      : masked_(!mask.keeps_all()),
        width_(width),
        next_row_(first_row),
        next_(scaled(mask, scale), first_row * KeepMask::blocks(width)) {
    for (float& factor : factors_) factor = scale;
  }

  template <class Function>
  [[gnu::always_inline]] void operator()(std::int64_t row, const Function& function) {
    if (masked_ && row != next_row_) next_.seek(row * KeepMask::blocks(width_));
    next_row_ = row + 1;
    for (std::int64_t start = 0; start < width_; start += KeepMask::block_size) {
      if (masked_) next_(factors_);
      const std::int64_t count = std::min(KeepMask::block_size, width_ - start);
      for_packs<W>(count, [&]<int N>(std::int64_t i) DROPPEFT_INLINE {
        Pack<float, N> factor;
        load(factor, factors_ + i);
        function.template operator()<N>(start + i, factor);
      });
    }
  }

 private:
  static KeepMask scaled(KeepMask mask, float scale) {
    mask.scale *= scale;
    return mask;
  }

  bool masked_;
  std::int64_t width_, next_row_;
  KeepFactors<W> next_;
  alignas(64) float factors_[KeepMask::block_size];
};

template <int N>
[[gnu::always_inline]] inline void load_or(Pack<float, N>& pack, const auto* at, std::int64_t i,
                                           float otherwise) {
  if (at != nullptr)
    load(pack, at + i);
  else
    fill(pack, otherwise);
}

/// A sum of packs of two sizes: what for_packs runs over.
template <int W>
struct Sum {
  [[gnu::always_inline]] Sum() { fill(packs, 0); }
  template <int N>
  [[gnu::always_inline]] void add(const Pack<float, N>& pack) {
    if constexpr (N == W)
      packs += pack;
    else
      rest += pack[0];
  }
  [[gnu::always_inline]] float value() const { return sum(packs) + rest; }

  Pack<float, W> packs;
  float rest = 0;
};

}  // namespace detail

/// Rows first to end - 1 of y and sum [n, width], mean and rstd [n], from branch [m, width],
/// residual [n, width] (null: zeros) and bias [width] (null: zeros). sum, mean and rstd, which
/// backward needs, may be null. sum and y may be the residual. Serial.
template <class T>
void dropout_add_norm(const DropoutAddNorm<T>& call, const T* branch, const T* residual,
                      const T* bias, T* y, T* sum, float* mean, float* rstd, std::int64_t first,
                      std::int64_t end, Isa isa = best_isa()) {
  if (first >= end) return;
  dispatch(isa, [=]<int W>() DROPPEFT_INLINE {
    const std::int64_t width = call.width;
    const T* const weight = call.weight;
    const auto inverse_width = 1 / static_cast<float>(width);
    const bool centred = call.norm == Norm::layer;
    detail::BranchFactors<W> factors(call.mask, call.scale, width, first);
    for (std::int64_t i = first; i < end; ++i) {
      const std::int64_t row = call.branch_row == nullptr ? i : call.branch_row[i];
      const T* const skip = residual == nullptr ? nullptr : residual + i * width;
      T* const out = y + i * width;
      T* const stored = sum == nullptr ? out : sum + i * width;
      // The next row is fetched while this one is worked on.
      const bool more = i + 1 < end;
      const T* const ahead = more && row >= 0 ? branch + (row + 1) * width : nullptr;
      const T* const skip_ahead = more && skip != nullptr ? skip + width : nullptr;
      detail::Sum<W> total;
      const auto put = [&]<int N>(std::int64_t column, Pack<float, N>& value) DROPPEFT_INLINE {
        store(stored + column, value);
        if constexpr (sizeof(T) < sizeof(float)) load(value, stored + column);
        total.template add<N>(centred ? value : Pack<float, N>(value * value));
      };
      if (row >= 0) {
        const T* const added = branch + row * width;
        factors(row, [&]<int N>(std::int64_t column, const Pack<float, N>& factor) DROPPEFT_INLINE {
          Pack<float, N> value, other;
          load(value, added + column);
          detail::load_or<N>(other, skip, column, 0);
          value = value * factor + other;
          put.template operator()<N>(column, value);
        });
      } else {
        for_packs<W>(width, [&]<int N>(std::int64_t column) DROPPEFT_INLINE {
          Pack<float, N> value;
          detail::load_or<N>(value, skip, column, 0);
          put.template operator()<N>(column, value);
        });
      }
      float middle = 0, variance = total.value() * inverse_width;
      if (centred) {
        middle = variance;
        detail::Sum<W> squares;
        Pack<float, W> middles;
        fill(middles, middle);
        for_packs<W>(width, [&]<int N>(std::int64_t column) DROPPEFT_INLINE {
          Pack<float, N> value;
          load(value, stored + column);
          if (ahead != nullptr) __builtin_prefetch(ahead + column);
          if (skip_ahead != nullptr) __builtin_prefetch(skip_ahead + column);
          __builtin_prefetch(out + column, 1);
          if constexpr (N == W)
            value -= middles;
          else
            value -= middle;
          squares.template add<N>(value * value);
        });
        variance = squares.value() * inverse_width;
      }
      const auto deviation =
          static_cast<float>(1 / std::sqrt(static_cast<double>(variance) + call.epsilon));
      if (mean != nullptr) mean[i] = middle;
      if (rstd != nullptr) rstd[i] = deviation;
      Pack<float, W> middles, deviations;
      fill(middles, middle);
      fill(deviations, deviation);
      for_packs<W>(width, [&]<int N>(std::int64_t column) DROPPEFT_INLINE {
        Pack<float, N> value, factor, shift;
        load(value, stored + column);
        detail::load_or<N>(factor, weight, column, 1);
        detail::load_or<N>(shift, bias, column, 0);
        if constexpr (N == W)
          value = (value - middles) * deviations * factor + shift;
        else
          value = (value - middle) * deviation * factor + shift;
        store(out + column, value);
      });
    }
  });
}

/// What forward left for backward's normalised rows h: sum and mean, h = (sum - mean) rstd.
template <class T>
struct KeptSum {
  const T* sum;
  const float* mean;
  const float* rstd;
};

/// The same of y, which the next layer keeps anyway: h = (y - bias) / weight. Its error is that of
/// y's rounding, 2^-24 (|h| + |bias / weight|) in fp32: not for weights much smaller than the bias.
struct KeptY {
  const float* y;
  const float* bias;            // [width]; null: zeros
  const float* inverse_weight;  // [width]: 1 / weight; null: ones
  const float* rstd;
};

namespace detail {

/// A row of h, pack by pack.
template <int W, class Kept>
struct NormedRow;

template <int W, class T>
struct NormedRow<W, KeptSum<T>> {
  [[gnu::always_inline]] NormedRow(const KeptSum<T>& kept, std::int64_t row, std::int64_t width)
      : sum(kept.sum + row * width), mean(kept.mean[row]), rstd(kept.rstd[row]) {
    fill(means, mean);
    fill(rstds, rstd);
  }
  template <int N>
  [[gnu::always_inline]] void load(Pack<float, N>& h, std::int64_t column) const {
    cpu::load(h, sum + column);
    if constexpr (N == W)
      h = (h - means) * rstds;
    else
      h = (h - mean) * rstd;
  }

  const T* sum;
  float mean, rstd;
  Pack<float, W> means, rstds;
};

template <int W>
struct NormedRow<W, KeptY> {
  [[gnu::always_inline]] NormedRow(const KeptY& its, std::int64_t row, std::int64_t width)
      : kept(its), y(its.y + row * width), rstd(its.rstd[row]) {
    fill(rstds, rstd);
  }
  template <int N>
  [[gnu::always_inline]] void load(Pack<float, N>& h, std::int64_t column) const {
    Pack<float, N> shift, factor;
    cpu::load(h, y + column);
    load_or<N>(shift, kept.bias, column, 0);
    load_or<N>(factor, kept.inverse_weight, column, 1);
    h = (h - shift) * factor;
  }

  KeptY kept;
  const float* y;
  float rstd;
  Pack<float, W> rstds;
};

}  // namespace detail

/// The gradients of rows first to end - 1, from those of y and, unless it is null, of sum, and from
/// what was kept (KeptSum<T>, or in fp32 KeptY):
///
///     g = dy * weight, h = (sum - mean) * rstd
///     dresidual = rstd * (g - [layer] average(g) - h * average(g h)) + dsum
///     dbranch_b = scale * mask_b * dresidual
///
/// and, added to what is there, dweight += dy h, dbias += dy (both [width]). What is null is not
/// computed; dbranch may be dresidual where b = i. Serial; give threads rows and, for dweight and
/// dbias, sums of their own.
template <class T, class Kept>
void dropout_add_norm_backward(const DropoutAddNorm<T>& call, const T* dy, const T* dsum,
                               const Kept& kept, T* dbranch, T* dresidual, float* dweight,
                               float* dbias, std::int64_t first, std::int64_t end,
                               Isa isa = best_isa()) {
  if (first >= end) return;
  dispatch(isa, [=]<int W>() DROPPEFT_INLINE {
    const std::int64_t width = call.width;
    const T* const weight = call.weight;
    const auto inverse_width = 1 / static_cast<float>(width);
    const bool centred = call.norm == Norm::layer;
    detail::BranchFactors<W> factors(call.mask, call.scale, width, first);
    for (std::int64_t i = first; i < end; ++i) {
      const std::int64_t row = call.branch_row == nullptr ? i : call.branch_row[i];
      const T* const upper = dy + i * width;
      const detail::NormedRow<W, Kept> normed(kept, i, width);
      const T* const direct = dsum == nullptr ? nullptr : dsum + i * width;
      T* const lower = dresidual == nullptr ? nullptr : dresidual + i * width;
      detail::Sum<W> g_sum, gh_sum;
      for_packs<W>(width, [&]<int N>(std::int64_t column) DROPPEFT_INLINE {
        Pack<float, N> g, h, factor;
        load(g, upper + column);
        normed.template load<N>(h, column);
        const auto accumulate = [&](float* into, const Pack<float, N>& more) DROPPEFT_INLINE {
          Pack<float, N> before;
          load(before, into + column);
          store(into + column, Pack<float, N>(before + more));
        };
        if (dweight != nullptr) accumulate(dweight, g * h);
        if (dbias != nullptr) accumulate(dbias, g);
        detail::load_or<N>(factor, weight, column, 1);
        g *= factor;
        g_sum.template add<N>(g);
        gh_sum.template add<N>(g * h);
      });
      const float g_mean = centred ? g_sum.value() * inverse_width : 0;
      const float gh_mean = gh_sum.value() * inverse_width;
      Pack<float, W> g_means, gh_means;
      fill(g_means, g_mean);
      fill(gh_means, gh_mean);
      const auto gradient = [&]<int N>(Pack<float, N>& g, std::int64_t column) DROPPEFT_INLINE {
        Pack<float, N> h, factor;
        load(g, upper + column);
        normed.template load<N>(h, column);
        detail::load_or<N>(factor, weight, column, 1);
        if constexpr (N == W)
          g = normed.rstds * (g * factor - g_means - h * gh_means);
        else
          g = normed.rstd * (g * factor - g_mean - h * gh_mean);
        if (direct != nullptr) {
          Pack<float, N> more;
          load(more, direct + column);
          g += more;
        }
        if (lower != nullptr) store(lower + column, g);
      };
      if (dbranch != nullptr && dbranch != dresidual && row >= 0) {
        T* const branch_row = dbranch + row * width;
        factors(row, [&]<int N>(std::int64_t column, const Pack<float, N>& factor) DROPPEFT_INLINE {
          Pack<float, N> g;
          gradient.template operator()<N>(g, column);
          store(branch_row + column, Pack<float, N>(g * factor));
        });
      } else {
        for_packs<W>(width, [&]<int N>(std::int64_t column) DROPPEFT_INLINE {
          Pack<float, N> g;
          gradient.template operator()<N>(g, column);
        });
      }
    }
  });
}

}  // namespace droppeft::cpu
