#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "droppeft/kernels/cpu/simd.hpp"

namespace droppeft::cpu {

/// AdamW's settings, under LibTorch's names.
struct AdamWSettings {
  double lr = 1e-3, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 1e-2;
};

/// What a step multiplies with, computed in double and rounded once; see adamw().
struct AdamWFactors {
  AdamWFactors(const AdamWSettings& settings, std::int64_t step)
      : decay(static_cast<float>(1 - settings.lr * settings.weight_decay)),
        keep1(static_cast<float>(settings.beta1)),
        add1(static_cast<float>(1 - settings.beta1)),
        keep2(static_cast<float>(settings.beta2)),
        add2(static_cast<float>(1 - settings.beta2)) {
    const auto t = static_cast<double>(step);
    const double correction1 = 1 - std::pow(settings.beta1, t);
    // sqrt(v / c) + eps = (sqrt(v) + eps sqrt(c)) / sqrt(c): one division a number.
    const double correction2 = std::sqrt(1 - std::pow(settings.beta2, t));
    rate = static_cast<float>(settings.lr * correction2 / correction1);
    eps = static_cast<float>(settings.eps * correction2);
  }

  float decay, keep1, add1, keep2, add2, rate, eps;
};

namespace detail {

/// root = sqrt(x), number by number, correctly rounded.
template <class P>
[[gnu::always_inline]] inline void square_root(P& root, const P& x) {
  constexpr int size = pack_size<P>;
#if defined(__x86_64__)
  if constexpr (size == 4) {
    root = __builtin_ia32_sqrtps(x);
    return;
  }
#if !defined(__clang__)
  if constexpr (size > 4) {
    asm("vsqrtps %1, %0" : "=v"(root) : "v"(x));
    return;
  }
#endif
#endif
  if constexpr (size == 1) {
    float number;
    store(&number, x);
    number = std::sqrt(number);
    load(root, &number);
  } else {
    Pack<float, size / 2> halves[2];
    std::memcpy(halves, &x, sizeof x);
    square_root(halves[0], halves[0]);
    square_root(halves[1], halves[1]);
    std::memcpy(&root, halves, sizeof x);
  }
}

/// Packs of N numbers as long as they fit before `end`; returns where it stopped.
template <int N>
[[gnu::always_inline]] inline std::int64_t adamw(float* param, const float* grad, float* exp_avg,
                                                 float* exp_avg_sq, const AdamWFactors& factors,
                                                 std::int64_t first, std::int64_t end) {
  Pack<float, N> decay, keep1, add1, keep2, add2, rate, eps;
  fill(decay, factors.decay);
  fill(keep1, factors.keep1);
  fill(add1, factors.add1);
  fill(keep2, factors.keep2);
  fill(add2, factors.add2);
  fill(rate, factors.rate);
  fill(eps, factors.eps);
  std::int64_t i = first;
  for (; i + N <= end; i += N) {
    Pack<float, N> p, g, m, v, root;
    load(p, param + i);
    load(g, grad + i);
    load(m, exp_avg + i);
    load(v, exp_avg_sq + i);
    m = keep1 * m + add1 * g;
    v = keep2 * v + add2 * g * g;
    square_root(root, v);
    p = decay * p - rate * m / (root + eps);
    store(param + i, p);
    store(exp_avg + i, m);
    store(exp_avg_sq + i, v);
  }
  return i;
}

}  // namespace detail

/// One step of AdamW (Loshchilov and Hutter, arXiv 1711.05101, with LibTorch's decay of lr times
/// weight_decay), for the numbers first to end - 1 of a tensor, each read and written once:
///
///     m = beta1 m + (1 - beta1) g
///     v = beta2 v + (1 - beta2) g^2
///     p = (1 - lr weight_decay) p - lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + eps)
///
/// p, g, m, v: param, grad, exp_avg, exp_avg_sq, which do not overlap. t = step >= 1: how many
/// steps the tensor has taken with this one. Serial.
inline void adamw(float* param, const float* grad, float* exp_avg, float* exp_avg_sq,
                  const AdamWSettings& settings, std::int64_t step, std::int64_t first,
                  std::int64_t end, Isa isa = best_isa()) {
  const AdamWFactors factors(settings, step);
  dispatch(isa, [=]<int W>() DROPPEFT_INLINE {
    const std::int64_t left =
        detail::adamw<W>(param, grad, exp_avg, exp_avg_sq, factors, first, end);
    detail::adamw<1>(param, grad, exp_avg, exp_avg_sq, factors, left, end);
  });
}

}  // namespace droppeft::cpu
