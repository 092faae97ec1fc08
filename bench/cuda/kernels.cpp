// The device kernels against the copy bandwidth of the GPU they run on, measured among them: first
// checked against double arithmetic, then timed by events, as graphs of launches over rotated
// buffers, in random order. --json FILE writes the figures as a line of JSON each.
#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <droppeft/kernels/cuda/slots.hpp>
#include <droppeft/random/stream.hpp>
#include <fstream>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "checks.hpp"

namespace {

namespace cuda = droppeft::cuda;
using droppeft::KeepMask;
using droppeft::Stream;
using droppeft::cpu::BFloat16;
using droppeft::cpu::DropoutAddNorm;
using droppeft::cpu::Norm;

constexpr int repetitions = 31;
constexpr double rotated_bytes = 512e6;   // several times any L2 cache
constexpr double repetition_bytes = 1e9;  // of a graph: a fraction of a millisecond

struct Shape {
  const char* name;
  std::int64_t rows, width;
};
// 16 x 64, 16 x 128 and 16 x 128 tokens, and what no cache holds.
constexpr Shape shapes[] = {{"MiniLM", 1024, 384},
                            {"BERT-base", 2048, 768},
                            {"BERT-large", 2048, 1024},
                            {"large", 65536, 1024}};

template <class T>
constexpr const char* type_name = sizeof(T) == sizeof(float) ? "fp32" : "bf16";

/// `count` random numbers in device memory, not negative ones if `positive`.
template <class T>
class Arena {
 public:
  explicit Arena(std::size_t count, bool positive = false) : buffer_(count), size_(count) {
    Stream stream(1);
    const std::size_t part = std::size_t{1} << 22;
    auto numbers = random_numbers<T>(stream, part);
    if constexpr (std::is_same_v<T, float>)
      if (positive)
        for (float& number : numbers) number = std::abs(number);
    for (std::size_t first = 0; first < count; first += part)
      require_success(cudaMemcpy(buffer_.data() + first, numbers.data(),
                                 std::min(part, count - first) * sizeof(T),
                                 cudaMemcpyHostToDevice));
  }
  /// The next `count` numbers, from the start when there are no more, where vectors are taken.
  T* take(std::int64_t count) {
    const std::size_t needed = (static_cast<std::size_t>(count) + 1023) / 1024 * 1024;
    if (needed > size_) throw std::runtime_error("the arena is too small");
    if (next_ + needed > size_) next_ = 0;
    next_ += needed;
    return buffer_.data() + next_ - needed;
  }

 private:
  Buffer<T> buffer_;
  std::size_t size_, next_ = 0;
};

/// Graph of some calls, launched as one.
class Calls {
 public:
  template <class Function>
  Calls(cudaStream_t stream, int count, const Function& call) {
    cudaGraph_t graph;
    require_success(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < count; ++i) call();
    require_success(cudaStreamEndCapture(stream, &graph));
    require_success(cudaGraphInstantiate(&graph_, graph, 0));
    require_success(cudaGraphDestroy(graph));
  }
  ~Calls() { cudaGraphExecDestroy(graph_); }
  Calls(const Calls&) = delete;
  Calls& operator=(const Calls&) = delete;

  void launch(cudaStream_t stream) const { require_success(cudaGraphLaunch(graph_, stream)); }

 private:
  cudaGraphExec_t graph_ = nullptr;
};

struct Row {
  std::string kernel, shape, type;
  double bytes;  // that a call must move at least
  double flops;  // if not 0, what a call's rate is counted in, against cuBLAS's
  int count;     // calls in the graph
  std::unique_ptr<Calls> calls;
  std::vector<double> seconds{};  // of a call

  double median() const {
    auto sorted = seconds;
    const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2);
    std::nth_element(sorted.begin(), middle, sorted.end());
    return *middle;
  }
  double quartiles() const {
    auto sorted = seconds;
    std::sort(sorted.begin(), sorted.end());
    return sorted[3 * sorted.size() / 4] - sorted[sorted.size() / 4];
  }
};

