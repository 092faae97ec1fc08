// Time, memory and overhead of layer dropout. Rows: step_skip, peak_memory, wrapper; what each
// measures is in docs/bench.md. --quick: MiniLM's shape only.
#include <ATen/ATen.h>
#include <benchmark/benchmark.h>
#include <torch/nn/modules/linear.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <droppeft/core/module.hpp>
#include <droppeft/dropout/gate.hpp>
#include <droppeft/dropout/layer_dropout.hpp>
#include <droppeft/dropout/layer_stack.hpp>
#include <droppeft/memory/meter.hpp>
#include <droppeft/peft/add_lora.hpp>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "models/bert.hpp"
#include "report.hpp"

namespace {

constexpr std::int64_t rank = 8;

struct Shape {
  const char* name;
  std::int64_t layers, width, heads, sequences, length;
  int repetitions;

  std::int64_t tokens() const { return sequences * length; }
};
const Shape shapes[] = {{"MiniLM", 6, 384, 12, 16, 64, 15},
                        {"BERT-base", 12, 768, 12, 8, 128, 9},
                        {"BERT-large", 24, 1024, 16, 4, 128, 7}};

/// A classifier with random weights and LoRA on query and value, and one batch for it.
struct Training {
  explicit Training(const Shape& shape)
      : model(
            BertConfig{
                .width = shape.width,
                .layers = shape.layers,
                .heads = shape.heads,
                .inner = 4 * shape.width,
            },
            2),
        ids(at::randint(model->config.vocabulary, {shape.sequences, shape.length}, at::kLong)),
        labels(at::randint(2, {shape.sequences}, at::kLong)) {
    droppeft::add_lora(*model, {"query", "value"}, droppeft::LoraOptions(rank));
    droppeft::freeze(*model->head, false);
    step(droppeft::Plan(static_cast<std::size_t>(shape.layers)));  // pages, threads, kernels
  }

  void step(const droppeft::Plan& plan) {
    const droppeft::PlanScope scope(*model, plan);
    const at::Tensor loss = at::cross_entropy_loss(model->forward(ids, {}), labels);
    model->zero_grad();
    loss.backward();
  }

