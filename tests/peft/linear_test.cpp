#include "droppeft/peft/linear.hpp"

#include <ATen/autocast_mode.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <utility>
#include <vector>

#include "support.hpp"

namespace {

using droppeft::Linear;
using droppeft::LoraOptions;
using Shape = std::vector<std::int64_t>;
using Throws = std::invalid_argument;

const std::vector<Shape> shapes{{6}, {4, 6}, {2, 3, 6}, {2, 1, 3, 6}, {0, 6}, {2, 0, 6}};

struct Autocast {
  Autocast() {
    at::autocast::set_autocast_enabled(at::kCPU, true);
    at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  }
  ~Autocast() {
    at::autocast::set_autocast_enabled(at::kCPU, false);
    at::autocast::clear_cache();
  }
};

torch::nn::LinearOptions sizes(bool bias = true) {
  return torch::nn::LinearOptions(6, 5).bias(bias);
}

// With an adapter that changes something.
Linear adapted(const LoraOptions& options = LoraOptions(2), bool bias = true) {
  Linear linear(sizes(bias));
  linear->add_lora(options);
  torch::NoGradGuard no_grad;
  linear->lora->B.normal_();
  return linear;
}

// Largest difference over the largest value.
double relative_error(const torch::Tensor& got, const torch::Tensor& expected) {
  REQUIRE(got.sizes() == expected.sizes());
  const auto wanted = expected.to(torch::kDouble);
  return ((got.to(torch::kDouble) - wanted).abs().max() / wanted.abs().max()).item<double>();
}

bool same_bits(const torch::Tensor& a, const torch::Tensor& b) {
  return torch::equal(a.view(torch::kByte), b.view(torch::kByte));
}

}  // namespace

TEST_CASE("it has the names, options and initial values of torch::nn::Linear") {
  for (const bool bias : {true, false}) {
    torch::manual_seed(4);
    torch::nn::Linear reference(sizes(bias));
    torch::manual_seed(4);
    Linear linear(sizes(bias));
    const auto expected = reference->named_parameters(), got = linear->named_parameters();
    CHECK(got.keys() == expected.keys());
    for (const auto& entry : expected) CHECK(torch::equal(got[entry.key()], entry.value()));
  }
  CHECK(Linear(3, 2)->weight.sizes() == torch::IntArrayRef{2, 3});
}

TEST_CASE("without an adapter it is torch::nn::Linear, for matrices bit for bit") {
  for (const auto dtype : {torch::kFloat, torch::kBFloat16, torch::kDouble})
    for (const bool bias : {true, false})
      for (const auto& shape : shapes) {
        CAPTURE(torch::IntArrayRef(shape));
        torch::manual_seed(4);
        torch::nn::Linear reference(sizes(bias));
        torch::manual_seed(4);
        Linear linear(sizes(bias));
        reference->to(dtype);
        linear->to(dtype);
        const auto x = torch::randn(shape).to(dtype);
        const auto expected = reference->forward(x), got = linear->forward(x);
        expected.sum().backward();
        got.sum().backward();
        CHECK(torch::equal(got, at::linear(x, linear->weight, linear->bias)));
        CHECK(torch::equal(linear->weight.grad(), reference->weight.grad()));
        if (shape.size() == 2 || !bias)
          CHECK(torch::equal(got, expected));
        else
          CHECK(torch::allclose(got, expected, 2e-2, 2e-2));
      }
}

