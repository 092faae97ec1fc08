#include "droppeft/peft/add_lora.hpp"

#include <stdexcept>
#include <string>
#include <vector>

#include "droppeft/core/state.hpp"
#include "support.hpp"

namespace {

namespace nn = torch::nn;
using droppeft::add_lora;
using droppeft::LoraOptions;
using Paths = std::vector<std::string>;
using Throws = std::invalid_argument;

struct LayerImpl : nn::Cloneable<LayerImpl> {
  LayerImpl() { reset(); }
  void reset() override {
    query = register_module("query", droppeft::Linear(4, 4));
    value = register_module("value", droppeft::Linear(4, 4));
    output = register_module("output", nn::Linear(4, 4));
    norm = register_module("norm", nn::LayerNorm(nn::LayerNormOptions({4})));
  }
  torch::Tensor forward(const torch::Tensor& x) {
    return norm->forward(output->forward(query->forward(x).tanh() + value->forward(x)));
  }
  droppeft::Linear query{nullptr}, value{nullptr};
  nn::Linear output{nullptr};
  nn::LayerNorm norm{nullptr};
};
TORCH_MODULE(Layer);

struct ModelImpl : nn::Cloneable<ModelImpl> {
  ModelImpl() { reset(); }
  void reset() override {
    layers = register_module("layer", nn::Sequential(Layer(), Layer()));
    head = register_module("head", droppeft::Linear(4, 2));
  }
  torch::Tensor forward(const torch::Tensor& x) { return head->forward(layers->forward(x)); }
  nn::Sequential layers{nullptr};
  droppeft::Linear head{nullptr};
};
TORCH_MODULE(Model);

// Names and requires_grad of everything, and the values.
void check_unchanged(Model& model, const droppeft::State& before) {
  const auto parameters = model->named_parameters();
  CHECK(parameters.size() == before.size());
  for (const auto& entry : parameters) {
    CAPTURE(entry.key());
    CHECK(entry.value().requires_grad());
    CHECK(torch::equal(entry.value(), before.at(entry.key())));
  }
}

}  // namespace

TEST_CASE("a list, a pattern and all-linear choose the modules, in the model's order") {
  const auto paths = [](const droppeft::Targets& targets) {
    return add_lora(*Model(), targets, 2);
  };
  CHECK(paths({"query", "value"}) ==
        Paths{"layer.0.query", "layer.0.value", "layer.1.query", "layer.1.value"});
  CHECK(paths({"layer.1.query"}) == Paths{"layer.1.query"});
  CHECK(paths(".*\\.1\\..*") == Paths{"layer.1.query", "layer.1.value"});
  CHECK(paths("all-linear") ==
        Paths{"layer.0.query", "layer.0.value", "layer.1.query", "layer.1.value", "head"});
}

TEST_CASE("only the adapters are trained, and nothing but they is new") {
  Model model;
  const auto before = droppeft::full_state(*model);
  add_lora(*model, {"query"}, LoraOptions(3).alpha(6));
  const auto trained = droppeft::trainable_state(*model);
  Paths names;
  for (const auto& [name, tensor] : trained) names.push_back(name);
  CHECK(names == Paths{"layer.0.query.lora.A", "layer.0.query.lora.B", "layer.1.query.lora.A",
                       "layer.1.query.lora.B"});
  CHECK(droppeft::trainable_parameter_count(*model) == 2 * 2 * 3 * 4);
  CHECK(droppeft::full_state(*model).size() == before.size() + 4);
  const auto after = droppeft::full_state(*model);
  for (const auto& [name, tensor] : before) CHECK(torch::equal(after.at(name), tensor));
}

TEST_CASE("training moves the adapters and no bit of the base") {
  torch::manual_seed(1);
  Model model;
  const auto base = droppeft::full_state(*model);
  add_lora(*model, {"query", "value"}, 2);
  torch::optim::AdamW optimizer(droppeft::trainable_parameters(*model),
                                torch::optim::AdamWOptions(1e-2).weight_decay(0.1));
  const auto x = torch::randn({16, 4}), y = torch::randn({16, 2});
  double first = 0, last = 0;
  for (int step = 0; step < 50; ++step) {
    optimizer.zero_grad();
    auto loss = torch::mse_loss(model->forward(x), y);
    loss.backward();
    optimizer.step();
    last = loss.item<double>();
    if (step == 0) first = last;
  }
  CHECK(last < first);
  const auto trained = droppeft::full_state(*model);
  for (const auto& [name, tensor] : base) CHECK(torch::equal(trained.at(name), tensor));
}

