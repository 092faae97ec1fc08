#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/version.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <nlohmann/json.hpp>
#include <ostream>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

/// What this machine can do at most, measured in the program that is judged by it, and what would
/// make a timing worthless.

/// Seconds of the fastest of `turns` calls.
template <class Function>
double fastest(int turns, const Function& function) {
  double best = std::numeric_limits<double>::infinity();
  for (int turn = 0; turn < turns; ++turn) {
    const auto start = std::chrono::steady_clock::now();
    function();
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    best = std::min(best, taken.count());
  }
  return best;
}

namespace limits {

// Independent chains of fused multiply-adds: enough to fill two units of latency 4. Each function
// returns the floating-point operations of `rounds` rounds.
constexpr int chains = 12;

#if defined(__x86_64__)
[[gnu::target("avx512f")]] inline double fma_512(std::int64_t rounds) {
  __m512 sums[chains];
  std::fill_n(sums, chains, _mm512_set1_ps(1));
  const __m512 factor = _mm512_set1_ps(0.5F);
  for (std::int64_t round = 0; round < rounds; ++round)
    for (auto& sum : sums) sum = _mm512_fmadd_ps(sum, factor, factor);
  for (auto& sum : sums) asm volatile("" : "+v"(sum));
  return static_cast<double>(rounds) * chains * 16 * 2;
}
[[gnu::target("avx2,fma")]] inline double fma_256(std::int64_t rounds) {
  __m256 sums[chains];
  std::fill_n(sums, chains, _mm256_set1_ps(1));
  const __m256 factor = _mm256_set1_ps(0.5F);
  for (std::int64_t round = 0; round < rounds; ++round)
    for (auto& sum : sums) sum = _mm256_fmadd_ps(sum, factor, factor);
  for (auto& sum : sums) asm volatile("" : "+x"(sum));
  return static_cast<double>(rounds) * chains * 8 * 2;
}
#endif

inline double fma_plain(std::int64_t rounds) {
  typedef float Vector __attribute__((vector_size(16)));
  Vector sums[chains];
  std::fill_n(sums, chains, Vector{1, 1, 1, 1});
  const Vector factor{0.5F, 0.5F, 0.5F, 0.5F};
  for (std::int64_t round = 0; round < rounds; ++round)
    for (auto& sum : sums) sum = sum * factor + factor;
  for (auto& sum : sums) asm volatile("" : "+m"(sum));
  return static_cast<double>(rounds) * chains * 4 * 2;
}

inline bool has_avx512() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") != 0;
#else
  return false;
#endif
}

inline double fma(std::int64_t rounds) {
#if defined(__x86_64__)
  if (has_avx512()) return fma_512(rounds);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return fma_256(rounds);
#endif
  return fma_plain(rounds);
}

/// Of all of LibTorch's threads together: the floating-point operations done.
inline double all_threads_fma() {
  const std::int64_t threads = at::get_num_threads(), rounds = 4'000'000;
  double operations = 0;
  at::parallel_for(0, threads, 1, [&](std::int64_t first, std::int64_t end) {
    for (; first < end; ++first) {
      const double done = fma(rounds);
      if (first == 0) operations = done * static_cast<double>(threads);
    }
  });
  return operations;
}

/// at::mm on matrices that a BLAS likes.
struct Gemm {
  static constexpr std::int64_t size = 1536;
  static constexpr double flops = 2.0 * size * size * size;

  explicit Gemm(at::ScalarType type)
      : a(at::rand({size, size}).to(type)), b(at::rand({size, size}).to(type)), c(at::mm(a, b)) {}
  void multiply() { at::mm_out(c, a, b); }

  at::Tensor a, b, c;
};

/// Arrays beyond all caches, of `bytes` each.
struct Stream {
  static constexpr std::int64_t size = std::int64_t{1} << 25;
  static constexpr double bytes = 4.0 * size;

