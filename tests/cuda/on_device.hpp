#pragma once

#include <cuda_runtime.h>
#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "droppeft/kernels/cpu/simd.hpp"
#include "droppeft/random/stream.hpp"

/// Numbers in device memory, `shift` numbers behind an address that takes vectors, between guards.
template <class T>
class OnDevice {
 public:
  explicit OnDevice(const std::vector<T>& numbers, std::size_t shift = 0)
      : before_(64 / sizeof(T) + shift), count_(numbers.size()) {
    REQUIRE(cudaMalloc(&start_, bytes()) == cudaSuccess);
    REQUIRE(cudaMemset(start_, guard, bytes()) == cudaSuccess);
    REQUIRE(cudaMemcpy(data(), numbers.data(), count_ * sizeof(T), cudaMemcpyHostToDevice) ==
            cudaSuccess);
  }
  /// As many numbers that are no numbers.
  explicit OnDevice(std::size_t count, std::size_t shift = 0)
      : OnDevice(std::vector<T>(count, unwritten()), shift) {}
  ~OnDevice() { cudaFree(start_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  T* data() const { return start_ + before_; }

  /// Waits for the device; fails if a guard was written to.
  std::vector<T> numbers() const {
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    std::vector<T> all(bytes() / sizeof(T));
    REQUIRE(cudaMemcpy(all.data(), start_, bytes(), cudaMemcpyDeviceToHost) == cudaSuccess);
    int written = 0;
    for (std::size_t i = 0; i < all.size(); ++i)
      if (i < before_ || i >= before_ + count_) written += !is_guard(all[i]);
    CHECK(written == 0);
    const auto first = all.begin() + static_cast<std::ptrdiff_t>(before_);
    return {first, first + static_cast<std::ptrdiff_t>(count_)};
  }

 private:
  static constexpr int guard = 0xEE;

  static bool is_guard(const T& number) {
    unsigned char its[sizeof(T)];
    std::memcpy(its, &number, sizeof(T));
    for (const unsigned char byte : its)
      if (byte != guard) return false;
    return true;
  }
  static T unwritten() {
    T number;
    std::memset(&number, 0xFF, sizeof number);
    return number;
  }

  std::size_t bytes() const { return (before_ + count_ + 64 / sizeof(T)) * sizeof(T); }

  std::size_t before_, count_;
  T* start_ = nullptr;
};

template <class T>
double value_of(T number) {
  droppeft::cpu::Pack<float, 1> pack;
  droppeft::cpu::load(pack, &number);
  return static_cast<double>(pack[0]);
}

/// `count` numbers in [-0.4, 0.6), rounded to T.
template <class T>
std::vector<T> random_numbers(droppeft::Stream& stream, std::int64_t count) {
  std::vector<T> all(static_cast<std::size_t>(count));
  for (T& number : all) {
    const droppeft::cpu::Pack<float, 1> pack{static_cast<float>(stream.uniform() - 0.4)};
    droppeft::cpu::store(&number, pack);
  }
  return all;
}

/// Do they have the same bits?
template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

/// The largest |a - b| / (1 + |b|); not a number if either holds one that is none.
template <class T>
double worst_error(const std::vector<T>& a, const std::vector<T>& b) {
  REQUIRE(a.size() == b.size());
  double most = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double expected = value_of(b[i]), error = value_of(a[i]) - expected;
    const double relative =
        (error < 0 ? -error : error) / (1 + (expected < 0 ? -expected : expected));
    if (!(relative <= most)) most = relative;
  }
  return most;
}
