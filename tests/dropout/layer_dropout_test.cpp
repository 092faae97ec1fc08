#include "droppeft/dropout/layer_dropout.hpp"

#include <ATen/autocast_mode.h>

#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <utility>
#include <vector>

#include "dropout/blocks.hpp"
#include "droppeft/memory/meter.hpp"

namespace {

namespace nn = torch::nn;
using droppeft::DropScaling;
using droppeft::LayerDropout;
using droppeft::LayerDropoutOptions;
using droppeft::Plan;
using droppeft::PlanScope;
using droppeft::Stream;
using Throws = std::invalid_argument;

constexpr DropScaling scalings[] = {DropScaling::none, DropScaling::inverse_keep_in_training,
                                    DropScaling::keep_at_inference};

Plan dropped(std::size_t layers, std::initializer_list<std::size_t> which) {
  Plan plan(layers);
  for (const auto layer : which) plan.set(layer, false);
  return plan;
}

// Output and the gradients of its square, the input's first.
std::vector<torch::Tensor> values_and_gradients(nn::Module& module, const torch::Tensor& x,
                                                const torch::Tensor& y) {
  y.square().sum().backward();
  std::vector<torch::Tensor> found{y.detach(), x.grad()};
  for (const auto& parameter : module.parameters()) found.push_back(parameter.grad());
  return found;
}

bool equal(const std::vector<torch::Tensor>& a, const std::vector<torch::Tensor>& b) {
  for (std::size_t i = 0; i < a.size() && i < b.size(); ++i)
    if (!a[i].defined() || !b[i].defined() || !torch::equal(a[i], b[i])) return false;
  return a.size() == b.size();
}

torch::Tensor input() {
  torch::manual_seed(11);
  return torch::randn({3, 4}, torch::requires_grad());
}

// What an optimiser remembers of a parameter.
std::vector<torch::Tensor> moments(const torch::optim::SGDParamState& state) {
  return {state.momentum_buffer()};
}
std::vector<torch::Tensor> moments(const torch::optim::AdamParamState& state) {
  return {state.exp_avg(), state.exp_avg_sq(), torch::tensor(state.step())};
}
std::vector<torch::Tensor> moments(const torch::optim::AdamWParamState& state) {
  return {state.exp_avg(), state.exp_avg_sq(), torch::tensor(state.step())};
}
std::vector<torch::Tensor> moments(const torch::optim::RMSpropParamState& state) {
  return {state.square_avg(), state.momentum_buffer(), torch::tensor(state.step())};
}
std::vector<torch::Tensor> moments(const torch::optim::AdagradParamState& state) {
  return {state.sum(), torch::tensor(state.step())};
}

struct PairOfLayers {
  PairOfLayers() {
    const auto blocks = make_blocks(2);
    for (const auto& block : blocks) model->push_back(LayerDropout(block, 0.5));
  }

  template <class Optimizer>
  void step(Optimizer& optimizer, const Plan& plan, bool set_to_none = true) {
    PlanScope scope(*model, plan);
    optimizer.zero_grad(set_to_none);
    (model->forward(torch::ones({3, 4})) - 3).square().sum().backward();
    optimizer.step();
  }

  // Parameters of one layer and what `State` keeps of them.
  template <class State, class Optimizer>
  std::vector<torch::Tensor> snapshot(Optimizer& optimizer, std::size_t layer) {
    std::vector<torch::Tensor> found;
    for (const auto& parameter : model[layer]->parameters()) {
      found.push_back(parameter.detach().clone());
      const auto& state = *optimizer.state().at(parameter.unsafeGetTensorImpl());
      for (const auto& moment : moments(static_cast<const State&>(state)))
        found.push_back(moment.clone());
    }
    return found;
  }