  /// One of them.
  void read() {
    at::parallel_for(0, size, 1 << 20, [&](std::int64_t first, std::int64_t end) {
      std::uint32_t sum = 0;
      for (std::int64_t i = first; i < end; ++i) sum += words[static_cast<std::size_t>(i)];
      asm volatile("" : : "r"(sum));
    });
  }
  /// STREAM's a = b + s c, which counts as three.
  void triad() {
    at::parallel_for(0, size, 1 << 20, [&](std::int64_t first, std::int64_t end) {
      float* out = a.data();
      const float *x = b.data(), *y = c.data();
      for (std::int64_t i = first; i < end; ++i) out[i] = x[i] + 3 * y[i];
    });
  }

  std::vector<float> a = std::vector<float>(static_cast<std::size_t>(size), 1), b = a, c = a;
  std::vector<std::uint32_t> words = std::vector<std::uint32_t>(static_cast<std::size_t>(size), 1);
};

}  // namespace limits

/// Prints versions, threads, instruction set and measured limits, and a warning for each trap.
/// Returns the same.
inline nlohmann::json print_machine(std::ostream& out) {
  nlohmann::json warnings = nlohmann::json::array();
  const auto warn = [&](bool trapped, const std::string& text) {
    if (!trapped) return;
    out << "WARNING: " << text << '\n';
    warnings.push_back(text);
  };
  const int threads = at::get_num_threads();
  const auto cores = static_cast<int>(std::thread::hardware_concurrency());
  const std::string capability = at::get_cpu_capability();
  out << "LibTorch " << TORCH_VERSION << ", " << capability << ", " << threads << " threads, "
      << cores << " processors, oneDNN " << (at::hasMKLDNN() ? "yes" : "no") << ", MKL "
      << (at::hasMKL() ? "yes" : "no") << '\n';
#ifndef _OPENMP
  warn(true, "compiled without OpenMP: at::parallel_for runs serially in this program");
#endif
  warn(threads < cores, "fewer threads than processors: set OMP_NUM_THREADS");
  warn(limits::has_avx512() && capability != "AVX512",
       "the processor has AVX-512, LibTorch does not use it (ATEN_CPU_CAPABILITY)");

  double load = 0;
  getloadavg(&load, 1);
  warn(load > 0.5, "other or earlier work on the machine within the last minute (its load)");
  const double fma = limits::all_threads_fma() * 1e-9 / fastest(5, limits::all_threads_fma);
  limits::Gemm matrices(at::kFloat);
  const double gemm = limits::Gemm::flops * 1e-9 / fastest(5, [&] { matrices.multiply(); });
  limits::Stream arrays;
  const double read = limits::Stream::bytes * 1e-9 / fastest(5, [&] { arrays.read(); });
  const double triad = 3 * limits::Stream::bytes * 1e-9 / fastest(5, [&] { arrays.triad(); });
  out << "FMA " << fma << " GFLOP/s, at::mm " << gemm << " GFLOP/s, read " << read
      << " GB/s, triad " << triad << " GB/s\n";
  warn(gemm < 0.6 * fma,
       "at::mm is far from the FMA limit: other work on the machine, or a BLAS whose threads fight "
       "with OpenMP's");

  const at::Tensor x = at::rand({1024, 1024});
  const double add = fastest(9, [&] { at::add(x, x); });
  const double dropout = fastest(3, [&] { at::dropout(x, 0.1, true); });
  warn(dropout > 10 * add, "LibTorch's element dropout is serial here, more than 10 times an add");
  return {{"LibTorch", TORCH_VERSION},
          {"ISA", capability},
          {"threads", threads},
          {"processors", cores},
          {"oneDNN", at::hasMKLDNN()},
          {"MKL", at::hasMKL()},
          {"FMA_GFLOPs", fma},
          {"mm_GFLOPs", gemm},
          {"read_GBs", read},
          {"triad_GBs", triad},
          {"load", load},
          {"warnings", warnings}};
}
