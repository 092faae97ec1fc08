// Element dropout: droppeft's against eager LibTorch's, and against reading and writing once.
#include <ATen/ATen.h>

#include <cstdint>
#include <droppeft/dropout/dropout.hpp>

#include "report.hpp"

namespace {

using droppeft::KeepMask;
using droppeft::Stream;

constexpr double rate = 0.1;

void add_rows(Report& report, const EncoderShape& shape, at::ScalarType dtype) {
  const auto numbers = static_cast<double>(shape.tokens * shape.width);
  const double size = dtype == at::kFloat ? 4 : 2;
  Case work{.kernel = "dropout",
            .shape = shape.name,
            .dtype = dtype == at::kFloat ? "fp32" : "bf16",
            .bytes = 2 * size * numbers,
            .flops = numbers,
            .calls = 16};
  const auto buffers = rotated(2 * size * numbers, [&] {
    const at::Tensor x = at::randn({shape.tokens, shape.width}).to(dtype);
    return std::pair(x, at::empty_like(x));
  });
  const KeepMask mask(Stream(1), rate);
  // Into memory that is there: allocating anew is the allocator's time.
  for (const auto& [name, isa] : {std::pair{"droppeft", droppeft::cpu::best_isa()},
                                  {"droppeft, avx2", droppeft::cpu::Isa::avx2}})
    report.add(work, name, [=] {
      auto& [x, y] = buffers->next();
      const std::int64_t blocks = shape.tokens * KeepMask::blocks(shape.width);
      droppeft::detail::with_kernel_type(x, [&]<class T>() {
        droppeft::detail::for_rows(
            blocks, KeepMask::block_size, [&](std::int64_t first, std::int64_t end) {
              droppeft::cpu::dropout(droppeft::detail::kernel_data<T>(y),
                                     droppeft::detail::kernel_data<const T>(x), shape.width, mask,
                                     first, end, isa);
            });
      });
    });
  report.add(work, "droppeft, result allocated",
             [=] { droppeft::dropout(buffers->next().first, mask); });
  report.add(work, "eager LibTorch", [buffers] { at::dropout(buffers->next().first, rate, true); });
}

}  // namespace

int main(int count, char** arguments) {
  Report report("dropout", count, arguments);
  for (const EncoderShape& shape : encoder_shapes) {
    for (const auto dtype : {at::kFloat, at::kBFloat16}) add_rows(report, shape, dtype);
    if (report.quick()) break;
  }
  report.run();
  return report.finish();
}
