#pragma once

// As much of CUDA's runtime as the kernels and their tests use, on the CPU, so that the device code
// itself runs where there is no GPU and no nvcc: put this folder before CUDA's in the include path.
//
// A group's threads are coroutines of one thread of the CPU. They run until they vote, shuffle or
// wait for one another, lanes in an order that changes all the time, warps far ahead of one
// another, so that a barrier that is missing is missed. A warp or group that not all of its threads
// bring to such a place ends the program. What this cannot show: races within a stretch, caches,
// speed.

#include <ucontext.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned its_x = 1, unsigned its_y = 1, unsigned its_z = 1) : x(its_x), y(its_y), z(its_z) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline unsigned __float_as_uint(float number) { return std::bit_cast<unsigned>(number); }

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration };
using cudaStream_t = void*;
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };

namespace on_cpu {

enum class At { running, group, warp, end };

struct Thread {
  ucontext_t context{};
  std::vector<char> stack = std::vector<char>(std::size_t{1} << 16);
  dim3 index;
  At at = At::running;
  std::uint32_t given = 0, parameter = 0;
  bool shuffles = false;
};

struct Group {
  std::vector<Thread> threads;
  ucontext_t scheduler{};
  Thread* current = nullptr;
  std::function<void()> kernel;
};
inline Group group;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "on_cpu: %s\n", what);
  std::abort();
}

/// A word of a fixed sequence.
inline std::uint32_t draw() {
  static std::uint64_t state = 1;
  state = state * 6364136223846793005U + 1442695040888963407U;
  return static_cast<std::uint32_t>(state >> 33);
}

inline void stop(At at) {
  Thread& thread = *group.current;
  thread.at = at;
  if (swapcontext(&thread.context, &group.scheduler) != 0) fail("swapcontext");
}

inline void enter() {
  group.kernel();
  stop(At::end);
}

/// All threads of the warp have come: what each of them gets.
inline void meet_warp(Thread* lanes) {
  std::uint32_t votes = 0, given[32];
  for (int lane = 0; lane < 32; ++lane) {
    if (lanes[lane].at != At::warp || lanes[lane].shuffles != lanes[0].shuffles)
      fail("not all lanes of a warp vote or shuffle together");
    given[lane] = lanes[lane].given;
    votes |= std::uint32_t{given[lane] != 0} << lane;
  }
  for (int lane = 0; lane < 32; ++lane) {
    lanes[lane].given = lanes[lane].shuffles ? given[lanes[lane].parameter % 32] : votes;
    lanes[lane].at = At::running;
  }
}

/// Runs the threads of a warp that can run, in some order; false if none can.
inline bool move_warp(Thread* lanes) {
  bool all_met = true, moved = false;
  for (int lane = 0; lane < 32; ++lane) all_met = all_met && lanes[lane].at == At::warp;
  if (all_met) meet_warp(lanes);
  const std::uint32_t order = draw();
  for (std::uint32_t i = 0; i < 32; ++i) {
    Thread& thread = lanes[(order + (order % 64 < 32 ? i : 31 * i)) % 32];
    if (thread.at != At::running) continue;
    group.current = &thread;
    threadIdx = thread.index;
    if (swapcontext(&group.scheduler, &thread.context) != 0) fail("swapcontext");
    moved = true;
  }
  return moved;
}

/// Lets the threads go that wait for the whole group, if all have come that have not ended.
inline bool release_group() {
  bool waiting = false;
  for (const Thread& thread : group.threads) {
    if (thread.at != At::group && thread.at != At::end) return false;
    waiting = waiting || thread.at == At::group;
  }
  for (Thread& thread : group.threads)
    if (thread.at == At::group) thread.at = At::running;
  return waiting;
}

inline void run_group() {
  const std::size_t count = group.threads.size();
  for (std::size_t i = 0; i < count; ++i) {
    Thread& thread = group.threads[i];
    const auto number = static_cast<unsigned>(i);
    thread.index = dim3(number % blockDim.x, number / blockDim.x % blockDim.y,
                        number / blockDim.x / blockDim.y);
    thread.at = At::running;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.data();
    thread.context.uc_stack.ss_size = thread.stack.size();
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, enter, 0);
  }
  // One warp runs far ahead of the others, then another does.
  const std::size_t warps = count / 32;
  std::size_t warp = draw() % warps, stuck = 0;
  while (stuck < warps) {
    if (move_warp(&group.threads[32 * warp])) {
      stuck = 0;
      if (draw() % 8 == 0) warp = draw() % warps;
      continue;
    }
    warp = (warp + 1) % warps;
    if (++stuck == warps && release_group()) stuck = 0;
  }
  for (const Thread& thread : group.threads)
    if (thread.at != At::end) fail("threads wait for others that never come");
}

inline std::uint32_t meet(std::uint32_t given, bool shuffles, std::uint32_t parameter = 0) {
  Thread& thread = *group.current;
  thread.given = given;
  thread.shuffles = shuffles;
  thread.parameter = parameter;
  stop(At::warp);
  return thread.given;
}

inline unsigned lane() {
  return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32;
}

inline void check_mask(unsigned mask) {
  if (mask != 0xFFFFFFFF) fail("only whole warps vote and shuffle here");
}

}  // namespace on_cpu

inline void __syncthreads() { on_cpu::stop(on_cpu::At::group); }
inline unsigned __ballot_sync(unsigned mask, bool yes) {
  on_cpu::check_mask(mask);
  return on_cpu::meet(yes ? 1 : 0, false);
}
inline float __shfl_sync(unsigned mask, float value, int source) {
  on_cpu::check_mask(mask);
  return __uint_as_float(on_cpu::meet(__float_as_uint(value), true, static_cast<unsigned>(source)));
}
inline float __shfl_xor_sync(unsigned mask, float value, int distance) {
  return __shfl_sync(mask, value,
                     static_cast<int>(on_cpu::lane() ^ static_cast<unsigned>(distance)));
}

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* configuration,
                               void (*kernel)(Parameters...), Arguments&&... arguments) {
  gridDim = configuration->gridDim;
  blockDim = configuration->blockDim;
  const std::size_t threads = std::size_t{blockDim.x} * blockDim.y * blockDim.z;
  if (threads == 0 || threads > 1024 || threads % 32 != 0 || gridDim.x == 0 || gridDim.y == 0 ||
      gridDim.y > 65535 || gridDim.z != 1)
    return cudaErrorInvalidConfiguration;
  auto& group = on_cpu::group;
  if (group.threads.size() != threads) group.threads = std::vector<on_cpu::Thread>(threads);
  group.kernel = [&] { kernel(arguments...); };
  const std::uint64_t count = std::uint64_t{gridDim.x} * gridDim.y;
  const bool backwards = on_cpu::draw() % 2 == 1;
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::uint64_t number = backwards ? count - 1 - i : i;
    blockIdx =
        dim3(static_cast<unsigned>(number % gridDim.x), static_cast<unsigned>(number / gridDim.x));
    on_cpu::run_group();
  }
  return cudaSuccess;
}

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid configuration argument";
}
inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
template <class T>
cudaError_t cudaMalloc(T** data, std::size_t size) {
  *data = static_cast<T*>(std::malloc(size == 0 ? 1 : size));
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* data) {
  std::free(data);
  return cudaSuccess;
}
inline cudaError_t cudaMemset(void* data, int value, std::size_t size) {
  if (size != 0) std::memset(data, value, size);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, std::size_t size, cudaMemcpyKind) {
  if (size != 0) std::memcpy(to, from, size);
  return cudaSuccess;
}
