#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/ScopeExit.h>
#include <torch/optim/adamw.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "droppeft/core/check.hpp"
#include "droppeft/core/kernel_tensors.hpp"
#include "droppeft/core/parallel.hpp"
#include "droppeft/kernels/cpu/adamw.hpp"
#include "droppeft/kernels/cuda/slots.hpp"

namespace droppeft {

/// A drop-in torch::optim::AdamW whose step is one pass over memory and one parallel loop over all
/// parameters, which for the many small tensors of adapters is several times faster.
///
///     m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
///     p = (1 - lr weight_decay) p - lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + eps)
///
/// (Loshchilov and Hutter, arXiv 1711.05101.) Options, parameter groups, state and files are
/// LibTorch's own: each reads what the other saved, and schedulers work. The result differs from
/// LibTorch's by rounding, about 1e-7 of a step; it is the same for every number of threads.
///
/// A parameter whose gradient is undefined, as those of dropped layers are, is left as it is: no
/// decay, no moments, no count t. So zero gradients with zero_grad(), not with zero_grad(false).
///
/// The one pass is for contiguous float parameters without amsgrad, on the CPU or, with
/// droppeft::cuda, on a GPU (a launch for each 256 of them). LibTorch's own arithmetic steps all
/// others, and all of them when parameters share memory; so nothing is gained for doubles.
///
/// The constructor throws std::invalid_argument for negative (or NaN) lr, eps or weight_decay,
/// betas outside [0, 1), or a group whose options are not torch::optim::AdamWOptions. step() throws
/// c10::Error for sparse gradients. Not to be called from several threads at once.
class AdamW : public torch::optim::AdamW {
 public:
  explicit AdamW(const std::vector<torch::optim::OptimizerParamGroup>& groups,
                 torch::optim::AdamWOptions defaults = {})
      : torch::optim::AdamW(groups, checked(defaults)) {
    for (const auto& group : param_groups_) checked(group.options());
  }
  explicit AdamW(std::vector<at::Tensor> parameters, torch::optim::AdamWOptions defaults = {})
      : AdamW({torch::optim::OptimizerParamGroup(std::move(parameters))}, std::move(defaults)) {}

  /// One step for every parameter that has a gradient; calls `closure` before, with gradients
  /// enabled, and returns what it returned.
  at::Tensor step(LossClosure closure = nullptr) override {
    at::Tensor loss;
    if (closure) {
      at::AutoGradMode enabled(true);
      loss = closure();
    }
    at::NoGradGuard no_grad;
    std::vector<Stretch> stretches;
    std::vector<std::vector<at::Tensor>> others;
    for (auto& group : param_groups_) {
      const auto& options = static_cast<const torch::optim::AdamWOptions&>(group.options());
      auto& left = others.emplace_back();
      for (const at::Tensor& parameter : group.params()) {
        if (!parameter.grad().defined()) continue;
        if (fits(parameter, options))
          stretches.emplace_back(parameter, options);
        else
          left.push_back(parameter);
      }
    }
    if (share_memory(stretches)) {
      torch::optim::AdamW::step();
    } else {
      step_others(others);
      const auto on_gpu =
          std::stable_partition(stretches.begin(), stretches.end(),
                                [](const Stretch& one) { return one.parameter->is_cpu(); });
      step_on_gpus(prepared({on_gpu, stretches.end()}));
      step_on_cpu(prepared({stretches.begin(), on_gpu}));
    }
    return loss;
  }

 private:
  using Options = torch::optim::AdamWOptions;
  using State = torch::optim::AdamWParamState;

  /// A parameter among the blocks of `block_size` numbers that threads share out.
  struct Stretch {
    Stretch(const at::Tensor& tensor, const Options& settings)
        : parameter(&tensor),
          options(&settings),
          values(tensor.mutable_data_ptr<float>()),
          count(tensor.numel()) {}

    const at::Tensor* parameter;
    const Options* options;
    float* values;
    std::int64_t count;
    const float* grad = nullptr;
    float *exp_avg = nullptr, *exp_avg_sq = nullptr;
    std::int64_t step = 0, first_block = 0, end_block = 0;
  };
  static constexpr std::int64_t block_size = 1024;

  static const Options& checked(const torch::optim::OptimizerOptions& given) {
    const auto* options = dynamic_cast<const Options*>(&given);
    check(options != nullptr,
          "droppeft::AdamW: the options of a group must be torch::optim::AdamWOptions");
    const auto not_negative = [](const char* name, double value) {
      check(value >= 0, "droppeft::AdamW: ", name, " must be at least 0, got ", value);
    };
    not_negative("lr", options->lr());
    not_negative("eps", options->eps());
    not_negative("weight_decay", options->weight_decay());
    const auto [beta1, beta2] = options->betas();
    check(beta1 >= 0 && beta1 < 1 && beta2 >= 0 && beta2 < 1,
          "droppeft::AdamW: betas must be in [0, 1), got ", beta1, " and ", beta2);
    return *options;
  }

