
#include <cmath>
#include <cstdint>
#include <droppeft/core/module.hpp>
#include <droppeft/cuda/step_graphs.hpp>
#include <droppeft/dropout/dropout_add_norm.hpp>
#include <droppeft/dropout/layer_stack.hpp>
#include <droppeft/dropout/plan_codebook.hpp>
#include <droppeft/optim/adamw.hpp>
#include <droppeft/peft/linear.hpp>
#include <stdexcept>
#include <vector>

#include "support.hpp"

namespace {

using at::Tensor;
using droppeft::Plan;
using droppeft::Stream;

struct BlockImpl : torch::nn::Cloneable<BlockImpl> {
  explicit BlockImpl(double its_rate) : rate(its_rate) { reset(); }
  void reset() override {
    dense = register_module("dense", droppeft::Linear(64, 64));
    dense->add_lora(droppeft::LoraOptions(4).dropout(rate));
    at::NoGradGuard no_grad;
    dense->lora->B.normal_(0, 0.1);
    norm = register_module(
        "norm", droppeft::DropoutAddNorm(droppeft::DropoutAddNormOptions(64).rate(rate)));
    droppeft::freeze(*norm);
    dense->weight.set_requires_grad(false);
    dense->bias.set_requires_grad(false);
  }
  Tensor forward(const Tensor& x) { return norm->forward(at::gelu(dense->forward(x)), x); }

  double rate;
  droppeft::Linear dense{nullptr};
  droppeft::DropoutAddNorm norm{nullptr};
};
TORCH_MODULE(Block);

/// A model, its inputs and its step.
struct Training {
  explicit Training(double rate)
      : stack(std::vector<Block>{Block(rate), Block(rate), Block(rate), Block(rate)}),
        x(at::randn({32, 64}).to(at::kCUDA)),
        labels(at::randint(4, {32}, at::kLong).to(at::kCUDA)),
        graphs(*stack, [this] {
          const Tensor loss = step();
          loss.backward();
          return loss;
        }) {
    stack->to(at::kCUDA);
    droppeft::set_stream(*stack, Stream(7));
  }
  Tensor step() { return at::cross_entropy_loss(stack->forward(x).slice(1, 0, 4), labels); }

  droppeft::LayerStack<Block> stack;
  Tensor x, labels;
  droppeft::StepGraphs graphs;
};

Plan plan_of(const std::vector<bool>& active) {
  Plan plan(active.size());
  for (std::size_t i = 0; i < active.size(); ++i) plan.set(i, active[i]);
  return plan;
}

TEST_CASE("a replayed step has the loss and the gradients of the step itself") {
  at::manual_seed(1);
  Training training(0);
  for (const auto& plan : {plan_of({true, false, true, true}), plan_of({false, true, false, true}),
                           plan_of({true, false, true, true})})
    for (int run = 0; run < 3; ++run) {
      training.x.copy_(at::randn({32, 64}));
      const Tensor loss = training.graphs.run(plan).clone();
      std::vector<Tensor> gradients;
      for (auto& parameter : droppeft::trainable_parameters(*training.stack)) {
        gradients.push_back(parameter.grad().defined() ? parameter.grad().clone() : Tensor());
        parameter.mutable_grad().reset();
      }
      const droppeft::PlanScope scope(*training.stack, plan);
      const Tensor wanted = training.step();
      wanted.backward();
      CHECK(at::allclose(loss, wanted));
      std::size_t i = 0, defined = 0;
      for (const auto& parameter : droppeft::trainable_parameters(*training.stack)) {
        REQUIRE(gradients[i].defined() == parameter.grad().defined());
        if (parameter.grad().defined()) {
          CHECK(at::allclose(gradients[i], parameter.grad(), 1e-4, 1e-6));
          ++defined;
        }
        ++i;
      }
      CHECK(defined == 2 * plan.active_count());
    }
  CHECK(training.graphs.size() == 2);
}

TEST_CASE("every run has fresh masks, and the same streams the same ones") {
  const auto losses = [] {
    at::manual_seed(2);
    Training training(0.3);
    std::vector<double> all;
    for (int run = 0; run < 6; ++run) all.push_back(training.graphs.run(Plan(4)).item<double>());
    return all;
  };
  const auto first = losses();
  for (std::size_t i = 1; i < first.size(); ++i) CHECK(first[i] != first[i - 1]);
  CHECK(first == losses());
}

TEST_CASE("trained by graphs of a codebook, the loss falls") {
  at::manual_seed(3);
  Training training(0.1);
  droppeft::AdamW optimizer(droppeft::trainable_parameters(*training.stack), 1e-2);
  const std::vector<double> rates(4, 0.5);
  const droppeft::PlanCodebook codebook(rates, 6, Stream(1));
  Stream stream(2);
  const auto loss_of_all = [&] {
    at::NoGradGuard no_grad;
    training.stack->eval();
    const double loss = training.step().item<double>();
    training.stack->train();
    return loss;
  };
  const double before = loss_of_all();
  for (int step = 0; step < 60; ++step) {
    training.graphs.run(codebook.draw(stream));
    optimizer.step();
  }
  CHECK(loss_of_all() < 0.9 * before);
  CHECK(training.graphs.size() <= 6);
}

TEST_CASE("what is wrong is said, and nothing is captured") {
  Training training(0);
  CHECK_THROWS_AS(training.graphs.run(Plan(3)), std::invalid_argument);
  CHECK_THROWS_AS(droppeft::StepGraphs(*training.stack, nullptr), std::invalid_argument);
  CHECK(training.graphs.size() == 0);
  int calls = 0;
  droppeft::StepGraphs failing(*training.stack, [&]() -> Tensor {
    const Tensor loss = training.step();
    loss.backward();
    if (++calls == 2) throw std::runtime_error("mine");
    return loss;
  });
  CHECK_THROWS_WITH(failing.run(Plan(4)), "mine");
  CHECK(failing.size() == 0);
  for (const auto& parameter : droppeft::trainable_parameters(*training.stack))
    CHECK_FALSE(parameter.grad().defined());
  CHECK(std::isfinite(failing.run(Plan(4)).item<double>()));
}

}  // namespace
