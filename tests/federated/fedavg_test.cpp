#include "droppeft/federated/fedavg.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "droppeft/federated/aggregator.hpp"
#include "support.hpp"

namespace {

using droppeft::FedAvg;
using droppeft::State;
using Throws = std::invalid_argument;

State state_of(const std::string& name, const torch::Tensor& tensor) {
  State state;
  state.insert(name, tensor);
  return state;
}

struct Clients {
  std::vector<State> states;
  std::vector<double> weights;
};

// Every client sends "all"; client i sends also "some.i % 3".
Clients example(std::int64_t count, torch::ScalarType dtype = torch::kFloat) {
  torch::manual_seed(7);
  Clients clients;
  for (std::int64_t i = 0; i < count; ++i) {
    State state = state_of("all", torch::randn({5, 3}).to(dtype));
    state.insert("some." + std::to_string(i % 3), torch::randn({4}).to(dtype));
    clients.states.push_back(state);
    clients.weights.push_back(static_cast<double>(1 + (i * 7) % 10));
  }
  return clients;
}

State average_of(const Clients& clients) {
  FedAvg average;
  for (std::size_t i = 0; i < clients.states.size(); ++i)
    average.add(clients.states[i], clients.weights[i]);
  return average.value();
}

bool same(const State& a, const State& b) {
  a.check_same_layout(b);
  return std::all_of(a.begin(), a.end(), [&](const auto& entry) {
    return torch::equal(entry.second, b.at(entry.first)) &&
           entry.second.dtype() == b.at(entry.first).dtype();
  });
}

// A user's own: the last client wins.
class Newest {
 public:
  void add(const State& state, double) {
    value_ = value_.updated(state.clone());
    ++clients_;
  }
  void add(std::span<const State> states, std::span<const double> weights) {
    for (std::size_t i = 0; i < states.size(); ++i) add(states[i], weights[i]);
  }
  State value() const { return value_; }
  std::size_t clients() const { return clients_; }

 private:
  State value_;
  std::size_t clients_ = 0;
};

/// A server round of any aggregator.
State server_round(droppeft::Aggregator auto aggregator, const Clients& clients) {
  aggregator.add(clients.states, clients.weights);
  return aggregator.value();
}

}  // namespace

TEST_CASE("a server takes any aggregator") {
  const auto clients = example(4);
  CHECK(same(server_round(FedAvg(), clients), average_of(clients)));
  CHECK(torch::equal(server_round(Newest(), clients).at("all"), clients.states[3].at("all")));
}

TEST_CASE("the mean is sum_k n_k w_k / sum_k n_k") {
  FedAvg average;
  average.add(state_of("w", torch::tensor({1.0f, -2.0f})), 1);
  average.add(state_of("w", torch::tensor({4.0f, 10.0f})), 3);
  CHECK(torch::equal(average.value().at("w"), torch::tensor({3.25f, 7.0f})));
  CHECK(average.clients() == 2);
}

TEST_CASE("the mean is that of double arithmetic, rounded once") {
  const auto clients = example(20);
  torch::Tensor sum = torch::zeros({5, 3}, torch::kDouble);
  double weight = 0;
  for (std::size_t i = 0; i < clients.states.size(); ++i) {
    sum += clients.states[i].at("all").to(torch::kDouble) * clients.weights[i];
    weight += clients.weights[i];
  }
  CHECK(torch::equal(average_of(clients).at("all"), (sum / weight).to(torch::kFloat)));
}

TEST_CASE("equal clients give back their tensor to the bit, whatever the weights") {
  for (const auto dtype : {torch::kFloat, torch::kBFloat16, torch::kHalf}) {
    const State one = state_of("w", torch::randn({1000}).to(dtype));
    FedAvg average;
    for (const double weight : {3.0, 0.7, 123456.0}) average.add(one, weight);
    CHECK(same(average.value(), one));
  }
}

TEST_CASE("the order of the clients does not matter") {
  const auto clients = example(11);
  const State expected = average_of(clients);
  for (std::size_t shift = 1; shift < 11; ++shift) {
    Clients other = clients;
    std::rotate(other.states.begin(), other.states.begin() + static_cast<std::ptrdiff_t>(shift),
                other.states.end());
    std::rotate(other.weights.begin(), other.weights.begin() + static_cast<std::ptrdiff_t>(shift),
                other.weights.end());
    CHECK(same(average_of(other), expected));
  }
}

