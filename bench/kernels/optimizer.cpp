// One step of AdamW over the LoRA adapters of an encoder (rank 8 on query and value), with all
// layers run and with every other one dropped, and over all of a layer of BERT-base: droppeft's
// against LibTorch's and against moving seven floats a parameter (four read, three written). Every
// step finds its tensors in memory, as after a backward pass, not in the caches.
#include <ATen/ATen.h>
#include <torch/optim/adamw.h>

#include <cstddef>
#include <cstdint>
#include <droppeft/optim/adamw.hpp>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "report.hpp"

namespace {

using Layers = std::vector<std::vector<std::vector<std::int64_t>>>;  // shapes by layer

Layers adapters(std::size_t layers, std::int64_t width) {
  return {layers, {{8, width}, {width, 8}, {8, width}, {width, 8}}};
}

Layers whole_layer(std::int64_t width) {
  Layers all{{{4 * width, width}, {4 * width}, {width, 4 * width}, {width}}};
  for (int map = 0; map < 4; ++map) all[0].insert(all[0].end(), {{width, width}, {width}});
  return all;
}

std::int64_t numbers(const Layers& layers) {
  std::int64_t sum = 0;
  for (const auto& layer : layers)
    for (const auto& shape : layer) sum += c10::multiply_integers(shape);
  return sum;
}

/// A model's parameters, and an optimiser of each kind.
struct Model {
  explicit Model(const Layers& layers) {
    for (const auto& layer : layers)
      for (const auto& shape : layer) {
        parameters.push_back(at::randn(shape).requires_grad_());
        gradients.push_back(at::randn(shape));
        exp_avg.push_back(at::zeros(shape));
        exp_avg_sq.push_back(at::zeros(shape));
      }
    ours = std::make_unique<droppeft::AdamW>(parameters);
    libtorch = std::make_unique<torch::optim::AdamW>(parameters);
    give_gradients(1);
    ours->step();
    libtorch->step();
  }

  /// To one of `every` layers, of four tensors each, and to none of the others.
  void give_gradients(std::size_t every) {
    for (std::size_t i = 0; i < parameters.size(); ++i)
      parameters[i].mutable_grad() = i / 4 % every == 0 ? gradients[i] : at::Tensor();
  }

  /// What a program that has lists of tensors can call.
  void fused() {
    std::vector<at::Tensor> stepped, its_gradients, averages, squares;
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      if (!parameters[i].grad().defined()) continue;
      stepped.push_back(parameters[i]);
      its_gradients.push_back(gradients[i]);
      averages.push_back(exp_avg[i]);
      squares.push_back(exp_avg_sq[i]);
    }
    at::NoGradGuard no_grad;
    fused_step.add_(1);
    const std::vector<at::Tensor> steps(stepped.size(), fused_step);
    at::_fused_adamw_(stepped, its_gradients, averages, squares, {}, steps, 1e-3, 0.9, 0.999, 1e-2,
                      1e-8, false, false);
  }

  std::vector<at::Tensor> parameters, gradients, exp_avg, exp_avg_sq;
  std::unique_ptr<droppeft::AdamW> ours;
  std::unique_ptr<torch::optim::AdamW> libtorch;
  at::Tensor fused_step = at::zeros({});
};

void add_rows(Report& report, const std::string& name, const Layers& layers, bool may_drop) {
  const auto count = static_cast<double>(numbers(layers));
  const auto models = rotated(32 * count, [&] { return std::make_shared<Model>(layers); });
  for (const std::size_t every : {1U, 2U}) {
    if (every > 1 && !may_drop) continue;
    const Case work{.kernel = "optimizer",
                    .shape = name + (every > 1 ? ", every other layer dropped" : ""),
                    .bytes = 28 * count / static_cast<double>(every),
                    .calls = count < 1e6 ? 8 : 2};
    const auto prepare = [=] {
      auto& model = models->next();
      model->give_gradients(every);
      return model;
    };
    report.add(work, "droppeft", prepare, [](auto& model) { model->ours->step(); });
    report.add(work, "torch::optim::AdamW", prepare, [](auto& model) { model->libtorch->step(); });
    report.add(work, "at::_fused_adamw_", prepare, [](auto& model) { model->fused(); });
  }
}

/// Whether a first step of ours is AdamW's, in double.
bool is_adamw() {
  const at::Tensor parameter = at::randn({1000}).requires_grad_();
  parameter.mutable_grad() = at::randn({1000});
  const at::Tensor p = parameter.detach().to(at::kDouble), g = parameter.grad().to(at::kDouble);
  droppeft::AdamW(std::vector<at::Tensor>{parameter}).step();
  const at::Tensor expected = p * (1 - 1e-5) - 1e-3 * g / (g.abs() + 1e-8);
  return at::allclose(parameter.detach().to(at::kDouble), expected, 1e-6, 1e-9);
}

}  // namespace

int main(int count, char** arguments) {
  Report report("optimizer", count, arguments);
  if (!is_adamw()) {
    std::cerr << "optimizer: the step is not AdamW's\n";
    return 1;
  }
  add_rows(report, "MiniLM LoRA", adapters(6, 384), true);
  if (!report.quick()) {
    add_rows(report, "BERT-base LoRA", adapters(12, 768), true);
    add_rows(report, "BERT-large LoRA", adapters(24, 1024), true);
    add_rows(report, "all of a BERT-base layer", whole_layer(768), false);
  }
  report.run();
  return report.finish();
}
