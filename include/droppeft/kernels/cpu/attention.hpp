#pragma once

#include <cstdint>
#include <limits>

#include "droppeft/kernels/cpu/simd.hpp"

namespace droppeft::cpu {

/// Rows of a head's numbers: row i begins at at + i * stride.
template <class T>
struct HeadRows {
  T* at;
  std::int64_t stride;
};

/// One head of scaled dot-product attention, q [queries, width], k and v [keys, width]:
///
///     P = softmax(scale q k^T + bias),  y = P v
///
/// in fp32; P is 0 in a row whose scores are all -infinity. The scores of a head stand in scratch
/// memory, which should fit a core's cache: for hundreds of keys, not for thousands. Backward makes
/// P anew, so nothing but q, k and v is kept.
///
/// Source: Vaswani et al., "Attention is all you need", arXiv 1706.03762, equation 1.
struct AttentionHead {
  std::int64_t queries, keys, width;
  float scale;
  HeadRows<const float> q, k, v;
  const float* bias = nullptr;  // [keys]; null: zeros

  /// Keys, rounded up to whole packs of any instruction set.
  std::int64_t padded_keys() const { return (keys + 15) / 16 * 16; }
  /// Floats of scratch memory that forward needs, and backward.
  std::int64_t forward_scratch() const { return (width + 1 + queries) * padded_keys(); }
  std::int64_t backward_scratch() const { return 2 * forward_scratch(); }
};

namespace detail {

/// A factor of a product: number (m, k) is at[m row + k step].
struct Factor {
  const float* at;
  std::int64_t row, step;
};

/// M rows and P packs of N columns of c = scale a b.
template <int N, int P, int M>
[[gnu::always_inline]] inline void multiply_block(std::int64_t depth, float scale, const Factor& a,
                                                  HeadRows<const float> b, HeadRows<float> c) {
  Pack<float, N> sums[M][P];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) sums[m][p] = Pack<float, N>{};
  for (std::int64_t k = 0; k < depth; ++k) {
    Pack<float, N> row[P];
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) load(row[p], b.at + k * b.stride + p * N);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const float factor = a.at[m * a.row + k * a.step];
#pragma GCC unroll 2
      for (int p = 0; p < P; ++p) sums[m][p] += factor * row[p];
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p)
      store(c.at + m * c.stride + p * N, Pack<float, N>(scale * sums[m][p]));
}

template <int W, int M>
[[gnu::always_inline]] inline void multiply_rows(std::int64_t columns, std::int64_t depth,
                                                 float scale, const Factor& a,
                                                 HeadRows<const float> b, HeadRows<float> c) {
  std::int64_t i = 0;
  const auto run = [&]<int N, int P>() DROPPEFT_INLINE {
    for (; i + N * P <= columns; i += N * P)
      multiply_block<N, P, M>(depth, scale, a, {b.at + i, b.stride}, {c.at + i, c.stride});
  };
  run.template operator()<W, 2>();
  run.template operator()<W, 1>();
  run.template operator()<1, 1>();
}

/// c [rows, columns] = scale a b, b [depth, columns].
template <int W>
[[gnu::always_inline]] inline void multiply(std::int64_t rows, std::int64_t columns,
                                            std::int64_t depth, float scale, const Factor& a,
                                            HeadRows<const float> b, HeadRows<float> c) {
  std::int64_t i = 0;
  const auto run = [&]<int M>() DROPPEFT_INLINE {
    for (; i + M <= rows; i += M)
      multiply_rows<W, M>(columns, depth, scale, {a.at + i * a.row, a.row, a.step}, b,
                          {c.at + i * c.stride, c.stride});
  };
  if constexpr (W >= 16) run.template operator()<8>();  // as many sums as registers
  run.template operator()<4>();
  run.template operator()<1>();
}

/// exp(x) for x <= 0, within 2e-7 relative; 0 below -87, NaN for any NaN. The polynomial is that of
/// Cephes' expf.
template <class P>
[[gnu::always_inline]] inline void exp_of_negative(P& x) {
  using Words = Pack<std::int32_t, pack_size<P>>;
  constexpr float round = 12582912;  // 1.5 * 2^23: adding it leaves an integer in the low bits
  const auto tiny = x < -87.0F;
  const P clamped = tiny ? P{} : x;
  const P rounded = clamped * 1.44269504F + round;
  const P n = rounded - round;
  const P r = clamped - n * 0.693359375F + n * 2.12194440e-4F;
  P p = r * 1.9875691500e-4F + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * r * r + r + 1.0F;
  const Words power = (reinterpret_cast<Words>(rounded) << 23) + reinterpret_cast<Words>(p);
  x = tiny ? P{} : P(reinterpret_cast<P>(power) + (clamped - clamped));
}

