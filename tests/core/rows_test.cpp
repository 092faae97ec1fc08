#include "droppeft/core/rows.hpp"

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "support.hpp"

namespace {

using droppeft::gather_rows;
using droppeft::put_rows_;
using droppeft::scatter_add_rows_;
using droppeft::scatter_rows;
using torch::Tensor;
using Throws = std::invalid_argument;

const std::vector<torch::Dtype> dtypes{torch::kFloat, torch::kBFloat16, torch::kHalf,
                                       torch::kDouble, torch::kLong};

Tensor numbers(torch::IntArrayRef shape, torch::Dtype dtype = torch::kFloat) {
  return (torch::randn(shape) * 100).to(dtype);
}

Tensor rows_of(const std::vector<std::int64_t>& rows) { return torch::tensor(rows, torch::kLong); }

/// x of many shapes and layouts, and rows of it.
template <class Function>
void for_cases(const Function& function) {
  torch::manual_seed(1);
  for (const auto dtype : dtypes) {
    CAPTURE(dtype);
    for (const auto& rows :
         {std::vector<std::int64_t>{}, {0}, {5}, {1, 2, 5}, {0, 1, 2, 3, 4, 5}}) {
      for (const auto& shape :
           std::vector<std::vector<std::int64_t>>{{6}, {6, 7}, {6, 2, 3}, {6, 0}})
        function(numbers(shape, dtype), rows_of(rows));
      function(numbers({7, 6}, dtype).t(), rows_of(rows));
      function(numbers({6, 9}, dtype).slice(1, 0, 9, 2), rows_of(rows));
      function(numbers({1, 5}, dtype).expand({6, 5}).clone().slice(0, 0, 6), rows_of(rows));
    }
    function(numbers({0, 4}, dtype), rows_of({}));
    // Enough for several threads, and rows that do not lie in a row themselves.
    function(numbers({600, 331}, dtype), torch::arange(0, 600).slice(0, 1, 600, 2));
  }
}

/// The rows of y that belong to x's.
Tensor some_for(const Tensor& x, const Tensor& rows) {
  auto shape = x.sizes().vec();
  shape[0] = rows.size(0);
  return numbers(shape, x.scalar_type());
}

bool near(const Tensor& a, const Tensor& b, double tolerance = 1e-12) {
  return a.sizes() == b.sizes() && torch::allclose(a, b, tolerance, tolerance);
}

struct Threads {
  explicit Threads(int count) { at::set_num_threads(count); }
  ~Threads() { at::set_num_threads(before); }
  int before = at::get_num_threads();
};

}  // namespace

TEST_CASE("rows are those of LibTorch's indexing, for every dtype and layout") {
  for_cases([](const Tensor& x, const Tensor& rows) {
    CAPTURE(x.sizes());
    CAPTURE(rows.numel());
    const Tensor before = x.clone(), y = some_for(x, rows);
    CHECK(torch::equal(gather_rows(x, rows), x.index_select(0, rows)));
    CHECK(torch::equal(scatter_rows(y, rows, x.size(0)),
                       torch::zeros(x.sizes(), x.options()).index_copy(0, rows, y)));
    CHECK(torch::equal(x, before));

    const Tensor expected_put = x.index_copy(0, rows, y),
                 put = x.clone(torch::MemoryFormat::Preserve);
    CHECK(put_rows_(put, rows, y).is_same(put));
    CHECK(torch::equal(put, expected_put));

    const double scale = x.scalar_type() == torch::kLong ? 2 : 0.5;
    const Tensor sum = x.clone(torch::MemoryFormat::Preserve);
    CHECK(scatter_add_rows_(sum, rows, y, scale).is_same(sum));
    // Halves and twos are exact, so that all round once.
    CHECK(torch::equal(sum, x.index_add(0, rows, y, scale)));
    CHECK(torch::equal(scatter_add_rows_(x.clone(), rows, y), x.index_add(0, rows, y)));
  });
}

