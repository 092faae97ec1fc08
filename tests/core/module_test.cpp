#include "droppeft/core/module.hpp"

#include <cstdint>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "droppeft/core/state.hpp"
#include "droppeft/dropout/layer_dropout.hpp"
#include "droppeft/dropout/layer_stack.hpp"
#include "droppeft/peft/add_lora.hpp"
#include "support.hpp"

namespace {

namespace nn = torch::nn;
using droppeft::LayerDropout;
using droppeft::LayerStack;
using droppeft::Stream;
using Throws = std::invalid_argument;

struct BlockImpl : nn::Cloneable<BlockImpl> {
  explicit BlockImpl(std::int64_t width = 3) : features(width) { reset(); }
  void reset() override { dense = register_module("dense", droppeft::Linear(features, features)); }
  torch::Tensor forward(const torch::Tensor& x) { return x + dense->forward(x).tanh(); }

  std::int64_t features;
  droppeft::Linear dense{nullptr};
};
TORCH_MODULE(Block);

// One of everything, nested.
struct ModelImpl : nn::Cloneable<ModelImpl> {
  ModelImpl() { reset(); }
  void reset() override {
    stack = register_module("stack", LayerStack<Block>(std::vector<Block>{Block(), Block()}));
    layers = register_module("layers", nn::Sequential(LayerDropout(Block(), 0.5), Block(),
                                                      LayerDropout(nn::Linear(3, 3), 0.5)));
    norm = register_module("norm", nn::BatchNorm1d(3));
    table = register_buffer("table", torch::arange(4));
  }
  torch::Tensor forward(const torch::Tensor& x) {
    return norm->forward(layers->forward(stack->forward(x)));
  }

  LayerStack<Block> stack{nullptr};
  nn::Sequential layers{nullptr};
  nn::BatchNorm1d norm{nullptr};
  torch::Tensor table;
};
TORCH_MODULE(Model);

std::set<const void*> memory(const nn::Module& module) {
  std::set<const void*> places;
  for (const auto& tensor : module.parameters()) places.insert(tensor.storage().data());
  for (const auto& tensor : module.buffers()) places.insert(tensor.storage().data());
  return places;
}

// That `copy` is `original` in everything but its memory.
void check_clone(const nn::Module& original, const nn::Module& copy) {
  const auto expected = droppeft::full_state(original), got = droppeft::full_state(copy);
  expected.check_same_layout(got);
  for (const auto& entry : expected) {
    CAPTURE(entry.first);
    const auto& tensor = got.at(entry.first);
    CHECK(torch::equal(tensor, entry.second));
    CHECK((tensor.scalar_type() == entry.second.scalar_type()));
  }
  const auto parameters = copy.named_parameters();
  for (const auto& entry : original.named_parameters()) {
    CAPTURE(entry.key());
    CHECK(parameters[entry.key()].requires_grad() == entry.value().requires_grad());
  }
  const auto modules = copy.named_modules();
  for (const auto& entry : original.named_modules()) {
    CAPTURE(entry.key());
    CHECK(modules[entry.key()]->is_training() == entry.value()->is_training());
    CHECK(modules[entry.key()] != entry.value());
  }
  const auto places = memory(copy);
  CHECK(places.size() == memory(original).size());
  for (const auto* place : memory(original)) CHECK_FALSE(places.contains(place));
}

template <class Module>
std::vector<torch::Tensor> outputs(Module& module, int passes = 20) {
  torch::NoGradGuard no_grad;
  std::vector<torch::Tensor> results;
  for (int pass = 0; pass < passes; ++pass)
    results.push_back(module->forward(torch::full({2, 3}, 0.5)));
  return results;
}

bool equal(const std::vector<torch::Tensor>& a, const std::vector<torch::Tensor>& b) {
  for (std::size_t i = 0; i < a.size(); ++i)
    if (!torch::equal(a[i], b[i])) return false;
  return a.size() == b.size();
}

// Modules that cannot be cloned.
struct ForgetfulImpl : nn::Cloneable<ForgetfulImpl> {
  ForgetfulImpl() { register_parameter("weight", torch::ones({2})); }
  void reset() override {}
  torch::Tensor forward(const torch::Tensor& x) { return x; }
};
TORCH_MODULE(Forgetful);

struct RenamingImpl : nn::Cloneable<RenamingImpl> {
  RenamingImpl() { register_parameter("weight", torch::ones({2})); }
  void reset() override { register_parameter("other", torch::ones({2})); }
};
TORCH_MODULE(Renaming);

template <bool buffer>
struct SharingImpl : nn::Cloneable<SharingImpl<buffer>> {
  SharingImpl() { reset(); }
  void reset() override {
    if (buffer)
      this->register_buffer("kept", kept);
    else
      this->register_parameter("kept", kept);
  }
  torch::Tensor kept = torch::ones({2});
};

struct PlainImpl : nn::Module {};
TORCH_MODULE(Plain);

}  // namespace

