#include "droppeft/dropout/droppable.hpp"

#include <functional>
#include <limits>
#include <stdexcept>
#include <thread>
#include <vector>

#include "dropout/blocks.hpp"
#include "droppeft/dropout/layer_dropout.hpp"
#include "droppeft/dropout/layer_stack.hpp"

namespace {

namespace nn = torch::nn;
using droppeft::LayerDropout;
using droppeft::LayerStack;
using droppeft::Plan;
using droppeft::PlanScope;
using Rates = std::vector<double>;
using Throws = std::invalid_argument;

// Five droppable layers: one, a stack of three, one; rates 0.5.
struct ModelImpl : nn::Module {
  ModelImpl() {
    auto blocks = make_blocks(5);
    first = register_module("first", LayerDropout(blocks[0], 0.5));
    stack = register_module(
        "stack", LayerStack<Block>(std::vector{blocks[1], blocks[2], blocks[3]},
                                   droppeft::LayerStackOptions().rates({0.5, 0.5, 0.5})));
    last = register_module("last", LayerDropout(blocks[4], 0.5));
    all = blocks;
  }
  torch::Tensor forward(const torch::Tensor& x) {
    return last->forward(stack->forward(first->forward(x)));
  }

  LayerDropout<Block> first{nullptr}, last{nullptr};
  LayerStack<Block> stack{nullptr};
  std::vector<Block> all;
};
TORCH_MODULE(Model);

Plan plan_of(std::vector<bool> active) {
  Plan plan(active.size());
  for (std::size_t layer = 0; layer < active.size(); ++layer) plan.set(layer, active[layer]);
  return plan;
}

// Which layers a forward pass runs.
std::vector<bool> layers_run(Model& model) {
  std::vector<int> before;
  for (const auto& block : model->all) before.push_back(block->calls);
  model->forward(torch::ones({1, 4}));
  std::vector<bool> ran;
  for (std::size_t i = 0; i < before.size(); ++i) ran.push_back(model->all[i]->calls > before[i]);
  return ran;
}

using Run = std::function<torch::Tensor(const torch::Tensor&)>;

// Keeps nothing of the forward pass and runs it again in backward.
struct Recompute : torch::autograd::Function<Recompute> {
  static torch::Tensor forward(torch::autograd::AutogradContext* context, const torch::Tensor& x,
                               Run* run) {
    context->save_for_backward({x});
    context->saved_data["run"] = reinterpret_cast<std::int64_t>(run);
    return (*run)(x);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    const torch::AutoGradMode grad_mode(true);
    const auto x = context->get_saved_variables()[0].detach().requires_grad_();
    (*reinterpret_cast<Run*>(context->saved_data["run"].toInt()))(x).backward(gradients[0]);
    return {x.grad(), {}};
  }
};

}  // namespace

TEST_CASE("the layers of a model are counted in the order of its modules") {
  Model model;
  CHECK(droppeft::drop_rates(*model) == Rates(5, 0.5));
  droppeft::set_drop_rates(*model, Rates{0.1, 0.2, 0.3, 0.4, 0.5});
  CHECK(model->first->drop_rates()[0] == 0.1);
  CHECK(model->stack->drop_rates()[0] == 0.2);
  CHECK(model->stack->drop_rates()[2] == 0.4);
  CHECK(model->last->drop_rates()[0] == 0.5);
  CHECK(droppeft::drop_rates(*model) == Rates{0.1, 0.2, 0.3, 0.4, 0.5});
  CHECK(droppeft::drop_rates(*model->stack) == Rates{0.2, 0.3, 0.4});
  CHECK(droppeft::drop_rates(*nn::Linear(2, 2)).empty());
}

TEST_CASE("a layer that the model holds twice is one layer of the plan") {
  const LayerDropout shared(Block(4), 0.5);
  nn::Sequential model(shared, nn::Tanh(), shared);
  CHECK(droppeft::drop_rates(*model) == Rates{0.5});
  PlanScope scope(*model, plan_of({false}));
  model->forward(torch::ones({1, 4}));
  CHECK(shared->layer->calls == 0);
}

TEST_CASE("rates that are wrong are refused with the value, and nothing is changed") {
  Model model;
  const auto refused = [&](const Rates& rates, const char* message) {
    CHECK_THROWS_WITH_AS(droppeft::set_drop_rates(*model, rates), message, Throws);
    CHECK(droppeft::drop_rates(*model) == Rates(5, 0.5));
  };
  refused({0.1, 0.1, 0.1, 0.1, std::numeric_limits<double>::quiet_NaN()},
          "set_drop_rates: drop_rates[4] must be in [0, 1), got nan");
  refused({0.1, 0.1, 0.1, 1, 0.1}, "set_drop_rates: drop_rates[3] must be in [0, 1), got 1");
  refused({0.1, 1.5, 0.1, 0.1, 0.1}, "set_drop_rates: drop_rates[1] must be in [0, 1), got 1.5");
  refused({0.1, 0.1, -0.5, 0.1, 0.1}, "set_drop_rates: drop_rates[2] must be in [0, 1), got -0.5");
  refused({0.1, 0.1},
          "set_drop_rates: the model has 5 droppable layers and needs as many rates, got 2");
  CHECK_THROWS_WITH_AS(model->stack->set_drop_rates(Rates{0.1}),
                       "set_drop_rates: 3 layers need as many rates, got 1", Throws);
}

