#pragma once

#include <ATen/ATen.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/util/ScopeExit.h>
#include <torch/nn/module.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "droppeft/core/check.hpp"
#include "droppeft/core/module.hpp"
#include "droppeft/dropout/droppable.hpp"
#include "droppeft/dropout/gate.hpp"
#include "droppeft/kernels/keep_mask.hpp"

namespace droppeft {

/// Training steps as CUDA graphs, one for each plan: captured when the plan comes for the first
/// time, then replayed by a single launch. For models whose kernels are shorter than it takes to
/// launch them.
///
///     StepGraphs graphs(*model, [&] {
///       const at::Tensor loss = at::cross_entropy_loss(model->forward(ids), labels);
///       loss.backward();
///       return loss;
///     });
///     for (...) {
///       ids.copy_(next_ids), labels.copy_(next_labels);
///       const at::Tensor loss = graphs.run(codebook.draw(stream));
///       optimizer.step();
///     }
///
/// After run() the parameters' gradients are those of this step alone: undefined where it made
/// none, as in dropped layers. They and the loss, on the GPU, are overwritten by later runs. Inputs
/// are read where they lay when the plan was captured: copy into them. Dropout draws fresh masks in
/// every run, by droppeft's modules from how often run() was called, by LibTorch's from its
/// generator; the same calls with the same streams give the same masks.
///
/// `step` makes loss and gradients and nothing else: it is called twice when a plan is captured,
/// once to warm up, under the plan (see PlanScope). It must do the same work in every call, without
/// waiting for the GPU (no item(), nonzero() or copies to the CPU), on one GPU, the current one;
/// and no graph of autograd of an earlier step may be alive. Optimisers stay outside, for they
/// count their steps on the CPU: droppeft::AdamW is one launch more.
///
/// What a graph does is settled when it is captured: training or eval mode, drop rates and their
/// scaling, streams, what requires a gradient, where parameters lie. All that is trained must be in
/// `model`. Autocast belongs into `step`, not around run(). While a plan is captured no other
/// thread may use the GPU.
///
/// Graphs share their memory: the most that one of them needs, the gradients and loss of each, and
/// some 100 KB a hundred kernels. So the plans should be few: see PlanCodebook.
///
/// Needs LibTorch with CUDA, the toolkit's headers and, if the model has dropout of numbers,
/// droppeft::cuda. `model` must outlive it. run() throws
/// std::invalid_argument unless the plan has as many layers as the model, what `step` throws, and
/// c10::Error for what cannot be captured.
///
/// Source of the idea: Nguyen et al., "Accelerating PyTorch with CUDA graphs", 2021.
class StepGraphs {
 public:
  StepGraphs(torch::nn::Module& model, std::function<at::Tensor()> step)
      : model_(&model),
        step_(std::move(step)),
        stream_(at::cuda::getStreamFromPool()),
        runs_(at::zeros({1}, at::TensorOptions(at::kLong).device(stream_.device()))) {
    check(static_cast<bool>(step_), "StepGraphs: the step is empty");
  }
  StepGraphs(const StepGraphs&) = delete;
  StepGraphs& operator=(const StepGraphs&) = delete;

  /// A step under `plan`, put on the current stream; returns the loss.
  at::Tensor run(const Plan& plan) {
    const auto found = std::ranges::find(captured_, plan, &Captured::plan);
    Captured& its = found != captured_.end() ? *found : capture(plan);
    for (const auto& [parameter, gradient] : its.gradients) parameter.mutable_grad() = gradient;
    its.graph->replay();
    return its.loss;
  }

  /// How many plans were captured.
  std::size_t size() const { return captured_.size(); }

 private:
  struct Captured {
    Plan plan;
    std::unique_ptr<at::cuda::CUDAGraph> graph;
    at::Tensor loss;
    // Each parameter that is trained and its gradient, undefined in dropped layers.
    std::vector<std::pair<at::Tensor, at::Tensor>> gradients;
  };

  /// Masks drawn while it lives count the runs of the graph.
  struct CountedRuns {
    explicit CountedRuns(const at::Tensor& runs) : before(KeepMask::counted_runs) {
      KeepMask::counted_runs = static_cast<const std::uint64_t*>(runs.const_data_ptr());
    }
    ~CountedRuns() { KeepMask::counted_runs = before; }
    CountedRuns(const CountedRuns&) = delete;
    CountedRuns& operator=(const CountedRuns&) = delete;

    const std::uint64_t* before;
  };

  void clear_gradients() const {
    for (const at::Tensor& parameter : trainable_parameters(*model_))
      parameter.mutable_grad().reset();
  }

  Captured& capture(const Plan& plan) {
    const PlanScope scope(*model_, plan);
    const CountedRuns counted(runs_);
    at::cuda::getCurrentCUDAStream().synchronize();
    const c10::cuda::CUDAStreamGuard on(stream_);
    // What a capture that failed leaves behind was never computed.
    auto clear = c10::make_scope_exit([&] { clear_gradients(); });
    clear_gradients();
    step_();
    clear_gradients();
    stream_.synchronize();

    Captured made{plan, std::make_unique<at::cuda::CUDAGraph>(), {}, {}};
    made.graph->capture_begin(captured_.empty() ? at::cuda::graph_pool_handle()
                                                : captured_.front().graph->pool());
    try {
      runs_.add_(1);
      made.loss = step_().detach();
    } catch (...) {
      try {
        made.graph->capture_end();
      } catch (...) {  // the first error is the one to tell
      }
      throw;
    }
    made.graph->capture_end();
    clear.release();
    for (const at::Tensor& parameter : trainable_parameters(*model_))
      made.gradients.emplace_back(parameter, parameter.grad());
    captured_.push_back(std::move(made));
    return captured_.back();
  }

  torch::nn::Module* model_;
  std::function<at::Tensor()> step_;
  c10::cuda::CUDAStream stream_;
  at::Tensor runs_;
  std::vector<Captured> captured_;
};

}  // namespace droppeft
