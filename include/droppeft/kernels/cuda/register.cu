#include "droppeft/core/check.hpp"
#include "droppeft/kernels/cuda/adamw.cuh"
#include "droppeft/kernels/cuda/dropout.cuh"
#include "droppeft/kernels/cuda/dropout_add_norm.cuh"
#include "droppeft/kernels/cuda/philox.cuh"
#include "droppeft/kernels/cuda/rows.cuh"
#include "droppeft/kernels/cuda/skinny.cuh"
#include "droppeft/kernels/cuda/slots.hpp"

namespace droppeft::cuda {
namespace {

void launched(const char* function, cudaError_t status) {
  require(status == cudaSuccess, "cuda::", function, ": ", cudaGetErrorString(status));
}

template <class T>
void register_for() {
  auto& typed = slots.of<T>();
  typed.dropout = [](T* out, const T* x, std::int64_t rows, std::int64_t width,
                     const KeepMask& mask, void* cuda_stream) {
    launched("dropout",
             cuda::dropout(out, x, rows, width, mask, static_cast<cudaStream_t>(cuda_stream)));
  };
  typed.dropout_add_norm = [](const cpu::DropoutAddNorm<T>& call, const T* branch,
                              const T* residual, const T* bias, T* y, T* sum, float* mean,
                              float* rstd, std::int64_t rows, void* cuda_stream) {
    launched("dropout_add_norm",
             cuda::dropout_add_norm(call, branch, residual, bias, y, sum, mean, rstd, rows,
                                    static_cast<cudaStream_t>(cuda_stream)));
  };
  typed.dropout_add_norm_backward =
      [](const cpu::DropoutAddNorm<T>& call, const T* dy, const T* dsum, const T* sum,
         const float* mean, const float* rstd, T* dbranch, T* dresidual, float* dweights,
         float* dbiases, std::int64_t pieces, std::int64_t rows, void* cuda_stream) {
        launched("dropout_add_norm_backward",
                 cuda::dropout_add_norm_backward(call, dy, dsum, sum, mean, rstd, dbranch,
                                                 dresidual, dweights, dbiases, pieces, rows,
                                                 static_cast<cudaStream_t>(cuda_stream)));
      };
  typed.to_low_rank = [](float* z, const T* x, const float* a, std::int64_t rows,
                         std::int64_t width, std::int64_t rank, const KeepMask& mask,
                         void* cuda_stream) {
    launched("to_low_rank",
             to_low_rank(z, x, a, rows, width, rank, mask, static_cast<cudaStream_t>(cuda_stream)));
  };
  typed.add_from_low_rank = [](T* y, const float* z, const float* a, std::int64_t rows,
                               std::int64_t width, std::int64_t rank, const KeepMask& mask,
                               void* cuda_stream) {
    launched("add_from_low_rank", add_from_low_rank(y, z, a, rows, width, rank, mask,
                                                    static_cast<cudaStream_t>(cuda_stream)));
  };
  typed.low_rank_gradient = [](float* gradients, const float* z, const T* x, std::int64_t rows,
                               std::int64_t width, std::int64_t rank, std::int64_t pieces,
                               const KeepMask& mask, void* cuda_stream) {
    launched("low_rank_gradient", low_rank_gradient(gradients, z, x, rows, width, rank, pieces,
                                                    mask, static_cast<cudaStream_t>(cuda_stream)));
  };
  typed.gather_rows = [](T* y, const T* x, const std::int64_t* rows, std::int64_t count,
                         std::int64_t width, void* cuda_stream) {
    launched("gather_rows",
             gather_rows(y, x, rows, count, width, static_cast<cudaStream_t>(cuda_stream)));
  };
  typed.put_rows = [](T* x, const T* y, const std::int64_t* rows, std::int64_t count,
                      std::int64_t width, void* cuda_stream) {
    launched("put_rows",
             put_rows(x, y, rows, count, width, static_cast<cudaStream_t>(cuda_stream)));
  };
  typed.merge_rows = [](T* out, const T* x, const T* y, const std::int64_t* rows,
                        std::int64_t count, std::int64_t all_rows, std::int64_t width,
                        void* cuda_stream) {
    launched("merge_rows", merge_rows(out, x, y, rows, count, all_rows, width,
                                      static_cast<cudaStream_t>(cuda_stream)));
  };
  typed.scatter_add_rows = [](T* x, const T* y, const std::int64_t* rows, float scale,
                              std::int64_t count, std::int64_t width, void* cuda_stream) {
    launched("scatter_add_rows", scatter_add_rows(x, y, rows, scale, count, width,
                                                  static_cast<cudaStream_t>(cuda_stream)));
  };
}

const bool registered = [] {
  slots.fill_words = [](const std::array<std::uint64_t, 3>& state, std::uint32_t* words,
                        std::int64_t count, void* cuda_stream) {
    launched("fill_words", fill_words(state, words, count, static_cast<cudaStream_t>(cuda_stream)));
  };
  slots.sum_of_rows = [](float* out, const float* x, std::int64_t rows, std::int64_t width,
                         void* cuda_stream) {
    launched("sum_of_rows",
             sum_of_rows(out, x, rows, width, static_cast<cudaStream_t>(cuda_stream)));
  };
  slots.adamw = [](const AdamWTensor* tensors, std::int64_t count,
                   const cpu::AdamWSettings& settings, void* cuda_stream) {
    launched("adamw",
             cuda::adamw(tensors, count, settings, static_cast<cudaStream_t>(cuda_stream)));
  };
  register_for<float>();
  register_for<BFloat16>();
  return true;
}();

}  // namespace
}  // namespace droppeft::cuda
