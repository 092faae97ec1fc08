#include "droppeft/core/state.hpp"

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "support.hpp"

namespace {

using droppeft::State;
using Throws = std::invalid_argument;

struct NetImpl : torch::nn::Module {
  NetImpl() {
    first = register_module("first", torch::nn::Linear(3, 4));
    norm = register_module("norm", torch::nn::BatchNorm1d(4));
    second = register_module("second", torch::nn::Linear(4, 2));
  }
  torch::nn::Linear first{nullptr}, second{nullptr};
  torch::nn::BatchNorm1d norm{nullptr};
};
TORCH_MODULE(Net);

bool same(const State& a, const State& b) {
  a.check_same_layout(b);
  for (const auto& [name, tensor] : a)
    if (!torch::equal(tensor, b.at(name)) || tensor.dtype() != b.at(name).dtype()) return false;
  return true;
}

State example(std::uint64_t seed) {
  torch::manual_seed(seed);
  State state;
  state.insert("b", torch::randn({2, 3}, torch::kDouble));
  state.insert("a", torch::randn({4}, torch::kDouble));
  state.insert("scalar", torch::randn({}, torch::kDouble));
  return state;
}

}  // namespace

TEST_CASE("a buffer that the module has left undefined is refused by name") {
  torch::nn::BatchNorm1d norm(torch::nn::BatchNorm1dOptions(2).track_running_stats(false));
  droppeft::State state;
  state.insert("running_mean", torch::zeros({2}));
  CHECK_THROWS_WITH_AS(droppeft::load_state(*norm, state),
                       doctest::Contains("has no tensor named 'running_mean'"),
                       std::invalid_argument);
}

TEST_CASE("tensors come in the order of their names") {
  std::string order;
  for (const auto& [name, tensor] : example(1)) order += name + " ";
  CHECK(order == "a b scalar ");
}

TEST_CASE("a name twice, an undefined tensor and an unknown name are refused by name") {
  State state = example(1);
  CHECK_THROWS_WITH_AS(state.insert("a", torch::zeros(1)),
                       "State::insert: the name 'a' is already there", Throws);
  CHECK_THROWS_WITH_AS(state.insert("c", torch::Tensor()),
                       "State::insert: the tensor 'c' is undefined", Throws);
  CHECK_THROWS_WITH_AS(state.at("c"), "State::at: no tensor is named 'c'", Throws);
  CHECK(state.size() == 3);
  CHECK(state.at("a").numel() == 4);
}

TEST_CASE("numbers and bytes are counted as they would be sent") {
  State state;
  CHECK(state.empty());
  CHECK(state.nbytes() == 0);
  state.insert("full", torch::zeros({5, 7}));
  state.insert("half", torch::zeros({3}, torch::kBFloat16));
  state.insert("expanded", torch::zeros({1}, torch::kDouble).expand({10}));
  state.insert("none", torch::zeros({0, 9}));
  CHECK(state.numel() == 35 + 3 + 10);
  CHECK(state.nbytes() == 35 * 4 + 3 * 2 + 10 * 8);
}

TEST_CASE("clone shares no memory, select and a copy share it") {
  const State state = example(2);
  const State copy = state, cloned = state.clone();
  const State chosen = state.select([](std::string_view name) { return name != "b"; });
  CHECK(same(cloned, state));
  CHECK(cloned.at("a").data_ptr() != state.at("a").data_ptr());
  CHECK(copy.at("a").is_same(state.at("a")));
  CHECK(chosen.size() == 2);
  CHECK(chosen.at("a").is_same(state.at("a")));
  CHECK_FALSE(chosen.contains("b"));
}

TEST_CASE("updated puts newer tensors in place of, or beside, its own") {
  const State old = example(3);
  State newer;
  newer.insert("b", torch::ones({9}));
  newer.insert("d", torch::ones({1}));
  const State merged = old.updated(newer);
  CHECK(merged.size() == 4);
  CHECK(merged.at("b").is_same(newer.at("b")));
  CHECK(merged.at("a").is_same(old.at("a")));
  CHECK(merged.at("d").is_same(newer.at("d")));
  CHECK(old.at("b").dim() == 2);
}

TEST_CASE("arithmetic obeys the laws of a vector space") {
  const State a = example(4), b = example(5), zero = 0.0 * a;
  CHECK(same(a + b, b + a));
  CHECK(same(a + zero, a));
  CHECK(same(a - a, zero));
  CHECK(same(2.0 * a, a + a));
  CHECK(same(0.5 * (a + a), a));
  for (const auto& [name, tensor] : 0.25 * (a + b) + 0.75 * (a - b))
    CHECK(torch::allclose(tensor, a.at(name) - 0.5 * b.at(name), 1e-14, 1e-15));
}