TEST_CASE("a clone shares no memory and keeps values, requires_grad and training modes") {
  Model model;
  droppeft::add_lora(*model, {"dense"}, droppeft::LoraOptions(2).alpha(4));
  droppeft::freeze(*model->norm, false);
  model->layers->eval();
  model->layers[1]->train();
  check_clone(*model, *droppeft::clone(model));
  check_clone(*model->stack, *droppeft::clone(model->stack));
  check_clone(*model->layers, *droppeft::clone(model->layers));
  const LayerDropout alone(Block(), 0.25);
  check_clone(*alone, *droppeft::clone(alone));
  check_clone(*alone->layer->dense, *droppeft::clone(alone->layer->dense));
  CHECK(droppeft::clone(alone)->drop_rates()[0] == 0.25);
}

TEST_CASE("a clone of another dtype and of odd strides is faithful") {
  nn::Linear linear(3, 5);
  linear->to(torch::kBFloat16);
  linear->weight.set_data(torch::randn({3, 5}).to(torch::kBFloat16).t());
  check_clone(*linear, *droppeft::clone(linear));
  CHECK(droppeft::clone(linear)->weight.stride(0) == 1);
}

TEST_CASE("training the clone leaves the original as it was") {
  Model model;
  const auto before = droppeft::full_state(*model);
  auto copy = droppeft::clone(model);
  torch::optim::SGD optimizer(copy->parameters(), 0.1);
  for (int step = 0; step < 5; ++step) {
    optimizer.zero_grad();
    copy->forward(torch::randn({4, 3})).square().sum().backward();
    optimizer.step();
  }
  for (const auto& [name, tensor] : droppeft::full_state(*model))
    CHECK(torch::equal(tensor, before.at(name)));
  for (const auto& parameter : model->parameters()) CHECK_FALSE(parameter.grad().defined());
}

TEST_CASE("a clone of a merged model is merged and unmerges to the same bits") {
  Model model;
  droppeft::add_lora(*model, {"dense"}, 2);
  for (auto& parameter : droppeft::trainable_parameters(*model)) {
    torch::NoGradGuard no_grad;
    parameter.normal_();
  }
  const auto unmerged = droppeft::full_state(*model);
  droppeft::merge_lora(*model);
  auto copy = droppeft::clone(model);
  check_clone(*model, *copy);
  droppeft::unmerge_lora(*model);
  CHECK(copy->stack->layers[0]->dense->merged());
  droppeft::unmerge_lora(*copy);
  for (const auto& [name, tensor] : droppeft::full_state(*copy))
    CHECK(torch::equal(tensor, unmerged.at(name)));
}

TEST_CASE("a clone keeps the type behind the holder and works on a shared pointer") {
  const auto model = std::make_shared<ModelImpl>();
  const auto copy = droppeft::clone(model);
  static_assert(std::is_same_v<decltype(copy), const std::shared_ptr<ModelImpl>>);
  check_clone(*model, *copy);
}

TEST_CASE("a clone repeats the original's draws from where it stands") {
  Model model;
  model->eval();
  const auto full_depth = outputs(model, 1);
  model->train();
  model->norm->eval();
  model->stack->set_drop_rates(std::vector{0.5, 0.5});
  outputs(model, 3);
  auto copy = droppeft::clone(model);
  const auto expected = outputs(model);
  CHECK(equal(outputs(copy), expected));
  CHECK_FALSE(equal({expected[0], expected[1], expected[2], expected[3]},
                    {expected[4], expected[5], expected[6], expected[7]}));
}

