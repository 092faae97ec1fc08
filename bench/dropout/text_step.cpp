// Training steps of federated_text on request, for bench/rivals/text_step.py, which gives the model
// folder, a file of batches and initial adapters, the threads, and the dtype of the frozen weights.
// Each line on standard input names a batch; the answer is the step's loss and the seconds of
// forward, backward and optimiser, or, after "peak ", the most bytes that the step held.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/optim/adamw.h>

#include <chrono>
#include <cstdint>
#include <droppeft/core/module.hpp>
#include <droppeft/core/state.hpp>
#include <droppeft/io/safetensors.hpp>
#include <droppeft/memory/meter.hpp>
#include <droppeft/peft/add_lora.hpp>
#include <iostream>
#include <memory>
#include <sstream>
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

class Training {
 public:
  Training(const std::string& folder, const std::string& workload, at::ScalarType dtype)
      : given_(droppeft::load_safetensors(workload)), model_(nullptr) {
    const droppeft::State adapters =
        given_.select([](auto name) { return !name.starts_with("batch."); });
    model_ = TextClassifier(read_bert_config(folder), adapters.at("classifier.weight").size(0));
    load_bert_weights(model_->bert, folder);
    model_->bert->to(dtype);
    droppeft::add_lora(*model_, {"query", "value"}, droppeft::LoraOptions(8).alpha(16));
    droppeft::freeze(*model_->head, false);
    droppeft::load_state(*model_, adapters);
    optimizer_ = std::make_unique<torch::optim::AdamW>(make_optimizer(model_));
  }

  /// What the step on a batch is answered with.
  std::string step(const std::string& batch) {
    const std::string key = "batch." + batch;
    const at::Tensor ids = given_.at(key + ".ids"), labels = given_.at(key + ".labels");
    const at::Tensor mask =
        given_.contains(key + ".mask") ? given_.at(key + ".mask") : at::Tensor();
    const auto start = Clock::now();
    const at::Tensor loss = at::cross_entropy_loss(model_->forward(ids, mask), labels);
    const auto forward = Clock::now();
    optimizer_->zero_grad();
    loss.backward();
    const auto backward = Clock::now();
    optimizer_->step();
    const auto end = Clock::now();
    std::ostringstream answer;
    answer.precision(9);
    answer << loss.item<double>() << ' ' << seconds(start, forward) << ' '
           << seconds(forward, backward) << ' ' << seconds(backward, end);
    return answer.str();
  }

  std::int64_t peak(const std::string& batch) {
    optimizer_->zero_grad();
    const droppeft::MemoryMeter meter;
    step(batch);
    return meter.peak();
  }

 private:
  using Clock = std::chrono::steady_clock;
  static double seconds(Clock::time_point from, Clock::time_point to) {
    return std::chrono::duration<double>(to - from).count();
  }

  droppeft::State given_;
  TextClassifier model_;
  std::unique_ptr<torch::optim::AdamW> optimizer_;
};

}  // namespace

int main(int count, char** arguments) try {
  droppeft::check(count == 5, "usage: text_step MODEL_FOLDER WORKLOAD THREADS fp32|bf16");
  at::set_num_threads(std::stoi(arguments[3]));
  const std::string dtype = arguments[4], peak = "peak ";
  Training training(arguments[1], arguments[2], dtype == "bf16" ? at::kBFloat16 : at::kFloat);
  std::cout << "ready\n" << std::flush;
  for (std::string line; std::getline(std::cin, line);) {
    if (line.starts_with(peak))
      std::cout << training.peak(line.substr(peak.size()));
    else
      std::cout << training.step(line);
    std::cout << '\n' << std::flush;
  }
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 2;
}
