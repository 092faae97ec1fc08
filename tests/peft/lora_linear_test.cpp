#include "droppeft/peft/lora_linear.hpp"

#include <ATen/autocast_mode.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "droppeft/core/module.hpp"
#include "droppeft/memory/meter.hpp"
#include "droppeft/peft/linear.hpp"
#include "support.hpp"

namespace {

using droppeft::KeepMask;
using droppeft::LowRank;
using droppeft::MemoryMeter;
using droppeft::Stream;
using Tensors = std::vector<torch::Tensor>;
using Shape = std::vector<std::int64_t>;
using Throws = std::invalid_argument;

/// Largest difference over the largest value.
double relative_error(const torch::Tensor& got, const torch::Tensor& expected) {
  REQUIRE(got.sizes() == expected.sizes());
  if (got.numel() == 0) return 0;
  const auto wanted = expected.to(torch::kDouble);
  return ((got.to(torch::kDouble) - wanted).abs().max() / wanted.abs().max()).item<double>();
}

torch::Tensor leaf(const torch::Tensor& x, torch::ScalarType dtype) {
  return x.detach().to(dtype).clone().requires_grad_();
}

/// mask.factor of every place.
torch::Tensor factors(const KeepMask& mask, std::int64_t rows, std::int64_t width) {
  const auto all = torch::empty({rows, width}, torch::kDouble);
  auto at = all.accessor<double, 2>();
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = 0; j < width; ++j) at[i][j] = mask.factor(i, j, width);
  return all;
}

/// A map and its adapter, all leaves that require gradients.
struct Map {
  Map(std::int64_t in, std::int64_t out, std::int64_t rank, double rate = 0,
      torch::ScalarType dtype = torch::kFloat, torch::ScalarType adapter_dtype = torch::kFloat) {
    torch::manual_seed(static_cast<std::uint64_t>(10000 * in + 100 * out + rank));
    W = leaf(torch::randn({out, in}), dtype);
    b = leaf(torch::randn({out}), dtype);
    adapter = {leaf(torch::randn({rank, in}), adapter_dtype),
               leaf(torch::randn({out, rank}), adapter_dtype), 0.75, KeepMask(Stream(4), rate)};
  }
  /// The same numbers in another type.
  Map to(torch::ScalarType dtype) const {
    Map other = *this;
    other.W = leaf(W, dtype);
    other.b = leaf(b, dtype);
    other.adapter.A = leaf(adapter.A, dtype);
    other.adapter.B = leaf(adapter.B, dtype);
    return other;
  }
  Tensors leaves() const { return {W, b, adapter.A, adapter.B}; }
  void freeze_base() {
    W.requires_grad_(false);
    b.requires_grad_(false);
  }

  torch::Tensor operator()(const torch::Tensor& x) const {
    return droppeft::lora_linear(x, W, b, adapter);
  }
  /// The formula.
  torch::Tensor expected(const torch::Tensor& x) const {
    const auto rows = x.reshape({-1, x.size(-1)});
    const auto kept = rows * factors(adapter.mask, rows.size(0), rows.size(1)).to(x.dtype());
    const auto y = torch::mm(rows, W.t()) + b +
                   adapter.scaling * torch::mm(torch::mm(kept, adapter.A.t()), adapter.B.t());
    auto shape = x.sizes().vec();
    shape.back() = W.size(0);
    return y.view(shape);
  }

  torch::Tensor W, b;
  LowRank adapter;
};

/// y and the gradients of x and the leaves, for a loss that weighs every number of y.
Tensors results(const Map& map, const torch::Tensor& x, const torch::Tensor& y,
                const torch::Tensor& weights) {
  Tensors inputs{x};
  for (const auto& one : map.leaves()) inputs.push_back(one);
  auto found = torch::autograd::grad({y}, inputs, {weights.to(y.dtype())});
  found.insert(found.begin(), y.detach());
  return found;
}

