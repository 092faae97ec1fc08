// Dropout, residual add and norm in one pass, forward and backward: droppeft's against eager
// LibTorch's operations, and against moving the least bytes.
#include <ATen/ATen.h>

#include <cstdint>
#include <droppeft/dropout/dropout_add_norm.hpp>
#include <string>
#include <type_traits>

#include "report.hpp"

namespace {

using droppeft::AddNorm;
using droppeft::KeepMask;
using droppeft::Norm;
using droppeft::Stream;

struct Buffers {
  at::Tensor branch, residual, to_y, y, sum, mean, rstd;
};

at::Tensor eager(const Buffers& x, const at::Tensor& weight, const at::Tensor& bias, double rate) {
  return at::layer_norm(x.residual + at::dropout(x.branch, rate, rate > 0), {weight.size(0)},
                        weight, bias);
}

float* floats(const at::Tensor& x) { return droppeft::detail::kernel_data<float>(x); }

/// function.operator()<T>(call, data) for the kernels, whose results go where memory is: allocating
/// anew is the allocator's time, and the kernel's of the system.
template <class Function>
void with_call(const Buffers& x, const at::Tensor& weight, const AddNorm& settings,
               const Function& function) {
  droppeft::detail::with_kernel_type(x.branch, [&]<class T>() {
    const droppeft::detail::AddNormCall call{settings, {}};
    function(call.kernel<T>(x.branch, weight),
             [](const at::Tensor& y) { return droppeft::detail::kernel_data<T>(y); });
  });
}

struct Setting {
  at::ScalarType dtype = at::kFloat;
  Norm norm = Norm::layer;
  double rate = 0.1;
  bool with_sum = false;  // as pre-norm layers need it, and bf16 for backward
};

void add_rows(Report& report, const EncoderShape& shape, const Setting& setting) {
  const auto [dtype, norm, rate, with_sum] = setting;
  const auto numbers = static_cast<double>(shape.tokens * shape.width);
  const double size = dtype == at::kFloat ? 4 : 2;
  std::string name = shape.name;
  if (norm == Norm::rms) name += ", RMSNorm";
  if (rate == 0) name += ", p 0";
  if (with_sum && dtype == at::kFloat) name += ", sum";
  // Forward reads branch and residual, writes y and perhaps the sum; backward reads y or the sum
  // and the gradient of y, writes those of branch and residual, which are one tensor without
  // dropout.
  Case work{.kernel = "dropout_add_norm_forward",
            .shape = name,
            .dtype = dtype == at::kFloat ? "fp32" : "bf16",
            .bytes = (with_sum ? 4 : 3) * size * numbers,
            .flops = 8 * numbers,
            .calls = 8};
  const auto buffers = rotated(5 * size * numbers, [&] {
    const auto random = [&] { return at::randn({shape.tokens, shape.width}).to(dtype); };
    const at::Tensor rows = at::ones({shape.tokens});
    return Buffers{random().requires_grad_(),
                   random().requires_grad_(),
                   random(),
                   random(),
                   random(),
                   rows,
                   rows.clone()};
  });
  const at::Tensor weight = (1 + at::rand({shape.width})).to(dtype), inverse = 1 / weight;
  const at::Tensor bias = at::randn({shape.width}).to(dtype);
  const AddNorm settings{.norm = norm, .mask = KeepMask(Stream(1), rate)};
  const auto ours = [=] {
    const Buffers& x = buffers->next();
    return with_sum ? droppeft::dropout_add_norm_sum(x.branch, x.residual, weight, bias, settings).y
                    : droppeft::dropout_add_norm(x.branch, x.residual, weight, bias, settings);
  };
  const auto theirs = [=] { return eager(buffers->next(), weight, bias, rate); };
  const auto kernel = [=](const auto& function) {
    return [=] {
      const Buffers& x = buffers->next();
      with_call(x, weight, settings, [&](const auto& call, const auto& data) {
        droppeft::detail::for_rows(
            shape.tokens, shape.width,
            [&](std::int64_t first, std::int64_t end) { function(x, call, data, first, end); });
      });
    };
  };
  report.add(work, "droppeft",
             kernel([=](const Buffers& x, const auto& call, const auto& data, std::int64_t first,
                        std::int64_t end) {
               droppeft::cpu::dropout_add_norm(call, data(x.branch), data(x.residual), data(bias),
                                               data(x.y), with_sum ? data(x.sum) : nullptr,
                                               with_sum ? floats(x.mean) : nullptr, floats(x.rstd),
                                               first, end);
             }));
  report.add(work, "droppeft, results allocated", ours);
  if (norm == Norm::layer) report.add(work, "eager LibTorch", theirs);

  work.kernel = "dropout_add_norm_backward";
  work.bytes = (rate > 0 ? 4 : 3) * size * numbers;
  report.add(
      work, "droppeft",
      kernel([=](const Buffers& x, const auto& call, const auto& data, std::int64_t first,
                 std::int64_t end) {
        auto* const dresidual = data(x.y);
        auto* const dbranch = rate > 0 ? data(x.branch) : dresidual;
        const auto run = [&](const auto& kept) {
          droppeft::cpu::dropout_add_norm_backward(call, data(x.to_y), decltype(data(x.y))(nullptr),
                                                   kept, dbranch, dresidual, nullptr, nullptr,
                                                   first, end);
        };
        using T = std::remove_pointer_t<decltype(data(x.sum))>;
        if (with_sum)
          run(droppeft::cpu::KeptSum<T>{data(x.sum), floats(x.mean), floats(x.rstd)});
        else
          run(droppeft::cpu::KeptY{floats(x.sum), floats(bias), floats(inverse), floats(x.rstd)});
      }));
  const auto backward = [=](at::Tensor& y) { y.backward(buffers->next().to_y); };
  const auto differentiate = [=](const auto& forward) {
    return [=] {
      Buffers& x = buffers->next();
      x.branch.mutable_grad().reset();
      x.residual.mutable_grad().reset();
      return forward();
    };
  };
  report.add(work, "droppeft, results allocated", differentiate(ours), backward);
  if (norm == Norm::layer) report.add(work, "eager LibTorch", differentiate(theirs), backward);
}

}  // namespace

int main(int count, char** arguments) {
  Report report("dropout_add_norm", count, arguments);
  for (const EncoderShape& shape : encoder_shapes) {
    add_rows(report, shape, {});
    add_rows(report, shape, {.rate = 0});
    add_rows(report, shape, {.norm = Norm::rms});
    add_rows(report, shape, {.with_sum = true});
    add_rows(report, shape, {.dtype = at::kBFloat16, .with_sum = true});
    if (report.quick()) break;
  }
  report.run();
  return report.finish();
}