TEST_CASE("when nothing matches, nothing is changed") {
  Model model;
  const auto before = droppeft::full_state(*model);
  CHECK_THROWS_WITH_AS(add_lora(*model, {"key"}, 2), doctest::Contains("is called 'key'"), Throws);
  CHECK_THROWS_WITH_AS(add_lora(*model, {"query", "valeu"}, 2),
                       doctest::Contains("is called 'valeu'"), Throws);
  CHECK_THROWS_WITH_AS(add_lora(*model, "layer[.]7.*", 2),
                       doctest::Contains("matches 'layer[.]7.*'"), Throws);
  CHECK_THROWS_AS(add_lora(*model, droppeft::Targets(std::vector<std::string>{}), 2), Throws);
  CHECK_THROWS_WITH_AS(add_lora(*torch::nn::Linear(2, 2), "all-linear", 2),
                       doctest::Contains("has no droppeft::Linear"), Throws);
  // There is such a layer, but it is of torch's own type.
  CHECK_THROWS_AS(add_lora(*model, {"output"}, 2), Throws);
  check_unchanged(model, before);
}

TEST_CASE("when the options are out of range, nothing is changed") {
  Model model;
  const auto before = droppeft::full_state(*model);
  CHECK_THROWS_AS(add_lora(*model, "all-linear", 0), Throws);
  CHECK_THROWS_AS(add_lora(*model, "all-linear", LoraOptions(2).dropout(1.5)), Throws);
  check_unchanged(model, before);
}

TEST_CASE("a second call for one of the modules is refused by path, and nothing is changed") {
  Model model;
  add_lora(*model, {"layer.1.query"}, 2);
  droppeft::freeze(*model, false);
  const auto before = droppeft::full_state(*model);
  CHECK_THROWS_WITH_AS(add_lora(*model, {"query"}, 2),
                       "add_lora: 'layer.1.query' has an adapter already", Throws);
  check_unchanged(model, before);
}

TEST_CASE("a layer that the model holds twice gets one adapter") {
  const droppeft::Linear shared(3, 3);
  nn::Sequential model(shared, nn::Tanh(), shared);
  CHECK(add_lora(*model, "all-linear", 2) == Paths{"0"});
  CHECK(shared->lora);
}

TEST_CASE("such a layer may be called by each of its names") {
  const droppeft::Linear shared(3, 3);
  nn::Sequential model;
  model->push_back("first", shared);
  model->push_back("second", shared);
  CHECK(add_lora(*model, {"first", "second"}, 2) == Paths{"first"});
}

TEST_CASE("a layer alone is a model, too") {
  droppeft::Linear alone(3, 3);
  CHECK(add_lora(*alone, "all-linear", 2) == Paths{""});
  droppeft::merge_lora(*alone);
  CHECK(alone->merged());
  droppeft::unmerge_lora(*alone);
  CHECK_FALSE(alone->merged());
}

TEST_CASE("merge_lora and unmerge_lora reach every adapter and restore every bit") {
  torch::manual_seed(2);
  Model model;
  add_lora(*model, {"query", "head"}, 2);
  for (auto& parameter : droppeft::trainable_parameters(*model)) {
    const torch::NoGradGuard no_grad;
    parameter.normal_();
  }
  const auto before = droppeft::full_state(*model);
  const auto x = torch::randn({5, 4});
  const auto expected = model->forward(x).detach();
  droppeft::merge_lora(*model);
  model->eval();
  CHECK(model->head->merged());
  CHECK(torch::allclose(model->forward(x), expected, 1e-4, 1e-5));
  droppeft::unmerge_lora(*model);
  for (const auto& [name, tensor] : droppeft::full_state(*model))
    CHECK(torch::equal(tensor, before.at(name)));
}

TEST_CASE("clones of an adapted model train apart over equal bases") {
  torch::manual_seed(3);
  Model model;
  add_lora(*model, {"query"}, 2);
  auto copy = droppeft::clone(model);
  CHECK(droppeft::trainable_parameter_count(*copy) == droppeft::trainable_parameter_count(*model));
  torch::optim::SGD optimizer(droppeft::trainable_parameters(*copy), 0.1);
  const auto before = droppeft::full_state(*model);
  copy->forward(torch::randn({5, 4})).square().sum().backward();
  optimizer.step();
  const auto trained = droppeft::full_state(*copy);
  for (const auto& entry : droppeft::full_state(*model)) {
    CAPTURE(entry.first);
    CHECK(torch::equal(entry.second, before.at(entry.first)));
    // With B = 0 the first step moves B alone.
    CHECK(torch::equal(entry.second, trained.at(entry.first)) != entry.first.ends_with("lora.B"));
  }
}