void check_against_double(const Map& map, const Shape& shape, torch::ScalarType dtype,
                          double tolerance) {
  CAPTURE(torch::IntArrayRef(shape));
  const auto x = leaf(torch::randn(shape), dtype);
  auto out_shape = shape;
  out_shape.back() = map.W.size(0);
  const auto weights = torch::randn(out_shape).to(dtype);
  const auto got = results(map, x, map(x), weights);
  const Map exact = map.to(torch::kDouble);
  const auto exact_x = leaf(x, torch::kDouble);
  const auto wanted = results(exact, exact_x, exact.expected(exact_x), weights);
  CHECK((got[0].scalar_type() == dtype));
  CHECK((got[1].scalar_type() == dtype));
  CHECK((got[4].scalar_type() == map.adapter.A.scalar_type()));
  for (std::size_t i = 0; i < got.size(); ++i) {
    CAPTURE(i);
    CHECK(relative_error(got[i], wanted[i]) < tolerance);
  }
}

struct Threads {
  explicit Threads(int count) : before(at::get_num_threads()) { at::set_num_threads(count); }
  ~Threads() { at::set_num_threads(before); }
  int before;
};

bool same_bits(const Tensors& a, const Tensors& b) {
  for (std::size_t i = 0; i < a.size(); ++i)
    if (!torch::equal(a[i], b[i])) return false;
  return a.size() == b.size();
}

}  // namespace

TEST_CASE("outputs and gradients are those of the formula in double") {
  for (const double rate : {0.0, 0.3}) {
    CAPTURE(rate);
    for (const auto& [dtype, tolerance] :
         {std::pair(torch::kFloat, 1e-5), {torch::kBFloat16, 1e-2}})
      for (const std::int64_t rank : {1, 3, 8, 64}) {
        CAPTURE(rank);
        const Map map(40, 24, rank, rate, dtype);
        for (const auto& shape :
             {Shape{40}, Shape{1, 40}, Shape{5, 40}, Shape{2, 3, 40}, Shape{300, 40}})
          check_against_double(map, shape, dtype, tolerance);
      }
    check_against_double(Map(384, 200, 4, rate), {130, 384}, torch::kFloat, 1e-5);
    check_against_double(Map(1000, 1, 4, rate), {20, 1000}, torch::kFloat, 1e-5);
    check_against_double(Map(1, 9, 2, rate), {20, 1}, torch::kFloat, 1e-5);
  }
}

TEST_CASE("what the kernels do not do is composed: other dtypes, high ranks, the same mask") {
  for (const double rate : {0.0, 0.3}) {
    check_against_double(Map(40, 24, 65, rate), {2, 7, 40}, torch::kFloat, 1e-5);
    check_against_double(Map(40, 24, 3, rate, torch::kDouble, torch::kDouble), {7, 40},
                         torch::kDouble, 1e-13);
    check_against_double(Map(40, 24, 3, rate, torch::kHalf), {7, 40}, torch::kHalf, 1e-2);
    check_against_double(Map(40, 24, 3, rate, torch::kBFloat16, torch::kBFloat16), {7, 40},
                         torch::kBFloat16, 3e-2);
  }
}

TEST_CASE("without a bias, too") {
  const Map map(40, 24, 3);
  const auto x = torch::randn({7, 40}, torch::requires_grad());
  const auto y = droppeft::lora_linear(x, map.W, {}, map.adapter);
  CHECK(torch::allclose(y + map.b, map(x), 1e-4, 1e-5));
  y.sum().backward();
  CHECK(map.W.grad().defined());
  CHECK(map.adapter.B.grad().defined());
}

TEST_CASE("no rows give no output and gradients of zero") {
  for (const auto& shape : {Shape{0, 40}, Shape{3, 0, 40}}) {
    const Map map(40, 24, 3, 0.5);
    const auto x = torch::randn(shape).requires_grad_();
    const auto y = map(x);
    CHECK(y.numel() == 0);
    y.sum().backward();
    CHECK(x.grad().sizes() == x.sizes());
    CHECK(torch::equal(map.adapter.A.grad(), torch::zeros({3, 40})));
    CHECK(torch::equal(map.adapter.B.grad(), torch::zeros({24, 3})));
  }
}

