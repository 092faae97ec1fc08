#include "droppeft/dropout/dropout_add_norm.hpp"

#include <cmath>
#include <limits>
#include <vector>

#include "droppeft/memory/meter.hpp"
#include "support.hpp"

using droppeft::AddNorm;
using droppeft::dropout_add_norm;
using droppeft::dropout_add_norm_sum;
using droppeft::KeepMask;
using droppeft::Norm;
using droppeft::Stream;

namespace {

/// Inputs of a call, and what its outputs and gradients are.
struct Call {
  Call(std::vector<std::int64_t> shape, AddNorm its_settings, at::ScalarType dtype)
      : settings(its_settings) {
    torch::manual_seed(7);
    const auto leaf = [&](at::IntArrayRef sizes) {
      return at::randn(sizes).to(dtype).requires_grad_();
    };
    residual = leaf(shape);
    branch = settings.rows.defined() ? leaf({settings.rows.size(0), shape.back()}) : leaf(shape);
    weight = leaf({shape.back()}), bias = leaf({shape.back()});
    to_y = at::randn(shape).to(dtype), to_sum = at::randn(shape).to(dtype);
  }

  Call as_double() const {
    Call other = *this;
    for (at::Tensor* leaf : {&other.residual, &other.branch, &other.weight, &other.bias})
      *leaf = leaf->detach().to(at::kDouble).requires_grad_();
    other.to_y = to_y.to(at::kDouble), other.to_sum = to_sum.to(at::kDouble);
    return other;
  }

  /// y, sum, and the gradients of <to_y, y> + <to_sum, sum>.
  std::vector<at::Tensor> run() const {
    const auto [y, sum] = dropout_add_norm_sum(branch, residual, weight, bias, settings);
    auto all = torch::autograd::grad({(to_y * y).sum() + (to_sum * sum).sum()},
                                     {branch, residual, weight, bias});
    all.insert(all.begin(), {y, sum});
    return all;
  }

  AddNorm settings;
  at::Tensor residual, branch, weight, bias, to_y, to_sum;
};

at::Tensor indices(std::vector<std::int64_t> rows) { return at::tensor(rows, at::kLong); }

}  // namespace

TEST_CASE("values and gradients of the kernel are those of LibTorch's operations in fp64") {
  for (const auto dtype : {at::kFloat, at::kBFloat16})
    for (const Norm norm : {Norm::layer, Norm::rms})
      for (const double rate : {0.0, 0.25})
        for (const bool some : {false, true}) {
          CAPTURE(static_cast<int>(dtype));
          CAPTURE(rate);
          CAPTURE(some);
          AddNorm settings{.norm = norm, .epsilon = 1e-3, .scale = 1.25};
          settings.mask = KeepMask(Stream(3), rate);
          if (some) settings.rows = indices({5, 0, 3});
          const Call call({2, 3, 70}, settings, dtype);
          const auto got = call.run(), expected = call.as_double().run();
          for (std::size_t i = 0; i < got.size(); ++i) {
            CAPTURE(i);
            CHECK((got[i].scalar_type() == dtype));
            CHECK(at::allclose(got[i].to(at::kDouble), expected[i],
                               /*rtol=*/dtype == at::kFloat ? 1e-5 : 0.03,
                               /*atol=*/dtype == at::kFloat ? 1e-5 : 0.06));
          }
        }
}

TEST_CASE("without dropout it is LibTorch's layer_norm of the sum, also the parts of it alone") {
  torch::manual_seed(1);
  const at::Tensor x = at::randn({4, 96}).requires_grad_(), r = at::randn({4, 96}).requires_grad_();
  const auto [y, sum] = dropout_add_norm_sum(x, r, {}, {});
  CHECK(at::equal(sum, x + r));
  CHECK(at::allclose(y, at::layer_norm(x + r, {96}), 1e-5, 1e-6));
  // Of y alone, of sum alone, of neither's weight.
  const auto by_y = torch::autograd::grad({y.square().sum()}, {x, r}, {}, true);
  CHECK(at::equal(by_y[0], by_y[1]));
  const auto by_sum = torch::autograd::grad({sum.square().sum()}, {x, r}, {}, true);
  CHECK(at::allclose(by_sum[0], 2 * sum));
}

TEST_CASE("rows of the branch are put back where they belong, all others are the residual") {
  torch::manual_seed(1);
  const at::Tensor r = at::randn({6, 10}), x = at::randn({2, 10});
  const at::Tensor sum =
      dropout_add_norm_sum(x, r, {}, {}, {.scale = 2, .rows = indices({4, 1})}).sum;
  at::Tensor expected = r.clone();
  expected[4] += 2 * x[0];
  expected[1] += 2 * x[1];
  CHECK(at::allclose(sum, expected));
  const at::Tensor none =
      dropout_add_norm_sum(at::empty({0, 10}), r, {}, {}, {.rows = indices({})}).sum;
  CHECK(at::equal(none, r));
}

