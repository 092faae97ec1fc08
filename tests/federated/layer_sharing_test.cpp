#include "droppeft/federated/layer_sharing.hpp"

#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

#include "droppeft/federated/fedavg.hpp"
#include "support.hpp"

namespace {

using droppeft::LayerImportance;
using droppeft::LayerNames;
using droppeft::State;
using droppeft::top_layers;
using Layers = std::vector<std::size_t>;
using Throws = std::invalid_argument;

// Two layers of two parameters each, and a head.
struct NetImpl : torch::nn::Module {
  NetImpl() {
    for (const char* name : {"0", "1"}) {
      auto layer = std::make_shared<torch::nn::Module>();
      layer->register_parameter("weight", torch::zeros({2, 2}));
      layer->register_parameter("bias", torch::zeros({2}));
      layers->register_module(name, layer);
    }
    register_module("layer", layers);
    register_parameter("head", torch::zeros({2}));
  }
  torch::Tensor parameter(const char* name) { return named_parameters()[name]; }
  std::shared_ptr<torch::nn::Module> layers = std::make_shared<torch::nn::Module>();
};
TORCH_MODULE(Net);

State example() {
  State state;
  for (const char* name : {"a.layer.0.w", "a.layer.1.w", "a.layer.2.w", "head.w"})
    state.insert(name, torch::ones({1}));
  return state;
}

}  // namespace

TEST_CASE("the layer is the number behind the prefix") {
  const LayerNames names("encoder.layer.");
  CHECK(names("encoder.layer.3.attention.query.lora.A") == 3);
  CHECK(names("bert.encoder.layer.12.weight") == 12);
  CHECK(names("encoder.layer.0") == 0);
  CHECK_FALSE(names("classifier.weight"));
  CHECK_FALSE(names("encoder.layer."));
  CHECK_FALSE(names("encoder.layer.x.weight"));
  CHECK_FALSE(names("encoder.layer.3x.weight"));
  CHECK_FALSE(names("encoder.layer.-1.weight"));
  CHECK_FALSE(names("encoder.layer.99999999999999999999.weight"));
  CHECK_FALSE(names("my_encoder.layer.3.weight"));
  CHECK_FALSE(names(""));
}

TEST_CASE("a later occurrence of the prefix counts when the first has no number") {
  const LayerNames names("layer.");
  CHECK(names("layer.norm.layer.4.weight") == 4);
  CHECK(names("sublayer.1.layer.2.weight") == 2);
  CHECK(names("layer.1.layer.2.weight") == 1);
}

TEST_CASE("a prefix without a dot at its end is refused") {
  CHECK_THROWS_WITH_AS(LayerNames("layer"),
                       "LayerNames: the prefix must be empty or end in a dot, got 'layer'", Throws);
}

TEST_CASE("an empty prefix counts at the start of the name alone") {
  const LayerNames names("");
  CHECK(names("3.layer.weight") == 3);
  CHECK_FALSE(names("encoder.3.weight"));
  CHECK_FALSE(names("head.weight"));
}

TEST_CASE("importance is the root mean square gradient norm over the active steps") {
  Net net;
  LayerImportance importance(LayerNames("layer."), 3);
  const auto give = [&](const char* name, double value) {
    auto parameter = net->parameter(name);
    parameter.mutable_grad() = torch::full_like(parameter, value);
  };
  // Layer 0: squared norms 4 * 9 + 2 * 16 = 68, then 4 * 1 = 4; layer 1: 2 * 25, once.
  give("layer.0.weight", 3);
  give("layer.0.bias", 4);
  give("head", 100);
  importance.add(*net);
  net->zero_grad();
  give("layer.0.weight", 1);
  give("layer.1.bias", -5);
  importance.add(*net);
  net->zero_grad();
  importance.add(*net);

  const auto value = importance.value();
  REQUIRE(value.size() == 3);
  CHECK(value[0] == doctest::Approx(6.0).epsilon(1e-6));
  CHECK(value[1] == doctest::Approx(std::sqrt(50.0)).epsilon(1e-6));
  CHECK(value[2] == 0);
  CHECK(Layers(importance.active_steps().begin(), importance.active_steps().end()) ==
        Layers{2, 1, 0});
}

