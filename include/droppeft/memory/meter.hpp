#pragma once

#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>

namespace droppeft {

/// Bytes of tensors that a region of code holds: those it allocated and has not given back.
///
///     MemoryMeter meter;
///     train_step();
///     std::cout << meter.peak() << " bytes at most\n";
///
/// Counts what LibTorch's allocators report, on this thread and on the threads that LibTorch starts
/// for it (backward), between construction and destruction; memory allocated before does not count,
/// nor does its release (of which LibTorch warns on standard error, the first time). Memory
/// released on another thread counts until its address is used again. Meters nest: the outer one
/// counts what the inner one sees. Destroy a meter on the thread that made it, the newest first.
/// Not for use beside LibTorch's own profiler, whose place it takes, and not for memory that is not
/// a tensor's (code, BLAS workspaces).
class MemoryMeter {
 public:
  MemoryMeter()
      : counter_(std::make_shared<Counter>()),
        guard_(c10::DebugInfoKind::PROFILER_STATE, counter_) {}
  MemoryMeter(const MemoryMeter&) = delete;
  MemoryMeter& operator=(const MemoryMeter&) = delete;

  /// Bytes held now.
  std::int64_t current() const {
    const std::lock_guard lock(counter_->mutex);
    return counter_->current;
  }

  /// The most bytes held at any one time since construction or the last reset_peak().
  std::int64_t peak() const {
    const std::lock_guard lock(counter_->mutex);
    return counter_->peak;
  }

  /// Starts the peak anew from what is held now.
  void reset_peak() {
    const std::lock_guard lock(counter_->mutex);
    counter_->peak = counter_->current;
  }

 private:
  struct Counter : c10::MemoryReportingInfoBase {
    void reportMemoryUsage(void* memory, std::int64_t bytes, std::size_t allocated,
                           std::size_t reserved, c10::Device device) override {
      {
        const std::lock_guard lock(mutex);
        // Sizes by address, since a release is also reported for memory that is not ours.
        auto& held = blocks[memory];
        current -= std::exchange(held, std::max(bytes, std::int64_t{0}));
        current += held;
        peak = std::max(peak, current);
        if (held == 0) blocks.erase(memory);
      }
      if (outer != nullptr) outer->reportMemoryUsage(memory, bytes, allocated, reserved, device);
    }
    bool memoryProfilingEnabled() const override { return true; }

    std::mutex mutex;
    std::unordered_map<void*, std::int64_t> blocks;
    std::int64_t current = 0;
    std::int64_t peak = 0;
    c10::MemoryReportingInfoBase* outer = dynamic_cast<c10::MemoryReportingInfoBase*>(
        c10::ThreadLocalDebugInfo::get(c10::DebugInfoKind::PROFILER_STATE));
  };

  std::shared_ptr<Counter> counter_;
  c10::DebugInfoGuard guard_;
};

}  // namespace droppeft