class Bench {
 public:
  Bench() {
    require_success(cudaStreamCreate(&stream_));
    require_success(cudaEventCreate(&start_));
    require_success(cudaEventCreate(&end_));
    int device = 0;
    require_success(cudaGetDevice(&device));
    require_success(
        cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, device));
  }

  cudaStream_t stream() const { return stream_; }
  std::int64_t multiprocessors() const { return multiprocessors_; }

  /// A row of calls that each take the next buffers themselves.
  template <class Function>
  void add(const std::string& kernel, const std::string& shape, const std::string& type,
           double bytes, const Function& call, double flops = 0) {
    const int count = std::max(4, static_cast<int>(repetition_bytes / bytes));
    call();  // what is loaded at the first call must not be when calls are recorded
    require_success(cudaStreamSynchronize(stream_));
    rows_.push_back(
        {kernel, shape, type, bytes, flops, count, std::make_unique<Calls>(stream_, count, call)});
  }

  void run() {
    for (const Row& row : rows_) row.calls->launch(stream_);
    require_success(cudaStreamSynchronize(stream_));
    std::vector<std::size_t> turns;
    for (std::size_t i = 0; i < rows_.size(); ++i) turns.insert(turns.end(), repetitions, i);
    std::shuffle(turns.begin(), turns.end(), std::mt19937(5));
    for (const std::size_t i : turns) {
      require_success(cudaEventRecord(start_, stream_));
      rows_[i].calls->launch(stream_);
      require_success(cudaEventRecord(end_, stream_));
      require_success(cudaEventSynchronize(end_));
      float milliseconds = 0;
      require_success(cudaEventElapsedTime(&milliseconds, start_, end_));
      rows_[i].seconds.push_back(1e-3 * static_cast<double>(milliseconds) / rows_[i].count);
    }
  }

  /// Per cent: of the copy bandwidth or, where operations are counted, of the rate of the product
  /// by cuBLAS of that shape.
  void print(const std::string& file) const {
    const double limit = copy_bandwidth();
    std::printf("copy bandwidth %.0f GB/s\n\n      us  +-       %%     GB/s  GFLOP/s\n",
                1e-9 * limit);
    std::ofstream json(file);
    for (const Row& row : rows_) {
      const double seconds = row.median(), percent = 100 * share(row, limit);
      std::printf("%8.2f %5.2f %6.1f %8.0f %8.0f  %s, %s, %s\n", 1e6 * seconds,
                  1e6 * row.quartiles(), percent, 1e-9 * row.bytes / seconds,
                  1e-9 * row.flops / seconds, row.kernel.c_str(), row.shape.c_str(),
                  row.type.c_str());
      json << "{\"kernel\": \"" << row.kernel << "\", \"shape\": \"" << row.shape
           << "\", \"dtype\": \"" << row.type << "\", \"seconds\": " << seconds
           << ", \"quartiles\": " << row.quartiles() << ", \"bytes\": " << row.bytes
           << ", \"flops\": " << row.flops << ", \"percent\": " << percent << "}\n";
    }
    if (!file.empty() && !json.flush()) throw std::runtime_error("cannot write '" + file + "'");
  }

 private:
  double copy_bandwidth() const {
    for (const Row& row : rows_)
      if (row.kernel == "copy" && row.shape == "large" && row.type == "fp32")
        return row.bytes / row.median();
    return 0;
  }

  double share(const Row& row, double bandwidth) const {
    if (row.flops == 0) return row.bytes / row.median() / bandwidth;
    for (const Row& other : rows_)
      if (other.kernel == "linear" && other.shape == row.shape && other.type == row.type)
        return row.flops / row.median() / (other.flops / other.median());
    return 0;
  }

  cudaStream_t stream_;
  cudaEvent_t start_, end_;
  int multiprocessors_ = 0;
  std::vector<Row> rows_;
};