TEST_CASE("clones that are given streams draw different gates, and the same ones again") {
  Model model;
  model->norm->eval();
  model->stack->set_drop_rates(std::vector{0.5, 0.5});
  std::vector<std::vector<torch::Tensor>> runs;
  for (std::uint64_t client = 0; client < 5; ++client) {
    auto copy = droppeft::clone(model, Stream(3).fold(client));
    runs.push_back(outputs(copy));
    auto again = droppeft::clone(model, Stream(3).fold(client));
    CHECK(equal(outputs(again), runs.back()));
    for (std::uint64_t other = 0; other < client; ++other)
      CHECK_FALSE(equal(runs[other], runs[client]));
  }
}

TEST_CASE("set_stream reaches the module itself") {
  LayerDropout layer(nn::Linear(3, 3), 0.5);
  droppeft::set_stream(*layer, Stream(8));
  const auto first = outputs(layer);
  CHECK_FALSE(equal(outputs(layer), first));
  droppeft::set_stream(*layer, Stream(8));
  CHECK(equal(outputs(layer), first));
}

TEST_CASE("a module whose reset() forgets or renames a parameter is refused by its path") {
  CHECK_THROWS_WITH_AS(droppeft::clone(Forgetful()), doctest::Contains("ForgetfulImpl): "), Throws);
  nn::Sequential nested(nn::Linear(2, 2), LayerDropout(Forgetful(), 0.5), nn::ReLU());
  CHECK_THROWS_WITH_AS(droppeft::clone(nested), doctest::Contains("clone: '1.layer' ("), Throws);
  CHECK_THROWS_WITH_AS(droppeft::clone(Renaming()), doctest::Contains("'weight'"), Throws);
}

TEST_CASE("a module whose reset() shares a parameter or a buffer is refused with its name") {
  CHECK_THROWS_WITH_AS(droppeft::clone(std::make_shared<SharingImpl<false>>()),
                       doctest::Contains("shares 'kept'"), Throws);
  CHECK_THROWS_WITH_AS(droppeft::clone(std::make_shared<SharingImpl<true>>()),
                       doctest::Contains("shares 'kept'"), Throws);
}

TEST_CASE("what LibTorch cannot clone is refused") {
  CHECK_THROWS_WITH_AS(droppeft::clone(Plain()), doctest::Contains("PlainImpl"), Throws);
  CHECK_THROWS_WITH_AS(droppeft::clone(std::shared_ptr<PlainImpl>()), "clone: the module is empty",
                       Throws);
}

TEST_CASE("a Sequential of named modules is cloned with its names, or refused by them") {
  const nn::Sequential named({{"first", nn::AnyModule(nn::Linear(2, 2))}});
  // LibTorch 2.11 loses the names, 2.15 keeps them.
  try {
    const auto copy = droppeft::clone(named);
    CHECK(torch::equal(copy->named_parameters()["first.weight"],
                       named->named_parameters()["first.weight"]));
  } catch (const Throws& error) {
    CHECK(std::string(error.what()).find("lacks 'first.weight'") != std::string::npos);
  }
}

TEST_CASE("freeze stops and restarts training, and the counts follow") {
  nn::Sequential model(nn::Linear(3, 4), nn::Linear(4, 2));
  CHECK(droppeft::parameter_count(*model) == 16 + 10);
  CHECK(droppeft::trainable_parameter_count(*model) == 26);
  droppeft::freeze(*model[0]);
  CHECK(droppeft::trainable_parameter_count(*model) == 10);
  const auto trainable = droppeft::trainable_parameters(*model);
  REQUIRE(trainable.size() == 2);
  CHECK(trainable[0].is_same(model[1]->named_parameters()["weight"]));
  model->forward(torch::ones({1, 3})).sum().backward();
  CHECK_FALSE(model[0]->parameters()[0].grad().defined());
  CHECK(model[1]->parameters()[0].grad().defined());
  droppeft::freeze(*model, false);
  CHECK(droppeft::trainable_parameter_count(*model) == 26);
  CHECK(droppeft::parameter_count(*nn::ReLU()) == 0);
}