  /// Floats in a row, where and of the shape that `parameter` is.
  static bool is_plain(const at::Tensor& tensor, const at::Tensor& parameter) {
    return tensor.defined() && detail::has_kernel(tensor) &&
           tensor.device() == parameter.device() && tensor.scalar_type() == at::kFloat &&
           tensor.sizes() == parameter.sizes() && tensor.is_contiguous() &&
           !tensor._is_zerotensor();
  }

  bool fits(const at::Tensor& parameter, const Options& options) const {
    if (options.amsgrad() || !is_plain(parameter, parameter) ||
        !is_plain(parameter.grad(), parameter))
      return false;
    const auto found = state_.find(parameter.unsafeGetTensorImpl());
    if (found == state_.end()) return true;
    const auto& state = static_cast<const State&>(*found->second);
    return is_plain(state.exp_avg(), parameter) && is_plain(state.exp_avg_sq(), parameter);
  }

  /// Whether two of them do, as when a parameter was given twice. Leaves them sorted by address.
  static bool share_memory(std::vector<Stretch>& stretches) {
    std::sort(stretches.begin(), stretches.end(),
              [](const Stretch& a, const Stretch& b) { return a.values < b.values; });
    return std::adjacent_find(stretches.begin(), stretches.end(),
                              [](const Stretch& a, const Stretch& b) {
                                return a.values + a.count > b.values;
                              }) != stretches.end();
  }

  /// torch::optim::AdamW's step for those alone.
  void step_others(std::vector<std::vector<at::Tensor>>& others) {
    const auto exchange = [&] {
      for (std::size_t i = 0; i < others.size(); ++i) param_groups_[i].params().swap(others[i]);
    };
    exchange();
    const auto back = c10::make_scope_exit(exchange);
    torch::optim::AdamW::step();
  }

  /// With their states, one step further, and their blocks.
  std::vector<Stretch> prepared(std::vector<Stretch> stretches) {
    std::int64_t blocks = 0;
    for (Stretch& one : stretches) {
      auto& slot = state_[one.parameter->unsafeGetTensorImpl()];
      if (!slot) {
        auto fresh = std::make_unique<State>();
        fresh->exp_avg(at::zeros_like(*one.parameter));
        fresh->exp_avg_sq(at::zeros_like(*one.parameter));
        slot = std::move(fresh);
      }
      auto& state = static_cast<State&>(*slot);
      state.step(state.step() + 1);
      one.step = state.step();
      one.grad = one.parameter->grad().const_data_ptr<float>();
      one.exp_avg = state.exp_avg().mutable_data_ptr<float>();
      one.exp_avg_sq = state.exp_avg_sq().mutable_data_ptr<float>();
      one.first_block = blocks;
      one.end_block = blocks += (one.count + block_size - 1) / block_size;
      one.parameter->unsafeGetTensorImpl()->bump_version();
    }
    return stretches;
  }

  static cpu::AdamWSettings settings_of(const Options& options) {
    const auto [beta1, beta2] = options.betas();
    return {.lr = options.lr(),
            .beta1 = beta1,
            .beta2 = beta2,
            .eps = options.eps(),
            .weight_decay = options.weight_decay()};
  }

  /// A launch for all of one group on one GPU.
  static void step_on_gpus(std::vector<Stretch> stretches) {
    const auto key = [](const Stretch& one) {
      return std::pair(one.parameter->device().index(), one.options);
    };
    std::ranges::stable_sort(stretches, {}, key);
    for (auto first = stretches.begin(); first != stretches.end();) {
      const auto end = std::find_if(first, stretches.end(),
                                    [&](const Stretch& one) { return key(one) != key(*first); });
      std::vector<cuda::AdamWTensor> tensors;
      for (auto one = first; one != end; ++one)
        tensors.push_back(
            {one->values, one->exp_avg, one->exp_avg_sq, one->grad, one->count, one->step});
      const detail::OnGpu gpu(*first->parameter);
      cuda::slots.adamw(tensors.data(), end - first, settings_of(*first->options), gpu.stream);
      first = end;
    }
  }

  static void step_on_cpu(const std::vector<Stretch>& stretches) {
    const std::int64_t blocks = stretches.empty() ? 0 : stretches.back().end_block;
    at::parallel_for(0, blocks, 32, [&](std::int64_t block, std::int64_t end) {
      auto one = std::upper_bound(
          stretches.begin(), stretches.end(), block,
          [](std::int64_t given, const Stretch& stretch) { return given < stretch.end_block; });
      for (; block < end; ++one) {
        const std::int64_t stop = std::min(end, one->end_block);
        cpu::adamw(one->values, one->grad, one->exp_avg, one->exp_avg_sq,
                   settings_of(*one->options), one->step, (block - one->first_block) * block_size,
                   std::min((stop - one->first_block) * block_size, one->count));
        block = stop;
      }
    });
  }
};

}  // namespace droppeft
