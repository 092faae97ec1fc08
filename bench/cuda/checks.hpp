#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <droppeft/kernels/cuda/slots.hpp>
#include <droppeft/random/stream.hpp>
#include <stdexcept>
#include <string>
#include <vector>

/// The device kernels against double arithmetic on the host, before anything is timed.

inline void require_success(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

/// Device memory; numbers that nothing wrote are no numbers.
template <class T>
class Buffer {
 public:
  explicit Buffer(std::size_t count) : count_(count) {
    require_success(cudaMalloc(&data_, count * sizeof(T)));
    require_success(cudaMemset(data_, 0xFF, count * sizeof(T)));
  }
  explicit Buffer(const std::vector<T>& numbers) : Buffer(numbers.size()) {
    require_success(cudaMemcpy(data_, numbers.data(), count_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() const { return data_; }
  std::vector<T> numbers() const {
    std::vector<T> all(count_);
    require_success(cudaDeviceSynchronize());
    require_success(cudaMemcpy(all.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return all;
  }

 private:
  std::size_t count_;
  T* data_ = nullptr;
};

using Doubles = std::vector<double>;

template <class T>
Doubles to_doubles(const std::vector<T>& numbers) {
  Doubles all;
  for (const T& number : numbers) {
    droppeft::cpu::Pack<float, 1> pack;
    droppeft::cpu::load(pack, &number);
    all.push_back(static_cast<double>(pack[0]));
  }
  return all;
}

/// `count` numbers in [-0.5, 0.5), rounded to T.
template <class T>
std::vector<T> random_numbers(droppeft::Stream& stream, std::size_t count) {
  std::vector<T> all(count);
  for (T& number : all) {
    const droppeft::cpu::Pack<float, 1> pack{static_cast<float>(stream.uniform() - 0.5)};
    droppeft::cpu::store(&number, pack);
  }
  return all;
}

/// Runs the checks; `failed` and a line on standard error for each result that is off.
class Checks {
 public:
  bool failed = false;

  template <class T>
  void run(const std::string& type) {
    // What a rounding of each number costs, and of bfloat16 sums that round the other way.
    const double tolerance = sizeof(T) == sizeof(float) ? 1e-6 : 6e-3;
    for (const std::size_t width : {384U, 768U, 1000U, 1024U, 1280U, 4096U}) {
      what_ = type + ", " + std::to_string(width) + " columns";
      dropout<T>(width, tolerance);
      rows<T>(width, tolerance);
      low_rank<T>(width, tolerance);
      using droppeft::cpu::Norm;
      for (const Norm norm : {Norm::layer, Norm::rms})
        for (const bool some_rows : {false, true}) add_norm<T>(norm, width, some_rows, tolerance);
    }
  }

  void run_adamw() {
    what_ = "AdamW";
    const std::size_t count = 5000;
    const std::int64_t step = 7;
    const auto param = random<float>(count), grad = random<float>(count);
    const auto exp_avg = random<float>(count);
    auto exp_avg_sq = random<float>(count);
    for (float& number : exp_avg_sq) number *= number;
    const Buffer<float> p(param), g(grad), m(exp_avg), v(exp_avg_sq);
    const droppeft::cpu::AdamWSettings settings;
    const droppeft::cuda::AdamWTensor tensor{p.data(), m.data(), v.data(), g.data(), 5000, step};
    slots().adamw(&tensor, 1, settings, nullptr);
    Doubles expected = to_doubles(param), m_expected, v_expected;
    for (std::size_t i = 0; i < count; ++i) {
      const double gradient = static_cast<double>(grad[i]);
      m_expected.push_back(settings.beta1 * static_cast<double>(exp_avg[i]) +
                           (1 - settings.beta1) * gradient);
      v_expected.push_back(settings.beta2 * static_cast<double>(exp_avg_sq[i]) +
                           (1 - settings.beta2) * gradient * gradient);
      const double t = 7, m_hat = m_expected[i] / (1 - std::pow(settings.beta1, t)),
                   v_hat = v_expected[i] / (1 - std::pow(settings.beta2, t));
      expected[i] += -settings.lr * settings.weight_decay * expected[i] -
                     settings.lr * m_hat / (std::sqrt(v_hat) + settings.eps);
    }
    compare("parameters", p.numbers(), expected, 1e-6);
    compare("first moments", m.numbers(), m_expected, 1e-6);
    compare("second moments", v.numbers(), v_expected, 1e-6);
  }

 private:
  static droppeft::cuda::Slots& slots() { return droppeft::cuda::slots; }

  template <class T>
  std::vector<T> random(std::size_t count) {
    return random_numbers<T>(stream_, count);
  }
  droppeft::KeepMask random_mask() { return {stream_.fold(stream_()), 0.1}; }

  /// |got - expected| / |expected| as vectors; not a number if `got` holds one that is none.
  template <class T>
  void compare(const char* result, const std::vector<T>& got, const Doubles& expected,
               double tolerance) {
    const Doubles numbers = to_doubles(got);
    double error = 0, norm = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      error += (numbers[i] - expected[i]) * (numbers[i] - expected[i]);
      norm += expected[i] * expected[i];
    }
    if (std::sqrt(error / norm) < tolerance) return;
    failed = true;
    std::fprintf(stderr, "%s: %s are off by %g of their norm\n", what_.c_str(), result,
                 std::sqrt(error / norm));
  }

  static double factor(const droppeft::KeepMask& mask, std::size_t row, std::size_t column,
                       std::size_t width) {
    return static_cast<double>(mask.factor(static_cast<std::int64_t>(row),
                                           static_cast<std::int64_t>(column),
                                           static_cast<std::int64_t>(width)));
  }

  template <class T>
  void dropout(std::size_t width, double tolerance) {
    const std::size_t count = 67;
    const auto mask = random_mask();
    const auto x = random<T>(count * width);
    const Buffer<T> in(x), out(x.size());
    slots().of<T>().dropout(out.data(), in.data(), count, static_cast<std::int64_t>(width), mask,
                            nullptr);
    Doubles expected = to_doubles(x);
    for (std::size_t i = 0; i < x.size(); ++i)
      expected[i] *= factor(mask, i / width, i % width, width);
    compare("dropout", out.numbers(), expected, tolerance);
  }

  template <class T>
  void rows(std::size_t width, double tolerance) {
    const std::size_t all = 40, some = 17;
    const auto columns = static_cast<std::int64_t>(width);
    std::vector<std::int64_t> named;
    for (std::size_t i = 0; i < some; ++i) named.push_back(static_cast<std::int64_t>(7 * i / 3));
    const auto x = random<T>(all * width), y = random<T>(some * width);
    const Buffer<T> to(x), from(y), gathered(y.size());
    const Buffer<std::int64_t> index(named);
    slots().of<T>().gather_rows(gathered.data(), to.data(), index.data(), some, columns, nullptr);
    slots().of<T>().scatter_add_rows(to.data(), from.data(), index.data(), 1.5F, some, columns,
                                     nullptr);
    const Doubles before = to_doubles(x), added = to_doubles(y);
    Doubles after = before, taken(added.size());
    for (std::size_t i = 0; i < y.size(); ++i) {
      const std::size_t at = static_cast<std::size_t>(named[i / width]) * width + i % width;
      taken[i] = before[at];
      after[at] += 1.5 * added[i];
    }
    compare("gathered rows", gathered.numbers(), taken, tolerance);
    compare("rows added to", to.numbers(), after, tolerance);
  }

  template <class T>
  void low_rank(std::size_t width, double tolerance) {
    const std::size_t count = 37, rank = 8;
    const std::int64_t rows = 37, ranks = 8, pieces = 3, columns = static_cast<std::int64_t>(width);
    const auto mask = random_mask();
    const auto x = random<T>(count * width);
    const auto a = random<float>(rank * width), z = random<float>(count * rank);
    const Buffer<T> its_x(x);
    const Buffer<float> its_a(a), its_z(z), out(z.size()), parts(3 * a.size()), sums(a.size());
    auto& typed = slots().of<T>();
    typed.to_low_rank(out.data(), its_x.data(), its_a.data(), rows, columns, ranks, mask, nullptr);
    typed.low_rank_gradient(parts.data(), its_z.data(), its_x.data(), rows, columns, ranks, pieces,
                            mask, nullptr);
    slots().sum_of_rows(sums.data(), parts.data(), pieces, ranks * columns, nullptr);
    typed.add_from_low_rank(its_x.data(), its_z.data(), its_a.data(), rows, columns, ranks, mask,
                            nullptr);
    const Doubles its_a_numbers = to_doubles(a), of_z = to_doubles(z);
    Doubles up = to_doubles(x), down(z.size()), gradient(a.size());
    for (std::size_t i = 0; i < x.size(); ++i) {
      const std::size_t row = i / width, column = i % width;
      const double its_factor = factor(mask, row, column, width), number = its_factor * up[i];
      for (std::size_t k = 0; k < rank; ++k) {
        down[row * rank + k] += number * its_a_numbers[k * width + column];
        gradient[k * width + column] += number * of_z[row * rank + k];
        up[i] += its_factor * of_z[row * rank + k] * its_a_numbers[k * width + column];
      }
    }
    compare("low-rank products", out.numbers(), down, 1e-6);
    compare("low-rank gradients", sums.numbers(), gradient, 1e-6);
    compare("rows with low-rank products added", its_x.numbers(), up, tolerance);
  }

  template <class T>
  void add_norm(droppeft::cpu::Norm norm, std::size_t width, bool some_rows, double tolerance) {
    const std::size_t count = 61, of_branch = some_rows ? 20 : count;
    const std::int64_t pieces = 6, rows = static_cast<std::int64_t>(count);
    const auto columns = static_cast<std::int64_t>(width);
    std::vector<std::int64_t> named(count, -1);
    for (std::size_t i = 0; i < of_branch; ++i)
      named[some_rows ? 3 * i % count : i] = static_cast<std::int64_t>(i);
    const auto branch = random<T>(of_branch * width), residual = random<T>(count * width),
               weight = random<T>(width), bias = random<T>(width), dy = random<T>(count * width),
               dsum = random<T>(count * width);
    const Buffer<T> its_branch(branch), its_residual(residual), its_weight(weight), its_bias(bias),
        its_dy(dy), its_dsum(dsum), y(residual.size()), sum(residual.size()),
        dbranch(branch.size()), dresidual(residual.size());
    const Buffer<std::int64_t> branch_row(named);
    const Buffer<float> mean(count), rstd(count), dweights(width * 6), dbiases(width * 6),
        dweight(width), dbias(width);
    const droppeft::cpu::DropoutAddNorm<T> call{
        .norm = norm,
        .epsilon = 1e-5,
        .width = columns,
        .weight = its_weight.data(),
        .scale = 1.25F,
        .mask = random_mask(),
        .branch_row = some_rows ? branch_row.data() : nullptr};
    slots().of<T>().dropout_add_norm(call, its_branch.data(), its_residual.data(), its_bias.data(),
                                     y.data(), sum.data(), mean.data(), rstd.data(), rows, nullptr);
    slots().of<T>().dropout_add_norm_backward(
        call, its_dy.data(), its_dsum.data(), sum.data(), mean.data(), rstd.data(), dbranch.data(),
        dresidual.data(), dweights.data(), dbiases.data(), pieces, rows, nullptr);
    slots().sum_of_rows(dweight.data(), dweights.data(), pieces, columns, nullptr);
    slots().sum_of_rows(dbias.data(), dbiases.data(), pieces, columns, nullptr);

    const Doubles b = to_doubles(branch), r = to_doubles(residual), w = to_doubles(weight),
                  shift = to_doubles(bias), up = to_doubles(dy), direct = to_doubles(dsum),
                  s = to_doubles(sum.numbers());
    Doubles sums, normed, to_residual, to_branch(b.size()), to_weight(width), to_bias(width);
    const auto size = static_cast<double>(width);
    for (std::size_t i = 0; i < count; ++i) {
      const double* const row = s.data() + i * width;  // as stored: the norm is of that
      double mu = 0, variance = 0, g_mean = 0, gh_mean = 0;
      for (std::size_t c = 0; c < width; ++c) mu += row[c] / size;
      if (norm == droppeft::cpu::Norm::rms) mu = 0;
      for (std::size_t c = 0; c < width; ++c) variance += (row[c] - mu) * (row[c] - mu) / size;
      const double deviation = 1 / std::sqrt(variance + 1e-5);
      const auto h = [&](std::size_t c) { return (row[c] - mu) * deviation; };
      for (std::size_t c = 0; c < width; ++c) {
        const double g = up[i * width + c] * w[c];
        if (norm == droppeft::cpu::Norm::layer) g_mean += g / size;
        gh_mean += g * h(c) / size;
        to_weight[c] += up[i * width + c] * h(c);
        to_bias[c] += up[i * width + c];
      }
      for (std::size_t c = 0; c < width; ++c) {
        const double gradient = deviation * (up[i * width + c] * w[c] - g_mean - h(c) * gh_mean) +
                                direct[i * width + c];
        double added = 0;
        if (named[i] >= 0) {
          const auto from = static_cast<std::size_t>(named[i]);
          const double its_factor = 1.25 * factor(call.mask, from, c, width);
          added = its_factor * b[from * width + c];
          to_branch[from * width + c] = its_factor * gradient;
        }
        sums.push_back(r[i * width + c] + added);
        normed.push_back(h(c) * w[c] + shift[c]);
        to_residual.push_back(gradient);
      }
    }
    compare("sums", sum.numbers(), sums, tolerance);
    compare("normed rows", y.numbers(), normed, tolerance);
    compare("residual gradients", dresidual.numbers(), to_residual, tolerance);
    compare("branch gradients", dbranch.numbers(), to_branch, tolerance);
    compare("weight gradients", dweight.numbers(), to_weight, tolerance);
    compare("bias gradients", dbias.numbers(), to_bias, tolerance);
  }

  droppeft::Stream stream_{2026};
  std::string what_;
};
