// A LoRA training step of BERT-large on a GPU: eager LibTorch against droppeft's parts, launched
// one by one and as graphs, with all layers and with half of them; in turns. First the graphs'
// losses are checked against eager's. --json FILE writes the figures as a line of JSON each.
#include <ATen/ATen.h>
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <torch/optim/adamw.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <droppeft/core/module.hpp>
#include <droppeft/cuda/step_graphs.hpp>
#include <droppeft/dropout/plan_codebook.hpp>
#include <droppeft/optim/adamw.hpp>
#include <droppeft/peft/add_lora.hpp>
#include <fstream>
#include <functional>
#include <iostream>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "models/bert.hpp"

namespace {

using at::Tensor;
using droppeft::Plan;
using droppeft::Stream;

constexpr std::int64_t sequences = 16, length = 128, rank = 8;
constexpr std::size_t plans = 8;
constexpr int repetitions = 21, steps = 8;  // of a repetition

constexpr BertConfig bert_large{.width = 1024, .layers = 24, .heads = 16, .inner = 4096};

/// The model, a batch, and the loss both ways.
struct Workload {
  Workload(const BertConfig& config, at::ScalarType dtype, double lora_dropout)
      : model(config, 2), rate(lora_dropout) {
    model->bert->to(dtype);
    model->to(at::kCUDA);
    droppeft::add_lora(*model, {"query", "value"},
                       droppeft::LoraOptions(rank).alpha(16).dropout(rate));
    droppeft::freeze(*model->head, false);
    const auto on_gpu = at::TensorOptions(at::kLong).device(at::kCUDA);
    ids = at::randint(config.vocabulary, {sequences, length}, on_gpu);
    labels = at::randint(2, {sequences}, on_gpu);
  }

  Tensor loss() { return at::cross_entropy_loss(model->forward(ids, {}), labels); }

  /// Of LibTorch's operations alone, adapters in the order of peft.
  Tensor eager_loss(const Plan& plan) {
    const auto& bert = *model->bert;
    const BertBatch batch(ids, {});
    Tensor x = bert.embeddings.ptr()->forward(ids, batch);
    for (std::size_t i = 0; i < plan.layers(); ++i)
      if (plan.active(i)) x = eager_layer(*bert.encoder->layer->layers[i], x);
    const Tensor pooled = x.view({sequences, length, -1}).to(at::kFloat).mean(1);
    return at::cross_entropy_loss(at::linear(pooled, model->head->weight, model->head->bias),
                                  labels);
  }

  TextClassifier model;
  double rate;
  Tensor ids, labels;

 private:
  Tensor eager_linear(const droppeft::Linear& linear, const Tensor& x) const {
    const Tensor y = at::linear(x, linear->weight, linear->bias);
    if (!linear->lora) return y;
    const auto& lora = *linear->lora;
    const Tensor dropped = at::dropout(x.to(at::kFloat), rate, /*train=*/true);
    const Tensor added = at::linear(at::linear(dropped, lora.A), lora.B) * lora.options.scaling();
    return (y + added).to(y.scalar_type());
  }

  static Tensor eager_norm(const BertOutputImpl& output, const Tensor& branch, const Tensor& x) {
    return at::layer_norm(branch + x, {x.size(-1)}, output.norm->weight, output.norm->bias,
                          output.config.norm_epsilon);
  }

