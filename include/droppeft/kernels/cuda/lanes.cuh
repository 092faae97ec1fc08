#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "droppeft/kernels/cuda/slots.hpp"
#include "droppeft/kernels/keep_mask.hpp"
#include "droppeft/random/philox.hpp"

/// How a warp shares out the numbers of a row, for all kernels that work row by row.
///
/// A chunk is 256 columns: two blocks of KeepMask. Each of the 32 lanes has eight numbers of it, in
/// vectors of 16 bytes: one for BFloat16, of columns 8 lane to 8 lane + 7; two for float, of
/// columns 4 lane to 4 lane + 3 and, of the second block, 128 + 4 lane to 128 + 4 lane + 3.
namespace droppeft::cuda {

using cpu::BFloat16;

constexpr int warp_size = 32;
constexpr int lane_numbers = 8;
constexpr int chunk_columns = warp_size * lane_numbers;
constexpr unsigned all_lanes = 0xFFFFFFFF;

template <class T>
constexpr int vector_numbers = 16 / static_cast<int>(sizeof(T));

/// The column of a chunk that number i of a lane is.
template <class T>
__device__ constexpr int lane_column(int lane, int i) {
  constexpr int n = vector_numbers<T>;
  return n * (warp_size * (i / n) + lane) + i % n;
}

/// Eight numbers as they lie in memory.
template <class T>
struct Packed {
  std::uint32_t word[2 * sizeof(T)];
};

__device__ inline float number(const Packed<float>& eight, int i) {
  return __uint_as_float(eight.word[i]);
}
__device__ inline float number(const Packed<BFloat16>& eight, int i) {
  const std::uint32_t pair = eight.word[i / 2];
  return __uint_as_float(i % 2 == 0 ? pair << 16 : pair & 0xFFFF0000);
}

__device__ inline void pack(Packed<float>& eight, const float (&numbers)[lane_numbers]) {
#pragma unroll
  for (int i = 0; i < lane_numbers; ++i) eight.word[i] = __float_as_uint(numbers[i]);
}
/// Rounds to nearest, ties to even.
__device__ inline void pack(Packed<BFloat16>& eight, const float (&numbers)[lane_numbers]) {
#pragma unroll
  for (int i = 0; i < lane_numbers; i += 2) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(numbers[i], numbers[i + 1]);
    std::memcpy(&eight.word[i / 2], &pair, sizeof pair);
  }
}

/// A word of ones.
template <class T>
constexpr std::uint32_t ones = sizeof(T) == sizeof(float) ? 0x3F800000 : 0x3F803F80;

__device__ inline std::uint32_t bits_of(float number) { return __float_as_uint(number); }
__device__ inline std::uint32_t bits_of(BFloat16 number) { return number.bits; }
__device__ inline void set_bits(float& number, std::uint32_t bits) {
  number = __uint_as_float(bits);
}
__device__ inline void set_bits(BFloat16& number, std::uint32_t bits) {
  number.bits = static_cast<std::uint16_t>(bits);
}

/// Vector `v` of `eight`, whose first number lies at `at`, `left` numbers before the end of the
/// row; behind the end its words are `otherwise`. `Whole` says that vectors take one load of 16
/// bytes and end with the row.
template <bool Whole, class T>
__device__ inline void load_vector(Packed<T>& eight, int v, const T* at, int left,
                                   std::uint32_t otherwise) {
  constexpr int n = vector_numbers<T>;
  std::uint32_t* const word = eight.word + 4 * v;
  if constexpr (Whole) {
    const uint4 four = left > 0 ? *reinterpret_cast<const uint4*>(at)
                                : make_uint4(otherwise, otherwise, otherwise, otherwise);
    word[0] = four.x;
    word[1] = four.y;
    word[2] = four.z;
    word[3] = four.w;
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j) word[j] = otherwise;
#pragma unroll
    for (int i = 0; i < n; ++i)
      if (i < left) {
        constexpr int bits = 8 * static_cast<int>(sizeof(T));
        const std::uint32_t mask = 0xFFFFFFFFU >> (32 - bits) << i * bits % 32;
        word[4 * i / n] = (word[4 * i / n] & ~mask) | bits_of(at[i]) << i * bits % 32;
      }
  }
}

/// If `yes`, in one store; of an assignment nvcc makes four at times.
__device__ inline void store_16_bytes(bool yes, void* at, uint4 value) {
#if defined(__CUDA_ARCH__)
  asm volatile(
      "{\n.reg .pred yes;\nsetp.ne.s32 yes, %0, 0;\n"
      "@yes st.global.v4.u32 [%1], {%2, %3, %4, %5};\n}"
      :
      : "r"(static_cast<int>(yes)), "l"(__cvta_generic_to_global(at)), "r"(value.x), "r"(value.y),
        "r"(value.z), "r"(value.w)
      : "memory");
#else
  if (yes) *static_cast<uint4*>(at) = value;
#endif
}

template <bool Whole, class T>
__device__ inline void store_vector(T* at, const Packed<T>& eight, int v, int left) {
  constexpr int n = vector_numbers<T>;
  const std::uint32_t* const word = eight.word + 4 * v;
  if constexpr (Whole) {
    store_16_bytes(left > 0, at, make_uint4(word[0], word[1], word[2], word[3]));
  } else {
#pragma unroll
    for (int i = 0; i < n; ++i)
      if (i < left) set_bits(at[i], word[4 * i / n] >> (i * 8 * static_cast<int>(sizeof(T)) % 32));
  }
}

