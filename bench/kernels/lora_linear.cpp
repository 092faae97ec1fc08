// A frozen linear map with a low-rank adapter, forward and backward: droppeft's against what peft
// composes, and against the frozen map alone with the adapter's arithmetic on top.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <cstdint>
#include <droppeft/peft/lora_linear.hpp>
#include <iostream>
#include <string>

#include "report.hpp"

namespace {

using droppeft::KeepMask;
using droppeft::LowRank;
using droppeft::Stream;

constexpr std::int64_t rank = 8;
constexpr double scaling = 2;

struct Map {
  Map(std::int64_t width, at::ScalarType dtype)
      : weight(at::randn({width, width}).to(dtype)),
        bias(at::randn({width}).to(dtype)),
        A(at::randn({rank, width}).requires_grad_()),
        B(at::randn({width, rank}).requires_grad_()) {}

  at::Tensor frozen(const at::Tensor& x) const { return at::linear(x, weight, bias); }

  at::Tensor droppeft(const at::Tensor& x, double rate) const {
    const LowRank adapter{A, B, scaling, KeepMask(Stream(1), rate)};
    return droppeft::lora_linear(x, weight, bias, adapter);
  }

  /// What Hugging Face peft's layer does.
  at::Tensor peft(const at::Tensor& x, double rate) const {
    const at::Tensor y = frozen(x);
    const at::Tensor kept = at::dropout(x.to(at::kFloat), rate, rate > 0);
    return (y + at::linear(at::linear(kept, A), B) * scaling).to(y.scalar_type());
  }

  /// The fewest temporaries that LibTorch's operations allow, without dropout.
  at::Tensor eager(const at::Tensor& x) const {
    at::Tensor y = frozen(x);
    if (y.scalar_type() == at::kFloat) return y.addmm_(at::linear(x, A), B.t(), 1, scaling);
    const at::Tensor inner = at::linear(x, A.to(x.scalar_type()));
    return y.addmm_(inner, B.to(x.scalar_type()).t(), 1, scaling);
  }

  at::Tensor weight, bias, A, B;
};

struct Buffers {
  at::Tensor x, to_y;
};

void add_rows(Report& report, const EncoderShape& shape, at::ScalarType dtype, double rate) {
  const auto numbers = static_cast<double>(shape.tokens * shape.width);
  const double size = dtype == at::kFloat ? 4 : 2;
  const Map map(shape.width, dtype);
  const auto buffers = rotated(2 * size * numbers, [&] {
    const auto random = [&] { return at::randn({shape.tokens, shape.width}).to(dtype); };
    return Buffers{random().requires_grad_(), random()};
  });
  // Two products of the width's square, six skinny ones.
  const auto width = static_cast<double>(shape.width);
  const double low_rank = 12 * numbers * rank, base = 4 * numbers * width;
  // The weight twice; x and y forward, x and both gradients backward.
  const double least_bytes = size * (2 * width * width + 5 * numbers);
  const Case work{.kernel = "lora_linear",
                  .shape = shape.name + std::string(rate > 0 ? "" : ", p 0"),
                  .dtype = dtype == at::kFloat ? "fp32" : "bf16",
                  .flops = low_rank,
                  .upon = {"frozen linear"},
                  .repetitions = 31,
                  .more = {{"total_flops", base + low_rank}, {"total_bytes", least_bytes}}};
  const auto add = [&](const std::string& who, auto forward) {
    report.add(
        work, who,
        [=] {
          map.A.mutable_grad().reset();
          map.B.mutable_grad().reset();
          Buffers& one = buffers->next();
          one.x.mutable_grad().reset();
          return one;
        },
        [=](Buffers& one) { forward(one.x).backward(one.to_y); });
  };
  add("frozen linear", [=](const at::Tensor& x) { return map.frozen(x); });
  add("droppeft", [=](const at::Tensor& x) { return map.droppeft(x, rate); });
  add("peft's order", [=](const at::Tensor& x) { return map.peft(x, rate); });
  if (rate == 0) add("eager LibTorch", [=](const at::Tensor& x) { return map.eager(x); });
}

bool right() {
  const Map map(384, at::kFloat);
  const at::Tensor x = at::randn({100, 384}).requires_grad_(), to_y = at::randn({100, 384});
  const auto gradients = [&](const at::Tensor& y) {
    return torch::autograd::grad({y}, {x, map.A, map.B}, {to_y});
  };
  const auto ours = gradients(map.droppeft(x, 0)), wanted = gradients(map.peft(x, 0));
  for (std::size_t i = 0; i < ours.size(); ++i)
    if (!at::allclose(ours[i], wanted[i], 1e-4, 1e-3)) return false;
  return at::allclose(map.droppeft(x, 0), map.peft(x, 0), 1e-4, 1e-3);
}

}  // namespace

int main(int count, char** arguments) {
  Report report("lora_linear", count, arguments);
  if (!right()) {
    std::cerr << "lora_linear: not what peft computes\n";
    return 1;
  }
  for (const EncoderShape& shape : encoder_shapes) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16})
      for (const double rate : {0.1, 0.0}) add_rows(report, shape, dtype, rate);
    if (report.quick()) break;
  }
  report.run();
  return report.finish();
}