/// to [columns, stride of its own] = from [rows, columns] transposed, zeros after the rows.
[[gnu::always_inline]] inline void transpose(std::int64_t rows, std::int64_t columns,
                                             HeadRows<const float> from, HeadRows<float> to) {
  for (std::int64_t j = 0; j < columns; ++j) {
    float* const out = to.at + j * to.stride;
    for (std::int64_t i = 0; i < rows; ++i) out[i] = from.at[i * from.stride + j];
    for (std::int64_t i = rows; i < to.stride; ++i) out[i] = 0;
  }
}

/// P into `weights` [queries, padded keys], zeros after the keys; `scratch` has room for width + 1
/// rows more.
template <int W>
[[gnu::always_inline]] inline void attention_weights(const AttentionHead& head, float* weights,
                                                     float* scratch) {
  const std::int64_t padded = head.padded_keys();
  float* const bias = scratch + head.width * padded;
  for (std::int64_t j = 0; j < padded; ++j)
    bias[j] = j >= head.keys         ? -std::numeric_limits<float>::infinity()
              : head.bias == nullptr ? 0
                                     : head.bias[j];
  transpose(head.keys, head.width, head.k, {scratch, padded});
  multiply<W>(head.queries, padded, head.width, head.scale, {head.q.at, head.q.stride, 1},
              {scratch, padded}, {weights, padded});
  for (std::int64_t i = 0; i < head.queries; ++i) {
    float* const row = weights + i * padded;
    Pack<float, W> most;
    fill(most, -std::numeric_limits<float>::infinity());
    for (std::int64_t j = 0; j < padded; j += W) {
      Pack<float, W> score, more;
      load(score, row + j);
      load(more, bias + j);
      score += more;
      store(row + j, score);
      most = score > most ? score : most;
    }
    float highest = most[0];
    for (int j = 1; j < W; ++j) highest = most[j] > highest ? most[j] : highest;
    if (highest == -std::numeric_limits<float>::infinity()) highest = 0;
    Pack<float, W> sums{};
    for (std::int64_t j = 0; j < padded; j += W) {
      Pack<float, W> weight;
      load(weight, row + j);
      weight -= highest;
      exp_of_negative(weight);
      store(row + j, weight);
      sums += weight;
    }
    const float total = sum(sums), inverse = total == 0 ? 0 : 1 / total;
    for (std::int64_t j = 0; j < padded; j += W) {
      Pack<float, W> weight;
      load(weight, row + j);
      store(row + j, Pack<float, W>(weight * inverse));
    }
  }
}

}  // namespace detail

/// y [queries, width]. scratch: forward_scratch() floats. Serial.
inline void attention(const AttentionHead& head, HeadRows<float> y, float* scratch,
                      Isa isa = best_isa()) {
  dispatch(isa, [=]<int W>() DROPPEFT_INLINE {
    const std::int64_t padded = head.padded_keys();
    float* const weights = scratch + (head.width + 1) * padded;
    detail::attention_weights<W>(head, weights, scratch);
    detail::multiply<W>(head.queries, head.width, head.keys, 1, {weights, padded, 1}, head.v, y);
  });
}

/// The gradients of q, k and v from that of y:
///
///     dP = gy v^T,  dS = P * (dP - [row by row] sum(P * dP))
///     gq = scale dS k,  gk = scale dS^T q,  gv = P^T gy
///
/// scratch: backward_scratch() floats. Serial.
inline void attention_backward(const AttentionHead& head, HeadRows<const float> gy,
                               HeadRows<float> gq, HeadRows<float> gk, HeadRows<float> gv,
                               float* scratch, Isa isa = best_isa()) {
  dispatch(isa, [=]<int W>() DROPPEFT_INLINE {
    const std::int64_t padded = head.padded_keys(), width = head.width, keys = head.keys;
    float* const weights = scratch + (width + 1) * padded;
    float* const scores = weights + head.queries * padded;  // their gradients
    detail::attention_weights<W>(head, weights, scratch);
    detail::transpose(keys, width, head.v, {scratch, padded});
    detail::multiply<W>(head.queries, padded, width, 1, {gy.at, gy.stride, 1}, {scratch, padded},
                        {scores, padded});
    for (std::int64_t i = 0; i < head.queries; ++i) {
      const float* const weight_row = weights + i * padded;
      float* const row = scores + i * padded;
      Pack<float, W> sums{}, weight, gradient;
      for (std::int64_t j = 0; j < padded; j += W) {
        load(weight, weight_row + j);
        load(gradient, row + j);
        sums += weight * gradient;
      }
      const float mean = sum(sums);
      for (std::int64_t j = 0; j < padded; j += W) {
        load(weight, weight_row + j);
        load(gradient, row + j);
        store(row + j, Pack<float, W>(weight * (gradient - mean)));
      }
    }
    detail::multiply<W>(head.queries, width, keys, head.scale, {scores, padded, 1}, head.k, gq);
    detail::multiply<W>(keys, width, head.queries, head.scale, {scores, 1, padded}, head.q, gk);
    detail::multiply<W>(keys, width, head.queries, 1, {weights, 1, padded}, gy, gv);
  });
}

}  // namespace droppeft::cpu