/// All kernels for numbers of type T at one shape.
template <class T>
void add_rows(Bench& bench, Arena<T>& inputs, Arena<T>& outputs, Arena<float>& sums,
              Arena<float>& statistics, const Shape& shape) {
  const std::int64_t rows = shape.rows, width = shape.width, count = rows * width;
  const double numbers = static_cast<double>(count) * sizeof(T);
  cudaStream_t const stream = bench.stream();
  auto& slots = cuda::slots.of<T>();
  const auto add = [&](const std::string& kernel, double matrices, const auto& call) {
    bench.add(kernel, shape.name, type_name<T>, matrices * numbers, call);
  };
  const KeepMask mask(Stream(2), 0.1);
  T *const weight = inputs.take(width), *const bias = inputs.take(width);
  float *const mean = statistics.take(rows), *const rstd = statistics.take(rows);

  add("copy", 2, [&] {
    require_success(cudaMemcpyAsync(outputs.take(count), inputs.take(count),
                                    static_cast<std::size_t>(count) * sizeof(T),
                                    cudaMemcpyDeviceToDevice, stream));
  });
  add("dropout", 2,
      [&] { slots.dropout(outputs.take(count), inputs.take(count), rows, width, mask, stream); });
  for (const Norm norm : {Norm::layer, Norm::rms})
    for (const bool drops : {true, false}) {
      const std::string which = std::string(norm == Norm::layer ? ", layer" : ", RMS") +
                                (drops ? ", rate 0.1" : ", rate 0");
      const DropoutAddNorm<T> call{
          .norm = norm, .width = width, .weight = weight, .mask = drops ? mask : KeepMask()};
      add("dropout_add_norm_forward" + which, 4, [&] {
        slots.dropout_add_norm(call, inputs.take(count), inputs.take(count), bias,
                               outputs.take(count), outputs.take(count), mean, rstd, rows, stream);
      });
      for (const bool trained : {false, true}) {
        const std::int64_t pieces = 2 * bench.multiprocessors();
        add("dropout_add_norm_backward" + which + (trained ? ", weight trained" : ""), 5, [&] {
          float* const dweights = trained ? sums.take(2 * pieces * width) : nullptr;
          float* const dbiases = trained ? dweights + pieces * width : nullptr;
          slots.dropout_add_norm_backward(
              call, inputs.take(count), inputs.take(count), inputs.take(count), mean, rstd,
              outputs.take(count), outputs.take(count), dweights, dbiases, pieces, rows, stream);
          if (!trained) return;
          cuda::slots.sum_of_rows(sums.take(width), dweights, pieces, width, stream);
          cuda::slots.sum_of_rows(sums.take(width), dbiases, pieces, width, stream);
        });
      }
    }

  // Half of the rows.
  static std::vector<std::unique_ptr<Buffer<std::int64_t>>> kept;
  std::vector<std::int64_t> named;
  for (std::int64_t i = 0; i < rows; ++i) named.push_back(i);
  std::shuffle(named.begin(), named.end(), std::mt19937(3));
  named.resize(named.size() / 2);
  std::sort(named.begin(), named.end());
  kept.push_back(std::make_unique<Buffer<std::int64_t>>(named));
  const std::int64_t* const index = kept.back()->data();
  add("gather_rows, half", 1, [&] {
    slots.gather_rows(outputs.take(count / 2), inputs.take(count), index, rows / 2, width, stream);
  });
  add("merge_rows, half", 2, [&] {
    slots.merge_rows(outputs.take(count), inputs.take(count), inputs.take(count / 2), index,
                     rows / 2, rows, width, stream);
  });
  add("scatter_add_rows, half", 1.5, [&] {
    slots.scatter_add_rows(outputs.take(count), inputs.take(count / 2), index, 1, rows / 2, width,
                           stream);
  });
}

void require_success(cublasStatus_t status) {
  if (status != CUBLAS_STATUS_SUCCESS) throw std::runtime_error(cublasGetStatusString(status));
}

/// cuBLAS on the bench's stream, with memory of its own, which graphs need.
class Blas {
 public:
  explicit Blas(cudaStream_t stream) : workspace_(std::size_t{32} << 20) {
    require_success(cublasCreate(&handle_));
    require_success(cublasSetStream(handle_, stream));
    require_success(cublasSetWorkspace(handle_, workspace_.data(), std::size_t{32} << 20));
  }
  ~Blas() { cublasDestroy(handle_); }
  Blas(const Blas&) = delete;
  Blas& operator=(const Blas&) = delete;

