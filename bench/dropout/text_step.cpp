// Training steps of federated_text on request, for bench/rivals/text_step.py, which gives the model
// folder, a file of batches and initial adapters, and the threads. Each line on standard input
// names a batch; the answer is the step's loss and the milliseconds of forward, backward and
// optimiser.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/optim/adamw.h>

#include <chrono>
#include <droppeft/core/module.hpp>
#include <droppeft/core/state.hpp>
#include <droppeft/io/safetensors.hpp>
#include <droppeft/peft/add_lora.hpp>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "models/bert.hpp"
#include "models/bert_files.hpp"

namespace {

torch::optim::AdamW make_optimizer(const TextClassifier& model) {
  std::vector<torch::optim::OptimizerParamGroup> groups;
  const auto group = [&](std::vector<at::Tensor> parameters, double rate) {
    groups.emplace_back(std::move(parameters),
                        std::make_unique<torch::optim::AdamWOptions>(
                            torch::optim::AdamWOptions(rate).weight_decay(0)));
  };
  group(droppeft::trainable_parameters(*model->head), 5e-3);
  group(droppeft::trainable_parameters(*model->bert), 2e-3);
  return torch::optim::AdamW(groups);
}

void serve(const std::string& folder, const std::string& workload) {
  const droppeft::State given = droppeft::load_safetensors(workload);
  const droppeft::State adapters =
      given.select([](auto name) { return !name.starts_with("batch."); });
  TextClassifier model(read_bert_config(folder), adapters.at("classifier.weight").size(0));
  load_bert_weights(model->bert, folder);
  droppeft::add_lora(*model, {"query", "value"}, droppeft::LoraOptions(8).alpha(16));
  droppeft::freeze(*model->head, false);
  droppeft::load_state(*model, adapters);
  auto optimizer = make_optimizer(model);

  using Clock = std::chrono::steady_clock;
  const auto milliseconds = [](Clock::time_point from, Clock::time_point to) {
    return std::chrono::duration<double, std::milli>(to - from).count();
  };
  std::cout.precision(9);
  std::cout << "ready\n" << std::flush;
  for (std::string batch; std::getline(std::cin, batch);) {
    const std::string key = "batch." + batch;
    const at::Tensor ids = given.at(key + ".ids"), labels = given.at(key + ".labels");
    const at::Tensor mask = given.contains(key + ".mask") ? given.at(key + ".mask") : at::Tensor();
    const auto start = Clock::now();
    const at::Tensor loss = at::cross_entropy_loss(model->forward(ids, mask), labels);
    const auto forward = Clock::now();
    optimizer.zero_grad();
    loss.backward();
    const auto backward = Clock::now();
    optimizer.step();
    const auto end = Clock::now();
    std::cout << loss.item<double>() << ' ' << milliseconds(start, forward) << ' '
              << milliseconds(forward, backward) << ' ' << milliseconds(backward, end) << '\n'
              << std::flush;
  }
}

}  // namespace

int main(int count, char** arguments) try {
  droppeft::check(count == 4, "usage: text_step MODEL_FOLDER WORKLOAD THREADS");
  at::set_num_threads(std::stoi(arguments[3]));
  serve(arguments[1], arguments[2]);
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 2;
}