TEST_CASE("outputs and gradients are those of peft") {
  const auto here = std::filesystem::path(__FILE__).parent_path();
  std::ifstream file(here / "../oracles/data/lora.json");
  REQUIRE(file);
  const auto oracle = nlohmann::json::parse(file);
  CHECK(oracle.at("versions").at("peft") == "0.21.2");
  for (const auto& [dtype, tolerance] : {std::pair(torch::kFloat, 1e-6), {torch::kDouble, 1e-13}})
    for (const auto& variant : oracle.at("variants")) {
      const auto tensor = [&](const char* name) {
        const auto& entry = variant.at(name);
        const auto values = entry.at("values").get<std::vector<double>>();
        return torch::tensor(values, torch::kDouble).view(entry.at("shape").get<Shape>());
      };
      const auto options = LoraOptions(variant.at("rank").get<std::int64_t>())
                               .alpha(variant.at("alpha").get<double>())
                               .rslora(variant.at("rslora").get<bool>());
      CAPTURE(variant.at("x").at("shape").dump());
      const auto x = tensor("x").to(dtype).requires_grad_();
      Linear linear(torch::nn::LinearOptions(x.size(-1), tensor("weight").size(0))
                        .bias(variant.contains("bias")));
      linear->add_lora(options);
      linear->to(dtype);
      linear->weight.requires_grad_(false);
      {
        torch::NoGradGuard no_grad;
        linear->weight.copy_(tensor("weight"));
        linear->lora->A.copy_(tensor("A"));
        linear->lora->B.copy_(tensor("B"));
        if (linear->bias.defined()) linear->bias.copy_(tensor("bias"));
      }
      const auto y = linear->forward(x);
      y.backward(tensor("grad_y").to(dtype));
      CHECK(relative_error(y, tensor("y")) < tolerance);
      CHECK(relative_error(x.grad(), tensor("grad_x")) < tolerance);
      CHECK(relative_error(linear->lora->A.grad(), tensor("grad_A")) < tolerance);
      CHECK(relative_error(linear->lora->B.grad(), tensor("grad_B")) < tolerance);
      CHECK_FALSE(linear->weight.grad().defined());
      linear->merge();
      CHECK(relative_error(linear->weight, tensor("merged")) < tolerance);
    }
}

TEST_CASE("a fresh adapter leaves the outputs as they were, bit for bit") {
  for (const auto dtype : {torch::kFloat, torch::kBFloat16, torch::kDouble})
    for (const bool bias : {true, false})
      for (const auto& shape : {Shape{6}, Shape{64, 6}, Shape{2, 33, 6}}) {
        CAPTURE(torch::IntArrayRef(shape));
        Linear linear(sizes(bias));
        linear->to(dtype);
        const auto x = torch::randn(shape).to(dtype);
        const auto before = linear->forward(x);
        linear->add_lora(3);
        CHECK(torch::equal(linear->forward(x), before));
        linear->to(dtype);
        CHECK(torch::equal(linear->forward(x), before));
      }
}

TEST_CASE("the input may be strided, expanded or empty, and is not changed") {
  auto linear = adapted();
  const auto x = torch::randn({6, 4});
  const auto copy = x.clone();
  CHECK(torch::allclose(linear->forward(x.t()), linear->forward(x.t().contiguous())));
  const auto row = torch::randn({1, 1, 6});
  CHECK(
      torch::equal(linear->forward(row.expand({3, 2, 6})).select(0, 2).select(0, 1),
                   linear->forward(row.expand({3, 2, 6}).contiguous()).select(0, 2).select(0, 1)));
  CHECK(linear->forward(torch::empty({2, 0, 6})).sizes() == torch::IntArrayRef{2, 0, 5});
  CHECK(torch::equal(x, copy));
}

TEST_CASE("an input of another width is refused with its shape") {
  auto linear = adapted();
  CHECK_THROWS_WITH_AS(linear->forward(torch::zeros({2, 3})),
                       "droppeft::Linear: the last dimension of the input must be 6, got the shape "
                       "[2, 3]",
                       Throws);
  CHECK_THROWS_AS(linear->forward(torch::zeros({})), Throws);
  CHECK_THROWS_AS(linear->forward(torch::zeros({6, 2})), Throws);
}

TEST_CASE("the frozen base gets no gradient, the adapter and the input do") {
  auto linear = adapted();
  linear->weight.set_requires_grad(false);
  linear->bias.set_requires_grad(false);
  const auto x = torch::randn({4, 6}, torch::requires_grad());
  const auto before = linear->weight.clone();
  linear->forward(x).square().sum().backward();
  CHECK_FALSE(linear->weight.grad().defined());
  CHECK_FALSE(linear->bias.grad().defined());
  CHECK(x.grad().defined());
  CHECK(linear->lora->A.grad().abs().sum().item<double>() > 0);
  CHECK(linear->lora->B.grad().abs().sum().item<double>() > 0);
  CHECK(torch::equal(linear->weight, before));
}

