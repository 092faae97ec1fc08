#include <cuda_runtime.h>
#include <doctest/doctest.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "droppeft/kernels/cuda/slots.hpp"
#include "droppeft/random/stream.hpp"

namespace {

struct DeviceWords {
  explicit DeviceWords(std::size_t count) {
    REQUIRE(cudaMalloc(&data, count * sizeof(std::uint32_t)) == cudaSuccess);
    REQUIRE(cudaMemset(data, 0xEE, count * sizeof(std::uint32_t)) == cudaSuccess);
  }
  ~DeviceWords() { cudaFree(data); }
  DeviceWords(const DeviceWords&) = delete;
  DeviceWords& operator=(const DeviceWords&) = delete;

  std::uint32_t* data = nullptr;
};

// `count` words of the stream, written by the device `shift` words into a buffer with a guard of
// eight words behind it; all of the buffer.
std::vector<std::uint32_t> device_words(const droppeft::Stream& stream, std::size_t shift,
                                        std::size_t count) {
  const DeviceWords device(shift + count + 8);
  droppeft::cuda::slots.fill_words(stream.state(), device.data + shift,
                                   static_cast<std::int64_t>(count), nullptr);
  std::vector<std::uint32_t> words(shift + count + 8);
  REQUIRE(cudaMemcpy(words.data(), device.data, words.size() * sizeof(std::uint32_t),
                     cudaMemcpyDeviceToHost) == cudaSuccess);
  return words;
}

std::vector<std::uint32_t> host_words(droppeft::Stream stream, std::size_t shift,
                                      std::size_t count) {
  std::vector<std::uint32_t> words(shift + count + 8, 0xEEEEEEEE);
  for (std::size_t i = 0; i < count; ++i) words[shift + i] = stream();
  return words;
}

}  // namespace

TEST_CASE("linking droppeft::cuda fills the slot") {
  const bool filled = droppeft::cuda::slots.fill_words != nullptr;
  CHECK(filled);
}

TEST_CASE("the device draws the bits that the host draws") {
  const auto stream = droppeft::Stream(17).fold(3).fold(0xFFFFFFFFFFFFFFFF);
  for (const std::size_t count : {0u, 1u, 3u, 4u, 1023u, 1024u, 1000000u}) {
    CAPTURE(count);
    CHECK(device_words(stream, 0, count) == host_words(stream, 0, count));
  }
}

TEST_CASE("any start in the stream and any alignment give the same bits") {
  auto stream = droppeft::Stream(18);
  for (int drawn = 0; drawn < 9; ++drawn, stream()) {
    for (const std::size_t shift : {0u, 1u, 2u, 3u, 4u}) {
      CAPTURE(drawn);
      CAPTURE(shift);
      CHECK(device_words(stream, shift, 1001) == host_words(stream, shift, 1001));
    }
  }
}

TEST_CASE("counters beyond 32 bits carry") {
  const auto state = std::array<std::uint64_t, 3>{5, 6, (std::uint64_t{1} << 34) - 8};
  const droppeft::Stream stream(state);
  CHECK(device_words(stream, 0, 64) == host_words(stream, 0, 64));
}

TEST_CASE("a negative count is refused") {
  CHECK_THROWS_AS(droppeft::cuda::slots.fill_words({}, nullptr, -1, nullptr),
                  std::invalid_argument);
}
