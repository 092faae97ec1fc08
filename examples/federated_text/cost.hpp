#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <droppeft/federated/budget.hpp>
#include <string_view>

#include "models/bert.hpp"
#include "training.hpp"

/// Floating-point operations of one encoder layer on a batch: two for each multiply-add of the
/// linear maps, N (8 d^2 + 4 d f) for N tokens, of attention, 4 B S^2 d with its padding, and of
/// rank-r adapters on query and value, 8 N r d. Norms, gelu and the head are left out: under 2 %
/// here.
struct LayerCost {
  BertConfig config;
  std::int64_t rank;
  std::size_t element_size;  // of the encoder's numbers, bytes

  double forward(const Batch& batch) const {
    return linear(batch) + attention(batch) + adapter(batch);
  }

  /// Frozen maps are passed once on the way back, adapters twice (input and weight), attention
  /// twice. Nothing without adapters.
  double backward(const Batch& batch) const {
    return rank > 0 ? linear(batch) + 2 * attention(batch) + 2 * adapter(batch) : 0;
  }

  /// Bytes of a training step on so many sequences of so many places, padding too, beside the
  /// weights. As derived in docs/bench.md, f being the inner width and e the element size: each
  /// active layer keeps 5 d + f numbers of the encoder's a place, d more in bf16 (the norms' sums)
  /// and for sequences of more than 256 places (attention's output), and in fp32 whatever e is, the
  /// low-rank products, 8 r bytes, and what norms and attention know of a row: 8 bytes, in bf16 16,
  /// for long sequences 4 a more. The one that runs needs 2 e f more, in bf16 attention 8 a times
  /// the length and 8 d, if that is more. In fp32 a second norm some of whose weights are below
  /// 1/64 of their bias keeps 4 d more. Upper bounds beside that: 4 e d a place for the embeddings
  /// and the head's input (its fp32 copy of a bf16 output included, which takes 2 e d), and the
  /// trained parameters, always fp32, five times (old, new, gradient, two moments). Not counted:
  /// what attention in fp32 needs for each thread, which only shows where all else is kilobytes.
  droppeft::StepBytes step_bytes(std::int64_t sequences, std::int64_t length,
                                 std::int64_t trained_bytes) const {
    const double n = number(sequences * length), d = number(config.width);
    const double f = number(config.inner), a = number(config.heads);
    const auto e = static_cast<double>(element_size);
    const bool half = element_size == 2;
    const bool near = length * length <= droppeft::detail::most_scores;
    const double kept = e * ((half || !near ? 6 : 5) * d + f) + 8 * number(rank) +
                        (half ? 16 : 8 + (near ? 0 : 4 * a));
    const double running = std::max(2 * e * f, half ? 8 * (a * number(length) + d) : 0);
    return {n * kept, n * (4 * e * d + running) + 5 * number(trained_bytes)};
  }

 private:
  static double number(std::int64_t value) { return static_cast<double>(value); }
  double linear(const Batch& batch) const {
    const double d = number(config.width);
    return number(batch.tokens) * (8 * d * d + 4 * d * number(config.inner));
  }
  double attention(const Batch& batch) const {
    return 4 * number(batch.ids.numel()) * number(batch.ids.size(1)) * number(config.width);
  }
  double adapter(const Batch& batch) const {
    return 8 * number(batch.tokens) * number(rank) * number(config.width);
  }
};

inline constexpr std::string_view cost_model =
    "A device's seconds = FLOPs of its active layers / FLOP/s of its class + bits sent and "
    "received / its bandwidth; a round lasts as long as its slowest device. FLOPs are counted "
    "(linear maps, attention, adapters; frozen maps once forward and once backward). Classes: slow "
    "10, middle 30, fast 90 GFLOP/s sustained in fp32, also with --dtype bf16, our assumption at "
    "the scale of a Raspberry Pi 4, a Raspberry Pi 5 and a small laptop; links log-uniform in 1 to "
    "100 Mbit/s, as in the paper.";
