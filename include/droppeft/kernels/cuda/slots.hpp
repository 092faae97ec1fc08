#pragma once

#include <array>
#include <cstdint>
#include <tuple>

// Some pragmas of GCC mean nothing to nvcc.
#if defined(__CUDACC__)
#pragma nv_diagnostic push
#pragma nv_diag_suppress 1675
#endif
#include "droppeft/kernels/cpu/adamw.hpp"
#include "droppeft/kernels/cpu/dropout_add_norm.hpp"
#include "droppeft/kernels/cpu/simd.hpp"
#if defined(__CUDACC__)
#pragma nv_diagnostic pop
#endif
#include "droppeft/kernels/keep_mask.hpp"

namespace droppeft::cuda {

/// A tensor of `count` floats in device memory that adamw() steps, for the `step`th time.
struct AdamWTensor {
  float *param, *exp_avg, *exp_avg_sq;
  const float* grad;
  std::int64_t count, step;
};

/// The kernels for numbers of type T: float or cpu::BFloat16. They work on contiguous matrices in
/// device memory, as the functions of those names in kernels/cpu do on all rows, and as the .cuh
/// files of those names say.
template <class T>
struct TypedSlots {
  /// out = x * mask, of [rows, width]; in place too.
  void (*dropout)(T* out, const T* x, std::int64_t rows, std::int64_t width, const KeepMask& mask,
                  void* cuda_stream) = nullptr;

  /// y and sum [rows, width], mean and rstd [rows]; `call` points to device memory. At most
  /// widest_normed_row columns.
  void (*dropout_add_norm)(const cpu::DropoutAddNorm<T>& call, const T* branch, const T* residual,
                           const T* bias, T* y, T* sum, float* mean, float* rstd, std::int64_t rows,
                           void* cuda_stream) = nullptr;

  /// dbranch and dresidual; dweights and dbiases [pieces, width], sums over parts of the rows, to
  /// be added up by sum_of_rows.
  void (*dropout_add_norm_backward)(const cpu::DropoutAddNorm<T>& call, const T* dy, const T* dsum,
                                    const T* sum, const float* mean, const float* rstd, T* dbranch,
                                    T* dresidual, float* dweights, float* dbiases,
                                    std::int64_t pieces, std::int64_t rows,
                                    void* cuda_stream) = nullptr;

  /// Of skinny.cuh, for x and y [rows, width], a [rank, width], z [rows, rank]: z = (x * mask) a^T.
  void (*to_low_rank)(float* z, const T* x, const float* a, std::int64_t rows, std::int64_t width,
                      std::int64_t rank, const KeepMask& mask, void* cuda_stream) = nullptr;
  /// y += mask * (z a).
  void (*add_from_low_rank)(T* y, const float* z, const float* a, std::int64_t rows,
                            std::int64_t width, std::int64_t rank, const KeepMask& mask,
                            void* cuda_stream) = nullptr;
  /// gradients [pieces, rank, width], sums over parts of the rows of z^T (x * mask), to be added up
  /// by sum_of_rows.
  void (*low_rank_gradient)(float* gradients, const float* z, const T* x, std::int64_t rows,
                            std::int64_t width, std::int64_t rank, std::int64_t pieces,
                            const KeepMask& mask, void* cuda_stream) = nullptr;

  /// Of rows.cuh, for y of `count` rows of `width` numbers: y[i] = x[rows[i]].
  void (*gather_rows)(T* y, const T* x, const std::int64_t* rows, std::int64_t count,
                      std::int64_t width, void* cuda_stream) = nullptr;
  /// x[rows[i]] = y[i].
  void (*put_rows)(T* x, const T* y, const std::int64_t* rows, std::int64_t count,
                   std::int64_t width, void* cuda_stream) = nullptr;
  /// out[r] = y[i] where r = rows[i], and x[r] elsewhere, for r < all_rows.
  void (*merge_rows)(T* out, const T* x, const T* y, const std::int64_t* rows, std::int64_t count,
                     std::int64_t all_rows, std::int64_t width, void* cuda_stream) = nullptr;
  /// x[rows[i]] += scale y[i].
  void (*scatter_add_rows)(T* x, const T* y, const std::int64_t* rows, float scale,
                           std::int64_t count, std::int64_t width, void* cuda_stream) = nullptr;
};

/// The device kernels of this program. register.cu, which linking `droppeft::cuda` compiles into
/// it, fills the slots before main; in a program without it they are null, and callers use the CPU.
/// Nothing here needs the CUDA toolkit, so that headers compiled by g++ can ask.
///
/// Each puts its work on `cuda_stream` (a cudaStream_t; null is the default stream) of the current
/// device and does not wait for it. Each throws std::invalid_argument for sizes out of range and
/// std::runtime_error if the launch fails.
struct Slots {
  /// Writes the next `count` >= 0 words of the stream with this state (Stream::state()) to device
  /// memory, with the bits that the Stream itself draws. The caller advances the state.
  void (*fill_words)(const std::array<std::uint64_t, 3>& state, std::uint32_t* words,
                     std::int64_t count, void* cuda_stream) = nullptr;

  /// out[c] = the sum over r of x[r, c], of [rows, width].
  void (*sum_of_rows)(float* out, const float* x, std::int64_t rows, std::int64_t width,
                      void* cuda_stream) = nullptr;

  /// A step of AdamW for `count` tensors; `tensors` lies in host memory and may be changed at once.
  void (*adamw)(const AdamWTensor* tensors, std::int64_t count, const cpu::AdamWSettings& settings,
                void* cuda_stream) = nullptr;

  template <class T>
  TypedSlots<T>& of() {
    return std::get<TypedSlots<T>>(typed);
  }

  std::tuple<TypedSlots<float>, TypedSlots<cpu::BFloat16>> typed;
};

/// The widest row that dropout_add_norm takes.
constexpr std::int64_t widest_normed_row = 8192;

/// One object in a process, also when shared libraries that hide their symbols use it.
[[gnu::visibility("default")]] inline Slots slots;

}  // namespace droppeft::cuda