TEST_CASE("a client split in two counts as the whole one") {
  auto clients = example(5);
  const State expected = average_of(clients);
  clients.states.push_back(clients.states[2]);
  clients.weights.push_back(0.25 * clients.weights[2]);
  clients.weights[2] *= 0.75;
  CHECK(same(average_of(clients), expected));
}

TEST_CASE("weight 2 is the same as twice, and a common factor changes nothing") {
  auto clients = example(5);
  auto twice = clients;
  twice.states.push_back(clients.states[3]);
  twice.weights.push_back(clients.weights[3]);
  clients.weights[3] *= 2;
  const State expected = average_of(clients);
  CHECK(same(average_of(twice), expected));
  for (double& weight : clients.weights) weight *= 0.125;
  CHECK(same(average_of(clients), expected));
}

TEST_CASE("each tensor is the mean over those that sent it, and absent when nobody did") {
  auto clients = example(6);
  const State all = average_of(clients);
  CHECK(all.size() == 4);
  FedAvg third;
  third.add(clients.states[2], clients.weights[2]);
  third.add(clients.states[5], clients.weights[5]);
  CHECK(torch::equal(all.at("some.2"), third.value().at("some.2")));
  CHECK_FALSE(third.value().contains("some.0"));
}

TEST_CASE("an empty state changes nothing but the count") {
  auto clients = example(4);
  const State expected = average_of(clients);
  clients.states.emplace_back();
  clients.weights.push_back(1000);
  CHECK(same(average_of(clients), expected));
  FedAvg average;
  CHECK(average.value().empty());
  average.add(State(), 1);
  CHECK(average.value().empty());
  CHECK(average.clients() == 1);
}

TEST_CASE("a batch of clients is the same as one by one") {
  const auto clients = example(9, torch::kBFloat16);
  FedAvg batch;
  batch.add(clients.states, clients.weights);
  CHECK(same(batch.value(), average_of(clients)));
  CHECK(batch.clients() == 9);

  FedAvg mixed;
  mixed.add(clients.states[0], clients.weights[0]);
  mixed.add(std::span(clients.states).subspan(1), std::span(clients.weights).subspan(1));
  CHECK(same(mixed.value(), batch.value()));
}

TEST_CASE("value may be asked at any time and is not changed by later clients") {
  const auto clients = example(2);
  FedAvg average;
  average.add(clients.states[0], clients.weights[0]);
  const State early = average.value();
  CHECK(same(early, clients.states[0]));
  average.add(clients.states[1], clients.weights[1]);
  CHECK(same(early, clients.states[0]));
  CHECK(same(average.value(), average_of(clients)));
}

TEST_CASE("adding neither changes nor keeps what the clients sent") {
  State sent = state_of("w", torch::ones({3}, torch::kDouble));
  sent.at("w").set_requires_grad(true);
  FedAvg average;
  average.add(sent, 1);
  average.add(sent, 1);
  CHECK(torch::equal(sent.at("w"), torch::ones({3}, torch::kDouble)));
  {
    torch::NoGradGuard no_grad;
    sent.at("w").fill_(9);
  }
  CHECK(torch::equal(average.value().at("w"), torch::ones({3}, torch::kDouble)));
  CHECK_FALSE(average.value().at("w").requires_grad());
}

TEST_CASE("weights that are not positive and finite are refused with their value") {
  FedAvg average;
  const State state = state_of("w", torch::ones({1}));
  const auto refused = [&](double weight, const char* value) {
    CHECK_THROWS_WITH_AS(
        average.add(state, weight),
        (std::string("FedAvg::add: weight must be positive and finite, got ") + value).c_str(),
        Throws);
  };
  refused(0, "0");
  refused(-1, "-1");
  refused(std::numeric_limits<double>::quiet_NaN(), "nan");
  refused(std::numeric_limits<double>::infinity(), "inf");
  CHECK(average.clients() == 0);
  CHECK(average.value().empty());
}