TEST_CASE("a base that is trained too gets the gradient of an ordinary linear map") {
  auto linear = adapted();
  torch::nn::Linear reference(sizes());
  const auto x = torch::randn({4, 6}), gradient = torch::randn({4, 5});
  linear->forward(x).backward(gradient);
  reference->forward(x).backward(gradient);
  CHECK(torch::equal(linear->weight.grad(), reference->weight.grad()));
  CHECK(torch::equal(linear->bias.grad(), reference->bias.grad()));
}

TEST_CASE("merged, forward gives the same within rounding, and the adapter has no gradient") {
  for (const auto& [dtype, tolerance] :
       {std::pair(torch::kDouble, 1e-13), {torch::kFloat, 1e-5}, {torch::kBFloat16, 3e-2}}) {
    torch::manual_seed(5);
    auto linear = adapted();
    linear->to(dtype);
    linear->lora->to(dtype == torch::kBFloat16 ? torch::kFloat : dtype);
    const auto x = torch::randn({2, 3, 6}).to(dtype);
    const auto expected = linear->forward(x).detach();
    linear->merge();
    CHECK(linear->merged());
    CHECK_THROWS_WITH_AS(linear->forward(x), doctest::Contains("unmerge() first"), Throws);
    linear->eval();
    const auto y = linear->forward(x);
    CHECK(relative_error(y.detach(), expected) < tolerance);
    y.sum().backward();
    CHECK_FALSE(linear->lora->A.grad().defined());
    linear->train();
    linear->unmerge();
    CHECK_FALSE(linear->merged());
    CHECK(torch::equal(linear->forward(x), expected));
  }
}

TEST_CASE("fifty cycles of merge and unmerge leave every bit of the weight") {
  for (const auto dtype : {torch::kFloat, torch::kBFloat16, torch::kHalf, torch::kDouble}) {
    auto linear = adapted(LoraOptions(2).alpha(0.37));
    linear->weight.set_data(linear->weight.to(dtype));
    const auto before = linear->weight.detach().clone();
    const auto* place = linear->weight.data_ptr();
    for (int cycle = 0; cycle < 50; ++cycle) {
      linear->merge();
      linear->merge();
      CHECK_FALSE(torch::equal(linear->weight, before));
      linear->unmerge();
      linear->unmerge();
      CHECK(same_bits(linear->weight, before));
    }
    CHECK(linear->weight.data_ptr() == place);
    CHECK(linear->weight.requires_grad());
  }
}

TEST_CASE("a merged weight of low precision is rounded once") {
  torch::manual_seed(6);
  auto linear = adapted(LoraOptions(2).alpha(0.37));
  linear->weight.set_data(linear->weight.to(torch::kBFloat16));
  const auto exact = linear->weight.to(torch::kFloat) + linear->lora->delta();
  linear->merge();
  CHECK(torch::equal(linear->weight, exact.to(torch::kBFloat16)));
}

TEST_CASE("a merge that would not be finite is refused and leaves the weight intact") {
  auto linear = adapted();
  const auto before = linear->weight.detach().clone();
  const auto refused = [&] {
    CHECK_THROWS_WITH_AS(linear->merge(),
                         "droppeft::Linear::merge: the merged weight would hold NaN or infinity",
                         Throws);
    CHECK_FALSE(linear->merged());
    CHECK(torch::equal(linear->weight.to(torch::kFloat), before));
  };
  torch::NoGradGuard no_grad;
  linear->lora->B[1][1] = std::numeric_limits<double>::quiet_NaN();
  refused();
  linear->lora->B[1][1] = std::numeric_limits<double>::infinity();
  refused();
  linear->lora->B[1][1] = 0;
  linear->merge();
  linear->unmerge();

  before.copy_(before.to(torch::kHalf));
  linear->weight.set_data(before.to(torch::kHalf));
  linear->lora->A.fill_(1);
  linear->lora->B.fill_(1e5);  // finite in float, not in half
  refused();
}

