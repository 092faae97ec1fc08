#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define DROPPEFT_HOST_DEVICE __host__ __device__
#else
#define DROPPEFT_HOST_DEVICE
#endif

namespace droppeft {

/// Four 32-bit words: a counter of Philox, or the numbers that belong to it.
struct PhiloxBlock {
  std::uint32_t word[4];
};

/// Philox4x32: the four random words that belong to a 128-bit counter under a 64-bit key.
///
/// A round maps (c0, c1, c2, c3) to (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0
/// c0)); the key grows by the Weyl constants between rounds. Any block is computed without those
/// before it, with the same bits on host and device, which is what lets a mask be regenerated
/// instead of stored. Ten rounds pass BigCrush; seven are the least that do. Not for cryptography.
///
/// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
DROPPEFT_HOST_DEVICE constexpr PhiloxBlock philox4x32(PhiloxBlock counter, std::uint64_t key,
                                                      int rounds = 10) {
  auto key0 = static_cast<std::uint32_t>(key);
  auto key1 = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < rounds; ++round) {
    const std::uint64_t product0 = std::uint64_t{0xD2511F53} * counter.word[0];
    const std::uint64_t product1 = std::uint64_t{0xCD9E8D57} * counter.word[2];
    counter = {{static_cast<std::uint32_t>(product1 >> 32) ^ counter.word[1] ^ key0,
                static_cast<std::uint32_t>(product1),
                static_cast<std::uint32_t>(product0 >> 32) ^ counter.word[3] ^ key1,
                static_cast<std::uint32_t>(product0)}};
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return counter;
}

}  // namespace droppeft