/// A lane's numbers of the chunk that begins at column `first` of a row.
template <bool Whole, class T>
__device__ inline void load_chunk(Packed<T>& eight, const T* row, int first, int width, int lane,
                                  std::uint32_t otherwise = 0) {
#pragma unroll
  for (int v = 0; v < lane_numbers / vector_numbers<T>; ++v) {
    const int column = first + lane_column<T>(lane, v * vector_numbers<T>);
    load_vector<Whole>(eight, v, row + column, width - column, otherwise);
  }
}
template <bool Whole, class T>
__device__ inline void store_chunk(T* row, const Packed<T>& eight, int first, int width, int lane) {
#pragma unroll
  for (int v = 0; v < lane_numbers / vector_numbers<T>; ++v) {
    const int column = first + lane_column<T>(lane, v * vector_numbers<T>);
    store_vector<Whole>(row + column, eight, v, width - column);
  }
}

/// Do rows of `width` numbers at these addresses (null: there is none) take vectors throughout?
template <class T, class... Pointers>
bool takes_vectors(std::int64_t width, Pointers... pointers) {
  return width % vector_numbers<T> == 0 &&
         ((reinterpret_cast<std::uintptr_t>(pointers) % 16 == 0) && ...);
}

/// The halves of a b.
__device__ inline void multiply(std::uint32_t& high, std::uint32_t& low, std::uint32_t a,
                                std::uint32_t b) {
#if defined(__CUDA_ARCH__)
  asm("{\n.reg .u64 product;\nmul.wide.u32 product, %2, %3;\nmov.b64 {%0, %1}, product;\n}"
      : "=r"(low), "=r"(high)
      : "r"(a), "r"(b));
#else
  const std::uint64_t product = std::uint64_t{a} * b;
  high = static_cast<std::uint32_t>(product >> 32);
  low = static_cast<std::uint32_t>(product);
#endif
}

/// A round of philox4x32. Of that function nvcc makes two multiplications for each product here.
__device__ inline PhiloxBlock philox_round(const PhiloxBlock& counter, std::uint32_t key0,
                                           std::uint32_t key1) {
  std::uint32_t high0, low0, high1, low1;
  multiply(high0, low0, counter.word[0], 0xD2511F53);
  multiply(high1, low1, counter.word[2], 0xCD9E8D57);
  return {{high1 ^ counter.word[1] ^ key0, low1, high0 ^ counter.word[3] ^ key1, low0}};
}

/// The mask in this run of a kernel: see KeepMask::runs.
__device__ inline KeepMask in_this_run(KeepMask mask) {
  if (mask.runs != nullptr) mask.name += *mask.runs;
  return mask;
}

/// Philox block `counter` of the mask.
__device__ inline PhiloxBlock mask_words(const KeepMask& mask, std::uint64_t counter) {
  PhiloxBlock words{{static_cast<std::uint32_t>(counter), static_cast<std::uint32_t>(counter >> 32),
                     static_cast<std::uint32_t>(mask.name),
                     static_cast<std::uint32_t>(mask.name >> 32)}};
  auto key0 = static_cast<std::uint32_t>(mask.key);
  auto key1 = static_cast<std::uint32_t>(mask.key >> 32);
#pragma unroll
  for (int round = 0; round < KeepMask::rounds; ++round) {
    words = philox_round(words, key0, key1);
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return words;
}

/// Bit i says whether dropout keeps number i of this lane, in mask blocks `block` and `block` + 1
/// (see KeepMask). All lanes of a warp must call it together.
///
/// Lane p makes Philox block p mod 16 of mask block p / 16. A vote on half h of it tells all lanes
/// of columns 16 h to 16 h + 15 of both: bit p of the vote is column p mod 16 of block p / 16.
template <class T>
__device__ inline unsigned keep_bits(const KeepMask& mask, std::uint64_t block, int lane) {
  const PhiloxBlock words = mask_words(mask, 16 * block + static_cast<std::uint64_t>(lane));
  const std::uint32_t least = mask.threshold << 16;
  unsigned votes[8];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    votes[2 * i] = __ballot_sync(all_lanes, words.word[i] << 16 >= least);
    votes[2 * i + 1] = __ballot_sync(all_lanes, words.word[i] >= least);
  }
  // votes[half] of the half that holds this lane's columns, chosen in registers.
  const auto first =
      static_cast<unsigned>(lane_column<T>(lane, 0)) % static_cast<unsigned>(KeepMask::block_size);
  const unsigned half = first / 16;
#pragma unroll
  for (unsigned step = 1; step < 8; step *= 2)
#pragma unroll
    for (unsigned h = 0; h < 8; h += 2 * step)
      votes[h] = (half & step) != 0 ? votes[h + step] : votes[h];
  const unsigned vote = votes[0] >> (first % 16);
  if constexpr (sizeof(T) == sizeof(float))
    return (vote & 0xF) | (vote >> 12 & 0xF0);
  else
    return (lane < warp_size / 2 ? vote : vote >> 16) & 0xFF;
}

/// The sum over the warp's lanes, the same bits in each.
__device__ inline float sum_of_warp(float value) {
#pragma unroll
  for (int distance = warp_size / 2; distance > 0; distance /= 2)
    value += __shfl_xor_sync(all_lanes, value, distance);
  return value;
}

/// kernel<<<grid, block, 0, stream>>>(arguments...) and what the launch returned.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t stream,
                   const Arguments&... arguments) {
  cudaLaunchConfig_t configuration{};
  configuration.gridDim = grid;
  configuration.blockDim = block;
  configuration.stream = stream;
  return cudaLaunchKernelEx(&configuration, kernel, arguments...);
}

}  // namespace droppeft::cuda