TEST_CASE("views in a larger tensor are changed within it") {
  const Tensor whole = torch::zeros({4, 6});
  put_rows_(whole.narrow(0, 1, 2), rows_of({1}), torch::ones({1, 6}));
  scatter_add_rows_(whole.narrow(1, 2, 3), rows_of({0, 2}), torch::ones({2, 3}), 3);
  const Tensor expected = torch::zeros({4, 6});
  expected[2] += 1;
  for (const int row : {0, 2}) expected[row].narrow(0, 2, 3) += 3;
  CHECK(torch::equal(whole, expected));
}

TEST_CASE("what is put or added may be rows of x itself") {
  const Tensor x = torch::arange(12.0).view({4, 3}), before = x.clone();
  put_rows_(x, rows_of({1, 2, 3}), x.narrow(0, 0, 3));
  CHECK(torch::equal(x, torch::cat({before.narrow(0, 0, 1), before.narrow(0, 0, 3)})));
  x.copy_(before);
  scatter_add_rows_(x, rows_of({1, 2, 3}), x.narrow(0, 0, 3));
  CHECK(torch::equal(x.narrow(0, 1, 3), before.narrow(0, 1, 3) + before.narrow(0, 0, 3)));
}

TEST_CASE("the number of threads changes no bit") {
  torch::manual_seed(2);
  const Tensor x = torch::randn({500, 331}), y = torch::randn({250, 331});
  const Tensor rows = torch::arange(0, 500, 2);
  std::vector<Tensor> sums;
  for (const int count : {1, 2, 5}) {
    const Threads threads(count);
    CHECK(torch::equal(gather_rows(x, rows), x.index_select(0, rows)));
    CHECK(torch::equal(gather_rows(scatter_rows(y, rows, 500), rows), y));
    sums.push_back(scatter_add_rows_(x.clone(), rows, y, 0.3));
  }
  CHECK(torch::equal(sums[0], sums[1]));
  CHECK(torch::equal(sums[0], sums[2]));
}

TEST_CASE("gradients, also of gradients, are those of LibTorch's indexing") {
  const Tensor rows = rows_of({0, 3, 4});
  using Function = std::function<Tensor(const Tensor&, const Tensor&)>;
  struct Pair {
    const char* name;
    Function ours, theirs;
  };
  const std::vector<Pair> pairs{
      {"gather", [&](const Tensor& x, const Tensor& y) { return gather_rows(x, rows) * y; },
       [&](const Tensor& x, const Tensor& y) { return x.index_select(0, rows) * y; }},
      {"scatter", [&](const Tensor& x, const Tensor& y) { return scatter_rows(y, rows, 5) * x; },
       [&](const Tensor& x, const Tensor& y) {
         return torch::zeros_like(x).index_copy(0, rows, y) * x;
       }},
      {"add",
       [&](const Tensor& x, const Tensor& y) { return scatter_add_rows_(x.sin(), rows, y, 0.7); },
       [&](const Tensor& x, const Tensor& y) { return x.sin().index_add(0, rows, y, 0.7); }},
      {"add without scale",
       [&](const Tensor& x, const Tensor& y) { return scatter_add_rows_(x.sin(), rows, y); },
       [&](const Tensor& x, const Tensor& y) { return x.sin().index_add(0, rows, y); }},
      {"put", [&](const Tensor& x, const Tensor& y) { return put_rows_(x.sin(), rows, y); },
       [&](const Tensor& x, const Tensor& y) { return x.sin().index_copy(0, rows, y); }}};
  for (const auto& [dtype, tolerance] : {std::pair(torch::kDouble, 1e-12), {torch::kFloat, 1e-5}})
    for (const auto& pair : pairs)
      for (const bool strided : {false, true}) {
        CAPTURE(pair.name);
        std::vector<std::vector<Tensor>> results;
        for (const auto& function : {pair.ours, pair.theirs}) {
          torch::manual_seed(3);
          const Tensor x = torch::randn({5, 7}).to(dtype).requires_grad_();
          const Tensor y = torch::randn({3, 7}).to(dtype).requires_grad_();
          const Tensor out = function(x, y);
          // A gradient that does not lie in a row, in half of the cases.
          const Tensor seed = strided ? torch::randn({7, out.size(0)}).to(dtype).t()
                                      : torch::randn(out.sizes()).to(dtype);
          const Tensor loss = (out.sin() * seed).sum();
          const auto first = torch::autograd::grad({loss}, {x, y}, {}, true, true);
          const Tensor of_first = first[0].square().sum() + first[1].square().sum();
          const auto second = torch::autograd::grad({of_first}, {x, y});
          results.push_back({out, first[0], first[1], second[0], second[1]});
        }
        for (std::size_t i = 0; i < results[0].size(); ++i) {
          CAPTURE(i);
          CHECK(near(results[0][i], results[1][i], tolerance));
        }
      }
}