  TextClassifier model;
  at::Tensor ids, labels;
};

Training& training(const Shape& shape) {
  static std::map<std::string, std::unique_ptr<Training>> made;
  auto& entry = made[shape.name];
  if (!entry) entry = std::make_unique<Training>(shape);
  return *entry;
}

/// A random plan with `k` of `layers` layers active.
droppeft::Plan draw_plan(std::int64_t k, std::int64_t layers, droppeft::Stream& stream) {
  const auto count = static_cast<std::size_t>(layers);
  if (k > 0) {
    const double rate = 1 - static_cast<double>(k) / static_cast<double>(layers);
    return droppeft::FixedGate()(std::vector<double>(count, rate), stream);
  }
  droppeft::Plan plan(count);
  for (std::size_t layer = 0; layer < count; ++layer) plan.set(layer, false);
  return plan;
}

std::string active(const Shape& shape, std::int64_t k) {
  return std::to_string(k) + " of " + std::to_string(shape.layers);
}

Case layers_case(const char* kernel, const Shape& shape, std::int64_t k) {
  return {.kernel = kernel,
          .shape = shape.name,
          .more = {{"active", k}, {"layers", shape.layers}, {"tokens", shape.tokens()}}};
}

std::string step_row(const Shape& shape, std::int64_t k) {
  return layers_case("step_skip", shape, k).row(active(shape, k));
}

void add_step_skip(const Shape& shape) {
  for (std::int64_t k = shape.layers; k >= 0; --k)
    add_row(step_row(shape, k), shape.repetitions,
            [&shape, k](benchmark::State& state, const std::string& row) {
              static droppeft::Stream stream(1);
              const auto plan = draw_plan(k, shape.layers, stream);
              auto& run = training(shape);
              time_once(state, row, [&] { run.step(plan); });
            });
}

/// Per cent of the ideal saving, with the error that the spread of the repetitions leaves it: a
/// layer of many saves little more than that.
void record_step_skip(Report& report, const Shape& shape) {
  const std::string all_row = step_row(shape, shape.layers), none_row = step_row(shape, 0);
  const auto all = median(all_row), none = median(none_row);
  if (!all || !none) return;
  for (std::int64_t k = shape.layers; k >= 0; --k) {
    const std::string row = step_row(shape, k);
    const auto time = median(row);
    if (!time) continue;
    const double left = static_cast<double>(k) / static_cast<double>(shape.layers);
    const double ideal_saving = (1 - left) * (*all - *none);
    Case step = layers_case("step_skip", shape, k);
    step.more["limit_seconds"] = *all - ideal_saving;
    if (k > 0 && k < shape.layers) {
      const double share = (*all - *time) / ideal_saving;
      const double error =
          std::hypot((1 - share * (1 - left)) * median_error(all_row), median_error(row),
                     share * (1 - left) * median_error(none_row)) /
          ideal_saving;
      step.more["percent"] = 100 * share;
      step.more["percent_error"] = 100 * error;
    }
    report.add_record(step, active(shape, k), row);
  }
}

/// The derivation is in docs/bench.md.
std::int64_t derived_peak(const Shape& shape, std::int64_t k) {
  const std::int64_t saved = 36 * shape.width + 2 * 4 + 2 * 4 * rank;
  return (k * saved + 36 * shape.width) * shape.tokens();
}

/// Bytes at the most, by row.
std::map<std::string, std::int64_t> peaks;

template <class Function>
void for_peak_memory(const Shape& shape, const Function& function) {
  for (std::int64_t k = shape.layers; k >= 1; k -= std::max<std::int64_t>(shape.layers / 6, 1))
    function(k, layers_case("peak_memory", shape, k));
}

void add_peak_memory(const Shape& shape) {
  for_peak_memory(shape, [&](std::int64_t k, const Case& step) {
    add_row(step.row(active(shape, k)), 1,
            [&shape, k](benchmark::State& state, const std::string& row) {
              static droppeft::Stream stream(2);
              const auto plan = draw_plan(k, shape.layers, stream);
              auto& run = training(shape);
              run.model->zero_grad();
              const droppeft::MemoryMeter meter;
              time_once(state, row, [&] { run.step(plan); });
              peaks[row] = meter.peak();
            });
  });
}

void record_peak_memory(Report& report, const Shape& shape) {
  for_peak_memory(shape, [&](std::int64_t k, Case step) {
    const std::string row = step.row(active(shape, k));
    if (!peaks.contains(row)) return;
    step.more["peak_bytes"] = peaks[row];
    step.more["limit_bytes"] = derived_peak(shape, k);
    report.add_record(step, active(shape, k), row);
  });
}

constexpr int calls = 20'000;

/// Adds the time of `calls` calls of a module's forward on a small tensor.
template <class Module>
void add_wrapper(const std::string& name, Module module, std::optional<bool> plan,
                 int repetitions) {
  add_row("wrapper/" + name, repetitions,
          [module, plan](benchmark::State& state, const std::string& row) mutable {
            const at::Tensor x = at::ones({4});
            std::optional<droppeft::PlanScope> scope;
            if (plan) {
              droppeft::Plan active(1);
              active.set(0, *plan);
              scope.emplace(*module, active);
            }
            time_once(state, row, [&] {
              for (int call = 0; call < calls; ++call) benchmark::DoNotOptimize(module->forward(x));
            });
          });
}

void add_wrappers(int repetitions) {
  using torch::nn::Identity;
  const double never = 0, nearly_always = 1 - 0x1p-53;
  const auto layer = [](double rate) { return droppeft::LayerDropout<Identity>({}, rate); };
  const auto stack = [](double rate) {
    return droppeft::LayerStack<Identity>(std::vector<Identity>{Identity()},
                                          droppeft::LayerStackOptions().rates({rate}));
  };
  add_wrapper("bare", Identity(), std::nullopt, repetitions);
  add_wrapper("LayerDropout/kept", layer(never), std::nullopt, repetitions);
  add_wrapper("LayerDropout/dropped", layer(nearly_always), std::nullopt, repetitions);
  add_wrapper("LayerDropout/kept_by_plan", layer(never), true, repetitions);
  add_wrapper("LayerDropout/dropped_by_plan", layer(never), false, repetitions);
  add_wrapper("LayerStack/kept", stack(never), std::nullopt, repetitions);
  add_wrapper("LayerStack/dropped", stack(nearly_always), std::nullopt, repetitions);
  add_wrapper("LayerStack/kept_by_plan", stack(never), true, repetitions);
  add_wrapper("LayerStack/dropped_by_plan", stack(never), false, repetitions);
}

void record_wrappers(Report& report) {
  const auto bare = median("wrapper/bare");
  if (!bare) return;
  for (const auto& [row, times] : measured)
    if (row.starts_with("wrapper/") && row != "wrapper/bare")
      report.add_record({.kernel = "dispatch",
                         .shape = "over a block that returns its argument",
                         .more = {{"seconds", (*median(row) - *bare) / calls},
                                  {"error", median_error(row) / calls}}},
                        row.substr(8), row);
}

}  // namespace

int main(int count, char** arguments) {
  Report report("layer_dropout", count, arguments);
  for (const Shape& shape : shapes) {
    if (report.quick() && &shape != shapes) break;
    add_step_skip(shape);
    add_peak_memory(shape);
  }
  add_wrappers(report.quick() ? 3 : 9);
  report.run();
  for (const Shape& shape : shapes) {
    record_step_skip(report, shape);
    record_peak_memory(report, shape);
  }
  record_wrappers(report);
  return report.finish();
}
