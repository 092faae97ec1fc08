// Functions and modules with tensors on a GPU, by the device kernels, against double arithmetic of
// LibTorch's operations on the CPU with the same numbers dropped.

#include <array>
#include <cmath>
#include <cstdint>
#include <droppeft/core/rows.hpp>
#include <droppeft/dropout/dropout.hpp>
#include <droppeft/dropout/dropout_add_norm.hpp>
#include <droppeft/kernels/cuda/slots.hpp>
#include <droppeft/optim/adamw.hpp>
#include <droppeft/peft/linear.hpp>
#include <droppeft/peft/lora_linear.hpp>
#include <functional>
#include <utility>
#include <vector>

#include "support.hpp"

namespace {

using at::Tensor;
using droppeft::KeepMask;
using droppeft::Stream;
using Tensors = std::vector<Tensor>;

constexpr at::ScalarType types[] = {at::kFloat, at::kBFloat16};

/// ||a - b|| / ||b||.
double distance(const Tensor& a, const Tensor& b) {
  REQUIRE(a.sizes() == b.sizes());
  const Tensor wanted = b.to(at::kDouble).cpu();
  const double norm = wanted.norm().item<double>();
  return (a.to(at::kDouble).cpu() - wanted).norm().item<double>() / (norm > 0 ? norm : 1);
}

/// Roundings of a sum of some thousand numbers; or those of inputs, results and what lies between.
double tolerance(at::ScalarType type) { return type == at::kFloat ? 3e-6 : 1e-2; }

Tensor numbers(at::IntArrayRef shape, at::ScalarType type) {
  return at::randn(shape).to(type).to(at::kCUDA);
}

/// Results and gradients of `function` on the GPU against those of doubles on the CPU.
void check_function(const Tensors& inputs, const std::function<Tensors(const Tensors&)>& function) {
  Tensors given, doubles;
  at::ScalarType coarsest = at::kFloat;
  for (const Tensor& input : inputs) {
    if (!input.is_floating_point()) {
      given.push_back(input), doubles.push_back(input.cpu());
      continue;
    }
    if (input.scalar_type() == at::kBFloat16) coarsest = at::kBFloat16;
    given.push_back(input.clone().requires_grad_());
    doubles.push_back(input.cpu().to(at::kDouble).requires_grad_());
  }
  const Tensors results = function(given), wanted = function(doubles);
  Tensor sum = at::zeros({}, at::kDouble), sum_on_gpu = sum.to(at::kCUDA);
  for (std::size_t i = 0; i < results.size(); ++i) {
    CAPTURE(i);
    CHECK(results[i].is_cuda());
    CHECK(distance(results[i], wanted[i]) < tolerance(coarsest));
    const Tensor weights = at::randn(results[i].sizes()).to(results[i].scalar_type());
    sum_on_gpu = sum_on_gpu + (results[i] * weights.to(at::kCUDA)).sum().to(at::kDouble);
    sum = sum + (wanted[i] * weights.to(at::kDouble)).sum();
  }
  sum_on_gpu.backward();
  sum.backward();
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    CAPTURE(i);
    if (!doubles[i].grad().defined()) continue;
    CHECK(distance(given[i].grad(), doubles[i].grad()) < tolerance(coarsest));
  }
}

TEST_CASE("the device kernels are in this program") {
  REQUIRE((droppeft::cuda::slots.sum_of_rows != nullptr));
}

TEST_CASE("dropout drops what the CPU drops") {
  at::manual_seed(1);
  const KeepMask mask(Stream(1), 0.3);
  for (const auto type : types)
    for (const auto& shape : {std::vector<std::int64_t>{5, 7}, {300, 384}, {2, 3, 1000}, {0, 4}}) {
      const Tensor x = numbers(shape, type);
      CHECK(at::equal(droppeft::dropout(x, mask).cpu(), droppeft::dropout(x.cpu(), mask)));
    }
  check_function({numbers({33, 130}, at::kFloat)},
                 [&](const Tensors& in) { return Tensors{droppeft::dropout(in[0], mask)}; });
  const Tensor doubles = numbers({9, 200}, at::kDouble);
  CHECK(at::equal(droppeft::dropout(doubles, mask).cpu(), droppeft::dropout(doubles.cpu(), mask)));
}

TEST_CASE("dropout, add and norm") {
  at::manual_seed(2);
  for (const auto type : types)
    for (const auto norm : {droppeft::Norm::layer, droppeft::Norm::rms})
      for (const double rate : {0.0, 0.2})
        for (const std::int64_t width : {3, 77, 384, 1024, 8192, 8200}) {
          CAPTURE(width);
          const KeepMask mask(Stream(3), rate);
          const droppeft::AddNorm settings{.norm = norm, .scale = 1.25, .mask = mask};
          check_function({numbers({35, width}, type), numbers({35, width}, type),
                          numbers({width}, type), numbers({width}, type)},
                         [&](const Tensors& in) {
                           const auto [y, sum] =
                               droppeft::dropout_add_norm_sum(in[0], in[1], in[2], in[3], settings);
                           return Tensors{y, sum};
                         });
        }
  const Tensor rows = at::tensor({3, 0, 17}, at::kLong);
  check_function({numbers({3, 256}, at::kFloat), numbers({4, 5, 256}, at::kFloat)},
                 [&](const Tensors& in) {
                   return Tensors{droppeft::dropout_add_norm(
                       in[0], in[1], {}, {}, {.mask = KeepMask(Stream(4), 0.5), .rows = rows})};
                 });
}