  nn::Sequential model;
};

// That a dropped layer's parameters and moments do not move, unless zero_grad(false) defeats it.
template <class State, class Optimizer, class Options>
void check_optimizer(const Options& options) {
  PairOfLayers pair;
  Optimizer optimizer(pair.model->parameters(), options);
  for (int i = 0; i < 3; ++i) pair.step(optimizer, Plan(2));
  const auto kept = pair.snapshot<State>(optimizer, 0), gone = pair.snapshot<State>(optimizer, 1);
  for (int i = 0; i < 3; ++i) pair.step(optimizer, dropped(2, {1}));
  CHECK_FALSE(equal(pair.snapshot<State>(optimizer, 0), kept));
  CHECK(equal(pair.snapshot<State>(optimizer, 1), gone));

  for (int i = 0; i < 2; ++i) pair.step(optimizer, Plan(2), false);
  const auto before = pair.snapshot<State>(optimizer, 1);
  pair.step(optimizer, dropped(2, {1}), false);
  CHECK_FALSE(equal(pair.snapshot<State>(optimizer, 1), before));
}

struct NarrowImpl : nn::Cloneable<NarrowImpl> {
  void reset() override {}
  torch::Tensor forward(const torch::Tensor& x) { return x.narrow(0, 0, 1); }
};
TORCH_MODULE(Narrow);

// Arguments of every kind behind the first.
struct TalkativeImpl : nn::Cloneable<TalkativeImpl> {
  void reset() override {}
  torch::Tensor forward(torch::Tensor x, const torch::Tensor& bias, double factor, int& calls,
                        std::unique_ptr<double> owned) {
    ++calls;
    return x * factor + bias + *owned;
  }
};
TORCH_MODULE(Talkative);

// f(x) = x + 1.
struct IncrementImpl : nn::Cloneable<IncrementImpl> {
  void reset() override {}
  torch::Tensor forward(const torch::Tensor& x) { return x + 1; }
};
TORCH_MODULE(Increment);

}  // namespace

TEST_CASE("rate 0 is the bare layer bit for bit, gradients included, whatever the scaling") {
  auto bare = make_blocks(1)[0];
  const auto x = input();
  const auto expected = values_and_gradients(*bare, x, bare->forward(x));
  for (const auto scaling : scalings)
    for (const bool training : {true, false}) {
      LayerDropout layer(make_blocks(1)[0], LayerDropoutOptions(0).scaling(scaling));
      layer->train(training);
      const auto same = input();
      CHECK(equal(values_and_gradients(*layer, same, layer->forward(same)), expected));
    }
}

TEST_CASE("with all gates open it is the undropped model bit for bit") {
  auto blocks = make_blocks(3);
  nn::Sequential bare(blocks[0], blocks[1], blocks[2]);
  const auto x = input();
  const auto expected = values_and_gradients(*bare, x, bare->forward(x));
  for (const auto scaling : {DropScaling::none, DropScaling::keep_at_inference}) {
    nn::Sequential model;
    for (const auto& block : make_blocks(3))
      model->push_back(LayerDropout(block, LayerDropoutOptions(0.5).scaling(scaling)));
    const auto same = input();
    PlanScope scope(*model, Plan(3));
    CHECK(equal(values_and_gradients(*model, same, model->forward(same)), expected));
  }
}

TEST_CASE("a model without one layer is that model built without it, bit for bit") {
  for (std::size_t gone = 0; gone < 3; ++gone) {
    auto blocks = make_blocks(3);
    nn::Sequential bare, model;
    for (std::size_t i = 0; i < 3; ++i)
      if (i != gone) bare->push_back(blocks[i]);
    const auto x = input(), same = input();
    const auto expected = values_and_gradients(*bare, x, bare->forward(x));
    blocks = make_blocks(3);
    for (const auto& block : blocks) model->push_back(LayerDropout(block, 0.5));
    PlanScope scope(*model, dropped(3, {gone}));
    auto got = values_and_gradients(*model, same, model->forward(same));
    const auto first = got.begin() + 2 + static_cast<std::ptrdiff_t>(6 * gone);
    for (auto gradient = first; gradient != first + 6; ++gradient) CHECK_FALSE(gradient->defined());
    got.erase(first, first + 6);
    CHECK(equal(got, expected));
  }
}