TEST_CASE("backward drops what forward dropped, and the mask says what that is") {
  const std::int64_t rows = 70, width = 300;
  for (const auto dtype : {torch::kFloat, torch::kBFloat16}) {
    // y = sum_j f_ij x_ij: linear in the mask, and its gradient is the mask.
    const LowRank adapter{torch::ones({1, width}), torch::ones({1, 1}), 1,
                          KeepMask(Stream(8), 0.25)};
    const auto expected = factors(adapter.mask, rows, width);
    const auto x = leaf(torch::ones({rows, width}), dtype);
    const auto W = torch::zeros({1, width}).to(dtype);
    const auto y = droppeft::lora_linear(x, W, {}, adapter);
    CHECK(relative_error(y.detach(), expected.sum(1, true)) <
          (dtype == torch::kFloat ? 1e-6 : 1e-2));
    y.sum().backward();
    CHECK(torch::equal(x.grad(), expected.to(dtype)));
  }
}

TEST_CASE("only gradients that are needed are computed, and they do not depend on the others") {
  const auto x_numbers = torch::randn({50, 40}), weights = torch::randn({50, 24});
  const auto all = [&] {
    const Map map(40, 24, 3, 0.2);
    const auto x = leaf(x_numbers, torch::kFloat);
    return results(map, x, map(x), weights);
  }();
  for (unsigned wanted = 1; wanted < 32; ++wanted) {
    CAPTURE(wanted);
    const Map map(40, 24, 3, 0.2);
    Tensors inputs{leaf(x_numbers, torch::kFloat)};
    for (const auto& one : map.leaves()) inputs.push_back(one);
    for (std::size_t i = 0; i < 5; ++i) inputs[i].requires_grad_((wanted >> i & 1) != 0);
    map(inputs[0]).backward(weights);
    for (std::size_t i = 0; i < 5; ++i) {
      CHECK(inputs[i].grad().defined() == inputs[i].requires_grad());
      if (inputs[i].grad().defined()) CHECK(torch::equal(inputs[i].grad(), all[i + 1]));
    }
  }
}

TEST_CASE("the bits do not depend on the number of threads") {
  // W = 0: what is tested is the adapter's part, not LibTorch's product.
  for (const auto dtype : {torch::kFloat, torch::kBFloat16}) {
    Map map(200, 100, 8, 0.1, dtype);
    map.W.detach().zero_();
    map.freeze_base();
    const auto x = leaf(torch::randn({1000, 200}), dtype);
    const auto weights = torch::randn({1000, 100}).to(dtype);
    std::vector<Tensors> runs;
    for (const int count : {1, 2, 5}) {
      const Threads threads(count);
      const auto y = map(x);
      auto found = torch::autograd::grad({y}, {x, map.adapter.A, map.adapter.B}, {weights});
      found.push_back(y.detach());
      runs.push_back(found);
    }
    CHECK(same_bits(runs[0], runs[1]));
    CHECK(same_bits(runs[0], runs[2]));
  }
}

TEST_CASE("x, adapters and the gradient may be strided or expanded, and are not changed") {
  const Map map(40, 24, 3, 0.2);
  const auto x = torch::randn({40, 30}).t().requires_grad_();
  const auto copy = x.detach().contiguous().requires_grad_();
  Map strided = map;
  strided.adapter.A = map.adapter.A.detach().t().contiguous().t().requires_grad_();
  strided.adapter.B = map.adapter.B.detach().t().contiguous().t().requires_grad_();
  CHECK_FALSE(strided.adapter.A.is_contiguous());
  const auto weights = torch::randn({1, 1}).expand({30, 24});
  const auto got = results(strided, x, strided(x), weights);
  CHECK(same_bits(got, results(map, copy, map(copy), weights.contiguous())));
  CHECK(torch::equal(x, copy));
}

