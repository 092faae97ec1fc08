#pragma once

#include <torch/nn/module.h>

#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "droppeft/core/check.hpp"
#include "droppeft/core/module.hpp"
#include "droppeft/peft/linear.hpp"
#include "droppeft/peft/targets.hpp"

namespace droppeft {

/// The droppeft::Linear modules of `model`, itself included (its path is empty), that `targets`
/// names, in the model's order, with paths; one that is registered twice comes once, under the
/// first path that matches.
inline std::vector<std::pair<std::string, LinearImpl*>> target_linears(torch::nn::Module& model,
                                                                       const Targets& targets) {
  std::vector<std::pair<std::string, LinearImpl*>> found;
  std::unordered_set<const LinearImpl*> seen;
  if (auto* self = dynamic_cast<LinearImpl*>(&model))
    if (targets.match("")) found.emplace_back("", self);
  for (const auto& entry : model.named_modules("", /*include_self=*/false))
    if (auto* linear = dynamic_cast<LinearImpl*>(entry.value().get()))
      if (targets.match(entry.key()) && seen.insert(linear).second)
        found.emplace_back(entry.key(), linear);
  return found;
}

/// Gives every droppeft::Linear of `model` that `targets` names a fresh LoRA adapter, and freezes
/// everything else. Returns the paths of the adapted modules.
///
///     add_lora(*model, {"query", "value"}, LoraOptions(8).alpha(16));
///     freeze(*model->head, false);                       // what else is to be trained
///     torch::optim::AdamW optimizer(trainable_parameters(*model), 2e-3);
///
/// Throws std::invalid_argument, with nothing changed, when one of the names, or the pattern, is
/// that of no droppeft::Linear (peft lets a misspelled name pass beside a good one), one of them
/// has an adapter already, or the options are out of range. Layers of type torch::nn::Linear are
/// not seen.
inline std::vector<std::string> add_lora(torch::nn::Module& model, const Targets& targets,
                                         const LoraOptions& options) {
  const auto linears = target_linears(model, targets);
  check(!target_linears(model, "all-linear").empty(), "add_lora: ", model.name(),
        " has no droppeft::Linear");
  check(targets.pattern().empty() || !linears.empty(), "add_lora: no droppeft::Linear of ",
        model.name(), " matches '", targets.pattern(), "'");
  for (const std::string& name : targets.names())
    check(!target_linears(model, Targets(std::vector{name})).empty(),
          "add_lora: no droppeft::Linear of ", model.name(), " is called '", name, "'");
  check(!linears.empty(), "add_lora: targets must name at least one module, got none");
  for (const auto& [path, linear] : linears)
    check(!linear->lora, "add_lora: '", path, "' has an adapter already");
  std::vector<std::string> paths;
  for (const auto& [path, linear] : linears) {
    linear->add_lora(options);
    paths.push_back(path);
  }
  freeze(model);
  for (const auto& [path, linear] : linears) freeze(*linear->lora, false);
  return paths;
}

/// Merges the adapters of all droppeft::Linear modules of `model` into their weights.
inline void merge_lora(torch::nn::Module& model) {
  for (const auto& [path, linear] : target_linears(model, "all-linear"))
    if (linear->lora) linear->merge();
}

/// Takes merge_lora() back, to the bit.
inline void unmerge_lora(torch::nn::Module& model) {
  for (const auto& [path, linear] : target_linears(model, "all-linear")) linear->unmerge();
}

}  // namespace droppeft
