#pragma once

#include <array>
#include <cstdint>

namespace droppeft::cuda {

/// The device kernels of this program. register.cu, which linking `droppeft::cuda` compiles into
/// it, fills the slots before main; in a program without it they are null, and callers use the CPU.
/// Nothing here needs the CUDA toolkit, so that headers compiled by g++ can ask.
struct Slots {
  /// Writes the next `count` >= 0 words of the stream with this state (Stream::state()) to device
  /// memory, with the bits that the Stream itself draws, on `cuda_stream` (a cudaStream_t; null is
  /// the default stream) without waiting for it. The caller advances the state.
  /// Throws std::invalid_argument for a negative count, std::runtime_error if the launch fails.
  void (*fill_words)(const std::array<std::uint64_t, 3>& state, std::uint32_t* words,
                     std::int64_t count, void* cuda_stream) = nullptr;
};

/// One object in a process, also when shared libraries that hide their symbols use it.
[[gnu::visibility("default")]] inline Slots slots;

}  // namespace droppeft::cuda
