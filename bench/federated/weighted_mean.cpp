// The weighted mean of 32 clients' LoRA states (BERT-large, rank 8 on query and value: 96 tensors),
// against what a LibTorch program would write and against reading the states once.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <benchmark/benchmark.h>

#include <cstdint>
#include <droppeft/core/state.hpp>
#include <droppeft/federated/fedavg.hpp>
#include <iostream>
#include <string>
#include <vector>

#include "report.hpp"

namespace {

using droppeft::State;

constexpr std::size_t clients = 32;
constexpr std::int64_t layers = 24, width = 1024, rank = 8;

/// What the clients of a round sent, each in memory of its own.
struct Round {
  Round() {
    for (std::size_t client = 0; client < clients; ++client) {
      State state;
      for (std::int64_t layer = 0; layer < layers; ++layer)
        for (const char* map : {"query", "value"}) {
          const std::string name = "layer." + std::to_string(layer) + "." + map + ".lora.";
          state.insert(name + "A", at::randn({rank, width}));
          state.insert(name + "B", at::randn({width, rank}));
        }
      states.push_back(state);
      weights.push_back(static_cast<double>(10 + client));
      total += weights.back();
    }
    stacked = at::empty({static_cast<std::int64_t>(clients), states.front().numel()});
    for (std::size_t client = 0; client < clients; ++client) {
      std::vector<at::Tensor> parts;
      for (const auto& [name, tensor] : states[client]) parts.push_back(tensor.reshape(-1));
      stacked[static_cast<std::int64_t>(client)] = at::cat(parts);
    }
    shares = (at::tensor(weights, at::kDouble) / total).to(at::kFloat);
  }

  std::vector<State> states;
  std::vector<double> weights;
  double total = 0;
  at::Tensor stacked;  // [clients, numbers]
  at::Tensor shares;   // [clients], weights that sum to one
};

Round& round() {
  static Round made;
  return made;
}

State batch() {
  droppeft::FedAvg average;
  average.add(round().states, round().weights);
  return average.value();
}

State one_by_one() {
  droppeft::FedAvg average;
  for (std::size_t client = 0; client < clients; ++client)
    average.add(round().states[client], round().weights[client]);
  return average.value();
}

/// A LibTorch program's own: float sums, tensor by tensor.
State add_alpha() {
  State mean;
  for (const auto& [name, first] : round().states.front()) {
    at::Tensor sum = at::zeros_like(first);
    for (std::size_t client = 0; client < clients; ++client)
      sum.add_(round().states[client].at(name), round().weights[client] / round().total);
    mean.insert(name, sum);
  }
  return mean;
}

/// A BLAS's product, for states that happen to lie in one matrix.
at::Tensor flat_gemv() { return at::mv(round().stacked.t(), round().shares); }

/// Reads `count` numbers.
void read(const float* numbers, std::int64_t count) {
  const auto* words = reinterpret_cast<const std::uint32_t*>(numbers);
  std::uint32_t sum = 0;
  for (std::int64_t i = 0; i < count; ++i) sum += words[i];
  asm volatile("" : : "r"(sum));
}

/// Reads every number of every state, tensor by tensor over the clients, as a mean must.
void read_states() {
  static const auto tensors = [] {
    std::vector<at::Tensor> all;
    for (const auto& [name, first] : round().states.front())
      for (const State& state : round().states) all.push_back(state.at(name));
    return all;
  }();
  at::parallel_for(0, static_cast<std::int64_t>(tensors.size()), 1,
                   [&](std::int64_t first, std::int64_t end) {
                     for (; first < end; ++first) {
                       const at::Tensor& tensor = tensors[static_cast<std::size_t>(first)];
                       read(tensor.data_ptr<float>(), tensor.numel());
                     }
                   });
}

/// Reads as many numbers from one array.
void read_array() {
  const float* numbers = round().stacked.data_ptr<float>();
  at::parallel_for(0, round().stacked.numel(), 1 << 14, [&](std::int64_t first, std::int64_t end) {
    read(numbers + first, end - first);
  });
}

}  // namespace

int main(int count, char** arguments) {
  Report report("weighted_mean", count, arguments);

  const State mean = batch();
  for (const auto& [name, tensor] : mean) {
    at::Tensor exact = at::zeros(tensor.sizes(), at::kDouble);
    for (std::size_t client = 0; client < clients; ++client)
      exact.add_(round().states[client].at(name), round().weights[client] / round().total);
    if (!at::allclose(tensor.to(at::kDouble), exact, 1e-6, 1e-7)) {
      std::cerr << "weighted_mean: '" << name << "' is not the mean\n";
      return 1;
    }
  }

  const double bytes = 4 * static_cast<double>(round().stacked.numel());
  const Case mean_of_32{.kernel = "weighted_mean",
                        .shape = "32 x BERT-large LoRA",
                        .upon = {"read the states"},
                        .repetitions = 31,
                        .more = {{"bytes", bytes}, {"flops", bytes / 2}}};
  report.add(mean_of_32, "droppeft", [] { benchmark::DoNotOptimize(batch()); });
  report.add(mean_of_32, "droppeft, one by one", [] { benchmark::DoNotOptimize(one_by_one()); });
  report.add(mean_of_32, "add_(alpha) by tensor", [] { benchmark::DoNotOptimize(add_alpha()); });
  report.add(mean_of_32, "at::mv of one matrix", [] { benchmark::DoNotOptimize(flat_gemv()); });
  report.add(mean_of_32, "read the states", [] { read_states(); });
  report.add(mean_of_32, "read one array of that size", [] { read_array(); });
  report.run();
  return report.finish();
}