TEST_CASE("a gradient of zeros is an active step, a frozen parameter's gradient is none") {
  Net net;
  LayerImportance importance(LayerNames("layer."), 2);
  auto zero = net->parameter("layer.0.bias"), frozen = net->parameter("layer.1.bias");
  zero.mutable_grad() = torch::zeros_like(zero);
  frozen.mutable_grad() = torch::ones_like(frozen);
  frozen.set_requires_grad(false);
  importance.add(*net);
  CHECK(importance.value() == std::vector{0.0, 0.0});
  CHECK(importance.active_steps()[0] == 1);
  CHECK(importance.active_steps()[1] == 0);
}

TEST_CASE("a parameter beyond the last layer is refused by name and nothing is added") {
  Net net;
  LayerImportance importance(LayerNames("layer."), 1);
  auto first = net->parameter("layer.0.bias"), beyond = net->parameter("layer.1.bias");
  first.mutable_grad() = torch::ones_like(first);
  beyond.mutable_grad() = torch::ones_like(beyond);
  CHECK_THROWS_WITH_AS(importance.add(*net),
                       "LayerImportance: 'layer.1.bias' belongs to a layer beyond the last, 0",
                       Throws);
  CHECK(importance.active_steps()[0] == 0);
  CHECK(importance.value()[0] == 0);
}

TEST_CASE("the k most important layers come in ascending order, the shallower of equals") {
  CHECK(top_layers(std::vector{1.0, 3.0, 2.0}, 2) == Layers{1, 2});
  CHECK(top_layers(std::vector{2.0, 1.0, 2.0, 2.0}, 2) == Layers{0, 2});
  CHECK(top_layers(std::vector{2.0, 1.0}, 2) == Layers{0, 1});
  CHECK(top_layers(std::vector{2.0, 1.0}, 0).empty());
  CHECK(top_layers(std::vector{0.0, 1.0, 0.0}, 3) == Layers{1});
  CHECK(top_layers(std::vector<double>{}, 0).empty());
}

TEST_CASE("k beyond the depth and importances that are no numbers are refused") {
  CHECK_THROWS_WITH_AS(top_layers(std::vector{1.0, 2.0}, 3),
                       "top_layers: k must be in [0, 2], got 3", Throws);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_WITH_AS(top_layers(std::vector{1.0, nan}, 1),
                       "top_layers: importance must be at least 0, got nan", Throws);
}

TEST_CASE("layer_part takes the chosen layers, and what is outside of all on demand") {
  const LayerNames names("layer.");
  const auto keys = [&](const Layers& layers, bool outside) {
    std::vector<std::string> found;
    for (const auto& [name, tensor] : layer_part(example(), names, layers, outside))
      found.push_back(name);
    return found;
  };
  using Keys = std::vector<std::string>;
  CHECK(keys({0, 2}, false) == Keys{"a.layer.0.w", "a.layer.2.w"});
  CHECK(keys({1}, true) == Keys{"a.layer.1.w", "head.w"});
  CHECK(keys({}, false).empty());
  CHECK(keys({0, 1, 2, 7}, true).size() == 4);
}

TEST_CASE("each layer is averaged over the devices that shared it and stays otherwise") {
  const LayerNames names("layer.");
  const State start = example();
  droppeft::FedAvg average;
  average.add(layer_part(2.0 * start, names, Layers{0}, true), 1);
  average.add(layer_part(4.0 * start, names, Layers{0, 1}, true), 1);
  const State global = start.updated(average.value());
  CHECK(global.at("a.layer.0.w").item<double>() == 3);
  CHECK(global.at("a.layer.1.w").item<double>() == 4);
  CHECK(global.at("a.layer.2.w").item<double>() == 1);
  CHECK(global.at("head.w").item<double>() == 3);
}