TEST_CASE("kept for backward are x itself and T r numbers, with dropout as without") {
  const std::int64_t T = 500, in = 64, out = 48, r = 4;
  for (const double rate : {0.0, 0.1})
    for (const auto dtype : {torch::kFloat, torch::kBFloat16}) {
      Map map(in, out, r, rate, dtype);
      map.freeze_base();
      const std::int64_t size = dtype == torch::kFloat ? 4 : 2;
      const std::int64_t x_bytes = T * in * size, y_bytes = T * out * size, z_bytes = 4 * T * r;
      const auto start = torch::randn({T, in}).to(dtype).requires_grad_();
      const MemoryMeter meter;
      auto x = start * 2;
      auto query = map(x), key = map(x), value = map(x);
      x.reset();
      CHECK(meter.current() == x_bytes + 3 * (y_bytes + z_bytes));
      query.reset();
      key.reset();
      CHECK(meter.current() == x_bytes + y_bytes + z_bytes);
    }
}

TEST_CASE("forward and backward allocate nothing of x's size but y and the gradient of x") {
  const std::int64_t T = 4096, in = 128, out = 64, r = 4;
  Map map(in, out, r, 0.1);
  map.freeze_base();
  const auto x = torch::randn({T, in}).requires_grad_();
  const auto weights = torch::randn({T, out});
  const std::int64_t x_bytes = 4 * T * in, y_bytes = 4 * T * out, z_bytes = 4 * T * r;
  // B^T, and for each of the at most 64 pieces the sums for A's and B's gradients, and these.
  const std::int64_t small = 4 * r * (out + 66 * (in + out));
  MemoryMeter meter;
  auto y = map(x);
  CHECK(meter.peak() <= y_bytes + z_bytes + small);
  const auto held = meter.current();
  meter.reset_peak();
  y.backward(weights);
  CHECK(meter.peak() <= held + x_bytes + z_bytes + small);
}

TEST_CASE("gradients can be differentiated again") {
  for (const auto dtype : {torch::kFloat, torch::kDouble}) {
    const Map map = dtype == torch::kFloat ? Map(20, 10, 3, 0.2) : Map(20, 10, 3, 0.2).to(dtype);
    const Map exact = map.to(torch::kDouble);
    const auto x = leaf(torch::randn({7, 20}), dtype), exact_x = leaf(x, torch::kDouble);
    const auto second = [](const Map& m, const torch::Tensor& at, const torch::Tensor& y) {
      const Tensors inputs{at, m.adapter.A, m.adapter.B, m.W, m.b};
      const auto first = torch::autograd::grad({y.pow(3).sum()}, inputs, {}, true, true);
      torch::Tensor loss = torch::zeros({}, y.options());
      for (const auto& one : first) loss = loss + one.square().sum();
      return torch::autograd::grad({loss}, inputs);
    };
    const auto got = second(map, x, map(x));
    const auto wanted = second(exact, exact_x, exact.expected(exact_x));
    for (std::size_t i = 0; i < got.size(); ++i)
      CHECK(relative_error(got[i], wanted[i]) < (dtype == torch::kFloat ? 1e-4 : 1e-12));
  }
}

TEST_CASE("the output may be changed in place before backward") {
  const Map map(20, 10, 3);
  const auto x = torch::randn({7, 20}, torch::requires_grad());
  const auto weights = torch::randn({7, 10});
  const auto wanted = results(map, x, map(x), weights);
  const auto got = results(map, x, map(x).add_(1), weights);
  for (std::size_t i = 1; i < got.size(); ++i) CHECK(torch::equal(got[i], wanted[i]));
}

TEST_CASE("under autocast the weight is cast, the adapter is not, and x is kept as it is") {
  Map map(64, 48, 4, 0.1);
  map.freeze_base();
  const auto x = torch::randn({50, 64}, torch::requires_grad());
  torch::Tensor y;
  at::autocast::set_autocast_enabled(at::kCPU, true);
  at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  std::int64_t kept = 0;
  {
    const MemoryMeter meter;
    y = map(x);
    kept = meter.current();
  }
  at::autocast::set_autocast_enabled(at::kCPU, false);
  at::autocast::clear_cache();
  CHECK((y.scalar_type() == torch::kBFloat16));
  CHECK(kept == 2 * 50 * 48 + 4 * 50 * 4 + 2 * 64 * 48);  // y, z, the weight in bf16
  const auto weights = torch::randn({50, 48});
  const auto got =
      torch::autograd::grad({y}, {x, map.adapter.A, map.adapter.B}, {weights.to(torch::kBFloat16)});
  const auto wanted = torch::autograd::grad({map(x)}, {x, map.adapter.A, map.adapter.B}, {weights});
  for (std::size_t i = 0; i < got.size(); ++i) {
    CHECK((got[i].scalar_type() == torch::kFloat));
    CHECK(relative_error(got[i], wanted[i]) < 1e-2);
  }
}