TEST_CASE("merging without an adapter, a second adapter and empty sizes are refused") {
  Linear linear(sizes());
  CHECK_THROWS_WITH_AS(linear->merge(), "droppeft::Linear::merge: there is no adapter", Throws);
  linear->unmerge();
  linear->add_lora(2);
  const auto a = linear->lora->A;
  CHECK_THROWS_WITH_AS(linear->add_lora(2), "droppeft::Linear: there is an adapter already",
                       Throws);
  CHECK(linear->lora->A.is_same(a));
  CHECK_THROWS_WITH_AS(
      Linear(0, 3),
      "droppeft::Linear: in_features and out_features must be at least 1, got 0 and 3", Throws);
}

TEST_CASE("an adapter that is refused leaves no trace") {
  Linear linear(sizes());
  CHECK_THROWS_AS(linear->add_lora(0), Throws);
  CHECK(linear->children().empty());
  CHECK_FALSE(linear->lora);
  linear->add_lora(1);
}

TEST_CASE("an adapter follows the training mode that it is added in") {
  Linear linear(sizes());
  linear->eval();
  linear->add_lora(LoraOptions(2).dropout(0.5));
  CHECK_FALSE(linear->lora->is_training());
  linear->train();
  CHECK(linear->lora->is_training());
}

TEST_CASE("an fp32 adapter serves a base of low precision") {
  for (const auto dtype : {torch::kBFloat16, torch::kHalf}) {
    torch::manual_seed(8);
    auto linear = adapted();
    auto exact = adapted();
    linear->weight.set_data(linear->weight.to(dtype));
    linear->bias.set_data(linear->bias.to(dtype));
    {
      torch::NoGradGuard no_grad;
      exact->weight.copy_(linear->weight);
      exact->bias.copy_(linear->bias);
      exact->lora->A.copy_(linear->lora->A);
      exact->lora->B.copy_(linear->lora->B);
    }
    const auto x = torch::randn({7, 6}).to(dtype).requires_grad_();
    const auto y = linear->forward(x);
    CHECK((y.scalar_type() == dtype));
    y.sum().backward();
    CHECK((linear->lora->A.grad().scalar_type() == torch::kFloat));
    CHECK((x.grad().scalar_type() == dtype));
    const auto expected = exact->forward(x.detach().to(torch::kFloat));
    CHECK(relative_error(y.detach(), expected.detach()) < 2e-2);
    expected.sum().backward();
    CHECK(relative_error(linear->lora->A.grad(), exact->lora->A.grad()) < 2e-2);
  }
}

TEST_CASE("under autocast the output has autocast's dtype and the gradients the parameters'") {
  torch::manual_seed(9);
  auto linear = adapted();
  const auto x = torch::randn({7, 6});
  const auto expected = linear->forward(x).detach();
  torch::Tensor y;
  {
    const Autocast autocast;
    y = linear->forward(x);
  }
  CHECK((y.scalar_type() == torch::kBFloat16));
  CHECK(relative_error(y.detach(), expected) < 2e-2);
  y.sum().backward();
  CHECK((linear->lora->A.grad().scalar_type() == torch::kFloat));
  CHECK((linear->weight.grad().scalar_type() == torch::kFloat));
  linear->merge();
  linear->eval();
  const Autocast autocast;
  CHECK(relative_error(linear->forward(x).detach(), expected) < 2e-2);
}

TEST_CASE("it works without gradients and in inference mode") {
  auto linear = adapted();
  const auto x = torch::randn({4, 6});
  const auto expected = linear->forward(x).detach();
  {
    const torch::NoGradGuard no_grad;
    const auto y = linear->forward(x);
    CHECK(torch::equal(y, expected));
    CHECK_FALSE(y.requires_grad());
  }
  const c10::InferenceMode inference;
  CHECK(torch::equal(linear->forward(x), expected));
}

TEST_CASE("an input that several adapters read is not overwritten") {
  auto first = adapted(), second = adapted();
  const auto x = torch::randn({4, 6}, torch::requires_grad());
  const auto y = first->forward(x), z = second->forward(x);
  const auto kept = y.detach().clone();
  (y.square().sum() + z.square().sum() + y.sum()).backward();
  CHECK(torch::equal(y.detach(), kept));
}
