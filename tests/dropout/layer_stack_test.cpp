#include "droppeft/dropout/layer_stack.hpp"

#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "dropout/blocks.hpp"
#include "droppeft/memory/meter.hpp"

namespace {

namespace nn = torch::nn;
using droppeft::DropScaling;
using droppeft::LayerStack;
using droppeft::LayerStackOptions;
using droppeft::Plan;
using droppeft::PlanScope;
using droppeft::Stream;
using Rates = std::vector<double>;
using Throws = std::invalid_argument;

Plan plan_of(const std::vector<bool>& active) {
  Plan plan(active.size());
  for (std::size_t layer = 0; layer < active.size(); ++layer) plan.set(layer, active[layer]);
  return plan;
}

torch::Tensor input(std::int64_t rows = 3, std::int64_t width = 4) {
  torch::manual_seed(12);
  return torch::randn({rows, width}, torch::requires_grad());
}

// What a loop over the blocks gives: output, gradient of the input and of all parameters.
std::vector<torch::Tensor> by_hand(std::vector<Block> blocks, const std::vector<bool>& active) {
  const auto x = input();
  torch::Tensor y = x;
  for (std::size_t layer = 0; layer < blocks.size(); ++layer)
    if (active[layer]) y = blocks[layer]->forward(y);
  y.square().sum().backward();
  std::vector<torch::Tensor> found{y.detach(), x.grad()};
  for (const auto& block : blocks)
    for (const auto& parameter : block->parameters()) found.push_back(parameter.grad());
  return found;
}

std::vector<torch::Tensor> by_stack(LayerStack<Block>& stack) {
  const auto x = input();
  const auto y = stack->forward(x);
  y.square().sum().backward();
  std::vector<torch::Tensor> found{y.detach(), x.grad()};
  for (const auto& parameter : stack->parameters()) found.push_back(parameter.grad());
  return found;
}

bool same(const std::vector<torch::Tensor>& a, const std::vector<torch::Tensor>& b) {
  for (std::size_t i = 0; i < a.size() && i < b.size(); ++i) {
    if (a[i].defined() != b[i].defined()) return false;
    if (a[i].defined() && !torch::equal(a[i], b[i])) return false;
  }
  return a.size() == b.size();
}

// x + factor mask.
struct MaskedImpl : nn::Cloneable<MaskedImpl> {
  void reset() override {}
  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& mask, double factor) {
    return x + factor * mask;
  }
};
TORCH_MODULE(Masked);

struct NarrowImpl : nn::Cloneable<NarrowImpl> {
  void reset() override {}
  torch::Tensor forward(torch::Tensor x) { return x.narrow(0, 0, 1); }
};
TORCH_MODULE(Narrow);

}  // namespace

