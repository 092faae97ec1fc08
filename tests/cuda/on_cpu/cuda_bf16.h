#pragma once

#include "cuda_runtime.h"

struct __nv_bfloat16 {
  std::uint16_t bits;
};
struct __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

/// To nearest, ties to even; NaN becomes 0x7FFF.
inline __nv_bfloat16 __float2bfloat16_rn(float number) {
  if (std::isnan(number)) return {0x7FFF};
  const std::uint32_t word = __float_as_uint(number);
  return {static_cast<std::uint16_t>((word + 0x7FFF + (word >> 16 & 1)) >> 16)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}
inline std::uint16_t __bfloat16_as_ushort(__nv_bfloat16 number) { return number.bits; }
