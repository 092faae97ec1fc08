#include "droppeft/core/check.hpp"
#include "droppeft/kernels/cuda/philox.cuh"
#include "droppeft/kernels/cuda/slots.hpp"

namespace droppeft::cuda {
namespace {

const bool registered = [] {
  slots.fill_words = [](const std::array<std::uint64_t, 3>& state, std::uint32_t* words,
                        std::int64_t count, void* cuda_stream) {
    const cudaError_t status =
        fill_words(state, words, count, static_cast<cudaStream_t>(cuda_stream));
    require(status == cudaSuccess, "cuda::fill_words: ", cudaGetErrorString(status));
  };
  return true;
}();

}  // namespace
}  // namespace droppeft::cuda