  Tensor eager_layer(const BertLayerImpl& layer, const Tensor& x) const {
    const auto& self = *layer.attention->self;
    const auto by_head = [&](const Tensor& y) {
      return y.view({sequences, length, layer.config.heads, -1}).transpose(1, 2);
    };
    const Tensor mixed = at::scaled_dot_product_attention(by_head(eager_linear(self.query, x)),
                                                          by_head(eager_linear(self.key, x)),
                                                          by_head(eager_linear(self.value, x)))
                             .transpose(1, 2)
                             .reshape_as(x);
    const auto& output = *layer.attention->output;
    const Tensor y = eager_norm(output, eager_linear(output.dense, mixed), x);
    const Tensor inner = at::gelu(eager_linear(layer.intermediate->dense, y));
    return eager_norm(*layer.output, eager_linear(layer.output->dense, inner), y);
  }
};

/// `plans` plans at that rate; the one with all layers for rate 0.
droppeft::PlanCodebook codebook(std::size_t layers, double rate) {
  return {std::vector<double>(layers, rate), rate == 0 ? 1 : plans, Stream(1)};
}

double seconds_of(const std::function<void()>& function) {
  at::cuda::getCurrentCUDAStream().synchronize();
  const auto start = std::chrono::steady_clock::now();
  function();
  at::cuda::getCurrentCUDAStream().synchronize();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> numbers) {
  const auto middle = numbers.begin() + static_cast<std::ptrdiff_t>(numbers.size() / 2);
  std::nth_element(numbers.begin(), middle, numbers.end());
  return *middle;
}

struct Row {
  std::string name;
  std::size_t active;
  std::function<void(const Plan&)> step;
  const droppeft::PlanCodebook* book;
  std::vector<double> seconds{};
  double peak = 0;
};

/// Four layers without dropout: the losses of three steps by graphs and by eager LibTorch.
void check_losses(at::ScalarType dtype) {
  BertConfig config = bert_large;
  config.layers = 4;
  Workload work(config, dtype, 0);
  Plan plan(4);
  plan.set(2, false);
  droppeft::StepGraphs graphs(*work.model, [&] {
    const Tensor loss = work.loss();
    loss.backward();
    return loss;
  });
  droppeft::AdamW optimizer(droppeft::trainable_parameters(*work.model), 1e-3);
  for (int step = 0; step < 3; ++step) {
    const double wanted = work.eager_loss(plan).item<double>();
    const double loss = graphs.run(plan).item<double>();
    droppeft::check(std::abs(loss - wanted) <= (dtype == at::kFloat ? 1e-4 : 3e-2) * wanted,
                    "the graphs' loss in step ", step, " is ", loss, ", eager's ", wanted);
    optimizer.step();
  }
}

/// Seconds of what a layer must compute in a step: the products of its frozen maps and attention,
/// forward and for the gradient of their input, at the rate of the largest of them by LibTorch.
double limit_seconds(const BertConfig& config, at::ScalarType dtype) {
  const std::int64_t rows = sequences * length;
  const auto options = at::TensorOptions(dtype).device(at::kCUDA);
  const Tensor x = at::randn({rows, config.width}, options);
  const Tensor w = at::randn({config.inner, config.width}, options);
  const auto product = [&] {
    for (int i = 0; i < 20; ++i) at::mm(x, w.t());
  };
  product();
  std::vector<double> seconds;
  for (int i = 0; i < repetitions; ++i) seconds.push_back(seconds_of(product) / 20);
  const auto d = static_cast<double>(config.width), t = static_cast<double>(rows);
  const auto inner = static_cast<double>(config.inner);
  const double rate = 2 * t * d * inner / median(seconds);
  const double maps = 2 * t * (4 * d * d + 2 * d * inner);
  const double attention = 4 * t * static_cast<double>(length) * d;
  return (2 * maps + 3.5 * attention) / rate;
}

void run(const std::string& file) {
  std::ofstream json(file);
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    check_losses(dtype);
    const std::string type = dtype == at::kFloat ? "fp32" : "bf16";
    Workload work(bert_large, dtype, 0.1);
    const auto parameters = droppeft::trainable_parameters(*work.model);
    const auto layers = static_cast<std::size_t>(bert_large.layers);
    const auto all = codebook(layers, 0), half = codebook(layers, 0.5);
    torch::optim::AdamW eager_optimizer(parameters, torch::optim::AdamWOptions(1e-5));
    droppeft::AdamW optimizer(parameters, 1e-5);
    droppeft::StepGraphs graphs(*work.model, [&] {
      const Tensor loss = work.loss();
      loss.backward();
      return loss;
    });
    const auto eager = [&](const Plan& plan) {
      eager_optimizer.zero_grad();
      work.eager_loss(plan).backward();
      eager_optimizer.step();
    };
    const auto ours = [&](const Plan& plan) {
      optimizer.zero_grad();
      const droppeft::PlanScope scope(*work.model, plan);
      work.loss().backward();
      optimizer.step();
    };
    const auto by_graph = [&](const Plan& plan) {
      graphs.run(plan);
      optimizer.step();
    };
    std::vector<Row> rows{{"eager LibTorch", 24, eager, &all},
                          {"eager LibTorch", 12, eager, &half},
                          {"droppeft", 24, ours, &all},
                          {"droppeft", 12, ours, &half},
                          {"droppeft, graphs", 24, by_graph, &all},
                          {"droppeft, graphs", 12, by_graph, &half}};
    const auto repeat = [](const Row& row) {
      for (std::size_t i = 0; i < steps; ++i)
        row.step(row.book->plans()[i % row.book->plans().size()]);
    };
    using namespace c10::cuda::CUDACachingAllocator;
    for (Row& row : rows) {
      resetPeakStats(0);
      const auto before = getDeviceStats(0).allocated_bytes[0].current;
      repeat(row);
      row.peak = static_cast<double>(getDeviceStats(0).allocated_bytes[0].peak - before);
    }
    std::vector<std::size_t> turns;
    for (std::size_t i = 0; i < rows.size(); ++i) turns.insert(turns.end(), repetitions, i);
    std::shuffle(turns.begin(), turns.end(), std::mt19937(5));
    for (const std::size_t i : turns)
      rows[i].seconds.push_back(seconds_of([&] { repeat(rows[i]); }) / steps);

    const double eager_all = median(rows[0].seconds);
    const double layer_limit = limit_seconds(bert_large, dtype);
    std::printf(
        "\nBERT-large, LoRA %d, %d x %d tokens, %s\n      ms  x eager, 24  %% of limit  peak MB\n",
        static_cast<int>(rank), static_cast<int>(sequences), static_cast<int>(length),
        type.c_str());
    for (const Row& row : rows) {
      const double seconds = median(row.seconds);
      const double limit = static_cast<double>(row.active) * layer_limit;
      std::printf("%8.2f %12.2f %11.1f %8.0f  %s, %zu layers\n", 1e3 * seconds, eager_all / seconds,
                  100 * limit / seconds, 1e-6 * row.peak, row.name.c_str(), row.active);
      json << "{\"who\": \"" << row.name << "\", \"dtype\": \"" << type
           << "\", \"layers\": " << row.active << ", \"seconds\": " << seconds
           << ", \"limit\": " << limit << ", \"peak\": " << row.peak << "}\n";
    }
    std::fflush(stdout);
  }
  if (!file.empty() && !json.flush()) throw std::runtime_error("cannot write '" + file + "'");
}

}  // namespace

int main(int count, char** arguments) try {
  const std::string option = count == 3 ? arguments[1] : "";
  if (count != 1 && option != "--json") {
    std::cerr << "usage: " << arguments[0] << " [--json FILE]\n";
    return 2;
  }
  run(count == 3 ? arguments[2] : "");
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