TEST_CASE("every plan gives the model built without the dropped layers, bit for bit") {
  for (unsigned bits = 1; bits < 16; ++bits) {
    const std::vector<bool> active{(bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0,
                                   (bits & 8) != 0};
    CAPTURE(bits);
    LayerStack<Block> stack(make_blocks(4), LayerStackOptions().rates(Rates(4, 0.5)));
    PlanScope scope(*stack, plan_of(active));
    CHECK(same(by_stack(stack), by_hand(make_blocks(4), active)));
  }
}

TEST_CASE("rates of zero, the default, run every layer bit for bit, whatever the scaling") {
  const auto expected = by_hand(make_blocks(4), {true, true, true, true});
  for (const auto scaling :
       {DropScaling::none, DropScaling::inverse_keep_in_training, DropScaling::keep_at_inference})
    for (const bool training : {true, false}) {
      LayerStack<Block> stack(make_blocks(4), LayerStackOptions().scaling(scaling));
      stack->train(training);
      CHECK(same(by_stack(stack), expected));
    }
}

TEST_CASE("without an active layer the input comes back, the very tensor") {
  LayerStack<Block> stack(make_blocks(3));
  PlanScope scope(*stack, plan_of({false, false, false}));
  const auto x = input();
  const OpCounter ops;
  const droppeft::MemoryMeter meter;
  CHECK(stack->forward(x).is_same(x));
  CHECK(ops.count() == 0);
  CHECK(meter.peak() == 0);
  CHECK(LayerStack<Block>(std::vector<Block>{})->forward(x).is_same(x));
}

TEST_CASE("k active layers cost k times the operators, nodes and bytes of one") {
  struct Cost {
    std::size_t ops, nodes;
    std::int64_t bytes;
  };
  const auto cost = [](const std::vector<bool>& active) {
    LayerStack<Block> stack(make_blocks(4, 16));
    const auto x = input(32, 16);
    PlanScope scope(*stack, plan_of(active));
    const OpCounter ops;
    const droppeft::MemoryMeter meter;
    const auto y = stack->forward(x);
    // Behind y there is x's own node too.
    return Cost{ops.count(), graph_nodes(y) - 1, meter.current()};
  };
  const Cost one = cost({false, true, false, false});
  CHECK(one.bytes > 32 * 16 * 4);
  for (const auto& active :
       {std::vector{false, false, false, true}, std::vector{true, false, true, false},
        std::vector{true, true, false, true}, std::vector{true, true, true, true}}) {
    const auto k = static_cast<std::size_t>(std::count(active.begin(), active.end(), true));
    const Cost got = cost(active);
    CHECK(got.ops == k * one.ops);
    CHECK(got.nodes == k * one.nodes);
    CHECK(got.bytes == static_cast<std::int64_t>(k) * one.bytes);
  }
}

TEST_CASE("a stack alone drops each layer at its own rate, independently") {
  const int n = 10000;
  const Rates rates{0.1, 0.5, 0.9};
  const auto blocks = make_blocks(3);
  LayerStack<Block> stack(blocks, LayerStackOptions().rates(rates).stream(Stream(7)));
  const torch::NoGradGuard no_grad;
  const auto x = torch::zeros({1, 4});
  std::vector<int> active(3, 0);
  std::vector<std::vector<int>> both(3, std::vector<int>(3, 0));
  for (int i = 0; i < n; ++i) {
    std::vector<int> before;
    for (const auto& block : blocks) before.push_back(block->calls);
    stack->forward(x);
    for (std::size_t a = 0; a < 3; ++a) {
      active[a] += blocks[a]->calls - before[a];
      for (std::size_t b = 0; b < a; ++b)
        both[a][b] += (blocks[a]->calls - before[a]) * (blocks[b]->calls - before[b]);
    }
  }
  const auto check_share = [&](int count, double expected) {
    const double sigmas = (count - n * expected) / std::sqrt(n * expected * (1 - expected));
    CHECK_MESSAGE(std::abs(sigmas) < 5, "off by ", sigmas, " sigmas");
  };
  for (std::size_t a = 0; a < 3; ++a) {
    check_share(active[a], 1 - rates[a]);
    for (std::size_t b = 0; b < a; ++b) check_share(both[a][b], (1 - rates[a]) * (1 - rates[b]));
  }
}

TEST_CASE("each layer is scaled by its own rate") {
  const auto x = torch::zeros({2}), mask = torch::ones({2});
  const auto options = LayerStackOptions().rates({0.5, 0.75, 0.0});
  LayerStack<Masked> stack(
      std::vector{Masked(), Masked(), Masked()},
      LayerStackOptions(options).scaling(DropScaling::inverse_keep_in_training));
  {
    PlanScope scope(*stack, Plan(3));
    CHECK(torch::equal(stack->forward(x, mask, 1), torch::full({2}, 2.0f + 4 + 1)));
  }
  stack->eval();
  CHECK(torch::equal(stack->forward(x, mask, 1), torch::full({2}, 3.0f)));

  LayerStack<Masked> other(std::vector{Masked(), Masked(), Masked()},
                           LayerStackOptions(options).scaling(DropScaling::keep_at_inference));
  other->eval();
  CHECK(torch::equal(other->forward(x, mask, 1), torch::full({2}, 0.5f + 0.25f + 1)));
}

TEST_CASE("masks and other arguments reach every active layer") {
  LayerStack<Masked> stack(std::vector{Masked(), Masked(), Masked()});
  PlanScope scope(*stack, plan_of({true, false, true}));
  const auto mask = torch::tensor({1.0f, -2.0f});
  CHECK(torch::equal(stack->forward(torch::zeros({2}), mask, 3), 6 * mask));
  nn::Sequential model(stack);
  CHECK(torch::equal(model->forward(torch::zeros({2}), mask, 3.0), 6 * mask));
}

TEST_CASE("in eval mode every layer runs and nothing is drawn") {
  const auto options = LayerStackOptions().rates(Rates(4, 0.5)).stream(Stream(9));
  LayerStack<Block> stack(make_blocks(4), options), reference(make_blocks(4), options);
  const auto full = by_hand(make_blocks(4), {true, true, true, true});
  for (int i = 0; i < 10; ++i) {
    stack->eval();
    CHECK(torch::equal(stack->forward(input()).detach(), full[0]));
    stack->train();
    CHECK(torch::equal(stack->forward(input()), reference->forward(input())));
  }
}

TEST_CASE("layers are children \"0\", \"1\", ... and train and load like any module") {
  const auto blocks = make_blocks(2);
  LayerStack<Block> stack(blocks);
  CHECK(stack->named_parameters().contains("1.up.weight"));
  CHECK(stack->layers[1].ptr() == blocks[1].ptr());
  CHECK(stack->parameters().size() == 12);
  stack->to(torch::kDouble);
  CHECK((blocks[0]->up->weight.scalar_type() == torch::kDouble));
  std::ostringstream text;
  text << *stack;
  CHECK(text.str().starts_with("droppeft::LayerStack(layers=2)"));
}

TEST_CASE("wrong rates are refused at construction") {
  const auto refused = [](const Rates& rates, const char* message) {
    CHECK_THROWS_WITH_AS(LayerStack<Block>(make_blocks(2), LayerStackOptions().rates(rates)),
                         message, Throws);
  };
  refused({0.5, std::numeric_limits<double>::quiet_NaN()},
          "LayerStack: drop_rates[1] must be in [0, 1), got nan");
  refused({1.0, 0.5}, "LayerStack: drop_rates[0] must be in [0, 1), got 1");
  refused({0.5, 1.5}, "LayerStack: drop_rates[1] must be in [0, 1), got 1.5");
  refused({-0.1, 0.5}, "LayerStack: drop_rates[0] must be in [0, 1), got -0.1");
  refused({0.5}, "LayerStack: 2 layers need as many rates, got 1");
}

TEST_CASE("a layer that changes the shape is refused") {
  LayerStack<Narrow> stack(std::vector{Narrow()});
  CHECK_THROWS_AS(stack->forward(torch::zeros({3, 4})), Throws);
}
