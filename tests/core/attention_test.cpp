#include "droppeft/core/attention.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "droppeft/memory/meter.hpp"
#include "support.hpp"

namespace {

using torch::Tensor;

/// ||a - b|| / ||b||.
double distance(const Tensor& a, const Tensor& b) {
  REQUIRE(a.sizes() == b.sizes());
  return ((a.to(torch::kDouble) - b).norm() / b.norm()).item<double>();
}

Tensor in_doubles(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& bias) {
  const Tensor scores = q.matmul(k.transpose(-2, -1)) / std::sqrt(q.size(-1)) + bias;
  return scores.softmax(-1).matmul(v);
}

/// Result and gradients for q, k, v of that dtype, and for the same numbers as doubles.
void compare(torch::Dtype dtype, std::int64_t length, std::int64_t keys, bool padded) {
  CAPTURE(length);
  CAPTURE(keys);
  CAPTURE(padded);
  const auto random = [&](std::int64_t rows) {  // as heads are cut out of a row
    return torch::randn({3, rows, 4, 16}).to(dtype).transpose(1, 2);
  };
  std::vector<Tensor> given{random(length), random(keys), random(keys)}, doubles;
  Tensor bias;
  if (padded) {
    bias = torch::zeros({3, 1, 1, keys}, dtype);
    bias.slice(3, keys / 2 + 1).fill_(-1e9);
  }
  for (Tensor& one : given) {
    doubles.push_back(one.to(torch::kDouble).requires_grad_());
    one.requires_grad_();
  }
  const Tensor y = droppeft::attention(given[0], given[1], given[2], bias);
  const Tensor wanted =
      in_doubles(doubles[0], doubles[1], doubles[2],
                 padded ? bias.to(torch::kDouble) : torch::zeros({}, torch::kDouble));
  CHECK((y.scalar_type() == dtype));
  const double tolerance = dtype == torch::kFloat ? 1e-6 : 1e-2;
  CHECK(distance(y, wanted) < tolerance);
  const Tensor gradient = torch::randn_like(wanted);
  y.backward(gradient.to(dtype));
  wanted.backward(gradient);
  for (std::size_t i = 0; i < 3; ++i)
    CHECK(distance(given[i].grad(), doubles[i].grad()) < tolerance);
}

TEST_CASE("attention and its gradients are those of double arithmetic") {
  torch::manual_seed(1);
  for (const auto dtype : {torch::kFloat, torch::kBFloat16})
    for (const bool padded : {false, true}) {
      compare(dtype, 1, 2, padded);
      compare(dtype, 5, 5, padded);
      compare(dtype, 37, 37, padded);
      compare(dtype, 8, 20, padded);
      compare(dtype, 300, 260, padded);  // more scores than our kernel takes
    }
}

TEST_CASE("in fp32 it keeps q, k and v alone, and the bits for any number of threads") {
  torch::manual_seed(3);
  const auto random = [] { return torch::randn({3, 19, 4, 16}).transpose(1, 2); };
  const Tensor q = random().requires_grad_(), k = random().requires_grad_(), v = random();
  const Tensor gradient = random();
  const int before = torch::get_num_threads();
  std::vector<Tensor> first;
  for (const int threads : {1, 2, 5}) {
    torch::set_num_threads(threads);
    const droppeft::MemoryMeter meter;
    const Tensor y = droppeft::attention(q, k, v);
    CHECK(meter.current() == q.numel() * 4);  // y itself
    auto all = torch::autograd::grad({y}, {q, k}, {gradient});
    all.push_back(y.detach());
    if (first.empty()) first = all;
    for (std::size_t i = 0; i < all.size(); ++i) CHECK(torch::equal(all[i], first[i]));
  }
  torch::set_num_threads(before);
  // As a linear map takes it, without a copy.
  CHECK(droppeft::attention(q, k, v).transpose(1, 2).is_contiguous());
}

TEST_CASE("what is no case for the kernel gives the same") {
  torch::manual_seed(4);
  const Tensor q = torch::randn({2, 3, 6, 8}), k = torch::randn({2, 3, 7, 8}), v = k + 1;
  const auto wanted = [&](const Tensor& bias) {
    return in_doubles(q.to(torch::kDouble), k.to(torch::kDouble), v.to(torch::kDouble),
                      bias.to(torch::kDouble));
  };
  const Tensor none = torch::zeros({}), full = torch::randn({6, 7});
  CHECK(distance(droppeft::attention(q, k, v, full), wanted(full)) < 1e-6);
  CHECK(distance(
            droppeft::attention(q.to(torch::kDouble), k.to(torch::kDouble), v.to(torch::kDouble)),
            wanted(none)) < 1e-12);
  CHECK(distance(droppeft::attention(q[0], k[0], v[0]), wanted(none)[0]) < 1e-6);
  const Tensor turned = q.transpose(2, 3).contiguous().transpose(2, 3);
  CHECK(distance(droppeft::attention(turned, k, v), wanted(none)) < 1e-6);
  CHECK(droppeft::attention(torch::empty({0, 3, 6, 8}), torch::empty({0, 3, 7, 8}),
                            torch::empty({0, 3, 7, 8}))
            .sizes() == torch::IntArrayRef({0, 3, 6, 8}));
}

TEST_CASE("what has a gradient for the bias, or is differentiated twice, is right too") {
  torch::manual_seed(2);
  const auto random = [] { return torch::randn({2, 3, 6, 8}).to(torch::kBFloat16); };
  const Tensor q = random().requires_grad_(), k = random(), v = random();
  const Tensor bias = torch::zeros({6, 6}, torch::kBFloat16).requires_grad_();
  droppeft::attention(q, k, v, bias).sum().backward();
  CHECK(bias.grad().defined());

  const Tensor mask = torch::ones({6, 6}, torch::kBool).tril();
  CHECK(
      distance(droppeft::attention(q, k, v, mask).detach(),
               in_doubles(q.detach().to(torch::kDouble), k.to(torch::kDouble), v.to(torch::kDouble),
                          torch::zeros({6, 6}, torch::kDouble).masked_fill(~mask, -1e9))) < 1e-2);

  for (const auto dtype : {torch::kBFloat16, torch::kFloat}) {
    const Tensor q2 = q.detach().to(dtype).requires_grad_();
    const Tensor y = droppeft::attention(q2, k.to(dtype), v.to(dtype));
    const Tensor first =
        torch::autograd::grad({y.square().sum()}, {q2}, {}, std::nullopt, /*create_graph=*/true)[0];
    const Tensor q64 = q.detach().to(torch::kDouble).requires_grad_();
    const Tensor y64 = in_doubles(q64, k.to(torch::kDouble), v.to(torch::kDouble),
                                  torch::zeros({}, torch::kDouble));
    const Tensor first64 =
        torch::autograd::grad({y64.square().sum()}, {q64}, {}, std::nullopt, true)[0];
    const Tensor second = torch::autograd::grad({first.sum()}, {q2})[0];
    const Tensor second64 = torch::autograd::grad({first64.sum()}, {q64})[0];
    CHECK(distance(second, second64) < (dtype == torch::kFloat ? 1e-5 : 0.1));
  }
}

}  // namespace