  /// y = x W^T or, transposed, y = x W: x and y [rows, width], W [width, width].
  template <class T>
  void multiply(T* y, const T* x, const T* w, bool transposed, std::int64_t rows,
                std::int64_t width) {
    const cudaDataType type = sizeof(T) == sizeof(float) ? CUDA_R_32F : CUDA_R_16BF;
    const auto n = static_cast<int>(width);
    const float one = 1, zero = 0;
    require_success(cublasGemmEx(handle_, transposed ? CUBLAS_OP_N : CUBLAS_OP_T, CUBLAS_OP_N, n,
                                 static_cast<int>(rows), n, &one, w, type, n, x, type, n, &zero, y,
                                 type, n, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
  }

 private:
  Buffer<char> workspace_;
  cublasHandle_t handle_ = nullptr;
};

/// A frozen linear map by cuBLAS, the same with LoRA of rank 8 and dropout, and LoRA's products.
template <class T>
void add_lora(Bench& bench, Blas& blas, Arena<T>& inputs, Arena<T>& outputs, Arena<float>& factors,
              Arena<float>& sums, const Shape& shape) {
  const std::int64_t rows = shape.rows, width = shape.width, rank = 8, pieces = 64;
  const std::int64_t count = rows * width;
  const double numbers = static_cast<double>(count) * sizeof(T);
  const double dense = 2.0 * static_cast<double>(count) * static_cast<double>(width);
  const double skinny = 2.0 * static_cast<double>(count) * static_cast<double>(rank);
  cudaStream_t const stream = bench.stream();
  auto& slots = cuda::slots.of<T>();
  const KeepMask mask(Stream(4), 0.1), none;
  const T* const weight = inputs.take(width * width);
  const float *const a = factors.take(rank * width), *const b = factors.take(rank * width);
  float *const z = factors.take(rows * rank), *const dz = factors.take(rows * rank);
  const auto add = [&](const std::string& kernel, double matrices, double flops, const auto& call) {
    bench.add(kernel, shape.name, type_name<T>, matrices * numbers, call, flops);
  };
  const auto gradient = [&, stream](const float* its_z, const T* x, const KeepMask& its_mask) {
    float* const parts = sums.take(pieces * rank * width);
    slots.low_rank_gradient(parts, its_z, x, rows, width, rank, pieces, its_mask, stream);
    cuda::slots.sum_of_rows(sums.take(rank * width), parts, pieces, rank * width, stream);
  };
  add("to_low_rank", 1, 0,
      [&] { slots.to_low_rank(z, inputs.take(count), a, rows, width, rank, mask, stream); });
  add("add_from_low_rank", 2, 0,
      [&] { slots.add_from_low_rank(outputs.take(count), z, b, rows, width, rank, none, stream); });
  add("low_rank_gradient", 1, 0, [&] { gradient(z, inputs.take(count), mask); });
  add("linear", 2, dense,
      [&] { blas.multiply(outputs.take(count), inputs.take(count), weight, false, rows, width); });
  add("lora_linear, forward", 2, dense + 2 * skinny, [&] {
    const T* const x = inputs.take(count);
    T* const y = outputs.take(count);
    blas.multiply(y, x, weight, false, rows, width);
    slots.to_low_rank(z, x, a, rows, width, rank, mask, stream);
    slots.add_from_low_rank(y, z, b, rows, width, rank, none, stream);
  });
  add("lora_linear, backward", 3, dense + 4 * skinny, [&] {
    const T *const x = inputs.take(count), *const dy = inputs.take(count);
    T* const dx = outputs.take(count);
    blas.multiply(dx, dy, weight, true, rows, width);
    slots.to_low_rank(dz, dy, b, rows, width, rank, none, stream);
    gradient(z, dy, none);
    gradient(dz, x, mask);
    slots.add_from_low_rank(dx, dz, a, rows, width, rank, mask, stream);
  });
}

/// The LoRA states of BERT-large: rank 8 on query and value of 24 layers, or of half of them.
void add_adamw(Bench& bench, Arena<float>& inputs, Arena<float>& outputs, Arena<float>& squares) {
  for (const int layers : {24, 12}) {
    const std::int64_t of_each = 8 * 1024;
    const int tensors = 4 * layers;
    const double bytes = 28.0 * tensors * static_cast<double>(of_each);
    bench.add("adamw", std::to_string(tensors) + " tensors of 8192", "fp32", bytes, [&] {
      std::vector<cuda::AdamWTensor> table;
      for (int i = 0; i < tensors; ++i)
        table.push_back({outputs.take(of_each), outputs.take(of_each), squares.take(of_each),
                         inputs.take(of_each), of_each, 3});
      cuda::slots.adamw(table.data(), tensors, {}, bench.stream());
    });
  }
}

void run(const std::string& file) {
  Checks checks;
  checks.run<float>("fp32");
  checks.run<BFloat16>("bf16");
  checks.run_adamw();
  if (checks.failed) throw std::runtime_error("a kernel is wrong: nothing is timed");
  std::puts("all results are those of double arithmetic");

  cudaDeviceProp device;
  require_success(cudaGetDeviceProperties(&device, 0));
  int runtime = 0, driver = 0;
  require_success(cudaRuntimeGetVersion(&runtime));
  require_success(cudaDriverGetVersion(&driver));
  std::printf("%s, %d multiprocessors, L2 %.0f MB, CUDA %d, driver for CUDA %d\n", device.name,
              device.multiProcessorCount, 1e-6 * device.l2CacheSize, runtime, driver);

  Bench bench;
  // More than a call moves, and more than the caches hold.
  const auto numbers =
      static_cast<std::size_t>(std::max(rotated_bytes, 5 * 65536 * 1024 * 4.0) / 4);
  Arena<float> inputs(numbers), outputs(numbers), sums(std::size_t{1} << 24);
  Arena<float> statistics(std::size_t{1} << 20), squares(std::size_t{1} << 25, true);
  Arena<float> factors(std::size_t{1} << 22);
  Arena<BFloat16> half_inputs(2 * numbers), half_outputs(2 * numbers);
  Blas blas(bench.stream());
  for (const Shape& shape : shapes) {
    add_lora(bench, blas, inputs, outputs, factors, sums, shape);
    add_lora(bench, blas, half_inputs, half_outputs, factors, sums, shape);
    add_rows(bench, inputs, outputs, sums, statistics, shape);
    add_rows(bench, half_inputs, half_outputs, sums, statistics, shape);
  }
  add_adamw(bench, inputs, outputs, squares);
  bench.run();
  bench.print(file);
}

}  // namespace

int main(int count, char** arguments) {
  const std::string option = count == 3 ? arguments[1] : "";
  if (count != 1 && option != "--json") {
    std::fprintf(stderr, "usage: %s [--json FILE]\n", arguments[0]);
    return 2;
  }
  try {
    run(count == 3 ? arguments[2] : "");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