TEST_CASE("a group is each adapter on its rows alone") {
  const std::int64_t in = 40, out = 24;
  const Map base(in, out, 3);
  const Shape offsets{2, 9, 9, 150, 158}, ranks{3, 8, 1, 5};
  std::vector<LowRank> adapters;
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    LowRank one = Map(in, out, ranks[i]).adapter;
    one.scaling = 0.5 + static_cast<double>(i);
    one.mask = KeepMask(Stream(6).fold(i), i == 3 ? 0 : 0.4);
    adapters.push_back(one);
  }
  const auto x = torch::randn({160, in}).requires_grad_();
  const auto weights = torch::randn({160, out});
  const auto y = droppeft::lora_linear_grouped(x, base.W, base.b, adapters, offsets);
  Tensors inputs{x, base.W, base.b};
  for (const auto& one : adapters) inputs.insert(inputs.end(), {one.A, one.B});
  const auto got = torch::autograd::grad({y}, inputs, {weights});

  Tensors parts{at::linear(x.narrow(0, 0, 2), base.W, base.b)};
  for (std::size_t i = 0; i < adapters.size(); ++i)
    parts.push_back(droppeft::lora_linear(x.narrow(0, offsets[i], offsets[i + 1] - offsets[i]),
                                          base.W, base.b, adapters[i]));
  parts.push_back(at::linear(x.narrow(0, 158, 2), base.W, base.b));
  const auto alone = torch::cat(parts);
  CHECK(relative_error(y.detach(), alone.detach()) < 1e-6);
  const auto wanted = torch::autograd::grad({alone}, inputs, {weights});
  for (std::size_t i = 0; i < got.size(); ++i) {
    CAPTURE(i);
    if (wanted[i].abs().max().item<double>() == 0)
      CHECK(got[i].abs().max().item<double>() == 0);
    else
      CHECK(relative_error(got[i], wanted[i]) < 1e-5);
  }

  // The same of LibTorch's operations.
  std::vector<LowRank> in_double;
  for (LowRank one : adapters) {
    one.A = one.A.to(torch::kDouble);
    one.B = one.B.to(torch::kDouble);
    in_double.push_back(one);
  }
  const Map exact = base.to(torch::kDouble);
  CHECK(relative_error(y.detach(), droppeft::lora_linear_grouped(x.to(torch::kDouble), exact.W,
                                                                 exact.b, in_double, offsets)
                                       .detach()) < 1e-5);
}

TEST_CASE("an adapter that serves two stretches of rows gets the gradient of both") {
  const Map map(40, 24, 3);
  const auto x = torch::randn({30, 40});
  const std::vector<LowRank> twice{map.adapter, map.adapter};
  const auto weights = torch::randn({30, 24});
  const auto grouped = droppeft::lora_linear_grouped(x, map.W, map.b, twice, Shape{0, 13, 30});
  const auto got = torch::autograd::grad({grouped}, {map.adapter.A, map.adapter.B}, {weights});
  const auto wanted = torch::autograd::grad({map(x)}, {map.adapter.A, map.adapter.B}, {weights});
  for (std::size_t i = 0; i < got.size(); ++i) CHECK(relative_error(got[i], wanted[i]) < 1e-5);
}

TEST_CASE("no adapters leave the linear map") {
  const Map map(40, 24, 3);
  const auto x = torch::randn({7, 40});
  CHECK(torch::equal(droppeft::lora_linear_grouped(x, map.W, map.b, {}, Shape{3}),
                     at::linear(x, map.W, map.b)));
}