TEST_CASE("dropped means absent: the very tensor, no operator, no node, no byte") {
  for (const auto scaling : scalings) {
    LayerDropout layer(make_blocks(1)[0], LayerDropoutOptions(0.5).scaling(scaling));
    const auto x = input();
    PlanScope scope(*layer, dropped(1, {0}));
    const OpCounter ops;
    const droppeft::MemoryMeter meter;
    const auto y = layer->forward(x);
    CHECK(y.is_same(x));
    CHECK(y.grad_fn() == nullptr);
    CHECK(ops.count() == 0);
    CHECK(meter.peak() == 0);
    CHECK(layer->layer->calls == 0);
  }
}

TEST_CASE("the graph has no node of a dropped layer, and backward runs none") {
  const auto nodes_and_ops = [](std::size_t layers, const Plan& plan) {
    nn::Sequential model;
    for (const auto& block : make_blocks(layers)) model->push_back(LayerDropout(block, 0.5));
    PlanScope scope(*model, plan);
    const OpCounter ops;
    const auto y = model->forward(input());
    y.backward(torch::ones_like(y));
    return std::pair(graph_nodes(y), ops.count());
  };
  const auto full = nodes_and_ops(1, Plan(1));
  CHECK(full.first > 6);
  CHECK(nodes_and_ops(3, dropped(3, {0, 2})) == full);
  CHECK(nodes_and_ops(3, dropped(3, {0, 1})) == full);
  CHECK(nodes_and_ops(4, Plan(4)) == nodes_and_ops(6, dropped(6, {1, 4})));
}

TEST_CASE(
    "a dropped layer's parameters and moments stay, as long as gradients are cleared to none") {
  using namespace torch::optim;
  check_optimizer<SGDParamState, SGD>(SGDOptions(0.01).momentum(0.9).weight_decay(0.1));
  check_optimizer<AdamParamState, Adam>(AdamOptions(0.01).weight_decay(0.1));
  check_optimizer<AdamWParamState, AdamW>(AdamWOptions(0.01).weight_decay(0.1));
  check_optimizer<RMSpropParamState, RMSprop>(RMSpropOptions(0.01).momentum(0.9).weight_decay(0.1));
  check_optimizer<AdagradParamState, Adagrad>(AdagradOptions(0.01).weight_decay(0.1));
}

TEST_CASE("outputs are scaled as the table of DropScaling says") {
  const double p = 0.25;
  const auto x = input().detach();
  auto bare = make_blocks(1)[0];
  const auto f = bare->forward(x).detach();
  const auto output = [&](DropScaling scaling, bool training) {
    LayerDropout layer(bare, LayerDropoutOptions(p).scaling(scaling));
    layer->train(training);
    PlanScope scope(*layer, Plan(1));
    return layer->forward(x).detach();
  };
  CHECK(torch::equal(output(DropScaling::none, true), f));
  CHECK(torch::equal(output(DropScaling::none, false), f));
  CHECK(
      torch::allclose(output(DropScaling::inverse_keep_in_training, true), x + (f - x) / (1 - p)));
  CHECK(torch::equal(output(DropScaling::inverse_keep_in_training, false), f));
  CHECK(torch::equal(output(DropScaling::keep_at_inference, true), f));
  CHECK(torch::allclose(output(DropScaling::keep_at_inference, false), x + (1 - p) * (f - x)));
}

TEST_CASE("the scaled output's gradient is that of its formula") {
  const auto x = input();
  LayerDropout layer(Increment(),
                     LayerDropoutOptions(0.5).scaling(DropScaling::inverse_keep_in_training));
  PlanScope scope(*layer, Plan(1));
  layer->forward(x).sum().backward();
  CHECK(torch::allclose(x.grad(), torch::ones_like(x)));
}