TEST_CASE("only what needs a gradient gets one") {
  const Tensor rows = rows_of({1});
  const Tensor x = torch::ones({3, 2}), y = torch::ones({1, 2}, torch::requires_grad());
  put_rows_(x, rows, y).sum().backward();
  CHECK(torch::equal(y.grad(), torch::ones({1, 2})));
  const Tensor z = torch::ones({3, 2}, torch::requires_grad());
  put_rows_(z * 1, rows, y.detach()).sum().backward();
  CHECK(torch::equal(z.grad(), torch::tensor({{1.0, 1.0}, {0.0, 0.0}, {1.0, 1.0}}, torch::kFloat)));
  torch::NoGradGuard no_grad;
  CHECK_FALSE(gather_rows(z, rows).requires_grad());
  CHECK_FALSE(scatter_add_rows_(z * 1, rows, y).requires_grad());
  scatter_add_rows_(z, rows, y);  // a leaf may be changed then
}

TEST_CASE("nothing but the rows' numbers is kept for backward") {
  const Tensor leaf = torch::randn({4, 3}, torch::requires_grad());
  const Tensor x = leaf * 2;
  const Tensor y = gather_rows(x, rows_of({1, 2}));
  x.mul_(3);
  scatter_add_rows_(x, rows_of({0, 1}), y, 0.5);
  x.mul_(2);
  y.mul_(5);
  x.sum().backward();
  const Tensor expected = torch::full({4, 3}, 12.0);
  expected.narrow(0, 1, 2) += 2;  // 2 * 0.5 * 2 by way of y
  CHECK(near(leaf.grad(), expected, 1e-6));
}

TEST_CASE("a block that is run for some samples trains as if it were masked for the others") {
  torch::manual_seed(4);
  torch::nn::Linear block(5, 5), same(5, 5);
  {
    torch::NoGradGuard no_grad;
    same->weight.copy_(block->weight);
    same->bias.copy_(block->bias);
  }
  const Tensor rows = rows_of({0, 2}), input = torch::randn({4, 3, 5});
  const Tensor mask = torch::tensor({1.0, 0.0, 1.0, 0.0}, torch::kFloat).view({4, 1, 1});
  const Tensor x = input.clone().requires_grad_(), z = input.clone().requires_grad_();

  Tensor hidden = x * 1;
  scatter_add_rows_(hidden, rows, block->forward(gather_rows(hidden, rows)), 2);
  put_rows_(hidden, rows, block->forward(gather_rows(hidden, rows)).tanh());
  hidden.square().sum().backward();

  Tensor expected = z + 2 * mask * same->forward(z);
  expected = mask * same->forward(expected).tanh() + (1 - mask) * expected;
  expected.square().sum().backward();
  CHECK(near(hidden, expected, 1e-5));
  CHECK(near(x.grad(), z.grad(), 1e-5));
  CHECK(near(block->weight.grad(), same->weight.grad(), 1e-4));
  CHECK(near(block->bias.grad(), same->bias.grad(), 1e-4));
}

TEST_CASE("autograd notices that x was changed") {
  const Tensor leaf = torch::ones({3, 2}, torch::requires_grad());
  for (const bool adds : {true, false}) {
    const Tensor x = leaf * 1, loss = x.square().sum();
    if (adds)
      scatter_add_rows_(x, rows_of({1}), torch::ones({1, 2}));
    else
      put_rows_(x, rows_of({1}), torch::ones({1, 2}));
    CHECK_THROWS_WITH_AS(loss.backward(), doctest::Contains("modified by an inplace operation"),
                         c10::Error);
  }
}