TEST_CASE("it keeps the sum and two floats a row, and the bits for any number of threads") {
  const std::int64_t rows = 700, width = 384;
  torch::manual_seed(1);
  const at::Tensor x = at::randn({rows, width}).requires_grad_(), r = at::randn({rows, width});
  const at::Tensor weight = at::randn({width}).requires_grad_();
  const AddNorm settings{.mask = KeepMask(Stream(1), 0.1)};
  const int before = at::get_num_threads();
  std::vector<at::Tensor> first;
  for (const int threads : {1, 2, 5}) {
    at::set_num_threads(threads);
    const droppeft::MemoryMeter meter;
    const auto [y, sum] = dropout_add_norm_sum(x, r, weight, {}, settings);
    CHECK(meter.current() == (2 * width + 2) * rows * 4);
    auto all = torch::autograd::grad({y.square().sum()}, {x, weight});
    all.push_back(y);
    if (first.empty()) first = all;
    for (std::size_t i = 0; i < all.size(); ++i) CHECK(at::equal(all[i], first[i]));
  }
  at::set_num_threads(before);
}

TEST_CASE("y alone has the same bits; its gradients are LibTorch's in fp64") {
  for (const auto dtype : {at::kFloat, at::kBFloat16})
    for (const Norm norm : {Norm::layer, Norm::rms})
      for (const bool some : {false, true})
        for (const double smallest_weight : {0.5, 0.0}) {
          CAPTURE(static_cast<int>(dtype));
          CAPTURE(some);
          CAPTURE(smallest_weight);
          AddNorm settings{.norm = norm, .epsilon = 1e-3, .scale = 1.25};
          settings.mask = KeepMask(Stream(3), 0.25);
          if (some) settings.rows = indices({5, 0, 3});
          Call call({2, 3, 70}, settings, dtype);
          {
            // From weights of 0 y does not tell what was normed.
            const torch::NoGradGuard no_grad;
            call.weight.copy_(at::linspace(smallest_weight, 2, 70));
          }
          const auto gradients = [](const Call& its, const at::Tensor& y) {
            return torch::autograd::grad({(its.to_y * y).sum()},
                                         {its.branch, its.residual, its.weight, its.bias});
          };
          const at::Tensor y =
              dropout_add_norm(call.branch, call.residual, call.weight, call.bias, settings);
          CHECK(at::equal(y, call.run()[0]));
          const Call doubles = call.as_double();
          const auto got = gradients(call, y);
          const auto expected =
              gradients(doubles, dropout_add_norm(doubles.branch, doubles.residual, doubles.weight,
                                                  doubles.bias, settings));
          for (std::size_t i = 0; i < got.size(); ++i) {
            CAPTURE(i);
            CHECK(at::allclose(got[i].to(at::kDouble), expected[i],
                               /*rtol=*/dtype == at::kFloat ? 1e-5 : 0.03,
                               /*atol=*/dtype == at::kFloat ? 1e-5 : 0.06));
          }
        }
}

TEST_CASE("y alone: kept with a float a row if it tells what was normed, else the sum is") {
  const std::int64_t rows = 64, width = 96;
  const at::Tensor x = at::ones({rows, width}).requires_grad_(), r = at::ones({rows, width});
  at::Tensor weight = at::ones({width}), bias = at::full({width}, -64.0);
  const auto bytes = [&](const at::Tensor& branch, const at::Tensor& residual) {
    const auto type = residual.scalar_type();
    const droppeft::MemoryMeter meter;
    const at::Tensor y = dropout_add_norm(branch, residual, weight.to(type), bias.to(type));
    return meter.current();
  };
  CHECK(bytes(x, r) == (width + 1) * rows * 4);
  CHECK(bytes(r, r) == width * rows * 4);
  const auto half = [](const at::Tensor& t) { return t.detach().to(at::kBFloat16); };
  const at::Tensor half_x = half(x).requires_grad_(), half_r = half(r);
  CHECK(bytes(half_x, half_r) >= (2 * width * 2 + 8) * rows);
  for (const auto& [its_weight, its_bias] :
       {std::pair{1.0, 64.1}, {0.0, 0.0}, {0x1p-109, 0.0}, {std::nan(""), 0.0}}) {
    weight[7] = its_weight, bias[7] = its_bias;
    CHECK(bytes(x, r) == (2 * width + 2) * rows * 4);
  }
}