TEST_CASE("a layer alone is dropped at its rate, and inverse scaling keeps the expectation") {
  const int n = 20000;
  for (const double p : {0.1, 0.5, 0.9}) {
    LayerDropout layer(
        Increment(),
        LayerDropoutOptions(p).scaling(DropScaling::inverse_keep_in_training).stream(Stream(42)));
    const auto zero = torch::zeros({});
    double sum = 0;
    for (int i = 0; i < n; ++i) sum += layer->forward(zero).item<double>();
    // y is 1 / (1 - p) with probability 1 - p, else 0: mean 1, variance p / (1 - p).
    const double sigmas = (sum / n - 1) / std::sqrt(p / (1 - p) / n);
    CHECK_MESSAGE(std::abs(sigmas) < 5, "rate ", p, ": mean off by ", sigmas, " sigmas");
  }
}

TEST_CASE("layers that are given no stream draw independently of one another") {
  const int n = 4000;
  const LayerDropoutOptions options(0.5);
  LayerDropout a(Increment(), options), b(Increment(), options), c(Increment(), 0.5);
  const auto zero = torch::zeros({});
  int ab = 0, bc = 0;
  for (int i = 0; i < n; ++i) {
    const auto drawn = [&](auto& layer) {
      return layer->forward(zero).template item<double>() > 0;
    };
    const bool in_a = drawn(a), in_b = drawn(b), in_c = drawn(c);
    ab += in_a == in_b;
    bc += in_b == in_c;
  }
  for (const int agreeing : {ab, bc}) {
    const double sigmas = (agreeing - n / 2.0) / std::sqrt(n / 4.0);
    CHECK_MESSAGE(std::abs(sigmas) < 5, "agreement off by ", sigmas, " sigmas");
  }
}

TEST_CASE("the same stream gives the same gates") {
  const auto draws = [](std::uint64_t seed) {
    LayerDropout layer(Increment(), LayerDropoutOptions(0.5).stream(Stream(seed)));
    std::vector<bool> active;
    for (int i = 0; i < 64; ++i)
      active.push_back(layer->forward(torch::zeros({})).item<double>() > 0);
    return active;
  };
  CHECK(draws(1) == draws(1));
  CHECK(draws(1) != draws(2));
}

TEST_CASE("in eval mode the layer runs and nothing is drawn") {
  const LayerDropoutOptions options = LayerDropoutOptions(0.9).stream(Stream(3));
  LayerDropout layer(Increment(), options), reference(Increment(), options);
  const auto zero = torch::zeros({});
  for (int i = 0; i < 50; ++i) {
    layer->eval();
    CHECK(layer->forward(zero).item<double>() == 1);
    layer->train();
    CHECK(layer->forward(zero).item<double>() == reference->forward(zero).item<double>());
  }
}

TEST_CASE("rates that are no rates are refused with the value") {
  const auto refused = [](double rate, const char* text) {
    CHECK_THROWS_WITH_AS(
        LayerDropout(Increment(), rate),
        (std::string("LayerDropout: drop_rates[0] must be in [0, 1), got ") + text).c_str(),
        Throws);
  };
  refused(std::numeric_limits<double>::quiet_NaN(), "nan");
  refused(1.0, "1");
  refused(1.5, "1.5");
  refused(-0.1, "-0.1");
  LayerDropout layer(Increment(), 0.5);
  CHECK_THROWS_AS(layer->set_drop_rates(std::vector{1.0}), Throws);
  CHECK(layer->drop_rates()[0] == 0.5);
}

TEST_CASE("a layer that changes the shape is refused with both shapes") {
  LayerDropout layer(Narrow(), 0.0);
  CHECK_THROWS_WITH_AS(layer->forward(torch::zeros({3, 4})),
                       "a layer that may be dropped must keep the shape of its input [3, 4], but "
                       "gave [1, 4]",
                       Throws);
}

