#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <cstdint>

#include "droppeft/core/check.hpp"
#include "droppeft/kernels/cuda/lanes.cuh"
#include "droppeft/random/philox.hpp"

namespace droppeft::cuda {

/// One thread makes one Philox block at a time. `Whole` says that every block is written whole, to
/// an address that takes one 16-byte store.
template <bool Whole>
__global__ void fill_words_kernel(std::uint64_t key, std::uint64_t name, std::uint64_t first,
                                  std::uint32_t* words, std::int64_t count) {
  const std::uint64_t last = first + static_cast<std::uint64_t>(count);
  const std::uint64_t stride = std::uint64_t{gridDim.x} * blockDim.x;
  std::uint64_t block = first / 4 + std::uint64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (; 4 * block < last; block += stride) {
    const PhiloxBlock numbers =
        philox4x32({{static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32),
                     static_cast<std::uint32_t>(name), static_cast<std::uint32_t>(name >> 32)}},
                   key);
    if constexpr (Whole) {
      *reinterpret_cast<uint4*>(words + (4 * block - first)) =
          make_uint4(numbers.word[0], numbers.word[1], numbers.word[2], numbers.word[3]);
    } else {
      for (int lane = 0; lane < 4; ++lane) {
        const std::uint64_t word = 4 * block + static_cast<unsigned>(lane);
        if (word >= first && word < last) words[word - first] = numbers.word[lane];
      }
    }
  }
}

/// Writes words drawn, drawn + 1, ..., drawn + count - 1 of the stream with the given state (key,
/// name, drawn: Stream::state()) to device memory, with the bits that Stream draws on the host:
/// word i is word i mod 4 of Philox4x32-10 at counter (i / 4, name). Returns what the launch
/// returned; does not wait. Throws std::invalid_argument for a negative count. Any alignment of
/// `words` will do; 16 bytes, a count and a number of drawn words that are multiples of four are
/// fastest.
inline cudaError_t fill_words(const std::array<std::uint64_t, 3>& state, std::uint32_t* words,
                              std::int64_t count, cudaStream_t stream) {
  check(count >= 0, "cuda::fill_words: count must not be negative, got ", count);
  if (count == 0) return cudaSuccess;
  const auto [key, name, first] = state;
  constexpr std::uint64_t threads = 256;
  constexpr std::uint64_t most_groups = std::uint64_t{1} << 20;
  const std::uint64_t blocks = (first % 4 + static_cast<std::uint64_t>(count) + 3) / 4;
  const auto groups =
      static_cast<unsigned>(std::min((blocks + threads - 1) / threads, most_groups));
  const bool whole =
      first % 4 == 0 && count % 4 == 0 && reinterpret_cast<std::uintptr_t>(words) % 16 == 0;
  auto* const kernel = whole ? fill_words_kernel<true> : fill_words_kernel<false>;
  return launch(kernel, groups, threads, stream, key, name, first, words, count);
}

}  // namespace droppeft::cuda