TEST_CASE("low-rank adapters, of several rows' devices too") {
  at::manual_seed(3);
  const KeepMask mask(Stream(5), 0.1);
  for (const auto type : types)
    for (const std::int64_t rank : {1, 8, 11, 16, 40})
      for (const auto& [in, out] : {std::pair<std::int64_t, std::int64_t>{33, 65}, {384, 1536}}) {
        CAPTURE(rank);
        check_function(
            {numbers({130, in}, type), numbers({out, in}, type) / std::sqrt(in),
             numbers({out}, type), numbers({rank, in}, at::kFloat) / std::sqrt(in),
             numbers({out, rank}, at::kFloat), numbers({rank, in}, at::kFloat) / std::sqrt(in),
             numbers({out, rank}, at::kFloat)},
            [&](const Tensors& t) {
              const std::array adapters{
                  droppeft::LowRank{.A = t[3], .B = t[4], .scaling = 2, .mask = mask},
                  droppeft::LowRank{.A = t[5], .B = t[6], .scaling = 0.5, .mask = mask}};
              return Tensors{droppeft::lora_linear_grouped(t[0], t[1], t[2], adapters,
                                                           {std::int64_t{7}, 60, 130})};
            });
      }
}

TEST_CASE("a linear map with an adapter, frozen in bf16") {
  at::manual_seed(4);
  droppeft::Linear linear(256, 128);
  linear->to(at::kCUDA);
  linear->to(at::kBFloat16);
  linear->add_lora(droppeft::LoraOptions(8).dropout(0.1));
  CHECK((linear->lora->A.scalar_type() == at::kFloat));
  CHECK(linear->lora->A.is_cuda());
  const Tensor x = numbers({4, 16, 256}, at::kBFloat16);
  const Tensor y = linear->forward(x);
  CHECK((y.scalar_type() == at::kBFloat16));
  CHECK(distance(y, at::linear(x.to(at::kFloat), linear->weight.to(at::kFloat),
                               linear->bias.to(at::kFloat))) < 1e-2);
  y.sum().backward();
  CHECK(linear->lora->B.grad().abs().sum().item<double>() > 0);
}

TEST_CASE("rows") {
  at::manual_seed(5);
  for (const auto type : {at::kFloat, at::kBFloat16, at::kDouble})
    for (const std::int64_t width : {1, 37, 1024, 5000}) {
      const Tensor x = numbers({40, width}, type), y = numbers({7, width}, type);
      const Tensor at = at::tensor({0, 3, 4, 11, 25, 38, 39}, at::kLong), rows = at.to(at::kCUDA);
      CHECK(at::equal(droppeft::gather_rows(x, rows), at::index_select(x, 0, rows)));
      CHECK(at::equal(droppeft::scatter_rows(y, rows, 40).cpu(),
                      droppeft::scatter_rows(y.cpu(), at, 40)));
      CHECK(at::equal(droppeft::put_rows_(x.clone(), rows, y).cpu(),
                      droppeft::put_rows_(x.cpu(), at, y.cpu())));
      CHECK(distance(droppeft::scatter_add_rows_(x.clone(), rows, y, 0.5),
                     droppeft::scatter_add_rows_(x.cpu(), at, y.cpu(), 0.5)) < tolerance(type));
      check_function({x, y}, [&](const Tensors& in) {
        const Tensor named = in[0].is_cuda() ? rows : at;
        return Tensors{droppeft::scatter_add_rows_(in[0] * 2, named, in[1], 3),
                       droppeft::put_rows_(in[0] * 2, named, in[1]),
                       droppeft::gather_rows(in[0], named)};
      });
    }
}

TEST_CASE("AdamW steps as LibTorch's, and leaves parameters without gradients alone") {
  at::manual_seed(6);
  Tensors ours, doubles;
  for (const std::int64_t size : {1, 5, 8192, 100003}) {
    ours.push_back(numbers({size}, at::kFloat).requires_grad_());
    doubles.push_back(ours.back().detach().cpu().to(at::kDouble).requires_grad_());
  }
  ours.push_back(at::randn({50}).requires_grad_());  // one on the CPU
  doubles.push_back(ours.back().detach().to(at::kDouble).requires_grad_());
  const auto options = torch::optim::AdamWOptions(1e-2).weight_decay(0.1);
  droppeft::AdamW optimizer(ours, options);
  torch::optim::AdamW wanted(doubles, options);
  for (int step = 0; step < 20; ++step) {
    for (std::size_t i = 0; i < ours.size(); ++i) {
      const bool dropped = (static_cast<std::size_t>(step) + i) % 3 == 0;
      const Tensor gradient = at::randn(doubles[i].sizes());
      ours[i].mutable_grad() = dropped ? Tensor() : gradient.to(ours[i].device());
      doubles[i].mutable_grad() = dropped ? Tensor() : gradient.to(at::kDouble);
    }
    optimizer.step();
    wanted.step();
  }
  for (std::size_t i = 0; i < ours.size(); ++i)
    CHECK(distance(ours[i].detach(), doubles[i].detach()) < 1e-5);
}

}  // namespace