TEST_CASE("arithmetic writes to neither argument and records no graph") {
  State a = example(6);
  const State before = a.clone();
  State b;
  for (const auto& [name, tensor] : a)
    b.insert(name, torch::ones_like(tensor).set_requires_grad(true));
  for (const auto& [name, tensor] : (a + b) - 2.0 * b) CHECK_FALSE(tensor.requires_grad());
  CHECK(same(a, before));
}

TEST_CASE("states of different names or shapes do not add, and the message names the tensor") {
  const State a = example(7);
  const State fewer = a.select([](std::string_view name) { return name != "b"; });
  CHECK_THROWS_WITH_AS(a + fewer, "State: the tensor 'b' is missing from the other state", Throws);
  CHECK_THROWS_WITH_AS(fewer - a, "State: the tensor 'b' is only in the other state", Throws);
  State wide;
  wide.insert("b", torch::zeros({2, 1}));  // would broadcast
  CHECK_THROWS_WITH_AS(
      a + fewer.updated(wide),
      "State: the tensor 'b' has shape [2, 3] in one state and [2, 1] in the other", Throws);
}

TEST_CASE("a snapshot owns its memory and load_state restores every bit") {
  Net net;
  net->norm->running_mean.fill_(3);
  const State before = droppeft::full_state(*net);
  CHECK(before.size() == 4 + 2 + 3);
  CHECK(before.contains("norm.running_var"));
  {
    torch::NoGradGuard no_grad;
    for (auto& parameter : net->parameters()) parameter.add_(1);
    for (auto& buffer : net->buffers()) buffer.add_(1);
  }
  CHECK_FALSE(same(droppeft::full_state(*net), before));
  const auto* place = net->first->weight.data_ptr();
  droppeft::load_state(*net, before);
  CHECK(same(droppeft::full_state(*net), before));
  CHECK(net->first->weight.data_ptr() == place);
  CHECK(net->first->weight.requires_grad());
  CHECK((net->norm->num_batches_tracked.scalar_type() == torch::kLong));
}

TEST_CASE("BatchNorm without statistics has no buffers to snapshot") {
  torch::nn::BatchNorm1d norm(torch::nn::BatchNorm1dOptions(4).track_running_stats(false));
  CHECK(droppeft::full_state(*norm).size() == 2);
}

TEST_CASE("the trainable state holds what requires a gradient, under its own name") {
  Net net;
  net->first->weight.set_requires_grad(false);
  const State state = droppeft::trainable_state(*net);
  CHECK(state.size() == 5);
  CHECK_FALSE(state.contains("first.weight"));
  CHECK_FALSE(state.contains("norm.running_mean"));
  CHECK_FALSE(state.at("second.bias").requires_grad());
  CHECK(state.at("second.bias").data_ptr() != net->second->bias.data_ptr());
}

TEST_CASE("load_state converts to the module's dtype") {
  Net net;
  State state;
  state.insert("second.bias", torch::tensor({0.1, -0.2}, torch::kDouble));
  droppeft::load_state(*net, state);
  CHECK(torch::equal(net->second->bias.detach(), torch::tensor({0.1f, -0.2f})));
}

TEST_CASE("load_state leaves everything untouched when one name or shape is wrong") {
  Net net;
  const State before = droppeft::full_state(*net);
  State good = 2.0 * droppeft::trainable_state(*net);

  State unknown = good;
  unknown.insert("zzz.weight", torch::zeros({1}));
  CHECK_THROWS_WITH_AS(droppeft::load_state(*net, unknown),
                       doctest::Contains("has no tensor named 'zzz.weight'"), Throws);
  CHECK(same(droppeft::full_state(*net), before));

  State narrow;
  narrow.insert("second.weight", torch::zeros({2, 1}));  // would broadcast
  CHECK_THROWS_WITH_AS(
      droppeft::load_state(*net, good.updated(narrow)),
      "load_state: 'second.weight' has shape [2, 1], but that of the module is [2, 4]", Throws);
  CHECK(same(droppeft::full_state(*net), before));
}

TEST_CASE("load_state into the state's own module is harmless") {
  Net net;
  State aliases;
  for (const auto& entry : net->named_parameters()) aliases.insert(entry.key(), entry.value());
  const State before = droppeft::full_state(*net);
  droppeft::load_state(*net, aliases);
  CHECK(same(droppeft::full_state(*net), before));
}