TEST_CASE("wrong rows are refused with range and value") {
  const Tensor x = torch::zeros({4, 2}), y = torch::ones({2, 2});
  const auto refused = [&](const Tensor& rows, const std::string& text) {
    const auto message = [&](const char* function) {
      return "droppeft::" + std::string(function) + ": " + text;
    };
    CHECK_THROWS_WITH_AS(gather_rows(x, rows), message("gather_rows").c_str(), Throws);
    CHECK_THROWS_WITH_AS(scatter_rows(y, rows, 4), message("scatter_rows").c_str(), Throws);
    CHECK_THROWS_WITH_AS(scatter_add_rows_(x, rows, y), message("scatter_add_rows_").c_str(),
                         Throws);
    CHECK_THROWS_WITH_AS(put_rows_(x, rows, y), message("put_rows_").c_str(), Throws);
    CHECK(torch::equal(x, torch::zeros({4, 2})));
  };
  refused(rows_of({1, 4}), "rows must be in [0, 4), got 4");
  refused(rows_of({-1, 2}), "rows must be in [0, 4), got -1");
  refused(rows_of({2, 2}), "rows must ascend without repetition, got 2 after 2");
  refused(rows_of({3, 0}), "rows must ascend without repetition, got 0 after 3");
  refused(torch::tensor({1.0, 2.0}, torch::kFloat), "rows must be an int64 vector, got Float [2]");
  refused(rows_of({1, 2}).to(torch::kInt), "rows must be an int64 vector, got Int [2]");
  refused(rows_of({1, 2}).view({1, 2}), "rows must be an int64 vector, got Long [1, 2]");
}

TEST_CASE("tensors that do not match are refused, and leaves that would be changed") {
  const Tensor x = torch::zeros({4, 2}), rows = rows_of({1, 2});
  const auto refused = [&](const Tensor& y, const std::string& got) {
    const auto message = [&](const char* function) {
      return "droppeft::" + std::string(function) +
             ": y must have a row for each of the 2 of x, and x's dtype and device, got " + got +
             " for x float [4, 2] on cpu";
    };
    CHECK_THROWS_WITH_AS(scatter_add_rows_(x, rows, y), message("scatter_add_rows_").c_str(),
                         Throws);
    CHECK_THROWS_WITH_AS(put_rows_(x, rows, y), message("put_rows_").c_str(), Throws);
  };
  refused(torch::ones({3, 2}), "float [3, 2] on cpu");
  refused(torch::ones({2, 3}), "float [2, 3] on cpu");
  refused(torch::ones({2}), "float [2] on cpu");
  refused(torch::ones({2, 2}, torch::kDouble), "double [2, 2] on cpu");
  refused(torch::ones({2, 2}, torch::kMeta), "float [2, 2] on meta");
  CHECK_THROWS_WITH_AS(gather_rows(torch::zeros({4, 2}, torch::kMeta), rows),
                       "droppeft::gather_rows: rows must be on meta as x is, got cpu", Throws);
  CHECK_THROWS_WITH_AS(scatter_rows(torch::ones({3, 2}), rows, 4),
                       "droppeft::scatter_rows: y must have a row for each of the 2, got [3, 2]",
                       Throws);
  CHECK_THROWS_AS(gather_rows(torch::zeros({}), rows), Throws);
  CHECK_THROWS_AS(put_rows_(torch::zeros({}), rows, x), Throws);
  CHECK_THROWS_AS(scatter_add_rows_(torch::zeros({}), rows, x), Throws);

  const Tensor leaf = torch::zeros({4, 2}, torch::requires_grad()), y = torch::ones({2, 2});
  CHECK_THROWS_WITH_AS(put_rows_(leaf, rows, y),
                       "droppeft::put_rows_: x must not be a leaf that requires a gradient, for it "
                       "is changed: pass a copy",
                       Throws);
  CHECK_THROWS_AS(scatter_add_rows_(leaf, rows, y), Throws);
  CHECK(torch::equal(leaf, torch::zeros({4, 2})));
}