TEST_CASE("shapes and offsets that do not fit are refused with what was given") {
  const Map map(40, 24, 3);
  const auto x = torch::randn({7, 40});
  const auto refused = [&](const LowRank& adapter, const char* message) {
    CHECK_THROWS_WITH_AS(droppeft::lora_linear(x, map.W, map.b, adapter), message, Throws);
  };
  refused({torch::zeros({3, 39}), map.adapter.B},
          "lora_linear: A must be [r, 40] with r >= 1, got [3, 39]");
  refused({torch::zeros({0, 40}), torch::zeros({24, 0})},
          "lora_linear: A must be [r, 40] with r >= 1, got [0, 40]");
  refused({map.adapter.A, torch::zeros({24, 4})}, "lora_linear: B must be [24, 3], got [24, 4]");
  CHECK_THROWS_WITH_AS(map(torch::zeros({7, 3})),
                       "lora_linear: the last dimension of x must be that of the weight [24, 40], "
                       "got the shape [7, 3]",
                       Throws);
  CHECK_THROWS_WITH_AS(droppeft::lora_linear(x, map.W, torch::zeros({3}), map.adapter),
                       "lora_linear: bias must be [24], got [3]", Throws);
  const std::vector<LowRank> one{map.adapter};
  for (const auto& offsets : {Shape{0}, Shape{0, 1, 2}, Shape{0, 8}, Shape{-1, 3}, Shape{3, 2}})
    CHECK_THROWS_AS(droppeft::lora_linear_grouped(x, map.W, map.b, one, offsets), Throws);
  CHECK_THROWS_WITH_AS(droppeft::lora_linear_grouped(x, map.W, map.b, one, Shape{0, 8}),
                       "lora_linear: offsets must ascend in [0, 7], got [0, 8]", Throws);
}

TEST_CASE("a module drops by its stream: anew in each pass, the same again from the same stream") {
  droppeft::Linear linear(40, 24);
  linear->add_lora(droppeft::LoraOptions(4).dropout(0.5));
  {
    const torch::NoGradGuard no_grad;
    linear->lora->B.normal_();
  }
  const auto x = torch::randn({2, 30, 40});
  const auto passes = [&](droppeft::Linear& module) {
    return Tensors{module->forward(x).detach(), module->forward(x).detach()};
  };
  droppeft::set_stream(*linear, Stream(3));
  const auto first = passes(linear);
  CHECK_FALSE(torch::equal(first[0], first[1]));
  CHECK_FALSE(torch::equal(passes(linear)[0], first[0]));
  droppeft::set_stream(*linear, Stream(3));
  CHECK(same_bits(passes(linear), first));

  auto copy = droppeft::clone(linear), other = droppeft::clone(linear, Stream(9));
  const auto next = passes(linear);
  CHECK(same_bits(passes(copy), next));
  CHECK_FALSE(torch::equal(passes(other)[0], next[0]));

  linear->eval();
  const auto whole = passes(linear);
  CHECK(torch::equal(whole[0], whole[1]));
  CHECK(torch::allclose(
      whole[0], at::linear(x, linear->weight, linear->bias) + linear->lora->forward(x).detach(),
      1e-4, 1e-5));
}

TEST_CASE("modules draw apart, and a new adapter drops without a change of the output") {
  droppeft::Linear first(40, 24), second(40, 24);
  first->add_lora(droppeft::LoraOptions(4).dropout(0.5));
  second->add_lora(droppeft::LoraOptions(4).dropout(0.5));
  const auto x = torch::ones({30, 40});
  CHECK(torch::equal(first->forward(x), at::linear(x, first->weight, first->bias)));
  const auto ones = [](droppeft::Linear& module) {
    const torch::NoGradGuard no_grad;
    module->lora->A.fill_(1);
    module->lora->B.fill_(1);
    return module->lora->forward(torch::ones({30, 40}));
  };
  CHECK_FALSE(torch::equal(ones(first), ones(second)));
}
