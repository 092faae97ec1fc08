#include "droppeft/dropout/dropout.hpp"

#include <limits>
#include <vector>

#include "droppeft/core/module.hpp"
#include "droppeft/memory/meter.hpp"
#include "support.hpp"

using droppeft::KeepMask;
using droppeft::Stream;

namespace {

/// factor of every number of a tensor of this shape.
at::Tensor factors(at::IntArrayRef shape, const KeepMask& mask) {
  at::Tensor all = at::empty(shape);
  const std::int64_t width = shape.empty() ? 1 : shape.back();
  for (std::int64_t i = 0; i < all.numel(); ++i)
    all.view(-1)[i] = mask.factor(i / width, i % width, width);
  return all;
}

}  // namespace

TEST_CASE("numbers are dropped by position, whatever the shape, layout or dtype") {
  torch::manual_seed(1);
  const KeepMask mask(Stream(4), 0.4);
  for (const std::vector<std::int64_t>& shape :
       std::vector<std::vector<std::int64_t>>{{}, {7}, {3, 200}, {2, 3, 130}, {0, 5}, {4, 0}}) {
    const at::Tensor x = at::randn(shape), all = factors(shape, mask);
    CHECK(at::equal(droppeft::dropout(x, mask), x * all));
    for (const auto dtype : {at::kDouble, at::kHalf, at::kBFloat16}) {
      const at::Tensor y = droppeft::dropout(x.to(dtype), mask);
      CHECK((y.scalar_type() == dtype));
      CHECK(at::equal(y == 0, all == 0));
      CHECK(at::allclose(y.to(at::kFloat), x * all, /*rtol=*/0x1p-7, /*atol=*/0));
    }
  }
  const at::Tensor x = at::randn({150, 40}).t();
  CHECK(at::equal(droppeft::dropout(x, mask), x * factors({40, 150}, mask)));
}

TEST_CASE("the gradient passes where the number passed, and again when differentiated twice") {
  torch::manual_seed(2);
  const KeepMask mask(Stream(4), 0.4);
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    const at::Tensor x = at::randn({5, 33}, dtype).requires_grad_();
    const at::Tensor loss = droppeft::dropout(x, mask).pow(3).sum();
    const at::Tensor first = torch::autograd::grad({loss}, {x}, {}, true, /*create_graph=*/true)[0];
    const at::Tensor f = factors({5, 33}, mask).to(dtype);
    CHECK(at::allclose(first, 3 * x.square() * f.pow(3)));
    CHECK(at::allclose(torch::autograd::grad({first.sum()}, {x})[0], 6 * x * f.pow(3)));
  }
}

TEST_CASE("nothing is kept for backward") {
  const at::Tensor x = at::randn({64, 1024}).requires_grad_();
  const droppeft::MemoryMeter meter;
  const at::Tensor y = droppeft::dropout(x, KeepMask(Stream(1), 0.1));
  CHECK(meter.peak() == y.numel() * 4);
}

TEST_CASE("the threads do not matter, and a mask that keeps all returns the tensor itself") {
  const at::Tensor x = at::randn({300, 384});
  const KeepMask mask(Stream(4), 0.4);
  const int before = at::get_num_threads();
  const at::Tensor expected = droppeft::dropout(x, mask);
  for (const int threads : {1, 2, 5}) {
    at::set_num_threads(threads);
    CHECK(at::equal(droppeft::dropout(x, mask), expected));
  }
  at::set_num_threads(before);
  CHECK(droppeft::dropout(x, KeepMask(Stream(4), 0)).is_same(x));
}

TEST_CASE("the module draws a new mask each time in training, the same ones from the same stream") {
  const at::Tensor x = at::ones({10, 100});
  droppeft::Dropout one(droppeft::DropoutOptions(0.5).stream(Stream(3))), other(0.5);
  droppeft::set_stream(*other, Stream(9));
  const at::Tensor first = one->forward(x), second = one->forward(x);
  CHECK_FALSE(at::equal(first, second));
  CHECK_FALSE(at::equal(first, other->forward(x)));
  one->set_stream(Stream(3));
  auto copy = droppeft::clone(one);
  for (const at::Tensor& expected : {first, second}) {
    CHECK(at::equal(one->forward(x), expected));
    CHECK(at::equal(copy->forward(x), expected));
  }
  auto device = droppeft::clone(one, Stream(8));
  CHECK_FALSE(at::equal(device->forward(x), one->forward(x)));
  one->eval();
  CHECK(one->forward(x).is_same(x));
  CHECK_THROWS_WITH_AS(droppeft::Dropout(1.0), doctest::Contains("[0, 1), got 1"),
                       std::invalid_argument);
}
