#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

/// Makes a lambda part of its caller, so that it is compiled for the caller's instruction set.
#define DROPPEFT_INLINE __attribute__((always_inline))

namespace droppeft::cpu {

/// Instruction sets that kernels are compiled for, all in one program. `plain` is what the compiler
/// was told to build for: SSE2 on x86-64, NEON on aarch64.
enum class Isa { plain, avx2, avx512 };

/// The widest that this machine runs.
inline Isa best_isa() {
#if defined(__x86_64__)
  static const Isa best = [] {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      return Isa::avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
    return Isa::plain;
  }();
  return best;
#else
  return Isa::plain;
#endif
}

namespace detail {

template <class T, int W>
struct PackType {
  typedef T type __attribute__((vector_size(sizeof(T) * W)));
};

#if defined(__x86_64__)
// The body is copied so that what it captured lies in registers.
template <class Body>
[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]] void run_avx512(const Body& body) {
  const Body own = body;
  own.template operator()<16>();
}
template <class Body>
[[gnu::target("avx2,fma")]] void run_avx2(const Body& body) {
  const Body own = body;
  own.template operator()<8>();
}
#endif

}  // namespace detail

/// W numbers that are worked on at once; operators act number by number. Where the instruction set
/// has no such registers it is slower, not wrong. Pass packs by reference: the convention for
/// passing them by value depends on the instruction set.
template <class T, int W>
using Pack = typename detail::PackType<T, W>::type;

/// Runs body.operator()<W>() compiled for `isa`, with the number of floats that fit its registers.
///
///     dispatch(best_isa(), [=]<int W>() DROPPEFT_INLINE {
///       for_packs<W>(count, [=]<int N>(std::int64_t i) DROPPEFT_INLINE {
///         Pack<float, N> a;
///         load(a, x + i);
///         store(y + i, a * a);
///       });
///     });
///
/// `body` and all that it calls with packs must be always_inline, and capture by value.
template <class Body>
void dispatch(Isa isa, const Body& body) {
#if defined(__x86_64__)
  if (isa == Isa::avx512) return detail::run_avx512(body);
  if (isa == Isa::avx2) return detail::run_avx2(body);
#endif
  static_cast<void>(isa);
  body.template operator()<4>();
}

/// function.operator()<N>(i) for i from 0 to count: N = W as long as it fits, then N = 1.
template <int W, class Function>
[[gnu::always_inline]] inline void for_packs(std::int64_t count, const Function& function) {
  std::int64_t i = 0;
  for (; i + W <= count; i += W) function.template operator()<W>(i);
  for (; i < count; ++i) function.template operator()<1>(i);
}

/// The upper half of a float: 8 bits of exponent, 7 of mantissa. Same bits as c10::BFloat16.
struct BFloat16 {
  std::uint16_t bits;
};

template <class P>
using PackElement = std::remove_cvref_t<decltype(std::declval<P&>()[0])>;
template <class P>
inline constexpr int pack_size = sizeof(P) / sizeof(PackElement<P>);

/// Any alignment.
template <class P>
[[gnu::always_inline]] inline void load(P& pack, const PackElement<P>* at) {
  std::memcpy(&pack, at, sizeof pack);
}
template <class P>
[[gnu::always_inline]] inline void store(PackElement<P>* at, const P& pack) {
  std::memcpy(at, &pack, sizeof pack);
}

template <class P>
[[gnu::always_inline]] inline void load(P& pack, const BFloat16* at) {
  Pack<std::uint16_t, pack_size<P>> halves;
  std::memcpy(&halves, at, sizeof halves);
  pack =
      reinterpret_cast<P>(__builtin_convertvector(halves, Pack<std::uint32_t, pack_size<P>>) << 16);
}
/// Rounds to nearest, ties to even; NaN stays NaN.
template <class P>
[[gnu::always_inline]] inline void store(BFloat16* at, const P& pack) {
  using Words = Pack<std::uint32_t, pack_size<P>>;
  const auto word = reinterpret_cast<Words>(pack);
  const Words rounded = (word + 0x7FFF + ((word >> 16) & 1)) >> 16;
  const auto is_nan = reinterpret_cast<Words>(pack != pack);
  const Words bits = (rounded & ~is_nan) | (is_nan & 0x7FC0);
  const auto halves = __builtin_convertvector(bits, Pack<std::uint16_t, pack_size<P>>);
  std::memcpy(at, &halves, sizeof halves);
}

/// `value` everywhere. For constants of a loop: compilers set number by number.
template <class P>
[[gnu::always_inline]] inline void fill(P& pack, PackElement<P> value) {
  PackElement<P> numbers[pack_size<P>];
  for (auto& number : numbers) number = value;
  load(pack, numbers);
}

template <class P>
[[gnu::always_inline]] inline PackElement<P> sum(const P& pack) {
  if constexpr (pack_size<P> == 1) {
    return pack[0];
  } else {
    constexpr int half = pack_size<P> / 2;
    Pack<PackElement<P>, half> low, high;
    std::memcpy(&low, &pack, sizeof low);
    std::memcpy(&high, reinterpret_cast<const char*>(&pack) + sizeof low, sizeof high);
    return sum(Pack<PackElement<P>, half>(low + high));
  }
}

/// product = (a mod 2^32) b: what has no name in C++, for compilers multiply all 64 bits.
template <class P>
[[gnu::always_inline]] inline void multiply_low_halves(P& product, const P& a, std::uint32_t b) {
#if defined(__x86_64__) && !defined(__clang__)
  P factor;
  fill(factor, b);
  if constexpr (sizeof(P) >= 32)
    asm("vpmuludq %2, %1, %0" : "=v"(product) : "v"(a), "v"(factor));
  else
    asm("pmuludq %2, %0" : "=x"(product) : "0"(a), "x"(factor));
#else
  product = (a & 0xFFFFFFFF) * b;
#endif
}

}  // namespace droppeft::cpu
