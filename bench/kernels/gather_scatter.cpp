// Some of a tensor's rows taken out, put back, added back, and spread among zeros: droppeft's
// against eager LibTorch's indexing, and against reading and writing once what must be. "padding":
// rows are tokens, the first of each sequence (padding taken out and put in). "samples": rows are
// samples, half of them (row dropout). "tokens": half of all tokens at random, whose neighbours the
// machine's prefetchers read in vain.
#include <ATen/ATen.h>

#include <cstdint>
#include <droppeft/core/rows.hpp>
#include <iostream>
#include <memory>
#include <string>

#include "report.hpp"

namespace {

namespace cpu = droppeft::cpu;
using droppeft::detail::for_positions;
using droppeft::detail::kernel_data;

struct Shape {
  const char* name;
  std::int64_t sequences, length, width;
};
const Shape shapes[] = {
    {"MiniLM", 16, 64, 384}, {"BERT-base", 8, 128, 768}, {"BERT-large", 4, 128, 1024}};

enum class Kind { padding, samples, tokens };
const char* const kinds[] = {"padding", "samples", "tokens"};

at::Tensor half_of(std::int64_t count) {
  return std::get<0>(at::randperm(count, at::kLong).narrow(0, 0, count / 2).sort());
}

/// Tokens of sequences that have a quarter of the length, or more.
at::Tensor unpadded(const Shape& shape) {
  const at::Tensor lengths = at::randint(shape.length / 4, shape.length + 1, {shape.sequences, 1});
  return at::arange(shape.length).lt(lengths).view(-1).nonzero().squeeze(1);
}

struct Buffers {
  at::Tensor x, y;  // y has some of x's rows
};

void add_rows(Report& report, const Shape& shape, Kind kind, at::ScalarType dtype) {
  const std::int64_t tokens = shape.sequences * shape.length;
  const std::int64_t count = kind == Kind::samples ? shape.sequences : tokens;
  const std::int64_t width = tokens / count * shape.width;
  at::manual_seed(1);
  const at::Tensor rows = kind == Kind::padding ? unpadded(shape) : half_of(count);
  const auto* const at = rows.const_data_ptr<std::int64_t>();
  const double row_bytes = static_cast<double>(width) * (dtype == at::kFloat ? 4 : 2);
  const double all = row_bytes * static_cast<double>(count);
  const double some = row_bytes * static_cast<double>(rows.size(0));
  const auto buffers = rotated(all + some, [&] {
    return Buffers{at::randn({count, width}).to(dtype), at::randn({rows.size(0), width}).to(dtype)};
  });
  const auto work = [&](const char* kernel, double bytes) {
    return Case{.kernel = kernel,
                .shape = std::string(shape.name) + ", " + kinds[static_cast<int>(kind)],
                .dtype = dtype == at::kFloat ? "fp32" : "bf16",
                .bytes = bytes,
                .calls = 16};
  };

  // Into memory that is there: allocating anew is the allocator's time.
  const Case gather = work("gather", 2 * some);
  report.add(gather, "droppeft", [=] {
    auto& [x, y] = buffers->next();
    for_positions(y, 1, [&](std::int64_t row_size, std::int64_t first, std::int64_t end) {
      cpu::gather_rows(kernel_data<char>(y), kernel_data<const char>(x), at, row_size, first, end);
    });
  });
  report.add(gather, "droppeft, result allocated",
             [=] { droppeft::gather_rows(buffers->next().x, rows); });
  report.add(gather, "at::index_select_out", [=] {
    auto& [x, y] = buffers->next();
    at::index_select_out(y, x, 0, rows);
  });
  report.add(gather, "at::index_select", [=] { at::index_select(buffers->next().x, 0, rows); });

  const Case scatter = work("scatter", all + some);
  report.add(scatter, "droppeft", [=] {
    auto& [x, y] = buffers->next();
    for_positions(x, 1, [&](std::int64_t row_size, std::int64_t first, std::int64_t end) {
      cpu::merge_rows(kernel_data<char>(x), static_cast<const char*>(nullptr),
                      kernel_data<const char>(y), at, y.size(0), row_size, first, end);
    });
  });
  report.add(scatter, "droppeft, result allocated", [=] {
    auto& [x, y] = buffers->next();
    droppeft::scatter_rows(y, rows, x.size(0));
  });
  report.add(scatter, "zero_().index_copy_", [=] {
    auto& [x, y] = buffers->next();
    x.zero_().index_copy_(0, rows, y);
  });
  report.add(scatter, "at::zeros().index_copy_", [=] {
    auto& [x, y] = buffers->next();
    at::zeros(x.sizes(), x.options()).index_copy_(0, rows, y);
  });

  const Case put = work("put", 2 * some);
  report.add(put, "droppeft", [=] {
    auto& [x, y] = buffers->next();
    droppeft::put_rows_(x, rows, y);
  });
  report.add(put, "index_copy_", [=] {
    auto& [x, y] = buffers->next();
    x.index_copy_(0, rows, y);
  });

  const Case sum = work("scatter_add", 3 * some);
  report.add(sum, "droppeft", [=] {
    auto& [x, y] = buffers->next();
    droppeft::scatter_add_rows_(x, rows, y, 0.5);
  });
  report.add(sum, "index_add_", [=] {
    auto& [x, y] = buffers->next();
    x.index_add_(0, rows, y, 0.5);
  });
}

bool are_right() {
  const at::Tensor x = at::randn({100, 70}), rows = half_of(100), y = at::randn({50, 70});
  return at::equal(droppeft::gather_rows(x, rows), x.index_select(0, rows)) &&
         at::equal(droppeft::scatter_rows(y, rows, 100),
                   at::zeros_like(x).index_copy(0, rows, y)) &&
         at::equal(droppeft::put_rows_(x.clone(), rows, y), x.index_copy(0, rows, y)) &&
         at::equal(droppeft::scatter_add_rows_(x.clone(), rows, y, 0.5),
                   x.index_add(0, rows, y, 0.5));
}

}  // namespace

int main(int count, char** arguments) {
  Report report("gather_scatter", count, arguments);
  if (!are_right()) {
    std::cerr << "gather_scatter: not what LibTorch's indexing gives\n";
    return 1;
  }
  for (const Shape& shape : shapes) {
    add_rows(report, shape, Kind::padding, at::kFloat);
    if (report.quick()) break;
    add_rows(report, shape, Kind::padding, at::kBFloat16);
    add_rows(report, shape, Kind::samples, at::kFloat);
    add_rows(report, shape, Kind::tokens, at::kFloat);
  }
  report.run();
  return report.finish();
}
