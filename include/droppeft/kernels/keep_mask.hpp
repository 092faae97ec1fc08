#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "droppeft/core/check.hpp"
#include "droppeft/random/philox.hpp"
#include "droppeft/random/stream.hpp"

namespace droppeft {

/// Which numbers of a matrix dropout keeps: a pure function of stream and position, so that it is
/// made anew in backward instead of stored, with the same bits on any thread, CPU and GPU.
///
/// Each number owns 16 bits of Philox4x32-7 under the stream's key and name (however many words
/// were drawn of it; seven rounds are the least that pass BigCrush), and is dropped if they are
/// below threshold = round(65536 rate). So the rate is met to 2^-17, and `scale` = 1 / (1 -
/// threshold / 65536) keeps the mean exact for it.
///
/// The columns of a row come in blocks of 128, each row begins a new one; block b owns the Philox
/// blocks 16 b to 16 b + 15. Column c of it has half (c / 16) mod 8 of Philox block c mod 16 (half
/// 2 i is the lower one of word i): the order in which vectors make them.
struct KeepMask {
  static constexpr std::int64_t block_size = 128;
  static constexpr int rounds = 7;

  std::uint64_t key = 0, name = 0;
  std::uint32_t threshold = 0;  // of 65536; 0: keeps everything
  float scale = 1;
  /// Null, or what lies in the memory of a GPU and is added to `name` whenever a kernel runs there:
  /// so a graph of kernels that counts its runs there gets fresh masks in each (see StepGraphs).
  const std::uint64_t* runs = nullptr;

  KeepMask() = default;
  /// rate in [0, 1), at most 65535 / 65536 in effect. Throws std::invalid_argument otherwise.
  KeepMask(const Stream& stream, double rate) : key(stream.state()[0]), name(stream.state()[1]) {
    check(rate >= 0 && rate < 1, "dropout: the rate must be in [0, 1), got ", rate);
    threshold = static_cast<std::uint32_t>(std::min(std::round(rate * 65536), 65535.0));
    scale = static_cast<float>(65536.0 / (65536 - threshold));
  }

  /// A mask of its own: that of the child stream which the next two words of `stream` name. Draws
  /// nothing for a rate of 0.
  static KeepMask next(Stream& stream, double rate) {
    if (rate == 0) return {};
    const std::uint64_t low = stream(), high = stream();
    KeepMask mask(stream.fold(high << 32 | low), rate);
    mask.runs = counted_runs;
    return mask;
  }

  /// `runs` of the masks that next() makes on this thread.
  [[gnu::visibility("default")]] static inline thread_local const std::uint64_t* counted_runs =
      nullptr;

  DROPPEFT_HOST_DEVICE bool keeps_all() const { return threshold == 0; }

  DROPPEFT_HOST_DEVICE static constexpr std::int64_t blocks(std::int64_t width) {
    return (width + block_size - 1) / block_size;
  }

  /// What the number at (row, column) of a matrix with `width` columns is multiplied by: 0 or
  /// scale.
  DROPPEFT_HOST_DEVICE float factor(std::int64_t row, std::int64_t column,
                                    std::int64_t width) const {
    const auto block = static_cast<std::uint64_t>(row * blocks(width) + column / block_size);
    const std::uint64_t counter = 16 * block + static_cast<std::uint64_t>(column % 16);
    const auto half = static_cast<std::uint32_t>(column / 16 % 8);
    const PhiloxBlock words =
        philox4x32({{static_cast<std::uint32_t>(counter), static_cast<std::uint32_t>(counter >> 32),
                     static_cast<std::uint32_t>(name), static_cast<std::uint32_t>(name >> 32)}},
                   key, rounds);
    return (words.word[half / 2] >> (16 * (half % 2)) & 0xFFFF) < threshold ? 0.0F : scale;
  }
};

}  // namespace droppeft
