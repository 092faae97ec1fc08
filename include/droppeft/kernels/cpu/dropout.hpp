#pragma once

#include <algorithm>
#include <cstdint>

#include "droppeft/kernels/cpu/simd.hpp"
#include "droppeft/kernels/keep_mask.hpp"

namespace droppeft::cpu {

namespace detail {

/// What mask.factor says of 128 columns at once, block after block.
template <int W>
class KeepFactors {
 public:
  [[gnu::always_inline]] KeepFactors(const KeepMask& mask, std::int64_t block) {
    fill(threshold_, mask.threshold);
    fill(scale_, std::bit_cast<std::uint32_t>(mask.scale));
    fill(name_[0], mask.name);
    fill(name_[1], mask.name >> 32);
    std::uint64_t key0 = mask.key, key1 = mask.key >> 32;
    // Unrolled, for GCC 12 vectorises this loop wrongly under -O3 -march=icelake-server.
#pragma GCC unroll 16
    for (auto& key : keys_) {
      fill(key[0], key0);
      fill(key[1], key1);
      key0 += 0x9E3779B9;
      key1 += 0xBB67AE85;
    }
    seek(block);
  }

  /// The next block is to be `block`.
  [[gnu::always_inline]] void seek(std::int64_t block) {
    static constexpr std::uint64_t even[8] = {0, 2, 4, 6, 8, 10, 12, 14};
    load(counter_, even);
    counter_ += 16 * static_cast<std::uint64_t>(block);
  }

  /// factors[c] for the columns of the next block.
  [[gnu::always_inline]] void operator()(float* factors) {
#pragma GCC unroll 4
    for (int first = 0; first < 16; first += W) {
      Long even[4], odd[4];
      philox(even, counter_);
      philox(odd, counter_ + 1);
      counter_ += W;
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const auto words = reinterpret_cast<Words>((even[i] & 0xFFFFFFFF) | (odd[i] << 32));
        const Words low = words & 0xFFFF, high = words >> 16;
        float* const at = factors + 32 * i + first;
        store(at, reinterpret_cast<Pack<float, W>>((low >= threshold_) & scale_));
        store(at + 16, reinterpret_cast<Pack<float, W>>((high >= threshold_) & scale_));
      }
    }
  }

 private:
  using Words = Pack<std::uint32_t, W>;
  using Long = Pack<std::uint64_t, W / 2>;  // of which the lower halves count

  /// The numbers of the Philox blocks with these counters.
  [[gnu::always_inline]] void philox(Long* words, const Long& counter) const {
    words[0] = counter;
    words[1] = counter >> 32;
    words[2] = name_[0];
    words[3] = name_[1];
#pragma GCC unroll 16
    for (const auto& key : keys_) {
      Long product0, product1;
      multiply_low_halves(product0, words[0], 0xD2511F53);
      multiply_low_halves(product1, words[2], 0xCD9E8D57);
      words[0] = (product1 >> 32) ^ words[1] ^ key[0];
      words[1] = product1;
      words[2] = (product0 >> 32) ^ words[3] ^ key[1];
      words[3] = product0;
    }
  }

  Words threshold_, scale_;
  Long counter_, name_[2], keys_[KeepMask::rounds][2];
};

}  // namespace detail

/// out[r, c] = x[r, c] mask.factor(r, c, width) for the blocks first to end - 1 of a matrix of
/// `width` columns, numbered row by row (see KeepMask): all of an [n, width] matrix are blocks 0 to
/// n KeepMask::blocks(width). In place too. Its own backward. T: float or BFloat16. Serial.
template <class T>
void dropout(T* out, const T* x, std::int64_t width, const KeepMask& mask, std::int64_t first,
             std::int64_t end, Isa isa = best_isa()) {
  const std::int64_t in_a_row = KeepMask::blocks(width);
  dispatch(isa, [=]<int W>() DROPPEFT_INLINE {
    detail::KeepFactors<W> next_factors(mask, first);
    alignas(64) float factors[KeepMask::block_size];
    for (std::int64_t block = first; block < end; ++block) {
      next_factors(factors);
      const std::int64_t column = block % in_a_row * KeepMask::block_size;
      const std::int64_t start = block / in_a_row * width + column;
      const std::int64_t count = std::min(KeepMask::block_size, width - column);
      for_packs<W>(count, [&]<int N>(std::int64_t i) DROPPEFT_INLINE {
        Pack<float, N> value, factor;
        load(value, x + start + i);
        load(factor, factors + i);
        store(out + start + i, Pack<float, N>(value * factor));
      });
    }
  });
}

}  // namespace droppeft::cpu