TEST_CASE("a plan in force decides which layers run, for every forward pass") {
  Model model;
  for (const auto& active :
       {std::vector{true, false, true, false, true}, std::vector{false, true, true, true, false},
        std::vector{false, false, false, false, false},
        std::vector{true, true, true, true, true}}) {
    PlanScope scope(*model, plan_of(active));
    for (int pass = 0; pass < 3; ++pass) CHECK(layers_run(model) == active);
  }
}

TEST_CASE("while a plan is in force nothing is drawn, and without one draws go on") {
  Model model;
  droppeft::set_stream(*model, droppeft::Stream(5));
  std::vector<std::vector<bool>> expected;
  for (int pass = 0; pass < 20; ++pass) expected.push_back(layers_run(model));
  droppeft::set_stream(*model, droppeft::Stream(5));
  for (int pass = 0; pass < 20; ++pass) {
    {
      PlanScope scope(*model, Plan(5));
      layers_run(model);
    }
    CHECK(layers_run(model) == expected[static_cast<std::size_t>(pass)]);
  }
}

TEST_CASE("scopes nest, and the innermost that knows a layer decides") {
  Model model;
  const std::vector outer{true, false, false, false, false};
  PlanScope scope(*model, plan_of(outer));
  {
    PlanScope inner(*model->stack, plan_of({true, false, true}));
    CHECK(layers_run(model) == std::vector{true, true, false, true, false});
    {
      PlanScope innermost(*model, plan_of({false, false, true, false, true}));
      CHECK(layers_run(model) == std::vector{false, false, true, false, true});
    }
    CHECK(layers_run(model) == std::vector{true, true, false, true, false});
  }
  CHECK(layers_run(model) == outer);
}

TEST_CASE("an exception ends the scope") {
  Model model;
  const std::vector outer{true, false, false, false, false};
  PlanScope scope(*model, plan_of(outer));
  try {
    PlanScope inner(*model, Plan(5));
    throw std::runtime_error("on purpose");
  } catch (const std::runtime_error&) {
  }
  CHECK(layers_run(model) == outer);
}

TEST_CASE("a plan of another depth is refused, and the one in force stays") {
  Model model;
  const std::vector outer{true, false, false, false, false};
  PlanScope scope(*model, plan_of(outer));
  CHECK_THROWS_WITH_AS(PlanScope(*model, Plan(4)),
                       "PlanScope: the model has 5 droppable layers, but the plan is for 4",
                       Throws);
  CHECK(layers_run(model) == outer);
}

TEST_CASE("a plan for one model leaves another alone") {
  Model model, other;
  droppeft::set_drop_rates(*other, Rates(5, 0.0));
  PlanScope scope(*model, plan_of({false, false, false, false, false}));
  CHECK(layers_run(other) == std::vector<bool>(5, true));
}

TEST_CASE("other threads do not see a plan") {
  Model model;
  droppeft::set_drop_rates(*model, Rates(5, 0.0));
  PlanScope scope(*model, plan_of({false, false, false, false, false}));
  std::vector<bool> theirs;
  std::thread([&] { theirs = layers_run(model); }).join();
  CHECK(theirs == std::vector<bool>(5, true));
  CHECK(layers_run(model) == std::vector<bool>(5, false));
}

TEST_CASE("two threads run one model under plans of their own") {
  const auto blocks = make_blocks(4);
  LayerStack<Block> model(blocks);
  const auto x = torch::randn({2, 4});
  const auto expected = [&](std::size_t a, std::size_t b) {
    torch::NoGradGuard no_grad;
    auto first = blocks[a], second = blocks[b];
    return second->forward(first->forward(x));
  };
  const auto even = expected(0, 2), odd = expected(1, 3);
  const auto work = [&](const Plan& plan, const torch::Tensor& wanted, int& right) {
    torch::NoGradGuard no_grad;
    PlanScope scope(*model, plan);
    for (int pass = 0; pass < 200; ++pass) right += torch::equal(model->forward(x), wanted);
  };
  int right_even = 0, right_odd = 0;
  std::thread other(work, plan_of({false, true, false, true}), odd, std::ref(right_odd));
  work(plan_of({true, false, true, false}), even, right_even);
  other.join();
  CHECK(right_even == 200);
  CHECK(right_odd == 200);
}

TEST_CASE("a recomputation in backward sees the gates of the forward pass") {
  Model model;
  Run run = [&](const torch::Tensor& x) { return model->forward(x); };
  const auto x = torch::randn({3, 4}, torch::requires_grad());
  const auto gradients = [&](bool recompute) {
    model->zero_grad();
    x.mutable_grad().reset();
    PlanScope scope(*model, plan_of({true, false, true, false, true}));
    (recompute ? Recompute::apply(x, &run) : run(x)).square().sum().backward();
    std::vector<torch::Tensor> found{x.grad()};
    for (const auto& parameter : model->parameters()) found.push_back(parameter.grad());
    return found;
  };
  const auto expected = gradients(false), got = gradients(true);
  REQUIRE(got.size() == expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    CHECK(got[i].defined() == expected[i].defined());
    if (got[i].defined()) CHECK(torch::equal(got[i], expected[i]));
  }
}

TEST_CASE("in eval mode every layer runs, plan or not") {
  Model model;
  model->eval();
  PlanScope scope(*model, plan_of({false, false, false, false, false}));
  CHECK(layers_run(model) == std::vector<bool>(5, true));
  model->stack->train();
  CHECK(layers_run(model) == std::vector{true, false, false, false, true});
}
