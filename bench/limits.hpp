#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/version.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <limits>
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

/// fp32 GFLOP/s of all of LibTorch's threads together.
inline double fma_gflops() {
  const std::int64_t threads = at::get_num_threads(), rounds = 4'000'000;
  double operations = 0;
  const double seconds = fastest(5, [&] {
    at::parallel_for(0, threads, 1, [&](std::int64_t first, std::int64_t end) {
      for (; first < end; ++first) {
        const double done = fma(rounds);
        if (first == 0) operations = done * static_cast<double>(threads);
      }
    });
  });
  return operations / seconds * 1e-9;
}

/// GFLOP/s of at::mm on matrices that a BLAS likes.
inline double gemm_gflops() {
  const at::Tensor a = at::rand({1536, 1536}), b = at::rand({1536, 1536});
  at::Tensor c = at::mm(a, b);
  return 2 * 1536.0 * 1536 * 1536 / fastest(5, [&] { at::mm_out(c, a, b); }) * 1e-9;
}

/// GB/s of reading one large array, and of STREAM's triad a = b + s c, counted as three arrays.
struct Bandwidth {
  double read, triad;
};
inline Bandwidth bandwidth() {
  const std::int64_t size = std::int64_t{1} << 25;  // 128 MiB an array
  std::vector<float> a(static_cast<std::size_t>(size), 1), b = a, c = a;
  std::vector<std::uint32_t> words(static_cast<std::size_t>(size), 1);
  const double bytes = 4 * static_cast<double>(size) * 1e-9;
  const double read = fastest(5, [&] {
    at::parallel_for(0, size, 1 << 20, [&](std::int64_t first, std::int64_t end) {
      std::uint32_t sum = 0;
      for (std::int64_t i = first; i < end; ++i) sum += words[static_cast<std::size_t>(i)];
      asm volatile("" : : "r"(sum));
    });
  });
  const double triad = fastest(5, [&] {
    at::parallel_for(0, size, 1 << 20, [&](std::int64_t first, std::int64_t end) {
      float* out = a.data();
      const float *x = b.data(), *y = c.data();
      for (std::int64_t i = first; i < end; ++i) out[i] = x[i] + 3 * y[i];
    });
  });
  return {bytes / read, 3 * bytes / triad};
}

}  // namespace limits

/// Prints versions, threads, instruction set and measured limits, and a warning for each trap.
inline void print_machine(std::ostream& out) {
  const auto warn = [&](bool trapped, const std::string& text) {
    if (trapped) out << "WARNING: " << text << '\n';
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
  warn(threads < cores, "fewer threads than processors: set OMP_NUM_THREADS or --threads");
  warn(limits::has_avx512() && capability != "AVX512",
       "the processor has AVX-512, LibTorch does not use it (ATEN_CPU_CAPABILITY)");

  const double fma = limits::fma_gflops(), gemm = limits::gemm_gflops();
  const auto [read, triad] = limits::bandwidth();
  out << "FMA " << fma << " GFLOP/s, at::mm " << gemm << " GFLOP/s, read " << read
      << " GB/s, triad " << triad << " GB/s\n";
  warn(gemm < 0.6 * fma,
       "at::mm is far from the FMA limit: other work on the machine, or a BLAS whose threads fight "
       "with OpenMP's");

  const at::Tensor x = at::rand({1024, 1024});
  const double add = fastest(9, [&] { at::add(x, x); });
  const double dropout = fastest(3, [&] { at::dropout(x, 0.1, true); });
  warn(dropout > 10 * add, "element dropout is serial here, " + std::to_string(dropout / add) +
                               " times an add: no bench uses it");
}