TEST_CASE("changing the kept y in place is refused in backward, not ignored") {
  const at::Tensor x = at::randn({4, 8}).requires_grad_();
  at::Tensor y = dropout_add_norm(x, x, {}, {});
  y.mul_(2);
  CHECK_THROWS_WITH(y.sum().backward(), doctest::Contains("inplace"));
}

TEST_CASE("empty, strided and mixed inputs work; autocast's types meet in LibTorch's operations") {
  CHECK(
      at::equal(dropout_add_norm(at::empty({0, 8}), at::empty({0, 8}), {}, {}), at::empty({0, 8})));
  torch::manual_seed(1);
  const at::Tensor x = at::randn({8, 12}), r = at::randn({12, 8});
  CHECK(at::allclose(dropout_add_norm(x, r.t(), {}, {}), at::layer_norm(x + r.t(), {12}), 1e-5,
                     1e-6));
  const at::Tensor mixed = dropout_add_norm_sum(x.to(at::kBFloat16), r.t(), {}, {}).sum;
  CHECK(at::equal(mixed, r.t() + x.to(at::kBFloat16)));
}

TEST_CASE("the gradient refuses to be differentiated again") {
  const at::Tensor x = at::randn({3, 5}).requires_grad_();
  const at::Tensor loss = dropout_add_norm(x, x, {}, {}).sum();
  CHECK_THROWS_WITH_AS(torch::autograd::grad({loss}, {x}, {}, true, /*create_graph=*/true),
                       doctest::Contains("cannot be differentiated again"), std::invalid_argument);
}

TEST_CASE("what does not fit is refused, with the shapes and the range named") {
  const at::Tensor x = at::ones({4, 6}), two = at::ones({2, 6});
  const auto says = [&](const char* part, const at::Tensor& branch, const at::Tensor& weight,
                        AddNorm settings) {
    CHECK_THROWS_WITH_AS(dropout_add_norm(branch, x, weight, {}, settings), doctest::Contains(part),
                         std::invalid_argument);
  };
  says("one shape, got [2, 6] and [4, 6]", two, {}, {});
  says("[6], got [5]", x, at::ones({5}), {});
  says("in [0, 4), got 4", two, {}, {.rows = indices({0, 4})});
  says("in [0, 4), got -1", two, {}, {.rows = indices({0, -1})});
  says("got 3 twice", two, {}, {.rows = indices({3, 3})});
  says("[1] and [2, 6]", two, {}, {.rows = indices({3})});
  says("got -1", x, {}, {.epsilon = -1});
  says("nan", x, {}, {.scale = std::nan("")});
  CHECK_THROWS_WITH_AS(dropout_add_norm(at::ones({}), at::ones({}), {}, {}),
                       doctest::Contains("at least 1"), std::invalid_argument);
}

TEST_CASE(
    "the module is LayerNorm of the sum in eval mode, and drops out by its stream in training") {
  torch::manual_seed(1);
  const at::Tensor x = at::randn({6, 32}), r = at::randn({6, 32});
  using Options = droppeft::DropoutAddNormOptions;
  droppeft::DropoutAddNorm norm(Options(32).rate(0.3).eps(1e-6).stream(Stream(2)));
  torch::nn::LayerNorm theirs(torch::nn::LayerNormOptions({32}).eps(1e-6));
  {
    const torch::NoGradGuard no_grad;
    for (const auto& [name, parameter] : theirs->named_parameters().pairs())
      norm->named_parameters()[name].copy_(parameter.normal_());
  }
  norm->eval();
  CHECK(at::allclose(norm->forward(x, r), theirs->forward(x + r), 1e-5, 1e-6));
  CHECK(at::equal(norm->forward_sum(x, r).sum, x + r));
  norm->train();
  const at::Tensor first = norm->forward(x, r);
  CHECK_FALSE(at::equal(first, norm->forward(x, r)));
  norm->set_stream(Stream(2));
  CHECK(at::equal(norm->forward(x, r), first));

  droppeft::DropoutAddNorm rms(Options(32).norm(Norm::rms).bias(false));
  CHECK(rms->parameters().size() == 1);
  const at::Tensor s = x + r;
  CHECK(
      at::allclose(rms->forward(x, r), s * at::rsqrt(s.square().mean(1, true) + 1e-5), 1e-5, 1e-6));
  CHECK_THROWS_AS(norm->forward(at::ones({2, 31}), at::ones({2, 31})), std::invalid_argument);
  CHECK_THROWS_AS(droppeft::DropoutAddNorm(Options(0)), std::invalid_argument);
  CHECK_THROWS_AS(droppeft::DropoutAddNorm(Options(4).rate(1)), std::invalid_argument);
  CHECK_THROWS_AS(droppeft::DropoutAddNorm(Options(4).eps(-1)), std::invalid_argument);
}
