#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <map>
#include <numbers>
#include <optional>
#include <string>
#include <vector>

/// Rows of a benchmark whose figures are shares of one another: every repetition is kept by its
/// row, so that medians can be compared when all have run, interleaved at random.

/// Seconds of every repetition, by row.
inline std::map<std::string, std::vector<double>> measured;

template <class Function>
void time_once(benchmark::State& state, const std::string& row, const Function& function) {
  for ([[maybe_unused]] auto turn : state) {
    const auto start = std::chrono::steady_clock::now();
    function();
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    state.SetIterationTime(taken.count());
    measured[row].push_back(taken.count());
  }
}

inline std::optional<double> median(const std::string& row) {
  if (!measured.contains(row)) return std::nullopt;
  auto values = measured[row];
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// Standard error of that median, as of a normal law: sqrt(pi / 2) sd / sqrt(n).
inline double median_error(const std::string& row) {
  const auto& values = measured.at(row);
  const auto n = static_cast<double>(values.size());
  if (n < 2) return std::nan("");
  double mean = 0, variance = 0;
  for (const double value : values) mean += value / n;
  for (const double value : values) variance += (value - mean) * (value - mean) / (n - 1);
  return std::sqrt(std::numbers::pi / 2 * variance / n);
}

template <class Function>
benchmark::internal::Benchmark* add_row(const std::string& row, int repetitions,
                                        Function function) {
  return benchmark::RegisterBenchmark(
             row.c_str(), [=](benchmark::State& state) mutable { function(state, row); })
      ->Iterations(1)
      ->Repetitions(repetitions)
      ->ReportAggregatesOnly(repetitions > 1)
      ->UseManualTime()
      ->Unit(benchmark::kMillisecond);
}

/// Reads Google Benchmark's options, and interleaves the rows; false, with a message printed, when
/// one is unknown.
inline bool initialize(std::vector<char*> options, void (*help)() = benchmark::PrintDefaultHelp) {
  static char interleave[] = "--benchmark_enable_random_interleaving=true";
  options.insert(options.begin() + 1, interleave);
  int left = static_cast<int>(options.size());
  benchmark::Initialize(&left, options.data(), help);
  return !benchmark::ReportUnrecognizedArguments(left, options.data());
}