TEST_CASE("other arguments pass through, values, references and what can only be moved") {
  LayerDropout layer(Talkative(), 0.5);
  int calls = 0;
  const auto x = torch::ones({2}), bias = torch::full({2}, 3);
  {
    PlanScope scope(*layer, Plan(1));
    CHECK(torch::equal(layer->forward(x, bias, 2, calls, std::make_unique<double>(10)),
                       torch::full({2}, 15.0f)));
    CHECK(calls == 1);
  }
  PlanScope scope(*layer, dropped(1, {0}));
  CHECK(layer->forward(x, bias, 2, calls, nullptr).is_same(x));
  CHECK(calls == 1);
}

TEST_CASE("Sequential accepts a block with masks and its default arguments") {
  torch::manual_seed(2);
  const nn::TransformerEncoderLayer encoder(nn::TransformerEncoderLayerOptions(8, 2).dropout(0));
  nn::Sequential bare(encoder), model(LayerDropout(encoder, 0.5));
  const auto x = torch::randn({5, 2, 8});
  const auto mask = torch::zeros({5, 5}).index_put_({0, 1}, -1e9);
  const auto padding = torch::zeros({2, 5}, torch::kBool).index_put_({1, 4}, true);
  {
    PlanScope scope(*model, Plan(1));
    CHECK(torch::equal(model->forward(x), bare->forward(x)));
    CHECK(torch::equal(model->forward(x, mask), bare->forward(x, mask)));
    CHECK(torch::equal(model->forward(x, mask, padding), bare->forward(x, mask, padding)));
    CHECK_FALSE(torch::equal(model->forward(x, mask, padding), model->forward(x)));
  }
  PlanScope scope(*model, dropped(1, {0}));
  CHECK(model->forward(x).is_same(x));
  CHECK(model->forward(x, mask).is_same(x));
}

TEST_CASE("parameters are named behind \"layer\", and a wrapped module is the one that was given") {
  const Block block(4);
  const LayerDropout layer(block, 0.25);
  CHECK(layer->named_parameters().contains("layer.up.weight"));
  CHECK(layer->layer.ptr() == block.ptr());
  std::ostringstream text;
  text << *layer;
  CHECK(text.str().starts_with("droppeft::LayerDropout(rate=0.25)"));
}

TEST_CASE("it works without gradients and in inference mode") {
  nn::Sequential model;
  for (const auto& block : make_blocks(3)) model->push_back(LayerDropout(block, 0.5));
  const auto x = input().detach();
  PlanScope scope(*model, dropped(3, {1}));
  const auto expected = model->forward(x).detach();
  {
    const torch::NoGradGuard no_grad;
    CHECK(torch::equal(model->forward(x), expected));
    CHECK_FALSE(model->forward(x).requires_grad());
  }
  const c10::InferenceMode inference;
  CHECK(torch::equal(model->forward(x), expected));
  PlanScope none(*model, dropped(3, {0, 1, 2}));
  CHECK(model->forward(x).is_same(x));
}

TEST_CASE("under autocast a dropped layer hands its input on in the dtype that it has") {
  nn::Sequential model, bare;
  const auto blocks = make_blocks(3);
  for (const auto& block : blocks) model->push_back(LayerDropout(block, 0.5));
  bare->push_back(blocks[0]);
  bare->push_back(blocks[2]);
  const auto x = input();
  at::autocast::set_autocast_enabled(at::kCPU, true);
  at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  torch::Tensor y, expected, same;
  {
    PlanScope scope(*model, dropped(3, {1}));
    y = model->forward(x);
    expected = bare->forward(x);
    PlanScope none(*model, dropped(3, {0, 1, 2}));
    same = model->forward(x);
  }
  at::autocast::set_autocast_enabled(at::kCPU, false);
  at::autocast::clear_cache();
  CHECK(torch::equal(y, expected));
  CHECK((y.scalar_type() == expected.scalar_type()));
  CHECK(same.is_same(x));
  y.sum().backward();
  CHECK((blocks[0]->up->weight.grad().scalar_type() == torch::kFloat));
  CHECK_FALSE(blocks[1]->up->weight.grad().defined());
}
