// The products of a large matrix with a low-rank adapter, each against at::mm and against moving
// the large matrix once.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <droppeft/core/kernel_tensors.hpp>
#include <droppeft/kernels/cpu/skinny.hpp>
#include <iostream>
#include <string>

#include "report.hpp"

namespace {

using droppeft::KeepMask;
using droppeft::Stream;
using droppeft::detail::kernel_data;
using droppeft::detail::with_kernel_type;
namespace cpu = droppeft::cpu;

struct Buffers {
  at::Tensor x, y;  // [T, d] each
};

/// The adapter's matrices, and room for partial sums: fp32 for droppeft, x's dtype for at::mm.
struct Adapter {
  Adapter(std::int64_t tokens, std::int64_t width, std::int64_t rank, at::ScalarType dtype)
      : A(at::randn({rank, width})),
        z(at::randn({tokens, rank})),
        gz(at::empty_like(z)),
        sum(at::empty({rank, width})),
        parts(at::empty({pieces(tokens), rank, width})),
        their_A(A.to(dtype)),
        their_z(z.to(dtype)),
        their_gz(z.to(dtype)),
        their_sum(sum.to(dtype)) {}

  static std::int64_t pieces(std::int64_t tokens) { return (tokens + 127) / 128; }

  /// function(first, end, partial sums) for pieces of rows.
  template <class Function>
  void for_pieces(const Function& function) const {
    const std::int64_t rows = z.size(0), size = sum.numel();
    at::parallel_for(0, parts.size(0), 1, [&](std::int64_t piece, std::int64_t last) {
      for (; piece < last; ++piece) {
        auto* const part = kernel_data<float>(parts) + piece * size;
        std::fill_n(part, size, 0.0F);
        function(128 * piece, std::min(rows, 128 * (piece + 1)), part);
      }
    });
  }
  void add_up() const {
    cpu::add_up(kernel_data<float>(sum), kernel_data<float>(parts), parts.size(0), sum.numel());
  }

  at::Tensor A, z, gz, sum, parts, their_A, their_z, their_gz, their_sum;
};

void multiply(at::Tensor out, const at::Tensor& a, const at::Tensor& b) { at::mm_out(out, a, b); }

struct Problem {
  EncoderShape shape;
  std::int64_t rank;
  double rate;
  at::ScalarType dtype = at::kFloat;
  bool in_cache = false;
};

void add_rows(Report& report, const Problem& problem) {
  const EncoderShape& shape = problem.shape;
  const std::int64_t width = shape.width, rank = problem.rank;
  const double rate = problem.rate;
  const at::ScalarType dtype = problem.dtype;
  const bool in_cache = problem.in_cache;
  const KeepMask mask(Stream(1), rate);
  const auto numbers = static_cast<double>(shape.tokens * width);
  const double bytes = (dtype == at::kFloat ? 4 : 2) * numbers;
  const double flops = 2 * numbers * static_cast<double>(rank);
  const Adapter a(shape.tokens, width, rank, dtype);
  const auto make = [&] {
    const auto random = [&] { return at::randn({shape.tokens, width}).to(dtype); };
    return Buffers{random(), random()};
  };
  const auto buffers = in_cache ? nullptr : rotated(2 * bytes, make);
  const Buffers one = make();
  const auto next = [=]() -> const Buffers& { return in_cache ? one : buffers->next(); };
  const auto add = [&](const std::string& product, double moved, double done, bool reads_only,
                       auto ours, auto theirs) {
    Case work{.kernel = "lora_skinny",
              .shape = shape.name,
              .dtype = dtype == at::kFloat ? "fp32" : "bf16",
              .bytes = moved,
              .flops = done,
              .reads_only = reads_only,
              .repetitions = 21,
              .calls = 8};
    work.shape += ", " + product + ", r " + std::to_string(rank);
    if (in_cache) work.shape += ", in cache";
    report.add(work, "droppeft", ours);
    report.add(work, "at::mm", theirs);
  };
  const auto masked = [=](const at::Tensor& x) { return at::dropout(x, rate, rate > 0); };
  const std::string drop = rate > 0 ? "drop(x)" : "x";

  add(
      drop + " A^T", bytes, flops, true,
      [=] {
        const Buffers& m = next();
        with_kernel_type(m.x, [&]<class T>() {
          a.for_pieces([&](std::int64_t first, std::int64_t end, float*) {
            cpu::to_low_rank(kernel_data<float>(a.gz), kernel_data<const T>(m.x),
                             kernel_data<float>(a.A), width, rank, mask, first, end);
          });
        });
      },
      [=] { multiply(a.their_gz, masked(next().x), a.their_A.t()); });
  if (rate == 0) {
    add(
        "y += z B^T", 2 * bytes, flops, false,
        [=] {
          const Buffers& m = next();
          with_kernel_type(m.y, [&]<class T>() {
            a.for_pieces([&](std::int64_t first, std::int64_t end, float*) {
              cpu::add_from_low_rank(kernel_data<T>(m.y), kernel_data<float>(a.z),
                                     kernel_data<float>(a.A), width, rank, first, end);
            });
          });
        },
        [=] { next().y.addmm_(a.their_z, a.their_A); });
    add(
        "gy B and gy^T z", bytes, 2 * flops, true,
        [=] {
          const Buffers& m = next();
          with_kernel_type(m.y, [&]<class T>() {
            a.for_pieces([&](std::int64_t first, std::int64_t end, float* part) {
              cpu::add_from_low_rank_backward(kernel_data<float>(a.gz), part,
                                              kernel_data<const T>(m.y), kernel_data<float>(a.z),
                                              kernel_data<float>(a.A), width, rank, first, end);
            });
          });
          a.add_up();
        },
        [=] {
          const Buffers& m = next();
          multiply(a.their_gz, m.y, a.their_A.t());
          multiply(a.their_sum, a.their_z.t(), m.y);
        });
  }
  add(
      "gz^T " + drop + " and gx += gz A", 3 * bytes, 2 * flops, false,
      [=] {
        const Buffers& m = next();
        with_kernel_type(m.x, [&]<class T>() {
          a.for_pieces([&](std::int64_t first, std::int64_t end, float* part) {
            cpu::to_low_rank_backward(part, kernel_data<T>(m.y), kernel_data<const T>(m.x),
                                      kernel_data<float>(a.z), kernel_data<float>(a.A), width, rank,
                                      mask, first, end);
          });
        });
        a.add_up();
      },
      [=] {
        const Buffers& m = next();
        multiply(a.their_sum, a.their_z.t(), masked(m.x));
        if (rate > 0)
          m.y.add_(masked(at::mm(a.their_z, a.their_A)));
        else
          m.y.addmm_(a.their_z, a.their_A);
      });
}

}  // namespace

int main(int count, char** arguments) {
  Report report("lora_skinny", count, arguments);
  for (const EncoderShape& shape : encoder_shapes) {
    for (const double rate : {0.0, 0.1}) {
      add_rows(report, {shape, 8, rate});
      add_rows(report, {shape, 8, rate, at::kBFloat16});
    }
    if (report.quick()) break;
    add_rows(report, {shape, 8, 0, at::kFloat, true});
  }
  if (!report.quick())
    for (const std::int64_t rank : {4, 16}) add_rows(report, {encoder_shapes[1], rank, 0});
  report.run();
  return report.finish();
}