TEST_CASE("a wrong shape or dtype is refused by name and leaves the average as it was") {
  const auto clients = example(3);
  FedAvg average;
  average.add(clients.states, clients.weights);
  const State before = average.value();

  const auto bad = [&](const torch::Tensor& tensor) {
    // "a" comes first, so that it would be added before "all" is looked at.
    State state = state_of("a", torch::ones({2}));
    state.insert("all", tensor);
    return state;
  };
  CHECK_THROWS_WITH_AS(average.add(bad(torch::ones({1, 3})), 1),
                       "FedAvg::add: 'all' has shape [1, 3], but other clients sent [5, 3]",
                       Throws);
  CHECK_THROWS_WITH_AS(average.add(bad(torch::ones({5, 3}, torch::kDouble)), 1),
                       "FedAvg::add: 'all' is Double, but other clients sent Float", Throws);
  CHECK_THROWS_WITH_AS(average.add(bad(torch::ones({5, 3}, torch::kLong)), 1),
                       "FedAvg::add: 'all' must be of floating point, got Long", Throws);
  CHECK(same(average.value(), before));
  CHECK(average.clients() == 3);
}

TEST_CASE("a tensor on another device, and numbers that are not finite, are refused by name") {
  FedAvg average;
  average.add(state_of("w", torch::ones({3})), 1);
  const State before = average.value();
  CHECK_THROWS_WITH_AS(average.add(state_of("w", torch::ones({3}, torch::kMeta)), 1),
                       "FedAvg::add: 'w' is on meta, but other clients sent it on cpu", Throws);
  const auto good = state_of("w", torch::ones({3}));
  const auto bad = state_of("w", torch::tensor({1.0f, NAN, 1.0f}));
  CHECK_THROWS_WITH_AS(average.add(std::vector{good, bad}, std::vector{1.0, 1.0}),
                       "FedAvg::add: 'w' of state 1 must hold finite numbers", Throws);
  CHECK_THROWS_WITH_AS(average.add(std::vector{good, good}, std::vector{1e308, 1e308}),
                       "FedAvg::add: the sum of the weights of 'w' must be finite, got inf",
                       Throws);
  CHECK(same(average.value(), before));
  CHECK(average.clients() == 1);
}

TEST_CASE("the mean does not depend on threads, the default dtype or how tensors lie in memory") {
  torch::manual_seed(3);
  std::vector<State> states, transposed;
  for (int client = 0; client < 10; ++client) {
    const auto numbers = torch::randn({300, 211});
    states.push_back(state_of("w", numbers));
    transposed.push_back(state_of("w", numbers.t().contiguous().t()));
  }
  const std::vector<double> weights(10, 0.3);
  const auto mean = [&](const std::vector<State>& all) {
    FedAvg average;
    average.add(all, weights);
    return average.value();
  };
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const State one = mean(states);
  at::set_num_threads(2);
  const State two = mean(states);
  at::set_num_threads(threads);
  torch::set_default_dtype(torch::scalarTypeToTypeMeta(torch::kDouble));
  const State in_double = mean(states);
  torch::set_default_dtype(torch::scalarTypeToTypeMeta(torch::kFloat));
  CHECK(same(one, two));
  CHECK(same(one, in_double));
  CHECK(same(one, mean(transposed)));
}

TEST_CASE("a batch with one bad client or weight adds none of its clients") {
  const auto clients = example(3);
  FedAvg average;
  average.add(clients.states, clients.weights);
  const State before = average.value();
  const auto good = state_of("new", torch::ones({2}));
  const auto wide = state_of("new", torch::ones({3}));
  const auto half = state_of("new", torch::ones({2}, torch::kHalf));
  CHECK_THROWS_WITH_AS(average.add(std::vector{good, wide}, std::vector{1.0, 1.0}),
                       "FedAvg::add: 'new' has shape [3], but other clients sent [2]", Throws);
  CHECK_THROWS_WITH_AS(average.add(std::vector{good, half}, std::vector{1.0, 1.0}),
                       "FedAvg::add: 'new' is Half, but other clients sent Float", Throws);
  CHECK_THROWS_AS(average.add(std::vector{good, good}, std::vector{1.0, -1.0}), Throws);
  CHECK_THROWS_WITH_AS(average.add(std::vector{good, good}, std::vector{1.0}),
                       "FedAvg::add: 2 states need as many weights, got 1", Throws);
  CHECK(same(average.value(), before));
  CHECK(average.clients() == 3);
}
